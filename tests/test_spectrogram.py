import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxsparse.spectrogram import (
    db_to_amplitude,
    db_to_power,
    log_power,
    phase_mask,
    power_to_db,
)

pytestmark = [pytest.mark.optimised, pytest.mark.usefixtures("strict_dtypes")]

# Five decimals of a hundred dB: float32 has seven.
DB = 1e-4
powers = arrays(np.float32, (4, 5), elements=st.floats(0, 2.0**40, width=32, allow_subnormal=False))


@given(powers, st.sampled_from([80.0, 30.0, 0.0, None]))
def test_power_to_db_equals_librosa(power, top_db):
    expected = librosa.power_to_db(power.astype(np.float64), top_db=top_db)
    ours = power_to_db(jnp.asarray(power), top_db=top_db)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, expected, atol=DB)


def test_power_to_db_equals_librosa_with_other_references_and_floors():
    power = np.geomspace(1e-14, 1e6, 20).reshape(4, 5)
    for ref, amin in ((1.0, 1e-10), (50.0, 1e-10), (1e-3, 1e-5), (0.0, 1e-10), (-2.0, 1e-6)):
        expected = librosa.power_to_db(power, ref=ref, amin=amin)
        ours = power_to_db(jnp.asarray(power, jnp.float32), ref=ref, amin=amin)
        np.testing.assert_allclose(ours, expected, atol=DB)


def test_the_floor_is_80_db_below_the_clips_own_maximum():
    power = jnp.array([[1e4, 1.0], [1e-3, 1e-4], [1e-6, 0.0]])
    np.testing.assert_allclose(power_to_db(power), [[40, 0], [-30, -40], [-40, -40]], atol=DB)
    both = jax.vmap(power_to_db)(jnp.stack([power, 1e-2 * power]))
    np.testing.assert_allclose(both[1], both[0] - 20, atol=DB)


def test_silence_is_the_smallest_power():
    silence = log_power(jnp.zeros((3, 4), jnp.complex64))
    np.testing.assert_allclose(silence, np.full((3, 4), -100.0), atol=DB)


def test_log_power_is_that_of_the_squared_magnitude():
    rng = np.random.default_rng(0)
    spectrum = rng.standard_normal((6, 7)) + 1j * rng.standard_normal((6, 7))
    spectrum *= 10.0 ** rng.uniform(-6, 3, (6, 7))
    expected = librosa.power_to_db(np.abs(spectrum) ** 2)
    np.testing.assert_allclose(log_power(jnp.asarray(spectrum, jnp.complex64)), expected, atol=DB)
    unfloored = librosa.power_to_db(np.abs(spectrum) ** 2, top_db=None)
    assert unfloored.min() < expected.min() - 1
    ours = log_power(jnp.asarray(spectrum, jnp.complex64), top_db=None)
    np.testing.assert_allclose(ours, unfloored, atol=DB)


def test_inverses_where_nothing_was_floored():
    power = jnp.asarray(np.geomspace(1e-9, 1e6, 20, dtype=np.float32).reshape(4, 5))
    level = power_to_db(power, top_db=None)
    # A hundred dB in float32 are known to 4e-6 dB, which is 1e-6 of the power.
    np.testing.assert_allclose(db_to_power(level), power, rtol=1e-5)
    np.testing.assert_allclose(db_to_amplitude(level), np.sqrt(power), rtol=1e-5)
    with_reference = power_to_db(power, ref=7.0, top_db=None)
    np.testing.assert_allclose(db_to_power(with_reference, ref=7.0), power, rtol=1e-5)


def test_gradient_is_that_of_the_logarithm_above_the_floor_and_zero_below():
    power = jnp.array([[1.0, 10.0], [1e-12, 0.0]])
    gradient = jax.grad(lambda p: power_to_db(p, top_db=None).sum())(power)
    np.testing.assert_allclose(gradient[0], 10 / np.log(10) / power[0], rtol=1e-5)
    np.testing.assert_array_equal(gradient[1], 0)


@pytest.mark.parametrize("settings", [{"amin": 0.0}, {"amin": -1.0}, {"top_db": -1.0}])
def test_refuses_impossible_settings(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        power_to_db(jnp.ones((2, 2)), **settings)


def test_phase_mask_keeps_what_is_near_the_maximum():
    spectrogram = np.random.default_rng(0).uniform(-70, 20, (40, 30)).astype(np.float32)
    spectrogram[3, 4] = 25.0
    # On the threshold itself: kept.
    spectrogram[0, :4] = 25.0 - np.array([60, 65, 70, 75], np.float32)
    shares = []
    for threshold in (60.0, 65.0, 70.0, 75.0):
        expected = 25.0 - spectrogram <= threshold
        mask = phase_mask(jnp.asarray(spectrogram), threshold)
        assert mask.dtype == jnp.bool_
        np.testing.assert_array_equal(mask, expected)
        shares.append(float(mask.mean()))
    assert shares == sorted(shares) and shares[0] > 0.6 and shares[-1] < 0.95
    assert phase_mask(jnp.asarray(spectrogram), None).all()


def test_phase_mask_has_a_maximum_for_each_clip():
    clips = jnp.array([[[0.0, -61.0]], [[-30.0, -61.0]]])
    masks = jax.vmap(lambda clip: phase_mask(clip, 60.0))(clips)
    np.testing.assert_array_equal(masks, [[[True, False]], [[True, True]]])
