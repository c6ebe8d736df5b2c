"""Array aliases, and the legend of their axes.

B batch, N samples, F frequency bins, T frames, C channels, P population, K kernel size.
Spectrograms are log-power in dB; waveforms are in [-1, 1] at ``SAMPLE_RATE`` Hz.
"""

from collections.abc import Callable
from typing import TypeAlias

from jaxtyping import Array, Bool, Complex, Float, Key

SAMPLE_RATE = 16_000

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the number of steps done, from 0, and of all."""

PRNGKey: TypeAlias = Key[Array, ""]
Waveform: TypeAlias = Float[Array, " N"]
ComplexSpectrogram: TypeAlias = Complex[Array, "F T"]
Spectrogram: TypeAlias = Float[Array, "F T"]
HardMask: TypeAlias = Bool[Array, "F T"]
SoftMask: TypeAlias = Float[Array, "F T"]
Mask: TypeAlias = HardMask | SoftMask
