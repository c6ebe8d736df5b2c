"""A file of version 3 taken apart without judging it, changed, and put together again.

Checksums and sizes are made to fit, so that a change reaches the code behind them; so do numbers
that are decoded, changed and coded again.
"""

import dataclasses
import random
import re
import struct
import zlib
from dataclasses import dataclass

import numpy as np

from jaxsparse.codec.mdct_segment import (
    MAX_ESCAPE_BITS,
    QuantizedSegment,
    decode_segment,
    encode_segment,
    silence,
)
from jaxsparse.errors import ContainerError
from jaxsparse.transforms.grid import BAND_FRAMES, HOP_LENGTH, N_BANDS, N_LEVELS
from tests import small_codec
from tests.fuzz.changes import Change, change_bytes

_START = struct.Struct("<4sBB")
_NUMBERS = struct.Struct("<IBIB8s")
_SEGMENT = struct.Struct("<HHBI")
_FRAMES = 320
_MAX_SEGMENTS = 12
# Numbers of longer segments are not changed, for the sake of speed.
_MAX_FRAMES = 12
_MAX_WORDS = 2**16 - 1

_LIMITS = {
    "sample_rate": (1_000, 768_000),
    "channels": (1, 32),
    "n_samples": (1, 2_147_483_136),
    "quality": (0, 255),
}
# Beside the limits, what is good for a small file and what reaches a rule of its own.
_VALUES = {
    "sample_rate": (8_000, 16_000, 44_100),
    "channels": (1, 2, 3),
    "n_samples": (1, 2, 256, 257, 512, 700, 319 * 256, 319 * 256 + 1, 2**30, 2**31),
    "quality": (1, 100),
}
_CODES = {"sample_rate": "I", "channels": "B", "n_samples": "I", "quality": "B"}
_NAMES = (
    *(b"mdct", b"small_codec", b"a", b"Z9._-", b"a" * 64),
    *(b"", b"../mdct", b"a" * 65, b"m\0dct", b"mdct\n", b"\xe4", b"\0" * 100, b"a" * 226),
)
_STEPS = (0, 1, 8_192, 16_384, 16_385, 65_535)
_RATES = (0, 1, 24, 63, 64, 255)


@dataclass
class Segment:
    """A segment as it stands in a file.

    Attributes:
        step: Code of its step.
        rate: Of its step.
        data: Its words.
        n_words: How many it says there are; None: as many as there are.
    """

    step: int
    rate: int
    data: bytes
    n_words: int | None = None


@dataclass
class File:
    """The pieces of a file.

    Attributes:
        fields: Numbers of the header by name.
        sha256: Start of that of the weights, 8 bytes.
        codec: Name of the codec.
        segments: Of all channels.
        tail: What follows them.
        header_size: What the header says; None: what it is.
        name_size: What the header says of its name; None: what it is.
    """

    fields: dict[str, int]
    sha256: bytes
    codec: bytes
    segments: list[Segment]
    tail: bytes = b""
    header_size: int | None = None
    name_size: int | None = None

    @property
    def frames(self) -> list[int]:
        """Frames of all segments that the header promises; none where it makes no sense."""
        rate, n_samples = self.fields["sample_rate"], self.fields["n_samples"]
        if not rate:
            return []
        n_coded = -(-n_samples * 16_000 // rate)
        n_frames = -(-n_coded // 256) + 1
        n_segments = -(-n_frames // _FRAMES)
        # Without channels there are none, but how many there would be can be any number.
        if n_segments * max(self.fields["channels"], 1) > _MAX_SEGMENTS:
            return []
        own = [min(_FRAMES, n_frames - _FRAMES * index) for index in range(n_segments)]
        return own * self.fields["channels"]


def take_apart(data: bytes) -> File | None:
    """Takes a file apart as far as it goes; None where not even a header is there."""
    start = _START.size + _NUMBERS.size + 1
    if len(data) < start:
        return None
    _, _, size = _START.unpack_from(data)
    *numbers, sha256 = _NUMBERS.unpack_from(data, _START.size)
    size = min(max(size, start + 4), len(data))
    file = File(dict(zip(_LIMITS, numbers, strict=True)), sha256, data[start : size - 4], [])
    while len(data) - size >= _SEGMENT.size and len(file.segments) < _MAX_SEGMENTS:
        n_words, step, rate, _ = _SEGMENT.unpack_from(data, size)
        size += _SEGMENT.size
        file.segments.append(Segment(step, rate, data[size : size + 4 * n_words]))
        size = min(size + 4 * n_words, len(data))
    file.tail = data[size:]
    return file


def segment_bytes(number: int, segment: Segment) -> bytes:
    """Gives a segment as it stands in the file, with a checksum that fits."""
    n_words = len(segment.data) // 4 if segment.n_words is None else segment.n_words
    place = struct.pack("<IHHB", number, n_words, segment.step, segment.rate)
    crc = zlib.crc32(segment.data, zlib.crc32(place))
    return _SEGMENT.pack(n_words, segment.step, segment.rate, crc) + segment.data


def put_together(file: File) -> bytes:
    """Gives the bytes of a file."""
    name_size = len(file.codec) if file.name_size is None else file.name_size
    numbers = (file.fields[name] for name in _LIMITS)
    rest = _NUMBERS.pack(*numbers, file.sha256) + bytes([name_size]) + file.codec
    size = _START.size + len(rest) + 4 if file.header_size is None else file.header_size
    header = _START.pack(b"JSAC", 3, size % 256) + rest
    body = b"".join(segment_bytes(number, own) for number, own in enumerate(file.segments))
    return header + struct.pack("<I", zlib.crc32(header)) + body + file.tail


def mutate(data: bytes, rng: random.Random, change: Change) -> bytes:
    """Changes a file in one to four places, most often with checksums that fit.

    Args:
        data: A file.
        rng: Makes all decisions.
        change: Changes the bytes of one part.
    """
    file = take_apart(data)
    if file is None or rng.randrange(24) == 0:
        return change(data)
    for _ in range(rng.randint(1, 4)):
        rng.choice(_ACTIONS)(file, rng, change)
    if rng.randrange(5):
        _repair(file, rng)
    changed = put_together(file)
    # Damage, which can be concealed.
    return change_bytes(changed, rng) if rng.randrange(12) == 0 else changed


def _change_field(file: File, rng: random.Random, change: Change) -> None:
    name = rng.choice([*_LIMITS])
    bits = 8 * struct.calcsize("<" + _CODES[name])
    kind = rng.randrange(8)
    if kind == 0:
        value = rng.getrandbits(rng.randint(1, bits))
    elif kind == 1:
        value = file.fields[name] + rng.randint(-2, 2)
    else:
        low, high = _LIMITS[name]
        value = rng.choice((*_VALUES[name], low, high, low - 1, high + 1))
    file.fields[name] = value % 2**bits


def _change_start(file: File, rng: random.Random, change: Change) -> None:
    kind = rng.randrange(6)
    if kind < 2:
        file.codec = rng.choice(_NAMES)
    elif kind == 2:
        file.codec = change(file.codec)
    elif kind == 3:
        file.sha256 = rng.randbytes(8)
    elif kind == 4:
        file.header_size = rng.choice((0, 29, 30, 255, rng.randrange(256)))
    else:
        file.name_size = rng.randrange(256)
    # Of what a header's size, a byte, can tell.
    file.codec = file.codec[:226]


def _change_data(file: File, rng: random.Random, change: Change) -> None:
    if not file.segments:
        return
    segment = rng.choice(file.segments)
    kind = rng.randrange(8)
    if kind < 4:
        segment.data = change(segment.data)
    elif kind == 4:
        segment.data = rng.randbytes(4 * rng.randint(0, 12))
    elif kind == 5:
        segment.data = rng.choice(file.segments).data
    elif kind == 6:
        segment.data = segment.data[: 4 * rng.randint(0, len(segment.data) // 4)]
    else:
        segment.data += rng.choice((b"\0", b"\xff")) * (4 * rng.randint(1, 4))


def _change_lead(file: File, rng: random.Random, change: Change) -> None:
    """Sets the step, the rate or the length of a segment."""
    if not file.segments:
        return
    segment = rng.choice(file.segments)
    kind = rng.randrange(5)
    if kind < 2:
        segment.step = rng.choice((*_STEPS, rng.getrandbits(14)))
    elif kind < 4:
        segment.rate = rng.choice((*_RATES, rng.getrandbits(6)))
    else:
        n_words = len(segment.data) // 4 + rng.randint(-2, 2)
        segment.n_words = rng.choice((max(n_words, 0), 0, _MAX_WORDS))


def _change_numbers(file: File, rng: random.Random, change: Change) -> None:
    """Decodes a segment, changes some of its numbers and encodes it again."""
    frames = file.frames
    places = [
        place
        for place, n_frames in enumerate(frames[: len(file.segments)])
        if n_frames <= _MAX_FRAMES
    ]
    if not places:
        return
    place = rng.choice(places)
    own, n_frames = file.segments[place], frames[place]
    numbers = _decode(own, n_frames)
    if rng.randrange(8) == 0:
        own.rate = rng.randrange(64)
    for _ in range(rng.choice((1, 1, 4, 30, 300))):
        f, t = rng.randrange(HOP_LENGTH), rng.randrange(n_frames)
        kind = rng.randrange(8)
        if kind < 3:
            value = rng.randint(-3, 3)
        elif kind < 5:
            value = rng.randint(-20, 20)
        elif kind == 5:
            value = 16 + rng.getrandbits(rng.randint(1, MAX_ESCAPE_BITS + 1))
        else:
            value = 0
        numbers.values[f, t] = -value if rng.randrange(2) else value
    for _ in range(rng.choice((0, 1, 10))):
        band, row = rng.randrange(N_BANDS), rng.randrange(-(-n_frames // BAND_FRAMES))
        numbers.levels[band, row] = rng.choice((0, N_LEVELS - 1, rng.randrange(N_LEVELS)))
    try:
        own.data = encode_segment(numbers._replace(rate=own.rate), small_codec.models())
    except ContainerError:
        return
    own.data, own.n_words = own.data[: 4 * _MAX_WORDS], None
    own.step, own.rate = (own.step, own.rate) if own.data else (0, 0)


def _decode(own: Segment, n_frames: int) -> QuantizedSegment:
    """Gives the numbers of a segment, or silence if it has none."""
    own.rate = min(own.rate, 63)
    try:
        numbers = decode_segment(own.data, n_frames, own.rate, small_codec.models())
    except ContainerError:
        numbers = silence(n_frames)
    return numbers._replace(values=np.array(numbers.values), levels=np.array(numbers.levels))


def _move_segments(file: File, rng: random.Random, change: Change) -> None:
    if not file.segments:
        return
    first, second = (rng.randrange(len(file.segments)) for _ in range(2))
    kind = rng.randrange(3)
    if kind == 0:
        swapped = file.segments[second], file.segments[first]
        file.segments[first], file.segments[second] = swapped
    elif kind == 1:
        del file.segments[first]
    else:
        file.segments.insert(first, dataclasses.replace(file.segments[second]))


def _change_tail(file: File, rng: random.Random, change: Change) -> None:
    file.tail = b"" if file.tail else rng.randbytes(rng.randint(1, 40))


def _repair(file: File, rng: random.Random) -> None:
    """Makes a header that is accepted, and as many segments as it promises."""
    for name, (low, high) in _LIMITS.items():
        file.fields[name] = min(max(file.fields[name], low), high)
    if not re.fullmatch(rb"[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}", file.codec):
        file.codec = rng.choice(_NAMES[:5])
    file.header_size = file.name_size = None
    if not file.frames:
        file.fields["channels"] = rng.randint(1, 2)
        file.fields["n_samples"] = rng.randint(1, 800)
        file.fields["sample_rate"] = max(file.fields["sample_rate"], 16_000)
    have = file.segments or [Segment(0, 0, b"")]
    file.segments = [
        dataclasses.replace(have[i % len(have)], n_words=None) for i in range(len(file.frames))
    ]
    for segment in file.segments:
        segment.step, segment.rate = min(segment.step, 16_384), min(segment.rate, 63)
        segment.data = segment.data[: len(segment.data) // 4 * 4]
        if not segment.data:
            segment.step = segment.rate = 0
    file.tail = b""


_ACTIONS = (
    *(_change_field,) * 2,
    *(_change_data,) * 4,
    *(_change_numbers,) * 4,
    *(_change_lead,) * 2,
    _change_start,
    _move_segments,
    _change_tail,
)
