"""A differentiable surrogate of PESQ, which is not PESQ.

Written from the published descriptions: ITU-T P.862 (2001), P.862.1, P.862.2, P.48, and Beerends,
Hekstra, Rix and Hollier (2002, J. Audio Eng. Soc. 50, 765-778). What these leave to tables of the
reference software, which is not used here, comes from the literature (Bark scale of Schroeder et
al. 1979 as in ITU-R BS.1387, threshold in quiet of Terhardt 1979) or is calibrated on speech. The
signals are taken as aligned in time.
"""
import functools
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxsparse.metrics.contract import Batch, per_example
from jaxsparse.stft import STFTConfig, stft
from jaxsparse.types import Waveform

Band: TypeAlias = Literal["wb", "nb"]

N_BANDS = 49
BIN_HZ = 31.25


def bark(f):
    return 7 * np.arcsinh(np.asarray(f, float) / 650)

def bark_inverse(z):
    return 650 * np.sinh(np.asarray(z) / 7)


@functools.lru_cache
def band_table(n_bins=257):
    """[n_bins, bands] matrix, centre Bark [bands], threshold in quiet [bands] (power)."""
    top = bark(8000)
    edges = bark_inverse(np.linspace(0, top, N_BANDS + 1))
    low = (np.arange(n_bins) - 0.5) * BIN_HZ
    high = low + BIN_HZ
    overlap = np.clip(np.minimum(high[:, None], edges[None, 1:]) - np.maximum(low[:, None], edges[None, :-1]), 0, None) / BIN_HZ
    centre = (np.arange(N_BANDS) + 0.5) * top / N_BANDS
    khz = bark_inverse(centre) / 1000
    quiet = 3.64 * khz**-0.8 - 6.5 * np.exp(-0.6 * (khz - 3.3) ** 2) + 1e-3 * khz**4
    return overlap.astype(np.float32), centre.astype(np.float32), (10 ** (quiet / 10)).astype(np.float32)


_IRS = np.array([[0, -200], [50, -40], [100, -27.5], [125, -18.8], [160, -10.8], [200, -2.7], [250, 2.7], [300, 6.4], [315, 7.2], [400, 9.9], [500, 11.3], [600, 11.8], [630, 11.9], [800, 12.3], [1000, 12.6], [1250, 12.5], [1600, 13.0], [2000, 13.1], [2500, 13.1], [3000, 12.5], [3150, 12.6], [3500, 3.9], [4000, -31.6], [5000, -54.9], [8000, -80]])

def input_filter(band, n_bins=257):
    f = np.arange(n_bins) * BIN_HZ
    if band == "nb":
        return 10 ** (np.interp(f, _IRS[:, 0], _IRS[:, 1]) / 10)
    return f**4 / (f**4 + 100.0**4)


class Calibration(NamedTuple):
    level: Any  # dB
    gain: Any   # dB per band
    threshold: Any # dB per band
    width: Any  # log per band
    exponent: Any
    equal: Any
    offset_gain: Any
    smooth: Any
    dead: Any
    asym_power: Any
    asym_offset: Any
    p_sym: Any
    soft: Any
    w_sym: Any
    w_asym: Any
    slope: Any
    shift: Any
    sl: Any
    top: Any


def default(band):
    z = np.zeros(N_BANDS, np.float32)
    return Calibration(
        level=83.6, gain=z, threshold=z, width=z, exponent=0.23, equal=1000.0, offset_gain=5e3, smooth=0.2,
        dead=0.25, asym_power=1.2, asym_offset=50.0, p_sym=2.0, soft=0.04, w_sym=0.1, w_asym=0.0309,
        slope=1.3669 if band == "wb" else 1.4945, shift=3.8224 if band == "wb" else 4.6607, sl=0.187, top=4.0)


def powers(signal, band):
    """Level-aligned, filtered band powers [T, bands]."""
    spectrum = stft(signal, STFTConfig(512, 512, 256, center=False))
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)   # [257, T]
    f = np.arange(257) * BIN_HZ
    speech = ((f >= 350) & (f <= 3250)).astype(np.float32)
    level = speech @ jnp.mean(power, 1)
    matrix, _, _ = band_table()
    weighted = matrix * input_filter(band)[:, None].astype(np.float32)
    return (power / (level + 1e-20)).T @ weighted


def rooted(x, p):
    good = x > 1e-20
    return jnp.where(good, jnp.where(good, x, 1.0) ** (1 / p), 0.0)


def raw(ref, est, active, cal):
    """Symmetric and asymmetric disturbance from level-aligned band powers [T, b]; active [T] float."""
    _, centre, quiet = band_table()
    scale = 10 ** ((cal.level + cal.gain) / 10)
    ref, est = ref * scale, est * scale
    p0 = quiet * 10 ** (cal.threshold / 10)
    n_active = jnp.maximum(active.sum(), 1)

    def mean_speech(x):
        return (jnp.where(x > 1000 * p0, x, 0.0) * active[:, None]).sum(0) / n_active
    ratio = (mean_speech(est) + cal.equal) / (mean_speech(ref) + cal.equal)
    ref = ref * jnp.clip(ratio, 0.01, 100.0)
    def audible(x):
        return jnp.where(x > p0, x, 0.0)[:, 1:].sum(1)
    a_ref, a_est = audible(ref), audible(est)
    gain = jnp.clip((a_ref + cal.offset_gain) / (a_est + cal.offset_gain), 3e-4, 5.0)
    taps = [(1 - cal.smooth) * cal.smooth**k for k in range(8)]
    padded = jnp.concatenate([jnp.full(7, gain[0]), gain])
    T = gain.shape[0]
    gain = sum(t * padded[7 - k: 7 - k + T] for k, t in enumerate(taps))
    est = est * gain[:, None]
    h = jnp.where(centre < 4, jnp.minimum(6 / (centre + 2), 2.0) ** 0.15, 1.0)
    g = cal.exponent * h
    def loudness(x):
        l = cal.sl * (p0 / 0.5) ** g * ((0.5 + 0.5 * x / p0) ** g - 1)
        return jnp.where(x > p0, l, 0.0)
    l_ref, l_est = loudness(ref), loudness(est)
    d = l_est - l_ref
    d = jnp.sign(d) * jnp.maximum(jnp.abs(d) - cal.dead * jnp.minimum(l_ref, l_est), 0.0)
    asym = ((est + cal.asym_offset) / (ref + cal.asym_offset)) ** cal.asym_power
    asym = jnp.where(asym < 3, 0.0, jnp.minimum(asym, 12.0))
    w = jnp.exp(cal.width) * (bark(8000) / N_BANDS)
    total = w[1:].sum()
    ad = jnp.abs(d[:, 1:])
    sym = rooted((jnp.maximum(ad * w[1:], 1e-12) ** cal.p_sym).sum(1) / total, cal.p_sym) * total
    dasym = (ad * asym[:, 1:] * w[1:]).sum(1)
    emph = ((a_ref + 1e5) / 1e7) ** cal.soft
    return jnp.minimum(sym / emph, 45.0), jnp.minimum(dasym / emph, 45.0)


def over_time(d, active):
    T = d.shape[0]
    n = max(-(-(T - 20) // 10) + 1, 1)
    pad = (n - 1) * 10 + 20
    d = jnp.pad(d * active, (0, pad - T))
    blocks = (d**6).reshape(-1, 10).sum(1)
    windows = (blocks[:-1] + blocks[1:]) / 20
    a = jnp.pad(active, (0, pad - T)).reshape(-1, 10).max(1)
    valid = (a[:-1]) 
    six = rooted(windows, 6)
    return rooted((six**2 * valid).sum() / jnp.maximum(valid.sum(), 1), 2)


def mos(ref, est, active, cal):
    sym, asym = raw(ref, est, active, cal)
    score = 4.5 - cal.w_sym * over_time(sym, active) - cal.w_asym * over_time(asym, active)
    return 0.999 + cal.top * jax.nn.sigmoid(cal.slope * score - cal.shift)


def pesq_surrogate(
    *, reference: Batch, estimate: Batch, sample_rate: int, band: Band = "wb"
) -> Float[Array, " B"]:
    """Estimate of PESQ."""
    if sample_rate not in ((16_000,) if band == "wb" else (8_000, 16_000)):
        raise ValueError(f"the surrogate of {band} PESQ is not defined at {sample_rate} Hz")
    cal = default(band)

    def one(x: Waveform, y: Waveform) -> Array:
        ref, est = powers(x, band), powers(y, band)
        return mos(ref, est, jnp.ones(ref.shape[0]), cal)

    return per_example(one, reference, estimate)
