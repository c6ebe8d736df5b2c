import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from jaxsparse import losses
from jaxsparse.nn.sparse_cnn import SparseCNNConfig, sparse_cnn
from jaxsparse.reconstruct import evaluate_masks, reconstruct_spectrogram, to_waveform
from jaxsparse.spectrogram import log_power
from jaxsparse.transforms.stft import STFTConfig, stft

SHAPE = (40, 30)
NETWORK = sparse_cnn(SparseCNNConfig((5, 3), 4))


@pytest.fixture(scope="module")
def params():
    return jax.jit(NETWORK.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def spectrogram():
    return jnp.asarray(np.random.default_rng(0).uniform(-80, 0, SHAPE), jnp.float32)


def population(size, seed=1):
    return jnp.asarray(np.random.default_rng(seed).random((size, *SHAPE)) < 0.1)


def soft_population(size, seed=1):
    return jnp.asarray(np.random.default_rng(seed).random((size, *SHAPE)), jnp.float32)


apply = jax.jit(NETWORK.apply)
reconstruct = jax.jit(
    functools.partial(reconstruct_spectrogram, NETWORK), static_argnames="keep_observed"
)


def test_kept_bins_of_a_hard_mask_are_exact(params, spectrogram):
    (mask,) = population(1)
    completed = np.asarray(apply(params, spectrogram, mask))
    kept = np.asarray(reconstruct(params, spectrogram, mask))
    np.testing.assert_array_equal(kept[mask], spectrogram[mask])
    np.testing.assert_array_equal(kept[~mask], completed[~mask])
    assert np.abs(completed[mask] - spectrogram[mask]).min() > 0, "the network alone is not exact"
    plain = reconstruct(params, spectrogram, mask, keep_observed=False)
    np.testing.assert_array_equal(plain, completed)
    unknown = jnp.where(mask, spectrogram, jnp.nan)
    np.testing.assert_array_equal(reconstruct(params, unknown, mask), kept)


def test_a_soft_mask_keeps_its_share(params, spectrogram):
    (mask,) = soft_population(1)
    completed = np.asarray(apply(params, spectrogram, mask))
    kept = reconstruct(params, spectrogram, mask)
    share = np.asarray(mask, np.float64)
    expected = share * np.asarray(spectrogram) + (1 - share) * completed
    np.testing.assert_allclose(kept, expected, atol=1e-4)
    plain = reconstruct(params, spectrogram, mask, keep_observed=False)
    np.testing.assert_array_equal(plain, completed)


def test_true_levels_and_phases_give_the_sound_back():
    config = STFTConfig(256, 256, 64)
    signal = np.random.default_rng(0).standard_normal(3001).astype(np.float32)
    spectrum = stft(jnp.asarray(signal), config)
    phase = jnp.angle(spectrum)
    exact = to_waveform(log_power(spectrum, top_db=None), phase, config, length=3001)
    # 1e-5 dB of rounding in levels of up to a hundred is 1e-6 of a magnitude.
    np.testing.assert_allclose(exact, signal, atol=3e-5)
    floored = to_waveform(log_power(spectrum), phase, config, length=3001)
    np.testing.assert_allclose(floored, signal, atol=1e-3)
    without = to_waveform(log_power(spectrum), jnp.zeros_like(phase), config, length=3001)
    assert jnp.abs(without - signal).max() > 0.1


@pytest.mark.parametrize("keep_observed", [False, True])
@pytest.mark.parametrize("make", [population, soft_population])
def test_evaluate_masks_equals_a_loop(params, spectrogram, make, keep_observed):
    masks = make(7)
    scores = evaluate_masks(
        NETWORK,
        params,
        spectrogram,
        masks,
        chunk_bytes=200_000,  # three at a time, and one is left
        keep_observed=keep_observed,
    )
    assert scores.shape == (7,)
    clip = np.asarray(spectrogram, np.float64)
    for mask, score in zip(masks, scores, strict=True):
        estimate = np.asarray(apply(params, spectrogram, mask), np.float64)
        if keep_observed:
            share = np.asarray(mask, np.float64)
            estimate = share * clip + (1 - share) * estimate
        assert float(score) == pytest.approx(np.mean((estimate - clip) ** 2), rel=1e-5)
    assert len(set(scores.tolist())) == 7


def spread(reference, estimate):
    error = estimate - reference
    return {"largest": jnp.abs(error).max(), "rows": (error.mean(axis=1), error.std(axis=1))}


def test_scores_may_be_any_tree(params, spectrogram):
    masks = population(5)
    scores = evaluate_masks(NETWORK, params, spectrogram, masks, score=spread, keep_observed=False)
    assert scores["largest"].shape == (5,) and scores["rows"][1].shape == (5, SHAPE[0])
    for i, mask in enumerate(masks):
        expected = spread(spectrogram, apply(params, spectrogram, mask))
        one = jax.tree.map(lambda leaf, i=i: leaf[i], scores)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), one, expected)


def test_nobody_to_evaluate(params, spectrogram):
    assert evaluate_masks(NETWORK, params, spectrogram, population(0)).shape == (0,)


def temporary_bytes(params, spectrogram, size, chunk_bytes):
    """What the compiled evaluation of a population takes beside its arguments."""
    lowered = jax.jit(
        lambda params, clip, masks: evaluate_masks(
            NETWORK, params, clip, masks, chunk_bytes=chunk_bytes
        )
    ).lower(params, spectrogram, population(size))
    memory = lowered.compile().memory_analysis()
    assert memory is not None
    return memory.temp_size_in_bytes


def test_memory_is_that_of_the_budget(params, spectrogram):
    bits = SHAPE[0] * SHAPE[1]  # of one mask, a byte each
    one = temporary_bytes(params, spectrogram, 1, 1)
    activations = 4 * 4 * bits
    assert one > 2 * activations, "a layer's inputs and outputs at least"
    # The smallest budget: one mask at a time, however many wait.
    for size in (4, 64):
        assert temporary_bytes(params, spectrogram, size, 1) < 1.2 * one + size * bits
    budget = 5 * one
    few = temporary_bytes(params, spectrogram, 16, budget)
    many = temporary_bytes(params, spectrogram, 64, budget)
    assert abs(many - few) <= 64 * bits
    assert 2 * one < few < 1.1 * budget + 16 * bits
    assert many < 1.1 * budget + 64 * bits
    unbounded = temporary_bytes(params, spectrogram, 64, 1 << 30)
    assert unbounded > 6 * budget, "so the budget is what bounds it"


def test_a_second_population_compiles_nothing(params, spectrogram):
    def evaluate(masks, clip, params, **settings):
        return evaluate_masks(NETWORK, params, clip, masks, chunk_bytes=250_000, **settings)

    populations = [population(9, seed) for seed in (1, 2)]
    softer = jax.tree.map(lambda p: p / 2, params)
    louder = spectrogram + 1.0
    evaluate(populations[0], spectrogram, params)
    evaluate(populations[0], spectrogram, params, score=spread)
    with reference.Compilations() as compilations:
        first = evaluate(populations[1], louder, softer)
        evaluate(populations[1], louder, softer, score=spread)
    assert compilations.count == 0
    assert (first != evaluate(populations[0], spectrogram, params)).all()
    with reference.Compilations() as compilations:
        evaluate(population(9), spectrogram, params, score=lambda *pair: spread(*pair))
    assert compilations.count > 0, "what is not compiled yet is counted"


@pytest.mark.parametrize("chunk_bytes", [0, -1])
def test_a_budget_is_positive(params, spectrogram, chunk_bytes):
    with pytest.raises(ValueError, match="chunk_bytes must be positive"):
        evaluate_masks(NETWORK, params, spectrogram, population(2), chunk_bytes=chunk_bytes)


def test_mse_is_the_mean_of_squares_for_each_example():
    rng = np.random.default_rng(0)
    clean, estimate = rng.standard_normal((2, 3, *SHAPE)).astype(np.float32)
    expected = ((clean.astype(np.float64) - estimate) ** 2).mean(axis=(1, 2))
    ours = losses.mse(reference=jnp.asarray(clean), estimate=jnp.asarray(estimate))
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    gradient = jax.grad(lambda e: losses.mse(reference=jnp.asarray(clean), estimate=e).sum())(
        jnp.asarray(estimate)
    )
    np.testing.assert_allclose(gradient, 2 * (estimate - clean) / clean[0].size, rtol=1e-4)
