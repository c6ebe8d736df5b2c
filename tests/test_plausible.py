import jax.numpy as jnp
import numpy as np

from jaxsparse.plausible import HEADROOM_DB, bound_levels, match_drawn

MASK = jnp.array([[True, True, False, False], [True, False, False, False]])
KEPT = jnp.where(MASK, jnp.array([[0.0, -10.0, 0.0, 0.0], [-30.0, 0.0, 0.0, 0.0]]), 0.0)
LOUD = jnp.array([[True, True, False, False], [False, False, False, False]])
LOUDEST = jnp.float32(0.0)


def test_levels_are_bounded_by_the_range_and_the_headroom():
    completed = jnp.array([[50.0, 12.0, 13.0, -79.0], [-81.0, jnp.inf, -jnp.inf, 3.0]])
    bounded = bound_levels(completed, KEPT, jnp.zeros_like(MASK), LOUDEST)
    assert HEADROOM_DB == 12
    np.testing.assert_array_equal(bounded, [[12, 12, 12, -79], [-80, 12, -80, 3]])


def test_nothing_hidden_is_louder_than_the_quietest_of_the_loudest():
    completed = jnp.full(MASK.shape, 5.0)
    bounded = bound_levels(completed, KEPT, LOUD, LOUDEST)
    np.testing.assert_array_equal(bounded, np.where(LOUD, 5, -10))


def test_hidden_bins_get_the_moments_of_drawn_ones():
    rng = np.random.default_rng(0)
    levels = rng.normal(-20, 7, (40, 30)).astype(np.float32)
    mask = rng.random(levels.shape) < 0.2
    completed = rng.normal(30, 2, levels.shape).astype(np.float32)
    matched = np.asarray(match_drawn(*map(jnp.asarray, (completed, levels, mask, ~mask))))
    drawn, hidden = levels[mask], matched[~mask]
    np.testing.assert_allclose(hidden.mean(), drawn.mean(), rtol=1e-5)
    np.testing.assert_allclose(hidden.std(ddof=1), drawn.std(ddof=1), rtol=1e-5)
    # The order of levels is the network's.
    np.testing.assert_array_equal(np.argsort(hidden), np.argsort(completed[~mask]))


def test_too_few_drawn_bins_and_equal_levels():
    completed = jnp.arange(8.0).reshape(2, 4)
    one = jnp.zeros_like(MASK).at[0, 0].set(True)
    np.testing.assert_array_equal(match_drawn(completed, KEPT, one, ~one), completed)
    silent = jnp.full(MASK.shape, -100.0)
    matched = match_drawn(silent, silent, MASK, ~MASK)
    np.testing.assert_array_equal(matched, silent)
