"""Lagrangian relaxation: a soft mask by gradient descent (thesis, sections 3.2.1 and 4.4.1).

Scores M, one for each bin, are minimized over::

    L(M, lambda) = f(phi(M)) + lambda c(M) + penalty / 2 c(M)^2,   c(M) = mean(phi(M)) - count / F T

by AdamW, while the multiplier ascends. phi, the `Relaxation`, takes scores to a soft mask.

What is archived is the rounding of the scores to a hard mask, never the soft mask, whose loss
misleads: the constant mask ``phi = count / F T`` (`constant_mask`) meets the constraint too, and
hides nothing from a convolution that divides by the sum of the mask.
"""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, UInt8

from jaxsparse.masks import check_count, pack_mask, project_to_count, random_mask
from jaxsparse.search.contract import (
    Best,
    HostObjective,
    Objective,
    Search,
    archive,
    as_tree,
    check_start,
    empty_archive,
    identity_of,
)
from jaxsparse.search.relaxations import Relaxation, Setting, as_float, logistic
from jaxsparse.types import HardMask, PRNGKey, SoftMask


class LagrangianSettings(NamedTuple):
    """Numbers of the search, none of which the thesis gives; arrays with an axis make a sweep.

    The defaults were chosen on half a second of a clip of ``valid``
    (`benchmarks.relaxation_settings`): plain gradient ascent, fast enough that the soft mask comes
    near the constraint within 400 updates, and slow enough that rounding it still gives a good
    mask. Ten times the learning rate lowers the soft mask's loss further and spoils the rounding.

    The scale of the constraint, a mean over bins, is no setting of its own: a times the constraint
    is a times the multiplier, and a^2 times its rate and the penalty.
    """

    learning_rate: Setting = 0.01
    """Of AdamW on the scores."""
    multiplier_rate: Setting = 100.0
    """Of the multiplier's ascent."""
    penalty: Setting = 0.0
    """Weight of c^2 / 2. It damps the multiplier's swings; with a multiplier that is updated only
    now and then, and at this rate, it is the method of multipliers (augmented Lagrangian)."""
    weight_decay: Setting = 0.0
    """Of AdamW. It pulls the scores to 0, that is to phi = 0.5."""
    multiplier_start: Setting = 0.0


_DEFAULTS = LagrangianSettings()


class MultiplierAscentState(NamedTuple):
    """State of `multiplier_ascent`."""

    updates: Int[Array, ""]
    """So far."""


def multiplier_ascent(learning_rate: Setting, every: int = 1) -> optax.GradientTransformation:
    """Gradient ascent on a Lagrange multiplier.

    Args:
        learning_rate: The gradient, which is the constraint's violation, is added times this.
        every: Only at each so many-th update, with the violation of that update.
    """

    def init(params: Any) -> MultiplierAscentState:
        return MultiplierAscentState(jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, MultiplierAscentState]:
        n = state.updates + 1
        rate = jnp.where(n % every == 0, as_float(learning_rate), 0)
        return jax.tree.map(lambda g: rate * g, updates), MultiplierAscentState(n)

    return optax.GradientTransformation(init, update)


class LagrangianState(NamedTuple):
    """Scores, multiplier and what updates them."""

    scores: Float[Array, "F T"]
    multiplier: Float[Array, ""]
    optimizer: optax.OptState
    updates: Int[Array, ""]
    """Updates done."""
    start: UInt8[Array, " W"]
    """The rounding at the start, packed."""
    best: Best


class LagrangianInfo(NamedTuple):
    """The state after a step in numbers; the gradients' are NaN where the objective's is."""

    best: Float[Array, ""]
    """Loss of the archived mask."""
    loss: Float[Array, ""]
    """f of the soft mask."""
    violation: Float[Array, ""]
    """c: mean of the soft mask less the share of ones asked for."""
    gradient_norm: Float[Array, ""]
    """Euclidean, of the gradient of L with respect to the scores."""
    multiplier: Float[Array, ""]
    hard_loss: Float[Array, ""]
    """f of the rounded mask; the gap to `loss` is this method's known failure."""
    crossings: Int[Array, ""]
    """Entries whose rounded value is not that of the start; a swap is two."""
    relative_stationarity: Float[Array, ""]
    """See `KKT`."""
    failed: Int[Array, ""]
    """Updates of this step for which the loss or its gradient was not finite."""


def lagrangian(
    objective: Objective,
    shape: tuple[int, int],
    count: int | Int[Array, ""],
    settings: LagrangianSettings = _DEFAULTS,
    *,
    relaxation: Relaxation | None = None,
    optimizer: optax.GradientTransformation | None = None,
    start: HardMask | None = None,
    updates_per_step: int = 100,
    multiplier_every: int = 1,
) -> Search:
    """Makes a search by Lagrangian relaxation, which begins at a random mask or a given one.

    A step is a number of updates of scores and multiplier, after which the scores are rounded to
    the exact count, scored and archived: the history is thinned, and the thesis' 10,000 updates
    are 100 steps. At the thesis' start the soft mask is not feasible: with n = 1 its sum is 21 %
    too high at a sparsity of 95 %.

    Where the objective's gradient is not finite, it counts as zero, so that one bad entry doesn't
    end the search for all; `LagrangianInfo.failed` says how often that was.

    Args:
        objective: To be minimized over masks [F, T], hard and soft, and differentiable in soft
            ones; it can't be a `HostObjective`.
        shape: F and T.
        count: Ones of the rounded mask and sum of the soft one; another count compiles nothing
            anew, nor do other settings.
        settings: Numbers; for a sweep in one call see `jaxsparse.search.run.batch`.
        relaxation: phi, one of `jaxsparse.search.relaxations`; `logistic` by default.
        optimizer: Updates the scores, in place of AdamW with the settings' learning rate and
            weight decay; its rate may be a schedule. Another one compiles anew, and checkpoints
            don't know the numbers that it holds in closures.
        start: A hard mask of that count to begin at.
        updates_per_step: Updates in a step.
        multiplier_every: The multiplier is updated with each so many-th of them.

    Raises:
        TypeError: If the objective leaves the device.
        ValueError: If `count`, `updates_per_step` or `multiplier_every` is out of range, or `start`
            of another shape or count.
    """
    if isinstance(objective, HostObjective):
        raise TypeError("an objective that leaves the device has no gradient")
    check_count(count, math.prod(shape))
    check_start(start, shape, count)
    if updates_per_step < 1 or multiplier_every < 1:
        raise ValueError(
            f"a step has at least one update, not {updates_per_step}, and so has the multiplier's"
            f" period, not {multiplier_every}"
        )
    setup = _Setup(
        _problem(objective, logistic() if relaxation is None else relaxation, count),
        LagrangianSettings(*map(as_float, settings)),
        shape,
        updates_per_step,
        multiplier_every,
        optimizer,
        start,
    )
    functions = (setup.problem.objective, *setup.problem.relaxation)
    settled = str((shape, updates_per_step, multiplier_every))
    if optimizer is not None:
        # The functions of all optimizers have like names, but not their states.
        settled += str(jax.tree.structure(jax.eval_shape(optimizer.init, jnp.zeros(shape))))
    return Search(
        Partial(_init, setup),
        Partial(_step, setup),
        1,
        # Beside the updates, a step evaluates the soft and the rounded mask that it ends with.
        updates_per_step + 2,
        identity=("lagrangian", settled, *map(identity_of, functions)),
    )


class _Problem(NamedTuple):
    """The functions f and phi and the count, as pytrees."""

    objective: Any
    relaxation: Relaxation
    n_ones: Array


def _problem(objective: Objective, relaxation: Relaxation, count: int | Int[Array, ""]) -> _Problem:
    trees = Relaxation(*map(as_tree, relaxation))
    return _Problem(as_tree(objective), trees, jnp.asarray(count, jnp.int32))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Setup:
    """All that a search's functions hold: arrays are traced, static fields compiled in."""

    # JAX fills trees with other things than arrays too, which a type checker would refuse.
    problem: Any
    settings: Any
    shape: tuple[int, int] = field(metadata={"static": True})
    updates_per_step: int = field(metadata={"static": True})
    multiplier_every: int = field(metadata={"static": True})
    of_scores: optax.GradientTransformation | None = field(metadata={"static": True})
    start: Any = None

    def optimizer(self) -> optax.GradientTransformation:
        # Traced numbers are as good as those that optax's types ask for.
        learning_rate: Any = self.settings.learning_rate
        weight_decay: Any = self.settings.weight_decay
        return optax.partition(
            {
                "scores": self.of_scores or optax.adamw(learning_rate, weight_decay=weight_decay),
                "multiplier": multiplier_ascent(
                    self.settings.multiplier_rate, self.multiplier_every
                ),
            },
            {"scores": "scores", "multiplier": "multiplier"},
        )


def _init(setup: _Setup, key: PRNGKey) -> LagrangianState:
    problem = setup.problem
    for_mask, for_scores = jax.random.split(key)
    mask = setup.start
    if mask is None:
        mask = random_mask(for_mask, setup.shape, problem.n_ones)
    scores = problem.relaxation.to_scores(for_scores, mask)
    rounded = project_to_count(scores, problem.n_ones)
    start, loss, aux = _score(problem.objective, rounded)
    best = archive(empty_archive(start, aux), start[None], loss[None], _one(aux))
    multiplier = as_float(setup.settings.multiplier_start)
    params = {"scores": scores, "multiplier": multiplier}
    optimizer_state = setup.optimizer().init(params)
    updates = jnp.zeros((), jnp.int32)
    return LagrangianState(scores, multiplier, optimizer_state, updates, start, best)


def _step(
    setup: _Setup, key: PRNGKey, state: LagrangianState
) -> tuple[LagrangianState, LagrangianInfo]:
    problem = setup.problem
    state, failed = _update(setup, state)
    bits, hard_loss, aux = _score(problem.objective, project_to_count(state.scores, problem.n_ones))
    state = state._replace(best=archive(state.best, bits[None], hard_loss[None], _one(aux)))
    gradients = _differentiate(problem, state.scores, state.updates)
    slope = gradients.lagrangian(state.multiplier, setup.settings.penalty)
    return state, LagrangianInfo(
        best=state.best.loss,
        loss=gradients.loss,
        violation=gradients.violation,
        gradient_norm=gradients.or_nan(jnp.linalg.norm(slope)),
        multiplier=state.multiplier,
        hard_loss=hard_loss,
        crossings=jnp.sum(lax.population_count(bits ^ state.start), dtype=jnp.int32),
        relative_stationarity=gradients.kkt(state.multiplier).relative_stationarity,
        failed=failed,
    )


def _update(setup: _Setup, state: LagrangianState) -> tuple[LagrangianState, Array]:
    """Makes a step's updates; returns the state and how many of them failed."""
    transform = setup.optimizer()

    def update(_: Any, carry: tuple[LagrangianState, Array]) -> tuple[LagrangianState, Array]:
        state, failed = carry
        gradients = _differentiate(setup.problem, state.scores, state.updates)
        params = {"scores": state.scores, "multiplier": state.multiplier}
        slopes = {
            "scores": gradients.lagrangian(state.multiplier, setup.settings.penalty),
            "multiplier": gradients.violation,
        }
        changes, optimizer_state = transform.update(slopes, state.optimizer, params)
        params: Any = optax.apply_updates(params, changes)
        state = state._replace(**params, optimizer=optimizer_state, updates=state.updates + 1)
        return state, failed + gradients.failed

    nothing = jnp.zeros((), jnp.int32)
    return lax.fori_loop(0, setup.updates_per_step, update, (state, nothing))


def _score(objective: Objective, mask: HardMask) -> tuple[Array, Array, Any]:
    """Returns a hard mask as bits, and the objective's outputs for it."""
    loss, aux = objective(mask)
    return pack_mask(mask), loss.astype(jnp.float32), aux


def _one(aux: Any) -> Any:
    """Makes auxiliary output that of a population of one."""
    return jax.tree.map(lambda leaf: leaf[None], aux)


def _finite(values: Array) -> Array:
    return jnp.where(jnp.isfinite(values), values, 0)


class KKT(NamedTuple):
    """How far scores and multiplier are from a Karush-Kuhn-Tucker point: all zero there.

    NaN, but for the feasibility, where the objective's gradient is not finite.
    """

    stationarity: Float[Array, ""]
    """Euclidean norm of grad f + lambda grad c, with respect to the scores."""
    relative_stationarity: Float[Array, ""]
    """That over the norm of grad f: the first alone is small wherever phi saturates. Where phi
    mixes the entries, as `exact_sum` does, grad f is taken with random signs of f's slopes, since
    the mixing takes their common part, which the constraint balances, out of grad f itself."""
    feasibility: Float[Array, ""]
    """The absolute value of c."""


class _Gradients(NamedTuple):
    """f and c at some scores, and their gradients."""

    loss: Array
    objective: Array
    constraint: Array
    scale: Array
    violation: Array
    failed: Array

    def lagrangian(self, multiplier: Array, penalty: Setting) -> Array:
        return self.objective + (multiplier + penalty * self.violation) * self.constraint

    def or_nan(self, value: Array) -> Array:
        return jnp.where(self.failed, jnp.nan, value)

    def kkt(self, multiplier: Array) -> KKT:
        residual = jnp.linalg.norm(self.objective + multiplier * self.constraint)
        relative = jnp.where(residual == 0, 0, residual / self.scale)
        return KKT(self.or_nan(residual), self.or_nan(relative), jnp.abs(self.violation))


def _differentiate(problem: _Problem, scores: Array, updates: Array) -> _Gradients:
    to_mask = problem.relaxation.to_mask
    mask, pull_back = jax.vjp(lambda x: to_mask(x, problem.n_ones, updates), scores)
    loss, slope = jax.value_and_grad(lambda mask: problem.objective(mask)[0])(mask)
    failed = ~(jnp.isfinite(loss) & jnp.all(jnp.isfinite(slope)))
    # Before it is pulled back, which may mix all entries.
    slope = _finite(slope)
    (objective,) = pull_back(slope)
    (constraint,) = pull_back(jnp.full_like(mask, 1 / mask.size))
    # Of the same norm where the entries are not mixed.
    (scattered,) = pull_back(slope * jax.random.rademacher(jax.random.key(0), slope.shape, float))
    return _Gradients(
        loss=loss.astype(jnp.float32),
        objective=_finite(objective),
        constraint=constraint,
        scale=jnp.linalg.norm(scattered),
        violation=(jnp.sum(mask) - as_float(problem.n_ones)) / mask.size,
        failed=failed,
    )


def kkt_residual(
    objective: Objective,
    relaxation: Relaxation,
    state: LagrangianState,
    count: int | Int[Array, ""],
) -> KKT:
    """Measures how far a search has converged.

    With `straight_through` the gradients are its surrogates.

    Args:
        objective: What was minimized.
        relaxation: phi of the search.
        state: The search's state.
        count: The sum that was asked for.
    """
    problem = _problem(objective, relaxation, count)
    return _kkt(problem, state.scores, state.updates, state.multiplier)


@jax.jit
def _kkt(problem: _Problem, scores: Array, updates: Array, multiplier: Array) -> KKT:
    return _differentiate(problem, scores, updates).kkt(multiplier)


def soft_mask(
    relaxation: Relaxation, state: LagrangianState, count: int | Int[Array, ""]
) -> SoftMask:
    """Returns the soft mask that a state's scores stand for, where its sum is to be `count`."""
    return relaxation.to_mask(state.scores, jnp.asarray(count, jnp.int32), state.updates)


def hard_mask(state: LagrangianState, count: int | Int[Array, ""]) -> HardMask:
    """Keeps the `count` largest scores (thesis, section 4.4.1), which is not the archived mask."""
    return project_to_count(state.scores, count)


def constant_mask(shape: tuple[int, int], count: int | Int[Array, ""]) -> SoftMask:
    """Returns ``count / F T`` everywhere: a baseline that is feasible and hides nothing."""
    return jnp.full(shape, as_float(count) / math.prod(shape))
