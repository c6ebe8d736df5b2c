"""A ``.jsac`` file: its header, and the parts of all segments with their checksums.

The header comes first, then for each channel and in it for each segment four parts, each led by
its length and its CRC-32. ``docs/format.md`` describes the bytes.
"""

import struct
import zlib
from collections.abc import Iterable
from dataclasses import asdict
from io import BufferedIOBase
from typing import Any, NamedTuple

from jaxsparse.audio import read_pipe
from jaxsparse.codec.header import MAGIC, Header, check_magic, pack_header, unpack_header
from jaxsparse.codec.segment import PARTS, Parts
from jaxsparse.errors import ContainerError

# Where all levels are equal and one phase is stored, 302 frames still cost 78 bytes: 3.9 frames to
# a byte. What promises more was never encoded. It bounds the decoder's work, and what it allocates:
# a frame brings at most 256 samples of 4 bytes, so 4096 times the file, times the ratio of its
# sample rate to 16 kHz.
MAX_FRAMES_PER_BYTE = 4

_PART = struct.Struct("<II")


class Container(NamedTuple):
    """A file taken apart; ``parts[channel * n_segments + segment]`` are the bytes of a segment."""

    header: Header
    parts: list[Parts]


def pack(header: Header, parts: Iterable[Parts]) -> bytes:
    """Puts a file together.

    Args:
        header: Of the file.
        parts: What `encode_segment` gave, for all segments of the first channel, then of the next.

    Raises:
        ValueError: If there are more or fewer segments than the header implies.
    """
    head_size = len(pack_header(header, 0))
    data = bytearray(head_size)
    n_coded = 0
    for number, segment_parts in enumerate(parts):
        for kind, payload in enumerate(segment_parts):
            data += _PART.pack(len(payload), _part_crc(number, kind, payload))
            data += payload
        n_coded += 1
    if n_coded != header.channels * header.n_segments:
        raise ValueError(f"{n_coded} segments instead of {header.channels * header.n_segments}")
    data[:head_size] = pack_header(header, len(data))
    return bytes(data)


def read(file: BufferedIOBase) -> bytes:
    """Reads a file or a pipe that begins as a ``.jsac`` file does; of any other the first bytes.

    Raises:
        ContainerError: If it is empty or begins otherwise.
        JaxsparseError: If a pipe brings more than `audio.MAX_PIPE_BYTES`.
        OSError: If it can't be read.
    """
    start = file.read(len(MAGIC))
    if not start:
        raise ContainerError("the file is empty")
    check_magic(start)
    return start + (file.read() if file.seekable() else b"".join(read_pipe(file)))


def unpack(data: bytes) -> Container:
    """Takes a file apart and checks all of its checksums; decodes nothing.

    Raises:
        ContainerError: If the bytes are not a whole, unaltered file of a known version.
    """
    header, offset = unpack_header(data)
    n_frames = header.channels * header.n_frames
    if n_frames > MAX_FRAMES_PER_BYTE * len(data):
        raise ContainerError(f"{len(data)} bytes can't hold {n_frames} frames")
    n_segments = header.channels * header.n_segments
    if n_segments * len(PARTS) * _PART.size > len(data) - offset:
        raise ContainerError(f"{len(data)} bytes can't hold {n_segments} segments")
    view = memoryview(data)
    parts: list[Parts] = []
    for number in range(n_segments):
        payloads = []
        for kind, name in enumerate(PARTS):
            if len(data) - offset < _PART.size:
                raise ContainerError(f"the file ends before the {name} part of segment {number}")
            length, crc = _PART.unpack_from(data, offset)
            offset += _PART.size
            if length > len(data) - offset:
                raise ContainerError(f"the file ends in the {name} part of segment {number}")
            payload = view[offset : offset + length]
            if crc != _part_crc(number, kind, payload):
                raise ContainerError(f"the {name} part of segment {number} is damaged")
            payloads.append(payload)
            offset += length
        parts.append(payloads)
    if offset != len(data):
        raise ContainerError(f"{len(data) - offset} bytes follow the last segment")
    return Container(header, parts)


def describe(data: bytes) -> dict[str, Any]:
    """Says what is in a file and where its bits go; decodes nothing.

    Returns:
        JSON-ready: ``version``, ``bytes``, ``bits`` (of the whole file), ``part_bits`` (of the
        four parts and of ``overhead``, that is header, lengths and checksums; their sum is
        ``bits``), ``seconds``, ``kbit_per_s``, ``size_ratio`` and ``size_ratio_16khz`` (bits of
        the file over those of 16-bit PCM at the original rate and at 16 kHz: above 1 the file is
        the larger one), ``segments`` in each channel, ``kept_bins`` and ``bins`` in all, and all
        fields of `Header`.

    Raises:
        ContainerError: As `unpack`.
    """
    header, parts = unpack(data)
    part_bits = {
        name: 8 * sum(len(payloads[kind]) for payloads in parts) for kind, name in enumerate(PARTS)
    }
    bits = 8 * len(data)
    seconds = header.n_samples / header.sample_rate
    segments = range(header.n_segments)
    return {
        "version": header.version,
        "bytes": len(data),
        "bits": bits,
        "part_bits": part_bits | {"overhead": bits - sum(part_bits.values())},
        "seconds": seconds,
        "kbit_per_s": bits / seconds / 1000,
        "size_ratio": bits / (16 * header.n_samples * header.channels),
        "size_ratio_16khz": bits / (16 * header.n_coded_samples * header.channels),
        "segments": header.n_segments,
        "kept_bins": header.channels * sum(header.count(i) for i in segments),
        "bins": header.channels * header.n_bins * header.n_frames,
        **asdict(header),
    }


def _part_crc(number: int, kind: int, payload: bytes | memoryview) -> int:
    """Over the place of a part too, so that parts that changed places are found."""
    return zlib.crc32(payload, zlib.crc32(struct.pack("<IBI", number, kind, len(payload))))
