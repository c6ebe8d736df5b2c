"""The contract of every relaxation, in one table, and what each of them computes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

from jaxsparse.masks import project_to_count as project
from jaxsparse.masks import random_mask
from jaxsparse.search.contract import as_tree
from jaxsparse.search.relaxations import (
    RELAXATIONS,
    SOFT,
    entropic,
    exact_sum,
    geometric,
    lapsum,
    logistic,
    perturbed,
    projection,
    straight_through,
)
from tests.reference import Compilations, derivative, project_to_count, sigmoid

SHAPE = (4, 5)
COUNT = jnp.int32(6)
UPDATE = jnp.int32(0)
COUNTS = (0, 1, 6, 19, 20)

# One of those that round will do.
every_relaxation = pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[] if n in SOFT or n.endswith("-projection") else pytest.mark.slow)
        for n in RELAXATIONS
    ],
)


@jax.jit
def call(to_mask, scores, count, update):
    return to_mask(scores, count, update)


def mask_of(relaxation, scores, count, update=UPDATE):
    """As a search calls it: with what the relaxation holds, the count and the update traced."""
    return call(as_tree(relaxation.to_mask), scores, count, update)


@every_relaxation
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("scale", [0.1, 3.0, 100.0])
def test_masks_are_within_0_and_1_and_rise_with_the_scores(name, count, scale, key):
    scores = scale * jax.random.normal(key, SHAPE)
    mask = np.asarray(mask_of(RELAXATIONS[name](), scores, jnp.int32(count)))
    assert mask.shape == SHAPE and mask.dtype == np.float32
    assert mask.min() >= 0 and mask.max() <= 1
    ascending = np.ravel(mask)[np.argsort(np.ravel(scores))]
    assert (np.diff(ascending) >= 0).all()


@every_relaxation
@pytest.mark.parametrize("count", COUNTS)
def test_the_start_is_rounded_to_the_mask_that_it_is_made_of(name, count, key):
    mask = random_mask(key, SHAPE, count)
    scores = RELAXATIONS[name]().to_scores(jax.random.key(1), mask)
    np.testing.assert_array_equal(project(scores, count), mask)


@every_relaxation
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("scale", [0.0, 0.1, 3.0, 100.0])
def test_gradients_are_finite(name, count, scale, key):
    scores = scale * jax.random.normal(key, SHAPE)
    assert np.isfinite(gradient_of(name)(scores, jnp.int32(count))).all()


@functools.cache
def gradient_of(name):
    """That of a weighted sum of the mask, by scores and count; compiled once for all of them."""
    relaxation = RELAXATIONS[name](steepness=2.0)
    weights = jax.random.normal(jax.random.key(1), SHAPE)

    @jax.jit
    def gradient(scores, count):
        return jax.grad(lambda x: jnp.sum(weights * mask_of(relaxation, x, count)))(scores)

    return gradient


@every_relaxation
def test_other_counts_and_updates_compile_nothing(name, key):
    relaxation = RELAXATIONS[name]()
    scores = jax.random.normal(key, SHAPE)
    arguments = [(jnp.int32(count), jnp.int32(10 * count)) for count in COUNTS]
    mask_of(relaxation, scores, *arguments[0])
    with Compilations() as compilations:
        masks = [mask_of(relaxation, scores, *each) for each in arguments]
    assert compilations.count == 0
    for (count, update), mask in zip(arguments, masks, strict=True):
        alone = relaxation.to_mask(scores, count, update)
        np.testing.assert_allclose(mask, alone, rtol=1e-5, atol=1e-6)


@every_relaxation
def test_settings_can_be_mapped_over(name, key):
    scores = jax.random.normal(key, SHAPE)
    steepness = jnp.array([0.5, 1.0, 4.0])

    def gradient(steepness):
        def total(scores):
            mask = RELAXATIONS[name](steepness=steepness).to_mask(scores, COUNT, UPDATE)
            return jnp.sum(mask * scores), mask

        return jax.grad(total, has_aux=True)(scores)

    together = jax.jit(jax.vmap(gradient))(steepness)
    for i, each in enumerate(steepness):
        for some, alone in zip(together, gradient(each), strict=True):
            np.testing.assert_allclose(some[i], alone, rtol=1e-5, atol=1e-6)
    assert len(np.unique(together[0], axis=0)) == 3


@every_relaxation
@pytest.mark.usefixtures("strict_dtypes")
def test_nothing_is_promoted(name, key):
    relaxation = RELAXATIONS[name]()
    mask = jnp.eye(2, 3, dtype=bool)
    scores = relaxation.to_scores(key, mask)
    assert relaxation.to_mask(scores, jnp.int32(2), UPDATE).dtype == scores.dtype == jnp.float32


def test_logistic_by_hand():
    scores = jnp.array([[-2.0, 0.0, 0.5]])
    mask = logistic(3.0).to_mask(scores, COUNT, jnp.int32(7))
    np.testing.assert_allclose(mask, sigmoid(3 * np.asarray(scores, np.float64)), rtol=1e-6)


@pytest.mark.parametrize("name", SOFT)
def test_a_schedule_gives_the_steepness_of_each_update(name, key):
    scores = jax.random.normal(key, SHAPE)
    own = geometric(1.0, 16.0, updates=100)
    theirs = optax.exponential_decay(1.0, 100, 16.0, end_value=16.0)
    for update, steepness in [(0, 1.0), (25, 2.0), (50, 4.0), (100, 16.0), (1000, 16.0)]:
        expected = RELAXATIONS[name](steepness).to_mask(scores, COUNT, jnp.int32(0))
        for schedule in (own, theirs):
            mask = mask_of(RELAXATIONS[name](schedule), scores, COUNT, jnp.int32(update))
            np.testing.assert_allclose(mask, expected, rtol=1e-4, atol=1e-6)


def test_numbers_of_a_schedule_compile_nothing(key):
    scores = jax.random.normal(key, SHAPE)
    mask_of(projection(geometric(1.0, 2.0, 10)), scores, COUNT)
    with Compilations() as compilations:
        mask_of(projection(geometric(jnp.float32(3), jnp.float32(9), 20)), scores, COUNT)
    assert compilations.count == 0


def test_straight_through_rounds_with_the_gradient_of_the_sigmoid(key):
    scores = jax.random.normal(key, SHAPE)
    weights = jax.random.normal(jax.random.key(1), SHAPE)

    @jax.jit
    def value_and_gradient(count):
        def f(scores):
            mask = straight_through(logistic(2.0)).to_mask(scores, count, UPDATE)
            return jnp.sum(weights * mask), mask

        return jax.grad(f, has_aux=True)(scores)

    phi = sigmoid(2 * np.asarray(scores, np.float64))
    for count in (0, 6, 20):
        gradient, mask = value_and_gradient(jnp.int32(count))
        np.testing.assert_array_equal(mask, project_to_count(scores, count))
        np.testing.assert_allclose(gradient, weights * 2 * phi * (1 - phi), rtol=1e-5, atol=1e-7)


def shifted_by_bisection(scores, count, steepness):
    low, high = -100.0, 100.0
    for _ in range(200):
        middle = (low + high) / 2
        if np.sum(sigmoid(steepness * (scores - middle))) > count:
            low = middle
        else:
            high = middle
    return sigmoid(steepness * (scores - low))


@pytest.mark.parametrize("steepness", [0.5, 4.0])
def test_exact_sum_and_its_derivatives(key, steepness):
    scores = jax.random.normal(key, SHAPE)
    weights = np.asarray(jax.random.normal(jax.random.key(1), SHAPE))
    tangent = jax.random.normal(jax.random.key(2), SHAPE)

    def f(scores):
        return jnp.sum(weights * exact_sum(steepness).to_mask(scores, COUNT, UPDATE))

    def slow(scores):
        return np.sum(weights * shifted_by_bisection(scores, int(COUNT), steepness))

    mask = exact_sum(steepness).to_mask(scores, COUNT, UPDATE)
    np.testing.assert_allclose(jnp.sum(mask), int(COUNT), rtol=1e-6)
    np.testing.assert_allclose(
        mask, shifted_by_bisection(np.asarray(scores, np.float64), int(COUNT), steepness), rtol=1e-5
    )
    gradient = derivative(slow, scores)
    np.testing.assert_allclose(jax.grad(f)(scores), gradient, atol=2e-6)
    _, along = jax.jvp(f, (scores,), (tangent,))
    np.testing.assert_allclose(along, np.sum(gradient * tangent), atol=1e-5)


@pytest.mark.parametrize("steepness", [0.5, 1.5])
def test_projection_is_the_nearest_feasible_mask(key, steepness):
    """Against a solver of quadratic programs, with the derivative of its formula."""
    scores = jax.random.normal(key, SHAPE)
    weights = np.asarray(jax.random.normal(jax.random.key(1), SHAPE))
    point = steepness * np.asarray(scores, np.float64).ravel()
    nearest = scipy.optimize.minimize(
        lambda m: np.sum((m - point) ** 2),
        np.full(point.size, int(COUNT) / point.size),
        jac=lambda m: 2 * (m - point),
        bounds=[(0, 1)] * point.size,
        constraints={"type": "eq", "fun": lambda m: m.sum() - int(COUNT)},
        options={"ftol": 1e-14, "maxiter": 500},
    )

    @jax.jit
    def value_and_gradient(scores):
        def f(scores):
            mask = projection(steepness).to_mask(scores, COUNT, UPDATE)
            return jnp.sum(weights * mask), mask

        return jax.grad(f, has_aux=True)(scores)

    gradient, mask = value_and_gradient(scores)
    np.testing.assert_allclose(np.ravel(mask), nearest.x, atol=1e-5)
    np.testing.assert_allclose(jnp.sum(mask), int(COUNT), rtol=1e-6)
    free = (np.asarray(mask) > 0) & (np.asarray(mask) < 1)
    assert 1 < free.sum() < free.size
    expected = np.where(free, steepness * (weights - weights[free].mean()), 0)
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


def test_projection_keeps_on_rounding_what_a_sigmoid_spreads(key):
    """Of normal scores, 76 % of the mass lies on the bins that rounding keeps, and not 22 %."""
    scores, count = jax.random.normal(key, (1025, 302)), 15_478
    kept = project(scores, count)
    for relaxation, share in ((projection(), 0.76), (exact_sum(), 0.22)):
        mask = jax.jit(relaxation.to_mask)(scores, jnp.int32(count), UPDATE)
        assert float(jnp.sum(mask * kept) / count) == pytest.approx(share, abs=0.01)


def test_exact_sum_at_extreme_counts_and_scores(key):
    scores = 100 * jax.random.normal(key, SHAPE)

    def f(count, scores):
        mask = exact_sum().to_mask(scores, count, UPDATE)
        return jnp.sum(mask * scores), mask

    counts = jnp.array([0, 1, 19, 20])
    mapped = jax.jit(jax.vmap(jax.grad(f, argnums=1, has_aux=True), (0, None)))
    gradients, masks = mapped(counts, scores)
    np.testing.assert_allclose(jnp.sum(masks, axis=(1, 2)), counts, atol=1e-5)
    assert np.all(np.isfinite(gradients))


def test_exact_sum_of_a_whole_clip(key):
    count = 15_477
    scores = 4 * jax.random.normal(key, (1025, 302))
    mask = jax.jit(exact_sum(3.0).to_mask)(scores, jnp.int32(count), UPDATE)
    np.testing.assert_allclose(np.sum(np.asarray(mask, np.float64)), count, rtol=1e-6)


@pytest.mark.parametrize("name", SOFT)
def test_straight_through_masks_are_hard_and_have_the_gradient_of_the_soft_ones(name, key):
    soft, scores = SOFT[name](2.0), jax.random.normal(key, SHAPE)
    hard = RELAXATIONS[f"straight-through-{name}"](steepness=2.0)
    weights = jax.random.normal(jax.random.key(1), SHAPE)
    mask = mask_of(hard, scores, COUNT)
    np.testing.assert_array_equal(mask, project(scores, COUNT).astype(np.float32))
    gradients = [
        jax.grad(lambda x, r=r: jnp.sum(weights * mask_of(r, x, COUNT)))(scores)
        for r in (hard, soft)
    ]
    np.testing.assert_allclose(*gradients, atol=1e-6)


def lapsum_by_sorting(scores, count, steepness):
    """Solves a quadratic equation for the shift between each two neighbouring scores."""
    x = np.sort(steepness * np.asarray(scores, np.float64).ravel())

    def total(shift):
        return np.sum(np.where(x < shift, np.exp(x - shift) / 2, 1 - np.exp(shift - x) / 2))

    # It falls with the shift: the highest score at which it is still enough, and the next one.
    n_below = sum(total(each) >= count for each in x)
    below, above = x[:n_below], x[n_below:]
    # below e^-b / 2 + n - above e^b / 2 = count, with e^b as the unknown.
    p, q = np.sum(np.exp(below)) / 2, np.sum(np.exp(-above)) / 2
    n = len(above) - count
    shift = np.log(p / -n) if q == 0 else np.log((n + np.sqrt(n * n + 4 * p * q)) / (2 * q))
    flat = steepness * np.asarray(scores, np.float64)
    return np.where(flat < shift, np.exp(flat - shift) / 2, 1 - np.exp(shift - flat) / 2)


@pytest.mark.parametrize("steepness", [0.5, 4.0])
@pytest.mark.parametrize("count", [1, 6, 19])
def test_lapsum_agrees_with_its_closed_form(steepness, count, key):
    scores = jax.random.normal(key, SHAPE)
    mask = mask_of(lapsum(steepness), scores, jnp.int32(count))
    np.testing.assert_allclose(mask, lapsum_by_sorting(scores, count, steepness), rtol=2e-5)


@pytest.mark.parametrize("steepness", [0.5, 3.0])
def test_entropic_masks_are_the_nearest_by_relative_entropy(steepness, key):
    """Entries are capped from the highest one on, the others share what is left as a softmax."""
    scores = jax.random.normal(key, SHAPE)
    weights = np.exp(steepness * np.asarray(scores, np.float64).ravel())
    order = np.argsort(-weights)
    expected, capped = np.full(weights.size, np.inf), 0
    while expected.max() > 1:
        expected[order[:capped]] = 1
        rest = order[capped:]
        expected[rest] = (int(COUNT) - capped) * weights[rest] / weights[rest].sum()
        capped += 1
    mask = mask_of(entropic(steepness), scores, COUNT)
    np.testing.assert_allclose(np.ravel(mask), expected, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in SOFT if name != "logistic"])
def test_derivatives_are_those_of_finite_differences(name, key):
    scores = jax.random.normal(key, SHAPE)
    weights = jax.random.normal(jax.random.key(1), SHAPE)
    f = jax.jit(lambda x: jnp.sum(weights * SOFT[name](1.5).to_mask(x, COUNT, UPDATE)))
    tangent = jax.random.normal(jax.random.key(2), SHAPE)
    step = 1e-3
    expected = (f(scores + step * tangent) - f(scores - step * tangent)) / (2 * step)
    # Differences of float32 over such a step; no entry crosses a bend within it.
    np.testing.assert_allclose(jnp.sum(jax.grad(f)(scores) * tangent), expected, atol=2e-3)


def test_noise_is_drawn_for_each_update_and_ends_with_its_scale(key):
    scores = jax.random.normal(key, SHAPE)
    hard = straight_through(projection())
    noisy = perturbed(hard, optax.linear_schedule(1.0, 0.0, 10))
    masks = [mask_of(noisy, scores, COUNT, jnp.int32(update)) for update in (0, 0, 1, 10)]
    np.testing.assert_array_equal(masks[0], masks[1])
    assert np.any(masks[0] != masks[2])
    np.testing.assert_array_equal(masks[3], project(scores, COUNT))
    assert {float(mask.sum()) for mask in masks} == {float(COUNT)}
    other = mask_of(perturbed(hard, 1.0, seed=1), scores, COUNT)
    assert np.any(other != mask_of(perturbed(hard, 1.0), scores, COUNT))


def test_the_highest_perturbed_scores_are_draws_by_their_softmax():
    """How often each of three entries is kept where one is, over 4,000 updates."""
    scores = jnp.log(jnp.array([[0.2, 0.5, 0.3]]))
    drawn = perturbed(straight_through(projection()), 1.0)
    draw = jax.jit(jax.vmap(lambda update: drawn.to_mask(scores, jnp.int32(1), update)))
    shares = np.asarray(draw(jnp.arange(4_000))).mean(axis=0)[0]
    np.testing.assert_allclose(shares, [0.2, 0.5, 0.3], atol=0.03)
