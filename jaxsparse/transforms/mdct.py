"""Modified discrete cosine transform: a lapped transform with as many coefficients as samples.

J. P. Princen and A. B. Bradley (1986), "Analysis/synthesis filter bank design based on time domain
aliasing cancellation". With a sine window and this scaling the transform is orthonormal: the
synthesis is the transpose of the analysis, and coefficients have the signal's energy.
"""

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxsparse.transforms.stft import frame_signal, overlap_add
from jaxsparse.types import Waveform

Coefficients = Float[Array, "F T"]


@dataclass(frozen=True)
class MDCTConfig:
    """Settings of the transform, hashable, so that they can be static under jit.

    Raises:
        ValueError: If `hop_length` is not positive.
    """

    hop_length: int = 256
    """Samples from frame to frame, and coefficients of a frame; frames are twice as long."""

    def __post_init__(self) -> None:
        if self.hop_length < 1:
            raise ValueError(f"hop_length {self.hop_length} is not positive")

    def n_frames(self, n_samples: int) -> int:
        """Returns the frames T of a signal of `n_samples`: each sample lies in two of them."""
        return -(-n_samples // self.hop_length) + 1


@functools.partial(jax.jit, static_argnames="config")
def mdct(signal: Waveform, config: MDCTConfig = MDCTConfig()) -> Coefficients:
    """Transforms a signal.

    Args:
        signal: N samples, at least one; zeros precede and follow it.
        config: Static settings.

    Returns:
        F = ``hop_length`` coefficients, the f-th around ``(f + 1/2) / F`` of half the sample rate,
        by T = ``config.n_frames(N)`` frames.

    Raises:
        ValueError: If the signal is empty.
    """
    if signal.shape[0] == 0:
        raise ValueError("a signal of no samples has no coefficients")
    hop = config.hop_length
    padded = jnp.pad(signal, (hop, 0))
    frames = frame_signal(padded, 2 * hop, hop, config.n_frames(signal.shape[0]))
    return jnp.matmul(_basis(hop).astype(signal.dtype), frames.T, precision="highest")


@functools.partial(jax.jit, static_argnames=("config", "length"))
def imdct(
    coefficients: Coefficients, config: MDCTConfig = MDCTConfig(), *, length: int
) -> Waveform:
    """Makes the signal again.

    Args:
        coefficients: F by T.
        config: As it was transformed with.
        length: Samples of the signal.

    Raises:
        ValueError: If there are not `hop_length` coefficients a frame, or too few frames for
            `length`.
    """
    hop = config.hop_length
    n_coefficients, n_frames = coefficients.shape
    if n_coefficients != hop:
        raise ValueError(f"frames have {hop} coefficients, not {n_coefficients}")
    if not 0 < length <= (n_frames - 1) * hop:
        raise ValueError(f"{n_frames} frames do not hold {length} samples")
    basis = _basis(hop).astype(coefficients.dtype)
    frames = jnp.matmul(coefficients.T, basis, precision="highest")
    return overlap_add(frames, hop)[hop : hop + length]


@functools.lru_cache
def _basis(hop: int) -> np.ndarray:
    """The windowed cosines [hop, 2 hop], float64, rounded where they are used."""
    samples = np.arange(2 * hop) + 0.5
    window = np.sin(math.pi * samples / (2 * hop))
    phases = math.pi / hop * np.outer(np.arange(hop) + 0.5, samples + hop / 2)
    return math.sqrt(2 / hop) * window * np.cos(phases)
