import functools
import inspect
from importlib import resources

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
import scipy.stats
from pesq import pesq

from jaxsparse.audio import read_audio
from jaxsparse.metrics import surrogate
from jaxsparse.metrics.surrogate import pesq_surrogate
from tests.reference import Compilations

RATE = 16_000
BANDS = ("wb", "nb")


@pytest.fixture(scope="module")
def sentence():
    with resources.as_file(resources.files("jaxsparse") / "assets" / "sentence.flac") as path:
        return read_audio(path)[0][:, 0].astype(np.float32)


def low_pass(signal, hertz, rate=RATE):
    sections = scipy.signal.butter(8, hertz, fs=rate, output="sos")
    return scipy.signal.sosfiltfilt(sections, signal).astype(np.float32)


def worse(signal, rate=RATE):
    """Some of what `eval.degradations` does, from hardly to badly."""
    rng = np.random.default_rng(0)
    level = np.std(signal)
    for share in (0.01, 0.05, 0.1, 0.3, 1.0):
        yield (signal + share * level * rng.normal(size=signal.shape)).astype(np.float32)
    for share in (0.999, 0.99, 0.95, 0.8):
        limit = np.quantile(np.abs(signal), share)
        yield np.clip(signal, -limit, limit)
    for hertz in (3_500, 2_500, 1_500, 800):
        yield low_pass(signal, hertz, rate)


@pytest.mark.parametrize("band", ["wb", pytest.param("nb", marks=pytest.mark.slow)])
def test_it_says_about_what_pesq_says(sentence, band):
    estimates = np.stack(list(worse(sentence)))
    expected = [pesq(RATE, sentence, estimate, band) for estimate in estimates]
    actual = pesq_surrogate(
        reference=np.broadcast_to(sentence, estimates.shape),
        estimate=estimates,
        sample_rate=RATE,
        band=band,
    )
    errors = np.abs(np.asarray(actual) - expected)
    # On speech that nothing was fitted to, the median is 0.03 and 95 % are within 0.2.
    assert np.median(errors) < 0.1 and np.max(errors) < 0.4
    assert np.asarray(scipy.stats.spearmanr(actual, expected))[0] > 0.97
    assert np.ptp(expected) > 2


def test_narrow_band_at_8_khz(sentence):
    signal = scipy.signal.resample_poly(sentence, 1, 2).astype(np.float32)
    estimates = np.stack(list(worse(signal, 8_000)))
    expected = [pesq(8_000, signal, estimate, "nb") for estimate in estimates]
    actual = pesq_surrogate(
        reference=np.broadcast_to(signal, estimates.shape),
        estimate=estimates,
        sample_rate=8_000,
        band="nb",
    )
    # It was fitted at 16 kHz alone.
    assert np.median(np.abs(np.asarray(actual) - expected)) < 0.15
    assert np.asarray(scipy.stats.spearmanr(actual, expected))[0] > 0.97


@pytest.mark.parametrize("band", BANDS)
def test_the_level_of_either_sound_does_not_matter(sentence, band):
    x, y = sentence[None], next(iter(worse(sentence)))[None]
    score = functools.partial(pesq_surrogate, sample_rate=RATE, band=band)
    expected = score(reference=x, estimate=y)
    np.testing.assert_allclose(score(reference=x, estimate=0.1 * y), expected, atol=1e-3)
    np.testing.assert_allclose(score(reference=5 * x, estimate=y), expected, atol=1e-3)


def test_the_gain_is_smoothed_as_a_low_pass_of_the_first_order_does():
    rng = np.random.default_rng(0)
    audible = rng.uniform(1e5, 1e7, 40).astype(np.float32)
    degraded = rng.uniform(1e3, 1e6, (40, 49)).astype(np.float32)
    quiet = np.full(49, 10.0, np.float32)
    c = surrogate.published()
    ratio = (audible + c.gain_offset) / (np.sum(degraded - 10.0, axis=1) + c.gain_offset)
    ratio = np.clip(ratio, 3e-4, 5)
    memory = float(np.asarray(c.gain_memory))
    start = scipy.signal.lfilter_zi([1 - memory], [1, -memory]) * ratio[0]
    expected = scipy.signal.lfilter([1 - memory], [1, -memory], ratio, zi=start)[0]
    actual = surrogate._gain(jnp.asarray(audible), jnp.asarray(degraded), jnp.asarray(quiet), c)
    # Eight taps leave out 0.2^8 of the past.
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("n_frames", [1, 7, 20, 25, 64])
def test_norms_over_time_are_those_of_windows_of_twenty_frames(n_frames):
    rng = np.random.default_rng(n_frames)
    disturbance = rng.uniform(0, 45, n_frames)
    speech = np.zeros(n_frames)
    speech[n_frames // 5 : n_frames - n_frames // 6] = 1
    length = max(20, -(-n_frames // 10) * 10)
    heard, spoken = np.zeros(length), np.zeros(length)
    heard[:n_frames], spoken[:n_frames] = disturbance * speech, speech
    squares = []
    for start in range(0, length - 19, 10):
        if spoken[start : start + 10].any():
            squares.append(np.mean(heard[start : start + 20] ** 6) ** (2 / 6))
    expected = np.sqrt(np.mean(squares))
    actual = surrogate._over_time(jnp.float32(disturbance), jnp.float32(speech))
    assert float(actual) == pytest.approx(expected, rel=1e-5)


def test_speech_is_from_its_first_to_its_last_loud_frame(sentence):
    tone = 0.3 * np.sin(2 * np.pi * 1_000 * np.arange(4_096) / RATE)
    silence = np.zeros(2_560)
    signal = jnp.float32(np.concatenate([silence, tone, silence, tone, 2 * silence]))
    _, _, speech = surrogate.analyze(signal, signal, RATE, "wb")
    # Frames of 512 samples, 256 apart, that hold any of 2,560 to 13,312 but for what the filter
    # smears: at most a frame at either end.
    spoken = np.flatnonzero(speech)
    assert np.all(np.diff(spoken) == 1)
    assert spoken[0] in (2_560 // 256 - 2, 2_560 // 256 - 1)
    assert spoken[-1] in (13_312 // 256 - 1, 13_312 // 256)


@pytest.mark.parametrize("band", BANDS)
def test_an_explosion_after_the_speech_does_not_make_it_sound_better(sentence, band):
    """What searches came upon: a loud end made all the rest quieter, and its faults with it."""
    x = np.concatenate([sentence[:24_000], np.zeros(4_000, np.float32)])
    y = np.concatenate([list(worse(sentence))[2][:24_000], np.zeros(4_000, np.float32)])
    exploded = y.copy()
    exploded[-500:] = 10 * np.sin(np.arange(500))
    quiet, loud = (
        float(pesq_surrogate(reference=x[None], estimate=z[None], sample_rate=RATE, band=band)[0])
        for z in (y, exploded)
    )
    assert loud < quiet + 0.05


@pytest.mark.parametrize("band", ["wb", pytest.param("nb", marks=pytest.mark.slow)])
def test_the_gradient_agrees_with_finite_differences(sentence, band):
    """In float64, since the score's rounding in float32 is as large as a small step's effect."""
    x = np.asarray(sentence[4_000:12_000], np.float64)
    y = x + 0.3 * np.std(x) * np.random.default_rng(0).normal(size=x.shape)
    direction = np.random.default_rng(1).normal(size=x.shape) * np.std(x)
    with jax.enable_x64(True):
        calibration = surrogate.calibrated(band)

        @jax.jit
        def score(y):
            analyzed = surrogate.analyze(jnp.asarray(x), y, RATE, band)
            return surrogate.score(*analyzed, calibration, band)

        slope = jax.grad(score)(jnp.asarray(y)) @ direction
        step = 1e-6
        numeric = (score(y + step * direction) - score(y - step * direction)) / (2 * step)
        assert abs(float(slope)) > 1e-3
        assert float(slope) == pytest.approx(float(numeric), rel=1e-4)


@pytest.mark.slow
def test_going_up_the_gradient_makes_it_and_pesq_better(sentence):
    x = sentence[None]
    y = next(noisy for i, noisy in enumerate(worse(sentence)) if i == 1)[None]
    loss = jax.jit(
        jax.grad(lambda y: -pesq_surrogate(reference=x, estimate=y, sample_rate=RATE).sum())
    )
    better = y
    for _ in range(20):
        slope = loss(better)
        better = better - 0.002 * slope / jnp.max(jnp.abs(slope))
    before, after = (pesq(RATE, x[0], np.asarray(z)[0], "wb") for z in (y, better))
    assert after > before + 0.05


def test_it_is_compiled_once_for_a_shape_and_any_calibration(sentence):
    x = np.stack([sentence[:8_000], sentence[8_000:16_000]])
    score = functools.partial(pesq_surrogate, sample_rate=RATE)
    shipped = score(reference=x, estimate=low_pass(x, 2_000))
    another = surrogate.calibrated("wb")._replace(symmetric=np.float32(0.2))
    with Compilations() as compilations:
        score(reference=x[::-1], estimate=x)
        changed = score(reference=x, estimate=low_pass(x, 2_000), calibration=another)
    assert compilations.count == 0
    assert np.all(changed < shipped)


@pytest.mark.parametrize("band", BANDS)
def test_the_calibration_is_whole_and_near_what_is_published(band):
    shipped, start = surrogate.calibrated(band), surrogate.published()
    for name, value in shipped._asdict().items():
        assert np.shape(value) == np.shape(getattr(start, name))
        assert np.isfinite(value).all()
    for name in ("exponent", "masking", "asymmetry_power", "symmetric", "asymmetric"):
        ratio = float(getattr(shipped, name)) / float(getattr(start, name))
        assert 0.5 < ratio < 2, name


@pytest.mark.parametrize(
    ("rate", "band"), [(8_000, "wb"), (44_100, "wb"), (22_050, "nb"), (16_000, "swb")]
)
def test_other_rates_and_bands_are_refused(rate, band):
    x = np.zeros((1, 1000), np.float32)
    # Unwrapped: under the tests' type checker the literal type would refuse the name first.
    refused = inspect.unwrap(pesq_surrogate)
    with pytest.raises(ValueError, match=f"not defined at {rate} Hz"):
        refused(reference=x, estimate=x, sample_rate=rate, band=band)
