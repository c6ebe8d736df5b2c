"""AMR-WB (3GPP TS 26.171, ITU-T G.722.2), the wide-band codec of mobile telephony."""

import ctypes
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from benchmarks.codecs.contract import Codec
from benchmarks.codecs.library import handle, loaded, missing, pointer_to
from benchmarks.codecs.pcm import from_frames, join_bits, split_bits, to_frames

ENCODER, DECODER = "vo-amrwbenc", "opencore-amrwb"
FRAME = 320
# TS 26.201: kbit/s to the mode's number and the bits of a frame.
MODES = {6.60: (0, 132), 8.85: (1, 177), 12.65: (2, 253), 14.25: (3, 285), 15.85: (4, 317)}
_MAX_FRAME_BYTES = 64
# TS 26.201, annex A: the mode's place in a frame's header, and the bit that says it is whole.
_MODE_SHIFT, _GOOD = 3, 4


def available() -> str | None:
    """Says which library is missing, or None."""
    return missing(ENCODER, "libvo-amrwbenc0") or missing(DECODER, "libopencore-amrwb0")


def encode(signal: Float32[np.ndarray, " N"], kbps: float) -> list[bytes]:
    """Makes the bits of all frames, without gaps: the mode is known to the decoder."""
    library = loaded(ENCODER)
    mode, n_bits = MODES[kbps]
    packet = ctypes.create_string_buffer(_MAX_FRAME_BYTES)
    frames = []
    with handle(library.E_IF_init, library.E_IF_exit) as state:
        for frame in to_frames(signal, FRAME):
            size = library.E_IF_encode(state, mode, pointer_to(frame), packet, 0)
            # Behind the header.
            frames.append(packet.raw[1:size])
    return [join_bits(frames, n_bits)]


def decode(packets: Sequence[bytes], kbps: float) -> Float32[np.ndarray, " N"]:
    """Decodes the frames, whose header is made of the mode."""
    library = loaded(DECODER)
    mode, n_bits = MODES[kbps]
    header = bytes([mode << _MODE_SHIFT | _GOOD])
    frames = []
    with handle(library.D_IF_init, library.D_IF_exit) as state:
        for bits in split_bits(packets[0], n_bits):
            frame = np.empty(FRAME, np.int16)
            library.D_IF_decode(state, header + bits.tobytes(), pointer_to(frame), 0)
            frames.append(frame)
    return from_frames(frames)


AMR_WB = Codec(
    "AMR-WB", "bits of the frames, without headers", tuple(MODES), available, encode, decode
)
