"""Interpolation between the kept bins, by SciPy: what a network has to beat.

SciPy is imported when it is first used: it takes half a second, and every codec would wait for it.
"""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float32
from threadpoolctl import ThreadpoolController

from jaxsparse.contracts import Decoder, Params
from jaxsparse.types import HardMask, Mask, PRNGKey, Spectrogram

Interpolation = Literal["nearest", "linear", "clough-tocher"]
# SciPy's classes.
_PIECEWISE = {"linear": "LinearNDInterpolator", "clough-tocher": "CloughTocher2DInterpolator"}


@dataclass(frozen=True)
class _InterpolationConfig:
    """Config of an interpolation as a `Decoder`: it has neither settings nor parameters.

    Where nothing is kept, it fills in zeros.
    """

    method: ClassVar[Interpolation]

    def build(self) -> Decoder:
        """Builds the decoder, which runs on the host."""
        return _build(self)


class Nearest(_InterpolationConfig):
    """The nearest kept bin."""

    method = "nearest"


class Linear(_InterpolationConfig):
    """Linear interpolation over Delaunay triangles."""

    method = "linear"


class CloughTocher(_InterpolationConfig):
    """Clough-Tocher's cubic interpolation over Delaunay triangles."""

    method = "clough-tocher"


@functools.lru_cache
def _build(config: _InterpolationConfig) -> Decoder:
    def init(key: PRNGKey) -> Params:
        return {}

    def apply(
        params: Params, spectrogram: Spectrogram, mask: Mask, valid: HardMask | None = None
    ) -> Spectrogram:
        if mask.dtype != jnp.bool_:
            raise TypeError("interpolation needs a hard mask")
        kept = np.asarray(mask if valid is None else mask & valid)
        if not kept.any():
            return jnp.zeros(kept.shape)
        return jnp.asarray(interpolate(np.asarray(spectrogram), kept, config.method))

    return Decoder(config, init, apply, halo=None, on_host=True)


def interpolate(
    spectrogram: Float[np.ndarray, "F T"],
    mask: Bool[np.ndarray, "F T"],
    method: Interpolation = "linear",
) -> Float32[np.ndarray, "F T"]:
    """Fills in the hidden bins from the kept ones around them, on the host.

    A bin and a frame count as the same distance. Linear interpolation is over Delaunay triangles,
    Clough-Tocher's cubic one over the same triangles with continuous slopes (Alfeld 1984), cut off
    at the lowest and the highest kept level, which it can overshoot by far. Outside the kept bins'
    convex hull, and where they don't span a triangle, the nearest one is taken.

    Args:
        spectrogram: dB; only its kept bins are used, and they come out as they are.
        mask: True where a bin is kept.
        method: The interpolation.

    Returns:
        dB.

    Raises:
        ValueError: If no bin is kept, a kept one is not finite, or the method is unknown.
    """
    if method != "nearest" and method not in _PIECEWISE:
        raise ValueError(f"unknown interpolation {method!r}")
    values = spectrogram[mask].astype(np.float64)
    if not values.size:
        raise ValueError("no bin is kept")
    if not np.isfinite(values).all():
        raise ValueError("a kept bin is not finite")
    import scipy.interpolate
    from scipy.ndimage import distance_transform_edt

    nearest = np.asarray(distance_transform_edt(~mask, return_distances=False, return_indices=True))
    result = spectrogram[nearest[0], nearest[1]].astype(np.float32)
    triangles = None
    if method != "nearest":
        triangles = _triangulate(np.packbits(mask).tobytes(), mask.shape)
    if triangles is not None:
        # SciPy solves a tiny system for each triangle; where other work is on the cores, BLAS's
        # threads waiting for one another make that a hundred times slower.
        with _threads().limit(limits=1, user_api="blas"):
            interpolator = getattr(scipy.interpolate, _PIECEWISE[method])
            filled = interpolator(triangles, values)(np.argwhere(~mask))
        filled = filled.clip(values.min(), values.max())
        result[~mask] = np.where(np.isnan(filled), result[~mask], filled)
    return result


_threads = functools.cache(ThreadpoolController)


# Several interpolations of a mask share its triangles, which take longest; some 20 MB each.
@functools.lru_cache(maxsize=8)
def _triangulate(bits: bytes, shape: tuple[int, int]) -> Any:
    """Returns SciPy's triangles, or None."""
    from scipy.spatial import Delaunay, QhullError

    mask = np.unpackbits(np.frombuffer(bits, np.uint8), count=shape[0] * shape[1]).reshape(shape)
    try:
        return Delaunay(np.argwhere(mask))
    except (QhullError, ValueError):
        # Fewer than three points, or all on a line.
        return None
