"""A ``.jsac`` file of version 3: its header, and the coded segments of an MDCT with checksums.

The header comes first, then for each channel its segments, each led by its length, its step, its
rate and a CRC-32. ``docs/format.md`` describes the bytes.
"""

import re
import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from jaxsparse.audio import MAX_SAMPLE_RATE, MAX_WAV_SAMPLES, MIN_SAMPLE_RATE
from jaxsparse.codec.header import CODED_RATE, MAGIC, MAX_CHANNELS, check_magic, quote
from jaxsparse.errors import ContainerError
from jaxsparse.transforms.grid import HOP_LENGTH, N_RATES

VERSION = 3
FRAMES_PER_SEGMENT = 320
"""Frames that are coded together, 5.12 s; the last segment of a channel may be shorter."""
STEPS_PER_OCTAVE, STEP_ONE, MAX_STEP = 256, 8_192, 16_384
"""Steps are 2^((code - `STEP_ONE`) / `STEPS_PER_OCTAVE`), within 32 octaves of 1."""
# Damaged segments in a row behind which the next one is still found.
_MAX_LOST = 8
# A segment of silence takes 9 bytes for its 320 frames.
MAX_FRAMES_PER_BYTE = 36
QUALITY_STEPS = 50
"""Of the estimated quality, per point of MOS."""

# Magic, version, size of the header.
_START = struct.Struct("<4sBB")
# Sample rate, channels, samples, quality, start of the weights' SHA-256.
_NUMBERS = struct.Struct("<IBIB8s")
_CRC = struct.Struct("<I")
# Words of 4 bytes, step, rate, CRC-32.
_SEGMENT = struct.Struct("<HHBI")
_PLACE = struct.Struct("<IHHB")


@dataclass(frozen=True)
class MDCTHeader:
    """All that a decoder needs beside the segments.

    Attributes:
        sample_rate: Of the original, in Hz.
        channels: Of the original.
        n_samples: Of the original, in each channel.
        codec: Name of the networks that the file needs.
        codec_sha256: First 16 hexadecimal digits of the SHA-256 of their weights.
        quality: Estimate of PESQ in wide band as MOS-LQO, in fiftieths; None if unknown.

    Raises:
        ContainerError: If a field is out of its limits.
    """

    sample_rate: int
    channels: int
    n_samples: int
    codec: str
    codec_sha256: str
    quality: int | None = None

    def __post_init__(self) -> None:
        limits = {
            "sample_rate": (MIN_SAMPLE_RATE, MAX_SAMPLE_RATE),
            "channels": (1, MAX_CHANNELS),
            "n_samples": (1, MAX_WAV_SAMPLES // self.channels if self.channels > 0 else 0),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ContainerError(f"{name} {value} is not from {low} to {high}")
        if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}", self.codec):
            raise ContainerError(f"codec {quote(self.codec)} is not a usable name")
        if not re.fullmatch("[0-9a-f]{16}", self.codec_sha256):
            raise ContainerError(f"{self.codec_sha256!r} is not the start of a SHA-256")
        if self.quality is not None and not 1 <= self.quality <= 255:
            raise ContainerError(f"quality {self.quality} is not from 1 to 255")

    @property
    def n_coded_samples(self) -> int:
        """Samples of a channel at 16 kHz."""
        return -(-self.n_samples * CODED_RATE // self.sample_rate)

    @property
    def n_frames(self) -> int:
        """Frames of a channel."""
        return -(-self.n_coded_samples // HOP_LENGTH) + 1

    @property
    def n_segments(self) -> int:
        """Segments of a channel."""
        return -(-self.n_frames // FRAMES_PER_SEGMENT)

    def segment_frames(self, index: int) -> int:
        """Returns the frames of a segment of a channel."""
        return min(FRAMES_PER_SEGMENT, self.n_frames - index * FRAMES_PER_SEGMENT)


class CodedSegment(NamedTuple):
    """A segment as it stands in a file.

    Attributes:
        step: Code of the step, see `step_size`.
        rate: Of the step over the active level.
        data: What `encode_segment` wrote; empty for silence, whose step and rate are 0.
    """

    step: int
    rate: int
    data: bytes | memoryview


SILENCE = CodedSegment(0, 0, b"")


class MDCTContainer(NamedTuple):
    """A file taken apart; its segments are ``segments[channel * n_segments + index]``."""

    header: MDCTHeader
    segments: list[CodedSegment]


def step_size(code: int) -> float:
    """Returns the step that a code stands for, in units of samples at full scale."""
    return 2.0 ** ((code - STEP_ONE) / STEPS_PER_OCTAVE)


def pack(header: MDCTHeader, segments: Iterable[CodedSegment]) -> bytes:
    """Puts a file together.

    Args:
        header: Of the file.
        segments: Those of the first channel, then of the next.

    Raises:
        ValueError: If there are more or fewer segments than the header implies, or one is too long.
    """
    data = bytearray(_pack_header(header))
    n_coded = 0
    for number, segment in enumerate(segments):
        n_words, rest = divmod(len(segment.data), 4)
        if rest or n_words > 0xFFFF:
            raise ValueError(f"segment {number} has {len(segment.data)} bytes")
        crc = _segment_crc(number, n_words, segment)
        data += _SEGMENT.pack(n_words, segment.step, segment.rate, crc)
        data += segment.data
        n_coded += 1
    if n_coded != header.channels * header.n_segments:
        raise ValueError(f"{n_coded} segments instead of {header.channels * header.n_segments}")
    return bytes(data)


def header_size(header: MDCTHeader) -> int:
    """Returns the bytes of a header."""
    return len(_pack_header(header))


def overhead_bits(header: MDCTHeader) -> int:
    """Returns the bits of a file beside what its segments code."""
    return 8 * (header_size(header) + header.channels * header.n_segments * _SEGMENT.size)


def is_mdct(data: bytes) -> bool:
    """Whether a file says that it is of version 3; checks nothing else."""
    return data[len(MAGIC) : len(MAGIC) + 1] == bytes([VERSION])


def unpack(
    data: bytes,
    *,
    conceal: bool = False,
    on_damage: Callable[[int], object] = lambda number: None,
) -> MDCTContainer:
    """Takes a file apart and checks all of its checksums; decodes nothing.

    Args:
        data: The file.
        conceal: Whether damaged segments, and those that are cut off, are silence instead of an
            error. Without the header nothing can be decoded.
        on_damage: Called with the number of each such segment.

    Raises:
        ContainerError: If the bytes are not a whole, unaltered file of version 3.
    """
    header, offset = _unpack_header(data)
    n_frames = header.channels * header.n_frames
    if n_frames > MAX_FRAMES_PER_BYTE * len(data):
        raise ContainerError(f"{len(data)} bytes can't hold {n_frames} frames")
    segments: list[CodedSegment] = []
    view = memoryview(data)
    n_segments = header.channels * header.n_segments
    while len(segments) < n_segments:
        try:
            segment, offset = _unpack_segment(view, len(segments), offset)
            segments.append(segment)
        except ContainerError:
            if not conceal:
                raise
            following, offset = _next_segment(view, len(segments), n_segments, offset)
            for number in range(len(segments), following):
                on_damage(number)
                segments.append(SILENCE)
    if offset != len(data) and not conceal:
        raise ContainerError(f"{len(data) - offset} bytes follow the last segment")
    return MDCTContainer(header, segments)


def _unpack_segment(data: memoryview, number: int, offset: int) -> tuple[CodedSegment, int]:
    """Reads a segment; returns it and where it ends."""
    if len(data) - offset < _SEGMENT.size:
        raise ContainerError(f"the file ends before segment {number}")
    n_words, step, rate, crc = _SEGMENT.unpack_from(data, offset)
    offset += _SEGMENT.size
    if not _is_possible(n_words, step, rate):
        raise ContainerError(f"segment {number} is damaged")
    if 4 * n_words > len(data) - offset:
        raise ContainerError(f"the file ends in segment {number}")
    segment = CodedSegment(step, rate, data[offset : offset + 4 * n_words])
    if crc != _segment_crc(number, n_words, segment):
        raise ContainerError(f"segment {number} is damaged")
    return segment, offset + 4 * n_words


def _is_possible(n_words: int, step: int, rate: int) -> bool:
    """Whether a segment begins so; silence has neither step nor rate."""
    return rate < N_RATES and step <= MAX_STEP and (n_words > 0 or step == rate == 0)


def _next_segment(data: memoryview, number: int, n_segments: int, offset: int) -> tuple[int, int]:
    """Finds the segment behind a damaged one: the first place where one of the next few fits.

    The damaged one's length can't be trusted; a CRC-32 of the right number can.

    Returns:
        Its number and where it begins; the number of all segments if there is none.
    """
    following = range(number + 1, min(number + 1 + _MAX_LOST, n_segments))
    for start in range(offset, len(data) - _SEGMENT.size + 1) if following else ():
        n_words, step, rate, crc = _SEGMENT.unpack_from(data, start)
        words = data[start + _SEGMENT.size :][: 4 * n_words]
        # What can't be is found without its checksum, so that the search takes little.
        if not _is_possible(n_words, step, rate) or len(words) != 4 * n_words:
            continue
        segment = CodedSegment(step, rate, words)
        for candidate in following:
            if crc == _segment_crc(candidate, n_words, segment):
                return candidate, start
    return n_segments, len(data)


def describe(data: bytes) -> dict[str, Any]:
    """Says what is in a file and where its bytes go; decodes nothing.

    Returns:
        JSON-ready: ``version``, ``grid``, ``bytes``, ``bits``, ``part_bits`` (of the coefficients
        and of ``overhead``, that is header, lengths and checksums), ``seconds``, ``kbit_per_s``,
        ``size_ratio`` and ``size_ratio_16khz`` (bits of the file over those of 16-bit PCM at the
        original rate and at 16 kHz), ``segments`` in each channel, ``pesq_wb_estimate``, and the
        fields of `MDCTHeader`.

    Raises:
        ContainerError: As `unpack`.
    """
    header, _ = unpack(data)
    bits, seconds = 8 * len(data), header.n_samples / header.sample_rate
    overhead = overhead_bits(header)
    fields = asdict(header)
    quality = fields.pop("quality")
    return {
        "version": VERSION,
        "grid": "mdct",
        "bytes": len(data),
        "bits": bits,
        "part_bits": {"coefficients": bits - overhead, "overhead": overhead},
        "seconds": seconds,
        "kbit_per_s": bits / seconds / 1000,
        "size_ratio": bits / (16 * header.n_samples * header.channels),
        "size_ratio_16khz": bits / (16 * header.n_coded_samples * header.channels),
        "segments": header.n_segments,
        "coefficients": header.channels * header.n_frames * HOP_LENGTH,
        "coded_rate": CODED_RATE,
        "pesq_wb_estimate": None if quality is None else quality / QUALITY_STEPS,
        **fields,
    }


def _pack_header(header: MDCTHeader) -> bytes:
    name = header.codec.encode("ascii")
    size = _START.size + _NUMBERS.size + 1 + len(name) + _CRC.size
    packed = _START.pack(MAGIC, VERSION, size) + _NUMBERS.pack(
        header.sample_rate,
        header.channels,
        header.n_samples,
        header.quality or 0,
        bytes.fromhex(header.codec_sha256),
    )
    packed += bytes([len(name)]) + name
    return packed + _CRC.pack(zlib.crc32(packed))


def _unpack_header(data: bytes) -> tuple[MDCTHeader, int]:
    """Reads the header; returns it and where it ends."""
    check_magic(data)
    least = _START.size + _NUMBERS.size + 2 + _CRC.size
    if len(data) < least:
        raise ContainerError("the file ends in its header")
    _, version, size = _START.unpack_from(data)
    if version != VERSION:
        raise ContainerError(f"the file is of version {version}, not {VERSION}")
    if size < least:
        raise ContainerError("the header is damaged")
    if size > len(data):
        raise ContainerError("the file ends in its header")
    (crc,) = _CRC.unpack_from(data, size - _CRC.size)
    if crc != zlib.crc32(data[: size - _CRC.size]):
        raise ContainerError("the header is damaged")
    sample_rate, channels, n_samples, quality, digest = _NUMBERS.unpack_from(data, _START.size)
    name = data[_START.size + _NUMBERS.size : size - _CRC.size]
    if len(name) != 1 + name[0] or not name.isascii():
        raise ContainerError("the header contradicts itself")
    codec = name[1:].decode("ascii")
    header = MDCTHeader(sample_rate, channels, n_samples, codec, digest.hex(), quality or None)
    return header, size


def _segment_crc(number: int, n_words: int, segment: CodedSegment) -> int:
    """Over the place of a segment too, so that segments that changed places are found."""
    start = _PLACE.pack(number, n_words, segment.step, segment.rate)
    return zlib.crc32(segment.data, zlib.crc32(start))
