"""Shared libraries, called by ctypes."""

import ctypes
import ctypes.util
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from benchmarks.codecs.contract import CodecError


@functools.cache
def find_library(name: str) -> ctypes.CDLL | None:
    """Loads a library of the system by its name without "lib"; None where there is none."""
    path = ctypes.util.find_library(name)
    return ctypes.CDLL(path) if path else None


def missing(name: str, package: str) -> str | None:
    """Says which Debian package brings a library that is missing, or None where it is there."""
    if find_library(name):
        return None
    return f"lib{name} is not installed (Debian: {package})"


def loaded(name: str) -> ctypes.CDLL:
    """Returns a library that `missing` has found."""
    library = find_library(name)
    assert library
    return library


@contextmanager
def handle(create: Any, destroy: Callable[..., Any], *arguments: Any) -> Iterator[ctypes.c_void_p]:
    """Makes the state of an encoder or decoder, and frees it at the end.

    Args:
        create: The library's function that returns a pointer.
        destroy: The one that frees it.
        *arguments: Of `create`.

    Raises:
        CodecError: If there is no state.
    """
    create.restype = ctypes.c_void_p
    pointer = create(*arguments)
    if not pointer:
        raise CodecError(f"{getattr(create, '__name__', 'the library')} failed")
    state = ctypes.c_void_p(pointer)
    try:
        yield state
    finally:
        destroy(state)


def pointer_to(array: np.ndarray) -> ctypes.c_void_p:
    """Points to an array's elements; the array must be kept alive meanwhile."""
    return array.ctypes.data_as(ctypes.c_void_p)
