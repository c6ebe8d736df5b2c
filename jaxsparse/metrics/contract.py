"""What all metrics on the device share: batches in, one value per example out, NaN for NaN."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxsparse.types import Waveform

Batch: TypeAlias = Float[Array | np.ndarray, "B N"]
Score: TypeAlias = Callable[[Waveform, Waveform], Float[Array, ""]]


def per_example(score: Score, reference: Batch, estimate: Batch) -> Float[Array, " B"]:
    """Maps a metric of one clip over a batch.

    A clip with samples that are not finite gets NaN and a gradient of zeros, so that it spoils
    neither the others' values nor their gradients; `reasons` tells which.

    Args:
        score: ``(reference [N], estimate [N]) -> scalar``, float32.
        reference: Originals.
        estimate: What is judged.

    Raises:
        ValueError: If the clips are empty or the shapes differ.
    """
    if reference.shape != estimate.shape:
        raise ValueError(f"reference {reference.shape} and estimate {estimate.shape} differ")
    if reference.shape[1] == 0:
        raise ValueError("clips of no samples have no score")

    def one(x: Array, y: Array) -> Array:
        good = jnp.all(jnp.isfinite(x)) & jnp.all(jnp.isfinite(y))
        value = score(jnp.where(good, x, 0.0), jnp.where(good, y, 0.0))
        return jnp.where(good, value, jnp.nan)

    return jax.vmap(one)(jnp.asarray(reference, jnp.float32), jnp.asarray(estimate, jnp.float32))


def check_rate(sample_rate: int) -> None:
    """Refuses what is no sample rate.

    Raises:
        ValueError: If `sample_rate` is not positive.
    """
    if sample_rate <= 0:
        raise ValueError(f"a sample rate is positive, not {sample_rate} Hz")


def reasons(*, reference: Batch, estimate: Batch) -> tuple[str | None, ...]:
    """Why a metric on the device is NaN, for each clip; None where it is not.

    For those that ran under jit, which can return no text; on the host.

    Args:
        reference: Originals.
        estimate: What is judged.
    """
    found = []
    for x, y in zip(np.asarray(reference), np.asarray(estimate), strict=True):
        bad = [n for n, z in (("reference", x), ("estimate", y)) if not np.all(np.isfinite(z))]
        found.append(f"{bad[0]} has samples that are not finite" if bad else None)
    return tuple(found)
