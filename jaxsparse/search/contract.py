"""The contract of a search for masks: what it minimizes, what it keeps and what it consists of.

A search is a pair of pure functions over a state, as an optax optimizer or a blackjax sampler is::

    state = search.init(key)
    state, info = search.step(key, state)

All it knows of its problem is an objective, ``mask -> (loss, aux)``, which it minimizes.

A function that holds arrays is a pytree: a `jax.tree_util.Partial`, or an instance of a dataclass
with ``__call__`` that `jax.tree_util.register_dataclass` knows. Its arrays are arguments of what is
compiled, so that another clip of the same shape compiles nothing anew. A plain closure works as
well, but each new one is a new function to the compiler, with its arrays as constants.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import Partial
from jaxtyping import Array, Float, UInt8

from jaxsparse.masks import pack_mask
from jaxsparse.types import HardMask, Mask, PRNGKey


@runtime_checkable
class Objective(Protocol):
    """A loss to be minimized, as a pure function of one mask that can be traced.

    A search evaluates many masks by ``vmap``. A score to be maximized enters negated. A search's
    checkpoints are refused for an objective of another `identity_of`, or with other arrays.
    """

    def __call__(self, mask: Mask) -> tuple[Float[Array, ""], Any]:
        """Evaluates a mask.

        Args:
            mask: Hard (bool), or soft (float) where a search relaxes it.

        Returns:
            The loss, NaN where there is none, and the auxiliary output: a tree of arrays that is
            archived with the best mask, or None.
        """
        ...


class HostObjective(NamedTuple):
    """An objective that must leave the device, over a whole population.

    Attributes:
        score: From packed masks [P, W] (see `jaxsparse.masks.pack_mask`) to losses [P] and the
            auxiliary output, a tree of arrays with leading axis P; never traced.
        identity: A tree of the arrays and strings that determine the scores: a search's checkpoints
            are refused for others.
    """

    score: Callable[[UInt8[Array, "P W"]], tuple[Any, Any]]
    identity: Any = ()

    def __call__(self, mask: HardMask) -> tuple[Any, Any]:
        """Evaluates one mask."""
        return jax.tree.map(lambda leaf: leaf[0], self.score(pack_mask(mask)[None]))


class Best(NamedTuple):
    """The best hard mask so far; a search's state has it as `best`."""

    bits: UInt8[Array, "*batch W"]
    """Packed, with exactly the count of ones that was asked for."""
    loss: Float[Array, "*batch"]
    """Loss of that hard mask; inf while no mask had a loss, when the mask is the first one."""
    aux: Any
    """The objective's auxiliary output."""


class State(Protocol):
    """The field that every search's state, a NamedTuple of arrays, has."""

    @property
    def best(self) -> Best:
        """The archive; its loss never rises."""
        ...


class Info(Protocol):
    """The field that every search's info, a NamedTuple of arrays, has; `run` stacks infos."""

    @property
    def best(self) -> Float[Array, ""]:
        """Loss of the archived mask."""
        ...


Init: TypeAlias = Callable[[PRNGKey], Any]
Step: TypeAlias = Callable[[PRNGKey, Any], tuple[Any, Any]]


class Search(NamedTuple):
    """A search: ``init(key) -> state`` and ``step(key, state) -> (state, info)``, both pure.

    Its functions may be arguments of what is compiled, where they are pytrees; the whole of it may
    not, since its identity holds strings.
    """

    init: Init
    step: Step
    initial_evaluations: int = 1
    """Masks that `init` evaluates."""
    evaluations: int = 1
    """Masks that a step evaluates."""
    on_host: bool = False
    """Whether its objective leaves the device, so that it can't be traced as a whole."""
    identity: Any = ()
    """A tree of the arrays and strings that determine the result, beside the functions' own arrays:
    a search's checkpoints are refused for others."""


def empty_archive(bits: UInt8[Array, " W"], aux: Any) -> Best:
    """Makes an archive without a loss.

    Args:
        bits: A packed mask of the right count, which stands there until one has a loss.
        aux: The objective's auxiliary output for it, or anything of that shape.
    """
    return Best(bits, jnp.float32(jnp.inf), aux)


def archive(best: Best, bits: UInt8[Array, "P W"], losses: Float[Array, " P"], aux: Any) -> Best:
    """Returns the better of the archive and the best of a population; NaN never wins.

    Args:
        best: The archive so far.
        bits: Packed hard masks.
        losses: Their losses.
        aux: Their auxiliary output, with leading axis P.
    """
    losses = worst_if_nan(losses)
    i = jnp.argmin(losses)
    newest = Best(bits[i], losses[i], jax.tree.map(lambda leaf: leaf[i], aux))
    return jax.tree.map(lambda new, old: jnp.where(newest.loss < best.loss, new, old), newest, best)


def worst_if_nan(losses: Float[Array, "*P"]) -> Float[Array, "*P"]:
    """Returns the losses as float32, with inf for NaN."""
    losses = losses.astype(jnp.float32)
    return jnp.where(jnp.isnan(losses), jnp.inf, losses)


def as_tree(function: Callable) -> Callable:
    """Returns a function as a pytree, so that under jit its arrays are arguments.

    Args:
        function: A `Partial` or an instance of a registered dataclass is returned as it is; any
            other function has no arrays that could be seen.
    """
    return Partial(function) if jax.tree_util.all_leaves([function]) else function


def check_start(start: Any, shape: tuple[int, int], count: Any) -> None:
    """Refuses masks to start from that are of another shape or count; traced ones are not checked.

    Args:
        start: Hard masks with F and T as their last axes, or None.
        shape: F and T.
        count: Ones of each.

    Raises:
        ValueError: If they don't fit.
    """
    if start is None:
        return
    if start.shape[-2:] != shape:
        raise ValueError(f"a start of the shape {start.shape} doesn't fit {shape}")
    if isinstance(start, Tracer) or isinstance(count, Tracer):
        return
    found = np.unique(np.count_nonzero(start, axis=(-2, -1)))
    if found.tolist() != [int(count)]:
        raise ValueError(f"a start has to keep {count} bins, not {found.tolist()}")


def identity_of(function: Callable) -> str:
    """Returns what tells a function from others in every process, whatever arrays it holds.

    Args:
        function: Its attribute `identity`, a string, is used if it has one; else its module and
            qualified name, or those of its class. Where a dataclass has static fields that decide
            on its values, `identity` must tell them. A `Partial` is told by its arguments that
            are functions, too; numbers within a closure are not told.
    """
    identity = getattr(function, "identity", None)
    if identity is not None:
        return identity
    if isinstance(function, Partial):
        inner = [identity_of(each) for each in function.args if callable(each)]
        return identity_of(function.func) + (f"({', '.join(inner)})" if inner else "")
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"
