"""The MDCT against its definition in double precision, and what makes it a transform."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxsparse.transforms.mdct import MDCTConfig, imdct, mdct

pytestmark = [pytest.mark.optimised, pytest.mark.usefixtures("strict_dtypes")]

LENGTHS = (1, 2, 255, 256, 257, 5000)
SMALL = MDCTConfig(hop_length=8)


def noise(length, seed=0):
    samples = np.random.default_rng(seed).uniform(-1, 1, length)
    return jnp.asarray(samples, jnp.float32)


def slow_mdct(signal, hop):
    """Term by term, in double precision."""
    n_frames = math.ceil(len(signal) / hop) + 1
    padded = np.zeros((n_frames + 1) * hop)
    padded[hop : hop + len(signal)] = signal
    found = np.zeros((hop, n_frames))
    for t in range(n_frames):
        for k in range(hop):
            for n in range(2 * hop):
                window = math.sin(math.pi * (n + 0.5) / (2 * hop))
                cosine = math.cos(math.pi / hop * (n + 0.5 + hop / 2) * (k + 0.5))
                found[k, t] += math.sqrt(2 / hop) * window * padded[t * hop + n] * cosine
    return found


@pytest.mark.parametrize("length", [1, 7, 8, 9, 41])
def test_coefficients_are_those_of_the_definition(length):
    signal = noise(length)
    found = mdct(signal, SMALL)
    expected = slow_mdct(np.asarray(signal, np.float64), 8)
    assert found.shape == (8, SMALL.n_frames(length)) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_signal_comes_back(length):
    signal = noise(length)
    np.testing.assert_allclose(imdct(mdct(signal), length=length), signal, atol=1e-6)


@pytest.mark.parametrize("hop", [1, 2, 3, 160, 320])
def test_a_signal_comes_back_at_any_hop(hop):
    signal, config = noise(1000), MDCTConfig(hop)
    np.testing.assert_allclose(imdct(mdct(signal, config), config, length=1000), signal, atol=1e-6)


def test_coefficients_have_the_energy_of_the_signal_and_are_as_many():
    signal = noise(256 * 40)
    coefficients = mdct(signal)
    assert coefficients.size == signal.size + 256
    assert jnp.sum(coefficients**2) == pytest.approx(float(jnp.sum(signal**2)), rel=1e-5)


def test_a_tone_lies_where_its_frequency_says():
    tone = jnp.sin(2 * jnp.pi * 1000 * jnp.arange(16_000, dtype=jnp.float32) / 16_000)
    energy = jnp.sum(mdct(tone)[:, 2:-2] ** 2, axis=1)
    # Coefficients are 31.25 Hz apart, and the 32nd begins at 1,000 Hz.
    assert energy[30:34].sum() > 0.99 * energy.sum()


def test_gradients():
    x = np.random.default_rng(1).standard_normal((2, 21))
    with jax.enable_x64(True):
        signal = jnp.asarray(x[0])
        check_grads(lambda s: mdct(s, SMALL), (signal,), 2)
        check_grads(lambda c: imdct(c, SMALL, length=21), (mdct(signal, SMALL),), 2)
    # Orthonormal: the gradient of half the energy is the signal.
    signal = noise(700)
    gradient = jax.grad(lambda s: 0.5 * jnp.sum(mdct(s) ** 2))(signal)
    np.testing.assert_allclose(gradient, signal, atol=1e-6)


def test_vmap_equals_loop():
    signals = jnp.stack([noise(900, seed) for seed in range(3)])
    mapped = jax.vmap(mdct)(signals)
    back = jax.vmap(lambda c: imdct(c, length=900))(mapped)
    for i in range(3):
        np.testing.assert_allclose(mapped[i], mdct(signals[i]), atol=1e-6)
    np.testing.assert_allclose(back, signals, atol=1e-6)


def test_silence_is_zeros():
    assert not mdct(jnp.zeros(3000)).any() and not imdct(jnp.zeros((256, 4)), length=700).any()


def test_what_has_no_transform_is_refused():
    with pytest.raises(ValueError, match="no samples"):
        mdct(jnp.zeros(0))
    with pytest.raises(ValueError, match="256 coefficients, not 8"):
        imdct(jnp.zeros((8, 4)), length=3)
    for length in (0, 769):
        with pytest.raises(ValueError, match=f"4 frames do not hold {length} samples"):
            imdct(jnp.zeros((256, 4)), length=length)
    with pytest.raises(ValueError, match="hop_length 0"):
        MDCTConfig(0)
