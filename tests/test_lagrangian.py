import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from jaxsparse.masks import unpack_mask
from jaxsparse.search.contract import HostObjective
from jaxsparse.search.lagrangian import (
    LagrangianSettings,
    constant_mask,
    hard_mask,
    kkt_residual,
    lagrangian,
    multiplier_ascent,
    soft_mask,
)
from jaxsparse.search.relaxations import (
    Relaxation,
    exact_sum,
    geometric,
    logistic,
    straight_through,
)
from jaxsparse.search.run import batch, run
from tests.reference import Compilations, project_to_count, sigmoid

SHAPE = (4, 5)
COUNT = 6
# Fast enough for some hundred updates of twenty entries.
SETTINGS = LagrangianSettings(learning_rate=0.1, multiplier_rate=5.0, penalty=5.0)


def quadratic(target, mask):
    mask = mask.astype(jnp.float32)
    return jnp.sum((mask - target) ** 2), {"corner": mask[0, 0]}


@pytest.fixture
def target():
    return jax.random.uniform(jax.random.key(1), SHAPE)


def search_of(target, count=COUNT, settings=SETTINGS, **options):
    return lagrangian(Partial(quadratic, target), SHAPE, count, settings, **options)


# Starts and baselines


def test_start_is_the_thesis(key):
    shape, count = (1025, 302), 15_477
    search = lagrangian(lambda mask: (jnp.mean(mask), None), shape, count)
    state = jax.jit(search.init)(key)
    size = np.abs(state.scores)
    assert np.all((size >= 4) & (size <= 5))
    assert np.sum(np.asarray(state.scores) > 0) == count
    np.testing.assert_array_equal(unpack_mask(state.start, shape), state.scores > 0)
    # Infeasible by a fifth; over draws the sum has a standard deviation of two.
    total = np.sum(np.asarray(soft_mask(logistic(), state, count), np.float64))
    np.testing.assert_allclose(total, 18_663, atol=10)
    assert state.multiplier == 0


def test_constant_mask_meets_the_constraint():
    mask = constant_mask(SHAPE, COUNT)
    assert mask.shape == SHAPE and np.ptp(mask) == 0
    np.testing.assert_allclose(np.sum(mask), COUNT, rtol=1e-6)


# Updates


def test_multiplier_ascends_by_hand():
    transform = multiplier_ascent(0.5, every=3)
    multiplier = jnp.float32(1)
    state = transform.init(multiplier)
    seen = []
    for violation in [1.0, 2.0, 3.0, 4.0, 5.0, -6.0, 7.0]:
        update, state = transform.update(jnp.float32(violation), state)
        multiplier = multiplier + update
        seen.append(float(multiplier))
    assert seen == [1, 1, 2.5, 2.5, 2.5, -0.5, -0.5]


def slow_search(scores, start, target, settings, steps, updates_per_step, every):
    """History of a run with the standard sigmoid, from the formulas, in float64."""
    scores = np.asarray(scores, np.float64)
    multiplier, first, second, n = settings.multiplier_start, 0.0, 0.0, 0
    best = np.sum((start - target) ** 2)
    history = []

    def measure():
        phi = sigmoid(scores)
        violation = phi.mean() - COUNT / phi.size
        price = multiplier + settings.penalty * violation
        gradient = phi * (1 - phi) * (2 * (phi - target) + price / phi.size)
        return np.sum((phi - target) ** 2), violation, gradient

    for _ in range(steps):
        for _ in range(updates_per_step):
            _, violation, gradient = measure()
            n += 1
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            change = (first / (1 - 0.9**n)) / (np.sqrt(second / (1 - 0.999**n)) + 1e-8)
            change = change + settings.weight_decay * scores
            scores = scores - settings.learning_rate * change
            if n % every == 0:
                multiplier += settings.multiplier_rate * violation
        loss, violation, gradient = measure()
        rounded = project_to_count(scores, COUNT)
        hard_loss = np.sum((rounded - target) ** 2)
        best = min(best, hard_loss)
        history.append(
            {
                "best": best,
                "loss": loss,
                "violation": violation,
                "gradient_norm": np.linalg.norm(gradient),
                "multiplier": multiplier,
                "hard_loss": hard_loss,
                "crossings": np.sum(rounded != start),
                "failed": 0,
            }
        )
    return scores, {name: np.array([h[name] for h in history]) for name in history[0]}


@pytest.mark.parametrize(
    ("settings", "every"),
    [
        (LagrangianSettings(learning_rate=0.2, multiplier_rate=3.0), 1),
        (LagrangianSettings(0.2, 3.0, penalty=4.0, weight_decay=0.1, multiplier_start=-2.0), 3),
    ],
)
def test_history_is_that_of_a_slow_loop(key, target, settings, every):
    search = search_of(target, settings=settings, updates_per_step=7, multiplier_every=every)
    state = run(search, key, steps=0).state
    start = np.asarray(unpack_mask(state.start, SHAPE))
    scores, expected = slow_search(
        state.scores, start, np.asarray(target, np.float64), settings, 6, 7, every
    )
    result = run(search, key, steps=6)
    assert expected["crossings"].max() > 0 and expected["best"][-1] < expected["best"][0]
    for name, values in expected.items():
        np.testing.assert_allclose(result.history[name], values, rtol=2e-4, atol=2e-5, err_msg=name)
    np.testing.assert_allclose(result.state.scores, scores, rtol=1e-4, atol=1e-4)
    assert result.state.updates == 42


def test_evaluations_are_counted(key, target):
    calls = []

    def objective(mask):
        jax.debug.callback(lambda: calls.append(1))
        return quadratic(target, mask)

    search = lagrangian(objective, SHAPE, COUNT, updates_per_step=5)
    state = jax.jit(search.init)(key)
    jax.effects_barrier()
    assert len(calls) == search.initial_evaluations
    jax.block_until_ready(jax.jit(search.step)(key, state))
    jax.effects_barrier()
    assert len(calls) == search.initial_evaluations + search.evaluations


# Searches


def optimum(target):
    """By trying all masks."""
    masks = np.zeros((38_760, 20))
    chosen = np.array(list(itertools.combinations(range(20), COUNT)))
    np.put_along_axis(masks, chosen, 1, axis=1)
    best = np.argmin(np.sum((masks - np.ravel(target)) ** 2, axis=1))
    return masks[best].reshape(SHAPE).astype(bool)


@pytest.mark.parametrize(
    "relaxation",
    [logistic(), logistic(geometric(1.0, 3.0, 600)), exact_sum()],
    ids=["logistic", "annealed", "exact_sum"],
)
def test_finds_the_optimum_and_converges(key, target, relaxation):
    search = search_of(target, relaxation=relaxation)
    objective = Partial(quadratic, target)
    start = run(search, key, steps=0).state
    at_start = kkt_residual(objective, relaxation, start, COUNT)
    result = run(search, key, steps=10)
    state = result.state
    np.testing.assert_array_equal(hard_mask(state, COUNT), optimum(target))
    np.testing.assert_array_equal(result.mask(SHAPE), optimum(target))
    np.testing.assert_allclose(jnp.sum(soft_mask(relaxation, state, COUNT)), COUNT, atol=0.02)
    kkt = kkt_residual(objective, relaxation, state, COUNT)
    assert at_start.relative_stationarity > 0.3 and kkt.relative_stationarity < 0.02
    assert kkt.stationarity < 0.1 * at_start.stationarity
    assert kkt.feasibility < 1e-3
    np.testing.assert_allclose(
        result.history["relative_stationarity"][-1], kkt.relative_stationarity, rtol=1e-3, atol=1e-6
    )


def test_violation_shrinks_without_a_penalty(key, target):
    search = search_of(target, settings=LagrangianSettings(0.1, 5.0, penalty=0.0))
    violation = np.abs(run(search, key, steps=10).history["violation"])
    assert violation[0] > 0.02 and violation[-1] < 0.002


def test_straight_through_improves(key, target):
    # As many entries as are to be kept gain by it.
    weights = jnp.where(optimum(target), -1.0, 1.0) * (0.5 + target)
    search = lagrangian(
        lambda mask: (jnp.sum(weights * mask), None),
        SHAPE,
        COUNT,
        SETTINGS,
        relaxation=straight_through(logistic()),
    )
    result = run(search, key, steps=2)
    np.testing.assert_array_equal(result.mask(SHAPE), optimum(target))
    # The soft mask is the rounded one.
    np.testing.assert_allclose(result.history["loss"], result.history["hard_loss"], rtol=1e-6)


def test_crossings_are_from_the_start(key, target):
    result = run(search_of(target), key, steps=10)
    crossed = unpack_mask(result.state.start, SHAPE) != hard_mask(result.state, COUNT)
    assert np.sum(crossed) == result.history["crossings"][-1] > 0
    still = search_of(target, settings=LagrangianSettings(learning_rate=0.0))
    assert np.all(run(still, key, steps=10).history["crossings"] == 0)


def test_a_relaxation_of_ones_own(key, target):
    clipped = Relaxation(
        lambda scores, count, update: jnp.clip(scores, 0, 1),
        lambda key, mask: jnp.where(mask, 0.6, 0.4),
    )
    search = search_of(target, relaxation=clipped, settings=SETTINGS._replace(learning_rate=0.01))
    result = run(search, key, steps=5)
    np.testing.assert_array_equal(hard_mask(result.state, COUNT), optimum(target))


def test_a_relaxation_gets_the_count_and_the_updates_done(key, target):
    seen = []

    def to_mask(scores, count, update):
        jax.debug.callback(lambda *values: seen.append(values), count, update)
        return jax.nn.sigmoid(scores)

    relaxation = Relaxation(to_mask)
    state = run(search_of(target, relaxation=relaxation, updates_per_step=3), key, steps=1).state
    kkt_residual(Partial(quadratic, target), relaxation, state, COUNT)
    soft_mask(relaxation, state, COUNT)
    jax.effects_barrier()
    assert all(value.dtype == np.int32 for values in seen for value in values)
    assert sorted(tuple(map(int, values)) for values in seen) == [
        (COUNT, updates) for updates in (0, 1, 2, 3, 3, 3)
    ]


@pytest.mark.slow
def test_sweep_of_settings_is_a_loop(key, target):
    settings = LagrangianSettings(
        learning_rate=jnp.geomspace(0.01, 0.3, 16),
        multiplier_rate=jnp.linspace(0, 8, 16),
        penalty=jnp.linspace(5, 0, 16),
        weight_decay=jnp.linspace(0, 0.1, 16),
        multiplier_start=jnp.linspace(-1, 1, 16),
    )
    steepness = jnp.linspace(1, 3, 16)

    def make(entry):
        settings, steepness = entry
        return search_of(
            target, settings=settings, relaxation=logistic(steepness), updates_per_step=20
        )

    sweep = batch(make, (settings, steepness))
    call = jax.jit(lambda function, *arguments: function(*arguments))
    state, info = call(sweep.step, key, call(sweep.init, key))
    assert sweep.evaluations == 16 * 22
    for i, own in enumerate(jax.random.split(key, 16)):
        search = make(jax.tree.map(lambda leaf: leaf[i], (settings, steepness)))  # noqa: B023
        one_state, one_info = call(search.step, own, call(search.init, own))
        np.testing.assert_array_equal(state.best.bits[i], one_state.best.bits)
        np.testing.assert_allclose(state.scores[i], one_state.scores, rtol=1e-4, atol=1e-5)
        for name, value in one_info._asdict().items():
            np.testing.assert_allclose(
                getattr(info, name)[i], value, rtol=1e-3, atol=1e-5, err_msg=name
            )
    assert len(np.unique(info.loss)) == 16


def test_another_clip_count_setting_or_steepness_compiles_nothing(key, target):
    def go(target, count, settings, relaxation):
        search = search_of(target, count, settings, relaxation=relaxation)
        return run(search, key, steps=10)

    go(target, COUNT, SETTINGS, logistic())
    go(target, COUNT, SETTINGS, exact_sum())
    go(target, COUNT, SETTINGS, logistic(geometric(1.0, 3.0, 20)))
    other, other_target = LagrangianSettings(0.2, 1.0, 3.0, 0.1, 0.5), 1 - target
    with Compilations() as compilations:
        go(other_target, 7, other, logistic(geometric(2.0, 4.0, 30)))
        go(other_target, 7, other, exact_sum(2.0))
    assert compilations.count == 0


# Failures


def test_nan_of_one_entry_does_not_end_the_search_for_all(key, target):
    def objective(mask):
        # Its gradient is 0 * inf in the corner alone.
        return quadratic(target, mask)[0] + jnp.sqrt(0 * mask[0, 0]), None

    result = run(lagrangian(objective, SHAPE, COUNT, SETTINGS), key, steps=10)
    assert np.all(np.isfinite(result.state.scores))
    assert np.all(result.history["failed"] == 100)
    assert np.all(np.isfinite(result.history["loss"]))
    assert np.all(np.isnan(result.history["gradient_norm"]))
    elsewhere = np.arange(20) > 0
    np.testing.assert_array_equal(
        np.ravel(hard_mask(result.state, COUNT))[elsewhere], np.ravel(optimum(target))[elsewhere]
    )


def test_nan_of_all_soft_masks_shows_and_does_not_poison(key):
    def objective(mask):
        loss = jnp.mean(mask.astype(jnp.float32))
        return loss if mask.dtype == bool else loss * jnp.nan, None

    result = run(lagrangian(objective, SHAPE, COUNT, SETTINGS), key, steps=2)
    assert np.all(np.isfinite(result.state.scores)) and np.isfinite(result.state.multiplier)
    assert np.all(result.history["failed"] == 100)
    assert np.all(np.isnan(result.history["loss"]))
    assert np.all(np.isnan(result.history["relative_stationarity"]))
    np.testing.assert_allclose(result.best.loss, COUNT / 20, rtol=1e-6)
    kkt = kkt_residual(objective, logistic(), result.state, COUNT)
    assert np.isnan(kkt.stationarity) and np.isfinite(kkt.feasibility)


def test_refuses_what_makes_no_sense(target):
    with pytest.raises(ValueError, match="can't keep 21"):
        search_of(target, count=21)
    with pytest.raises(ValueError, match="at least one update"):
        search_of(target, updates_per_step=0)
    with pytest.raises(ValueError, match="period, not 0"):
        search_of(target, multiplier_every=0)
    host: object = HostObjective(lambda bits: (bits, None))
    with pytest.raises(TypeError):
        lagrangian(host, SHAPE, COUNT)  # pyright: ignore[reportArgumentType]
