"""Networks on the MDCT grid: bounded, as far-sighted as they say, and never aware of padding."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.codec.weights import load_codec
from jaxsparse.nn.mdct_unet import MDCTUNetConfig
from jaxsparse.quantizer import Coded, noise_signs, quantize
from jaxsparse.transforms.grid import HOP_LENGTH, N_LEVELS

SMALL = MDCTUNetConfig(features=(4, 6), encoder_features=(4, 6))
FRAMES = 24


def scaled_clip(n_frames=FRAMES, seed=0):
    rng = np.random.default_rng(seed)
    slope = np.exp(-np.arange(HOP_LENGTH) / 50)[:, None]
    return jnp.asarray(6 * slope * rng.normal(size=(HOP_LENGTH, n_frames)), jnp.float32)


def loud_params(config, scale=1.0, seed=0):
    """Random parameters, the last layers included."""
    shapes = jax.eval_shape(config.build().init, jax.random.key(seed))
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(seed)
    drawn = [
        scale * rng.standard_normal(leaf.shape) / np.sqrt(max(leaf.size // leaf.shape[-1], 1))
        for leaf in leaves
    ]
    return jax.tree.unflatten(tree, [jnp.asarray(each, jnp.float32) for each in drawn])


def encode(params, scaled, valid=None):
    return jax.jit(SMALL.build().encode)(params, scaled, 24.0, valid)


def decode(params, coded, valid=None):
    noise = noise_signs(HOP_LENGTH, coded.values.shape[1])
    return jax.jit(SMALL.build().decode)(params, coded, 24.0, noise, valid)


def run(params, scaled, valid=None):
    """Encodes, rounds and decodes; returns all three."""
    relaxed = encode(params, scaled, valid)
    coded = Coded(jnp.round(relaxed.values), jnp.round(relaxed.levels))
    return relaxed, coded, decode(params, coded, valid)


@pytest.mark.slow
def test_untrained_networks_quantize_plainly():
    scaled = scaled_clip()
    _, coded, decoded = run(jax.jit(SMALL.build().init)(jax.random.key(0)), scaled)
    plain = jax.jit(quantize)(scaled)
    assert (coded.values == plain.values).all() and (coded.levels == plain.levels).all()
    kept = np.asarray(coded.values) != 0
    np.testing.assert_allclose(np.asarray(decoded)[kept], np.asarray(coded.values)[kept], atol=0.2)


@pytest.mark.parametrize("scale", [1, 100])
def test_outputs_are_bounded_whatever_the_parameters(scale):
    scaled = scaled_clip()
    relaxed, coded, decoded = run(loud_params(SMALL, scale), scaled)
    assert np.abs(np.asarray(relaxed.values - scaled)).max() <= SMALL.encoder_reach + 0.13
    assert relaxed.levels.min() >= 0 and relaxed.levels.max() <= N_LEVELS - 1
    assert np.abs(np.asarray(decoded - coded.values)).max() <= SMALL.reach


@pytest.mark.slow
def test_padding_is_not_seen():
    params = loud_params(SMALL)
    scaled = scaled_clip(22)
    valid = jnp.broadcast_to(jnp.arange(40)[None] < 22, (HOP_LENGTH, 40))
    padded = jnp.pad(scaled, ((0, 0), (0, 18)))
    relaxed, _, decoded = run(params, scaled)
    relaxed_padded, _, decoded_padded = run(params, padded, valid)
    np.testing.assert_allclose(relaxed_padded.values[:, :22], relaxed.values, atol=1e-4)
    np.testing.assert_allclose(relaxed_padded.levels[:, :11], relaxed.levels, atol=1e-4)
    np.testing.assert_allclose(decoded_padded[:, :22], decoded, atol=1e-4)


@pytest.mark.slow
def test_what_lies_beyond_the_halo_is_not_seen():
    networks = SMALL.build()
    params, n_frames = loud_params(SMALL), 2 * networks.halo + 30
    scaled = scaled_clip(n_frames)
    middle = n_frames // 4 * 2
    seen = slice(middle - networks.halo, middle + networks.halo + 2)

    def changed(plane, value):
        """Changes what lies beyond the halo; a level is of two frames."""
        step = n_frames // plane.shape[1]
        kept = slice(seen.start // step, -(-seen.stop // step))
        return jnp.full_like(plane, value).at[:, kept].set(plane[:, kept])

    encoded, again = encode(params, scaled), encode(params, changed(scaled, 3.0))
    np.testing.assert_allclose(again.values[:, middle], encoded.values[:, middle], atol=1e-5)
    unit = middle // 2
    np.testing.assert_allclose(again.levels[:, unit], encoded.levels[:, unit], atol=1e-5)
    coded = jax.jit(quantize)(scaled)
    other = Coded(changed(coded.values, 5), changed(coded.levels, 2))
    decoded, again = (decode(params, each)[:, middle] for each in (coded, other))
    np.testing.assert_allclose(again, decoded, atol=1e-5)


def test_decoder_has_a_gradient_in_relaxed_values():
    networks, params = SMALL.build(), loud_params(SMALL)
    scaled = scaled_clip()
    relaxed = encode(params, scaled)
    noise = noise_signs(*scaled.shape)

    def loss(coded):
        return jnp.mean(jnp.square(networks.decode(params, coded, 24.0, noise, None) - scaled))

    gradient = jax.jit(jax.grad(loss))(relaxed)
    assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in gradient)


def test_silence_has_finite_gradients():
    networks, params = SMALL.build(), loud_params(SMALL)
    silent = jnp.zeros((HOP_LENGTH, FRAMES))

    def loss(scaled):
        return sum(jnp.sum(leaf) for leaf in networks.encode(params, scaled, 0.0, None))

    assert np.isfinite(jax.jit(jax.grad(loss))(silent)).all()


def test_multiply_adds_are_those_of_the_compiled_convolutions():
    networks, params = SMALL.build(), loud_params(SMALL)
    noise = noise_signs(HOP_LENGTH, FRAMES)
    coded = quantize(scaled_clip())
    compiled = jax.jit(networks.decode).lower(params, coded, 24.0, noise, None).compile()
    counted = SMALL.multiply_adds(FRAMES)[1]
    cost: Any = compiled.cost_analysis()
    assert cost["flops"] / 2 == pytest.approx(counted, rel=0.25)


@pytest.mark.parametrize(
    "changes", [{"features": ()}, {"reach": 0.0}, {"cell": (0, 1)}, {"encoder_features": (0,)}]
)
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(ValueError, match=r"features|reach|cell"):
        MDCTUNetConfig(**changes)


def test_the_shipped_codec_is_of_the_default_settings():
    assert load_codec().networks.config == MDCTUNetConfig()
