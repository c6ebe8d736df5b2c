"""Exceptions that the package raises for input it refuses, and how commands report them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


class JaxsparseError(ValueError):
    """Base of every error of the package that names something wrong with the input."""


class AudioError(JaxsparseError):
    """A file or an array that is not usable audio."""


class ContainerError(JaxsparseError):
    """Bytes that are not a whole, unaltered ``.jsac`` file of a known version."""


class MissingExtraError(ImportError):
    """A package that is not installed, and the extra that brings it.

    Nothing is wrong with the input, so it is no `JaxsparseError`.
    """


@contextmanager
def needs_extra(name: str) -> Iterator[None]:
    """Surrounds the imports of packages that an extra brings, and no plain installation has.

    ::

        with needs_extra("train"):
            import grain

    Args:
        name: Of the extra, one of those in ``pyproject.toml``.

    Raises:
        MissingExtraError: If one is not installed; it names the package and the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        message = f"{error.name} is not installed: pip install 'jaxsparse[{name}]' brings it"
        raise MissingExtraError(message, name=error.name) from error


def describe(error: BaseException) -> str:
    """Says in one line what is wrong, beginning with the file where the error knows it."""
    if isinstance(error, OSError) and error.strerror:
        file = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        return one_line(file + error.strerror)
    return one_line(str(error))


def one_line(text: str) -> str:
    """Escapes what a file's name may hold and a line of output may not."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
