"""Binary masks with an exact number of ones; ties go to the lower (row-major) index."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, UInt, UInt8

from jaxsparse.types import PRNGKey


def count_observed(shape: tuple[int, ...], sparsity: float | str | Fraction) -> int:
    """How many entries a mask of this sparsity keeps: ``floor((1 - s) * size)``.

    In exact decimal arithmetic: in float64, 0.8 and 0.9 of 1025 x 302 come out one short.

    Args:
        shape: Shape of the mask.
        sparsity: Share of entries that are hidden, as a decimal number from 0 to 1.

    Raises:
        ValueError: If `sparsity` is not a number from 0 to 1.
    """
    try:
        exact = Fraction(str(sparsity))
    except ZeroDivisionError:
        raise ValueError(f"sparsity must be from 0 to 1, not {sparsity}") from None
    if not 0 <= exact <= 1:
        raise ValueError(f"sparsity must be from 0 to 1, not {sparsity}")
    return math.floor((1 - exact) * math.prod(shape))


def sparsity(mask: Bool[Array, "*shape"]) -> Float[Array, ""]:
    """The share of entries that a mask hides."""
    return 1.0 - jnp.mean(mask.astype(jnp.float32))


def random_mask(
    key: PRNGKey,
    shape: tuple[int, ...],
    count: int | Int[Array, ""],
    *,
    within: Bool[Array, "..."] | None = None,
) -> Bool[Array, "..."]:
    """Keeps `count` entries, drawn uniformly; batches are drawn by ``vmap`` over keys.

    Args:
        key: Of the draw.
        shape: Of the mask.
        count: Number of ones, from 0 to the number of entries.
        within: Entries to draw from, at least `count` of them, which is not checked.

    Returns:
        A mask of that shape with exactly `count` ones.

    Raises:
        ValueError: If `count` is not in that range; a traced one is not checked.
    """
    ranks = jax.random.bits(key, shape, jnp.uint32)
    if within is not None:
        # The lowest rank of all for what is not to be drawn.
        ranks = jnp.where(within, jnp.maximum(ranks, 1), jnp.uint32(0))
    return project_ranks(ranks, count)


def project_to_count(
    scores: Float[Array, "*shape"], count: int | Int[Array, ""]
) -> Bool[Array, "*shape"]:
    """Keeps the `count` highest scores, exactly.

    The threshold is found bit by bit: 32 passes over the entries, no sort and no copy of them,
    also where `count` is traced.

    Args:
        scores: Any floats; NaN ranks below everything.
        count: Number of ones, from 0 to the number of entries.

    Returns:
        A mask with exactly `count` ones; among equal scores the lower indices win.

    Raises:
        ValueError: If `count` is not in that range; a traced one is not checked.
    """
    scores = scores.astype(jnp.float32)
    # As integers, since the CPU takes subnormal floats for zeros. Both zeros get the same rank.
    bits = lax.bitcast_convert_type(scores, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    ranks = jnp.where(bits > sign, ~bits, bits | sign)
    return project_ranks(jnp.where(jnp.isnan(scores), jnp.uint32(0), ranks), count)


def pack_mask(mask: Bool[Array, "*shape"]) -> UInt8[Array, " W"]:
    """A mask as bits, eight to a byte in row-major order, zero-padded: ``W = ceil(size / 8)``."""
    return jnp.packbits(mask.ravel())


def unpack_mask(bits: UInt8[Array, " W"], shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """The mask of that shape which `pack_mask` packed.

    Raises:
        ValueError: If the number of bytes is not that of the shape.
    """
    size = math.prod(shape)
    if bits.size != -(-size // 8):
        raise ValueError(f"a mask of shape {shape} has {-(-size // 8)} bytes, not {bits.size}")
    return jnp.unpackbits(bits, count=size).astype(bool).reshape(shape)


def share_of(share: Fraction, count: int | Int[Array, ""]) -> int | Int[Array, ""]:
    """A share of a count, from 0 to 1, rounded down to a whole number."""
    whole, rest = count // share.denominator, count % share.denominator
    # In parts, since the product may leave 32 bits.
    return whole * share.numerator + rest * share.numerator // share.denominator


def check_count(count: int | Int[Array, ""], size: int) -> None:
    """Refuses a count that a mask of `size` entries can't keep; a traced one is not checked.

    Raises:
        ValueError: If it is not from 0 to `size`.
    """
    if not isinstance(count, Tracer) and not 0 <= int(count) <= size:
        raise ValueError(f"a mask of {size} entries can't keep {count}")


def project_ranks(
    ranks: UInt[Array, "*shape"], count: int | Int[Array, ""]
) -> Bool[Array, "*shape"]:
    """Keeps the `count` highest of 32-bit ranks, the first ones among equals.

    Raises:
        ValueError: If `count` is not from 0 to the number of entries; a traced one is not checked.
    """
    check_count(count, ranks.size)
    count = jnp.asarray(count, jnp.int32)

    def refine(i: Array, threshold: Array) -> Array:
        candidate = threshold | (jnp.uint32(1) << (jnp.uint32(31) - i.astype(jnp.uint32)))
        enough = jnp.sum(ranks >= candidate, dtype=jnp.int32) >= count
        return jnp.where(enough, candidate, threshold)

    # The largest threshold that at least `count` ranks reach.
    threshold = lax.fori_loop(0, 32, refine, jnp.uint32(0))
    above = ranks > threshold
    level = ranks == threshold
    missing = count - jnp.sum(above, dtype=jnp.int32)
    earlier = jnp.cumsum(level.ravel().astype(jnp.int32)).reshape(ranks.shape)
    return above | (level & (earlier <= missing))
