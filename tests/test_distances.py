import re
import warnings

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import scipy.fft

from jaxsparse.metrics import distances
from jaxsparse.metrics.distances import (
    dct_matrix,
    log_spectral_distance,
    mel_distance,
    mel_filterbank,
    mel_spectrogram,
    mfcc,
    mfcc_distance,
    multi_resolution_stft,
    si_sdr,
)

RATE = 16_000
# A float32 transform leaves 1e-7 of a frame's largest bin in every bin. Bands here lie at most
# 60 dB in power below it, amplitudes 1e3: 1e-4 of the weakest band's power, twice 1e-7 * 1e3 / 2.
RTOL = 2e-4
# The same in dB: 10 / ln 10 of the relative error.
DB_ATOL = 1e-3


def speech_like(n_samples=12_345, seed=0, rate=RATE):
    """Harmonics that come and go over noise 40 dB below them."""
    rng = np.random.default_rng(seed)
    t = np.arange(n_samples) / rate
    phase = 2 * np.pi * np.cumsum(140 + 20 * np.sin(4 * t + seed)) / rate
    voice = sum(np.sin(k * phase) / k for k in range(1, 12))
    envelope = 0.1 * np.sin(3 * np.pi * t) ** 2
    return (envelope * voice + 2e-3 * rng.normal(size=n_samples)).astype(np.float32)


def pair(n_samples=12_345):
    x = np.stack([speech_like(n_samples, seed) for seed in range(2)])
    noise = np.random.default_rng(9).normal(size=x.shape)
    return x, (0.7 * x + np.array([[3e-3], [2e-2]]) * noise).astype(np.float32)


def librosa_mel(signal, rate=RATE, **settings):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "n_fft=.* is too large for input signal", UserWarning)
        return librosa.feature.melspectrogram(y=signal.astype(np.float64), sr=rate, **settings)


def decibel(power):
    return librosa.power_to_db(power, amin=1e-10, top_db=None)


@pytest.mark.parametrize(("rate", "n_mels"), [(16_000, 40), (44_100, 80), (1_600, 20)])
def test_mel_triangles_have_unit_area_and_peak_evenly_on_slaneys_scale(rate, n_mels):
    n_fft = 32_768
    bank = mel_filterbank(rate, n_fft, n_mels)
    assert bank.shape == (n_mels, 1 + n_fft // 2) and bank.dtype == np.float32
    # Triangles of at least a hundred bins: sampling one changes its area by less than 1e-3.
    np.testing.assert_allclose(bank.sum(axis=1) * rate / n_fft, 1, rtol=1e-3)
    peaks = bank.argmax(axis=1) * rate / n_fft
    # 200 / 3 Hz for a mel up to 1 kHz, 27 mels for a factor of 6.4 above.
    mels = np.where(peaks < 1000, peaks * 3 / 200, 15 + 27 * np.log(peaks / 1000) / np.log(6.4))
    top = rate / 2 * 3 / 200 if rate < 2000 else 15 + 27 * np.log(rate / 2000) / np.log(6.4)
    # A bin of 1.3 Hz is a fiftieth of a mel.
    np.testing.assert_allclose(mels, np.linspace(0, top, n_mels + 2)[1:-1], atol=0.02)


def test_mel_triangles_are_computed_once_for_each_setting():
    assert mel_filterbank(RATE, 512, 20) is mel_filterbank(RATE, 512, 20)
    assert mel_filterbank(RATE, 512, 20) is not mel_filterbank(RATE, 512, 21)


def test_dct_matrix_equals_scipy():
    bands = np.random.default_rng(0).normal(size=(40, 3))
    expected = np.asarray(scipy.fft.dct(bands, axis=0, type=2, norm="ortho"))[:13]
    # Sums of 40 float32 products of size 1.
    np.testing.assert_allclose(dct_matrix(13, 40) @ bands, expected, atol=1e-6)


@pytest.mark.optimised
@pytest.mark.parametrize("n_samples", [12_345, 1_000, 1])
@pytest.mark.parametrize("rate", [16_000, 22_050])
def test_mel_spectrogram_equals_librosa(rate, n_samples):
    signal = speech_like(n_samples)
    expected = librosa_mel(signal, rate)
    actual = mel_spectrogram(jnp.asarray(signal), rate)
    assert actual.shape == expected.shape == (128, 1 + n_samples // 512)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=RTOL)


@pytest.mark.optimised
@pytest.mark.parametrize("n_samples", [12_345, 1_000])
@pytest.mark.parametrize("pause", [0, 4_000])
def test_mfcc_equals_librosa(pause, n_samples):
    signal = np.concatenate([np.zeros(pause, np.float32), speech_like(n_samples)])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "n_fft=.* is too large for input signal", UserWarning)
        expected = librosa.feature.mfcc(y=signal.astype(np.float64), sr=RATE)
    actual = mfcc(jnp.asarray(signal), RATE)
    assert actual.shape == expected.shape == (20, 1 + signal.size // 512)
    # An orthonormal transform of 128 bands adds at most sqrt(128) of their errors.
    np.testing.assert_allclose(actual, expected, atol=DB_ATOL * np.sqrt(128))
    if pause:
        uncut = mfcc(jnp.asarray(signal), RATE, top_db=None)
        assert np.abs(uncut - expected).max() > 10, "the default cuts at 80 dB"


def test_other_settings_equal_librosa():
    signal = speech_like()
    config = distances.STFTConfig(512, 400, 160, pad_mode="reflect")
    settings = {"n_fft": 512, "win_length": 400, "hop_length": 160, "pad_mode": "reflect"}
    bands = librosa_mel(signal, n_mels=40, **settings)
    ours = mel_spectrogram(jnp.asarray(signal), RATE, n_mels=40, config=config)
    np.testing.assert_allclose(ours, bands, rtol=RTOL)
    expected = librosa.feature.mfcc(S=librosa.power_to_db(bands), n_mfcc=13)
    ours = mfcc(jnp.asarray(signal), RATE, n_mfcc=13, n_mels=40, config=config)
    np.testing.assert_allclose(ours, expected, atol=DB_ATOL * np.sqrt(40))


def test_mel_distance_equals_librosa():
    x, y = pair()
    expected = [
        np.mean(np.abs(decibel(librosa_mel(a)) - decibel(librosa_mel(b))))
        for a, b in zip(x, y, strict=True)
    ]
    actual = mel_distance(reference=x, estimate=y, sample_rate=RATE)
    np.testing.assert_allclose(actual, expected, atol=DB_ATOL)
    assert min(expected) > 1


def test_mfcc_distance_is_kubicheks_mel_cepstral_distance():
    x, y = pair()
    expected = []
    for a, b in zip(x, y, strict=True):
        # Natural cepstra c, where ln |H| = c_0 + sum c_k cos(k w) has half the log of the power.
        logs = [librosa.power_to_db(librosa_mel(z)) * np.log(10) / 20 for z in (a, b)]
        one, other = (np.asarray(scipy.fft.dct(z, type=2, axis=0))[1:20] / 128 for z in logs)
        euclidean = np.sqrt(np.sum((one - other) ** 2, axis=0))
        expected.append(np.mean(10 * np.sqrt(2) / np.log(10) * euclidean))
    actual = mfcc_distance(reference=x, estimate=y, sample_rate=RATE)
    np.testing.assert_allclose(actual, expected, atol=DB_ATOL)
    assert min(expected) > 1


def magnitude(signal, config, floor):
    spectrum = librosa.stft(
        signal.astype(np.float64),
        n_fft=config[0],
        win_length=config[1],
        hop_length=config[2],
        pad_mode="reflect",
    )
    return np.sqrt(np.maximum(np.abs(spectrum) ** 2, floor))


@pytest.mark.optimised
def test_multi_resolution_stft_equals_its_formula():
    x, y = pair()
    settings = [(1024, 600, 120), (2048, 1200, 240), (512, 240, 50)]
    expected = []
    for a, b in zip(x, y, strict=True):
        terms = []
        for config in settings:
            one, other = (magnitude(z, config, 1e-7) for z in (a, b))
            terms.append(np.linalg.norm(one - other) / np.linalg.norm(one))
            terms.append(np.mean(np.abs(np.log(one / other))))
        expected.append(sum(terms) / len(settings))
    actual = multi_resolution_stft(reference=x, estimate=y, sample_rate=RATE)
    # Means over tens of thousands of bins, each with 1e-7 of the frame's largest.
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


@pytest.mark.optimised
def test_log_spectral_distance_equals_its_formula():
    x, y = pair()
    expected = []
    for a, b in zip(x, y, strict=True):
        levels = [20 * np.log10(magnitude(z, (2048, 2048, 256), 1e-10)) for z in (a, b)]
        rms = np.sqrt(np.mean((levels[0] - levels[1]) ** 2, axis=0))
        expected.append(np.mean(rms))
    actual = log_spectral_distance(reference=x, estimate=y, sample_rate=RATE)
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


def test_what_half_the_amplitude_costs():
    # Loud, so that no bin in a hundred thousand meets a floor.
    x = 10 * speech_like()[None]
    kwargs = {"reference": x, "estimate": 0.5 * x, "sample_rate": RATE}
    half = 20 * np.log10(2)
    # Halving is exact in float32: what rounds is the logarithms, values up to 100 dB by 1e-5.
    for distance in (mel_distance, log_spectral_distance):
        np.testing.assert_allclose(distance(**kwargs), [half], atol=1e-4)
    np.testing.assert_allclose(mfcc_distance(**kwargs), [0], atol=1e-4)
    np.testing.assert_allclose(mfcc_distance(first_coefficient=0, **kwargs), [half], atol=1e-4)
    np.testing.assert_allclose(multi_resolution_stft(**kwargs), [0.5 + np.log(2)], atol=1e-4)
    # The residual is rounding, 1e-14 of the energy; the bound is 1e-10, and its logarithm 1e-5 off.
    np.testing.assert_allclose(si_sdr(**kwargs), [100], atol=1e-4)


@pytest.mark.parametrize("distance", [mel_distance, log_spectral_distance])
def test_silence_counts_as_the_floor(distance):
    x = speech_like()[None]
    silent = distance(reference=x, estimate=0 * x, sample_rate=RATE)
    faint = distance(reference=x, estimate=1e-12 * x, sample_rate=RATE)
    np.testing.assert_array_equal(silent, faint)
    assert silent[0] > 50, "from the noise's level, some -20 dB, down to -100 dB"


def si_sdr_float64(reference, estimate):
    """Le Roux et al. (2019), equation 3, of signals without their means."""
    x, y = (z.astype(np.float64) - z.mean(dtype=np.float64) for z in (reference, estimate))
    target = (x @ y) / (x @ x) * x
    return 10 * np.log10(np.sum(target**2) / np.sum((target - y) ** 2))


@pytest.mark.parametrize("offset", [0.0, 0.05])
@pytest.mark.parametrize("level", [-98, -60, 0, 60, 90, 95, 99])
def test_si_sdr_is_right_up_to_its_bounds(level, offset):
    x = speech_like(seed=1)
    noise = np.random.default_rng(4).normal(size=x.size)
    noise *= np.linalg.norm(x) / np.linalg.norm(noise) * 10 ** (-level / 20)
    y = (x + noise + offset).astype(np.float32)
    actual = si_sdr(reference=(x + np.float32(offset))[None], estimate=y[None], sample_rate=RATE)
    expected = si_sdr_float64(x + np.float32(offset), y)
    # float32 samples beside an offset as large as they are round by 1e-15 of the energy or so,
    # which is a hundred-thousandth of the smallest share. Where the signals are all but
    # orthogonal, their product is a sum of 1e4 terms that cancel down to 1e-5: 1 % of it.
    np.testing.assert_allclose(actual, [expected], atol=0.1 if level < -60 else 1e-3)


@pytest.mark.optimised
def test_si_sdr_equals_its_formula():
    x, y = pair()
    expected = [si_sdr_float64(a, b) for a, b in zip(x, y, strict=True)]
    actual = si_sdr(reference=x, estimate=y, sample_rate=RATE)
    # Energies are sums of 1e4 float32 squares: 1e-5 of each at most, 4e-5 dB.
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    shifted = si_sdr(reference=x + np.float32(0.1), estimate=-2 * y - 1, sample_rate=RATE)
    # An offset of 1 takes a digit from samples of 0.1.
    np.testing.assert_allclose(shifted, expected, atol=1e-3)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e-12])
def test_si_sdr_of_constants_is_the_lowest(value):
    x = speech_like()[None]
    constant = np.full_like(x, value)
    for reference, estimate in ((x, constant), (constant, x), (constant, constant)):
        score = si_sdr(reference=reference, estimate=estimate, sample_rate=RATE)
        np.testing.assert_allclose(score, [-100], atol=1e-2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: mfcc(x, RATE, n_mfcc=129), "n_mfcc 129 is not in 1..n_mels 128"),
        (lambda x: mfcc(x, RATE, n_mfcc=0), "n_mfcc 0 is not in"),
        (lambda x: mel_spectrogram(x, RATE, n_mels=0), "n_mels must be positive"),
        (lambda x: mel_spectrogram(x, 0), "a sample rate is positive"),
        (lambda x: mel_spectrogram(x[:0], RATE), "no samples"),
        (
            lambda x: mfcc_distance(
                reference=x[None], estimate=x[None], sample_rate=RATE, first_coefficient=20
            ),
            "first_coefficient 20 is not in 0..19",
        ),
        (
            lambda x: multi_resolution_stft(
                reference=x[None], estimate=x[None], sample_rate=RATE, resolutions=()
            ),
            "no resolutions",
        ),
    ],
)
def test_refuses_settings_without_meaning(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call(jnp.ones(600))


@pytest.mark.optimised
def test_features_have_derivatives_that_equal_finite_differences():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        signal, direction = (jnp.asarray(rng.normal(size=700)) for _ in range(2))
        config = distances.STFTConfig(256, 256, 64, pad_mode="constant")

        @jax.jit
        def feature(signal):
            coefficients = mfcc(signal, RATE, n_mfcc=13, n_mels=20, config=config)
            return jnp.sum(jnp.arange(1.0, coefficients.size + 1) * coefficients.ravel())

        step = 1e-6
        expected = (feature(signal + step * direction) - feature(signal - step * direction)) / 2e-6
        # In float64 the steps' squares are 1e-12 and the rounding 1e-10 of the sum.
        actual = jax.grad(feature)(signal) @ direction
        np.testing.assert_allclose(actual, expected, rtol=1e-6)
