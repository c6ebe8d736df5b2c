"""A residual U-Net on a grid coarser than that of the spectrogram, whose bins are its channels."""

import math
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxsparse.nn.conv import KernelGradient, conv
from jaxsparse.types import HardMask

# Far beyond any network that runs: what a file asks for is built only within these.
_MAX_LEVELS, _MAX_FEATURES, _MAX_CELL = 8, 1024, 16
# Cosines over frequency that tell the network how high a cell lies.
_N_WAVES = 4

Image = Float[Array, "H W C"]
Plane = Float[Array, "H W"]


class UNetShape(NamedTuple):
    """Sizes that a U-Net is built of."""

    features: tuple[int, ...]
    """Channels of each level, from the finest to the coarsest."""
    cell: tuple[int, int]
    """Bins and frames that are the channels of one cell of the finest level."""
    n_bins: int = 1024
    """Bins up to half the sample rate, by which cells know how high they lie."""
    n_outputs: int = 1
    """Planes that it makes."""

    def check(self) -> None:
        """Refuses what no network is built of.

        Raises:
            ValueError: If a size is out of range.
        """
        n_levels = len(self.features)
        if not (
            1 <= n_levels <= _MAX_LEVELS and all(1 <= n <= _MAX_FEATURES for n in self.features)
        ):
            raise ValueError(
                f"features must be 1 to {_MAX_LEVELS} whole numbers from 1 to {_MAX_FEATURES}"
            )
        if not all(1 <= n <= _MAX_CELL for n in self.cell):
            raise ValueError(f"cell must be two whole numbers from 1 to {_MAX_CELL}")

    @property
    def stride(self) -> tuple[int, int]:
        """Bins and frames of a cell of the coarsest level."""
        step = 2 ** (len(self.features) - 1)
        return self.cell[0] * step, self.cell[1] * step

    @property
    def halo(self) -> int:
        """Frames on each side that an output depends on, at most."""
        # Each level has two blocks of two convolutions, the finest one two more; what a cell of
        # the coarsest level sees depends on where in it a frame lies.
        cells = 2 + sum(4 * 2**level for level in range(len(self.features)))
        return self.cell[1] * cells + self.stride[1]

    def multiply_adds(self, n_planes: int, n_bins: int, n_frames: int) -> int:
        """Counts the multiply-adds for one spectrogram of this size."""
        cells = math.prod(
            step // own * -(-size // step)
            for size, step, own in zip((n_bins, n_frames), self.stride, self.cell, strict=True)
        )
        n_fine = math.prod(self.cell)
        n_ends = (n_planes + self.n_outputs) * n_fine + _N_WAVES
        per_cell = 9 * n_ends * self.features[0]
        per_cell += sum(36 * n * n / 4**level for level, n in enumerate(self.features))
        pairs = enumerate(pairwise(self.features))
        per_cell += sum(8 * a * b / 4 ** (level + 1) for level, (a, b) in pairs)
        return round(cells * per_cell)


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


class UNet(nnx.Module):
    """Blocks on ever coarser levels and back, from planes over the bins to planes over the bins.

    Cells outside of the spectrogram are zeros in every layer, so that padding is never observed.
    The last layer starts at zero.
    """

    def __init__(
        self, shape: UNetShape, n_planes: int, kernel_gradient: KernelGradient, rngs: nnx.Rngs
    ) -> None:
        """Builds the layers.

        Args:
            shape: Sizes.
            n_planes: Number of planes that it reads.
            kernel_gradient: See `jaxsparse.nn.conv.conv`.
            rngs: Of the parameters.
        """
        self.shape = shape
        widths, n_fine = shape.features, math.prod(shape.cell)
        how = kernel_gradient
        self.input = Conv(n_planes * n_fine + _N_WAVES, widths[0], how, rngs)
        # Two at the coarsest level.
        self.down_blocks = nnx.List(Block(width, how, rngs) for width in widths)
        self.up_blocks = nnx.List(Block(width, how, rngs) for width in widths)
        self.down = nnx.List(Dense(4 * a, b, rngs) for a, b in pairwise(widths))
        self.up = nnx.List(Dense(b, 4 * a, rngs) for a, b in pairwise(widths))
        self.output = Conv(widths[0], shape.n_outputs * n_fine, how, rngs, gain=0.0)

    def apply_layers(self, planes: Image, exists: HardMask) -> Float[Array, "H W D"]:
        """Applies the layers.

        Args:
            planes: H and W are multiples of `UNetShape.stride`.
            exists: False outside of the spectrogram.
        """
        cell = self.shape.cell
        x = _to_channels(planes, cell)
        levels = [_any(exists, cell)]
        for _ in self.down:
            levels.append(_any(levels[-1], (2, 2)))
        masks = [level[..., None].astype(planes.dtype) for level in levels]
        x = jnp.concatenate([x, _waves(x.shape, self.shape).astype(x.dtype)], axis=-1)
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
        return _from_channels(self.output(jax.nn.gelu(x)), cell)


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


def _waves(size: tuple[int, ...], shape: UNetShape) -> Image:
    """Says how high each cell lies, by cosines over frequency."""
    place = (np.arange(size[0]) + 0.5) * shape.cell[0] / shape.n_bins
    waves = jnp.asarray(np.cos(math.pi * np.outer(place, np.arange(1, _N_WAVES + 1))), jnp.float32)
    return jnp.broadcast_to(waves[:, None], (*size[:2], _N_WAVES))
