"""A folder of compiled programs, so that a command's second run starts at once."""

import importlib.util
import os
from pathlib import Path

import jax

ENVIRONMENT = "JAXSPARSE_CACHE"
"""Variable that names another folder; if it is empty, nothing is kept."""
MAX_BYTES = 1 << 29


def use_cache() -> Path | None:
    """Keeps what is compiled from now on in a folder, and finds what is there.

    Settings of JAX's own (``JAX_COMPILATION_CACHE_DIR``) come first.

    Returns:
        The folder; None where nothing is kept by us: it is switched off, or can't be written.
    """
    if jax.config.jax_compilation_cache_dir is not None:  # pyright: ignore
        return None
    place = os.environ.get(ENVIRONMENT)
    if place == "":
        return None
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(place) if place else base / "jaxsparse"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(folder, os.W_OK | os.X_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # JAX bounds its size with this library alone.
    if importlib.util.find_spec("filelock"):
        jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
    return folder
