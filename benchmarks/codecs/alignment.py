"""The delay of a codec, measured once for each setting, and decoded signals without it."""

import functools
from importlib import resources

import numpy as np
import scipy.signal
from jaxtyping import Float32

from benchmarks.codecs.contract import Codec
from jaxsparse.audio import read_audio

LONGEST_DELAY = 4_000
"""Samples at 16 kHz that a codec may be late by."""


@functools.cache
def measure_delay(codec: Codec, setting: float) -> int:
    """Codes the sentence that comes with the package, and returns the delay in samples."""
    if codec.delay is not None:
        return codec.delay
    sentence = _read_sentence()
    padded = np.pad(sentence, (0, LONGEST_DELAY))
    return find_delay(sentence, codec.decode(codec.encode(padded, setting), setting))


@functools.cache
def _read_sentence() -> Float32[np.ndarray, " N"]:
    with resources.as_file(resources.files("jaxsparse") / "assets" / "sentence.flac") as path:
        return read_audio(path)[0][:, 0]


def find_delay(reference: Float32[np.ndarray, " N"], estimate: Float32[np.ndarray, " M"]) -> int:
    """Finds how many samples an estimate is late by, from 0 to `LONGEST_DELAY`.

    It is where the cross-correlation has its peak.
    """
    products = scipy.signal.correlate(estimate, reference, "full", "fft")
    # Here the first samples of both meet.
    start = len(reference) - 1
    return int(np.argmax(products[start : start + LONGEST_DELAY + 1]))


def align(
    decoded: Float32[np.ndarray, " M"], delay: int, n_samples: int
) -> Float32[np.ndarray, " N"]:
    """Cuts the delay off, and what lies behind so many samples; zeros fill up what is missing."""
    signal = decoded[delay : delay + n_samples]
    return np.pad(signal, (0, n_samples - len(signal)))
