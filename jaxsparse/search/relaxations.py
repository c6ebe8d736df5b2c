"""Relaxations: maps from scores, one for each bin, to soft masks (thesis, eq. 3.6).

A new one is a function that returns a `Relaxation`, and a line in `RELAXATIONS`::

    def arctangent(steepness: Setting = 1.0) -> Relaxation:
        return Relaxation(
            lambda scores, count, update: 0.5 + jnp.arctan(steepness * scores) / jnp.pi
        )

Where `to_mask` is a `Partial` of a module's function and the settings, as it is below, they are
arguments of what is compiled, and other settings compile nothing anew.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from jaxsparse.masks import project_to_count
from jaxsparse.search.contract import as_tree
from jaxsparse.types import HardMask, PRNGKey, SoftMask

Setting: TypeAlias = float | Float[Array, "*batch"]

# Beyond it a float32 sigmoid is 0 or 1 for every purpose.
_LOGIT_LIMIT = 60.0
# Each halves the bracket: float32 has 24 bits.
_BISECTIONS = 32


def as_float(value: Any) -> Float[Array, "*batch"]:
    """Returns a setting as float32."""
    return jnp.asarray(value, jnp.float32)


def thesis_start(key: PRNGKey, mask: Bool[Array, "F T"]) -> Float[Array, "F T"]:
    """Draws scores uniformly from (4, 5) at ones and from (-5, -4) at zeros (thesis, 4.4.1)."""
    size = jax.random.uniform(key, mask.shape, minval=4.0, maxval=5.0)
    return jnp.where(mask, size, -size)


class Relaxation(NamedTuple):
    """Pure functions between scores and masks; the constraint is handled apart from them."""

    to_mask: Callable[[Float[Array, "F T"], Int[Array, ""], Int[Array, ""]], SoftMask]
    """From scores, the count of ones (int32, traced) and the number of updates done to a mask in
    [0, 1]. Higher scores give higher values."""
    to_scores: Callable[[PRNGKey, HardMask], Float[Array, "F T"]] = thesis_start
    """From a key and a hard mask to scores to start from, which are rounded to that mask."""


def logistic(
    steepness: Setting = 1.0,
    final_steepness: Setting | None = None,
    updates: int | Int[Array, ""] = 10_000,
) -> Relaxation:
    """Makes the thesis' ``phi_n(x) = 1 / (1 + exp(-n x))`` (eq. 3.6), of fixed or annealed n.

    Args:
        steepness: n, which the thesis doesn't give.
        final_steepness: n after `updates`, which it approaches geometrically; by default n is
            fixed.
        updates: Length of the annealing.
    """
    final_steepness = steepness if final_steepness is None else final_steepness
    settings = (as_float(steepness), as_float(final_steepness), as_float(updates))
    return Relaxation(Partial(_annealed, *settings))


def _annealed(
    first: Array, last: Array, length: Array, scores: Array, count: Array, update: Array
) -> Array:
    share = jnp.clip(as_float(update) / length, 0, 1)
    return jax.nn.sigmoid(first * (last / first) ** share * scores)


def straight_through(steepness: Setting = 1.0) -> Relaxation:
    """Makes rounding to the exact count, with the gradient of phi_n (Bengio et al., 2013).

    Its windows are empty as a hard mask's are, where the gradient of the sparse convolution goes
    with 1 / eps: a network to be searched with has a larger eps than its default of 1e-8.

    Args:
        steepness: n.
    """
    return rounded(Relaxation(Partial(_sigmoid, as_float(steepness))))


def _sigmoid(steepness: Array, scores: Array, count: Array, update: Array) -> Array:
    return jax.nn.sigmoid(steepness * scores)


def rounded(relaxation: Relaxation) -> Relaxation:
    """Makes hard masks of exact count, with the derivative of another relaxation's soft ones."""
    return relaxation._replace(to_mask=Partial(_rounded, as_tree(relaxation.to_mask)))


def _rounded(to_mask: Callable, scores: Array, count: Array, update: Array) -> Array:
    soft = to_mask(scores, count, update)
    hard = project_to_count(lax.stop_gradient(scores), count).astype(soft.dtype)
    # What is added is exactly zero.
    return hard + (soft - lax.stop_gradient(soft))


def exact_sum(steepness: Setting = 1.0) -> Relaxation:
    """Makes ``phi_n(x - tau)``, with the tau for which the mask's sum is the count.

    tau is found by bisection and has the derivative of the implicit function. The constraint is
    met to the precision of float32, so that the multiplier has nothing to do.

    Args:
        steepness: n.
    """
    return Relaxation(Partial(_shifted, as_float(steepness)))


def _shifted(steepness: Array, scores: Array, count: Array, update: Array) -> Array:
    target = as_float(count) / scores.size
    logit = jnp.log(target) - jnp.log1p(-target)
    # From the shift at which no entry is below the target to that at which none is above.
    offset = jnp.clip(logit, -_LOGIT_LIMIT, _LOGIT_LIMIT) / steepness
    bracket = jnp.min(scores) - offset, jnp.max(scores) - offset
    return _of_mean(lambda x: jax.nn.sigmoid(steepness * x), scores, target, bracket)


def projection(steepness: Setting = 1.0) -> Relaxation:
    """Makes the point of {0 <= m <= 1, sum m = count} that is nearest to n times the scores.

    It is ``clip(n (x - tau), 0, 1)`` (Wang and Lu, 2015, "Projection onto the capped simplex"),
    with tau found by bisection, and so its derivative is exact too: where 0 < m < 1, n times the
    cotangent less its mean there, and zero elsewhere. Most entries are 0 or 1 already, so that
    little is lost by rounding; those have no gradient.

    Args:
        steepness: n.
    """
    return Relaxation(Partial(_projected, as_float(steepness)))


def _projected(steepness: Array, scores: Array, count: Array, update: Array) -> Array:
    target = as_float(count) / scores.size
    # At the one end all entries are 1, at the other all are 0.
    bracket = jnp.min(scores) - 1 / steepness, jnp.max(scores)
    return _of_mean(lambda x: jnp.clip(steepness * x, 0, 1), scores, target, bracket)


def _of_mean(
    rise: Callable[[Array], Array], scores: Array, target: Array, bracket: tuple[Array, Array]
) -> Array:
    """Shifts scores so that the mean of `rise` of them is the target; differentiable."""
    low, high = map(lax.stop_gradient, bracket)

    def excess(shift: Array) -> Array:
        return jnp.mean(rise(scores - shift)) - target

    def solve(excess: Callable, _: Array) -> Array:
        return _bisect(excess, low, high)

    return rise(scores - lax.custom_root(excess, low, solve, _solve_tangent))


def _bisect(excess: Callable, low: Array, high: Array) -> Array:
    def halve(_: Any, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        middle = (bracket[0] + bracket[1]) / 2
        above = excess(middle) > 0
        return jnp.where(above, middle, bracket[0]), jnp.where(above, bracket[1], middle)

    low_end, high_end = lax.fori_loop(0, _BISECTIONS, halve, (low, high))
    return (low_end + high_end) / 2


def _solve_tangent(slope: Callable, value: Array) -> Array:
    rate = slope(jnp.ones_like(value))
    # No slope where all entries are 0 or all are 1, and then nothing to shift.
    return value / jnp.where(rate == 0, 1, rate)


RELAXATIONS: dict[str, Callable[..., Relaxation]] = {
    "logistic": logistic,
    "straight-through": straight_through,
    "exact-sum": exact_sum,
    "projection": projection,
}
"""Constructors by name; each takes a `steepness`."""
