"""Two U-Nets on the MDCT grid: one chooses what is quantized, one makes of it what is heard."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxsparse.contracts import Params
from jaxsparse.nn.conv import KernelGradient
from jaxsparse.nn.pyramid import pad_to_multiple
from jaxsparse.nn.unet import Image, UNet, UNetShape
from jaxsparse.quantizer import (
    ROUNDING,
    Coded,
    level_amplitudes,
    relative_levels,
    spread_bands,
    sum_bands,
)
from jaxsparse.settings import check_ranges
from jaxsparse.transforms.grid import HOP_LENGTH, N_LEVELS
from jaxsparse.transforms.mdct import Coefficients
from jaxsparse.types import HardMask, PRNGKey

_RANGES = {
    name: (1e-3, 1e3) for name in ("reach", "damping", "encoder_reach", "encoder_level_reach")
}
_DECODER_PLANES, _ENCODER_PLANES = 7, 4
# Magnitudes below a thousandth of a step look the same.
_LEAST = 1e-3

Rate = Float[Array, ""] | float


@dataclass(frozen=True)
class MDCTUNetConfig:
    """Architecture; the defaults are those of the networks that ship.

    Raises:
        ValueError: If a setting is out of range.
    """

    features: tuple[int, ...] = (32, 64, 96)
    """Channels of each level of the decoder, from the finest to the coarsest."""
    encoder_features: tuple[int, ...] = (32, 48, 64)
    """Those of the encoder."""
    cell: tuple[int, int] = (4, 1)
    """Coefficients and frames that are the channels of one cell of the finest level."""
    reach: float = 0.75
    """Steps by which a decoded coefficient differs from the quantized one at most."""
    damping: float = 0.5
    """How loud the filling is over the level that it stands for, before training."""
    encoder_reach: float = 1.5
    """Steps by which the encoder moves a coefficient at most."""
    encoder_level_reach: float = 2.0
    """Levels by which the encoder moves a level at most."""
    kernel_gradient: KernelGradient = field(default="native", metadata={"saved": False})
    """See `jaxsparse.nn.conv.conv`."""

    def __post_init__(self) -> None:
        self.decoder_shape.check()
        self.encoder_shape.check()
        check_ranges(self, _RANGES)

    @property
    def decoder_shape(self) -> UNetShape:
        """Sizes of the decoder."""
        return UNetShape(self.features, self.cell, HOP_LENGTH, n_outputs=2)

    @property
    def encoder_shape(self) -> UNetShape:
        """Sizes of the encoder."""
        return UNetShape(self.encoder_features, self.cell, HOP_LENGTH, n_outputs=2)

    def multiply_adds(self, n_frames: int) -> tuple[int, int]:
        """Counts the multiply-adds of encoder and decoder for so many frames."""
        size = (HOP_LENGTH, n_frames)
        return (
            self.encoder_shape.multiply_adds(_ENCODER_PLANES, *size),
            self.decoder_shape.multiply_adds(_DECODER_PLANES, *size),
        )

    def build(self) -> "MDCTNetworks":
        """Builds the pure functions; the same ones for the same settings."""
        return _build(self)


class MDCTNetworks(NamedTuple):
    """Encoder and decoder on the MDCT grid, as pure functions of one clip.

    Attributes:
        config: Settings that they were built of.
        init: Draws parameters.
        encode: ``(params, scaled, rate, valid)`` to values and levels that are still to be rounded;
            `scaled` are coefficients over the step.
        decode: ``(params, coded, rate, noise, valid)`` to coefficients over the step; `noise` are
            the signs of what is filled in. Both have gradients, in relaxed values too.
        halo: Frames on each side that an output depends on, at most.
        alignment: Frames at whose multiples a clip may be cut.
    """

    config: MDCTUNetConfig
    init: Callable[[PRNGKey], Params]
    encode: Callable[..., Coded]
    decode: Callable[..., Coefficients]
    halo: int
    alignment: int


@functools.lru_cache
def _build(config: MDCTUNetConfig) -> MDCTNetworks:
    makers = {"encoder": MDCTEncoder, "decoder": MDCTDecoder}
    graphs = {
        name: nnx.split(nnx.eval_shape(lambda make=make: make(config, rngs=nnx.Rngs(0))))[0]
        for name, make in makers.items()
    }

    def init(key: PRNGKey) -> Params:
        rngs = nnx.Rngs(key)
        return {
            name: nnx.to_pure_dict(nnx.state(make(config, rngs=rngs)))
            for name, make in makers.items()
        }

    def encode(params: Params, *arguments: object) -> Coded:
        return nnx.merge(graphs["encoder"], nnx.State(params["encoder"]))(*arguments)

    def decode(params: Params, *arguments: object) -> Coefficients:
        return nnx.merge(graphs["decoder"], nnx.State(params["decoder"]))(*arguments)

    shapes = (config.encoder_shape, config.decoder_shape)
    return MDCTNetworks(
        config,
        init,
        encode,
        decode,
        max(shape.halo for shape in shapes),
        max(shape.stride[1] for shape in shapes),
    )


class MDCTEncoder(UNet):
    """Moves coefficients and levels before they are rounded, to what sounds better for its bits."""

    def __init__(self, config: MDCTUNetConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config.encoder_shape, _ENCODER_PLANES, config.kernel_gradient, rngs)
        self.config = config

    def __call__(self, scaled: Coefficients, rate: Rate, valid: HardMask | None = None) -> Coded:
        """Chooses values and levels; see `MDCTNetworks.encode`."""
        magnitude = jnp.abs(scaled)
        planes = jnp.stack(
            [
                jnp.clip(scaled, -2, 2),
                jnp.log1p(magnitude),
                jnp.log(magnitude + _LEAST) / 4,
                jnp.broadcast_to(_as_input(rate), scaled.shape),
            ],
            axis=-1,
        )
        outputs = _apply(self, planes, valid)
        # Rounded to the nearest number, this is rounded as `quantize` does.
        shrunk = jnp.sign(scaled) * jnp.maximum(magnitude - (0.5 - ROUNDING), 0)
        values = shrunk + _bounded(outputs[..., 0], self.config.encoder_reach)
        zeros = jnp.round(values) == 0
        levels = relative_levels(scaled, zeros if valid is None else zeros & valid)
        count = sum_bands(jnp.ones_like(scaled))
        moved = sum_bands(outputs[..., 1]) / jnp.maximum(count, 1)
        levels = levels + self.config.encoder_level_reach * jnp.tanh(moved)
        return Coded(values, jnp.clip(levels, 0, N_LEVELS - 1))


class MDCTDecoder(UNet):
    """Mends quantized values and fills in the zeros, by at most `reach` steps."""

    def __init__(self, config: MDCTUNetConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config.decoder_shape, _DECODER_PLANES, config.kernel_gradient, rngs)
        self.config = config

    def __call__(
        self, coded: Coded, rate: Rate, noise: Coefficients, valid: HardMask | None = None
    ) -> Coefficients:
        """Makes coefficients; see `MDCTNetworks.decode`."""
        n_frames = noise.shape[1]
        values = coded.values.astype(jnp.float32)
        magnitude = jnp.abs(values)
        amplitude = spread_bands(level_amplitudes(coded.levels), n_frames)
        fill = noise * amplitude * self.config.damping
        planes = jnp.stack(
            [
                jnp.clip(values, -2, 2),
                jnp.log1p(magnitude),
                jnp.minimum(magnitude, 1),
                spread_bands(coded.levels.astype(jnp.float32), n_frames) / 4 - 1.5,
                2 * fill,
                noise,
                jnp.broadcast_to(_as_input(rate), noise.shape),
            ],
            axis=-1,
        )
        outputs = _apply(self, planes, valid)
        shift = outputs[..., 0] + fill * jnp.exp(jnp.clip(outputs[..., 1], -8, 4))
        return values + _bounded(shift, self.config.reach)


def _apply(network: UNet, planes: Image, valid: HardMask | None) -> Float[Array, "H W D"]:
    """Applies the layers to planes of any size; outside of the clip they are zeros."""
    shape, stride = planes.shape[:2], network.shape.stride
    exists = pad_to_multiple(jnp.ones(shape, bool) if valid is None else valid, stride)
    planes = jnp.where(exists[..., None], pad_to_multiple(planes, stride), 0)
    return network.apply_layers(planes, exists)[: shape[0], : shape[1]]


def _as_input(rate: Rate) -> Rate:
    return rate / 8 - 4


def _bounded(x: Array, limit: float) -> Array:
    return limit * jnp.tanh(x / limit)
