"""Decoders by name: what fills in the bins that a mask hides; and learned samplers."""

import jax

from jaxsparse.contracts import Decoder, DecoderConfig
from jaxsparse.interpolate import CloughTocher, Linear, Nearest
from jaxsparse.nn.pyramid import PyramidConfig
from jaxsparse.nn.pyramid_unet import PyramidUNetConfig
from jaxsparse.nn.sampler import SamplerConfig
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

SAMPLERS: dict[str, type[DecoderConfig]] = {"unet-sampler": SamplerConfig}
"""Configs of networks that score bins, by the names that weights use."""


def has_parameters(decoder: Decoder) -> bool:
    """Whether a decoder has anything to train."""
    # The key is made within: no device is looked for, which would be too early for a cluster.
    shapes = jax.eval_shape(lambda: decoder.init(jax.random.key(0)))
    return bool(jax.tree.leaves(shapes))


def name_of(config: DecoderConfig) -> str:
    """Returns the name of a decoder's kind, or of a sampler's.

    Raises:
        ValueError: If it is not in `DECODERS`, nor in `SAMPLERS`.
    """
    for name, kind in (DECODERS | SAMPLERS).items():
        if kind is type(config):
            return name
    raise ValueError(f"{type(config).__name__} is not in DECODERS: give it a name there")
