"""The learned sampler, and the policy that makes masks by it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.core import Tracer
from test_pyramid import SHAPE, initial, kept, levels, slow_fill, trained

from jaxsparse.errors import JaxsparseError
from jaxsparse.learned import BLOCK, Learned, exchange
from jaxsparse.nn.pyramid_unet import PyramidUNetConfig
from jaxsparse.nn.sampler import SamplerConfig
from jaxsparse.policies import densification, random
from jaxsparse.pretrained import (
    WeightsError,
    load_decoder,
    load_once,
    load_sampler,
    save_weights,
)

pytestmark = pytest.mark.usefixtures("strict_dtypes")

CONFIG = SamplerConfig(features=(3, 4))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "mine.safetensors"
    save_weights(path, trained(CONFIG.build()), CONFIG, {})
    return path


def score(config, params, *args):
    return jax.jit(config.build().apply)(params, *args)


@pytest.mark.slow
def test_an_untrained_sampler_scores_by_the_errors_of_the_fill():
    """Of a kept bin, by the error with which those of the other half of the grid fill it in."""
    x, mask = levels(), kept(sparsity="0.8")
    values, chosen = np.asarray(x, np.float64), np.asarray(mask)
    even = np.add.outer(np.arange(SHAPE[0]), np.arange(SHAPE[1])) % 2 == 0

    def filled(weights):
        return slow_fill(values, weights.astype(float), np.ones(SHAPE, bool), 4, 11, -25.0)

    without = np.where(even, filled(chosen & ~even), filled(chosen & even))
    estimate = np.where(chosen, without, filled(chosen))
    errors = np.abs(10 ** (values / 100) - 10 ** (estimate / 100))
    expected = np.log(errors + 1e-3) + CONFIG.stay * chosen
    found = score(CONFIG, initial(CONFIG.build()), x, mask)
    np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.slow
def test_padding_has_no_score_and_changes_none():
    x, mask, pads = levels(), kept(), ((0, 0), (0, 21))
    params = trained(CONFIG.build())
    padded = jnp.pad(x, pads, constant_values=-jnp.inf), jnp.pad(mask, pads, constant_values=True)
    found = score(CONFIG, params, *padded, jnp.pad(jnp.ones(SHAPE, bool), pads))
    np.testing.assert_allclose(found[:, : SHAPE[1]], score(CONFIG, params, x, mask), atol=2e-4)
    assert (found[:, SHAPE[1] :] == -jnp.inf).all()


@pytest.mark.slow
def test_parts_agree_with_the_whole():
    decoder = CONFIG.build()
    params = trained(decoder)
    halo, step, length = decoder.halo, decoder.alignment, 20
    assert halo is not None
    before = step * -(-halo // step)
    shape = (9, 2 * before + length + halo)
    x, mask = levels(shape), kept(shape)
    whole = score(CONFIG, params, x, mask)
    part = score(CONFIG, params, x[:, before:], mask[:, before:])[:, before:][:, :length]
    np.testing.assert_allclose(part, whole[:, 2 * before :][:, :length], atol=2e-4)


@pytest.mark.slow
def test_scores_have_a_gradient_towards_the_parameters():
    params, x, mask = trained(CONFIG.build()), levels(), kept()
    apply = CONFIG.build().apply
    gradients = jax.jit(jax.grad(lambda params: apply(params, x, mask)[7, 5]))(params)
    for gradient in jax.tree.leaves(gradients):
        assert jnp.isfinite(gradient).all() and jnp.abs(gradient).max() > 0


def test_what_is_worst_filled_in_takes_the_place_of_what_is_least_missed():
    """A flat plane with one peak that the first mask does not keep."""
    x = jnp.full(SHAPE, -25.0).at[17, 9].set(10.0)
    sampler = SamplerConfig(features=(3,), stay=0.0).build()
    first = kept().at[17, 9].set(False)
    mask = exchange(sampler, initial(sampler), x, first)
    assert bool(mask[17, 9]) and int(mask.sum()) == int(first.sum())


@pytest.mark.slow
def test_bins_are_exchanged_within_blocks_of_frames(key):
    """What is loud at the one end takes no bins from the other."""
    shape = (41, 3 * BLOCK + 5)
    x = levels(shape).at[:, 2 * BLOCK :].add(20.0)
    sampler, first = CONFIG.build(), kept(shape)
    mask = exchange(sampler, trained(sampler), x, first)
    assert (mask != first).any()
    for start in range(0, shape[1], BLOCK):
        block = np.s_[:, start : start + BLOCK]
        assert int(mask[block].sum()) == int(first[block].sum())


@pytest.mark.slow
def test_a_sampler_of_ones_own_goes_by_its_path(path, key):
    x, policy = levels(), Learned(random, path, passes=2)
    sampler, params, _ = load_sampler(path)
    mask = random(key, x, 130)
    for _ in range(2):
        mask = exchange(sampler, params, x, mask)
    np.testing.assert_array_equal(policy(key, x, 130), mask)


def test_weights_that_are_loaded_in_a_trace_outlive_it(path, key):
    """The first call is a traced one; the cache must hold arrays, not tracers."""
    x, policy = levels(), Learned(random, path)
    traced = jax.jit(policy)(key, x, 130)
    assert all(
        not isinstance(leaf, Tracer)
        for leaf in jax.tree.leaves(load_once(load_sampler, path).params)
    )
    np.testing.assert_array_equal(policy(key, x, 130), traced)


def test_only_what_draws_nothing_in_padding_takes_it(path):
    assert Learned(densification, path).takes_padding
    assert Learned(Learned(densification, path), path).takes_padding
    assert not Learned(random, path).takes_padding


@pytest.mark.slow
def test_frames_beyond_the_clip_are_kept_last(key):
    x = levels().at[:, 20:].set(-jnp.inf)
    policy = Learned(densification)
    assert not policy(key, x, 300)[:, 20:].any()
    assert int(policy(key, x, 20 * SHAPE[0] + 7).sum()) == 20 * SHAPE[0] + 7


def test_decoders_and_samplers_are_told_apart(path, tmp_path):
    with pytest.raises(WeightsError, match=r"^\S+ holds a unet-sampler, not one of sparse-cnn"):
        load_decoder(path)
    network = PyramidUNetConfig((3,))
    save_weights(tmp_path / "net.safetensors", initial(network.build()), network, {})
    with pytest.raises(WeightsError, match=r"^\S+ holds a pyramid-unet, not one of unet-sampler"):
        load_sampler(tmp_path / "net.safetensors")
    with pytest.raises(JaxsparseError, match="no decoder is named 'unet-sampler'"):
        load_decoder("unet-sampler")
    with pytest.raises(JaxsparseError, match="no sampler is named 'sampelr'; there are sampler"):
        load_sampler("sampelr")
    assert load_sampler("sampler").decoder.config == SamplerConfig()


@pytest.mark.parametrize(
    "setting", [{"features": ()}, {"cell": (0, 2)}, {"exponent": 0.0}, {"stay": float("nan")}]
)
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        SamplerConfig(**setting)


def test_a_policy_of_no_pass_is_refused():
    with pytest.raises(ValueError, match="passes must be 1 or more"):
        Learned(random, passes=0)


def test_multiply_adds_are_those_that_the_compiler_counts():
    config = SamplerConfig()
    shapes = [jax.ShapeDtypeStruct((1025, 302), dtype) for dtype in (jnp.float32, jnp.bool_)]
    decoder = config.build()
    lowered = jax.jit(decoder.apply).lower(jax.eval_shape(decoder.init, jax.random.key(0)), *shapes)
    analysis = lowered.cost_analysis()
    assert analysis is not None
    assert 2 * config.multiply_adds(1025, 302) == pytest.approx(analysis["flops"], rel=0.2)
