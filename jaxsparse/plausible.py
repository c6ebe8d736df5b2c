"""What a decoder knows of hidden bins: limits for the output of any network."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsparse.spectrogram import TOP_DB
from jaxsparse.types import HardMask, Spectrogram

HEADROOM_DB = 12.0
"""How far a hidden bin may lie above the loudest kept one.

True peaks that a random mask of sparsity 0.95 misses are up to 4 dB above, and of 0.99 up to 12.
"""


def bound_levels(
    completed: Spectrogram, kept: Spectrogram, loud: HardMask, loudest: Float[Array, ""]
) -> Spectrogram:
    """Bounds levels by what is known of a spectrogram.

    None lies more than `HEADROOM_DB` above the loudest kept bin, or more than 80 dB, the range of
    `log_power`, below it. Where a mask keeps the loudest bins, no other one is louder than these.

    Args:
        completed: The network's output in dB, F by T.
        kept: dB where a bin is kept.
        loud: The kept bins that are as loud as any other one, or louder; none where a mask
            doesn't say so.
        loudest: Level of the loudest kept bin in dB.
    """
    quietest_loud = jnp.min(kept, where=loud, initial=jnp.inf)
    ceiling = jnp.where(loud, jnp.inf, quietest_loud)
    return jnp.clip(completed, loudest - TOP_DB, jnp.minimum(loudest + HEADROOM_DB, ceiling))


def match_drawn(
    completed: Spectrogram, kept: Spectrogram, drawn: HardMask, hidden: HardMask
) -> Spectrogram:
    """Gives hidden bins the mean and the standard deviation of those that were drawn from them.

    Bins that are drawn uniformly are a sample of all that are not chosen by their content, so
    that their levels say what those of the hidden ones are like, whatever a network makes of them.

    Args:
        completed: The network's output in dB, F by T.
        kept: dB where a bin is kept.
        drawn: Kept bins that were drawn at random; of fewer than two nothing is learnt.
        hidden: Bins that are not kept.
    """
    mean, deviation = _moments(kept, drawn)
    own_mean, own_deviation = _moments(completed, hidden)
    gain = jnp.where(own_deviation > 0, deviation / own_deviation, 0.0)
    matched = mean + gain * (completed - own_mean)
    return jnp.where(jnp.sum(drawn) < 2, completed, matched)


def _moments(levels: Spectrogram, where: HardMask) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean and standard deviation of some bins; the latter without bias where they are few."""
    n = jnp.sum(where, dtype=levels.dtype)
    mean = jnp.sum(levels, where=where) / n
    squares = jnp.sum(jnp.square(levels - mean), where=where)
    return mean, jnp.sqrt(squares / jnp.maximum(n - 1, 1))
