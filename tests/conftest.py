import gc
import os
import resource
import signal

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
# Commands that run within the tests keep nothing that was compiled.
os.environ["JAXSPARSE_CACHE"] = ""

# More than half of the tests' time would go into optimising functions that run once or twice. Flags
# that are set already come last, and win: `make test-optimised` asks for XLA's defaults.
os.environ["XLA_FLAGS"] = " ".join(
    (
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_parallel_codegen_split_count=1",
        os.environ.get("XLA_FLAGS", ""),
    )
)

import jax
import pytest
from hypothesis import settings
from jax.experimental.compilation_cache import compilation_cache

pytest_plugins = ["leftovers"]

jax.config.update("jax_numpy_rank_promotion", "raise")

# Traced functions are millions of objects that stay; walking over them took a sixth of the time.
gc.freeze()
gc.set_threshold(100_000, 50, 100)

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


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """Runs of a program that differ in nothing that is compiled compile once: JAX's settings.

    For files that run the same training several times, each of which traces functions anew. In all
    others what is written costs more than what is found again saves.
    """
    wanted = {
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("cache")),
    }
    before = {name: getattr(jax.config, name) for name in wanted}
    for name, value in wanted.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield wanted
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def strict_dtypes():
    """Implicit promotion between dtypes raises; for our own functions, since optax relies on it."""
    with jax.numpy_dtype_promotion("strict"):
        yield
