"""Pyramid fill: levels for hidden bins from normalized averages of the kept ones, at all scales.

This is the sparsity-invariant convolution (Uhrig et al. 2017, eq. 5) with a fixed kernel of ones
and a stride, level by level, and then back down: the pull-push algorithm of Gortler et al. (1996,
section 3.4). It takes a few operations per bin and has nothing to train.
"""

import functools
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from jaxsparse.contracts import Decoder, Params
from jaxsparse.types import HardMask, Mask, PRNGKey, Spectrogram

_MAX_LEVELS = 16

Plane = Float[Array, "H W"]


@dataclass(frozen=True)
class PyramidConfig:
    """Scales of the pyramid fill.

    Frames are averaged over fewer levels than bins, so that a long clip can be completed in parts.

    Raises:
        ValueError: If a setting is out of range.
    """

    levels: int = 11
    """Levels above the bins; each has half as many bins as the one below."""
    time_levels: int = 4
    """How many of them, from below, have half as many frames too."""
    prior: float = -25.0
    """dB of bins for which not even the coarsest level knows a kept one."""

    def __post_init__(self) -> None:
        if not 0 <= self.time_levels <= self.levels <= _MAX_LEVELS:
            raise ValueError(
                f"time_levels and levels must be ordered numbers from 0 to {_MAX_LEVELS}"
            )
        if not -1e6 <= self.prior <= 1e6:
            raise ValueError("prior must be a number from -1e6 to 1e6")

    @property
    def halo(self) -> int:
        """Frames on each side that an output depends on, at most.

        On the way back down, a bin sees its own cell of each level and the next one beside it.
        """
        return 2 ** (self.time_levels + 1)

    @property
    def alignment(self) -> int:
        """Frames of the largest cell, at whose multiples a spectrogram can be cut."""
        return 2**self.time_levels

    def multiply_adds(self, n_bins: int, n_frames: int) -> int:
        """Counts the multiply-adds for one spectrogram of this size."""
        total, height, width = 0, n_bins, n_frames
        for i in range(self.levels):
            # Up and down, levels and weights: a sum per bin, and 2 x 2 of an interpolation.
            total += 2 * (1 + 4) * height * width
            height = -(-height // 2)
            width = -(-width // 2) if i < self.time_levels else width
        return total

    def build(self) -> Decoder:
        """Builds the pure functions of the fill; the same ones for the same settings."""
        return _build(self)


@functools.lru_cache
def _build(config: PyramidConfig) -> Decoder:
    def init(key: PRNGKey) -> Params:
        return {}

    def apply(
        params: Params, spectrogram: Spectrogram, mask: Mask, valid: HardMask | None = None
    ) -> Spectrogram:
        return fill(spectrogram, mask, valid, config)

    return Decoder(config, init, apply, config.halo, config.alignment)


def fill(
    spectrogram: Spectrogram,
    mask: Mask,
    valid: HardMask | None = None,
    config: PyramidConfig = PyramidConfig(),
) -> Spectrogram:
    """Fills hidden bins with averages of the kept ones around, of the finest scale that has any.

    Args:
        spectrogram: dB, F by T; where a hard mask hides, any value.
        mask: Observed bins; of a soft one, a bin that is half observed is half filled.
        valid: See `jaxsparse.contracts.Apply`.
        config: Scales.

    Returns:
        dB, F by T: the kept bins as they are, and the others between the lowest and the highest of
        them, or at the prior.
    """
    exists = (
        jnp.ones(mask.shape, spectrogram.dtype)
        if valid is None
        else valid.astype(spectrogram.dtype)
    )
    weight = mask.astype(spectrogram.dtype) * exists
    level = observed(spectrogram - config.prior, mask, weight)
    strides = [(2, 2 if i < config.time_levels else 1) for i in range(config.levels)]
    finer = []
    for stride in strides:
        finer.append((level, weight, exists))
        level, weight = _sum_cells(level, stride), _sum_cells(weight, stride)
        # A cell that holds more than one bin knows its average, and no more than that.
        level, weight = level / jnp.maximum(weight, 1), jnp.minimum(weight, 1)
        exists = jnp.minimum(_sum_cells(exists, stride), 1)
    filled, around = level, jnp.zeros_like(level)
    for stride, (level, weight, own) in zip(strides[::-1], finer[::-1], strict=True):
        around = _interpolate(filled, exists, stride, level.shape)
        filled, exists = level + (1 - weight) * around, own
    # Of the levels as they were given, so that kept bins are not rounded.
    return observed(spectrogram, mask, weight) + (1 - weight) * (around + config.prior)


def observed(values: Plane, mask: Mask, weight: Plane) -> Plane:
    """Weighs what is observed; what a hard mask hides can't leak, NaN included."""
    return jnp.where(weight > 0, values, 0) if mask.dtype == jnp.bool_ else values * weight


def pad_to_multiple(x: Shaped[Array, "H W *C"], stride: tuple[int, int]) -> Shaped[Array, "P Q *C"]:
    """Appends zeros to the first two axes, up to multiples of the strides."""
    pads = [(0, -size % step) for size, step in zip(x.shape[:2], stride, strict=True)]
    return jnp.pad(x, [*pads, *[(0, 0)] * (x.ndim - 2)]) if any(p for _, p in pads) else x


def _sum_cells(x: Plane, stride: tuple[int, int]) -> Float[Array, "P Q"]:
    """Sums over cells of the stride's size; outside there are zeros."""
    x = pad_to_multiple(x, stride)
    height, width = x.shape
    x = x.reshape(height // stride[0], stride[0], width // stride[1], stride[1])
    return x.sum((1, 3))


def _interpolate(
    coarse: Plane, exists: Plane, stride: tuple[int, int], shape: tuple[int, ...]
) -> Float[Array, "P Q"]:
    """Interpolates linearly between the centres of those cells that exist."""
    total, weights = coarse * exists, exists
    for axis in (0, 1):
        if stride[axis] > 1:
            total, weights = _double(total, axis), _double(weights, axis)
    cut = slice(shape[0]), slice(shape[1])
    # Where there is nothing around at all, nothing is valid.
    return total[cut] / jnp.where(weights[cut] > 0, weights[cut], 1)


def _double(x: Plane, axis: int) -> Float[Array, "P Q"]:
    """Interpolates to twice the length, zeros outside: 3/4 of the own cell, 1/4 of the next."""
    pads = [(0, 0), (0, 0)]
    pads[axis] = (1, 1)
    padded = jnp.pad(x, pads)
    n = x.shape[axis]
    before, after = (jnp.take(padded, jnp.arange(i, i + n), axis) for i in (0, 2))
    halves = jnp.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1)
    shape = list(x.shape)
    shape[axis] = 2 * n
    return halves.reshape(shape)
