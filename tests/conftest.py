import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

import jax
import pytest
from hypothesis import settings

jax.config.update("jax_numpy_rank_promotion", "raise")

# Compiling takes as long as it takes, so no example has a deadline.
settings.register_profile("default", deadline=None, max_examples=25)
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def strict_dtypes():
    """Implicit promotion between dtypes raises; for our own functions, since optax relies on it."""
    with jax.numpy_dtype_promotion("strict"):
        yield
