"""From Flax modules to pure functions.

Flax owns and initialises the parameters; everything above sees the pure functions `init` and
`apply` of one example, and transforms them with ``jax.jit``, ``jax.vmap`` and ``jax.grad``.
"""

from collections.abc import Callable

import jax
from flax import nnx

from jaxsparse.contracts import Decoder, DecoderConfig, Params
from jaxsparse.types import HardMask, Mask, PRNGKey, Spectrogram


def from_module(
    make: Callable[[nnx.Rngs], nnx.Module],
    config: DecoderConfig,
    halo: int | None,
    alignment: int = 1,
) -> Decoder:
    """Splits a module into pure functions.

    Each call makes new functions, for which everything is compiled anew: cache by config.

    Args:
        make: Builds the module, which is called as ``module(spectrogram, mask, valid)``.
        config: Settings that `make` builds it of.
        halo: See `Decoder.halo`.
        alignment: See `Decoder.alignment`.
    """
    graph, _ = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))

    def init(key: PRNGKey) -> Params:
        return nnx.to_pure_dict(nnx.state(make(nnx.Rngs(key))))

    def apply(
        params: Params, spectrogram: Spectrogram, mask: Mask, valid: HardMask | None = None
    ) -> Spectrogram:
        return nnx.merge(graph, nnx.State(params))(spectrogram, mask, valid)

    return Decoder(config, init, apply, halo, alignment)


def n_parameters(params: Params) -> int:
    """Counts the numbers in a tree of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
