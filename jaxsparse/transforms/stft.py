"""Short-time Fourier transform and its inverse, with librosa's conventions and scaling.

Frames are cut and added by slices of hop-sized blocks: no convolution, no gather, no host loop.
"""

import functools
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Complex, Float

from jaxsparse.types import ComplexSpectrogram, HardMask, PRNGKey, Waveform


@dataclass(frozen=True)
class STFTConfig:
    """Settings of the transform, hashable, so that they can be static under jit.

    Attributes:
        n_fft: Samples of the Fourier transform.
        win_length: Samples of the window, centred in `n_fft`.
        hop_length: Samples from frame to frame.
        window: Name of a periodic window that `scipy.signal.get_window` knows.
        center: Whether frame t is centred at sample ``t * hop_length``, by padding.
        pad_mode: How the ends are padded where `center`.
    """

    n_fft: int = 2048
    win_length: int = 2048
    hop_length: int = 256
    window: str = "hann"
    center: bool = True
    pad_mode: Literal["reflect", "constant", "edge"] = "reflect"

    def __post_init__(self) -> None:
        if not 0 < self.win_length <= self.n_fft:
            raise ValueError(f"win_length {self.win_length} is not in 1..n_fft {self.n_fft}")
        if self.hop_length < 1:
            raise ValueError(f"hop_length {self.hop_length} is not positive")

    @property
    def n_bins(self) -> int:
        """Frequency bins F, from 0 Hz to half the sample rate."""
        return 1 + self.n_fft // 2

    def n_frames(self, n_samples: int) -> int:
        """Frames T of a signal of `n_samples`; one shorter than a frame is zero-padded to one."""
        padded = n_samples + 2 * (self.n_fft // 2) if self.center else n_samples
        return 1 + max(padded - self.n_fft, 0) // self.hop_length


@functools.lru_cache
def window_samples(config: STFTConfig) -> np.ndarray:
    """The window [n_fft], float32, zero-padded on both sides from `win_length`."""
    if config.window == "hann" and config.win_length > 1:
        # The usual one without SciPy's package for signals, which takes half a second to import.
        window = np.hanning(config.win_length + 1)[:-1]
    else:
        import scipy.signal

        window = scipy.signal.get_window(config.window, config.win_length, fftbins=True)
    before = (config.n_fft - config.win_length) // 2
    after = config.n_fft - config.win_length - before
    return np.pad(window, (before, after)).astype(np.float32)


def frame_signal(
    signal: Waveform, frame_length: int, hop_length: int, n_frames: int
) -> Float[Array, "T frame_length"]:
    """Cuts overlapping frames; frame t starts at sample ``t * hop_length``.

    Samples beyond the signal's end are zeros.
    """
    per_frame = -(-frame_length // hop_length)
    n_blocks = n_frames + per_frame - 1
    missing = max(n_blocks * hop_length - signal.shape[0], 0)
    blocks = jnp.pad(signal, (0, missing))[: n_blocks * hop_length].reshape(n_blocks, hop_length)
    shifted = [blocks[i : i + n_frames] for i in range(per_frame)]
    return jnp.concatenate(shifted, axis=1)[:, :frame_length]


def overlap_add(frames: Float[Array, "T frame_length"], hop_length: int) -> Float[Array, " N"]:
    """Adds frames at distances of `hop_length`; the transpose of `frame_signal`.

    Returns:
        ``(T - 1) * hop_length + frame_length`` samples.
    """
    n_frames, frame_length = frames.shape
    per_frame = -(-frame_length // hop_length)
    padded = jnp.pad(frames, ((0, 0), (0, per_frame * hop_length - frame_length)))
    blocks = padded.reshape(n_frames, per_frame, hop_length)
    total = sum(jnp.pad(blocks[:, i], ((i, per_frame - 1 - i), (0, 0))) for i in range(per_frame))
    return jnp.ravel(jnp.asarray(total))[: (n_frames - 1) * hop_length + frame_length]


@functools.partial(jax.jit, static_argnames="config")
def stft(signal: Waveform, config: STFTConfig = STFTConfig()) -> ComplexSpectrogram:
    """Transforms a signal, as ``librosa.stft`` with the same settings does.

    Args:
        signal: N samples, at least one.
        config: Static settings.

    Returns:
        complex64, F = ``n_fft // 2 + 1`` bins by T = ``config.n_frames(N)`` frames, unscaled.

    Raises:
        ValueError: If the signal is empty.
    """
    n_samples = signal.shape[0]
    if n_samples == 0:
        raise ValueError("a signal of no samples has no spectrogram")
    n_frames = config.n_frames(n_samples)
    if config.center:
        half = config.n_fft // 2
        if config.pad_mode == "reflect" and n_samples <= half:
            signal = signal[_reflected(n_samples, half)]
        else:
            signal = jnp.pad(signal, half, mode=config.pad_mode)
    frames = frame_signal(signal, config.n_fft, config.hop_length, n_frames)
    return jnp.fft.rfft(frames * window_samples(config)[None, :], axis=1).T


def _reflected(n_samples: int, margin: int) -> np.ndarray:
    """Where the samples of a signal lie that is reflected to and fro as far as `margin`.

    ``numpy.pad`` gives the same; ``jax.numpy.pad`` is compiled to a step for each reflection.
    """
    return np.pad(np.arange(n_samples), margin, mode="reflect")


@functools.partial(jax.jit, static_argnames=("config", "length"))
def istft(
    spectrum: ComplexSpectrogram, config: STFTConfig = STFTConfig(), *, length: int
) -> Waveform:
    """Inverts `stft` by least squares (Griffin and Lim 1984, eq. 6).

    Samples that no window reaches are zeros.

    Args:
        spectrum: complex, F by T.
        config: The settings that `spectrum` was made with.
        length: Samples of the result, exactly.

    Returns:
        `length` samples.

    Raises:
        ValueError: If `spectrum` has another number of bins than `config`.
    """
    if spectrum.shape[0] != config.n_bins:
        raise ValueError(f"{spectrum.shape[0]} bins, but n_fft {config.n_fft} has {config.n_bins}")
    signal = overlap_add(windowed_frames(spectrum, config), config.hop_length)
    total = window_sum(config, spectrum.shape[1])
    reached = total > np.finfo(np.float32).tiny
    signal = jnp.where(reached, signal / np.where(reached, total, 1.0), 0.0)
    signal = signal[config.n_fft // 2 if config.center else 0 :]
    return jnp.pad(signal, (0, max(length - signal.shape[0], 0)))[:length]


def windowed_frames(
    spectrum: ComplexSpectrogram, config: STFTConfig
) -> Float[Array, "T frame_length"]:
    """The inverse transform of each frame times the window: what `overlap_add` then adds."""
    return jnp.fft.irfft(spectrum.T, config.n_fft, axis=1) * window_samples(config)[None, :]


def window_sum(config: STFTConfig, n_frames: int) -> np.ndarray:
    """The sum of the squared windows of `n_frames` frames, ``(T - 1) hop + n_fft`` samples."""
    squared = window_samples(config).astype(np.float64) ** 2
    total = np.zeros((n_frames - 1) * config.hop_length + config.n_fft)
    for start in range(0, n_frames * config.hop_length, config.hop_length):
        total[start : start + config.n_fft] += squared
    return total.astype(np.float32)


@functools.partial(jax.jit, static_argnames=("config", "length", "n_iterations", "momentum"))
def griffin_lim(
    magnitude: Float[Array, "F T"],
    config: STFTConfig = STFTConfig(),
    *,
    length: int,
    n_iterations: int = 32,
    momentum: float = 0.99,
    key: PRNGKey | None = None,
    known: Complex[Array, "F T"] | None = None,
    known_mask: HardMask | None = None,
) -> Waveform:
    """Finds a waveform whose spectrogram has the given magnitudes.

    The fast variant with momentum (Perraudin, Balazs and Søndergaard 2013). Complex bins that
    are known are put back in every round.

    Args:
        magnitude: Amplitudes, F by T.
        config: Settings of the transform.
        length: Samples of the result.
        n_iterations: Rounds of one inverse and one forward transform.
        momentum: 0 is the original algorithm (Griffin and Lim 1984).
        key: Starts from uniformly random phases; without it from phase zero.
        known: Complex values of bins that are held.
        known_mask: Where `known` holds.

    Returns:
        `length` samples.

    Raises:
        ValueError: If only one of `known` and `known_mask` is given.
    """
    if (known is None) != (known_mask is None):
        raise ValueError("known and known_mask go together")

    def hold(spectrum: Array) -> Array:
        if known is None or known_mask is None:
            return spectrum
        return jnp.where(known_mask, known, spectrum)

    def with_magnitude(spectrum: Array) -> Array:
        size = jnp.abs(spectrum)
        unit = jnp.where(size > 0, spectrum / jnp.where(size > 0, size, 1.0), 1.0)
        return hold(magnitude * unit)

    def round_trip(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        estimate, previous = carry
        rebuilt = stft(istft(estimate, config, length=length), config)
        accelerated = rebuilt + momentum * (rebuilt - previous)
        return (with_magnitude(accelerated), rebuilt), None

    if key is None:
        phase = jnp.zeros_like(magnitude)
    else:
        phase = jax.random.uniform(key, magnitude.shape, magnitude.dtype, -jnp.pi, jnp.pi)
    start = hold(magnitude * jnp.exp(1j * phase))
    (estimate, _), _ = lax.scan(round_trip, (start, jnp.zeros_like(start)), length=n_iterations)
    return istft(estimate, config, length=length)
