"""Short-time objective intelligibility, and its extended form, on the device.

What the package `pystoi` computes, within the rounding of float32, and differentiable.
"""

import functools
import math
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, PyTree

from jaxsparse.metrics.contract import Batch, check_rate, per_example
from jaxsparse.transforms.stft import frame_signal, overlap_add
from jaxsparse.types import Waveform

Envelopes: TypeAlias = Float[Array, "bands T"]

RATE = 10_000
FRAME_LENGTH = 256
HOP_LENGTH = 128
N_FFT = 512
N_BANDS = 15
LOWEST_CENTRE = 150.0
SEGMENT_FRAMES = 30
DYNAMIC_RANGE_DB = 40.0
LOWEST_SDR_DB = -15.0
UNDEFINED = 1e-5

# Energies of signals whose level is about 1; far below float32's rounding, far above its underflow.
_NO_ENERGY = 1e-24
_NO_PEAK = 1e-30
# Of the peak: the square of what is so much louder fits into float32.
_LEAST_LEVEL = 1e-12


def stoi(*, reference: Batch, estimate: Batch, sample_rate: int) -> Float[Array, " B"]:
    """Short-time objective intelligibility (Taal et al. 2011), at most 1, the higher the better.

    Frames 40 dB below the reference's loudest are left out; clips with fewer than 31 others
    (0.41 s) get 1e-5, silent clips 0, both without a gradient. The gradient with respect to
    `reference` takes the choice of frames as given.

    Args:
        reference: The clean speech, B clips of N samples.
        estimate: The processed speech, as long.
        sample_rate: In Hz; clips are resampled to 10 kHz.

    Returns:
        One value per clip; NaN for clips with samples that are not finite.

    Raises:
        ValueError: If the shapes differ, the clips are empty or the rate is not positive.
    """
    return _scores(reference, estimate, sample_rate, extended=False)


def estoi(*, reference: Batch, estimate: Batch, sample_rate: int) -> Float[Array, " B"]:
    """Extended short-time objective intelligibility (Jensen and Taal 2016), for fluctuating noise.

    As `stoi`, with whole spectrograms of 384 ms correlated in place of single bands. Where a
    band of the estimate is exactly zero for that long, `pystoi` correlates random numbers; here
    that band adds nothing.

    Args:
        reference: The clean speech, B clips of N samples.
        estimate: The processed speech, as long.
        sample_rate: In Hz; clips are resampled to 10 kHz.

    Returns:
        One value per clip; NaN for clips with samples that are not finite.

    Raises:
        ValueError: If the shapes differ, the clips are empty or the rate is not positive.
    """
    return _scores(reference, estimate, sample_rate, extended=True)


@functools.partial(jax.jit, static_argnames=("sample_rate", "extended"))
def _scores(
    reference: Batch, estimate: Batch, sample_rate: int, *, extended: bool
) -> Float[Array, " B"]:
    check_rate(sample_rate)
    score = functools.partial(intelligibility, sample_rate=sample_rate, extended=extended)
    return per_example(score, reference, estimate)


def intelligibility(
    reference: Waveform, estimate: Waveform, *, sample_rate: int, extended: bool = False
) -> Float[Array, ""]:
    """STOI, or ESTOI where `extended`, of one clip, in the precision that the clip has.

    Args:
        reference: N finite samples.
        estimate: N finite samples.
        sample_rate: In Hz.
        extended: Whether rows and columns of the segments are normalized (ESTOI).
    """
    x, y = (resample(_unit_level(signal), sample_rate) for signal in (reference, estimate))
    # The last frame is left out when it ends with the signal, here and in the shortened signal.
    n_frames = -(-(x.shape[0] - FRAME_LENGTH) // HOP_LENGTH)
    if n_frames <= SEGMENT_FRAMES:
        return jnp.full((), UNDEFINED, x.dtype)
    kept = _audible_frames(x, n_frames)
    x, y = (_band_envelopes(_compacted(z, kept)) for z in (x, y))
    correlation = (_spectral_correlation if extended else _temporal_correlation)(x, y)
    n_segments = jnp.sum(kept) - SEGMENT_FRAMES
    counted = jnp.arange(n_frames - SEGMENT_FRAMES) < n_segments
    total = jnp.sum(jnp.where(counted, correlation, 0.0))
    return jnp.where(n_segments > 0, total / jnp.maximum(n_segments, 1), UNDEFINED)


def _unit_level(signal: Waveform) -> Waveform:
    """Scales to about 1 as if by a constant, since the scores don't depend on it.

    By the median over frames: beside a peak that is 1e10 times as loud, as a network may put out,
    float32 would lose the others' powers.
    """
    size = lax.stop_gradient(jnp.abs(signal))
    whole = jnp.pad(size, (0, -size.size % FRAME_LENGTH)).reshape(-1, FRAME_LENGTH)
    level = jnp.maximum(jnp.median(jnp.max(whole, axis=1)), _LEAST_LEVEL * jnp.max(size))
    return signal / jnp.where(level > _NO_PEAK, level, 1.0)


def resample(signal: Waveform, sample_rate: int) -> Float[Array, " resampled"]:
    """Resamples to 10 kHz by a polyphase filter; beyond its ends the signal is zero.

    Output n is ``sum_j h[n * down - j * up] * signal[j]`` with h of `antialiasing_filter`. Runs
    of outputs are frames of the input times a banded matrix.

    Args:
        signal: N samples.
        sample_rate: Of `signal`, in Hz.

    Returns:
        ``ceil(N * 10000 / sample_rate)`` samples.
    """
    if sample_rate == RATE:
        return signal
    up, down = _ratio(sample_rate)
    length = -(-signal.shape[0] * up // down)
    padding, hop_length, blocks = _resampling_blocks(sample_rate)
    n_frames = -(-length // sum(matrix.shape[1] for _, matrix in blocks))
    padded = jnp.pad(signal, (padding, 0))
    outputs = [
        jnp.matmul(
            frame_signal(padded[start:], matrix.shape[0], hop_length, n_frames),
            jnp.asarray(matrix, signal.dtype),
            precision="highest",
        )
        for start, matrix in blocks
    ]
    return jnp.ravel(jnp.concatenate(outputs, axis=1))[:length]


def _ratio(sample_rate: int) -> tuple[int, int]:
    divisor = math.gcd(RATE, sample_rate)
    return RATE // divisor, sample_rate // divisor


def antialiasing_filter(up: int, down: int) -> np.ndarray:
    """The low-pass filter of a resampling by ``up / down``, at `up` times the input's rate.

    Kaiser's design (Oppenheim and Schafer, Discrete-Time Signal Processing, section 7.5.3) with
    60 dB of attenuation and a transition a tenth as wide as the pass band.

    Args:
        up: Factor of the rate, without common divisor with `down`.
        down: Divisor of the rate.

    Returns:
        An odd number of float64 taps whose sum is `up`.
    """
    attenuation = 60.0
    cutoff = 1 / (2 * max(up, down))
    half = math.ceil((attenuation - 8) / (28.714 * cutoff / 10))
    window = np.kaiser(2 * half + 1, 0.1102 * (attenuation - 8.7))
    taps = window * np.sinc(2 * cutoff * np.arange(-half, half + 1))
    return up * taps / np.sum(taps)


@functools.lru_cache
def _resampling_blocks(sample_rate: int) -> tuple[int, int, tuple[tuple[int, np.ndarray], ...]]:
    """Zeros before the input, its samples per frame, and the blocks of outputs of a frame.

    A block is the first sample of its inputs and the matrix [inputs, outputs]; its outputs
    together span about the length of the filter, so that half of the matrix is used.
    """
    up, down = _ratio(sample_rate)
    taps = antialiasing_filter(up, down)
    half = taps.size // 2
    outputs_per_filter = taps.size // down + 1
    periods = max(outputs_per_filter // up, 1)
    outputs = np.arange(periods * up)
    padding = half // up
    blocks = []
    for block in np.array_split(outputs, -(-outputs.size // outputs_per_filter)):
        first = -((half - int(block[0]) * down) // up)
        last = (half + int(block[-1]) * down) // up
        inputs = np.arange(first, last + 1)
        tap = half + block[None, :] * down - inputs[:, None] * up
        inside = (tap >= 0) & (tap < taps.size)
        matrix = np.where(inside, taps[np.clip(tap, 0, taps.size - 1)], 0.0)
        blocks.append((padding + first, matrix))
    return padding, periods * down, tuple(blocks)


@functools.lru_cache
def _window() -> np.ndarray:
    """Hann without its zeros."""
    return np.hanning(FRAME_LENGTH + 2)[1:-1]


@functools.lru_cache
def _bands() -> np.ndarray:
    """Which bins make up each third-octave band, [15, 257] (Taal et al. 2011, section II-A)."""
    half_steps = 2 * np.arange(N_BANDS)[:, None] + np.array([-1, 1])[None, :]
    edges = np.rint(LOWEST_CENTRE * 2 ** (half_steps / 6) * N_FFT / RATE)
    bins = np.arange(N_FFT // 2 + 1)[None, :]
    return (bins >= edges[:, :1]) & (bins < edges[:, 1:])


def _frames(signal: Waveform, n_frames: int) -> Float[Array, "T frame_length"]:
    window = jnp.asarray(_window(), signal.dtype)
    return frame_signal(signal, FRAME_LENGTH, HOP_LENGTH, n_frames) * window[None, :]


def _audible_frames(reference: Waveform, n_frames: int) -> Bool[Array, " T"]:
    """Frames within 40 dB of the loudest; all of a silent signal."""
    energy = jnp.sum(_frames(reference, n_frames) ** 2, axis=1)
    return energy >= 10 ** (-DYNAMIC_RANGE_DB / 10) * jnp.max(energy)


def _compacted(signal: Waveform, kept: Bool[Array, " T"]) -> Float[Array, " compacted"]:
    """The kept frames added anew without gaps; zeros follow."""
    order = jnp.argsort(~kept, stable=True)
    frames = jnp.where(kept[:, None], _frames(signal, kept.shape[0]), 0.0)
    return overlap_add(frames[order], HOP_LENGTH)


def _band_envelopes(signal: Waveform) -> Envelopes:
    """Magnitudes of third-octave bands (Taal et al. 2011, eq. 1)."""
    n_frames = (signal.shape[0] - FRAME_LENGTH) // HOP_LENGTH
    spectrum = jnp.fft.rfft(_frames(signal, n_frames), N_FFT, axis=1)
    power = spectrum.real**2 + spectrum.imag**2
    energy = jnp.matmul(jnp.asarray(_bands(), power.dtype), power.T, precision="highest")
    present = energy > _NO_ENERGY
    return jnp.where(present, jnp.sqrt(jnp.where(present, energy, 1.0)), 0.0)


def _windowed_sum(term: Callable[..., PyTree], *series: Array) -> PyTree:
    """``sum_i term(*series)`` over the 30 frames of each segment.

    Segments side by side would be 30 times the envelopes, and slow by their size alone.

    Args:
        term: Of as many arrays [bands, segments] as there are `series`.
        series: Arrays [bands, T].
    """
    count = series[0].shape[1] - SEGMENT_FRAMES + 1

    def at(i: Array) -> PyTree:
        return term(*(lax.dynamic_slice_in_dim(x, i, count, axis=1) for x in series))

    def add(total: PyTree, i: Array) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, at(i)), None

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(at, 0))
    total, _ = lax.scan(jax.checkpoint(add, prevent_cse=False), zeros, jnp.arange(SEGMENT_FRAMES))
    return total


def _temporal_correlation(x: Envelopes, y: Envelopes) -> Float[Array, " segments"]:
    """Mean over the bands of each segment's correlation (Taal et al. 2011, eqs. 3 to 5).

    Both are scaled to unit norm, which the correlation doesn't see, in place of `y` to x's norm.
    """
    x_sum, x_energy, y_energy = _windowed_sum(lambda x, y: (x, x**2, y**2), x, y)
    x_mean = x_sum / SEGMENT_FRAMES
    x_scale, y_scale = _inverse_root(x_energy), _inverse_root(y_energy)
    x_limit = (1 + 10 ** (-LOWEST_SDR_DB / 20)) * x_scale

    def clipped(x: Array, y: Array) -> Array:
        return jnp.minimum(y * y_scale, x * x_limit)

    mean = _windowed_sum(clipped, x, y) / SEGMENT_FRAMES

    def moments(x: Array, y: Array) -> tuple[Array, Array, Array]:
        x, y = (x - x_mean) * x_scale, clipped(x, y) - mean
        return x * y, x**2, y**2

    product, x_energy, y_energy = _windowed_sum(moments, x, y)
    return jnp.mean(product * _inverse_root(x_energy) * _inverse_root(y_energy), axis=0)


def _spectral_correlation(x: Envelopes, y: Envelopes) -> Float[Array, " segments"]:
    """Correlation of whole segments, rows then columns normalized (Jensen and Taal 2016, eq. 5)."""
    sums = _windowed_sum(lambda x, y: (x, y), x, y)
    x_mean, y_mean = (total / SEGMENT_FRAMES for total in sums)
    energies = _windowed_sum(lambda x, y: ((x - x_mean) ** 2, (y - y_mean) ** 2), x, y)
    x_scale, y_scale = (_inverse_root(energy) for energy in energies)

    def column_correlation(x: Array, y: Array) -> Array:
        x, y = _unit_columns((x - x_mean) * x_scale), _unit_columns((y - y_mean) * y_scale)
        return jnp.sum(x * y, axis=0)

    return _windowed_sum(column_correlation, x, y) / SEGMENT_FRAMES


def _unit_columns(x: Array) -> Array:
    """Mean 0 and norm 1 over the bands."""
    x = x - jnp.mean(x, axis=0, keepdims=True)
    return x * _inverse_root(jnp.sum(x**2, axis=0, keepdims=True))


def _inverse_root(energy: Array) -> Array:
    """1 / sqrt(energy), and 0 where there is none, so that what has no norm becomes 0."""
    present = energy > _NO_ENERGY
    return jnp.where(present, 1 / jnp.sqrt(jnp.where(present, energy, 1.0)), 0.0)
