"""The contract of every relaxation, in one table, and what each of them computes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxsparse.masks import project_to_count as project
from jaxsparse.masks import random_mask
from jaxsparse.search.contract import as_tree
from jaxsparse.search.relaxations import (
    RELAXATIONS,
    exact_sum,
    logistic,
    projection,
    rounded,
    straight_through,
)
from tests.reference import Compilations, derivative, project_to_count, sigmoid

SHAPE = (4, 5)
COUNT = jnp.int32(6)
UPDATE = jnp.int32(0)
COUNTS = (0, 1, 6, 19, 20)

every_relaxation = pytest.mark.parametrize("name", RELAXATIONS)


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


def test_steepness_is_annealed_geometrically():
    relaxation = logistic(1.0, 16.0, updates=100)
    scores = jnp.full((1, 1), 0.1)
    for update, steepness in [(0, 1), (25, 2), (50, 4), (100, 16), (1000, 16)]:
        mask = relaxation.to_mask(scores, COUNT, jnp.int32(update))
        np.testing.assert_allclose(mask[0, 0], sigmoid(0.1 * steepness), rtol=1e-5)


def test_straight_through_rounds_with_the_gradient_of_the_sigmoid(key):
    scores = jax.random.normal(key, SHAPE)
    weights = jax.random.normal(jax.random.key(1), SHAPE)

    @jax.jit
    def value_and_gradient(count):
        def f(scores):
            mask = straight_through(2.0).to_mask(scores, count, UPDATE)
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


@every_relaxation
def test_rounded_masks_are_hard_and_have_the_gradient_of_the_soft_ones(name, key):
    soft, scores = RELAXATIONS[name](steepness=2.0), jax.random.normal(key, SHAPE)
    weights = jax.random.normal(jax.random.key(1), SHAPE)
    hard = mask_of(rounded(soft), scores, COUNT)
    np.testing.assert_array_equal(hard, project(scores, COUNT).astype(np.float32))
    gradients = [
        jax.grad(lambda x, r=r: jnp.sum(weights * mask_of(r, x, COUNT)))(scores)
        for r in (rounded(soft), soft)
    ]
    np.testing.assert_allclose(*gradients, atol=1e-6)
