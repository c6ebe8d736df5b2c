import inspect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsparse.interpolate import interpolate

METHODS = ("nearest", "linear", "clough-tocher")


def scattered(shape=(40, 30), share=0.2, seed=0):
    """A mask with its corners kept, so that the convex hull is the whole grid."""
    mask = np.random.default_rng(seed).random(shape) < share
    mask[np.ix_([0, -1], [0, -1])] = True
    return mask


def plane(shape=(40, 30)):
    f, t = np.indices(shape)
    return (0.5 * f - 1.25 * t - 30).astype(np.float32)


def hide(spectrogram, mask):
    """What is hidden must not be looked at."""
    return np.where(mask, spectrogram, np.nan).astype(np.float32)


@pytest.mark.parametrize("method", ["linear", "clough-tocher"])
def test_a_plane_is_exact(method):
    mask = scattered()
    estimate = interpolate(hide(plane(), mask), mask, method)
    # Slopes of Clough-Tocher's are estimated to a relative 1e-6.
    np.testing.assert_allclose(estimate, plane(), atol=1e-4)


def test_clough_tocher_is_closer_to_a_curve_than_linear_and_linear_than_nearest():
    f, t = np.indices((40, 30))
    curve = (20 * np.sin(f / 6) * np.cos(t / 7)).astype(np.float32)
    mask = scattered()
    errors = [np.square(interpolate(hide(curve, mask), mask, m) - curve).mean() for m in METHODS]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_nearest_agrees_with_brute_force():
    values = np.random.default_rng(1).normal(size=(17, 12)).astype(np.float32)
    mask = scattered(values.shape, 0.1, seed=2)
    estimate = interpolate(hide(values, mask), mask, "nearest")
    kept = np.argwhere(mask)
    for place in np.argwhere(~mask):
        distances = np.square(kept - place).sum(1)
        # Several kept bins may be nearest.
        ties = kept[distances == distances.min()]
        assert estimate[tuple(place)] in values[tuple(ties.T)]


@given(st.integers(0, 2**32 - 1), st.sampled_from(METHODS), st.floats(0.002, 0.9))
def test_kept_bins_come_out_as_they_are_and_nothing_is_missing(seed, method, share):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(13, 9)).astype(np.float32)
    mask = rng.random(values.shape) < share
    mask[rng.integers(13), rng.integers(9)] = True
    estimate = interpolate(hide(values, mask), mask, method)
    np.testing.assert_array_equal(estimate[mask], values[mask])
    assert np.isfinite(estimate).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kept", [[(3, 4)], [(3, 4), (5, 1)], [(2, 0), (2, 3), (2, 8)]])
def test_bins_that_span_no_triangle(method, kept):
    mask = np.zeros((6, 9), bool)
    mask[tuple(np.transpose(kept))] = True
    estimate = interpolate(hide(plane((6, 9)), mask), mask, method)
    np.testing.assert_array_equal(estimate, interpolate(plane((6, 9)), mask, "nearest"))


def test_refusals():
    mask = scattered()
    with pytest.raises(ValueError, match="no bin is kept"):
        interpolate(plane(), np.zeros_like(mask))
    with pytest.raises(ValueError, match="not finite"):
        interpolate(np.full_like(plane(), np.nan), mask)
    with pytest.raises(ValueError, match="unknown interpolation 'cubic'"):
        # Unwrapped: the tests' type checker would refuse the name first.
        inspect.unwrap(interpolate)(plane(), mask, "cubic")
