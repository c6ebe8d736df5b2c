"""Decoders by name: what fills in the bins that a mask hides."""

import jax

from jaxsparse.contracts import Decoder, DecoderConfig
from jaxsparse.interpolate import CloughTocher, Linear, Nearest
from jaxsparse.nn.pyramid import PyramidConfig
from jaxsparse.nn.pyramid_unet import PyramidUNetConfig
from jaxsparse.nn.sparse_cnn import SparseCNNConfig

DECODERS: dict[str, type[DecoderConfig]] = {
    "sparse-cnn": SparseCNNConfig,
    "pyramid-unet": PyramidUNetConfig,
    # Nothing to train.
    "pyramid": PyramidConfig,
    # Nothing to train, and they run on the host.
    "nearest": Nearest,
    "linear": Linear,
    "clough-tocher": CloughTocher,
}
"""Configs by the names that weights, settings and command lines use; `build` makes a decoder."""


def has_parameters(decoder: Decoder) -> bool:
    """Whether a decoder has anything to train."""
    return bool(jax.tree.leaves(jax.eval_shape(decoder.init, jax.random.key(0))))


def name_of(config: DecoderConfig) -> str:
    """Returns the name of a decoder's kind.

    Raises:
        ValueError: If it is not in `DECODERS`.
    """
    for name, kind in DECODERS.items():
        if kind is type(config):
            return name
    raise ValueError(f"{type(config).__name__} is not in DECODERS: give it a name there")
