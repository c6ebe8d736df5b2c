"""Genetic search over populations of masks (thesis, sections 3.2.2 and 4.4.2).

A generation is the best individuals of the one before, children of good ones, and new random masks.
The population is kept as bits and evaluated in chunks, so that beyond these bits, 39 kB for a mask
of 1025 x 302 in four or five copies at the peak, its size takes no memory.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, UInt8

from jaxsparse.masks import check_count, pack_mask, project_ranks, random_mask, unpack_mask
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
from jaxsparse.search.population import chunk_size, evaluate
from jaxsparse.types import HardMask, PRNGKey

# Share of a copy's ones that move.
_OF_COPIES = 0.05

Crossover: TypeAlias = Literal["uniform", "blocks", "bands"]


@dataclass(frozen=True)
class GeneticConfig:
    """Settings of the genetic search; `THESIS` has those of the thesis.

    Attributes:
        population_size: Individuals in a generation.
        elite_share: Part of the next generation that is the best of this one, unchanged. They keep
            their loss and are not evaluated again.
        child_share: Part that is children; what is left is drawn anew.
        parent_share: The best part of this generation, from which parents are chosen.
        tournament: Parents are the best of so many drawn from that part; 1 draws them uniformly.
        crossover: What of the parents' differences a child takes over before its count is
            mended: any bin by chance ("uniform", the thesis'), whole rectangles ("blocks"),
            or whole ranges of frequency ("bands") of one parent or the other.
        block: Bins and frames of a block; a band is as many bins.
        mutation: Share of a child's ones that move to a place drawn uniformly, at least one of
            them unless the share is 0.
        distinct: Whether copies of other individuals are mutated: else a population becomes copies
            of one mask.
    """

    population_size: int = 50
    elite_share: float = 0.1
    child_share: float = 0.8
    parent_share: float = 0.4
    tournament: int = 2
    crossover: Crossover = "uniform"
    block: tuple[int, int] = (32, 16)
    mutation: float = 0.002
    distinct: bool = True

    @property
    def n_elite(self) -> int:
        """Individuals that pass unchanged."""
        return round(self.elite_share * self.population_size)

    @property
    def n_children(self) -> int:
        """Children in a generation."""
        return round(self.child_share * self.population_size)

    @property
    def n_parents(self) -> int:
        """Individuals that parents are chosen from."""
        return round(self.parent_share * self.population_size)

    @property
    def n_new(self) -> int:
        """Individuals that a step evaluates."""
        return self.population_size - self.n_elite


THESIS = GeneticConfig(child_share=0.4, tournament=1, mutation=0.0, distinct=False)
"""The thesis' operators (sections 3.2.2 and 4.4.2)."""

WITHOUT_REPRODUCTION = dataclasses.replace(THESIS, elite_share=0.0, child_share=0.0)
"""The thesis' control: a fresh random population each generation, of which the best is kept."""


class GeneticState(NamedTuple):
    """A generation, the elite first."""

    population: UInt8[Array, "P W"]
    losses: Float[Array, " P"]
    """inf where there is none."""
    best: Best


class GeneticInfo(NamedTuple):
    """A generation in numbers."""

    best: Float[Array, ""]
    """Loss of the archived mask."""
    generation_best: Float[Array, ""]
    mean: Float[Array, ""]
    """Over the individuals that have a loss."""
    failed: Int[Array, ""]
    """Individuals without a loss."""
    distinct: Float[Array, ""]
    """Share of the individuals that are no copies of others."""


def genetic(
    objective: Objective | HostObjective,
    shape: tuple[int, int],
    count: int | Int[Array, ""],
    config: GeneticConfig = GeneticConfig(),
    *,
    start: Bool[Array, "S F T"] | None = None,
    chunk_bytes: int | None = None,
) -> Search:
    """Makes a genetic search, which begins with a random population or with given individuals.

    Args:
        objective: To be minimized over masks [F, T]; the same for a mask each time, since the
            elite's loss is kept.
        shape: F and T.
        count: Ones of every mask; another count compiles nothing anew.
        config: Settings of the search.
        start: Hard masks of that count, at most a population; the others are drawn.
        chunk_bytes: See `jaxsparse.search.population.chunk_size`; the population beyond a chunk
            waits as bits.

    Raises:
        ValueError: If the settings are out of range, or `count` is, or `start` is of another shape
            or count or doesn't fit the population.
    """
    _check(config)
    check_count(count, shape[0] * shape[1])
    count = jnp.asarray(count, jnp.int32)
    on_host = isinstance(objective, HostObjective)
    identity: tuple[Any, ...] = ("genetic", repr(config), str(shape))
    if on_host:
        function = as_tree(objective.score)
        identity += (identity_of(function), objective.identity)
        chunk = config.population_size
    else:
        function = as_tree(objective)
        identity += (identity_of(function),)
        chunk = min(chunk_size(function, shape, chunk_bytes), config.population_size)
    check_start(start, shape, count)
    if start is not None and len(start) > config.population_size:
        raise ValueError(f"{len(start)} masks to start from don't fit {config.population_size}")
    start = None if start is None else jax.vmap(pack_mask)(start)
    setup = _Setup(function, count, start, config, shape, chunk)
    return Search(
        Partial(_init_on_host if on_host else _init, setup),
        Partial(_step_on_host if on_host else _step, setup),
        config.population_size,
        config.n_new,
        on_host,
        identity,
    )


def _check(config: GeneticConfig) -> None:
    shares = (config.elite_share, config.child_share, config.parent_share, config.mutation)
    if not all(0 <= share <= 1 for share in shares):
        raise ValueError(f"the shares of a generation must be from 0 to 1, not {shares}")
    if config.population_size < 1 or config.n_new < 1 or config.n_new < config.n_children:
        raise ValueError(
            f"a generation of {config.population_size} has no room for {config.n_elite} old and"
            f" {config.n_children} children, and one that is new"
        )
    if config.n_children and config.n_parents < 2:
        raise ValueError(f"children need two parents, not {config.n_parents}")
    if config.crossover not in get_args(Crossover):
        raise ValueError(f"crossover is one of {get_args(Crossover)}, not {config.crossover!r}")
    if config.tournament < 1 or min(config.block) < 1:
        raise ValueError("tournaments and blocks have at least one entry")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Setup:
    """All that a search's functions hold: arrays are traced, static fields compiled in."""

    # JAX fills trees with other things than arrays too, which a type checker would refuse.
    objective: Any
    """That of the search, or the `score` of one that leaves the device."""
    count: Any
    start: Any
    """Packed individuals of the first population, or None."""
    config: GeneticConfig = field(metadata={"static": True})
    shape: tuple[int, int] = field(metadata={"static": True})
    chunk: int = field(metadata={"static": True})
    """Individuals that are evaluated together."""


def _init(setup: _Setup, key: PRNGKey) -> GeneticState:
    population = _draw_generation(setup.config, setup.shape, setup.count, setup.start, key)
    return _first(population, *evaluate(setup.objective, population, setup.shape, setup.chunk))


def _step(setup: _Setup, key: PRNGKey, state: GeneticState) -> tuple[GeneticState, GeneticInfo]:
    elite, new = _breed(setup.config, setup.shape, setup.count, key, state)
    return _succeed(state, elite, new, *evaluate(setup.objective, new, setup.shape, setup.chunk))


def _init_on_host(setup: _Setup, key: PRNGKey) -> GeneticState:
    """Does the same, in compiled pieces around the objective."""
    population = _jitted_draw(setup.config, setup.shape, setup.count, setup.start, key)
    return _jitted_first(population, *_as_arrays(setup.objective(population)))


def _step_on_host(
    setup: _Setup, key: PRNGKey, state: GeneticState
) -> tuple[GeneticState, GeneticInfo]:
    elite, new = _jitted_breed(setup.config, setup.shape, setup.count, key, state)
    return _jitted_succeed(state, elite, new, *_as_arrays(setup.objective(new)))


def _as_arrays(scored: tuple[Any, Any]) -> tuple[Array, Any]:
    losses, aux = scored
    return jnp.asarray(losses, jnp.float32), jax.tree.map(jnp.asarray, aux)


def _first(population: Array, losses: Array, aux: Any) -> GeneticState:
    one = jax.tree.map(lambda leaf: leaf[0], aux)
    best = archive(empty_archive(population[0], one), population, losses, aux)
    return GeneticState(population, worst_if_nan(losses), best)


def _succeed(
    state: GeneticState, elite: tuple[Array, Array], new: Array, losses: Array, aux: Any
) -> tuple[GeneticState, GeneticInfo]:
    """Returns the next generation and what it is in numbers."""
    best = archive(state.best, new, losses, aux)
    population = jnp.concatenate([elite[0], new])
    losses = jnp.concatenate([elite[1], worst_if_nan(losses)])
    scored = jnp.isfinite(losses)
    n_scored = jnp.sum(scored, dtype=jnp.int32)
    mean = jnp.sum(jnp.where(scored, losses, 0)) / jnp.maximum(n_scored, 1)
    info = GeneticInfo(
        best=best.loss,
        generation_best=jnp.min(losses),
        mean=jnp.where(n_scored > 0, mean, jnp.inf),
        failed=losses.size - n_scored,
        distinct=jnp.mean(~_copies(population)),
    )
    return GeneticState(population, losses, best), info


def _breed(
    config: GeneticConfig, shape: tuple[int, int], count: Array, key: PRNGKey, state: GeneticState
) -> tuple[tuple[Array, Array], Array]:
    """Returns the elite with its losses, and the packed individuals that are new."""
    for_parents, for_children, for_random, for_copies = jax.random.split(key, 4)
    order = jnp.argsort(state.losses, stable=True)
    elite = order[: config.n_elite]
    new = [_draw(jax.random.split(for_random, config.n_new - config.n_children), shape, count)]
    if config.n_children:
        parents = order[_choose_parents(config, for_parents)]
        keys = jax.random.split(for_children, config.n_children)

        def child(entry: tuple[Array, Array]) -> Array:
            a, b = (unpack_mask(state.population[i], shape) for i in entry[1])
            return pack_mask(_child(config, entry[0], a, b, count))

        # One at a time: each takes some bytes for every bin.
        new.insert(0, lax.map(child, (keys, parents)))
    old, bred = state.population[elite], jnp.concatenate(new)
    if config.distinct:
        copies = _copies(jnp.concatenate([old, bred]))[len(old) :]
        bred = _mutate_some(for_copies, bred, copies, shape)
    return (old, state.losses[elite]), bred


def _copies(population: UInt8[Array, "P W"]) -> Bool[Array, " P"]:
    """Finds individuals that equal an earlier one, by 64 bits of a hash."""
    coefficients = jax.random.bits(jax.random.key(0), (population.shape[1], 2), jnp.uint32)
    # Odd, so that no byte is lost; one at a time, since each byte becomes a word.
    hashes = lax.map(
        lambda bits: jnp.sum(bits[:, None].astype(jnp.uint32) * (coefficients | 1), axis=0),
        population,
    )
    high, low = jnp.moveaxis(hashes, 1, 0)
    order = jnp.lexsort((high, low))
    high, low = high[order], low[order]
    equal = (high[1:] == high[:-1]) & (low[1:] == low[:-1])
    return jnp.zeros(len(order), bool).at[order[1:]].set(equal)


def _mutate_some(
    key: PRNGKey, population: UInt8[Array, "P W"], chosen: Bool[Array, " P"], shape: tuple[int, int]
) -> UInt8[Array, "P W"]:
    """Mutates the chosen individuals, so that they differ from what they are copies of."""

    def renew(entry: tuple[Array, Array, Array]) -> Array:
        own, bits, is_chosen = entry

        def mutated() -> Array:
            return pack_mask(mutate(own, unpack_mask(bits, shape), _OF_COPIES))

        return lax.cond(is_chosen, mutated, lambda: bits)

    return lax.map(renew, (jax.random.split(key, len(population)), population, chosen))


def _draw_generation(
    config: GeneticConfig, shape: tuple[int, int], count: Array, start: Array | None, key: PRNGKey
) -> Array:
    drawn = _draw(jax.random.split(key, config.population_size), shape, count)
    return drawn if start is None else drawn.at[: len(start)].set(start)


def _draw(keys: Array, shape: tuple[int, int], count: Array) -> Array:
    """Draws packed random masks."""
    return lax.map(lambda key: pack_mask(random_mask(key, shape, count)), keys)


def _choose_parents(config: GeneticConfig, key: PRNGKey) -> Int[Array, "children 2"]:
    """Draws the ranks of two different parents for each child."""
    for_first, for_second = jax.random.split(key)
    n, size = config.n_parents, (config.n_children, config.tournament)
    first = jnp.min(jax.random.randint(for_first, size, 0, n), axis=1)
    # Among the others: ranks from the first one on move up by one.
    second = jnp.min(jax.random.randint(for_second, size, 0, n - 1), axis=1)
    return jnp.stack([first, second + (second >= first)], axis=1)


def _child(config: GeneticConfig, key: PRNGKey, a: HardMask, b: HardMask, count: Array) -> HardMask:
    for_taken, for_mending, for_mutation = jax.random.split(key, 3)
    child = crossover(for_mending, a, b, _taken(config, for_taken, a, b), count)
    return mutate(for_mutation, child, config.mutation) if config.mutation else child


def _taken(config: GeneticConfig, key: PRNGKey, a: HardMask, b: HardMask) -> HardMask:
    """Chooses, of what only one parent has, what the child is to have if the count allows."""
    if config.crossover == "uniform":
        return jnp.zeros(a.shape, bool)
    height, width = config.block
    width = width if config.crossover == "blocks" else a.shape[1]
    blocks = (-(-a.shape[0] // height), -(-a.shape[1] // width))
    choice = jnp.repeat(jax.random.bernoulli(key, shape=blocks), height, axis=0)
    choice = jnp.repeat(choice, width, axis=1)[: a.shape[0], : a.shape[1]]
    return jnp.where(choice, a, b)


def crossover(
    key: PRNGKey, a: HardMask, b: HardMask, taken: HardMask, count: int | Int[Array, ""]
) -> HardMask:
    """Makes a child: all that both parents have, and ones from where they differ (thesis, 3.2.2).

    Args:
        key: Of the draw.
        a: A parent of that count.
        b: The other.
        taken: Where they differ, bins that come before the others; without any, all are alike.
        count: Ones of the parents and of the child.

    Returns:
        A mask with exactly `count` ones, all of them in a parent, those in both among them.
    """
    draws = jax.random.bits(key, a.shape, jnp.uint32) >> 2
    # Four classes: hidden in both, in one, in one and taken, in both.
    classes = jnp.where(taken, jnp.uint32(2), jnp.uint32(1)) << 30
    ranks = jnp.where(a ^ b, classes | draws, jnp.uint32(0))
    return project_ranks(jnp.where(a & b, jnp.uint32(2**32 - 1), ranks), count)


def mutate(key: PRNGKey, mask: Bool[Array, "F T"], share: float) -> Bool[Array, "F T"]:
    """Moves a share of the ones to places drawn uniformly from those that are hidden.

    Args:
        key: Of the draws.
        mask: A mask of any count.
        share: Of the ones, rounded; at least one of them moves unless it is 0.
    """
    for_ones, for_zeros = jax.random.split(key)
    n_ones = jnp.sum(mask, dtype=jnp.int32)
    moved = jnp.maximum(jnp.round(share * n_ones).astype(jnp.int32), int(share > 0))
    moved = jnp.minimum(moved, n_ones)
    moved = jnp.minimum(moved, mask.size - n_ones)
    away = random_mask(for_ones, mask.shape, moved, within=mask)
    return (mask & ~away) | random_mask(for_zeros, mask.shape, moved, within=~mask)


# Pieces around an objective that leaves the device.
_jitted_draw = jax.jit(_draw_generation, static_argnums=(0, 1))
_jitted_breed = jax.jit(_breed, static_argnums=(0, 1))
_jitted_first = jax.jit(_first)
_jitted_succeed = jax.jit(_succeed)
