"""Relaxations: maps from scores, one for each bin, to soft masks (thesis, eq. 3.6).

A new one is a function that returns a `Relaxation`, and a line in `RELAXATIONS`::

    def arctangent(steepness: Steepness = 1.0) -> Relaxation:
        return Relaxation(Partial(_arctangent, as_steepness(steepness)))

    def _arctangent(steepness, scores, count, update):
        return 0.5 + jnp.arctan(at(steepness, update) * scores) / jnp.pi

Since `to_mask` is a `Partial` of a module's function and the settings, these are arguments of what
is compiled, and other settings compile nothing anew. A closure works as well.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from jaxsparse.masks import project_to_count
from jaxsparse.search.contract import as_tree
from jaxsparse.types import HardMask, PRNGKey, SoftMask

Setting: TypeAlias = float | Float[Array, "*batch"]
Steepness: TypeAlias = Setting | optax.Schedule
"""n, the inverse of a temperature: a number, or a schedule from the number of updates to one."""

# Beyond it a float32 sigmoid is 0 or 1 for every purpose.
_LOGIT_LIMIT = 60.0
# Each halves the bracket: float32 has 24 bits.
_BISECTIONS = 32


def as_float(value: Any) -> Float[Array, "*batch"]:
    """Returns a setting as float32."""
    return jnp.asarray(value, jnp.float32)


def as_steepness(steepness: Steepness) -> Any:
    """Returns a steepness as a tree: a float32, or a schedule whose arrays are seen."""
    return as_tree(steepness) if callable(steepness) else as_float(steepness)


def at(steepness: Any, update: Int[Array, ""]) -> Float[Array, ""]:
    """Returns what a steepness is after so many updates."""
    return as_float(steepness(update) if callable(steepness) else steepness)


def geometric(first: Setting, last: Setting, updates: int | Int[Array, ""]) -> optax.Schedule:
    """Makes a schedule that goes from one number to another by equal factors, and stays there.

    It is that of `optax.exponential_decay`, with numbers that are arguments of what is compiled.

    Args:
        first: Before the first update.
        last: After `updates` and more of them.
        updates: Number of updates.
    """
    return Partial(_geometric, as_float(first), as_float(last), as_float(updates))


def _geometric(first: Array, last: Array, updates: Array, update: Array) -> Array:
    return first * (last / first) ** jnp.clip(as_float(update) / updates, 0, 1)


def thesis_start(key: PRNGKey, mask: Bool[Array, "F T"]) -> Float[Array, "F T"]:
    """Draws scores uniformly from (4, 5) at ones and from (-5, -4) at zeros (thesis, 4.4.1)."""
    size = jax.random.uniform(key, mask.shape, minval=4.0, maxval=5.0)
    return jnp.where(mask, size, -size)


def narrow_start(key: PRNGKey, mask: Bool[Array, "F T"]) -> Float[Array, "F T"]:
    """Draws scores uniformly from (0.1, 1) at ones and from (-1, -0.1) at zeros.

    From the thesis' start a projection is the mask itself, whose derivative is zero.
    """
    size = jax.random.uniform(key, mask.shape, minval=0.1, maxval=1.0)
    return jnp.where(mask, size, -size)


class Relaxation(NamedTuple):
    """Pure functions between scores and masks; the constraint is handled apart from them."""

    to_mask: Callable[[Float[Array, "F T"], Int[Array, ""], Int[Array, ""]], SoftMask]
    """From scores, the count of ones (int32, traced) and the number of updates done to a mask in
    [0, 1]. Higher scores give higher values."""
    to_scores: Callable[[PRNGKey, HardMask], Float[Array, "F T"]] = thesis_start
    """From a key and a hard mask to scores to start from, which are rounded to that mask."""


def logistic(steepness: Steepness = 1.0) -> Relaxation:
    """Makes the thesis' ``phi_n(x) = 1 / (1 + exp(-n x))`` (eq. 3.6).

    Args:
        steepness: n, which the thesis doesn't give.
    """
    return Relaxation(Partial(_sigmoid, as_steepness(steepness)))


def _sigmoid(steepness: Any, scores: Array, count: Array, update: Array) -> Array:
    return jax.nn.sigmoid(at(steepness, update) * scores)


def exact_sum(steepness: Steepness = 1.0) -> Relaxation:
    """Makes ``phi_n(x - tau)``, with the tau for which the mask's sum is the count.

    It is what entropic optimal transport between scores and {0, 1} gives (Xie et al., 2020,
    "Differentiable top-k with optimal transport"). tau is found by bisection and has the derivative
    of the implicit function. The constraint is met to the precision of float32, so that the
    multiplier has nothing to do.

    Args:
        steepness: n.
    """
    return Relaxation(Partial(_shifted_sigmoid, as_steepness(steepness)))


def _shifted_sigmoid(steepness: Any, scores: Array, count: Array, update: Array) -> Array:
    def inverse(share: Array) -> Array:
        return jnp.log(share) - jnp.log1p(-share)

    return _of_sum(jax.nn.sigmoid, inverse, at(steepness, update), scores, count)


def lapsum(steepness: Steepness = 1.0) -> Relaxation:
    """Makes ``F(n (x - tau))``, F the distribution function of Laplace, of the count as its sum.

    Its tails are those of `exact_sum`; it bends at tau (Struski et al., 2025, "LapSum - One method
    to differentiate them all: ranking, sorting and top-k selection", who sort to find tau).

    Args:
        steepness: n.
    """
    return Relaxation(Partial(_shifted_laplace, as_steepness(steepness)))


def _shifted_laplace(steepness: Any, scores: Array, count: Array, update: Array) -> Array:
    def rise(x: Array) -> Array:
        tail = jnp.exp(-jnp.abs(x)) / 2
        return jnp.where(x < 0, tail, 1 - tail)

    def inverse(share: Array) -> Array:
        return jnp.where(share < 0.5, jnp.log(2 * share), -jnp.log(2 - 2 * share))

    return _of_sum(rise, inverse, at(steepness, update), scores, count)


def entropic(steepness: Steepness = 1.0) -> Relaxation:
    """Makes ``min(exp(n (x - tau)), 1)``, with the tau for which the mask's sum is the count.

    It is the point of {0 <= m <= 1, sum m = count} that is nearest to ``exp(n x)`` by relative
    entropy: a softmax whose entries are capped at 1.

    Args:
        steepness: n.
    """
    return Relaxation(Partial(_capped_softmax, as_steepness(steepness)))


def _capped_softmax(steepness: Any, scores: Array, count: Array, update: Array) -> Array:
    # The minimum is inside, so that what is capped has no gradient that is infinite.
    return _of_sum(
        lambda x: jnp.exp(jnp.minimum(x, 0)), jnp.log, at(steepness, update), scores, count
    )


def projection(steepness: Steepness = 1.0) -> Relaxation:
    """Makes the point of {0 <= m <= 1, sum m = count} that is nearest to n times the scores.

    It is ``clip(n (x - tau), 0, 1)`` (Wang and Lu, 2015, "Projection onto the capped simplex"),
    with tau found by bisection, and so its derivative is exact too: where 0 < m < 1, n times the
    cotangent less its mean there, and zero elsewhere. Most entries are 0 or 1 already, so that
    little is lost by rounding; those have no gradient.

    Args:
        steepness: n.
    """
    return Relaxation(Partial(_projected, as_steepness(steepness)), narrow_start)


def _projected(steepness: Any, scores: Array, count: Array, update: Array) -> Array:
    return _of_sum(
        lambda x: jnp.clip(x, 0, 1), lambda share: share, at(steepness, update), scores, count
    )


def straight_through(relaxation: Relaxation) -> Relaxation:
    """Makes hard masks of exact count, with the derivative of another relaxation's soft ones.

    Its windows are empty as a hard mask's are, where the gradient of the sparse convolution goes
    with 1 / eps: such a network is to be searched with a larger eps than its default of 1e-8.
    (Bengio et al., 2013, "Estimating or propagating gradients through stochastic neurons".)

    Args:
        relaxation: What it rounds, and takes the derivative from.
    """
    return relaxation._replace(to_mask=Partial(_rounded, as_tree(relaxation.to_mask)))


def _rounded(to_mask: Callable, scores: Array, count: Array, update: Array) -> Array:
    soft = to_mask(scores, count, update)
    hard = project_to_count(lax.stop_gradient(scores), count).astype(soft.dtype)
    # What is added is exactly zero.
    return hard + (soft - lax.stop_gradient(soft))


def perturbed(relaxation: Relaxation, scale: Steepness, seed: int | Array = 0) -> Relaxation:
    """Makes a relaxation explore: Gumbel noise, drawn anew for each update, is added to the scores.

    The k highest of such scores are k draws without replacement by ``softmax(scores / scale)``
    (Kool et al., 2019, "Stochastic beams and where to find them"), so that with
    `straight_through` masks are drawn, and not only rounded.

    Args:
        relaxation: What gets the scores with their noise.
        scale: Of the noise; a schedule ends it, so that what is found is scored without.
        seed: Of the draws.
    """
    drawn = Partial(
        _perturbed, as_tree(relaxation.to_mask), as_steepness(scale), jnp.asarray(seed, jnp.int32)
    )
    return relaxation._replace(to_mask=drawn)


def _perturbed(
    to_mask: Callable, scale: Any, seed: Array, scores: Array, count: Array, update: Array
) -> Array:
    key = jax.random.fold_in(jax.random.key(seed), update)
    noise = at(scale, update) * jax.random.gumbel(key, scores.shape, scores.dtype)
    return to_mask(scores + noise, count, update)


def _of_sum(
    rise: Callable[[Array], Array],
    inverse: Callable[[Array], Array],
    steepness: Array,
    scores: Array,
    count: Array,
) -> Array:
    """Makes ``rise(steepness (scores - tau))`` of that sum; differentiable.

    Args:
        rise: From 0 to 1.
        inverse: Its inverse function.
        steepness: n.
        scores: One for each bin.
        count: The sum.
    """
    target = as_float(count) / scores.size
    # From the shift at which no entry is below the target to that at which none is above.
    end = jnp.where(count >= scores.size, _LOGIT_LIMIT, inverse(target))
    offset = jnp.clip(end, -_LOGIT_LIMIT, _LOGIT_LIMIT) / steepness
    low, high = map(lax.stop_gradient, (jnp.min(scores) - offset, jnp.max(scores) - offset))

    def excess(shift: Array) -> Array:
        return jnp.mean(rise(steepness * (scores - shift))) - target

    def solve(excess: Callable, _: Array) -> Array:
        return _bisect(excess, low, high)

    shift = lax.custom_root(excess, low, solve, _solve_tangent)
    return rise(steepness * (scores - shift))


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


SOFT: dict[str, Callable[..., Relaxation]] = {
    "logistic": logistic,
    "exact-sum": exact_sum,
    "projection": projection,
    "lapsum": lapsum,
    "entropic": entropic,
}
"""Constructors of soft masks by name; each takes a `steepness`."""


def _hard(make: Callable[..., Relaxation]) -> Callable[..., Relaxation]:
    return lambda steepness=1.0: straight_through(make(steepness=steepness))


RELAXATIONS: dict[str, Callable[..., Relaxation]] = SOFT | {
    f"straight-through-{name}": _hard(make) for name, make in SOFT.items()
}
"""All constructors by name: also of hard masks with the derivative of each soft one."""
