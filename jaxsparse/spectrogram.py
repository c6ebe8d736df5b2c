"""Between complex spectra and log-power in dB; which phases are worth keeping."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsparse.types import ComplexSpectrogram, HardMask, Spectrogram

AMIN = 1e-10
TOP_DB = 80.0


def power_to_db(
    power: Float[Array, "F T"],
    *,
    ref: float = 1.0,
    amin: float = AMIN,
    top_db: float | None = TOP_DB,
) -> Spectrogram:
    """``10 log10(power / ref)``, floored `top_db` below its own maximum, as librosa's.

    Args:
        power: Squared magnitudes.
        ref: The power that is 0 dB.
        amin: Smallest power told from zero.
        top_db: Range kept below the maximum in dB; None keeps all.

    Returns:
        dB, the shape of `power`.

    Raises:
        ValueError: If `amin` is not positive or `top_db` is negative.
    """
    if amin <= 0:
        raise ValueError(f"amin must be positive, not {amin}")
    if top_db is not None and top_db < 0:
        raise ValueError(f"top_db must not be negative, not {top_db}")
    level = 10.0 * jnp.log10(jnp.maximum(power, amin)) - 10.0 * jnp.log10(max(abs(ref), amin))
    return level if top_db is None else jnp.maximum(level, level.max() - top_db)


def db_to_power(spectrogram: Spectrogram, *, ref: float = 1.0) -> Float[Array, "F T"]:
    """The inverse of `power_to_db` where nothing was floored."""
    return ref * jnp.power(10.0, spectrogram / 10.0)


def db_to_amplitude(spectrogram: Spectrogram) -> Float[Array, "F T"]:
    """Magnitudes ``10^(dB / 20)``."""
    return jnp.power(10.0, spectrogram / 20.0)


def log_power(spectrum: ComplexSpectrogram, *, top_db: float | None = TOP_DB) -> Spectrogram:
    """The log-power spectrogram in dB of a complex one: what the network sees."""
    power = spectrum.real**2 + spectrum.imag**2
    return power_to_db(power, top_db=top_db)


def phase_mask(spectrogram: Spectrogram, threshold_db: float | None) -> HardMask:
    """Which bins' phases are kept: those at most `threshold_db` below the maximum.

    The thesis drops phases "below" 60 to 75 dB (4.3.2); the others are then taken as zero.

    Args:
        spectrogram: dB.
        threshold_db: Distance from the maximum in dB; None keeps every phase.
    """
    if threshold_db is None:
        return jnp.ones(spectrogram.shape, bool)
    return spectrogram >= spectrogram.max() - threshold_db
