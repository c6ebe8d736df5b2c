"""The version, which stands in ``pyproject.toml`` alone."""

from importlib import metadata

try:
    __version__ = metadata.version("jaxsparse")
except metadata.PackageNotFoundError:
    # A checkout that is not installed.
    __version__ = "0+unknown"
