"""The network that completes a masked spectrogram, and its application to any length.

Flax owns and initialises the parameters; everything above sees the pure functions `init` and
`apply` of one example, and transforms them with ``jax.jit``, ``jax.vmap`` and ``jax.grad``.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxsparse.nn.sparse_conv import KernelGradient, Normalization, sparse_conv
from jaxsparse.types import HardMask, Mask, PRNGKey, Spectrogram

Params: TypeAlias = dict[str, Any]

# The share of bins that the first layer's initialisation is made for: a window that observes
# fewer has larger outputs, one that observes more has smaller ones.
_INITIAL_DENSITY = 0.1


@dataclass(frozen=True)
class SparseCNNConfig:
    """Architecture; the defaults are the thesis' network (section 3.1.1), 30,849 parameters.

    Attributes:
        kernel_sizes: Odd kernel sizes of the hidden layers; a 1x1 layer to one channel follows.
        features: Channels of every hidden layer.
        normalization: See `sparse_conv`.
        eps: See `sparse_conv`.
        input_offset: dB that the layers see as 0.
        input_scale: dB that the layers see as 1.
        kernel_gradient: See `sparse_conv`.
    """

    kernel_sizes: tuple[int, ...] = (7, 7, 5, 5, 3, 3)
    features: int = 16
    normalization: Normalization = "count"
    eps: float = 1e-8
    input_offset: float = -25.0
    input_scale: float = 15.0
    kernel_gradient: KernelGradient = "auto"

    @property
    def halo(self) -> int:
        """Bins and frames on each side that an output depends on."""
        return sum(size // 2 for size in self.kernel_sizes)


@runtime_checkable
class Apply(Protocol):
    """A network as a pure function of one example."""

    def __call__(
        self,
        params: Params,
        spectrogram: Spectrogram,
        mask: Mask,
        valid: HardMask | None = None,
    ) -> Spectrogram:
        """Completes a spectrogram.

        Args:
            params: What `init` gave.
            spectrogram: dB; where a hard mask hides, any value.
            mask: Which bins are observed.
            valid: False where the array only pads the spectrogram. Nothing there is observed, in
                any layer, so that what is valid comes out as without padding.

        Returns:
            dB, at every bin.
        """
        ...


class Network(NamedTuple):
    """A network's pure functions and how far they see."""

    init: Callable[[PRNGKey], Params]
    apply: Apply
    halo: int


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


def sparse_cnn(config: SparseCNNConfig = SparseCNNConfig()) -> Network:
    """Builds a network's pure functions; the same ones for the same settings.

    Raises:
        ValueError: If there are no kernel sizes, or one is not odd.
    """
    return _build(config)


@functools.lru_cache
def _build(config: SparseCNNConfig) -> Network:
    if not config.kernel_sizes or any(size < 1 or size % 2 == 0 for size in config.kernel_sizes):
        raise ValueError(f"kernel sizes must be odd, not {config.kernel_sizes}")
    graph, _ = nnx.split(nnx.eval_shape(lambda: SparseCNN(config, rngs=nnx.Rngs(0))))

    def init(key: PRNGKey) -> Params:
        return nnx.to_pure_dict(nnx.state(SparseCNN(config, rngs=nnx.Rngs(key))))

    def apply(
        params: Params, spectrogram: Spectrogram, mask: Mask, valid: HardMask | None = None
    ) -> Spectrogram:
        return nnx.merge(graph, nnx.State(params))(spectrogram, mask, valid)

    return Network(init, apply, config.halo)


def n_parameters(params: Params) -> int:
    """Counts the numbers in a tree of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def apply_padded(
    apply: Apply,
    params: Params,
    spectrogram: Spectrogram | np.ndarray,
    mask: Mask | np.ndarray,
    *,
    bucket: tuple[int, int] = (1, 64),
) -> np.ndarray:
    """Completes a spectrogram of any size, compiling once per bucket and not per size.

    Not to be called under jit: it is the place where sizes are still known. Padding is done on
    the host, since on the device it would be compiled for every size.

    Args:
        apply: The network.
        params: Its parameters.
        spectrogram: dB, F by T.
        mask: Observed bins.
        bucket: F and T are padded to multiples of these.

    Returns:
        dB on the host, F by T, equal to the plain call.
    """
    spectrogram, mask = np.asarray(spectrogram), np.asarray(mask)
    shape = spectrogram.shape
    window = (-(-shape[0] // bucket[0]) * bucket[0], -(-shape[1] // bucket[1]) * bucket[1])
    padded = [
        cut_window(array, (0, 0), window) for array in (spectrogram, mask, np.ones(shape, bool))
    ]
    return np.asarray(_jitted(apply)(params, *padded))[: shape[0], : shape[1]]


def apply_in_blocks(
    apply: Apply,
    params: Params,
    spectrogram: Spectrogram | np.ndarray,
    mask: Mask | np.ndarray,
    *,
    halo: int,
    block: tuple[int, int] = (1025, 302),
) -> np.ndarray:
    """Completes a spectrogram of any size block by block; the device holds one block.

    Args:
        apply: The network.
        params: Its parameters.
        spectrogram: dB, F by T.
        mask: Observed bins.
        halo: How far the network sees: `Network.halo`.
        block: Bins and frames of a block; each is computed with `halo` more on every side.

    Returns:
        dB on the host, F by T, equal to the plain call.
    """
    spectrogram, mask = np.asarray(spectrogram), np.asarray(mask)
    result = np.empty(spectrogram.shape, np.float32)
    run = _jitted(apply)
    window = (block[0] + 2 * halo, block[1] + 2 * halo)
    inner = (slice(halo, halo + block[0]), slice(halo, halo + block[1]))
    inside = np.ones(spectrogram.shape, bool)
    for top in range(0, spectrogram.shape[0], block[0]):
        for left in range(0, spectrogram.shape[1], block[1]):
            start = (top - halo, left - halo)
            valid = cut_window(inside, start, window)
            completed = run(
                params,
                cut_window(spectrogram, start, window),
                cut_window(mask, start, window),
                valid,
            )
            target = result[top : top + block[0], left : left + block[1]]
            target[...] = np.asarray(completed)[inner][: target.shape[0], : target.shape[1]]
    return result


def cut_window(array: np.ndarray, start: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """Cuts a window of a fixed shape that may reach beyond the array, where it is zero."""
    window = np.zeros(shape, array.dtype)
    low = [max(s, 0) for s in start]
    high = [min(s + n, size) for s, n, size in zip(start, shape, array.shape, strict=True)]
    source = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    target = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))
    window[target] = array[source]
    return window


@functools.lru_cache
def _jitted(apply: Apply) -> Callable[..., Array]:
    return jax.jit(apply)
