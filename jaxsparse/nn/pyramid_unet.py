"""A residual U-Net over the pyramid fill, on a grid coarser than that of the spectrogram."""

import functools
import math
from dataclasses import dataclass, field

import jax.numpy as jnp
from flax import nnx

from jaxsparse.contracts import Decoder
from jaxsparse.nn.conv import KernelGradient
from jaxsparse.nn.network import from_module
from jaxsparse.nn.pyramid import PyramidConfig, fill, observed, pad_to_multiple
from jaxsparse.nn.sparse_conv import box_sum, max_pool
from jaxsparse.nn.unet import Image, Plane, UNet, UNetShape
from jaxsparse.settings import check_ranges
from jaxsparse.types import HardMask, Mask, Spectrogram

_RANGES = {
    "prior": (-1e6, 1e6),
    "input_scale": (1e-6, 1e6),
    "most_above": (1e-6, 1e6),
    "most_below": (1e-6, 1e6),
}
# Windows of the local mean and the local maximum, in bins and frames.
_MEAN_SIZE, _MAX_SIZE = 5, 7
# Planes that the network sees: see `statistics`.
N_PLANES = 6
# Frames on each side that they depend on, the fill apart.
STATISTICS_HALO = _MAX_SIZE // 2


@dataclass(frozen=True)
class PyramidUNetConfig:
    """Architecture; the defaults are those of the network that ships.

    Raises:
        ValueError: If a setting is out of range.
    """

    features: tuple[int, ...] = (32, 64, 96)
    """Channels of each level, from the finest to the coarsest."""
    cell: tuple[int, int] = (4, 2)
    """Bins and frames that are the channels of one cell of the finest level."""
    start_from_fill: bool = True
    """Whether the network corrects the pyramid fill; if not, it corrects the prior."""
    prior: float = -25.0
    """dB where nothing is known; the layers see it as 0."""
    input_scale: float = 15.0
    """dB that the layers see as 1."""
    most_above: float = 24.0
    """dB that a bin comes out above the fill at most."""
    most_below: float = 80.0
    """dB that a bin comes out below the fill at most."""
    kernel_gradient: KernelGradient = field(default="auto", metadata={"saved": False})
    """See `jaxsparse.nn.conv.conv`."""

    def __post_init__(self) -> None:
        self._unet.check()
        check_ranges(self, _RANGES)

    @property
    def halo(self) -> int:
        """Frames on each side that an output depends on, at most."""
        return self._unet.halo + STATISTICS_HALO + self._fill.halo

    @property
    def alignment(self) -> int:
        """Frames at whose multiples a spectrogram can be cut."""
        return math.lcm(self._unet.stride[1], self._fill.alignment)

    @property
    def _unet(self) -> UNetShape:
        return UNetShape(self.features, self.cell)

    @property
    def _fill(self) -> PyramidConfig:
        # In the units of the layers, where the prior is zero.
        return PyramidConfig(prior=0.0) if self.start_from_fill else PyramidConfig(0, 0, 0.0)

    def multiply_adds(self, n_bins: int, n_frames: int) -> int:
        """Counts the multiply-adds for one spectrogram of this size."""
        correction = self._unet.multiply_adds(N_PLANES, n_bins, n_frames)
        return correction + self._fill.multiply_adds(n_bins, n_frames)

    def build(self) -> Decoder:
        """Builds the network's pure functions; the same ones for the same settings."""
        return _build(self)


@functools.lru_cache
def _build(config: PyramidUNetConfig) -> Decoder:
    return from_module(
        lambda rngs: PyramidUNet(config, rngs=rngs), config, config.halo, config.alignment
    )


class PyramidUNet(UNet):
    """Corrects the fill by what a U-Net makes of statistics of the kept bins."""

    def __init__(self, config: PyramidUNetConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config._unet, N_PLANES, config.kernel_gradient, rngs)
        self.config = config

    def __call__(
        self, spectrogram: Spectrogram, mask: Mask, valid: HardMask | None = None
    ) -> Spectrogram:
        """Completes one spectrogram, kept bins as they are; see `Apply`."""
        config = self.config
        shape = mask.shape
        stride = config._unet.stride
        exists = pad_to_multiple(jnp.ones(shape, bool) if valid is None else valid, stride)
        spectrogram, mask = pad_to_multiple(spectrogram, stride), pad_to_multiple(mask, stride)
        weight = mask.astype(spectrogram.dtype) * exists.astype(spectrogram.dtype)
        known = observed(spectrogram - config.prior, mask, weight) / config.input_scale
        start = fill(known, weight, exists, config._fill)
        correction = self.apply_layers(statistics(start, known, weight, exists), exists)[..., 0]
        completed = (start + self._bound(correction)) * config.input_scale + config.prior
        completed = observed(spectrogram, mask, weight) + (1 - weight) * completed
        return completed[: shape[0], : shape[1]]

    def _bound(self, correction: Plane) -> Plane:
        """Bounds what is added, smoothly, so that no input makes the output explode."""
        above = self.config.most_above / self.config.input_scale
        below = self.config.most_below / self.config.input_scale
        limit = jnp.where(correction > 0, above, below)
        return limit * jnp.tanh(correction / limit)


def statistics(start: Plane, known: Plane, weight: Plane, exists: HardMask) -> Image:
    """Stacks what a network sees of each bin: the fill, and the kept bins nearby.

    Args:
        start: The fill.
        known: Levels, times their weights.
        weight: How much of each bin is kept, from 0 to 1.
        exists: False outside of the spectrogram.
    """
    size = _MEAN_SIZE
    n_kept = box_sum(weight, size)
    density = n_kept / jnp.maximum(box_sum(exists.astype(weight.dtype), size), 1)
    # Like the fill, a window in which a bin is half kept knows half of it: with a small constant
    # instead of the 1 its gradient would be far out of proportion.
    mean = box_sum(known, size) / jnp.maximum(n_kept, 1)
    # Of the fill, since it lies between the kept bins and has a gradient for soft masks too.
    highest = max_pool(jnp.where(exists, start + known - weight * start, -jnp.inf), _MAX_SIZE)
    planes = [start, weight, mean - start, 4 * density, highest - start, known - weight * start]
    return jnp.where(exists[..., None], jnp.stack(planes, axis=-1), 0)
