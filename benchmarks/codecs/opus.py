"""Opus (RFC 6716) for speech: SILK and hybrid frames of 20 ms, variable bit rate, wide band."""

import ctypes
import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from benchmarks.codecs.contract import Codec, CodecError
from benchmarks.codecs.library import handle, pointer_to
from benchmarks.codecs.pcm import from_frames, to_frames
from jaxsparse.types import SAMPLE_RATE

FRAME = SAMPLE_RATE // 50
"""Samples of a packet."""
KBPS = (6.0, 8.0, 9.0, 10.0, 12.0, 14.0, 16.0, 18.0)
"""What is asked for: clips with pauses take less."""
COUNTED = "packets, without Ogg or RTP"
# Constants of opus_defines.h.
_VOICE_APPLICATION = 2048
_SET_BITRATE, _SET_BANDWIDTH, _SET_VBR, _SET_COMPLEXITY = 4002, 4008, 4006, 4010
_WIDE_BAND = 1103
_MAX_PACKET_BYTES = 1500


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The library that the wheel of `av` carries, so that its version is known."""
    package = importlib.util.find_spec("av")
    if package is None or package.origin is None:
        return None
    folder = Path(package.origin).parent.with_name("av.libs")
    return next((ctypes.CDLL(str(path)) for path in folder.glob("libopus-*")), None)


def _loaded() -> ctypes.CDLL:
    library = _library()
    assert library
    return library


def available() -> str | None:
    """Says why there is no Opus, or None."""
    return None if _library() else "libopus of the PyPI package av is not installed"


def version() -> str | None:
    """Returns the library's name and version, or None where it is missing."""
    library = _library()
    if library is None:
        return None
    library.opus_get_version_string.restype = ctypes.c_char_p
    return library.opus_get_version_string().decode()


def encode(signal: Float32[np.ndarray, " N"], kbps: float) -> list[bytes]:
    """Makes packets of 20 ms at about so many kbit/s."""
    library = _loaded()
    create, destroy = library.opus_encoder_create, library.opus_encoder_destroy
    error = ctypes.byref(ctypes.c_int())
    with handle(create, destroy, SAMPLE_RATE, 1, _VOICE_APPLICATION, error) as encoder:
        for request, value in (
            (_SET_BITRATE, round(1000 * kbps)),
            (_SET_BANDWIDTH, _WIDE_BAND),
            (_SET_VBR, 1),
            (_SET_COMPLEXITY, 10),
        ):
            _check(library.opus_encoder_ctl(encoder, request, ctypes.c_int(value)))
        return [_encode_frame(library, encoder, frame) for frame in to_frames(signal, FRAME)]


def _encode_frame(library: ctypes.CDLL, encoder: ctypes.c_void_p, frame: np.ndarray) -> bytes:
    packet = ctypes.create_string_buffer(_MAX_PACKET_BYTES)
    size = library.opus_encode(encoder, pointer_to(frame), FRAME, packet, _MAX_PACKET_BYTES)
    return packet.raw[: _check(size)]


def decode(packets: Sequence[bytes], kbps: float) -> Float32[np.ndarray, " N"]:
    """Decodes packets; the bit rate is not needed."""
    library = _loaded()
    create, destroy = library.opus_decoder_create, library.opus_decoder_destroy
    with handle(create, destroy, SAMPLE_RATE, 1, ctypes.byref(ctypes.c_int())) as decoder:
        frames = []
        for packet in packets:
            frame = np.empty(FRAME, np.int16)
            size = library.opus_decode(
                decoder, packet, len(packet), pointer_to(frame), FRAME, ctypes.c_int(0)
            )
            frames.append(frame[: _check(size)])
        return from_frames(frames)


def _check(result: int) -> int:
    if result < 0:
        raise CodecError(f"libopus failed with code {result}")
    return result


OPUS = Codec("Opus", COUNTED, KBPS, available, encode, decode)
