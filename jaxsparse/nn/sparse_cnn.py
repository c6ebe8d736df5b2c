"""The thesis' network: sparse convolutions that complete a masked spectrogram."""

import functools
from dataclasses import dataclass, field
from typing import get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxsparse.contracts import Decoder
from jaxsparse.nn.conv import KernelGradient
from jaxsparse.nn.network import from_module
from jaxsparse.nn.sparse_conv import Normalization, sparse_conv
from jaxsparse.settings import check_ranges
from jaxsparse.types import HardMask, Mask, Spectrogram

# The share of bins that the first layer's initialisation is made for: a window that observes
# fewer has larger outputs, one that observes more has smaller ones.
_INITIAL_DENSITY = 0.1
# Far beyond any network that runs: what a file asks for is built only within these.
_MAX_LAYERS, _MAX_KERNEL, _MAX_FEATURES = 64, 99, 1024
_RANGES = {"eps": (1e-30, 1e6), "input_offset": (-1e6, 1e6), "input_scale": (1e-6, 1e6)}


@dataclass(frozen=True)
class SparseCNNConfig:
    """Architecture; the defaults are the thesis' network (section 3.1.1), 30,849 parameters.

    Raises:
        ValueError: If a setting is out of range.
    """

    kernel_sizes: tuple[int, ...] = (7, 7, 5, 5, 3, 3)
    """Odd kernel sizes of the hidden layers; a 1x1 layer to one channel follows."""
    features: int = 16
    """Channels of every hidden layer."""
    normalization: Normalization = "count"
    """See `sparse_conv`."""
    eps: float = 1e-8
    """See `sparse_conv`."""
    input_offset: float = -25.0
    """dB that the layers see as 0."""
    input_scale: float = 15.0
    """dB that the layers see as 1."""
    kernel_gradient: KernelGradient = field(default="auto", metadata={"saved": False})
    """native is faster on the CPU where a step has about eight crops; see `sparse_conv`."""

    def __post_init__(self) -> None:
        sizes = self.kernel_sizes
        if not (
            1 <= len(sizes) <= _MAX_LAYERS
            and all(size % 2 and 1 <= size <= _MAX_KERNEL for size in sizes)
        ):
            raise ValueError(
                f"kernel_sizes must be 1 to {_MAX_LAYERS} odd numbers of at most {_MAX_KERNEL}"
            )
        if not 1 <= self.features <= _MAX_FEATURES:
            raise ValueError(f"features must be a whole number from 1 to {_MAX_FEATURES}")
        if self.normalization not in get_args(Normalization):
            raise ValueError(f"normalization must be {' or '.join(get_args(Normalization))}")
        check_ranges(self, _RANGES)

    @property
    def halo(self) -> int:
        """Frames, and bins, on each side that an output depends on."""
        return sum(size // 2 for size in self.kernel_sizes)

    def build(self) -> Decoder:
        """Builds the network's pure functions; see `sparse_cnn`."""
        return sparse_cnn(self)


class SparseConv(nnx.Module):
    """One `sparse_conv` layer with its parameters.

    The kernel is stored at the scale of an ordinary convolution and multiplied by its number of
    taps, since the count normalization divides by up to that many: He initialisation and the
    usual learning rates then fit all kernel sizes.
    """

    def __init__(
        self,
        size: int,
        c_in: int,
        c_out: int,
        config: SparseCNNConfig,
        rngs: nnx.Rngs,
        gain: float = 2.0,
    ) -> None:
        initializer = jax.nn.initializers.variance_scaling(gain, "fan_in", "normal")
        self.kernel = nnx.Param(initializer(rngs.params(), (size, size, c_in, c_out)))
        self.bias = nnx.Param(jnp.zeros(c_out))
        self.config = config

    def __call__(self, x: Float[Array, "F T C"], mask: Mask) -> tuple[Float[Array, "F T D"], Mask]:
        """Applies the layer; returns outputs and the next mask."""
        kernel = self.kernel[...].astype(x.dtype)
        return sparse_conv(
            x,
            mask,
            kernel * (kernel.shape[0] * kernel.shape[1]),
            self.bias[...],
            normalization=self.config.normalization,
            eps=self.config.eps,
            kernel_gradient=self.config.kernel_gradient,
        )


class SparseCNN(nnx.Module):
    """Sparse convolutions with ReLU between them, then a 1x1 one to the completed spectrogram."""

    def __init__(self, config: SparseCNNConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        width = config.features
        channels = (1,) + (width,) * len(config.kernel_sizes)
        gains = (2.0 * _INITIAL_DENSITY,) + (2.0,) * (len(config.kernel_sizes) - 1)
        self.hidden = nnx.List(
            SparseConv(size, c_in, width, config, rngs, gain)
            for size, c_in, gain in zip(config.kernel_sizes, channels[:-1], gains, strict=True)
        )
        self.output = SparseConv(1, channels[-1], 1, config, rngs, gain=1.0)

    def __call__(
        self, spectrogram: Spectrogram, mask: Mask, valid: HardMask | None = None
    ) -> Spectrogram:
        """Completes one spectrogram; see `Apply`."""
        return self.layers(spectrogram, mask, valid)[-1]

    def layers(
        self, spectrogram: Spectrogram, mask: Mask, valid: HardMask | None = None
    ) -> list[Array]:
        """The outputs of every hidden layer [F, T, C] and, last, the completed spectrogram."""
        config = self.config
        x = ((spectrogram - config.input_offset) / config.input_scale)[..., None]
        mask = _only_valid(mask, valid)
        outputs = []
        for layer in self.hidden:
            x, mask = layer(x, mask)
            x, mask = jax.nn.relu(x), _only_valid(mask, valid)
            outputs.append(x)
        x, _ = self.output(x, mask)
        return [*outputs, x[..., 0] * config.input_scale + config.input_offset]


def _only_valid(mask: Mask, valid: HardMask | None) -> Mask:
    if valid is None:
        return mask
    return mask & valid if mask.dtype == jnp.bool_ else mask * valid.astype(mask.dtype)


def sparse_cnn(config: SparseCNNConfig = SparseCNNConfig()) -> Decoder:
    """Builds a network's pure functions; the same ones for the same settings."""
    return _build(config)


@functools.lru_cache
def _build(config: SparseCNNConfig) -> Decoder:
    return from_module(lambda rngs: SparseCNN(config, rngs=rngs), config, config.halo)
