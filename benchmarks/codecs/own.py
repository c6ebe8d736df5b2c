"""This project's codec."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from benchmarks.codecs.contract import Codec
from jaxsparse.types import SAMPLE_RATE

NAME = "jaxsparse"
KBPS = (2.4, 3.2, 4.8, 6.0, 8.0, 9.6, 12.0, 16.0)


def available() -> None:
    """Says nothing: it is always there."""


def make_codec(kbps: tuple[float, ...], effort: int) -> Codec:
    """Makes the codec of an effort, whose settings are bit rates."""

    def encode(signal: Float32[np.ndarray, " N"], setting: float) -> list[bytes]:
        # It imports JAX, which the other codecs do without.
        from jaxsparse import codec

        settings = codec.MDCTSettings(kbps=setting, effort=effort)
        return [codec.compress(signal[:, None], SAMPLE_RATE, settings)]

    def decode(packets: Sequence[bytes], setting: float) -> Float32[np.ndarray, " N"]:
        from jaxsparse import codec

        return codec.decompress(packets[0])[0][:, 0]

    counted = "the whole file, container included"
    return Codec(f"{NAME}, effort {effort}", counted, kbps, available, encode, decode, delay=0)
