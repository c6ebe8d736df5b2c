"""A clip through a codec: bytes, times, and the decoded signal without the codec's delay."""

import time
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from benchmarks.codecs.alignment import align, measure_delay
from benchmarks.codecs.contract import Codec, CodecError
from benchmarks.codecs.opus import OPUS


class Task(NamedTuple):
    """A codec at one of its settings."""

    name: str
    codec: Codec
    setting: float


UNIT = Task("opus", OPUS, 9.5)
"""Its times are the unit of all others."""


class Coded(NamedTuple):
    """What a codec makes of a clip; the delay, in samples, is cut off already."""

    n_bytes: int
    delay: int
    decoded: Float32[np.ndarray, " N"]
    encode_seconds: float
    decode_seconds: float


def code(task: Task, signal: Float32[np.ndarray, " N"]) -> Coded:
    """Encodes and decodes a clip.

    The encoder is given zeros behind it, as many as the delay, so that its end comes out.

    Raises:
        CodecError: If the codec fails; it is named.
    """
    try:
        return _code(task.codec, task.setting, signal)
    except CodecError as error:
        raise CodecError(f"{task.codec.title} at {task.setting:g}: {error}") from error


def _code(codec: Codec, setting: float, signal: Float32[np.ndarray, " N"]) -> Coded:
    delay = measure_delay(codec, setting)
    start = time.perf_counter()
    packets = codec.encode(np.pad(signal, (0, delay)), setting)
    encoded = time.perf_counter()
    decoded = codec.decode(packets, setting)
    end = time.perf_counter()
    n_bytes = sum(map(len, packets))
    aligned = align(decoded, delay, len(signal))
    return Coded(n_bytes, delay, aligned, encoded - start, end - encoded)
