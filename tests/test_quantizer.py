"""Quantization on the MDCT grid, and the levels of what is left out."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.quantizer import (
    active_level,
    level_amplitudes,
    measure_levels,
    noise_signs,
    quantize,
    relative_step,
    spread_bands,
    sum_bands,
)
from jaxsparse.transforms.grid import (
    BAND_EDGES,
    HIGHEST_LEVEL_DB,
    HOP_LENGTH,
    LEVEL_DB,
    N_BANDS,
    N_LEVELS,
)


def test_values_are_rounded_towards_zero_a_little():
    scaled = jnp.asarray([[0.61, -0.61, 0.63, -0.63, 1.61, 1.63, -7.0]])
    values = quantize(jnp.pad(scaled, ((0, HOP_LENGTH - 1), (0, 0)))).values[0]
    assert values.tolist() == [0, 0, 1, -1, 1, 2, -7]


@pytest.mark.parametrize("n_frames", [1, 2, 7])
def test_bands_are_summed_and_spread(n_frames):
    plane = np.random.default_rng(0).normal(size=(HOP_LENGTH, n_frames)).astype(np.float32)
    sums = np.asarray(sum_bands(jnp.asarray(plane)))
    spread = np.asarray(spread_bands(jnp.asarray(sums), n_frames))
    for band in range(N_BANDS):
        rows = slice(BAND_EDGES[band], BAND_EDGES[band + 1])
        for unit in range(-(-n_frames // 2)):
            frames = slice(2 * unit, 2 * unit + 2)
            assert sums[band, unit] == pytest.approx(plane[rows, frames].sum(), abs=1e-4)
            assert (spread[rows, frames] == sums[band, unit]).all()


def test_levels_are_the_nearest_in_db():
    for level in range(1, N_LEVELS):
        db = HIGHEST_LEVEL_DB + LEVEL_DB * (level - N_LEVELS + 1)
        for error in (-2.4, 0.0, 2.4):
            scaled = jnp.full((HOP_LENGTH, 4), 10 ** ((db + error) / 20))
            levels = measure_levels(scaled, jnp.ones(scaled.shape, bool))
            assert (levels == level).all()
        amplitude = level_amplitudes(levels)[0, 0]
        assert 20 * np.log10(amplitude) == pytest.approx(db, abs=1e-3)


def test_only_zeros_count_for_levels():
    scaled = jnp.full((HOP_LENGTH, 2), 0.01).at[::2].set(5.0)
    levels = measure_levels(scaled, scaled < 1)
    alone = measure_levels(jnp.full_like(scaled, 0.01), jnp.ones(scaled.shape, bool))
    assert (levels == alone).all()


def test_silence_has_the_lowest_level_and_no_amplitude():
    levels = measure_levels(jnp.zeros((HOP_LENGTH, 2)), jnp.ones((HOP_LENGTH, 2), bool))
    assert not levels.any() and not level_amplitudes(levels).any()


def test_noise_is_fixed_by_the_format_and_even():
    signs = np.asarray(noise_signs(HOP_LENGTH, 400))
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert abs(signs.mean()) < 0.01
    assert abs((signs[1:] * signs[:-1]).mean()) < 0.01
    assert abs((signs[:, 1:] * signs[:, :-1]).mean()) < 0.01
    assert (np.asarray(noise_signs(HOP_LENGTH, 10, 30)) == signs[:, 30:40]).all()

    def mix(x):
        x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
        x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
        return x ^ (x >> 16)

    for f, t in ((0, 0), (17, 3), (255, 399)):
        assert signs[f, t] == (1 if mix(256 * t + f) >= 2**31 else -1)


def test_active_level_is_that_of_the_louder_half():
    quiet, loud = np.full((HOP_LENGTH, 10), 0.01), np.full((HOP_LENGTH, 10), 2.0)
    both = jnp.asarray(np.concatenate([quiet, loud], axis=1), jnp.float32)
    assert float(active_level(both)) == pytest.approx(2.0)


def test_rates_are_eighths_of_octaves():
    assert float(relative_step(0)) == 1 / 16
    assert float(relative_step(32)) == 1
    assert float(relative_step(40)) == 2
