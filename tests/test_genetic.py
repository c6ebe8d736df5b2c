import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from jaxsparse.masks import pack_mask, random_mask, unpack_mask
from jaxsparse.search.genetic import (
    THESIS,
    WITHOUT_REPRODUCTION,
    GeneticConfig,
    _choose_parents,
    _copies,
    _taken,
    crossover,
    genetic,
    mutate,
)
from jaxsparse.search.run import run

SHAPE, COUNT = (6, 9), 17
KEYS = jax.random.split(jax.random.key(0), 200)
# Each function is compiled once, for all keys.
draw = jax.jit(jax.vmap(lambda key: random_mask(key, SHAPE, COUNT)))
CONFIGS = {
    "uniform": GeneticConfig(),
    "blocks": GeneticConfig(crossover="blocks", block=(2, 4)),
    "bands": GeneticConfig(crossover="bands", block=(2, 1)),
}


def pairs():
    return draw(KEYS), draw(jax.random.split(jax.random.key(1), 200))


def taken_by(config, a, b):
    return jax.jit(jax.vmap(lambda key, a, b: _taken(config, key, a, b)))(KEYS, a, b)


def children_of(a, b, taken):
    keys = jax.random.split(jax.random.key(2), 200)
    cross = jax.vmap(lambda key, a, b, taken: crossover(key, a, b, taken, COUNT))
    return jax.jit(cross)(keys, a, b, taken)


@pytest.mark.parametrize("name", CONFIGS)
def test_child_is_what_the_parents_agree_on_and_ones_from_where_they_differ(name):
    a, b = pairs()
    child = np.asarray(children_of(a, b, taken_by(CONFIGS[name], a, b)))
    a, b = np.asarray(a), np.asarray(b)
    assert (child.sum((1, 2)) == COUNT).all()
    assert (child >= a & b).all() and (child <= a | b).all()


def test_ones_are_drawn_uniformly_from_the_difference():
    """With equal parents each time, every differing entry is taken in half of the children."""
    a, b = (jnp.broadcast_to(mask[0], (200, *SHAPE)) for mask in pairs())
    child = np.asarray(children_of(a, b, taken_by(GeneticConfig(), a, b)))
    differ = np.asarray(a ^ b)[0]
    shares = child.mean(0)[differ]
    # Five standard deviations of a mean of 200 coins.
    assert np.abs(shares - 0.5).max() < 5 * 0.5 / np.sqrt(200)
    assert (child[:, np.asarray(a & b)[0]]).all()


@pytest.mark.parametrize(("name", "height", "width"), [("blocks", 2, 4), ("bands", 2, 9)])
def test_structured_crossover_takes_blocks_of_one_parent(name, height, width):
    a, b = pairs()
    taken = np.asarray(taken_by(CONFIGS[name], a, b))
    a, b = np.asarray(a), np.asarray(b)
    sources = set()
    for i in range(len(taken)):
        for top in range(0, SHAPE[0], height):
            for left in range(0, SHAPE[1], width):
                block = (i, slice(top, top + height), slice(left, left + width))
                from_a, from_b = (taken[block] == a[block]).all(), (taken[block] == b[block]).all()
                assert from_a or from_b
                sources |= {"a"} if not from_b else {"b"} if not from_a else set()
    assert sources == {"a", "b"}


def test_taken_entries_come_before_the_others():
    a, b = pairs()
    taken = a  # so that the child is the first parent
    np.testing.assert_array_equal(children_of(a, b, taken), a)
    np.testing.assert_array_equal(children_of(a, a, taken_by(CONFIGS["blocks"], a, a)), a)


@pytest.mark.parametrize(("share", "moved"), [(0.0, 0), (0.01, 1), (0.2, 3), (1.0, 17)])
def test_mutation_swaps_so_many_ones_and_zeros(share, moved):
    masks = draw(KEYS)
    mutated = jax.jit(jax.vmap(lambda key, mask: mutate(key, mask, share)))(KEYS, masks)
    assert (mutated.sum((1, 2)) == COUNT).all()
    assert ((masks & ~mutated).sum((1, 2)) == moved).all()


@pytest.mark.parametrize("count", [0, 50, 54])
def test_mutation_moves_no_more_than_there_is_room_for(count):
    mask = random_mask(jax.random.key(0), SHAPE, count)
    mutated = mutate(jax.random.key(1), mask, 1.0)
    assert int(mutated.sum()) == count
    assert int((mask & ~mutated).sum()) == min(count, mask.size - count)


@pytest.mark.parametrize("tournament", [1, 3])
def test_parents_are_two_of_the_best(tournament):
    config = GeneticConfig(tournament=tournament)
    ranks = np.asarray(jax.vmap(lambda key: _choose_parents(config, key))(KEYS)).reshape(-1, 2)
    assert (ranks[:, 0] != ranks[:, 1]).all()
    assert ranks.min() == 0 and ranks.max() == config.n_parents - 1
    # Uniform ranks from 0 to 19 have a mean of 9.5; the least of three, 4.5.
    expected = {1: 9.5, 3: (20 - 1) / 4}[tournament]
    assert abs(ranks[:, 0].mean() - expected) < 0.5


def test_generation_is_elite_children_and_new_ones():
    """The thesis' partition: 10 %, 40 % and 50 % of 50."""
    weights = jax.random.normal(jax.random.key(3), SHAPE)

    def loss(weights, mask):
        return jnp.sum(jnp.where(mask, weights, 0)), None

    search = genetic(Partial(loss, weights), SHAPE, COUNT, THESIS)
    before = jax.jit(search.init)(jax.random.key(4))
    after, info = jax.jit(search.step)(jax.random.key(5), before)
    order = np.argsort(np.asarray(before.losses), kind="stable")
    np.testing.assert_array_equal(after.population[:5], np.asarray(before.population)[order[:5]])
    np.testing.assert_array_equal(after.losses[:5], np.asarray(before.losses)[order[:5]])
    masks = np.stack([unpack_mask(bits, SHAPE) for bits in after.population])
    assert (masks.sum((1, 2)) == COUNT).all()
    parents = np.stack([unpack_mask(bits, SHAPE) for bits in before.population])[order[:20]]

    def is_child(mask):
        """Between some pair of the parents."""
        both = (parents[:, None] & parents[None]) <= mask
        either = mask <= (parents[:, None] | parents[None])
        return (both.all((-1, -2)) & either.all((-1, -2))).any()

    assert all(is_child(mask) for mask in masks[5:25])
    assert sum(is_child(mask) for mask in masks[25:]) == 0
    expected = [float(loss(weights, mask)[0]) for mask in masks]
    np.testing.assert_allclose(after.losses, expected, rtol=1e-5)
    assert info.generation_best == min(after.losses) and info.failed == 0
    np.testing.assert_allclose(info.mean, np.mean(expected), rtol=1e-5)
    assert (search.initial_evaluations, search.evaluations) == (50, 45)


def test_control_keeps_no_one():
    search = genetic(lambda mask: (jnp.sum(mask * 1.0), None), SHAPE, COUNT, WITHOUT_REPRODUCTION)
    before = jax.jit(search.init)(jax.random.key(4))
    after, _ = jax.jit(search.step)(jax.random.key(5), before)
    old = {bytes(bits) for bits in np.asarray(before.population)}
    new = {bytes(bits) for bits in np.asarray(after.population)}
    assert len(old) == len(new) == 50 and not old & new
    assert search.evaluations == 50


@pytest.mark.parametrize(
    "count",
    [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(53, marks=pytest.mark.slow), 54],
)
def test_extreme_counts(count):
    config = GeneticConfig(6, mutation=0.5)
    search = genetic(lambda mask: (jnp.sum(mask * 1.0), None), SHAPE, count, config)
    state, _ = jax.jit(search.step)(jax.random.key(1), jax.jit(search.init)(jax.random.key(0)))
    assert all(int(unpack_mask(bits, SHAPE).sum()) == count for bits in state.population)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (4, 8)])
def test_packing(shape):
    mask = random_mask(jax.random.key(0), shape, shape[1] // 2)
    bits = pack_mask(mask)
    np.testing.assert_array_equal(bits, np.packbits(np.asarray(mask)))
    np.testing.assert_array_equal(unpack_mask(bits, shape), mask)
    with pytest.raises(ValueError, match="bytes, not"):
        unpack_mask(bits, (9, 9))


def test_drawing_within_a_mask():
    allowed = random_mask(jax.random.key(0), SHAPE, 20)
    for count in (0, 7, 20):
        mask = random_mask(jax.random.key(1), SHAPE, count, within=allowed)
        assert int(mask.sum()) == count and not (mask & ~allowed).any()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"population_size": 0}, "no room"),
        ({"elite_share": 0.8, "child_share": 0.4}, "no room"),
        ({"elite_share": 1.0}, "no room"),
        ({"child_share": 1.2}, "from 0 to 1"),
        ({"mutation": -0.1}, "from 0 to 1"),
        ({"population_size": 4, "parent_share": 0.25}, "two parents"),
        ({"tournament": 0}, "at least one"),
        ({"block": (0, 4)}, "at least one"),
    ],
)
def test_settings_out_of_range_are_refused(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        genetic(lambda mask: (jnp.sum(mask), None), SHAPE, COUNT, GeneticConfig(**settings))


def test_unknown_crossover_is_refused():
    config = GeneticConfig()
    # Without the type check that only tests have.
    object.__setattr__(config, "crossover", "blobs")
    with pytest.raises(ValueError, match="crossover is one of"):
        genetic(lambda mask: (jnp.sum(mask), None), SHAPE, COUNT, config)


@pytest.mark.parametrize("count", [-1, 55])
def test_counts_out_of_range_are_refused(count):
    with pytest.raises(ValueError, match="can't keep"):
        genetic(lambda mask: (jnp.sum(mask), None), SHAPE, count)


def test_a_search_begins_with_the_masks_that_it_is_given():
    start = draw(KEYS)[:3]
    search = genetic(lambda mask: (jnp.sum(mask * 1.0), None), SHAPE, COUNT, start=start)
    population = jax.jit(search.init)(jax.random.key(4)).population
    np.testing.assert_array_equal(population[:3], jax.vmap(pack_mask)(start))
    assert len(population) == 50 and len(np.unique(population, axis=0)) == 50
    with pytest.raises(ValueError, match="51 masks to start from don't fit 50"):
        genetic(lambda mask: (jnp.sum(mask), None), SHAPE, COUNT, start=draw(KEYS)[:51])


def test_copies_are_all_but_the_first_of_those_that_are_equal():
    population = jax.vmap(pack_mask)(draw(KEYS)[:6])[jnp.array([0, 1, 0, 2, 2, 0, 3])]
    copies = jax.jit(_copies)(population)
    np.testing.assert_array_equal(copies, [False, False, True, False, True, True, False])


@pytest.mark.parametrize(("distinct", "share"), [(True, 1.0), (False, 0.25)])
def test_a_population_stays_distinct_if_it_is_asked_to(distinct, share):
    """Where all begin alike, children are what their parents are, and new ones are drawn."""
    start = jnp.broadcast_to(draw(KEYS)[0], (8, *SHAPE))
    config = GeneticConfig(8, 0.25, 0.5, mutation=0.0, distinct=distinct)
    weights = jax.random.normal(jax.random.key(3), SHAPE)
    search = genetic(
        Partial(lambda w, mask: (jnp.sum(w * mask), None), weights),
        SHAPE,
        COUNT,
        config,
        start=start,
    )
    state, info = jax.jit(search.step)(jax.random.key(5), jax.jit(search.init)(jax.random.key(4)))
    masks = np.stack([unpack_mask(bits, SHAPE) for bits in state.population])
    assert (masks.sum((1, 2)) == COUNT).all()
    # The elite is one mask and its copy, which are not evaluated anew.
    new = np.unique(np.asarray(state.population)[2:], axis=0)
    assert len(new) == (6 if distinct else 3)
    assert info.distinct == len(np.unique(state.population, axis=0)) / 8


def linear(weights, mask):
    return jnp.sum(weights * mask), None


def quadratic(weights, mask):
    m = mask.ravel().astype(jnp.float32)
    return m @ weights @ m, None


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linear", "quadratic"])
def test_the_default_comes_nearer_to_the_optimum_than_the_thesis(kind):
    """In 5,000 evaluations; the least sum of 10 of 100 and a quadratic form over 32 of 128."""
    key = jax.random.key(7)
    if kind == "linear":
        shape, count, weights = (10, 10), 10, jax.random.permutation(key, jnp.arange(100.0))
        objective = Partial(linear, weights.reshape(shape))
    else:
        shape, count = (8, 16), 32
        weights = jax.random.normal(key, (128, 128))
        objective = Partial(quadratic, weights)
    found = {}
    for name, config in (("default", GeneticConfig()), ("thesis", THESIS)):
        search = genetic(objective, shape, count, config)
        found[name] = float(run(search, key, steps=1_000, evaluations=5_000).best.loss)
    assert found["default"] < found["thesis"]
    if kind == "linear":
        # 0 to 9 add up to 45.
        assert found["default"] < 50
