"""Evaluating populations of packed masks, as many at a time as fit the memory."""

import functools
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, UInt8

from jaxsparse import sharding
from jaxsparse.masks import unpack_mask
from jaxsparse.search.contract import as_tree

# The share of the memory for masks that are evaluated together: one part of so many.
_MEMORY_SHARE = 4
# Larger chunks are no faster on a CPU, since they leave its caches.
_CPU_CHUNK_BYTES = 1 << 26


def evaluate(
    objective: Callable, bits: UInt8[Array, "P W"], shape: tuple[int, ...], chunk: int
) -> tuple[Float[Array, " P"], Any]:
    """Evaluates packed masks, `chunk` of them unpacked at a time on each device.

    Args:
        objective: See `jaxsparse.search.contract.Objective`.
        bits: The masks.
        shape: Of an unpacked mask.
        chunk: The most masks to evaluate together on a device of the mesh in force.

    Returns:
        Their losses and auxiliary output.
    """
    # The largest that divides, unless it is far smaller: a remainder is compiled for itself.
    n, devices = bits.shape[0], sharding.n_devices()

    def score(packed: Array) -> tuple[Any, Any]:
        return objective(unpack_mask(packed, shape))

    if devices > 1:
        return _evaluate_on_all(score, bits, chunk, devices)
    chunk = min(chunk, n)
    divisor = next(size for size in range(chunk, 0, -1) if n % size == 0)
    chunk = divisor if 2 * divisor >= chunk else chunk
    return lax.map(score, bits, batch_size=chunk)


def _evaluate_on_all(score: Callable, bits: Array, chunk: int, devices: int) -> tuple[Array, Any]:
    """Evaluates as many chunks at a time as there are devices, of one size."""
    n = bits.shape[0]
    rounds = -(-n // (chunk * devices))
    # What fills the last round up is evaluated for nothing.
    chunk = -(-n // (rounds * devices))
    padded = jnp.pad(bits, ((0, rounds * chunk * devices - n), (0, 0)), mode="edge")
    parts = sharding.split(padded.reshape(rounds, devices * chunk, -1), axis=1)
    scored = lax.map(lambda part: jax.vmap(score)(sharding.split(part)), parts)
    scored = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:n], scored)
    return sharding.gather(scored)


def chunk_size(objective: Callable, shape: tuple[int, ...], chunk_bytes: int | None = None) -> int:
    """Returns how many masks may be evaluated at a time, at least one.

    Args:
        objective: It is compiled for one mask, and the compiler asked how much memory that takes.
        shape: Of a mask.
        chunk_bytes: Memory for all masks of a chunk; by default a quarter of the device's, and on
            a CPU, where more is no faster, at most 64 MiB.

    Raises:
        ValueError: If `chunk_bytes` is not positive.
    """
    if chunk_bytes is None:
        chunk_bytes = _memory() // _MEMORY_SHARE
        if jax.default_backend() == "cpu":
            chunk_bytes = min(chunk_bytes, _CPU_CHUNK_BYTES)
    elif chunk_bytes < 1:
        raise ValueError(f"chunk_bytes must be positive, not {chunk_bytes}")
    leaves, structure = jax.tree.flatten(as_tree(objective))
    kinds = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    return max(chunk_bytes // _bytes_per_mask(structure, kinds, shape), 1)


def _memory() -> int:
    """Returns the device's memory, or the system's.

    Not what is free of it, since results must not depend on that.
    """
    memory = jax.local_devices()[0].memory_stats()
    if memory and "bytes_limit" in memory:
        return memory["bytes_limit"]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@functools.lru_cache
def _bytes_per_mask(structure: Any, kinds: Any, shape: tuple[int, ...]) -> int:
    mask = jax.ShapeDtypeStruct(shape, jnp.bool_)
    arrays = [jax.ShapeDtypeStruct(*kind) for kind in kinds]

    def call(arrays: Any, mask: Any) -> Any:
        # Made within, since a dataclass may refuse what stands for an array outside.
        return jax.tree.unflatten(structure, arrays)(mask)

    memory = jax.jit(call).lower(arrays, mask).compile().memory_analysis()
    assert memory is not None
    # Unpacking makes a byte of a bit once more.
    return int(memory.temp_size_in_bytes + memory.output_size_in_bytes) + 2 * math.prod(shape)
