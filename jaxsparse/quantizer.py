"""What an MDCT file stores: whole numbers of one step, and how loud the rest is in bands.

A uniform quantizer leaves most coefficients at zero: those that it doesn't are the mask. Of the
zeros a file stores how loud they are, in bands of a few coefficients and frames. All functions are
pure, of one clip.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num, UInt

from jaxsparse.transforms.grid import (
    BAND_EDGES,
    BAND_FRAMES,
    HIGHEST_LEVEL_DB,
    LEVEL_DB,
    N_BANDS,
    N_LEVELS,
)
from jaxsparse.transforms.mdct import Coefficients

ROUNDING = 0.38
"""Added to a magnitude before it is rounded down: less than a half, since zeros are cheap."""

# Power below which a band is silent.
_SILENCE = 1e-12

Levels = Int[Array, "B U"]


class Coded(NamedTuple):
    """A quantized clip; floats stand for relaxed values."""

    values: Int[Array, "F T"] | Float[Array, "F T"]
    """Coefficients in steps."""
    levels: Int[Array, "B U"] | Float[Array, "B U"]
    """How loud the zeros of each band are, in every `BAND_FRAMES` frames: 0 to `N_LEVELS` - 1."""


def active_level(coefficients: Coefficients) -> Float[Array, ""]:
    """Returns the RMS of the louder half of the frames, by which steps are measured."""
    power = jnp.sort(jnp.mean(jnp.square(coefficients), axis=0))
    return jnp.sqrt(jnp.mean(power[power.shape[0] // 2 :]))


def relative_step(rate: Num[Array, ""] | float | int) -> Float[Array, ""]:
    """Returns the step of a rate over the active level: eighths of octaves from 1/16 on."""
    return 2.0 ** (jnp.asarray(rate, jnp.float32) / 8 - 4)


def quantize(scaled: Coefficients, rounding: Float[Array, ""] | float = ROUNDING) -> Coded:
    """Quantizes coefficients.

    Args:
        scaled: Coefficients over the step.
        rounding: See `ROUNDING`.
    """
    values = (jnp.sign(scaled) * jnp.floor(jnp.abs(scaled) + rounding)).astype(jnp.int32)
    return Coded(values, measure_levels(scaled, values == 0))


def measure_levels(scaled: Coefficients, zeros: Bool[Array, "F T"]) -> Levels:
    """Returns the level of each band's zeros that is nearest in dB."""
    levels = jnp.round(relative_levels(scaled, zeros))
    return jnp.clip(levels, 0, N_LEVELS - 1).astype(jnp.int32)


def relative_levels(scaled: Coefficients, zeros: Bool[Array, "F T"]) -> Float[Array, "B U"]:
    """Returns the level of each band's zeros, neither rounded nor bounded."""
    weights = zeros.astype(scaled.dtype)
    power = sum_bands(jnp.square(scaled) * weights) / jnp.maximum(sum_bands(weights), 1)
    db = 10 * jnp.log10(jnp.maximum(power, _SILENCE))
    return (db - HIGHEST_LEVEL_DB) / LEVEL_DB + N_LEVELS - 1


def sum_bands(plane: Float[Array, "F T"]) -> Float[Array, "B U"]:
    """Sums over the bands, `BAND_FRAMES` frames together; the last frames may be fewer."""
    n_frames = plane.shape[1]
    padded = jnp.pad(plane, ((0, 0), (0, -n_frames % BAND_FRAMES)))
    rows = jnp.add.reduceat(padded, np.array(BAND_EDGES[:-1]), axis=0)
    return rows.reshape(N_BANDS, -1, BAND_FRAMES).sum(axis=2)


def spread_bands(bands: Float[Array, "B U"], n_frames: int) -> Float[Array, "F T"]:
    """Gives every coefficient the value of its band."""
    rows = jnp.repeat(bands, np.diff(BAND_EDGES), axis=0, total_repeat_length=BAND_EDGES[-1])
    return jnp.repeat(rows, BAND_FRAMES, axis=1)[:, :n_frames]


def level_amplitudes(levels: Int[Array, "B U"] | Float[Array, "B U"]) -> Float[Array, "B U"]:
    """Returns the RMS that levels stand for, in steps; 0 for silence."""
    db = HIGHEST_LEVEL_DB + LEVEL_DB * (levels - (N_LEVELS - 1))
    return jnp.where(levels > 0, 10 ** (db / 20), 0.0)


def noise_signs(n_bins: int, n_frames: int, first_frame: int | Int[Array, ""] = 0) -> Coefficients:
    """Draws a sign for every coefficient, the same ones on every machine.

    Args:
        n_bins: Coefficients of a frame.
        n_frames: Frames.
        first_frame: Number of the first one in its channel.
    """
    frames = jnp.asarray(first_frame, jnp.uint32) + jnp.arange(n_frames, dtype=jnp.uint32)
    index = frames[None] * jnp.uint32(n_bins) + jnp.arange(n_bins, dtype=jnp.uint32)[:, None]
    return jnp.where(_mix(index) >> 31 == 1, 1.0, -1.0)


def _mix(x: UInt[Array, "F T"]) -> UInt[Array, "F T"]:
    """Mixes the bits of 32-bit numbers (the finalizer of MurmurHash3)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
