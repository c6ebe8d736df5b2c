"""What a listener hears at which frequency: the Bark scale, thresholds, and masking."""

import functools
import math

import numpy as np
from jaxtyping import Float

from jaxsparse.types import SAMPLE_RATE

Values = Float[np.ndarray, " N"]

# Of the scale of Schroeder, Atal and Hall (1979), as in ITU-R BS.1387.
_BARK_HZ = 650.0
# Where what is said of lower frequencies would be infinite.
_LOWEST_HZ = 20.0


def bark_to_hertz(bark: Values) -> Values:
    """Turns Bark, of the scale of Schroeder, Atal and Hall (1979), into Hz."""
    return _BARK_HZ * np.sinh(bark / 7)


def hertz_to_bark(hertz: Values) -> Values:
    """Turns Hz into Bark; the inverse of `bark_to_hertz`."""
    return 7 * np.arcsinh(hertz / _BARK_HZ)


def threshold_in_quiet(hertz: Values) -> Values:
    """The level in dB SPL at which a tone alone is just heard (Terhardt 1979, eq. 1)."""
    khz = hertz / 1000
    return 3.64 * khz**-0.8 - 6.5 * np.exp(-0.6 * (khz - 3.3) ** 2) + 1e-3 * khz**4


def bin_frequencies(n_bins: int) -> Values:
    """Frequencies in Hz of the bins from 0 to half the sample rate."""
    return np.linspace(0, SAMPLE_RATE / 2, n_bins)


@functools.lru_cache
def spreading(n_bins: int) -> Float[np.ndarray, "F F"]:
    """The excitation of each bin by each other one, as a share of the power, float32.

    Schroeder, Atal and Hall (1979), eq. 2: in dB, over the distance from the masker in Bark,
    slopes of 25 dB downwards and 10 dB upwards. Rows sum up powers, so that the bins of a band mask
    by what they have together, as noise does.
    """
    bark = hertz_to_bark(bin_frequencies(n_bins))
    distance = bark[:, None] - bark[None, :] + 0.474
    decibels = 15.81 + 7.5 * distance - 17.5 * np.sqrt(1 + distance**2)
    return (10 ** (decibels / 10)).astype(np.float32)


@functools.lru_cache
def quiet_levels(n_bins: int, full_scale: float) -> Float[np.ndarray, " F"]:
    """The threshold in quiet as levels of `log_power` of a Hann window's transform, float32.

    Args:
        n_bins: Bins F of the transform.
        full_scale: Level in dB SPL at which a sine of full scale is played.
    """
    # A quarter of the window's length is the amplitude that such a sine has in its bin.
    amplitude = max(n_bins - 1, 1) / 2
    hertz = np.maximum(bin_frequencies(n_bins), _LOWEST_HZ)
    level = threshold_in_quiet(hertz) - full_scale + 20 * math.log10(amplitude)
    return level.astype(np.float32)
