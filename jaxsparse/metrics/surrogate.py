"""A differentiable surrogate of PESQ, for searching and for gradients; it is not PESQ.

Written from the published descriptions: ITU-T P.862 (2001), P.862.1, P.862.2 and P.48, and
Beerends, Hekstra, Rix and Hollier (2002), "PESQ, Part II: Psychoacoustic Model", J. Audio Eng. Soc.
50(10). The reference software was not consulted. What the descriptions leave to it comes from the
literature or is calibrated on speech: ``python -m train.surrogate`` fits `surrogate.json` to scores
of `pesq`, from the start values of `published`.

Otherwise than in PESQ, the signals count as aligned in time, the level is that of the part with
speech, and what steps there is a ramp here.
"""

import functools
import hashlib
import json
import math
from importlib import resources
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft
from jax import lax
from jaxtyping import Array, Float

from jaxsparse.hearing import bark_to_hertz, hertz_to_bark, threshold_in_quiet
from jaxsparse.metrics.contract import Batch, per_example
from jaxsparse.transforms.stft import STFTConfig, frame_signal, stft
from jaxsparse.types import Waveform

Band: TypeAlias = Literal["wb", "nb"]
Powers: TypeAlias = Float[Array, "T 49"]
Number: TypeAlias = Float[Array | np.ndarray, ""] | float | int

RATES = {"wb": (16_000,), "nb": (8_000, 16_000)}
# P.862, 10.2.1: frames of 32 ms, half overlapping, and at 16 kHz 49 bands up to 8 kHz.
BIN_HZ = 31.25
N_BANDS = 49
_TOP_BARK = float(hertz_to_bark(np.array([8_000.0]))[0])
# P.862, 10.1: the power between these frequencies is brought to 10^7 in units of 16-bit samples,
# and speech begins and ends where five of these sum up to more than 500.
_LEVEL_HZ = (350.0, 3_250.0)
_LEVEL = 1e7
_SPEECH_SUM = 500.0
# P.48, table 2: sensitivity of the intermediate reference system in receiving, in dB; below and
# above the table, as good as nothing.
_IRS_HZ = (
    *(0, 50, 100, 125, 160, 200, 250, 300, 400, 500, 600, 800, 1000, 1250, 1600, 2000),
    *(2500, 3000, 3500, 4000, 5000, 8000),
)
_IRS_DB = (
    *(-200, -40, -27.5, -18.8, -10.8, -2.7, 2.7, 6.4, 9.9, 11.3, 11.8, 12.3, 12.6, 12.5, 13.0),
    *(13.1, 13.1, 12.5, 3.9, -31.6, -54.9, -80),
)
# P.862.2: above this corner the wide band is taken as it is.
_CORNER_HZ = 100.0
# P.862, 10.2.6 to 10.2.11.
_AUDIBLE_SPEECH = 1e3
_TRANSFER_LIMITS = (1e-2, 1e2)
_GAIN_LIMITS = (3e-4, 5.0)
_SMOOTHING_TAPS = 8
_ASYMMETRY_LIMITS = (3.0, 12.0)
_DISTURBANCE_LIMIT = 45.0
# P.862, 10.2.14: windows of 20 frames, half overlapping, and the powers of the norms.
_WINDOW = 20
_WINDOW_POWER, _CLIP_POWER = 6.0, 2.0
# P.862.1 and P.862.2: slope and shift of the logistic that maps a raw score to MOS-LQO.
_MAPPING = {"wb": (1.3669, 3.8224), "nb": (1.4945, 4.6607)}
_LOWEST, _RANGE = 0.999, 4.0
_TINY = 1e-20
# Added to mean squares, so that silence has a finite gradient: 120 dB below the peak.
_SILENCE = 1e-12
_NO_PEAK = 1e-30
# TF32 would leave three digits of powers that are 80 dB apart.
_matmul = functools.partial(jnp.matmul, precision="highest")


class Calibration(NamedTuple):
    """What is calibrated; `published` has the start values.

    Attributes:
        level: Of the speech at the ear, dB.
        gain: Of each band beyond the input filter, dB.
        threshold: Of each band beyond Terhardt's threshold in quiet, dB.
        width: Natural logarithm of each band's weight over its width in Bark.
        exponent: Of Zwicker's loudness.
        loudness: Its scale.
        transfer_offset: Power that steadies the ratio of the spectra (10.2.6).
        gain_offset: Power that steadies the ratio of the frames' powers (10.2.7).
        gain_memory: Share of the frame before in the smoothed ratio.
        masking: Share of the softer loudness that hides a difference (10.2.9).
        asymmetry_power: Of the ratio of the powers (10.2.10).
        asymmetry_offset: Power that steadies it.
        frame_power: Of the norm over the bands (10.2.11).
        softness: Power of the frame's own power that divides its disturbance.
        symmetric: Weight of the symmetric disturbance in the raw score (10.2.16).
        asymmetric: Weight of the asymmetric one.
    """

    level: Float[Array, ""] | float
    gain: Float[Array, " 49"]
    threshold: Float[Array, " 49"]
    width: Float[Array, " 49"]
    exponent: Float[Array, ""] | float
    loudness: Float[Array, ""] | float
    transfer_offset: Float[Array, ""] | float
    gain_offset: Float[Array, ""] | float
    gain_memory: Float[Array, ""] | float
    masking: Float[Array, ""] | float
    asymmetry_power: Float[Array, ""] | float
    asymmetry_offset: Float[Array, ""] | float
    frame_power: Float[Array, ""] | float
    softness: Float[Array, ""] | float
    symmetric: Float[Array, ""] | float
    asymmetric: Float[Array, ""] | float


def published() -> Calibration:
    """Where a calibration starts, with zeros for the curves.

    Not checked against the documents' text: `loudness`, `transfer_offset`, `gain_offset`,
    `gain_memory` and `frame_power`, which may be customary rather than published.
    """
    zeros = jnp.zeros(N_BANDS)
    return Calibration(
        level=83.6,
        gain=zeros,
        threshold=zeros,
        width=zeros,
        exponent=0.23,
        loudness=0.187,
        transfer_offset=1000.0,
        gain_offset=5000.0,
        gain_memory=0.2,
        masking=0.25,
        asymmetry_power=1.2,
        asymmetry_offset=50.0,
        frame_power=2.0,
        softness=0.04,
        symmetric=0.1,
        asymmetric=0.0309,
    )


@functools.cache
def calibrated(band: Band) -> Calibration:
    """The calibration that ships with the package."""
    values = json.loads(_shipped())[band]["calibration"]
    # Of NumPy, since this may run while something is traced.
    arrays: dict[str, Any] = {name: np.asarray(v, np.float32) for name, v in values.items()}
    return Calibration(**arrays)


@functools.cache
def fingerprint() -> str:
    """Of the calibration that ships, for what must not be mixed with values of another."""
    return hashlib.sha256(_shipped()).hexdigest()[:12]


def _shipped() -> bytes:
    return (resources.files("jaxsparse.metrics") / "surrogate.json").read_bytes()


def pesq_surrogate(
    *,
    reference: Batch,
    estimate: Batch,
    sample_rate: int,
    band: Band = "wb",
    calibration: Calibration | None = None,
) -> Float[Array, " B"]:
    """What `pesq` would about say of clips that are aligned in time, as MOS-LQO from 1 to 4.64.

    Tables report `reference_pesq`; how far the two are apart is in ``results/device-metrics``.
    A silent clip has a value too, which means nothing.

    Args:
        reference: Originals.
        estimate: What is judged, of any level: both are brought to the same one.
        sample_rate: 16,000 Hz, or 8,000 Hz in narrow band.
        band: Wide (P.862.2) or narrow (P.862, mapped by P.862.1).
        calibration: By default the one that ships.

    Returns:
        A value per clip; NaN where a sample is not finite.

    Raises:
        ValueError: If the band is not defined at the sample rate, the clips are empty, or the
            shapes differ.
    """
    if sample_rate not in RATES.get(band, ()):
        raise ValueError(f"the surrogate in {band} is not defined at {sample_rate} Hz")
    return _surrogate(reference, estimate, calibration or calibrated(band), sample_rate, band)


@functools.partial(jax.jit, static_argnames=("sample_rate", "band"))
def _surrogate(
    reference: Batch, estimate: Batch, calibration: Calibration, sample_rate: int, band: Band
) -> Float[Array, " B"]:
    def one(x: Waveform, y: Waveform) -> Array:
        return score(*analyze(x, y, sample_rate, band), calibration, band)

    return per_example(one, reference, estimate)


def analyze(
    reference: Waveform, estimate: Waveform, sample_rate: int, band: Band
) -> tuple[Powers, Powers, Float[Array, " T"]]:
    """Both clips' powers in bands over their levels, and 1 in frames that count, else 0.

    P.862, 10.1.1 to 10.1.2 and 10.2.3 to 10.2.5. The frames are those from the reference's first
    speech to its last. Otherwise than there the level is that of these frames alone, so that what
    is outside, where nothing is judged, doesn't make the rest quieter.
    """
    config = _frames(sample_rate)
    x, y = (_receive(signal, sample_rate, band) for signal in (reference, estimate))
    speech = _speech_frames(x, config)

    def powers(heard: Waveform) -> Powers:
        spectrum = stft(heard, config)
        power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
        in_level = _level_weights(band, sample_rate)
        level = _matmul(_matmul(in_level, power), speech) / jnp.maximum(jnp.sum(speech), 1.0)
        bands = _matmul(power.T, _bands(config.n_bins))
        return bands / (level + _SILENCE * config.n_fft**2)

    return powers(x), powers(y), speech


def _frames(sample_rate: int) -> STFTConfig:
    n_fft = round(sample_rate / BIN_HZ)
    return STFTConfig(n_fft, n_fft, n_fft // 2, center=False)


def _receive(signal: Waveform, sample_rate: int, band: Band) -> Waveform:
    """What of a sound, its peak at 1, comes to the listener's ear."""
    # The result depends on no scale, and squares of what a network may put out overflow.
    peak = lax.stop_gradient(jnp.max(jnp.abs(signal)))
    signal = signal / jnp.where(peak > _NO_PEAK, peak, 1.0)
    # Beyond its end the filter's ringing finds zeros.
    n_fft = cast(int, scipy.fft.next_fast_len(signal.size + round(sample_rate / BIN_HZ), True))
    hertz = np.arange(n_fft // 2 + 1) * (sample_rate / n_fft)
    spectrum = jnp.fft.rfft(signal, n_fft) * _input_filter(band, hertz).astype(np.float32)
    return jnp.fft.irfft(spectrum, n_fft)[: signal.size]


def score(
    original: Powers,
    degraded: Powers,
    speech: Float[Array, " T"],
    calibration: Calibration,
    band: Band,
) -> Float[Array, ""]:
    """MOS-LQO, 1 to 4.64, from what `analyze` gives (P.862, 10.2.6 to 10.2.16, and its mapping)."""
    symmetric, asymmetric = disturbances(original, degraded, speech, calibration)
    raw = 4.5 - calibration.symmetric * _over_time(symmetric, speech)
    raw = raw - calibration.asymmetric * _over_time(asymmetric, speech)
    slope, shift = _MAPPING[band]
    return _LOWEST + _RANGE * jax.nn.sigmoid(slope * raw - shift)


def disturbances(
    original: Powers, degraded: Powers, speech: Float[Array, " T"], c: Calibration
) -> tuple[Float[Array, " T"], Float[Array, " T"]]:
    """Symmetric and asymmetric disturbance of each frame, 0 to 45 (P.862, 10.2.6 to 10.2.11)."""
    scale = 10 ** ((c.level + c.gain) / 10)
    quiet = jnp.asarray(_quiet()) * 10 ** (c.threshold / 10)
    original, degraded = original * scale[None, :], degraded * scale[None, :]
    original = original * _transfer(original, degraded, speech, quiet, c)[None, :]
    audible = jnp.sum(jnp.maximum(original - quiet[None, :], 0.0), axis=1)
    degraded = degraded * _gain(audible, degraded, quiet, c)[:, None]

    loudness = [_loudness(power, quiet, c) for power in (original, degraded)]
    difference = loudness[1] - loudness[0]
    hidden = c.masking * jnp.minimum(*loudness)
    heard = jnp.maximum(jnp.abs(difference) - hidden, 0.0)
    ratio = (degraded + c.asymmetry_offset) / (original + c.asymmetry_offset)
    asymmetry = ratio**c.asymmetry_power
    least, most = _ASYMMETRY_LIMITS
    # P.862 steps from 0 to the least; a ramp half to each side of it has a gradient.
    asymmetry = jnp.minimum(asymmetry, most) * jnp.clip(asymmetry - (least - 0.5), 0.0, 1.0)

    weight = jnp.exp(c.width) * (_TOP_BARK / N_BANDS)
    total = jnp.sum(weight)
    symmetric = _norm((heard * weight[None, :]) ** c.frame_power, total, c.frame_power) * total
    asymmetric = _matmul(heard * asymmetry, weight)
    softness = ((audible + 1e5) / 1e7) ** c.softness
    return (
        jnp.minimum(symmetric / softness, _DISTURBANCE_LIMIT),
        jnp.minimum(asymmetric / softness, _DISTURBANCE_LIMIT),
    )


def _transfer(
    original: Powers, degraded: Powers, speech: Array, quiet: Array, c: Calibration
) -> Float[Array, " 49"]:
    """How much louder each band is on average over the speech, in part (P.862, 10.2.6)."""
    frames = jnp.maximum(jnp.sum(speech), 1.0)

    def average(power: Array) -> Array:
        above = jnp.maximum(power - _AUDIBLE_SPEECH * quiet[None, :], 0.0)
        return _matmul(speech, above) / frames + c.transfer_offset

    return jnp.clip(average(degraded) / average(original), *_TRANSFER_LIMITS)


def _gain(audible: Array, degraded: Powers, quiet: Array, c: Calibration) -> Float[Array, " T"]:
    """Smoothed ratio of the frames' audible powers (P.862, 10.2.7)."""
    other = jnp.sum(jnp.maximum(degraded - quiet[None, :], 0.0), axis=1)
    ratio = jnp.clip((audible + c.gain_offset) / (other + c.gain_offset), *_GAIN_LIMITS)
    # A low-pass of the first order, whose memory is short enough for a few taps.
    past = jnp.pad(ratio, (_SMOOTHING_TAPS - 1, 0), mode="edge")
    taps = (1 - c.gain_memory) * c.gain_memory ** jnp.arange(_SMOOTHING_TAPS)
    return _matmul(frame_signal(past, _SMOOTHING_TAPS, 1, ratio.shape[0]), taps[::-1])


def _loudness(power: Powers, quiet: Array, c: Calibration) -> Powers:
    """Zwicker's law, in Sone per Bark (P.862, 10.2.8)."""
    # Below 4 Bark the exponent is a little larger, for recruitment.
    centre = (np.arange(N_BANDS, dtype=np.float32) + 0.5) * _TOP_BARK / N_BANDS
    larger = np.where(centre < 4, np.minimum(6 / (centre + 2), 2.0) ** 0.15, 1.0)
    exponent = c.exponent * larger.astype(np.float32)
    # Silence is at the threshold, where the law gives zero.
    above = jnp.maximum(power / quiet[None, :], 1.0)
    grown = (0.5 + 0.5 * above) ** exponent[None, :] - 1
    return c.loudness * ((quiet / 0.5) ** exponent)[None, :] * grown


def _over_time(disturbance: Float[Array, " T"], speech: Float[Array, " T"]) -> Float[Array, ""]:
    """Norms over windows of 20 frames, and over these (P.862, 10.2.14 and 10.2.15)."""
    half = _WINDOW // 2
    missing = max(-disturbance.shape[0] % half, _WINDOW - disturbance.shape[0])
    halves = jnp.pad((disturbance * speech) ** _WINDOW_POWER, (0, missing)).reshape(-1, half)
    spoken = jnp.pad(speech, (0, missing)).reshape(-1, half).max(axis=1)[:-1]
    summed = halves.sum(axis=1)
    windows = _norm((summed[:-1] + summed[1:])[:, None], _WINDOW, _WINDOW_POWER)
    frames = jnp.maximum(jnp.sum(spoken), 1.0)
    return _norm((windows**_CLIP_POWER * spoken)[None, :], frames, _CLIP_POWER)[0]


def _norm(powers: Float[Array, "R C"], n: Number, power: Number) -> Float[Array, " R"]:
    """The root of each row's mean over `n`, with a gradient of zero at zero."""
    mean = jnp.sum(powers, axis=1) / n
    some = mean > _TINY
    return jnp.where(some, jnp.where(some, mean, 1.0) ** (1 / power), 0.0)


def _speech_frames(heard: Waveform, config: STFTConfig) -> Float[Array, " T"]:
    """1 from the first frame that holds speech to the last one, else 0 (P.862, 10.2.3)."""
    size = jnp.abs(lax.stop_gradient(heard))
    level = jnp.sqrt(jnp.mean(jnp.square(size)) + _SILENCE)
    loud = jnp.convolve(size / level, jnp.ones(5), "same") > _SPEECH_SUM / math.sqrt(_LEVEL)
    n_frames = config.n_frames(heard.shape[0])
    loud = loud.astype(jnp.float32)
    spoken = frame_signal(loud, config.n_fft, config.hop_length, n_frames).any(axis=1)
    begun = jnp.cumsum(spoken) > 0
    left = jnp.cumsum(spoken[::-1])[::-1] > 0
    return (begun & left).astype(jnp.float32)


@functools.cache
def _bands(n_bins: int) -> np.ndarray:
    """The share of each bin in each band [F, 49]; bands are equally wide in Bark."""
    edges = bark_to_hertz(np.linspace(0, _TOP_BARK, N_BANDS + 1))
    low = (np.arange(n_bins) - 0.5)[:, None] * BIN_HZ
    shared = np.minimum(low + BIN_HZ, edges[None, 1:]) - np.maximum(low, edges[None, :-1])
    return (np.maximum(shared, 0) / BIN_HZ).astype(np.float32)


def _input_filter(band: Band, hertz: np.ndarray) -> np.ndarray:
    """What the listener's handset or headphone does to amplitudes at these frequencies."""
    if band == "nb":
        return 10 ** (np.interp(hertz, _IRS_HZ, _IRS_DB) / 20)
    return hertz**2 / np.sqrt(hertz**4 + _CORNER_HZ**4)


@functools.cache
def _level_weights(band: Band, sample_rate: int) -> np.ndarray:
    """Weights [F] of a frame's bins in the level, which is that of the sound before the filter."""
    hertz = np.arange(_frames(sample_rate).n_bins) * BIN_HZ
    inside = (hertz >= _LEVEL_HZ[0]) & (hertz <= _LEVEL_HZ[1])
    gain = np.where(inside, _input_filter(band, hertz), 1.0)
    return (inside / gain**2).astype(np.float32)


@functools.cache
def _quiet() -> np.ndarray:
    """Threshold in quiet of each band [49], as power over 0 dB (Terhardt 1979)."""
    centre = (np.arange(N_BANDS) + 0.5) * _TOP_BARK / N_BANDS
    return (10 ** (threshold_in_quiet(bark_to_hertz(centre)) / 10)).astype(np.float32)
