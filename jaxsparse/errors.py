"""Exceptions that the package raises for input it refuses."""


class JaxsparseError(ValueError):
    """Base of every error of the package that names something wrong with the input."""


class AudioError(JaxsparseError):
    """A file or an array that is not usable audio."""


class ContainerError(JaxsparseError):
    """Bytes that are not a whole, unaltered ``.jsac`` file of a known version."""
