"""Exceptions that the package raises for input it refuses, and how commands report them."""

import os


class JaxsparseError(ValueError):
    """Base of every error of the package that names something wrong with the input."""


class AudioError(JaxsparseError):
    """A file or an array that is not usable audio."""


class ContainerError(JaxsparseError):
    """Bytes that are not a whole, unaltered ``.jsac`` file of a known version."""


def describe(error: BaseException) -> str:
    """Says in one line what is wrong, beginning with the file where the error knows it."""
    if isinstance(error, OSError) and error.strerror:
        file = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        return one_line(file + error.strerror)
    return one_line(str(error))


def one_line(text: str) -> str:
    """Escapes what a file's name may hold and a line of output may not."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
