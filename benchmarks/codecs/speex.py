"""Speex in wide band, at variable bit rates."""

import ctypes
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from benchmarks.codecs.contract import Codec, CodecError
from benchmarks.codecs.library import handle, loaded, missing, pointer_to
from benchmarks.codecs.pcm import from_frames, to_frames

LIBRARY = "speex"
FRAME = 320
QUALITIES = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)
# Constants of speex.h.
_WIDE_BAND = 1
_SET_VBR, _SET_VBR_QUALITY, _SET_COMPLEXITY = 12, 14, 16
_MAX_PACKET_BYTES = 200


class _Bits(ctypes.Structure):
    """`SpeexBits` of speex_bits.h."""

    _fields_ = (
        ("chars", ctypes.c_char_p),
        ("n_bits", ctypes.c_int),
        ("char", ctypes.c_int),
        ("bit", ctypes.c_int),
        ("owner", ctypes.c_int),
        ("overflow", ctypes.c_int),
        ("size", ctypes.c_int),
        ("reserved_1", ctypes.c_int),
        ("reserved_2", ctypes.c_void_p),
    )


def available() -> str | None:
    """Says that the library is missing, or None."""
    return missing(LIBRARY, "libspeex1")


def _wide_band(library: ctypes.CDLL) -> ctypes.c_void_p:
    library.speex_lib_get_mode.restype = ctypes.c_void_p
    return ctypes.c_void_p(library.speex_lib_get_mode(_WIDE_BAND))


def encode(signal: Float32[np.ndarray, " N"], quality: float) -> list[bytes]:
    """Makes packets of 20 ms at a quality from 0 to 10."""
    library = loaded(LIBRARY)
    create, destroy = library.speex_encoder_init, library.speex_encoder_destroy
    bits = ctypes.byref(_Bits())
    library.speex_bits_init(bits)
    packets = []
    with handle(create, destroy, _wide_band(library)) as encoder:
        for request, value in (
            (_SET_COMPLEXITY, ctypes.c_int(10)),
            (_SET_VBR, ctypes.c_int(1)),
            (_SET_VBR_QUALITY, ctypes.c_float(quality)),
        ):
            library.speex_encoder_ctl(encoder, request, ctypes.byref(value))
        packet = ctypes.create_string_buffer(_MAX_PACKET_BYTES)
        for frame in to_frames(signal, FRAME):
            library.speex_bits_reset(bits)
            library.speex_encode_int(encoder, pointer_to(frame), bits)
            size = library.speex_bits_write(bits, packet, _MAX_PACKET_BYTES)
            packets.append(packet.raw[:size])
    library.speex_bits_destroy(bits)
    return packets


def decode(packets: Sequence[bytes], quality: float) -> Float32[np.ndarray, " N"]:
    """Decodes packets, with the perceptual enhancement that is the default."""
    library = loaded(LIBRARY)
    create, destroy = library.speex_decoder_init, library.speex_decoder_destroy
    bits = ctypes.byref(_Bits())
    library.speex_bits_init(bits)
    frames = []
    with handle(create, destroy, _wide_band(library)) as decoder:
        for packet in packets:
            frame = np.empty(FRAME, np.int16)
            library.speex_bits_read_from(bits, packet, len(packet))
            if library.speex_decode_int(decoder, bits, pointer_to(frame)) != 0:
                raise CodecError("libspeex refused a packet")
            frames.append(frame)
    library.speex_bits_destroy(bits)
    return from_frames(frames)


SPEEX = Codec("Speex", "packets, without Ogg", QUALITIES, available, encode, decode)
