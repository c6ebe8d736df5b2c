"""A learned sampler: a small U-Net that reads a spectrogram and a mask, and scores bins.

In each half second the bins of highest score take the places of those kept, as many as before
(`jaxsparse.learned`). It is trained together with the decoder, on the soft masks of the same sum
that lie nearest to its scores (`jaxsparse.search.relaxations.projection`).

Networks that choose the known data of an image are due to T. Alt, P. Peter and J. Weickert (2022),
"Learning sparse masks for diffusion-based image inpainting"; here bins of a given mask are
exchanged.
"""

import functools
import math
from dataclasses import dataclass, field

import jax.numpy as jnp
from flax import nnx

from jaxsparse.contracts import Decoder
from jaxsparse.nn.conv import KernelGradient
from jaxsparse.nn.network import from_module
from jaxsparse.nn.pyramid import PyramidConfig, fill, observed, pad_to_multiple
from jaxsparse.nn.pyramid_unet import N_PLANES, STATISTICS_HALO, statistics
from jaxsparse.nn.unet import Plane, UNet, UNetShape
from jaxsparse.settings import check_ranges
from jaxsparse.spectrogram import db_to_power
from jaxsparse.types import HardMask, Mask, Spectrogram

_FILL = PyramidConfig(prior=0.0)
# Errors of levels below it count as equal; what is added to their logarithm brings it near 0.
_LEAST_ERROR, _ERROR_OFFSET = 1e-3, 3.0
# Beside the statistics of the kept bins: the level, and the error with which it is filled in.
_N_PLANES = N_PLANES + 2
_RANGES = {
    "prior": (-1e6, 1e6),
    "input_scale": (1e-6, 1e6),
    "exponent": (1e-3, 1.0),
    "stay": (0.0, 1e6),
}


@dataclass(frozen=True)
class SamplerConfig:
    """Architecture; the defaults are those of the sampler that ships.

    Raises:
        ValueError: If a setting is out of range.
    """

    features: tuple[int, ...] = (16, 32, 48)
    """Channels of each level, from the finest to the coarsest."""
    cell: tuple[int, int] = (4, 2)
    """Bins and frames that are the channels of one cell of the finest level."""
    prior: float = -25.0
    """dB that the layers see as 0."""
    input_scale: float = 15.0
    """dB that the layers see as 1."""
    exponent: float = 0.1
    """Errors are those of powers raised to it, which weighs what is loud."""
    stay: float = 2.0
    """What the score of a kept bin is raised by, so that few are exchanged at first."""
    kernel_gradient: KernelGradient = field(default="auto", metadata={"saved": False})
    """See `jaxsparse.nn.conv.conv`."""

    def __post_init__(self) -> None:
        self._unet.check()
        check_ranges(self, _RANGES)

    @property
    def _unet(self) -> UNetShape:
        return UNetShape(self.features, self.cell)

    def multiply_adds(self, n_bins: int, n_frames: int) -> int:
        """Counts the multiply-adds for one spectrogram of this size."""
        fills = 3 * _FILL.multiply_adds(n_bins, n_frames)
        return self._unet.multiply_adds(_N_PLANES, n_bins, n_frames) + fills

    def build(self) -> Decoder:
        """Builds the pure functions; `apply` gives scores in the place of levels."""
        return _build(self)


@functools.lru_cache
def _build(config: SamplerConfig) -> Decoder:
    halo = config._unet.halo + STATISTICS_HALO + _FILL.halo
    alignment = math.lcm(config._unet.stride[1], _FILL.alignment)
    return from_module(lambda rngs: Sampler(config, rngs=rngs), config, halo, alignment)


class Sampler(UNet):
    """Corrects scores that say how badly a bin would be filled in if it were not kept."""

    def __init__(self, config: SamplerConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config._unet, _N_PLANES, config.kernel_gradient, rngs)
        self.config = config

    def __call__(
        self, spectrogram: Spectrogram, mask: Mask, valid: HardMask | None = None
    ) -> Spectrogram:
        """Scores bins.

        Args:
            spectrogram: dB, F by T, of every bin.
            mask: Bins kept so far.
            valid: See `jaxsparse.contracts.Apply`.

        Returns:
            Scores, F by T, in no unit; -inf where the array only pads the spectrogram.
        """
        config, shape = self.config, mask.shape
        stride = config._unet.stride
        exists = pad_to_multiple(jnp.ones(shape, bool) if valid is None else valid, stride)
        mask = pad_to_multiple(mask, stride)
        level = jnp.where(exists, pad_to_multiple(spectrogram, stride) - config.prior, 0)
        weight = mask.astype(level.dtype) * exists.astype(level.dtype)
        start = fill(level, weight, exists, _FILL)
        error = jnp.log(self._errors(level, start, weight, exists) + _LEAST_ERROR)
        score = error + config.stay * weight
        level, start = level / config.input_scale, start / config.input_scale
        known = observed(level, mask, weight)
        planes = statistics(start, known, weight, exists)
        own = jnp.where(exists[..., None], jnp.stack([level, error + _ERROR_OFFSET], axis=-1), 0)
        score = score + self.apply_layers(jnp.concatenate([planes, own], axis=-1), exists)[..., 0]
        return jnp.where(exists, score, -jnp.inf)[: shape[0], : shape[1]]

    def _errors(self, level: Plane, start: Plane, weight: Plane, exists: HardMask) -> Plane:
        """Measures how badly each bin is filled in: a kept one from every other one of those."""
        height, width = weight.shape
        even = (jnp.arange(height)[:, None] + jnp.arange(width)[None]) % 2 == 0
        by_odd = fill(level, jnp.where(even, 0, weight), exists, _FILL)
        by_even = fill(level, jnp.where(even, weight, 0), exists, _FILL)
        without = start + weight * (jnp.where(even, by_odd, by_even) - start)
        return jnp.abs(self._loudness(level) - self._loudness(without))

    def _loudness(self, level: Plane) -> Plane:
        return db_to_power(self.config.exponent * (level + self.config.prior))
