"""LC3 (Bluetooth LE Audio), in frames of 10 ms."""

import importlib.util
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from benchmarks.codecs.contract import Codec
from benchmarks.codecs.pcm import from_frames, to_frames
from jaxsparse.types import SAMPLE_RATE

KBPS = (16.0, 24.0)
FRAME_US = 10_000


def available() -> str | None:
    """Says that the package is missing, or None."""
    return None if importlib.util.find_spec("lc3") else "the PyPI package lc3py is not installed"


def encode(signal: Float32[np.ndarray, " N"], kbps: float) -> list[bytes]:
    """Makes packets of 10 ms, all of the same size."""
    import lc3

    encoder = lc3.Encoder(FRAME_US, SAMPLE_RATE)
    size = encoder.get_frame_bytes(round(1000 * kbps))
    frames = to_frames(signal, encoder.get_frame_samples())
    return [encoder.encode(frame.tobytes(), size, bit_depth=16) for frame in frames]


def decode(packets: Sequence[bytes], kbps: float) -> Float32[np.ndarray, " N"]:
    """Decodes packets; their size is that of the bit rate."""
    import lc3

    decoder = lc3.Decoder(FRAME_US, SAMPLE_RATE)
    frames = (decoder.decode(packet, bit_depth=16) for packet in packets)
    return from_frames(np.frombuffer(frame, np.int16) for frame in frames)


LC3 = Codec("LC3", "packets", KBPS, available, encode, decode)
