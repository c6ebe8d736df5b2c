import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pystoi
import pytest
from scipy import signal

from jaxsparse.metrics.intelligibility import estoi, intelligibility, stoi
from tests.test_reference_metrics import noisy, speech_like

RATE = 16_000
METRICS = [stoi, estoi]
# Of float32: nearly empty bands count as much as others, and these signals have such bands.
ATOL = 1e-4


def expected(reference, estimate, rate, metric):
    """Clip by clip, from the package; it warns where it has too few frames."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        pairs = zip(reference, estimate, strict=True)
        return np.array([pystoi.stoi(x, y, rate, metric is estoi) for x, y in pairs])


def muted(clip, *parts):
    """Zeros in `parts`, in seconds."""
    t = np.arange(clip.size) / RATE
    return clip * ~np.any([(t >= start) & (t < end) for start, end in parts], axis=0)


def low_passed(clip, cutoff, order=6):
    sections = signal.butter(order, cutoff, fs=RATE, output="sos")
    return np.asarray(signal.sosfilt(sections, clip), np.float32)


def sparse_bins(clip, kept=0.05):
    _, _, spectrum = signal.stft(clip, RATE, nperseg=512)
    spectrum *= np.random.default_rng(0).uniform(size=spectrum.shape) < kept
    return signal.istft(spectrum, RATE, nperseg=512)[1][: clip.size].astype(np.float32)


def degraded_pairs():
    """Pairs of 2.3 s; silent frames lie at the ends of one reference and within it."""
    clips = [speech_like(2.3, seed) for seed in range(10)]
    paused = muted(clips[4], (0, 0.21), (0.93, 1.3), (2.1, 2.3))
    return [
        (clips[0], noisy(clips[0], 0.005)),
        (clips[1], noisy(clips[1], 0.3)),
        (clips[2], np.clip(clips[2], -0.02, 0.02)),
        (clips[3], low_passed(clips[3], 900)),
        (paused, noisy(clips[4])),
        # Longer gaps of zeros leave pystoi's ESTOI to its random numbers.
        (clips[5], muted(noisy(clips[5]), (0.3, 0.45), (1.1, 1.2))),
        (clips[6], sparse_bins(clips[6])),
        (clips[7], np.roll(clips[7], 40)),
        (clips[8], np.sign(clips[8])),
        (clips[9], noisy(clips[9][::-1].copy())),
        (3e4 * clips[0], 1e-5 * noisy(clips[0])),
        (1e-5 * clips[1], 3e4 * noisy(clips[1])),
        # Fading by 60 dB: a few frames lie within a dB of the level that counts as silence.
        (clips[2] * np.logspace(0, -3, clips[2].size), noisy(clips[2], 0.001)),
        (clips[3], clips[3]),
    ]


@pytest.fixture(scope="module")
def degraded():
    reference, estimate = zip(*degraded_pairs(), strict=True)
    return np.stack(reference).astype(np.float32), np.stack(estimate).astype(np.float32)


@pytest.mark.parametrize("metric", METRICS)
def test_degraded_speech_scores_as_in_pystoi(metric, degraded):
    x, y = degraded
    values = expected(x, y, RATE, metric)
    assert values.max() - values.min() > 0.5
    np.testing.assert_allclose(metric(reference=x, estimate=y, sample_rate=RATE), values, atol=ATOL)


@pytest.mark.parametrize(
    "rate",
    [8_000, *(pytest.param(n, marks=pytest.mark.slow) for n in (11_025, 44_100, 48_000, 6_007))],
)
def test_any_sample_rate(rate):
    x = speech_like(1.1, rate=rate)[None]
    y = noisy(x, 0.01)
    actual = stoi(reference=x, estimate=y, sample_rate=rate)
    np.testing.assert_allclose(actual, expected(x, y, rate, stoi), atol=ATOL)


@pytest.mark.slow
@pytest.mark.parametrize("n_samples", [4096, 4097, 4224, 4225])
def test_the_number_of_frames_is_that_of_pystoi(n_samples):
    x = speech_like(0.6, rate=10_000, bursts=1.0)[1000 : 1000 + n_samples][None]
    y = noisy(x)
    value = expected(x, y, 10_000, estoi)
    assert (value[0] == 1e-5) == (n_samples == 4096)
    actual = estoi(reference=x, estimate=y, sample_rate=10_000)
    np.testing.assert_allclose(actual, value, atol=ATOL)


@pytest.mark.slow
@pytest.mark.parametrize("metric", METRICS)
def test_clips_left_with_too_few_frames_score_as_in_pystoi(metric):
    t = np.arange(2 * RATE) / RATE
    x = np.stack([speech_like(2.0, 3, bursts=0.8) * (t < end) for end in np.arange(0.3, 0.7, 0.03)])
    y = noisy(x)
    values = expected(x, y, RATE, metric)
    assert 3 < np.sum(values == 1e-5) < 11
    actual = metric(reference=x, estimate=y, sample_rate=RATE)
    np.testing.assert_allclose(actual, values, atol=ATOL)


@pytest.mark.parametrize("metric", METRICS)
def test_what_is_silent_in_the_reference_has_no_gradient(metric, degraded):
    x, y = (clips[2:6] for clips in degraded)

    def total(y):
        values = metric(reference=x, estimate=y, sample_rate=RATE)
        return jnp.nansum(values), values

    gradient = jax.grad(total, has_aux=True)(jnp.asarray(y))[0][2]
    # The reference pauses from 0.93 to 1.3 s; a frame and the resampling filter reach into that.
    pause = slice(round(0.97 * RATE), round(1.26 * RATE))
    np.testing.assert_array_equal(gradient[pause], 0)
    assert np.abs(gradient[pause.stop :]).max() > 0


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("spoil", "value"),
    [
        (lambda x, y: (0 * x, y), 0),
        (lambda x, y: (x, 0 * y), 0),
        (lambda x, y: (0 * x, 0 * y), 0),
        (lambda x, y: (x, x), 1),
        (lambda x, y: (x, np.ones_like(x)), None),
        (lambda x, y: (x, muted(y, (0.1, 0.9))), None),
        (lambda x, y: (x, 1e-20 * y), None),
        (lambda x, y: (muted(x, (0.25, 1.0)), y), 1e-5),
        (lambda x, y: (x[:1], y[:1]), 1e-5),
        (lambda x, y: (x[:300], y[:300]), 1e-5),
    ],
    ids=[
        "no reference",
        "no estimate",
        "silence",
        "same",
        "constant",
        "gap",
        "soft",
        "pause",
        "one",
        "tiny",
    ],
)
def test_gradients_are_finite(metric, spoil, value):
    x, y = spoil(speech_like(1.0), noisy(speech_like(1.0)))

    def total(x, y):
        return metric(reference=x[None], estimate=y[None], sample_rate=RATE)[0]

    actual, gradients = jax.value_and_grad(total, argnums=(0, 1))(jnp.asarray(x), jnp.asarray(y))
    assert np.all(np.isfinite(gradients))
    assert np.isfinite(actual)
    if value is not None:
        np.testing.assert_allclose(actual, value, atol=1e-6)
    if value in (0, 1e-5):
        np.testing.assert_array_equal(gradients[1], 0)


@pytest.mark.parametrize("extended", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_gradient_is_that_of_finite_differences(extended):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = jnp.asarray(muted(speech_like(1.2), (0.5, 0.7)), jnp.float64)
        y = jnp.asarray(noisy(x, 0.03), jnp.float64)

        @jax.jit
        def score(y):
            return intelligibility(x, y, sample_rate=RATE, extended=extended)

        assert score(y).dtype == jnp.float64
        gradient = jax.jit(jax.grad(score))(y)
        for _ in range(3):
            along = rng.normal(size=y.shape) * 0.01
            step = 1e-5
            difference = (score(y + step * along) - score(y - step * along)) / (2 * step)
            assert abs(difference) > 1e-3
            # What is clipped in STOI has kinks, which a step may cross.
            np.testing.assert_allclose(jnp.vdot(gradient, along), difference, rtol=1e-4)


@pytest.mark.parametrize("metric", METRICS)
def test_what_cannot_be_scored_is_refused(metric):
    x = np.ones((2, 100), np.float32)
    with pytest.raises(ValueError, match="sample rate"):
        metric(reference=x, estimate=x, sample_rate=0)
    with pytest.raises(ValueError, match="no samples"):
        metric(reference=x[:, :0], estimate=x[:, :0], sample_rate=RATE)
