"""Swaps: a search on the hard mask itself, in which a derivative says which bins to exchange.

A step drops some kept bins, drawn uniformly. To first order, the derivative of the loss with
respect to the mask that is left says by how much the loss falls if a bin is kept: for the dropped
ones and, by the same measure, for those that were not kept. As many of the best take the free
places, and the new mask stays if its true loss is lower. Then the next step drops twice as many,
else half as many. There is no relaxation, and so nothing to lose by rounding it.

That is large neighbourhood search (Shaw, 1998). The derivative at the mask itself can't compare the
two kinds of bins: the decoder knows a kept one, so that nothing seems to be lost with it. If the
decoder divides by the sum of the mask, its own derivative at an isolated bin is nearly that of a
step and says little; `jaxsparse.objectives` has derivatives of putting a bin back alone.

Neighbouring bins have similar slopes, but one of them is enough. Each step therefore considers a
random subset, which spreads the choice and makes a retry differ.

In image compression by inpainting the same problem is solved by exchanges at random (Mainberger et
al., 2012, "Optimising spatial and tonal data for homogeneous diffusion inpainting"), the control.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from jaxsparse.masks import check_count, pack_mask, project_to_count, random_mask, unpack_mask
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
    worst_if_nan,
)
from jaxsparse.types import HardMask, PRNGKey

Exchange: TypeAlias = Literal["regrow", "steepest", "nonlocal", "random"]


@dataclass(frozen=True)
class SwapConfig:
    """Settings of the search.

    Attributes:
        exchange: How bins are exchanged. "regrow": some are dropped, and compete with all others
            for the places; "steepest": those of the highest slope at the mask itself are dropped,
            and those of the lowest take their places; "nonlocal": some are dropped, and the best
            of the others take their places (Mainberger's, with the slope for the error);
            "random": any take the places of any.
        first: Share of the kept bins that the first step drops.
        least: Share of them that a step drops at least.
        looked_at: Share of the bins not kept from which a step chooses, drawn anew for each.

    Raises:
        ValueError: If `exchange` is unknown, or a share is not in (0, 1].
    """

    exchange: Exchange = "regrow"
    first: float = 0.1
    least: float = 0.002
    looked_at: float = 0.1

    def __post_init__(self) -> None:
        if self.exchange not in get_args(Exchange):
            raise ValueError(f"exchange is one of {get_args(Exchange)}, not {self.exchange!r}")
        for name in ("first", "least", "looked_at"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} is more than 0 and at most 1, not {getattr(self, name)}")


class SwapState(NamedTuple):
    """The mask that bins are exchanged in, which is the best so far."""

    dropped: Int[Array, ""]
    """Bins that the next step drops."""
    best: Best


class SwapInfo(NamedTuple):
    """A step in numbers."""

    best: Float[Array, ""]
    """Loss of the archived mask."""
    tried: Float[Array, ""]
    """Loss of the mask that was tried, inf for NaN."""
    dropped: Int[Array, ""]
    """Bins that were dropped for it."""
    exchanged: Int[Array, ""]
    """Those of them that did not come back."""
    accepted: Bool[Array, ""]
    failed: Int[Array, ""]
    """1 where the mask that was tried has no loss."""


def swaps(
    objective: Objective,
    shape: tuple[int, int],
    count: int | Int[Array, ""],
    config: SwapConfig = SwapConfig(),
    *,
    start: HardMask | None = None,
) -> Search:
    """Makes a search by swaps, which begins at a random mask or a given one.

    A step is an evaluation of the derivative, unless bins are exchanged at random, and one of the
    loss.

    Args:
        objective: To be minimized over masks [F, T], and differentiable in them; it can't be a
            `HostObjective`.
        shape: F and T.
        count: Ones of every mask; another count compiles nothing anew.
        config: Settings of the search.
        start: A hard mask of that count to begin at.

    Raises:
        TypeError: If the objective leaves the device.
        ValueError: If `count` is out of range, or `start` of another shape or count.
    """
    if isinstance(objective, HostObjective):
        raise TypeError("an objective that leaves the device has no gradient")
    check_count(count, math.prod(shape))
    check_start(start, shape, count)
    count = jnp.asarray(count, jnp.int32)
    setup = _Setup(as_tree(objective), count, start, config, shape)
    identity = ("swaps", repr(config), str(shape), identity_of(setup.objective))
    evaluations = 1 if config.exchange == "random" else 2
    return Search(Partial(_init, setup), Partial(_step, setup), 1, evaluations, identity=identity)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Setup:
    """All that a search's functions hold: arrays are traced, static fields compiled in."""

    # JAX fills trees with other things than arrays too, which a type checker would refuse.
    objective: Any
    count: Any
    start: Any
    config: SwapConfig = field(metadata={"static": True})
    shape: tuple[int, int] = field(metadata={"static": True})

    def share(self, share: float) -> Array:
        """Returns a share of the kept bins, at least one."""
        return jnp.maximum(share * self.count, 1).astype(jnp.int32)

    def slope(self, mask: HardMask) -> Array:
        """Returns the derivative of the loss with respect to a mask, zero where not finite."""
        slope = jax.grad(lambda m: self.objective(m)[0])(mask.astype(jnp.float32))
        return jnp.where(jnp.isfinite(slope), slope, 0)


def _init(setup: _Setup, key: PRNGKey) -> SwapState:
    mask = setup.start
    if mask is None:
        mask = random_mask(key, setup.shape, setup.count)
    tried = _population(setup, mask)
    best = archive(empty_archive(tried[0][0], jax.tree.map(lambda leaf: leaf[0], tried[2])), *tried)
    return SwapState(setup.share(setup.config.first), best)


def _step(setup: _Setup, key: PRNGKey, state: SwapState) -> tuple[SwapState, SwapInfo]:
    before = unpack_mask(state.best.bits, setup.shape)
    # Half of them at most, so that what is left tells something of the rest.
    most = jnp.maximum(setup.count // 2, 1)
    most = jnp.minimum(most, jnp.minimum(setup.count, before.size - setup.count))
    n_dropped = jnp.minimum(state.dropped, most)
    mask = exchange(setup.slope, key, before, n_dropped, setup.config)
    bits, (loss,), aux = _population(setup, mask)
    best = archive(state.best, bits, loss[None], aux)
    accepted = loss < state.best.loss
    fewer = jnp.maximum(n_dropped // 2, setup.share(setup.config.least))
    info = SwapInfo(
        best=best.loss,
        tried=loss,
        dropped=n_dropped,
        exchanged=jnp.sum(before & ~mask, dtype=jnp.int32),
        accepted=accepted,
        failed=jnp.isinf(loss).astype(jnp.int32),
    )
    return SwapState(jnp.where(accepted, 2 * n_dropped, fewer), best), info


def _population(setup: _Setup, mask: HardMask) -> tuple[Array, Array, Any]:
    """Evaluates a mask; returns bits, loss (inf for NaN) and aux of a population of one."""
    loss, aux = setup.objective(mask)
    return (
        pack_mask(mask)[None],
        worst_if_nan(loss)[None],
        jax.tree.map(lambda leaf: leaf[None], aux),
    )


def exchange(
    slope: Callable[[HardMask], Float[Array, "F T"]],
    key: PRNGKey,
    mask: HardMask,
    n_dropped: int | Int[Array, ""],
    config: SwapConfig = SwapConfig(),
) -> HardMask:
    """Exchanges kept bins for others.

    Args:
        slope: From a mask to the derivative of the loss with respect to it.
        key: Random key.
        mask: The mask.
        n_dropped: How many kept bins to drop, at most half.
        config: How bins are exchanged.

    Returns:
        A mask of as many ones.
    """
    for_dropped, for_others, for_places = jax.random.split(key, 3)
    others = ~mask & jax.random.bernoulli(for_others, config.looked_at, mask.shape)
    if config.exchange != "regrow":
        n_dropped = jnp.minimum(n_dropped, jnp.sum(others, dtype=jnp.int32))
    if config.exchange == "steepest":
        slopes = slope(mask)
        dropped = project_to_count(jnp.where(mask, slopes, -jnp.inf), n_dropped)
    else:
        dropped = random_mask(for_dropped, mask.shape, n_dropped, within=mask)
        is_drawn = config.exchange == "random"
        slopes = jax.random.uniform(for_places, mask.shape) if is_drawn else slope(mask & ~dropped)
    free = others | dropped if config.exchange == "regrow" else others
    return (mask & ~dropped) | project_to_count(jnp.where(free, -slopes, -jnp.inf), n_dropped)
