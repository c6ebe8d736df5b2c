"""What all codecs of the comparison have in common."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float32

from jaxsparse.errors import JaxsparseError

Signal: TypeAlias = Float32[np.ndarray, " N"]

MOVED = "moved_pesq_wb"
"""Name of PESQ in wide band with silence before both sounds."""


class CodecError(JaxsparseError):
    """A codec that failed on a clip."""


class Codec(NamedTuple):
    """A codec for mono speech at 16 kHz.

    A decoder gets what the encoder gave and the setting, and nothing else, so that no byte that it
    needs can be left out of the count.

    Attributes:
        title: Its name in tables.
        counted: Which bytes are counted, in words.
        settings: Nominal kbit/s, or levels of quality.
        available: Says why the codec can't be used on this machine, or None where it can.
        encode: Makes packets of a signal, at a setting. A codec of whole files makes one packet.
        decode: Makes a signal of packets, at a setting. It begins with the codec's delay, and may
            end with samples that fill the last frame up.
        delay: Samples that the decoded signal is late by; None has it measured.
    """

    title: str
    counted: str
    settings: tuple[float, ...]
    available: Callable[[], str | None]
    encode: Callable[[Signal, float], list[bytes]]
    decode: Callable[[Sequence[bytes], float], Signal]
    delay: int | None = None
