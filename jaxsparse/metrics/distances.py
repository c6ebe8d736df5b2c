"""Distances between waveforms in pure JAX, and the mel features that two of them are made of.

`mel_spectrogram` and `mfcc` take one signal. The distances take batches, as every metric does: NaN
for a clip with samples that are not finite, and finite gradients for all others whose samples are
below 1e15, of which float32 still holds the energy.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft
from jaxtyping import Array, Float

from jaxsparse.metrics.contract import Batch, check_rate, per_example
from jaxsparse.spectrogram import AMIN, log_power, power_to_db
from jaxsparse.transforms.stft import STFTConfig, stft
from jaxsparse.types import Spectrogram, Waveform

MEL_STFT = STFTConfig(n_fft=2048, win_length=2048, hop_length=512, pad_mode="constant")
"""librosa's settings of a mel spectrogram, whose ends are padded with zeros."""

RESOLUTIONS = (
    STFTConfig(n_fft=1024, win_length=600, hop_length=120),
    STFTConfig(n_fft=2048, win_length=1200, hop_length=240),
    STFTConfig(n_fft=512, win_length=240, hop_length=50),
)
"""Yamamoto, Song and Kim (2020), table 1."""

POWER_FLOOR = 1e-7
"""Smallest squared magnitude that `multi_resolution_stft` tells from zero."""

SI_SDR_EPS = 1e-10
"""Smallest share of the energy that `si_sdr` tells from nothing, which bounds it to 100 dB."""

# The mean of a constant is off by rounding: 1e-12 of the energy is ten times what is then left.
_SILENCE = 1e-20
_ROUNDING = 1e-12


@functools.lru_cache
def mel_filterbank(sample_rate: int, n_fft: int = 2048, n_mels: int = 128) -> np.ndarray:
    """Triangles of unit area on Slaney's mel scale, from 0 Hz to half the sample rate.

    ``librosa.filters.mel`` (Slaney, Auditory Toolbox, version 2, 1998), computed once for each
    setting. A triangle narrower than a bin may hold none and be all zeros, of which librosa warns,
    where `n_fft` is small for `n_mels`.

    Args:
        sample_rate: In Hz.
        n_fft: Samples of the Fourier transform.
        n_mels: Bands.

    Returns:
        [n_mels, 1 + n_fft // 2], float32, in 1/Hz.

    Raises:
        ValueError: If the sample rate or `n_mels` is not positive.
    """
    check_rate(sample_rate)
    if n_mels < 1:
        raise ValueError(f"n_mels must be positive, not {n_mels}")
    # Its import takes a second.
    import librosa.filters

    return librosa.filters.mel(sr=sample_rate, n_fft=n_fft, n_mels=n_mels)


@functools.lru_cache
def dct_matrix(n_coefficients: int, n_bands: int) -> np.ndarray:
    """The first rows of the orthonormal DCT-II, [n_coefficients, n_bands], float32."""
    identity = np.eye(n_bands)
    whole = np.asarray(scipy.fft.dct(identity, type=2, norm="ortho", axis=0))
    return whole[:n_coefficients].astype(np.float32)


@functools.partial(jax.jit, static_argnames=("sample_rate", "n_mels", "config"))
def mel_spectrogram(
    signal: Waveform, sample_rate: int, *, n_mels: int = 128, config: STFTConfig = MEL_STFT
) -> Float[Array, "n_mels T"]:
    """The power in mel bands, as ``librosa.feature.melspectrogram`` with its defaults.

    Args:
        signal: N samples, at least one.
        sample_rate: In Hz; static.
        n_mels: Bands; static.
        config: Settings of the transform; static.

    Returns:
        Power by band and frame, T = ``config.n_frames(N)``.

    Raises:
        ValueError: If the signal is empty, or the sample rate or `n_mels` not positive.
    """
    spectrum = stft(signal, config)
    power = spectrum.real**2 + spectrum.imag**2
    bank = mel_filterbank(sample_rate, config.n_fft, n_mels)
    # TF32 would leave three digits, next to bands 80 dB apart.
    return jnp.matmul(bank, power, precision=jax.lax.Precision.HIGHEST)


@functools.partial(jax.jit, static_argnames=("sample_rate", "n_mfcc", "n_mels", "config", "top_db"))
def mfcc(
    signal: Waveform,
    sample_rate: int,
    *,
    n_mfcc: int = 20,
    n_mels: int = 128,
    config: STFTConfig = MEL_STFT,
    top_db: float | None = 80.0,
) -> Float[Array, "n_mfcc T"]:
    """Mel-frequency cepstral coefficients, as ``librosa.feature.mfcc`` with its defaults.

    The orthonormal DCT-II of the mel spectrogram in dB (Davis and Mermelstein 1980).

    Args:
        signal: N samples, at least one.
        sample_rate: In Hz; static.
        n_mfcc: Coefficients, of which the first is the level; static.
        n_mels: Bands; static.
        config: Settings of the transform; static.
        top_db: Range kept below the clip's loudest band in dB; None keeps all; static.

    Returns:
        dB by coefficient and frame.

    Raises:
        ValueError: If the signal is empty, the sample rate or `n_mels` not positive, or `n_mfcc`
            not in 1 to `n_mels`.
    """
    if not 1 <= n_mfcc <= n_mels:
        raise ValueError(f"n_mfcc {n_mfcc} is not in 1..n_mels {n_mels}")
    bands = mel_spectrogram(signal, sample_rate, n_mels=n_mels, config=config)
    level = power_to_db(bands, amin=AMIN, top_db=top_db)
    return jnp.matmul(dct_matrix(n_mfcc, n_mels), level, precision=jax.lax.Precision.HIGHEST)


@functools.partial(jax.jit, static_argnames=("sample_rate", "n_mels", "config"))
def mel_distance(
    *,
    reference: Batch,
    estimate: Batch,
    sample_rate: int,
    n_mels: int = 128,
    config: STFTConfig = MEL_STFT,
) -> Float[Array, " B"]:
    """Mean absolute difference of log-power mel spectrograms in dB; 0 is the best.

    Powers below 1e-10 count as 1e-10, and nothing else is cut. A gain of g dB on the estimate costs
    g dB; one on both costs nothing, above that floor.

    Args:
        reference: Originals.
        estimate: What is judged.
        sample_rate: In Hz; static.
        n_mels: Bands; static.
        config: Settings of the transform; static.

    Raises:
        ValueError: If the shapes differ, the clips are empty, or the sample rate or `n_mels` is
            not positive.
    """
    check_rate(sample_rate)

    def level(signal: Waveform) -> Spectrogram:
        bands = mel_spectrogram(signal, sample_rate, n_mels=n_mels, config=config)
        return power_to_db(bands, amin=AMIN, top_db=None)

    def one(x: Waveform, y: Waveform) -> Float[Array, ""]:
        return jnp.mean(jnp.abs(level(y) - level(x)))

    return per_example(one, reference, estimate)


@functools.partial(
    jax.jit,
    static_argnames=("sample_rate", "n_mfcc", "n_mels", "config", "top_db", "first_coefficient"),
)
def mfcc_distance(
    *,
    reference: Batch,
    estimate: Batch,
    sample_rate: int,
    n_mfcc: int = 20,
    n_mels: int = 128,
    config: STFTConfig = MEL_STFT,
    top_db: float | None = 80.0,
    first_coefficient: int = 1,
) -> Float[Array, " B"]:
    r"""Mel-cepstral distance in dB, averaged over frames; 0 is the best.

    .. math:: \frac1T \sum_t \sqrt{\frac1M \sum_{k=1}^{K-1} (c_{kt} - \hat c_{kt})^2}

    with `mfcc`'s coefficients, M = `n_mels`, K = `n_mfcc`. By Parseval this is the rms difference
    in dB of two smoothed log mel spectra, which is what the factor :math:`10 \sqrt2 / \ln 10` makes
    of the Euclidean distance between natural cepstra (Kubichek 1993, Mel-cepstral distance measure
    for objective speech quality assessment). As there, coefficient 0, the frame's level, is left
    out: a gain on the estimate costs nothing while no band is below the floor of 1e-10.

    Args:
        reference: Originals.
        estimate: What is judged.
        sample_rate: In Hz; static.
        n_mfcc: Coefficients; static.
        n_mels: Bands; static.
        config: Settings of the transform; static.
        top_db: Range kept below each clip's loudest band in dB; None keeps all; static.
        first_coefficient: 0 to have the level count too; static.

    Raises:
        ValueError: If the shapes differ, the clips are empty, the sample rate or `n_mels` is not
            positive, `n_mfcc` is not in 1 to `n_mels`, or `first_coefficient` not below `n_mfcc`.
    """
    check_rate(sample_rate)
    if not 0 <= first_coefficient < n_mfcc:
        raise ValueError(f"first_coefficient {first_coefficient} is not in 0..{n_mfcc - 1}")

    def cepstrum(signal: Waveform) -> Float[Array, "K T"]:
        coefficients = mfcc(
            signal, sample_rate, n_mfcc=n_mfcc, n_mels=n_mels, config=config, top_db=top_db
        )
        return coefficients[first_coefficient:]

    def one(x: Waveform, y: Waveform) -> Float[Array, ""]:
        squared = jnp.sum(jnp.square(cepstrum(y) - cepstrum(x)), axis=0)
        return jnp.mean(_root(squared / n_mels))

    return per_example(one, reference, estimate)


@functools.partial(jax.jit, static_argnames=("sample_rate", "resolutions"))
def multi_resolution_stft(
    *,
    reference: Batch,
    estimate: Batch,
    sample_rate: int,
    resolutions: tuple[STFTConfig, ...] = RESOLUTIONS,
) -> Float[Array, " B"]:
    r"""Spectral convergence plus log-magnitude distance, averaged over resolutions; 0 is the best.

    .. math::
        \frac{\lVert |X| - |Y| \rVert_F}{\lVert |X| \rVert_F}
        + \frac{1}{FT} \lVert \ln |X| - \ln |Y| \rVert_1

    with X of the reference (Yamamoto, Song and Kim 2020, Parallel WaveGAN), without unit.
    Squared magnitudes below 1e-7 count as 1e-7, so that silence has a norm and a logarithm.
    A gain on both costs nothing, above that floor.

    Args:
        reference: Originals.
        estimate: What is judged.
        sample_rate: In Hz, for the common signature alone: the windows are in samples, and the
            paper's are meant for 24 kHz.
        resolutions: Settings of the transforms; static.

    Raises:
        ValueError: If the shapes differ, the clips are empty, there is no resolution, or the sample
            rate is not positive.
    """
    check_rate(sample_rate)
    if not resolutions:
        raise ValueError("no resolutions to average over")

    def magnitude(signal: Waveform, config: STFTConfig) -> Spectrogram:
        spectrum = stft(signal, config)
        return jnp.sqrt(jnp.maximum(spectrum.real**2 + spectrum.imag**2, POWER_FLOOR))

    def one(x: Waveform, y: Waveform) -> Float[Array, ""]:
        terms = []
        for config in resolutions:
            original, rebuilt = magnitude(x, config), magnitude(y, config)
            error = jnp.sum(jnp.square(original - rebuilt))
            convergence = _root(error) / jnp.sqrt(jnp.sum(jnp.square(original)))
            terms.append(convergence + jnp.mean(jnp.abs(jnp.log(original) - jnp.log(rebuilt))))
        return jnp.mean(jnp.stack(terms))

    return per_example(one, reference, estimate)


@functools.partial(jax.jit, static_argnames=("sample_rate", "config"))
def log_spectral_distance(
    *,
    reference: Batch,
    estimate: Batch,
    sample_rate: int,
    config: STFTConfig = STFTConfig(),
) -> Float[Array, " B"]:
    """Rms difference over bins of log-power spectra in dB, averaged over frames; 0 is the best.

    The rms log spectral measure of Gray and Markel (1976, Distance measures for speech processing),
    of short-time spectra. Powers below 1e-10 count as 1e-10. A gain of g dB on the estimate costs
    g dB; one on both costs nothing, above that floor.

    Args:
        reference: Originals.
        estimate: What is judged.
        sample_rate: In Hz, for the common signature alone: the windows are in samples.
        config: Settings of the transform; static.

    Raises:
        ValueError: If the shapes differ, the clips are empty or the sample rate is not positive.
    """
    check_rate(sample_rate)

    def one(x: Waveform, y: Waveform) -> Float[Array, ""]:
        original, rebuilt = (log_power(stft(z, config), top_db=None) for z in (x, y))
        return jnp.mean(_root(jnp.mean(jnp.square(rebuilt - original), axis=0)))

    return per_example(one, reference, estimate)


@functools.partial(jax.jit, static_argnames="sample_rate")
def si_sdr(*, reference: Batch, estimate: Batch, sample_rate: int) -> Float[Array, " B"]:
    """Scale-invariant signal-to-distortion ratio in dB, -100 to 100; the higher the better.

    Le Roux, Wisdom, Erdogan and Hershey (2019), SDR: half-baked or well done, after the mean of
    either signal is removed. The shares of the estimate's energy along the reference and across it
    count as 1e-10 where they are less, so that identical signals reach 100 dB. Silence, as any
    constant is, has no share along anything: -100 dB, for a silent estimate too.

    Args:
        reference: Originals.
        estimate: What is judged.
        sample_rate: In Hz, for the common signature alone.

    Raises:
        ValueError: If the shapes differ, the clips are empty or the sample rate is not positive.
    """
    check_rate(sample_rate)

    def one(x: Waveform, y: Waveform) -> Float[Array, ""]:
        (original, heard), (rebuilt, made) = _unit(x), _unit(y)
        along = jnp.sum(original * rebuilt)
        rest = rebuilt - along * original
        # The sum above is rounded by up to 1e-5, 1e-10 of the energy; what that left is taken out.
        rest = rest - jnp.sum(original * rest) * original
        sound = heard & made
        share = jnp.where(sound, jnp.square(along), 0.0)
        across = jnp.where(sound, jnp.sum(jnp.square(rest)), 1.0)
        return 10.0 * (_log_share(share) - _log_share(across))

    return per_example(one, reference, estimate)


def _log_share(share: Float[Array, ""]) -> Float[Array, ""]:
    """The decimal logarithm of a share of the energy, of 1e-10 at least."""
    return jnp.log10(jnp.maximum(share, SI_SDR_EPS))


def _unit(signal: Waveform) -> tuple[Waveform, Array]:
    """The signal without its mean at a norm of 1, and whether it is more than silence."""
    centred = signal - jnp.mean(signal)
    # Rounding leaves a mean of its own.
    centred = centred - jnp.mean(centred)
    energy = jnp.sum(jnp.square(centred))
    heard = energy > _SILENCE + _ROUNDING * jnp.sum(jnp.square(signal))
    return centred / jnp.sqrt(jnp.where(heard, energy, 1.0)), heard


def _root(x: Array) -> Array:
    """The square root, with a gradient of 0 at 0."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)
