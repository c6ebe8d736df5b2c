"""Codec2, a parametric codec for radio: it works at 8 kHz, so nothing above 4 kHz is left."""

import ctypes
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from benchmarks.codecs.contract import Codec
from benchmarks.codecs.library import handle, loaded, missing, pointer_to
from benchmarks.codecs.pcm import from_frames, join_bits, split_bits, to_frames
from jaxsparse.audio import resample
from jaxsparse.types import SAMPLE_RATE

LIBRARY = "codec2"
RATE = 8_000
# Constants of codec2.h.
MODES = {1.3: 4, 2.4: 1, 3.2: 0}
# 20 ms: its window of analysis ends so much behind what it analyses. It can't be measured by
# cross-correlation, since the phases are made up.
DELAY = 320


def available() -> str | None:
    """Says that the library is missing, or None."""
    return missing(LIBRARY, "libcodec2-1.0")


def encode(signal: Float32[np.ndarray, " N"], kbps: float) -> list[bytes]:
    """Makes the bits of all frames, without gaps."""
    library = loaded(LIBRARY)
    narrow = resample(signal[:, None], SAMPLE_RATE, RATE)[:, 0]
    with handle(library.codec2_create, library.codec2_destroy, MODES[kbps]) as state:
        n_bits = library.codec2_bits_per_frame(state)
        frames = []
        for frame in to_frames(narrow, library.codec2_samples_per_frame(state)):
            packet = ctypes.create_string_buffer(-(-n_bits // 8))
            library.codec2_encode(state, packet, pointer_to(frame))
            frames.append(packet.raw)
    return [join_bits(frames, n_bits)]


def decode(packets: Sequence[bytes], kbps: float) -> Float32[np.ndarray, " N"]:
    """Decodes the frames, and resamples them to 16 kHz."""
    library = loaded(LIBRARY)
    with handle(library.codec2_create, library.codec2_destroy, MODES[kbps]) as state:
        size = library.codec2_samples_per_frame(state)
        frames = []
        for bits in split_bits(packets[0], library.codec2_bits_per_frame(state)):
            frame = np.empty(size, np.int16)
            library.codec2_decode(state, pointer_to(frame), bits.tobytes())
            frames.append(frame)
    return resample(from_frames(frames)[:, None], RATE, SAMPLE_RATE)[:, 0]


CODEC2 = Codec(
    "Codec2 (narrow band)",
    "bits of the frames, without headers",
    tuple(MODES),
    available,
    encode,
    decode,
    DELAY,
)
