"""A file of version 1 or 2 taken apart without judging it, changed, and put together again.

The numbers of the header and their limits are those of the codec's own table. Checksums and sizes
are made to fit, so that a change reaches the code behind them.
"""

import random
import re
import struct
import zlib
from dataclasses import dataclass
from typing import Any

from jaxsparse.codec.header import FIELDS, VERSIONS, Choice, Field, Flag, Integer, fields_of
from tests.fuzz.changes import Change, change_bytes

_PREFIX = struct.Struct("<4sBHQ")
_PART = struct.Struct("<II")
_N_PARTS = 4
_MAX_SEGMENTS = 12
_CODES = {each.name: each.code for each in FIELDS if each.code in {"B", "H", "I", "Q"}}

# Beside the limits of a field, what is good for a small file, and what reaches a rule of its own.
_VALUES = {
    "sample_rate": (8000, 16_000, 44_100),
    "channels": (2, 3),
    "n_samples": (1, 2, 7, 20, 64, 90, 400, 2**30, 2**63),
    "n_fft": (6, 8, 10, 16, 32, 34),
    "win_length": (5, 8, 16, 32),
    "hop_length": (2, 4, 8, 16, 17),
    "frames_per_segment": (2, 3, 4, 12),
    "coded_share": (1, 250, 333, 500, 999),
    "seed": (1, 2**63),
    "value_step_mdb": (51, 500, 3001),
    "phase_bits": (2, 4),
    "phase_threshold": (40, 80),
}
_SPARSITIES = (
    *(b"0.5", b"0.7", b"0.95", b"0.999", b"0.000000000000000001", b"0.999999999999999999"),
    *(
        b"0.0",
        b"1",
        b"-0.5",
        b"nan",
        b"0.5\n",
        b"0,5",
        b"0.5e-1",
        b"",
        b"\xff.5",
        b"0." + b"1" * 253,
    ),
)
_NETWORKS = (b"random-90", b"random-95", b"", b"../mixed", b"a" * 64, b"a" * 65, b"m\0xed", b"\xe4")


def _limits(field: Field) -> tuple[int, int]:
    """The lowest and the highest number that may stand in the file."""
    if isinstance(field, Integer):
        return 0 if field.optional else field.low, field.high
    if isinstance(field, Choice):
        return 0, len(field.choices) - 1
    return 0, 1 if isinstance(field, Flag) else 1000


_LIMITS = {each.name: _limits(each) for each in FIELDS if each.name in _CODES}
# What a header can't be without; of a share of nothing version 1 says the same.
_LIMITS |= {"center": (1, 1), "coded_share": (1, 1000)}


@dataclass
class File:
    """The pieces of a file.

    Attributes:
        version: Of the format.
        fields: Numbers of the header by name; those of any version, 0 where it has none.
        sha256: Of the network's weights, 32 bytes.
        texts: Sparsity and network, or whatever else stands there.
        payloads: The parts, four to a segment.
        tail: What follows them.
    """

    version: int
    fields: dict[str, int]
    sha256: bytes
    texts: list[bytes]
    payloads: list[bytes]
    tail: bytes = b""

    @property
    def n_segments(self) -> int:
        """How many segments in all the header promises; 0 where it makes no sense."""
        get = self.fields.get
        rate, hop, size = get("sample_rate"), get("hop_length"), get("frames_per_segment")
        if not rate or not hop or not size:
            return 0
        frames = 1 + -(-self.fields["n_samples"] * self.fields["coded_rate"] // rate) // hop
        return self.fields["channels"] * -(-frames // size)


def _names(version: int) -> list[str]:
    """The numbers of a version's header; of an unknown version those of the first."""
    fields = fields_of(version if version in VERSIONS else VERSIONS[0])
    return [each.name for each in fields if each.name in _CODES]


def _fixed(version: int) -> struct.Struct:
    return struct.Struct("<" + "".join(_CODES[name] for name in _names(version)) + "32s")


def take_apart(data: bytes) -> File | None:
    """Takes a file apart as far as it goes; None where not even a header is there."""
    fixed = _fixed(data[4] if len(data) > 4 else 0)
    start = _PREFIX.size + fixed.size
    if len(data) < start:
        return None
    _, version, size, _ = _PREFIX.unpack_from(data)
    *numbers, sha256 = fixed.unpack_from(data, _PREFIX.size)
    size = min(max(size, start + 4), len(data))
    rest, texts = data[start : size - 4], []
    while rest:
        texts.append(rest[1 : 1 + rest[0]])
        rest = rest[1 + rest[0] :]
    payloads, offset = [], size
    while len(data) - offset >= _PART.size and len(payloads) < _N_PARTS * _MAX_SEGMENTS:
        length, _ = _PART.unpack_from(data, offset)
        offset += _PART.size
        payloads.append(data[offset : offset + length])
        offset = min(offset + length, len(data))
    fields = dict.fromkeys(_CODES, 0) | dict(zip(_names(version), numbers, strict=True))
    return File(version, fields, sha256, texts, payloads, data[offset:])


def part(number: int, payload: bytes) -> bytes:
    """A part as it stands in the file: length, checksum over its place too, payload."""
    place = struct.pack("<IBI", number // _N_PARTS, number % _N_PARTS, len(payload))
    return _PART.pack(len(payload), zlib.crc32(payload, zlib.crc32(place))) + payload


def put_together(file: File, **sizes: Any) -> bytes:
    """The bytes of a file, with sizes and checksums that fit.

    Args:
        file: The pieces.
        sizes: ``file_size`` and ``header_size``, where they shall not fit.
    """
    body = b"".join(part(number, payload) for number, payload in enumerate(file.payloads))
    body += file.tail
    texts = b"".join(bytes([len(text)]) + text for text in file.texts)
    fixed = _fixed(file.version)
    size = _PREFIX.size + fixed.size + len(texts) + 4
    header_size, file_size = (
        sizes.get("header_size", size),
        sizes.get("file_size", size + len(body)),
    )
    header = _PREFIX.pack(b"JSAC", file.version, header_size, file_size)
    numbers = (file.fields[name] for name in _names(file.version))
    header += fixed.pack(*numbers, file.sha256) + texts
    return header + struct.pack("<I", zlib.crc32(header)) + body


def mutate(data: bytes, rng: random.Random, change: Change) -> bytes:
    """Changes a file in one to four places, most often with checksums that fit.

    Args:
        data: A file, or anything else.
        rng: Makes all decisions.
        change: Changes the bytes of one part.
    """
    file = take_apart(data)
    if file is None or rng.randrange(24) == 0:
        return change(data)
    for _ in range(rng.randint(1, 4)):
        rng.choice(_ACTIONS)(file, rng, change)
    if rng.randrange(4):
        _repair(file, rng)
    changed = put_together(file)
    return change_bytes(changed, rng) if rng.randrange(32) == 0 else changed


def _change_field(file: File, rng: random.Random, change: Change) -> None:
    name = rng.choice(_names(file.version))
    bits = 8 * struct.calcsize("<" + _CODES[name])
    kind = rng.randrange(8)
    if kind == 0:
        value = rng.getrandbits(rng.randint(1, bits))
    elif kind == 1:
        value = file.fields[name] + rng.randint(-2, 2)
    else:
        low, high = _LIMITS[name]
        value = rng.choice((*_VALUES.get(name, ()), low, high, low - 1, high + 1))
    file.fields[name] = value % 2**bits


def _change_text(file: File, rng: random.Random, change: Change) -> None:
    kind = rng.randrange(6)
    if kind == 0 or len(file.texts) < 2:
        file.texts = [rng.choice(_SPARSITIES), rng.choice(_NETWORKS)]
    elif kind < 4:
        file.texts[0] = rng.choice(_SPARSITIES)
    elif kind == 4:
        file.texts[1] = rng.choice(_NETWORKS)
    else:
        place = rng.randrange(2)
        file.texts[place] = change(file.texts[place])[:255]


def _change_payload(file: File, rng: random.Random, change: Change) -> None:
    if not file.payloads:
        return
    place = rng.randrange(len(file.payloads))
    payload = file.payloads[place]
    kind = rng.randrange(8)
    if kind < 4:
        payload = change(payload)
    elif kind == 4:
        payload = rng.randbytes(4 * rng.randint(0, 12))
    elif kind == 5:
        payload = rng.choice(file.payloads)
    elif kind == 6:
        payload = payload[: 4 * rng.randint(0, len(payload) // 4)]
    else:
        payload = rng.choice((b"", b"\0", b"\xff")) * (4 * rng.randint(1, 4))
    file.payloads[place] = payload


def _change_levels(file: File, rng: random.Random, change: Change) -> None:
    """Sets base, span or threshold of the values part of a segment."""
    places = [i for i in range(1, len(file.payloads), _N_PARTS) if len(file.payloads[i]) >= 6]
    if not places:
        return
    place = rng.choice(places)
    numbers = list(struct.unpack_from("<hHH", file.payloads[place]))
    which = rng.randrange(3)
    if which == 0:
        numbers[0] = rng.choice((-(2**15), 2**15 - 1, 0, -1, rng.randint(-(2**15), 2**15 - 1)))
    else:
        near = numbers[which] + rng.randint(-1, 1)
        numbers[which] = rng.choice((0, 1, numbers[1], near, rng.getrandbits(11), 1602)) % 2**16
    file.payloads[place] = struct.pack("<hHH", *numbers) + file.payloads[place][6:]


def _move_parts(file: File, rng: random.Random, change: Change) -> None:
    if not file.payloads:
        return
    first, second = (rng.randrange(len(file.payloads)) for _ in range(2))
    kind = rng.randrange(3)
    if kind == 0:
        swapped = file.payloads[second], file.payloads[first]
        file.payloads[first], file.payloads[second] = swapped
    elif kind == 1:
        del file.payloads[first]
    else:
        file.payloads.insert(first, file.payloads[second])


def _change_rest(file: File, rng: random.Random, change: Change) -> None:
    kind = rng.randrange(4)
    if kind == 0:
        file.version = rng.choice((*VERSIONS, rng.randrange(256)))
    elif kind == 1:
        file.sha256 = rng.randbytes(32)
    else:
        file.tail = b"" if file.tail else rng.randbytes(rng.randint(1, 40))


def _repair(file: File, rng: random.Random) -> None:
    """Makes a header that is accepted, and as many parts as it promises."""
    fields = file.fields
    if file.version not in VERSIONS:
        file.version = rng.choice(VERSIONS)
    for name, (low, high) in _LIMITS.items():
        fields[name] = min(max(fields[name], low), high)
    # The other flag with these shares is written as version 1.
    fields["loudest"] = {500: 0, 1000: 1}.get(fields["coded_share"], fields["loudest"])
    fields["n_fft"] -= fields["n_fft"] % 2
    hop = -(-fields["n_fft"] // 8)
    fields["win_length"] = min(max(fields["win_length"], 2 * hop), fields["n_fft"])
    fields["hop_length"] = min(max(fields["hop_length"], hop), fields["win_length"] // 2)
    for place, pattern, texts in ((0, rb"0\.\d{1,18}", _SPARSITIES), (1, rb"[a-z]+", _NETWORKS)):
        if len(file.texts) != 2 or not re.fullmatch(pattern, file.texts[place]):
            good = [text for text in texts if re.fullmatch(pattern, text)]
            file.texts[place : place + 1] = [rng.choice(good)]
    file.texts = file.texts[:2]
    if file.n_segments > _MAX_SEGMENTS:
        fields["channels"] = rng.randint(1, 2)
        fields["n_samples"] = rng.randint(1, 64)
        fields["sample_rate"] = max(fields["sample_rate"], 16_000)
    if file.n_segments <= _MAX_SEGMENTS:
        needed = _N_PARTS * file.n_segments
        have = file.payloads or [b""]
        file.payloads = [have[i % len(have)] for i in range(needed)]
        file.tail = b""


_ACTIONS = (
    *(_change_field,) * 4,
    *(_change_payload,) * 5,
    *(_change_levels,) * 2,
    _change_text,
    _move_parts,
    _change_rest,
)
