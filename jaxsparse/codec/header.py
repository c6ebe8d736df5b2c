"""The header of a ``.jsac`` file: what its fields are, what they may hold, and their bytes.

`FIELDS` is the one list of the fields, in the order of the file. Packing, unpacking and limits
follow it. All integers are little-endian; ``docs/format.md`` describes the bytes.

What follows from the header (segments, frames, counts) is not stored, so that nothing in a file
can contradict it.
"""

import functools
import re
import struct
import zlib
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxsparse.audio import MAX_SAMPLE_RATE, MAX_WAV_SAMPLES, MIN_SAMPLE_RATE, check_usable
from jaxsparse.errors import AudioError, ContainerError

VERSIONS = (1, 2)
MAGIC = b"JSAC"
CODED_RATE = 16_000
MAX_CHANNELS = 32
# What the encoder writes; smaller ones are good for tests.
_MAX_N_FFT, _MAX_HOP_LENGTH, _MAX_FRAMES = 2048, 256, 302
# Most frames that reach a sample, as in what the encoder writes: each is an addition to compile.
_MAX_OVERLAP = 8
# Spectrograms are floored that far below their maximum.
_RANGE_MDB = 80_000
# Characters of a faulty text that a message shows.
_MAX_QUOTED = 100
# Pairs of coded_share and loudest that one byte of version 1 tells apart.
_VERSION_1_MASKS = (("1", False), ("0.5", True), ("0", False))

# Magic, version and size of the header.
_START = struct.Struct("<4sBH")
_FILE_SIZE = struct.Struct("<Q")
_CRC = struct.Struct("<I")


@dataclass(frozen=True)
class Field:
    """A field of the header: how it is stored, and what it may hold.

    Attributes:
        name: In the description of the format.
        code: Of `struct`, without a byte order; empty for a text, which has its length before it.
        versions: Of the format that have it.
        attributes: Of `Header`, where there is none of the same name; the value is a tuple of them.
    """

    name: str
    code: str
    versions: tuple[int, ...] = field(default=VERSIONS, kw_only=True)
    attributes: tuple[str, ...] = field(default=(), kw_only=True)

    def value(self, header: "Header") -> Any:
        """Gives what the field says of a header."""
        if self.attributes:
            return tuple(getattr(header, name) for name in self.attributes)
        return getattr(header, self.name)

    def _check(self, value: Any) -> None:
        """Raises `ContainerError` if a header can't say that."""
        raise NotImplementedError

    def _store(self, value: Any) -> Any:
        """Gives the number, or the bytes, that stand in the file."""
        raise NotImplementedError

    def _restore(self, stored: Any) -> Any:
        """Inverts `_store`; raises `ContainerError` if nothing is stored as that."""
        raise NotImplementedError


@dataclass(frozen=True)
class Integer(Field):
    """A whole number from `low` to `high`; if `optional`, None too, stored as 0."""

    low: int
    high: int
    optional: bool = False

    def _check(self, value: Any) -> None:
        if value is None and self.optional:
            return
        if not isinstance(value, int) or isinstance(value, bool):
            raise ContainerError(f"{self.name} {value!r} is not an integer")
        _check_range(self.name, value, self.low, self.high)

    def _store(self, value: int | None) -> int:
        return value or 0

    def _restore(self, stored: int) -> int | None:
        return None if self.optional and stored == 0 else stored


@dataclass(frozen=True)
class Flag(Field):
    """True or False, stored as 1 or 0."""

    code: str = field(default="B", init=False)

    def _check(self, value: Any) -> None:
        if not isinstance(value, bool):
            raise ContainerError(f"{self.name} {value!r} is neither true nor false")

    def _store(self, value: bool) -> int:
        return int(value)

    def _restore(self, stored: int) -> bool:
        if stored > 1:
            raise ContainerError("a flag in the header is neither 0 nor 1")
        return bool(stored)


@dataclass(frozen=True)
class Choice(Field):
    """One of a few values, stored as its index."""

    code: str = field(default="B", init=False)
    choices: tuple[Any, ...]

    def _check(self, value: Any) -> None:
        if value not in self.choices:
            raise ContainerError(f"{self.name} {value!r} is not one of {self.choices}")

    def _store(self, value: Any) -> int:
        return self.choices.index(value)

    def _restore(self, stored: int) -> Any:
        if stored >= len(self.choices):
            raise ContainerError(f"choice {stored} in the header is not known")
        return self.choices[stored]


@dataclass(frozen=True)
class Thousandths(Field):
    """An exact decimal text from 0 to 1 of at most three decimals, stored in thousandths.

    A number has one text: none ends in a zero behind the point.
    """

    code: str = field(default="H", init=False)

    def _check(self, value: Any) -> None:
        if not re.fullmatch(r"[01]|0\.[0-9]{0,2}[1-9]", value):
            text = f"{self.name} {value!r} is not a decimal from 0 to 1"
            raise ContainerError(f"{text}, of at most three digits and no last zero")

    def _store(self, value: str) -> int:
        return int(1000 * Fraction(value))

    def _restore(self, stored: int) -> str:
        if stored > 1000:
            raise ContainerError(f"{self.name} of {stored} thousandths is more than all")
        return f"{Decimal(stored).scaleb(-3).normalize():f}"


@dataclass(frozen=True)
class Digest(Field):
    """A SHA-256 in 64 hexadecimal digits, stored as 32 bytes."""

    code: str = field(default="32s", init=False)

    def _check(self, value: Any) -> None:
        if not re.fullmatch("[0-9a-f]{64}", value):
            raise ContainerError(f"{value!r} is not a SHA-256")

    def _store(self, value: str) -> bytes:
        return bytes.fromhex(value)

    def _restore(self, stored: bytes) -> str:
        return stored.hex()


@dataclass(frozen=True)
class Text(Field):
    """An ASCII text that matches `pattern`, stored behind a byte that says its length."""

    code: str = field(default="", init=False)
    pattern: str
    meaning: str

    def _check(self, value: Any) -> None:
        if not re.fullmatch(self.pattern, value):
            raise ContainerError(f"{self.name} {quote(value)} is not {self.meaning}")

    def _store(self, value: str) -> bytes:
        return value.encode("ascii")

    def _restore(self, stored: bytes) -> str:
        return stored.decode("ascii")


def quote(text: str) -> str:
    """Quotes a text of a file for a message, of which it may not take more than a line."""
    quoted = repr(text)
    return quoted if len(quoted) <= _MAX_QUOTED else quoted[: _MAX_QUOTED - 3] + "..."


_MASK = Choice("mask", _VERSION_1_MASKS, versions=(1,), attributes=("coded_share", "loudest"))
FIELDS = (
    Integer("sample_rate", "I", MIN_SAMPLE_RATE, MAX_SAMPLE_RATE),
    Integer("channels", "B", 1, MAX_CHANNELS),
    Integer("n_samples", "Q", 1, MAX_WAV_SAMPLES),
    Integer("coded_rate", "I", CODED_RATE, CODED_RATE),
    Integer("n_fft", "I", 4, _MAX_N_FFT),
    Integer("win_length", "I", 4, _MAX_N_FFT),
    Integer("hop_length", "I", 1, _MAX_HOP_LENGTH),
    Choice("window", ("hann",)),
    Flag("center"),
    Choice("pad_mode", ("reflect",)),
    Integer("frames_per_segment", "H", 1, _MAX_FRAMES),
    _MASK,
    Thousandths("coded_share", versions=(2,)),
    Flag("loudest", versions=(2,)),
    Integer("seed", "Q", 0, 2**64 - 1),
    Integer("value_step_mdb", "I", 50, 10_000),
    Integer("phase_bits", "B", 1, 12),
    Integer("phase_threshold", "B", 1, 255, optional=True),
    Flag("keep_observed"),
    Digest("network_sha256"),
    Text("sparsity", r"0\.(?=0*[1-9])[0-9]{1,18}", "a decimal between 0 and 1"),
    Text("network", r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}", "a usable name"),
)
"""All fields, in the order of the file: those of fixed size first, then the texts."""


@functools.cache
def fields_of(version: int) -> tuple[Field, ...]:
    """The fields that a version of the format has; in version 2 each is an attribute."""
    return tuple(each for each in FIELDS if version in each.versions)


@dataclass(frozen=True)
class Header:
    """All that a decoder needs beside the coded parts.

    Attributes:
        sample_rate: Of the original, in Hz.
        channels: Of the original.
        n_samples: Of the original, in each channel.
        sparsity: Share of bins that are not kept, an exact decimal such as ``"0.95"``.
        coded_share: Share of the kept bins whose positions are stored, an exact decimal from
            ``"0"`` to ``"1"`` of at most three decimals; the seed draws the others.
        loudest: Whether the bins whose positions are stored are as loud as any other bin of
            their segment, or louder.
        seed: Of the drawn positions, below 2^64.
        network: Name of the network that fills in the rest.
        network_sha256: Of its weights, 64 hexadecimal digits.
        value_step_mdb: Step of the kept values' quantizer in thousandths of a dB.
        phase_bits: Bits of a stored phase.
        phase_threshold: Phases of bins more than so many dB below the maximum of their segment
            are not stored; None stores all.
        keep_observed: Whether the decoder puts the kept values back.
        frames_per_segment: Frames that are coded together.
        n_fft: Samples of the Fourier transform, even.
        win_length: Samples of the window.
        hop_length: Samples from frame to frame.
        window: Name of the window.
        center: Whether frame t is centred at sample ``t * hop_length``.
        pad_mode: How the ends are padded.
        coded_rate: At which the spectrogram is made, in Hz.

    Raises:
        ContainerError: If a field is out of its limits.
    """

    sample_rate: int
    channels: int
    n_samples: int
    sparsity: str
    coded_share: str
    loudest: bool
    seed: int
    network: str
    network_sha256: str
    value_step_mdb: int = 500
    phase_bits: int = 4
    phase_threshold: int | None = None
    keep_observed: bool = True
    frames_per_segment: int = 302
    n_fft: int = 2048
    win_length: int = 2048
    hop_length: int = 256
    window: str = "hann"
    center: bool = True
    pad_mode: str = "reflect"
    coded_rate: int = CODED_RATE

    def __post_init__(self) -> None:
        for each in fields_of(VERSIONS[-1]):
            each._check(getattr(self, each.name))
        shortest_hop = -(-self.n_fft // _MAX_OVERLAP)
        _check_range("win_length", self.win_length, max(4, 2 * shortest_hop), self.n_fft)
        longest_hop = min(self.win_length // 2, _MAX_HOP_LENGTH)
        _check_range("hop_length", self.hop_length, shortest_hop, longest_hop)
        if self.n_samples * self.channels > MAX_WAV_SAMPLES:
            raise ContainerError(f"{self.n_samples} samples in {self.channels} channels, too many")
        if self.n_fft % 2 or not self.center:
            raise ContainerError("frames must be centred and n_fft even")
        if self.loudest and self.coded_share == "0":
            raise ContainerError("no positions are stored that could be those of the loudest bins")

    @property
    def version(self) -> int:
        """Of the format: the first one that can express the header."""
        return 1 if _MASK.value(self) in _VERSION_1_MASKS else 2

    @property
    def n_bins(self) -> int:
        """Frequency bins F."""
        return 1 + self.n_fft // 2

    @property
    def max_span(self) -> int:
        """Most steps from the lowest to the highest level of a segment, two for rounding."""
        return _RANGE_MDB // self.value_step_mdb + 2

    @property
    def n_coded_samples(self) -> int:
        """Samples of a channel at `coded_rate`."""
        return -(-self.n_samples * self.coded_rate // self.sample_rate)

    @property
    def n_frames(self) -> int:
        """Frames of a channel."""
        return 1 + self.n_coded_samples // self.hop_length

    @property
    def n_segments(self) -> int:
        """Segments of a channel; the last one may be shorter."""
        return -(-self.n_frames // self.frames_per_segment)

    def segment_shape(self, segment: int) -> tuple[int, int]:
        """F and T of a segment."""
        start = segment * self.frames_per_segment
        return self.n_bins, min(self.frames_per_segment, self.n_frames - start)

    def count(self, segment: int) -> int:
        """Bins K that a segment keeps: ``floor((1 - sparsity) F T)``, exactly."""
        n_bins, n_frames = self.segment_shape(segment)
        return int((1 - Fraction(self.sparsity)) * n_bins * n_frames)

    def coded_count(self, segment: int) -> int:
        """How many of the K positions are stored: ``floor(coded_share K)``, exactly."""
        return int(Fraction(self.coded_share) * self.count(segment))


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ContainerError(f"{name} {value} is not from {low} to {high}")


def check_clip(samples: Float[np.ndarray, "N C"], sample_rate: int) -> None:
    """Refuses samples that no file can hold.

    Raises:
        AudioError: If there are none or too many channels, or some that are not usable.
    """
    if not MIN_SAMPLE_RATE <= sample_rate <= MAX_SAMPLE_RATE:
        limits = f"from {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE}"
        raise AudioError(f"a sample rate of {sample_rate} Hz is not {limits}")
    if samples.ndim != 2:
        raise AudioError(f"samples have the axes [N, C], not {samples.ndim} of them")
    if not 1 <= samples.shape[1] <= MAX_CHANNELS:
        raise AudioError(f"{samples.shape[1]} channels are not from 1 to {MAX_CHANNELS}")
    if len(samples) == 0:
        raise AudioError("there are no samples")
    check_usable(samples)


def pack_header(header: Header, file_size: int) -> bytes:
    """Gives the bytes of a header and their checksum.

    Args:
        header: To pack.
        file_size: Of the whole file, in bytes.
    """
    fields = fields_of(header.version)
    stored = {each: each._store(each.value(header)) for each in fields}
    numbers = _numbers(header.version).pack(*(stored[each] for each in fields if each.code))
    texts = b"".join(bytes([len(stored[each])]) + stored[each] for each in fields if not each.code)
    size = _START.size + _FILE_SIZE.size + len(numbers) + len(texts) + _CRC.size
    packed = _START.pack(MAGIC, header.version, size) + _FILE_SIZE.pack(file_size) + numbers + texts
    return packed + _CRC.pack(zlib.crc32(packed))


@functools.cache
def _numbers(version: int) -> struct.Struct:
    """The fields before the texts."""
    return struct.Struct("<" + "".join(each.code for each in fields_of(version)))


def check_magic(data: bytes) -> None:
    """Refuses bytes that don't begin as a ``.jsac`` file does, as far as they go.

    Raises:
        ContainerError: If there are none or others.
    """
    if not data.startswith(MAGIC[: len(data)]) or not data:
        raise ContainerError("not a .jsac file")


def unpack_header(data: bytes) -> tuple[Header, int]:
    """Reads the header of a whole file.

    Returns:
        The header, and where it ends.

    Raises:
        ContainerError: If it is not the header of an unaltered file of a known version.
    """
    check_magic(data)
    if len(data) < _START.size:
        raise ContainerError("the file ends in its header")
    _, version, size = _START.unpack_from(data)
    if version not in VERSIONS:
        # The third is the MDCT's, which has another header.
        raise ContainerError(f"version {version} of the format is not known, only 1 to 3")
    _check_whole(data, version, size)
    header = Header(**_unpack_fields(data[: size - _CRC.size], version))
    if header.version != version:
        raise ContainerError(f"version {version} of the format says what version 1 can say")
    return header, size


def _check_whole(data: bytes, version: int, size: int) -> None:
    """Refuses data whose header, or which as a whole, is not what was written."""
    if size < _START.size + _FILE_SIZE.size + _numbers(version).size + 2 + _CRC.size:
        raise ContainerError("the header is damaged")
    if size > len(data):
        raise ContainerError("the file ends in its header")
    (crc,) = _CRC.unpack_from(data, size - _CRC.size)
    if crc != zlib.crc32(data[: size - _CRC.size]):
        raise ContainerError("the header is damaged")
    (file_size,) = _FILE_SIZE.unpack_from(data, _START.size)
    if file_size != len(data):
        state = "truncated" if file_size > len(data) else "longer than it should be"
        raise ContainerError(f"the file is {state}: {len(data)} of {file_size} bytes")


def _unpack_fields(data: bytes, version: int) -> dict[str, Any]:
    """Reads the attributes of `Header` from all that stands before the checksum."""
    numbers = _numbers(version)
    start = _START.size + _FILE_SIZE.size
    stored = [*numbers.unpack_from(data, start), *_unpack_texts(data[start + numbers.size :])]
    attributes: dict[str, Any] = {}
    for each, number in zip(fields_of(version), stored, strict=True):
        value = each._restore(number)
        if each.attributes:
            attributes |= zip(each.attributes, value, strict=True)
        else:
            attributes[each.name] = value
    return attributes


def _unpack_texts(data: bytes) -> tuple[bytes, bytes]:
    """Takes the two texts apart that fill the data."""
    end = 1 + data[0]
    first, rest = data[1:end], data[end:]
    if not rest or len(rest) != 1 + rest[0] or not data.isascii():
        raise ContainerError("the header contradicts itself")
    return first, rest[1:]
