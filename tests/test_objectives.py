from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import Compilations, decoder
from test_eval import voice

from jaxsparse import objectives
from jaxsparse.masks import pack_mask, random_mask
from jaxsparse.metrics import ScorePool, reference_pesq
from jaxsparse.metrics.surrogate import pesq_surrogate
from jaxsparse.objectives import (
    mixture_objective,
    mse_objective,
    pesq_objective,
    surrogate_objective,
)
from jaxsparse.reconstruct import evaluate_masks, reconstruct_spectrogram, to_waveform
from jaxsparse.search.genetic import GeneticConfig, genetic
from jaxsparse.search.lagrangian import constant_mask
from jaxsparse.search.run import run
from jaxsparse.spectrogram import log_power
from jaxsparse.transforms.stft import STFTConfig, stft

N_SAMPLES = 6_000
SHAPE = (1025, 1 + N_SAMPLES // 256)
COUNT = 5_000


@pytest.fixture(scope="module")
def clip():
    """A short clip, its spectrogram and phases, and a small network."""
    signal = voice(0, 0.375)[:N_SAMPLES].astype(np.float32)
    spectrum = stft(jnp.asarray(signal))

    def apply(params, spectrogram, mask, valid=None):
        """Blurs what is observed, and has a level of its own where nothing is."""
        weight = mask.astype(spectrogram.dtype)
        return params["level"] * (1 - weight) + weight * spectrogram * 0.9

    return signal, spectrum, log_power(spectrum), decoder(apply), {"level": jnp.float32(-40.0)}


@pytest.fixture(scope="module")
def masks():
    return jax.vmap(lambda key: random_mask(key, SHAPE, COUNT))(
        jax.random.split(jax.random.key(0), 5)
    )


@pytest.fixture(scope="module")
def pool():
    with ScorePool(2) as pool:
        yield pool


@pytest.mark.parametrize("keep_observed", [False, True])
def test_mse_objective_is_that_of_evaluate_masks(clip, masks, keep_observed):
    _, _, dense, network, params = clip
    objective = mse_objective(network, params, dense, keep_observed=keep_observed)
    losses, aux = jax.jit(jax.vmap(objective))(masks)
    expected = evaluate_masks(network, params, dense, masks, keep_observed=keep_observed)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    assert aux is None


@pytest.mark.parametrize(("band", "keep_observed"), [("nb", False), ("wb", True)])
def test_pesq_objective_is_pesq_mask_by_mask(clip, masks, pool, band, keep_observed):
    signal, spectrum, dense, network, params = clip
    phase = jnp.angle(spectrum)
    objective = pesq_objective(
        network, params, dense, phase, signal, pool, band=band, keep_observed=keep_observed
    )
    losses, aux = objective.score(jax.vmap(pack_mask)(masks))
    assert losses.shape == aux["mse"].shape == (5,)
    for mask, loss, error in zip(masks, losses, aux["mse"], strict=True):
        estimate = reconstruct_spectrogram(
            network, params, dense, mask, keep_observed=keep_observed
        )
        sound = np.asarray(to_waveform(estimate, phase, length=N_SAMPLES))
        pair = {"reference": signal[None], "estimate": sound[None], "sample_rate": 16_000}
        score = reference_pesq(**pair, band=band, pool=pool).values[0]
        np.testing.assert_allclose(-loss, score, atol=1e-4)
        np.testing.assert_allclose(error, jnp.mean(jnp.square(estimate - dense)), rtol=1e-5)
    assert len(set(losses)) == 5


@pytest.mark.parametrize("chunk_bytes", [1, 1 << 30])
def test_chunks_and_bounded_queues_change_nothing(clip, masks, pool, monkeypatch, chunk_bytes):
    signal, spectrum, dense, network, params = clip
    arguments = (network, params, dense, jnp.angle(spectrum), signal, pool)
    bits = jax.vmap(pack_mask)(masks)
    expected, _ = pesq_objective(*arguments, band="nb").score(bits)
    monkeypatch.setattr(objectives, "MAX_PENDING", 1)
    losses, _ = pesq_objective(*arguments, band="nb", chunk_bytes=chunk_bytes).score(bits)
    np.testing.assert_allclose(losses, expected, atol=1e-5)


@pytest.mark.slow
def test_what_pesq_can_not_score_is_nan_and_never_wins(clip, pool):
    """Where the first bin is kept, the sound is silent."""
    signal, spectrum, dense, _, params = clip

    def apply(params, spectrogram, mask, valid=None):
        weight = mask.astype(spectrogram.dtype)
        quiet = jnp.full(spectrogram.shape, -jnp.inf)
        return jnp.where(mask[0, 0], quiet, weight * spectrogram + (1 - weight) * -60.0)

    objective = pesq_objective(
        decoder(apply),
        params,
        dense,
        jnp.angle(spectrum),
        signal,
        pool,
        band="nb",
        keep_observed=False,
    )
    count = SHAPE[0] * SHAPE[1] // 2
    search = genetic(objective, SHAPE, count, GeneticConfig(8))
    result = run(search, jax.random.key(0), steps=2)
    assert result.history["failed"].sum() > 0
    assert np.isfinite(result.best.loss) and not result.mask(SHAPE)[0, 0]
    assert set(result.best.aux) == {"mse"}


@pytest.mark.slow
@pytest.mark.parametrize(("band", "keep_observed"), [("nb", False), ("wb", True)])
def test_surrogate_objective_is_the_surrogate_mask_by_mask(clip, masks, band, keep_observed):
    signal, spectrum, dense, network, params = clip
    phase = jnp.angle(spectrum)
    options = {"band": band, "keep_observed": keep_observed}
    evaluate = jax.jit(jax.vmap(lambda objective, mask: objective(mask), (None, 0)))
    objective = surrogate_objective(network, params, dense, phase, signal, **options)
    losses, aux = evaluate(objective, masks)
    estimates = [
        reconstruct_spectrogram(network, params, dense, mask, keep_observed=keep_observed)
        for mask in masks
    ]
    sounds = jnp.stack([to_waveform(estimate, phase, length=N_SAMPLES) for estimate in estimates])
    originals = jnp.broadcast_to(signal[None], sounds.shape)
    expected = pesq_surrogate(reference=originals, estimate=sounds, sample_rate=16_000, band=band)
    np.testing.assert_allclose(-losses, expected, atol=1e-4)
    assert len(set(losses.tolist())) == 5
    assert set(aux) == {"mse"}
    errors = [jnp.mean(jnp.square(estimate - dense)) for estimate in estimates]
    np.testing.assert_allclose(aux["mse"], errors, rtol=1e-5)
    other = jnp.flip(dense, 1), -jnp.flip(phase, 1), signal[::-1].copy()
    with Compilations() as compilations:
        others, _ = evaluate(surrogate_objective(network, params, *other, **options), masks)
    assert compilations.count == 0
    assert not np.isclose(others, losses).any()


def test_checkpoints_tell_surrogates_by_their_names(clip):
    signal, spectrum, dense, network, params = clip
    arguments = (network, params, dense, jnp.angle(spectrum), signal)
    options: tuple[dict[str, Any], ...] = (
        {},
        {"band": "nb"},
        {"keep_observed": False},
        {"config": STFTConfig(pad_mode="edge")},
    )
    made = [surrogate_objective(*arguments, **option) for option in options]
    assert len({objective.identity for objective in made}) == len(options)
    assert surrogate_objective(*arguments).identity == made[0].identity


def test_a_mixture_is_the_sum_of_its_terms(clip, masks):
    signal, spectrum, dense, network, params = clip
    arguments = (network, params, dense, jnp.angle(spectrum), signal)

    def of(loss):
        return jax.jit(lambda f: f(masks[0]))(mixture_objective(*arguments, loss=loss))

    loss, aux = of("2*surrogate+0.5*mse")
    assert set(aux) == {"mse", "surrogate"}
    score, _ = surrogate_objective(*arguments)(masks[0])
    assert aux["surrogate"] == pytest.approx(4.64 + float(score), abs=1e-4)
    assert aux["mse"] == pytest.approx(float(mse_objective(*arguments[:3])(masks[0])[0]), rel=1e-5)
    assert loss == pytest.approx(2 * float(aux["surrogate"]) + 0.5 * float(aux["mse"]), rel=1e-5)
    # Of the spectrogram alone, no sound is made.
    alone, aux = of("audible-mse")
    assert alone == aux["audible-mse"] and set(aux) == {"mse", "audible-mse"}
    with pytest.raises(ValueError, match="no term 'quantity'"):
        mixture_objective(*arguments, loss="quantity")


@pytest.mark.slow
def test_the_surrogate_has_a_slope_in_soft_masks(clip):
    """Along it the surrogate rises by what it says."""
    signal, spectrum, dense, network, params = clip
    differentiate = jax.jit(jax.value_and_grad(lambda mask, objective: objective(mask)[0]))
    objective = surrogate_objective(network, params, dense, jnp.angle(spectrum), signal)
    mask = constant_mask(SHAPE, COUNT)
    _, slope = differentiate(mask, objective)
    assert np.isfinite(slope).all()
    step = 1e-3 * slope / jnp.linalg.norm(slope)
    rise = differentiate(mask + step, objective)[0] - differentiate(mask - step, objective)[0]
    # Curvature and float32 take their part.
    np.testing.assert_allclose(rise, 2e-3 * jnp.linalg.norm(slope), rtol=0.05)


def test_a_sound_that_is_not_finite_has_no_surrogate(clip, masks):
    signal, spectrum, dense, _, params = clip

    def apply(params, spectrogram, mask, valid=None):
        return jnp.where(mask, spectrogram, jnp.inf)

    objective = surrogate_objective(decoder(apply), params, dense, jnp.angle(spectrum), signal)
    assert np.isnan(objective(masks[0])[0])
