"""Codecs that libsndfile writes as whole files: MP3, and FLAC as the lossless mark."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import soundfile
from jaxtyping import Float32

from benchmarks.codecs.contract import Codec
from jaxsparse.types import SAMPLE_RATE

COUNTED = "the whole file"
MP3_KBPS = (8.0, 16.0, 24.0, 32.0)
# Of MPEG-2, which has half the rates of MPEG-1: libsndfile spreads its levels over them.
_LOWEST_KBPS, _HIGHEST_KBPS = 8, 160


def mp3_available() -> str | None:
    """Says that libsndfile writes no MP3, or None."""
    written = "MP3" in soundfile.available_formats()
    return None if written else "this libsndfile writes no MP3 (1.1 and newer ones do)"


def encode_mp3(signal: Float32[np.ndarray, " N"], kbps: float) -> list[bytes]:
    """Makes an MP3 file of a constant bit rate."""
    # Half a kbit/s within the range, whose ends it refuses.
    level = (_HIGHEST_KBPS + 0.5 - max(kbps, _LOWEST_KBPS + 1)) / (_HIGHEST_KBPS - _LOWEST_KBPS)
    more = {"subtype": "MPEG_LAYER_III", "bitrate_mode": "CONSTANT", "compression_level": level}
    return [_write(signal, "MP3", more)]


def encode_flac(signal: Float32[np.ndarray, " N"], level: float) -> list[bytes]:
    """Makes a FLAC file of 16 bits, compressed at a level from 0 to 1."""
    return [_write(signal, "FLAC", {"subtype": "PCM_16", "compression_level": level})]


def _write(signal: Float32[np.ndarray, " N"], kind: str, more: dict[str, Any]) -> bytes:
    with io.BytesIO() as file:
        soundfile.write(file, signal, SAMPLE_RATE, format=kind, **more)
        return file.getvalue()


def decode(packets: Sequence[bytes], setting: float) -> Float32[np.ndarray, " N"]:
    """Reads a file; the setting is not needed."""
    return soundfile.read(io.BytesIO(packets[0]), dtype="float32")[0]


MP3 = Codec("MP3", COUNTED, MP3_KBPS, mp3_available, encode_mp3, decode)
FLAC = Codec("FLAC (lossless)", COUNTED, (1.0,), lambda: None, encode_flac, decode, delay=0)
