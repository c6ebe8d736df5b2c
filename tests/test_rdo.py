"""The search for values: costs on the device, draws that harden, and searches that pay."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.codec import rate as rate_module
from jaxsparse.codec import rdo
from jaxsparse.codec.mdct_segment import cost
from jaxsparse.codec.weights import load_codec
from jaxsparse.quantizer import Coded, quantize
from jaxsparse.transforms.grid import HOP_LENGTH
from jaxsparse.transforms.mdct import mdct
from tests.mdct_files import make_segment, speech

CODEC = load_codec()
choose_tables = jax.jit(lambda *coded: rate_module.choose_tables(CODEC.models, *coded))
bits_of = jax.jit(lambda *coded: rate_module.bits(CODEC.models, *coded))


@pytest.mark.parametrize("loudness", [0.2, 1.0, 8.0])
def test_costs_on_the_device_are_those_of_the_coder(loudness):
    segment = make_segment(60, loudness=loudness)
    coded = Coded(jnp.asarray(segment.values, jnp.int32), jnp.asarray(segment.levels, jnp.int32))
    values, levels = bits_of(coded, choose_tables(coded, float(segment.rate)))
    expected = cost(segment, CODEC.models)
    in_values = expected.total - expected.levels
    assert float(values.sum()) == pytest.approx(in_values, rel=0.02)
    assert float(levels.sum()) == pytest.approx(expected.levels, rel=0.01, abs=1)


def test_costs_between_whole_numbers_are_in_between():
    segment = make_segment(8)
    whole = Coded(jnp.asarray(segment.values, jnp.int32), jnp.asarray(segment.levels, jnp.int32))
    tables = choose_tables(whole, 24.0)
    costs = [
        bits_of(Coded(jnp.full(whole.values.shape, x), whole.levels * 1.0), tables)[0]
        for x in (2.0, 2.25, 3.0)
    ]
    np.testing.assert_allclose(costs[1], 0.75 * costs[0] + 0.25 * costs[2], rtol=1e-4)


def test_draws_lie_between_neighbours_and_harden():
    relaxed = jnp.linspace(-2.9, 2.9, 581)[None]
    for temperature, spread in ((1.0, 0.02), (0.05, 0.0)):
        keys = jax.random.split(jax.random.key(0), 64)
        drawn = jax.vmap(lambda key, t=temperature: rdo.draw(key, relaxed, t))(keys)
        lower = np.floor(relaxed)
        assert (drawn >= lower[None]).all() and (drawn <= lower[None] + 1).all()
        share = np.asarray(drawn) - lower[None]
        soft = np.mean((share > 0.05) & (share < 0.95))
        assert soft > spread if spread else soft < 0.02
    nearest = np.abs(np.asarray(drawn).mean(axis=0) - np.asarray(relaxed)) < 0.6
    assert nearest.mean() > 0.95


def test_draws_have_a_gradient():
    gradient = jax.grad(lambda x: rdo.draw(jax.random.key(1), x, 0.5).sum())(
        jnp.asarray([[0.3, 1.6, -0.4]])
    )
    assert (gradient > 0).all()


def problem(n_samples=7_500, rate=36.0):
    signal = jnp.pad(speech(n_samples), (0, 31 * HOP_LENGTH - n_samples))
    coefficients = jax.jit(mdct)(signal)
    n_frames = -(-n_samples // HOP_LENGTH) + 1
    valid = jnp.broadcast_to(jnp.arange(32)[None] < n_frames, coefficients.shape)
    power = np.sort(np.mean(np.square(coefficients[:, :n_frames]), axis=0))
    step = np.sqrt(power[len(power) // 2 :].mean()) * 2 ** (rate / 8 - 4)
    return rdo.Problem(
        CODEC.params,
        jnp.where(valid, coefficients / step, 0),
        valid,
        jnp.ones((HOP_LENGTH, 1), bool),
        jnp.float32(rate),
        jnp.int32(0),
    )


@jax.jit
def distortion(segment, found, samples):
    original = rdo._synthesise(segment.scaled, segment.rate)
    return rdo.distortion(original, rdo._decode(CODEC, segment, found), samples)


@pytest.mark.slow
def test_a_search_sounds_better_than_a_finer_step_of_as_many_bits():
    """What it finds is compared with what the encoder network alone makes of more bits."""
    segment = problem(rate=36.0)
    begin = rdo._compiled(CODEC).begin
    target = float(begin(segment)[2].bits)
    found = rdo.optimise(CODEC, segment, 20, target)
    finer_segment = problem(rate=34.0)
    finer = begin(finer_segment)[2]
    bits = sum(float(each.sum()) for each in bits_of(found, choose_tables(found, segment.rate)))
    assert bits < float(finer.bits)
    # Also where the metrics' frames lie otherwise.
    for samples in (0, 1_000):
        before = distortion(finer_segment, finer.coded, samples)
        assert distortion(segment, found, samples) < before
    assert not np.asarray(found.values)[:, ~np.asarray(segment.valid[0])].any()


@pytest.mark.parametrize("samples", [0, 1, 700, rdo.MAX_DELAY])
def test_a_delay_moves_a_sound_and_loses_nothing(samples):
    sound = np.arange(1.0, 5_001.0, dtype=np.float32)
    moved = np.asarray(rdo.delay(jnp.asarray(sound), samples))
    assert moved.size == sound.size + rdo.MAX_DELAY
    assert (moved[samples:][: sound.size] == sound).all()
    assert np.count_nonzero(moved) == sound.size


def test_a_search_is_the_same_again_and_compiles_once():
    segment = problem()
    first = rdo.optimise(CODEC, segment, 10, 1_000.0)
    compiled: Any = rdo._compiled(CODEC)
    before = [each._cache_size() for each in compiled]
    again = rdo.optimise(CODEC, segment, 10, 1_000.0)
    rdo.optimise(CODEC, problem(rate=30.0), 20, 2_000.0)
    assert [each._cache_size() for each in compiled] == before == [1] * len(compiled)
    assert (first.values == again.values).all() and (first.levels == again.levels).all()


def test_nothing_is_coded_above_the_bandwidth():
    segment = problem()._replace(coded=jnp.arange(HOP_LENGTH)[:, None] < 100)
    found = rdo.optimise(CODEC, segment, 10, 700.0)
    assert not np.asarray(found.values)[100:].any() and not np.asarray(found.levels)[7:].any()


def test_plain_quantization_is_a_search_of_no_updates():
    segment = problem()
    found = rdo.optimise(CODEC, segment, 0, 1e9)
    plain = quantize(segment.scaled)
    assert found.values.shape == plain.values.shape
