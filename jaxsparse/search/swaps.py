"""Swaps: a search on the hard mask itself, in which a derivative says which bins to exchange.

A step drops some kept bins, drawn uniformly. The loss' derivative by the mask that is left says, to
first order, by how much the loss falls for each bin if it is kept: for the dropped ones, and with
the same measure for those that were not kept. As many of the best take the free places, and the new
mask stays if its true loss is lower. Then the next step drops twice as many, else half as many.
There is no relaxation, and so nothing to lose by rounding it.

That is large neighbourhood search (Shaw, 1998). A derivative at the mask itself can't compare the
two kinds: a kept bin is known to the decoder, so that nothing seems to be lost with it. Nor does
the derivative of a decoder say much that divides by the sum of the mask: for a bin far from all
others it is that of a step. `jaxsparse.objectives` has derivatives of what is put back alone.

Neighbours have like slopes, though one of them would do for all: a step looks at a random part of
the bins alone, which thins them out, and makes a step that failed another one when it is repeated.

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
from jaxtyping import Array, Bool, Float, Int, UInt8

from jaxsparse.masks import check_count, pack_mask, project_to_count, random_mask, unpack_mask
from jaxsparse.search.contract import (
    Best,
    HostObjective,
    Objective,
    Search,
    archive,
    as_tree,
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
    """The mask that bins are exchanged in."""

    bits: UInt8[Array, " W"]
    loss: Float[Array, ""]
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
        ValueError: If `count` is out of range.
    """
    if isinstance(objective, HostObjective):
        raise TypeError("an objective that leaves the device has no gradient")
    check_count(count, math.prod(shape))
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

    def evaluate(self, mask: HardMask) -> tuple[Array, Any]:
        """Returns a mask's loss, inf for NaN, and the objective's auxiliary output."""
        loss, aux = self.objective(mask)
        return worst_if_nan(loss), aux

    def share(self, share: float) -> Array:
        """Returns a share of the kept bins, at least one."""
        return jnp.maximum(share * self.count, 1).astype(jnp.int32)

    def slope(self, mask: HardMask) -> Array:
        """Returns the derivative of the loss by the mask, zero where it is not finite."""
        slope = jax.grad(lambda m: self.objective(m)[0])(mask.astype(jnp.float32))
        return jnp.where(jnp.isfinite(slope), slope, 0)


def _init(setup: _Setup, key: PRNGKey) -> SwapState:
    mask = setup.start
    if mask is None:
        mask = random_mask(key, setup.shape, setup.count)
    loss, aux = setup.evaluate(mask)
    bits = pack_mask(mask)
    best = archive(empty_archive(bits, aux), *_population(bits, loss, aux))
    return SwapState(bits, loss, setup.share(setup.config.first), best)


def _step(setup: _Setup, key: PRNGKey, state: SwapState) -> tuple[SwapState, SwapInfo]:
    before = unpack_mask(state.bits, setup.shape)
    # Half of them at most, so that what is left tells something of the rest.
    most = jnp.maximum(setup.count // 2, 1)
    most = jnp.minimum(most, jnp.minimum(setup.count, before.size - setup.count))
    n_dropped = jnp.minimum(state.dropped, most)
    mask = exchange(setup.slope, key, before, n_dropped, setup.config)
    loss, aux = setup.evaluate(mask)
    bits = pack_mask(mask)
    accepted = loss < state.loss
    best = archive(state.best, *_population(bits, loss, aux))
    new = SwapState(bits, loss, 2 * n_dropped, best)
    fewer = jnp.maximum(n_dropped // 2, setup.share(setup.config.least))
    old = state._replace(dropped=fewer)
    info = SwapInfo(
        best=best.loss,
        tried=loss,
        dropped=n_dropped,
        exchanged=jnp.sum(before & ~mask, dtype=jnp.int32),
        accepted=accepted,
        failed=jnp.isinf(loss).astype(jnp.int32),
    )
    return jax.tree.map(lambda new, old: jnp.where(accepted, new, old), new, old), info


def _population(bits: Array, loss: Array, aux: Any) -> tuple[Array, Array, Any]:
    """Makes a mask and its scores those of a population of one."""
    return bits[None], loss[None], jax.tree.map(lambda leaf: leaf[None], aux)


def exchange(
    slope: Callable[[HardMask], Float[Array, "F T"]],
    key: PRNGKey,
    mask: HardMask,
    n_dropped: int | Int[Array, ""],
    config: SwapConfig = SwapConfig(),
) -> HardMask:
    """Exchanges kept bins for others.

    Args:
        slope: From a mask to the loss' derivative by it.
        key: Of what is drawn.
        mask: With bins kept.
        n_dropped: Of them are dropped, at most half.
        config: How they are exchanged.

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
