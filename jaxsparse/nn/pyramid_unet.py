"""A residual U-Net over the pyramid fill, on a grid coarser than that of the spectrogram."""

import functools
import math
from dataclasses import dataclass, field
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxsparse.contracts import Decoder
from jaxsparse.nn.conv import KernelGradient, conv
from jaxsparse.nn.network import from_module
from jaxsparse.nn.pyramid import PyramidConfig, fill, observed, pad_to_multiple
from jaxsparse.nn.sparse_conv import box_sum, max_pool
from jaxsparse.types import HardMask, Mask, Spectrogram

# Far beyond any network that runs: what a file asks for is built only within these.
_MAX_LEVELS, _MAX_FEATURES, _MAX_CELL = 8, 1024, 16
_RANGES = {
    "prior": (-1e6, 1e6),
    "input_scale": (1e-6, 1e6),
    "most_above": (1e-6, 1e6),
    "most_below": (1e-6, 1e6),
}
# Windows of the local mean and the local maximum, in bins and frames.
_MEAN_SIZE, _MAX_SIZE = 5, 7
# Planes that the network sees: see `PyramidUNet.inputs`.
_N_PLANES = 6
# Cosines over frequency that tell it how high a cell lies.
_N_WAVES, _WAVE_BINS = 4, 1024

Image = Float[Array, "H W C"]
Plane = Float[Array, "H W"]


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
        if not (
            1 <= len(self.features) <= _MAX_LEVELS
            and all(1 <= n <= _MAX_FEATURES for n in self.features)
        ):
            raise ValueError(
                f"features must be 1 to {_MAX_LEVELS} whole numbers from 1 to {_MAX_FEATURES}"
            )
        if not all(1 <= n <= _MAX_CELL for n in self.cell):
            raise ValueError(f"cell must be two whole numbers from 1 to {_MAX_CELL}")
        for name, (low, high) in _RANGES.items():
            # NaN is in no range.
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be a number from {low:g} to {high:g}")

    @property
    def halo(self) -> int:
        """Frames on each side that an output depends on, at most."""
        # Each level has two blocks of two convolutions, the finest one two more; what a cell of
        # the coarsest level sees depends on where in it a frame lies.
        cells = 2 + sum(4 * 2**level for level in range(len(self.features)))
        return self.cell[1] * cells + self._coarsest + _MAX_SIZE // 2 + self._fill.halo

    @property
    def alignment(self) -> int:
        """Frames at whose multiples a spectrogram can be cut."""
        return math.lcm(self._coarsest, self._fill.alignment)

    @property
    def _coarsest(self) -> int:
        """Frames of a cell of the coarsest level."""
        return self.cell[1] * 2 ** (len(self.features) - 1)

    @property
    def _fill(self) -> PyramidConfig:
        # In the units of the layers, where the prior is zero.
        return PyramidConfig(prior=0.0) if self.start_from_fill else PyramidConfig(0, 0, 0.0)

    def multiply_adds(self, n_bins: int, n_frames: int) -> int:
        """Counts the multiply-adds for one spectrogram of this size."""
        step = 2 ** (len(self.features) - 1)
        cells = math.prod(
            step * -(-size // (step * own))
            for size, own in zip((n_bins, n_frames), self.cell, strict=True)
        )
        n_fine = math.prod(self.cell)
        per_cell = 9 * (_N_PLANES * n_fine + _N_WAVES + n_fine) * self.features[0]
        per_cell += sum(36 * n * n / 4**level for level, n in enumerate(self.features))
        pairs = enumerate(pairwise(self.features))
        per_cell += sum(8 * a * b / 4 ** (level + 1) for level, (a, b) in pairs)
        return round(cells * per_cell) + self._fill.multiply_adds(n_bins, n_frames)

    def build(self) -> Decoder:
        """Builds the network's pure functions; the same ones for the same settings."""
        return _build(self)


@functools.lru_cache
def _build(config: PyramidUNetConfig) -> Decoder:
    return from_module(
        lambda rngs: PyramidUNet(config, rngs=rngs), config, config.halo, config.alignment
    )


class Conv(nnx.Module):
    """A 3x3 convolution with zeros outside."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel_gradient: KernelGradient,
        rngs: nnx.Rngs,
        *,
        gain: float = 1.0,
    ) -> None:
        self.kernel = nnx.Param(_draw(gain, (3, 3, c_in, c_out), rngs))
        self.bias = nnx.Param(jnp.zeros(c_out))
        self.kernel_gradient: KernelGradient = kernel_gradient

    def __call__(self, x: Image) -> Float[Array, "H W D"]:
        """Applies the layer."""
        y = conv(x, self.kernel[...].astype(x.dtype), self.kernel_gradient)
        return y + self.bias[...].astype(x.dtype)[None, None]


class Dense(nnx.Module):
    """A linear layer over channels."""

    def __init__(self, c_in: int, c_out: int, rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(_draw(1.0, (c_in, c_out), rngs))
        self.bias = nnx.Param(jnp.zeros(c_out))

    def __call__(self, x: Image) -> Float[Array, "H W D"]:
        """Applies the layer."""
        y = x @ self.kernel[...].astype(x.dtype)
        return y + self.bias[...].astype(x.dtype)[None, None]


def _draw(gain: float, shape: tuple[int, ...], rngs: nnx.Rngs) -> Array:
    if not gain:
        return jnp.zeros(shape)
    return jax.nn.initializers.variance_scaling(gain, "fan_in", "normal")(rngs.params(), shape)


class Block(nnx.Module):
    """Two convolutions whose output is added to their input; at first they add nothing."""

    def __init__(self, features: int, kernel_gradient: KernelGradient, rngs: nnx.Rngs) -> None:
        self.first = Conv(features, features, kernel_gradient, rngs, gain=2.0)
        self.second = Conv(features, features, kernel_gradient, rngs, gain=0.0)

    def __call__(self, x: Image, exists: Float[Array, "H W 1"]) -> Image:
        """Applies the block; `exists` is 0 at cells outside of the spectrogram."""
        y = jax.nn.gelu(self.first(jax.nn.gelu(x)) * exists)
        return x + self.second(y) * exists


class PyramidUNet(nnx.Module):
    """Blocks on ever coarser levels and back, from statistics of the kept bins to a correction.

    Cells outside of the spectrogram are zeros in every layer, so that padding is never observed.
    """

    def __init__(self, config: PyramidUNetConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        n_fine = math.prod(config.cell)
        widths = config.features
        how = config.kernel_gradient
        self.input = Conv(_N_PLANES * n_fine + _N_WAVES, widths[0], how, rngs)
        # Two at the coarsest level.
        self.down_blocks = nnx.List(Block(width, how, rngs) for width in widths)
        self.up_blocks = nnx.List(Block(width, how, rngs) for width in widths)
        self.down = nnx.List(Dense(4 * a, b, rngs) for a, b in pairwise(widths))
        self.up = nnx.List(Dense(b, 4 * a, rngs) for a, b in pairwise(widths))
        self.output = Conv(widths[0], n_fine, how, rngs, gain=0.0)

    def __call__(
        self, spectrogram: Spectrogram, mask: Mask, valid: HardMask | None = None
    ) -> Spectrogram:
        """Completes one spectrogram, kept bins as they are; see `Apply`."""
        config = self.config
        shape = mask.shape
        step = 2 ** (len(config.features) - 1)
        stride = (config.cell[0] * step, config.cell[1] * step)
        exists = pad_to_multiple(jnp.ones(shape, bool) if valid is None else valid, stride)
        spectrogram, mask = pad_to_multiple(spectrogram, stride), pad_to_multiple(mask, stride)
        weight = mask.astype(spectrogram.dtype) * exists.astype(spectrogram.dtype)
        known = observed(spectrogram - config.prior, mask, weight) / config.input_scale
        start = fill(known, weight, exists, config._fill)
        correction = self.correct(self.inputs(start, known, weight, exists), exists)
        completed = (start + self._bound(correction)) * config.input_scale + config.prior
        completed = observed(spectrogram, mask, weight) + (1 - weight) * completed
        return completed[: shape[0], : shape[1]]

    def inputs(self, start: Plane, known: Plane, weight: Plane, exists: HardMask) -> Image:
        """Stacks what the network sees of each bin: the fill, and the kept bins nearby."""
        size = _MEAN_SIZE
        density = box_sum(weight, size) / jnp.maximum(box_sum(exists.astype(weight.dtype), size), 1)
        mean = box_sum(known, size) / (size**2 * density + 1e-3)
        # Of the fill, since it lies between the kept bins and has a gradient for soft masks too.
        highest = max_pool(jnp.where(exists, start + known - weight * start, -jnp.inf), _MAX_SIZE)
        planes = [start, weight, mean - start, 4 * density, highest - start, known - weight * start]
        return jnp.where(exists[..., None], jnp.stack(planes, axis=-1), 0)

    def correct(self, planes: Image, exists: HardMask) -> Plane:
        """Applies the U-Net: from those planes to what is added to the fill."""
        config = self.config
        x = _to_channels(planes, config.cell)
        levels = [_any(exists, config.cell)]
        for _ in self.down:
            levels.append(_any(levels[-1], (2, 2)))
        masks = [level[..., None].astype(planes.dtype) for level in levels]
        x = jnp.concatenate([x, _waves(x.shape, config.cell[0]).astype(x.dtype)], axis=-1)
        x = self.input(x * masks[0]) * masks[0]
        finer = []
        for i, block in enumerate(self.down_blocks):
            x = block(x, masks[i])
            if i < len(self.down):
                finer.append(x)
                x = self.down[i](_to_channels(x, (2, 2))) * masks[i + 1]
        for i in reversed(range(len(self.up_blocks))):
            if i < len(self.up):
                x = finer[i] + _from_channels(self.up[i](x), (2, 2)) * masks[i]
            x = self.up_blocks[i](x, masks[i])
        return _from_channels(self.output(jax.nn.gelu(x)), config.cell)[..., 0]

    def _bound(self, correction: Plane) -> Plane:
        """Bounds what is added, smoothly, so that no input makes the output explode."""
        above = self.config.most_above / self.config.input_scale
        below = self.config.most_below / self.config.input_scale
        limit = jnp.where(correction > 0, above, below)
        return limit * jnp.tanh(correction / limit)


def _to_channels(x: Image, cell: tuple[int, int]) -> Float[Array, "P Q D"]:
    """Makes the entries of each cell its channels."""
    height, width, channels = x.shape
    rows, columns = height // cell[0], width // cell[1]
    x = x.reshape(rows, cell[0], columns, cell[1], channels).transpose(0, 2, 1, 3, 4)
    return x.reshape(rows, columns, cell[0] * cell[1] * channels)


def _from_channels(x: Image, cell: tuple[int, int]) -> Float[Array, "P Q D"]:
    """Undoes `_to_channels`."""
    rows, columns, channels = x.shape
    channels //= cell[0] * cell[1]
    x = x.reshape(rows, columns, *cell, channels).transpose(0, 2, 1, 3, 4)
    return x.reshape(rows * cell[0], columns * cell[1], channels)


def _any(exists: HardMask, cell: tuple[int, int]) -> Bool[Array, "P Q"]:
    """Says which cells lie in the spectrogram, if only in part."""
    height, width = exists.shape
    x = exists.reshape(height // cell[0], cell[0], width // cell[1], cell[1])
    return x.any((1, 3))


def _waves(shape: tuple[int, ...], bins: int) -> Image:
    """Says how high each cell lies, by cosines over frequency."""
    place = (np.arange(shape[0]) + 0.5) * bins / _WAVE_BINS
    waves = jnp.asarray(np.cos(math.pi * np.outer(place, np.arange(1, _N_WAVES + 1))), jnp.float32)
    return jnp.broadcast_to(waves[:, None], (*shape[:2], _N_WAVES))
