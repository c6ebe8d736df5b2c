import dataclasses
import warnings

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import reference
import scipy.signal
from jax.test_util import check_grads

from jaxsparse.transforms.stft import STFTConfig, griffin_lim, istft, stft, window_sum

strict = pytest.mark.usefixtures("strict_dtypes")

GRID = [
    STFTConfig(512, 512, 128),
    STFTConfig(512, 400, 100, "hamming"),
    STFTConfig(512, 301, 77, "blackman"),
    STFTConfig(501, 300, 61, "hann", True, "constant"),
    STFTConfig(333, 333, 333, "boxcar"),
    STFTConfig(256, 256, 200),
    STFTConfig(128, 128, 9, "hann"),
    STFTConfig(256, 256, 300, "hamming", True, "constant"),
    STFTConfig(512, 512, 128, "hann", False),
    STFTConfig(501, 400, 99, "hamming", False),
]
# Wherever the squared windows add up to this share of their maximum, dividing by them costs at
# most two digits of float32.
WELL_COVERED = 1e-2


def noise(n_samples, seed=0):
    return np.random.default_rng(seed).standard_normal(n_samples).astype(np.float32)


def librosa_settings(config):
    return {
        "n_fft": config.n_fft,
        "hop_length": config.hop_length,
        "win_length": config.win_length,
        "window": config.window,
        "center": config.center,
    }


def assert_close(actual, desired, tolerance=1e-5):
    """The largest difference, relative to the largest value."""
    assert actual.shape == desired.shape
    assert np.abs(np.asarray(actual) - desired).max() <= tolerance * np.abs(desired).max()


def covered(config, n_frames, length):
    total = window_sum(config, n_frames)[config.n_fft // 2 if config.center else 0 :][:length]
    return np.pad(total, (0, length - len(total))) > WELL_COVERED * total.max()


@pytest.mark.optimised
@strict
@pytest.mark.parametrize("n_samples", [2400, 2049])
@pytest.mark.parametrize("config", GRID, ids=str)
def test_stft_equals_librosa(config, n_samples):
    signal = noise(n_samples)
    expected = librosa.stft(
        signal.astype(np.float64), pad_mode=config.pad_mode, **librosa_settings(config)
    )
    spectrum = stft(jnp.asarray(signal), config)
    assert spectrum.dtype == jnp.complex64
    assert spectrum.shape == (config.n_bins, config.n_frames(n_samples))
    assert_close(spectrum, expected)


@pytest.mark.optimised
@strict
@pytest.mark.parametrize("config", GRID, ids=str)
def test_istft_of_any_spectrum_equals_librosa(config):
    # Not the spectrum of any signal, so that frames disagree where they overlap.
    length = 2049
    shape = (config.n_bins, config.n_frames(length))
    spectrum = (noise(shape) + 1j * noise(shape, 1)).astype(np.complex64)
    expected = librosa.istft(
        spectrum.astype(np.complex128), length=length, **librosa_settings(config)
    )
    signal = istft(jnp.asarray(spectrum), config, length=length)
    where = covered(config, shape[1], length)
    assert where.mean() > 0.7
    assert_close(signal[where], expected[where])


@pytest.mark.optimised
@strict
@pytest.mark.parametrize("config", GRID, ids=str)
def test_round_trip(config):
    signal = noise(2049)
    spectrum = stft(jnp.asarray(signal), config)
    back = np.asarray(istft(spectrum, config, length=signal.size))
    where = covered(config, spectrum.shape[1], signal.size)
    if config.center and 4 * config.hop_length <= config.win_length:
        assert where.all()
    assert_close(back[where], signal[where])


def test_round_trip_fails_where_it_must():
    signal = jnp.asarray(noise(4000))
    apart = STFTConfig(256, 256, 300, "hamming")
    back = istft(stft(signal, apart), apart, length=4000)
    # Every frame is whole, and between two of them 44 samples are lost.
    unreached = np.tile(np.arange(300), 14)[:4000]
    unreached = (unreached >= 128) & (unreached < 172)
    assert np.all(np.asarray(back)[unreached] == 0)
    assert_close(np.asarray(back)[~unreached], np.asarray(signal)[~unreached])
    right, wrong = STFTConfig(256, 256, 64), STFTConfig(256, 256, 64, "hamming")
    assert jnp.abs(istft(stft(signal, right), wrong, length=4000) - signal).max() > 1e-2
    shifted = stft(signal, right).at[:, 10].multiply(1.01)
    assert jnp.abs(istft(shifted, right, length=4000) - signal).max() > 1e-3


@pytest.mark.optimised
def test_the_default_makes_1025_by_302_of_the_longest_clip_and_gives_it_back():
    signal = noise(77_276)
    spectrum = stft(jnp.asarray(signal))
    assert spectrum.shape == (1025, 302)
    expected = librosa.stft(
        signal.astype(np.float64), n_fft=2048, hop_length=256, pad_mode="reflect"
    )
    assert_close(spectrum, expected)
    assert_close(np.asarray(istft(spectrum, length=77_276)), signal)


@pytest.mark.parametrize("center", [True, False])
def test_istft_is_exact_about_length(center):
    config = STFTConfig(128, 128, 32, center=center)
    spectrum = stft(jnp.asarray(noise(1001)), config)
    whole = istft(spectrum, config, length=992)
    assert whole.shape == (992,)
    for length in (1, 991):
        shorter = istft(spectrum, config, length=length)
        assert shorter.shape == (length,)
        assert_close(shorter, whole[:length], 1e-6)
    longer = istft(spectrum, config, length=3000)
    assert longer.shape == (3000,)
    assert_close(longer[:992], whole, 1e-6)
    assert not longer[1001 + 128 :].any()
    assert istft(spectrum, config, length=0).shape == (0,)


@pytest.mark.parametrize("pad_mode", ["reflect", "constant", "edge"])
@pytest.mark.parametrize("n_samples", [1, 2, 20, 64, 65, 129])
def test_signals_shorter_than_a_frame(n_samples, pad_mode):
    config = STFTConfig(128, 100, 32, pad_mode=pad_mode)
    signal = noise(n_samples)
    window = scipy.signal.get_window("hann", 100)
    # Those shorter than half a frame are reflected to and fro.
    expected = reference.stft(signal, window, 128, 32, center=True, pad_mode=pad_mode)
    spectrum = stft(jnp.asarray(signal), config)
    assert spectrum.shape == (65, 1 + n_samples // 32)
    assert_close(spectrum, expected)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "n_fft=.* is too large for input signal", UserWarning)
        theirs = librosa.stft(
            signal.astype(np.float64), pad_mode=pad_mode, **librosa_settings(config)
        )
    assert_close(spectrum, theirs)
    assert_close(np.asarray(istft(spectrum, config, length=n_samples)), signal)


def test_a_signal_shorter_than_an_uncentred_frame_is_zero_padded_to_one():
    config = STFTConfig(128, 128, 32, center=False)
    signal = noise(50)
    window = scipy.signal.get_window("hann", 128)
    expected = reference.stft(signal, window, 128, 32, center=False, pad_mode="constant")
    assert_close(stft(jnp.asarray(signal), config), expected)


def test_refuses_what_has_no_transform():
    with pytest.raises(ValueError, match="no samples"):
        stft(jnp.zeros(0))
    with pytest.raises(ValueError, match="100 bins"):
        istft(jnp.zeros((100, 3), jnp.complex64), length=10)
    for name, value in {"win_length": 0, "hop_length": 0, "n_fft": 0}.items():
        with pytest.raises(ValueError, match="is not"):
            dataclasses.replace(STFTConfig(), **{name: value})
    with pytest.raises(ValueError, match="is not"):
        STFTConfig(win_length=4096)


def test_vmap_equals_loop():
    config = STFTConfig(128, 128, 32)
    signals = jnp.asarray(noise((3, 500)))
    spectra = jax.vmap(lambda signal: stft(signal, config))(signals)
    one_by_one = np.stack([stft(signal, config) for signal in signals])
    assert_close(spectra, one_by_one, 1e-6)
    back = jax.vmap(lambda spectrum: istft(spectrum, config, length=500))(spectra)
    assert_close(back, np.asarray(signals))


@pytest.mark.optimised
def test_gradients_equal_finite_differences():
    config = STFTConfig(32, 24, 7)
    with jax.enable_x64(True):
        signal = jnp.asarray(np.random.default_rng(0).standard_normal(61))
        spectrum = stft(signal, config)

        def energy(signal):
            spectrum = stft(signal, config)
            weight = jnp.arange(1.0, spectrum.size + 1).reshape(spectrum.shape)
            return jnp.sum(weight * (spectrum.real**2 + spectrum.real * spectrum.imag**3))

        def shape(real, imaginary):
            signal = istft(real + 1j * imaginary, config, length=61)
            return jnp.sum(jnp.arange(61.0) * signal**3)

        check_grads(jax.jit(energy), (signal,), order=1, rtol=1e-6)
        check_grads(jax.jit(shape), (spectrum.real, spectrum.imag), order=1, rtol=1e-6)


def test_is_made_of_no_convolution_and_no_loop():
    config = STFTConfig(128, 128, 32)

    def there_and_back(signal):
        return istft(stft(signal, config), config, length=signal.shape[0])

    short = reference.primitives(there_and_back, jnp.zeros(640))
    long = reference.primitives(there_and_back, jnp.zeros(6400))
    assert "fft" in short
    assert not {"conv_general_dilated", "scan", "while", "gather", "scatter-add"} & set(short)
    assert short == long, "as many operations for ten times the frames"
    kernel = jnp.ones(3)
    assert "conv_general_dilated" in reference.primitives(jnp.convolve, jnp.zeros(9), kernel)


CONFIG = STFTConfig(256, 256, 64)


def tones():
    time = np.arange(4000) / 16_000
    glide = np.sin(2 * np.pi * (300 * time + 1500 * time**2))
    return (glide + 0.5 * np.sin(2 * np.pi * 3100 * time) + 0.05 * noise(4000)).astype(np.float32)


def convergence(magnitude, waveform):
    rebuilt = jnp.abs(stft(waveform, CONFIG))
    return float(jnp.linalg.norm(magnitude - rebuilt) / jnp.linalg.norm(magnitude))


@pytest.mark.optimised
def test_griffin_lim_equals_librosa_from_zero_phase():
    magnitude = jnp.abs(stft(jnp.asarray(tones()), CONFIG))
    ours = griffin_lim(magnitude, CONFIG, length=4000, n_iterations=8)
    theirs = librosa.griffinlim(
        np.asarray(magnitude, np.float64),
        n_iter=8,
        init=None,
        momentum=0.99,
        length=4000,
        pad_mode="reflect",
        hop_length=64,
    )
    # Rounding grows from round to round, where a bin's magnitude is next to nothing.
    assert_close(ours, theirs, 1e-3)


@pytest.mark.parametrize("key", [None, 3])
def test_griffin_lim_comes_closer_with_every_round(key):
    magnitude = jnp.abs(stft(jnp.asarray(tones()), CONFIG))
    start = None if key is None else jax.random.key(key)

    def after(n_iterations, momentum=0.99):
        return convergence(
            magnitude,
            griffin_lim(
                magnitude,
                CONFIG,
                length=4000,
                n_iterations=n_iterations,
                momentum=momentum,
                key=start,
            ),
        )

    rounds = [after(n) for n in (0, 8, 64)]
    assert rounds == sorted(rounds, reverse=True)
    assert rounds[-1] < 0.75 * rounds[1]
    if key is None:
        assert rounds[-1] < after(64, momentum=0.0), "momentum is what makes it fast"


def test_griffin_lim_starts_where_the_key_says():
    magnitude = jnp.abs(stft(jnp.asarray(tones()), CONFIG))

    def start(key):
        return griffin_lim(magnitude, CONFIG, length=4000, n_iterations=0, key=key)

    real = istft(magnitude.astype(jnp.complex64), CONFIG, length=4000)
    np.testing.assert_allclose(start(None), real, atol=1e-6)
    first, again, other = (start(jax.random.key(k)) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert jnp.abs(first - other).max() > 0.1
    assert jnp.abs(first - real).max() > 0.1


def test_griffin_lim_holds_known_bins(key):
    signal = jnp.asarray(tones())
    spectrum = stft(signal, CONFIG)
    magnitude = jnp.abs(spectrum)
    known_mask = jax.random.bernoulli(key, 0.3, spectrum.shape)
    junk = jnp.where(known_mask, spectrum, jnp.nan)

    def rebuild(known_mask, known, magnitude=magnitude):
        return griffin_lim(
            magnitude, CONFIG, length=4000, n_iterations=84, known=known, known_mask=known_mask
        )

    held = rebuild(known_mask, junk)
    free = griffin_lim(magnitude, CONFIG, length=4000, n_iterations=84)
    assert jnp.linalg.norm(held - signal) < 0.1 * jnp.linalg.norm(signal)
    assert jnp.linalg.norm(free - signal) > 0.5 * jnp.linalg.norm(signal)
    none_known = rebuild(jnp.zeros_like(known_mask), jnp.full_like(spectrum, jnp.nan))
    np.testing.assert_allclose(none_known, free, atol=1e-5)
    # With all bins known, the magnitudes say nothing.
    all_known = rebuild(jnp.ones_like(known_mask), spectrum, jnp.zeros_like(magnitude))
    np.testing.assert_allclose(all_known, signal, atol=1e-5)


def test_griffin_lim_wants_known_bins_and_their_mask_together():
    with pytest.raises(ValueError, match="together"):
        griffin_lim(jnp.ones((129, 4)), CONFIG, length=200, known=jnp.ones((129, 4), jnp.complex64))


def test_griffin_lim_of_silence_is_silence():
    silence = griffin_lim(jnp.zeros((129, 63)), CONFIG, length=4000, n_iterations=8)
    np.testing.assert_array_equal(silence, jnp.zeros(4000))
