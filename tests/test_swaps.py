"""Exchanges of bins, and what a search by them does beside the contract of all (test_search.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from jaxsparse.masks import random_mask, unpack_mask
from jaxsparse.search.contract import HostObjective
from jaxsparse.search.run import batch, run
from jaxsparse.search.swaps import SwapConfig, exchange, swaps
from tests.reference import Compilations

SHAPE, COUNT = (6, 9), 17
EXCHANGES = ("regrow", "steepest", "nonlocal", "random")
every_exchange = pytest.mark.parametrize("kind", EXCHANGES)
WEIGHTS = jax.random.normal(jax.random.key(3), SHAPE)


def linear(weights, mask):
    return jnp.sum(weights * mask), {"count": jnp.sum(mask)}


@pytest.fixture
def mask():
    return random_mask(jax.random.key(1), SHAPE, COUNT)


@every_exchange
@pytest.mark.parametrize("n_dropped", [1, 5, 8])
@pytest.mark.parametrize("looked_at", [0.05, 1.0])
def test_as_many_bins_are_kept_as_before(kind, n_dropped, looked_at, mask):
    config = SwapConfig(kind, looked_at=looked_at)

    @jax.jit
    def go(key):
        return exchange(lambda mask: WEIGHTS, key, mask, n_dropped, config)

    made = np.stack([go(jax.random.key(i)) for i in range(20)])
    assert (made.sum((1, 2)) == COUNT).all()
    assert ((np.asarray(mask) & ~made).sum((1, 2)) <= n_dropped).all()


def test_dropped_bins_compete_with_the_others(mask):
    """Of all that are free, those of the lowest slope at what is left are kept."""
    seen = []

    def slope(left):
        seen.append(np.asarray(left))
        return WEIGHTS

    made = np.asarray(exchange(slope, jax.random.key(0), mask, 5, SwapConfig(looked_at=1.0)))
    (left,) = seen
    assert left.sum() == COUNT - 5 and (left <= np.asarray(mask)).all()
    free = np.sort(np.asarray(WEIGHTS)[~left])
    np.testing.assert_array_equal(np.sort(np.asarray(WEIGHTS)[made & ~left]), free[:5])


def test_steepest_exchanges_the_worst_for_the_best(mask):
    config = SwapConfig("steepest", looked_at=1.0)
    made = np.asarray(exchange(lambda mask: WEIGHTS, jax.random.key(0), mask, 4, config))
    weights, mask = np.asarray(WEIGHTS), np.asarray(mask)
    np.testing.assert_array_equal(np.sort(weights[mask & ~made]), np.sort(weights[mask])[-4:])
    np.testing.assert_array_equal(np.sort(weights[made & ~mask]), np.sort(weights[~mask])[:4])


@pytest.mark.parametrize("kind", ["nonlocal", "random"])
def test_controls_give_up_what_they_drop(kind, mask):
    config = SwapConfig(kind, looked_at=1.0)
    made = np.asarray(exchange(lambda mask: WEIGHTS, jax.random.key(0), mask, 4, config))
    assert (np.asarray(mask) & ~made).sum() == 4
    if kind == "nonlocal":
        new = np.asarray(WEIGHTS)[made & ~np.asarray(mask)]
        np.testing.assert_array_equal(np.sort(new), np.sort(WEIGHTS[~mask])[:4])


def test_only_a_part_of_the_others_is_looked_at():
    mask = jnp.zeros((100, 100), bool).at[:10].set(True)
    slope = jnp.where(mask, 0.0, -1.0)
    config = SwapConfig(looked_at=0.1)
    places = [
        np.asarray(exchange(lambda m: slope, jax.random.key(i), mask, 500, config)) & ~mask
        for i in range(2)
    ]
    assert all(place.sum() == 500 for place in places)
    # The first 500 of 900, among the first 5,000 of all: with all looked at, they'd be the same.
    assert (places[0] & places[1]).sum() < 75


def test_steps_that_fail_have_a_least_number():
    search = swaps(
        Partial(linear, WEIGHTS), SHAPE, COUNT, SwapConfig(first=0.2, least=0.2, looked_at=0.5)
    )
    dropped = run(search, jax.random.key(0), steps=100).history["dropped"]
    assert dropped.min() == 3 and (dropped == 3).sum() > 50


def test_the_number_doubles_with_success_and_halves_with_failure():
    search = swaps(Partial(linear, WEIGHTS), SHAPE, COUNT, SwapConfig(first=0.2, looked_at=0.5))
    result = run(search, jax.random.key(0), steps=300)
    dropped, accepted = result.history["dropped"], result.history["accepted"]
    assert dropped[0] == 3 and accepted.any() and not accepted.all()
    for before, better, after in zip(dropped, accepted, dropped[1:], strict=False):
        assert after == (min(2 * before, COUNT // 2) if better else max(before // 2, 1))
    assert (result.history["exchanged"] <= dropped).all()
    np.testing.assert_array_equal(
        result.history["best"],
        np.minimum.accumulate(np.minimum(result.history["tried"], result.first)),
    )
    # The optimum of a linear loss.
    assert result.best.loss == pytest.approx(float(np.sort(WEIGHTS, axis=None)[:COUNT].sum()))
    assert float(result.best.aux["count"]) == COUNT


@every_exchange
@pytest.mark.parametrize("count", [0, 1, 2, 53, 54])
def test_extreme_counts(kind, count):
    result = run(
        swaps(Partial(linear, WEIGHTS), SHAPE, count, SwapConfig(kind)), jax.random.key(0), steps=5
    )
    assert int(result.mask(SHAPE).sum()) == count
    assert result.best.loss <= result.first


def test_it_begins_at_the_mask_that_it_is_given(mask):
    search = swaps(Partial(linear, WEIGHTS), SHAPE, COUNT, start=mask)
    state = jax.jit(search.init)(jax.random.key(0))
    np.testing.assert_array_equal(unpack_mask(state.best.bits, SHAPE), mask)
    assert state.best.loss == pytest.approx(float(linear(WEIGHTS, mask)[0]))


@every_exchange
def test_other_clips_counts_and_starts_compile_nothing(kind, mask):
    def go(weights, count, start):
        objective = Partial(linear, weights)
        return run(
            swaps(objective, SHAPE, count, SwapConfig(kind), start=start),
            jax.random.key(0),
            steps=3,
        )

    go(WEIGHTS, COUNT, mask)
    other = random_mask(jax.random.key(2), SHAPE, 20)
    weights = jnp.flip(WEIGHTS)
    with Compilations() as compilations:
        go(weights, 20, other)
    assert compilations.count == 0


def test_evaluations_are_counted():
    calls = []

    def counted(mask):
        jax.debug.callback(lambda: calls.append(1))
        return jnp.sum(WEIGHTS * mask), None

    for kind in EXCHANGES:
        calls.clear()
        result = run(swaps(counted, SHAPE, COUNT, SwapConfig(kind)), jax.random.key(0), steps=4)
        jax.effects_barrier()
        assert len(calls) == result.evaluations, kind


def test_clips_are_searched_side_by_side():
    weights = jax.random.normal(jax.random.key(5), (3, *SHAPE))
    search = batch(
        lambda own: swaps(Partial(linear, own), SHAPE, COUNT, SwapConfig(looked_at=0.5)), weights
    )
    result = run(search, jax.random.key(0), steps=400, one_call=True)
    best = np.sort(weights.reshape(3, -1), axis=1)[:, :COUNT].sum(axis=1)
    np.testing.assert_allclose(result.best.loss, best, rtol=1e-5)


def test_what_has_no_derivative_is_refused():
    objective = HostObjective(lambda bits: (np.zeros(len(bits)), None))
    with pytest.raises(TypeError, match="leaves the device has no gradient"):
        swaps(objective, SHAPE, COUNT)


def test_a_start_that_does_not_fit_is_refused(mask):
    with pytest.raises(ValueError, match="a start has to keep 16 bins, not"):
        swaps(Partial(linear, WEIGHTS), SHAPE, 16, start=mask)
    with pytest.raises(ValueError, match="doesn't fit"):
        swaps(Partial(linear, WEIGHTS), SHAPE, COUNT, start=mask.T)


def test_unknown_exchanges_are_refused():
    config = SwapConfig()
    # Without the type check that only tests have.
    object.__setattr__(config, "exchange", "barter")
    with pytest.raises(ValueError, match=r"exchange is one of .*, not 'barter'"):
        config.__post_init__()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"least": -1.0}, "least is more than 0 and at most 1, not -1.0"),
        ({"first": 0.0}, "first is more than 0 and at most 1, not 0.0"),
        ({"looked_at": 1.5}, "looked_at is more than 0 and at most 1, not 1.5"),
    ],
)
def test_settings_out_of_range_are_refused(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        SwapConfig(**settings)


@pytest.mark.parametrize("count", [-1, 55])
def test_counts_out_of_range_are_refused(count):
    with pytest.raises(ValueError, match="can't keep"):
        swaps(Partial(linear, WEIGHTS), SHAPE, count)
