"""This project's codec."""

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from benchmarks.codecs.contract import Codec
from jaxsparse.types import SAMPLE_RATE

NAME = "jaxsparse"
KBPS = (2.4, 3.2, 4.8, 6.0, 8.0, 9.6, 12.0, 16.0)


def available() -> str | None:
    """Says that this version of the package has no MDCT codec, or None."""
    found = hasattr(_stream(), "MDCTSettings")
    return None if found else "jaxsparse.codec.stream has no MDCTSettings"


def _stream() -> Any:
    # It imports JAX, which the other codecs do without.
    return importlib.import_module("jaxsparse.codec.stream")


def make_codec(kbps: tuple[float, ...], effort: int) -> Codec:
    """Makes the codec of an effort, whose settings are bit rates."""

    def encode(signal: Float32[np.ndarray, " N"], setting: float) -> list[bytes]:
        stream = _stream()
        settings = stream.MDCTSettings(kbps=setting, effort=effort)
        return [stream.compress(signal[:, None], SAMPLE_RATE, settings)]

    def decode(packets: Sequence[bytes], setting: float) -> Float32[np.ndarray, " N"]:
        return _stream().decompress(packets[0])[0][:, 0]

    counted = "the whole file, container included"
    return Codec(f"{NAME}, effort {effort}", counted, kbps, available, encode, decode, delay=0)
