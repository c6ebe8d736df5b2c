"""Differentiable losses: batches in, one value per example out."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def mse(*, reference: Float[Array, "B F T"], estimate: Float[Array, "B F T"]) -> Float[Array, " B"]:
    """Mean squared error over all bins, in the square of the inputs' unit (dB^2 for dB)."""
    return jnp.mean(jnp.square(estimate - reference), axis=(1, 2))
