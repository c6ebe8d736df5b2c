import os
import resource
import signal

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

import jax
import pytest
from hypothesis import settings

jax.config.update("jax_numpy_rank_promotion", "raise")

# A shell starts what runs in its background with Ctrl-C ignored, and children inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Compiling takes as long as it takes, so no example has a deadline.
settings.register_profile("default", deadline=None, max_examples=25)
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


FILE_SIZE_LIMITS = resource.getrlimit(resource.RLIMIT_FSIZE)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    """Tests of full disks limit the size of files, and pytest's own output may go to one."""
    try:
        return (yield)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, FILE_SIZE_LIMITS)


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def strict_dtypes():
    """Implicit promotion between dtypes raises; for our own functions, since optax relies on it."""
    with jax.numpy_dtype_promotion("strict"):
        yield
