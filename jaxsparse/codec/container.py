"""The bytes of a ``.jsac`` file, version 1: header, checksums, entropy coding.

All integers are little-endian. A header with its CRC-32 comes first, then for each channel and in
it for each segment four parts (mask, values, phase bitmap, phases), each led by its length and
its CRC-32. What a decoder can derive (segments, frames, counts) is not stored, so that nothing in
a file can contradict it.

Every model is adaptive: it is updated from what is coded already, by integer arithmetic or by
single IEEE operations, so that encoder and decoder agree exactly on any machine. The same function
encodes and decodes. Arrays are [F, T] at the surface and [T, F], frame after frame, inside.
"""

import re
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from io import BufferedIOBase
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import constriction
import numpy as np
from jaxtyping import Bool, Int

from jaxsparse.audio import MAX_SAMPLE_RATE, MAX_WAV_SAMPLES, MIN_SAMPLE_RATE, read_pipe
from jaxsparse.errors import ContainerError

MaskKind: TypeAlias = Literal["positions", "mixed", "random"]
PartName: TypeAlias = Literal["mask", "values", "phase_bitmap", "phases"]

VERSION = 1
CODED_RATE = 16_000
MAX_CHANNELS = 32
# Where all levels are equal and one phase is stored, 302 frames still cost 78 bytes: 3.9 frames to
# a byte. What promises more was never encoded. It bounds the decoder's work, and what it allocates:
# a frame brings at most 256 samples of 4 bytes, so 4096 times the file, times the ratio of its
# sample rate to 16 kHz.
MAX_FRAMES_PER_BYTE = 4
PARTS: tuple[PartName, ...] = get_args(PartName)

_MAGIC = b"JSAC"
_MASK_KINDS: tuple[MaskKind, ...] = get_args(MaskKind)
_WINDOWS = ("hann",)
_PAD_MODES = ("reflect",)
_PREFIX = struct.Struct("<4sBH")
_FIXED = struct.Struct("<QIBQIIIIBBBHBQIBBB32s")
_PART = struct.Struct("<II")
_CRC = struct.Struct("<I")
_LEVELS = struct.Struct("<hHH")
# What the encoder writes; smaller ones are good for tests.
_MAX_N_FFT, _MAX_HOP_LENGTH, _MAX_FRAMES = 2048, 256, 302
# Most frames that reach a sample, as in what the encoder writes: each is an addition to compile.
_MAX_OVERLAP = 8
# Spectrograms are floored that far below their maximum.
_RANGE_MDB = 80_000
_SPARSITY = re.compile(r"0\.[0-9]{1,18}")
_NETWORK = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}")

# `perfect` changes the bytes, and its default has changed between releases of constriction.
_stream: Any = constriction.stream  # pyright: ignore[reportAttributeAccessIssue]
_BERNOULLI = _stream.model.Bernoulli(perfect=False)
_CATEGORICAL = _stream.model.Categorical(perfect=False)


@dataclass(frozen=True)
class Header:
    """All that a decoder needs beside the coded parts.

    Attributes:
        sample_rate: Of the original, in Hz.
        channels: Of the original.
        n_samples: Of the original, in each channel.
        sparsity: Share of bins that are not kept, an exact decimal such as ``"0.95"``.
        mask: Positions are all stored, only those of the loudest half, or none (a seed).
        seed: Of the random positions, below 2^64.
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
    mask: MaskKind
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
        _check_integer("n_fft", self.n_fft)
        shortest_hop = -(-self.n_fft // _MAX_OVERLAP)
        for name, (low, high) in {
            "sample_rate": (MIN_SAMPLE_RATE, MAX_SAMPLE_RATE),
            "channels": (1, MAX_CHANNELS),
            "n_samples": (1, MAX_WAV_SAMPLES),
            "seed": (0, 2**64 - 1),
            "value_step_mdb": (50, 10_000),
            "phase_bits": (1, 12),
            "coded_rate": (CODED_RATE, CODED_RATE),
            "n_fft": (4, _MAX_N_FFT),
            "win_length": (max(4, 2 * shortest_hop), self.n_fft),
            "hop_length": (shortest_hop, min(self.win_length // 2, _MAX_HOP_LENGTH)),
            "frames_per_segment": (1, _MAX_FRAMES),
        }.items():
            value = getattr(self, name)
            _check_integer(name, value)
            if not low <= value <= high:
                raise ContainerError(f"{name} {value} is not from {low} to {high}")
        if self.n_samples * self.channels > MAX_WAV_SAMPLES:
            raise ContainerError(f"{self.n_samples} samples in {self.channels} channels, too many")
        if self.phase_threshold is not None:
            _check_integer("phase_threshold", self.phase_threshold)
            if not 1 <= self.phase_threshold <= 255:
                raise ContainerError(f"phase_threshold {self.phase_threshold} is not from 1 to 255")
        for name, known in (("mask", _MASK_KINDS), ("window", _WINDOWS), ("pad_mode", _PAD_MODES)):
            if getattr(self, name) not in known:
                raise ContainerError(f"{name} {getattr(self, name)!r} is not one of {known}")
        if self.n_fft % 2 or not self.center:
            raise ContainerError("frames must be centred and n_fft even")
        if not _SPARSITY.fullmatch(self.sparsity) or not Fraction(self.sparsity):
            raise ContainerError(f"sparsity {self.sparsity!r} is not a decimal between 0 and 1")
        if not _NETWORK.fullmatch(self.network):
            raise ContainerError(f"network name {self.network!r} is not usable")
        if not re.fullmatch("[0-9a-f]{64}", self.network_sha256):
            raise ContainerError(f"{self.network_sha256!r} is not a SHA-256")

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
        """How many of the K positions are stored in the mask part."""
        count = self.count(segment)
        return {"positions": count, "mixed": count // 2, "random": 0}[self.mask]


class Segment(NamedTuple):
    """What a file stores of one segment of one channel.

    Attributes:
        chosen: The bins whose positions are stored: all, the loudest half, or none.
        mask: All kept bins, from `complete_mask`.
        levels: Kept values in steps of the quantizer; 0 elsewhere.
        phase_mask: Bins whose phase is stored.
        phases: Stored phases in units of ``2 pi / 2^phase_bits``; 0 elsewhere.
    """

    chosen: Bool[np.ndarray, "F T"]
    mask: Bool[np.ndarray, "F T"]
    levels: Int[np.ndarray, "F T"]
    phase_mask: Bool[np.ndarray, "F T"]
    phases: Int[np.ndarray, "F T"]


Parts: TypeAlias = Sequence[bytes | memoryview]


class Container(NamedTuple):
    """A file taken apart; ``parts[channel * n_segments + segment]`` are the bytes of a segment."""

    header: Header
    parts: list[Parts]


def complete_mask(
    header: Header, channel: int, segment: int, chosen: Bool[np.ndarray, "F T"]
) -> Bool[np.ndarray, "F T"]:
    """Adds the positions that are not stored, but drawn by the seed, to those that are.

    Every bin has a 64-bit key, in row-major order, from the raw stream of NumPy's Philox with the
    key ``(seed, channel * 2^32 + segment)``. Of the bins not chosen already, those with the
    smallest keys are drawn; among equal keys the lower index.

    Args:
        header: Gives seed and count.
        channel: Index of the channel.
        segment: Index of the segment.
        chosen: Bins that are kept anyway.

    Returns:
        The mask, with exactly `Header.count` ones where `chosen` has `Header.coded_count`.
    """
    missing = header.count(segment) - header.coded_count(segment)
    mask = chosen.copy()
    if missing:
        key = np.array([header.seed, channel << 32 | segment], np.uint64)
        keys = np.random.Philox(key=key).random_raw(mask.size)
        candidates = np.flatnonzero(~chosen)
        drawn = np.argsort(keys[candidates], kind="stable")[:missing]
        mask.reshape(-1)[candidates[drawn]] = True
    return mask


def encode_segment(header: Header, channel: int, index: int, segment: Segment) -> list[bytes]:
    """Codes one segment.

    Args:
        header: Of the file.
        channel: Index of the channel.
        index: Index of the segment.
        segment: What to store.

    Returns:
        The four parts, in the order of `PARTS`.

    Raises:
        ValueError: If the segment is not what the header says: shape, counts, range of levels or
            phases, or where in a mixed mask a drawn bin is louder than a chosen one.
    """
    _check_segment(header, index, segment)
    mask_coder, phase_mask_coder, phase_coder = _Encoder(), _Encoder(), _Encoder()
    # The shared functions write what they code back into these.
    chosen, mask, levels, phase_mask, phases = (np.array(array.T, order="C") for array in segment)
    if count := header.coded_count(index):
        _code_bitmap(mask_coder, chosen, None, Fraction(count, chosen.size))
    values = _encode_levels(header, chosen, mask, levels)
    if header.phase_threshold is not None:
        hint = _phase_hint(header, mask, levels)
        _code_bitmap(phase_mask_coder, phase_mask, hint, Fraction(1, 2))
    _code_phases(phase_coder, phases, phase_mask, header.phase_bits)
    return [mask_coder.data(), values, phase_mask_coder.data(), phase_coder.data()]


def decode_segment(header: Header, channel: int, index: int, parts: Parts) -> Segment:
    """Decodes what `encode_segment` gave.

    Raises:
        ContainerError: If the parts can't come from an encoder.
    """
    n_bins, n_frames = header.segment_shape(index)
    chosen = np.zeros((n_frames, n_bins), bool)
    positions, values, phase_bitmap, phase_data = parts
    coder = _Decoder(positions, "mask")
    if count := header.coded_count(index):
        _code_bitmap(coder, chosen, None, Fraction(count, chosen.size))
    coder.finish()
    if np.count_nonzero(chosen) != count:
        raise ContainerError(f"the mask part holds another number of positions than {count}")
    mask = complete_mask(header, channel, index, np.ascontiguousarray(chosen.T)).T
    levels = _decode_levels(header, chosen, mask, values)
    phase_mask = np.ones_like(chosen)
    coder = _Decoder(phase_bitmap, "phase bitmap")
    if header.phase_threshold is not None:
        _code_bitmap(coder, phase_mask, _phase_hint(header, mask, levels), Fraction(1, 2))
    coder.finish()
    phases = np.zeros(chosen.shape, np.int16)
    coder = _Decoder(phase_data, "phases")
    _code_phases(coder, phases, phase_mask, header.phase_bits)
    coder.finish()
    return Segment(chosen.T, mask.T, levels.astype(np.int32).T, phase_mask.T, phases.T)


def pack(header: Header, parts: Iterable[Parts]) -> bytes:
    """Puts a file together.

    Args:
        header: Of the file.
        parts: What `encode_segment` gave, for all segments of the first channel, then of the next.

    Raises:
        ValueError: If there are more or fewer segments than the header implies.
    """
    head_size = len(_pack_header(header, 0))
    data = bytearray(head_size)
    n_coded = 0
    for number, segment_parts in enumerate(parts):
        for kind, payload in enumerate(segment_parts):
            data += _PART.pack(len(payload), _part_crc(number, kind, payload))
            data += payload
        n_coded += 1
    if n_coded != header.channels * header.n_segments:
        raise ValueError(f"{n_coded} segments instead of {header.channels * header.n_segments}")
    data[:head_size] = _pack_header(header, len(data))
    return bytes(data)


def read(file: BufferedIOBase) -> bytes:
    """Reads a file or a pipe that begins as a ``.jsac`` file does; of any other the first bytes.

    Raises:
        ContainerError: If it is empty or begins otherwise.
        JaxsparseError: If a pipe brings more than `audio.MAX_PIPE_BYTES`.
        OSError: If it can't be read.
    """
    start = file.read(len(_MAGIC))
    if not start:
        raise ContainerError("the file is empty")
    _check_magic(start)
    return start + (file.read() if file.seekable() else b"".join(read_pipe(file)))


def unpack(data: bytes) -> Container:
    """Takes a file apart and checks all of its checksums; decodes nothing.

    Raises:
        ContainerError: If the bytes are not a whole, unaltered file of a known version.
    """
    header, offset = _unpack_header(data)
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
        "version": VERSION,
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


def _pack_header(header: Header, file_size: int) -> bytes:
    strings = b""
    for text in (header.sparsity, header.network):
        strings += bytes([len(text)]) + text.encode("ascii")
    size = _PREFIX.size + _FIXED.size + len(strings) + _CRC.size
    fixed = _FIXED.pack(
        file_size,
        header.sample_rate,
        header.channels,
        header.n_samples,
        header.coded_rate,
        header.n_fft,
        header.win_length,
        header.hop_length,
        _WINDOWS.index(header.window),
        header.center,
        _PAD_MODES.index(header.pad_mode),
        header.frames_per_segment,
        _MASK_KINDS.index(header.mask),
        header.seed,
        header.value_step_mdb,
        header.phase_bits,
        header.phase_threshold or 0,
        header.keep_observed,
        bytes.fromhex(header.network_sha256),
    )
    packed = _PREFIX.pack(_MAGIC, VERSION, size) + fixed + strings
    return packed + _CRC.pack(zlib.crc32(packed))


def _check_magic(data: bytes) -> None:
    if not data.startswith(_MAGIC[: len(data)]) or not data:
        raise ContainerError("not a .jsac file")


def _unpack_header(data: bytes) -> tuple[Header, int]:
    """The header, and where it ends."""
    _check_magic(data)
    if len(data) < _PREFIX.size:
        raise ContainerError("the file ends in its header")
    _, version, size = _PREFIX.unpack_from(data)
    if version != VERSION:
        raise ContainerError(f"version {version} of the format is not known, only {VERSION}")
    strings = _PREFIX.size + _FIXED.size
    if size < strings + 2 + _CRC.size:
        raise ContainerError("the header is damaged")
    if size > len(data):
        raise ContainerError("the file ends in its header")
    (crc,) = _CRC.unpack_from(data, size - _CRC.size)
    if crc != zlib.crc32(data[: size - _CRC.size]):
        raise ContainerError("the header is damaged")
    fields = _FIXED.unpack_from(data, _PREFIX.size)
    if fields[0] != len(data):
        state = "truncated" if fields[0] > len(data) else "longer than it should be"
        raise ContainerError(f"the file is {state}: {len(data)} of {fields[0]} bytes")
    sparsity, network = _unpack_strings(data[strings : size - _CRC.size])
    return _make_header(fields, sparsity, network), size


def _unpack_strings(data: bytes) -> tuple[str, str]:
    end = 1 + data[0]
    first, rest = data[1:end], data[end:]
    if not rest or len(rest) != 1 + rest[0] or not data.isascii():
        raise ContainerError("the header contradicts itself")
    return first.decode("ascii"), rest[1:].decode("ascii")


def _make_header(fields: tuple, sparsity: str, network: str) -> Header:
    (_, sample_rate, channels, n_samples, coded_rate, n_fft, win_length, hop_length) = fields[:8]
    (window, center, pad_mode, frames_per_segment, mask, seed) = fields[8:14]
    (value_step_mdb, phase_bits, phase_threshold, keep_observed, sha256) = fields[14:]
    if center > 1 or keep_observed > 1:
        raise ContainerError("a flag in the header is neither 0 nor 1")
    for index, known in ((window, _WINDOWS), (pad_mode, _PAD_MODES), (mask, _MASK_KINDS)):
        if index >= len(known):
            raise ContainerError(f"choice {index} in the header is not known")
    return Header(
        sample_rate=sample_rate,
        channels=channels,
        n_samples=n_samples,
        sparsity=sparsity,
        mask=_MASK_KINDS[mask],
        seed=seed,
        network=network,
        network_sha256=sha256.hex(),
        value_step_mdb=value_step_mdb,
        phase_bits=phase_bits,
        phase_threshold=phase_threshold or None,
        keep_observed=bool(keep_observed),
        frames_per_segment=frames_per_segment,
        n_fft=n_fft,
        win_length=win_length,
        hop_length=hop_length,
        window=_WINDOWS[window],
        center=bool(center),
        pad_mode=_PAD_MODES[pad_mode],
        coded_rate=coded_rate,
    )


def _check_integer(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ContainerError(f"{name} {value!r} is not an integer")


def _check_segment(header: Header, index: int, segment: Segment) -> None:
    shape = header.segment_shape(index)
    if any(array.shape != shape for array in segment):
        raise ValueError(f"segment {index} has shape {shape}")
    counts = np.count_nonzero(segment.chosen), np.count_nonzero(segment.mask)
    expected = header.coded_count(index), header.count(index)
    if counts != expected or not segment.mask[segment.chosen].all():
        raise ValueError(f"segment {index} has {expected} positions, not {counts}")
    if header.phase_threshold is None and not segment.phase_mask.all():
        raise ValueError("without a threshold all phases are stored")
    if segment.phases.min() < 0 or segment.phases.max() >> header.phase_bits:
        raise ValueError(f"a phase does not fit into {header.phase_bits} bits")


class _Encoder:
    """Range coder; called with symbols and their model, gives the symbols back."""

    def __init__(self) -> None:
        self._coder = _stream.queue.RangeEncoder()

    def __call__(self, symbols: np.ndarray, model: object, *parameters: np.ndarray) -> np.ndarray:
        self._coder.encode(symbols.astype(np.int32), model, *parameters)
        return symbols

    def data(self) -> bytes:
        return self._coder.get_compressed().astype("<u4").tobytes()


class _Decoder:
    """The inverse of `_Encoder`: of the symbols only the number counts.

    It encodes again what it decodes. A range coder reads zeros behind the end of its data and
    doesn't miss what is cut off, so that only equal bytes show that an encoder wrote them.
    """

    def __init__(self, data: bytes | memoryview, name: str) -> None:
        if len(data) % 4:
            raise ContainerError(f"the {name} part has {len(data)} bytes, not a multiple of 4")
        self._coder = _stream.queue.RangeDecoder(np.frombuffer(data, "<u4").astype(np.uint32))
        self._again = _Encoder()
        self._data = data
        self._name = name

    def __call__(self, symbols: np.ndarray, model: object, *parameters: np.ndarray) -> np.ndarray:
        try:
            decoded = self._coder.decode(model, *(parameters or (len(symbols),)))
        except AssertionError as error:
            raise ContainerError(f"the {self._name} part can't be decoded") from error
        return self._again(decoded, model, *parameters)

    def finish(self) -> None:
        """Refuses data that an encoder of the same symbols would not have written."""
        expected = self._again.data()
        if len(self._data) > len(expected):
            raise ContainerError(f"the {self._name} part is longer than what it codes")
        if self._data != expected:
            raise ContainerError(f"the {self._name} part is not as an encoder writes it")


_Coder: TypeAlias = _Encoder | _Decoder


class _Pass(NamedTuple):
    """Rows that are coded together; a later pass knows the rows between which it lies.

    Attributes:
        start: First row.
        step: Rows from row to row.
        neighbours: Groups of (frame, row) offsets; of each group the ones are counted.
    """

    start: int
    step: int
    neighbours: tuple[tuple[tuple[int, int], ...], ...]


def _between(start: int) -> _Pass:
    below, above = -start, start
    return _Pass(
        start,
        2 * start,
        (
            ((-1, 0),),
            ((0, below),),
            ((0, above),),
            ((1, below), (1, above)),
            ((-1, below), (-1, above)),
        ),
    )


_PASSES = (
    _Pass(0, 4, (((-1, 0),), ((-2, 0),), ((-1, -4), (-1, 4)))),
    _between(2),
    _between(1),
)
_MARGIN = 4
_BANDS = 4
_PRIOR = 8


def _code_bitmap(
    coder: _Coder,
    bitmap: Bool[np.ndarray, "T F"],
    hint: Int[np.ndarray, "T F"] | None,
    density: Fraction,
) -> None:
    """Codes a bitmap, or decodes into it.

    The probability of a one comes from counts of how often it was one in the same context (coded
    neighbours and hint) and frequency band. A context that was rarely seen in its band leans on
    the other bands, and one rarely seen at all on the whole bitmap: that keeps uniform bitmaps
    near their entropy.

    Args:
        coder: Encoder or decoder.
        bitmap: To encode, or to fill.
        hint: What else is known of each bin, 0 to 2.
        density: Expected share of ones.
    """
    n_frames, n_bins = bitmap.shape
    coded = np.zeros((n_frames + 2 * _MARGIN, n_bins + 2 * _MARGIN), np.int64)
    total, ones = 2.0 * _PRIOR, 2.0 * _PRIOR * density.numerator / density.denominator
    for start, step, neighbours in _PASSES:
        rows = np.arange(start, n_bins, step)
        if not len(rows):
            continue
        band = rows * _BANDS // n_bins
        own = _columns(rows, 0)
        groups = [[(dt, _columns(rows, df)) for dt, df in group] for group in neighbours]
        n_contexts = 3 * int(np.prod([len(group) + 1 for group in groups]))
        seen = np.zeros((2, n_contexts, _BANDS))
        for t in range(n_frames):
            context = np.zeros(len(rows), np.int64) if hint is None else hint[t, start::step]
            for group in groups:
                context = context * (len(group) + 1)
                for dt, columns in group:
                    context += coded[t + dt + _MARGIN, columns]
            p = (seen[1].sum(1)[context] + _PRIOR * ones / total) / (
                seen[0].sum(1)[context] + _PRIOR
            )
            p = (seen[1, context, band] + _PRIOR * p) / (seen[0, context, band] + _PRIOR)
            bits = coder(bitmap[t, start::step], _BERNOULLI, np.clip(p, 2**-16, 1 - 2**-16))
            bitmap[t, start::step] = bits
            coded[t + _MARGIN, own] = bits
            place = context * _BANDS + band
            for counts, which in zip(seen, (place, place[bits == 1]), strict=True):
                counts += np.bincount(which, minlength=counts.size).reshape(counts.shape)
            total, ones = total + len(rows), ones + np.count_nonzero(bits)


def _columns(rows: Int[np.ndarray, " R"], offset: int) -> slice:
    """Where evenly spaced rows, shifted by `offset`, lie within the margin."""
    shift = _MARGIN + offset
    step = int(rows[1] - rows[0]) if len(rows) > 1 else 1
    return slice(int(rows[0]) + shift, int(rows[-1]) + shift + 1, step)


def _phase_hint(
    header: Header, mask: Bool[np.ndarray, "T F"], levels: Int[np.ndarray, "T F"]
) -> Int[np.ndarray, "T F"]:
    """What the kept values say about which phases are stored: 0 nothing, 1 hardly, 2 likely."""
    if not mask.any() or header.phase_threshold is None:
        return np.zeros(mask.shape, np.int64)
    step = header.value_step_mdb
    limit = int(levels[mask].max()) * step - 1000 * header.phase_threshold
    return np.where(mask, 1 + (levels.astype(np.int64) * step >= limit), 0)


# What a neighbour at (frame, row) distance d says about a level, by d^2 + 0.3 to the power -1.5:
# only IEEE operations, hence the same everywhere.
_REACH = 6
_UNIT = 4096
_SQUARES = np.arange(-_REACH, _REACH + 1) ** 2
_DISTANCES = np.add.outer(_SQUARES, _SQUARES).reshape(-1) + 0.3
_WEIGHTS = np.floor(_UNIT / (_DISTANCES * np.sqrt(_DISTANCES))).astype(np.int64)
_CONFIDENCES = np.array([_UNIT * share // 100 for share in (3, 10, 30, 100, 300)])
_MEAN_WEIGHT = _UNIT // 50


def _encode_levels(
    header: Header,
    chosen: Bool[np.ndarray, "T F"],
    mask: Bool[np.ndarray, "T F"],
    levels: Int[np.ndarray, "T F"],
) -> bytes:
    if not mask.any():
        return b""
    base, span, threshold = _range_of_levels(header, chosen, mask, levels)
    if span > header.max_span or not -(2**15) <= base < 2**15:
        raise ValueError(f"levels from {base} to {base + span} are out of range")
    if int(levels[mask & ~chosen].max(initial=base)) - base > threshold:
        raise ValueError("a drawn bin is louder than a chosen one")
    coder = _Encoder()
    relative = np.where(mask, levels - base, 0)
    _code_levels(coder, header, relative, chosen, mask, threshold, span)
    return _LEVELS.pack(base, span, threshold) + coder.data()


def _range_of_levels(
    header: Header,
    chosen: Bool[np.ndarray, "T F"],
    mask: Bool[np.ndarray, "T F"],
    levels: Int[np.ndarray, "T F"],
) -> tuple[int, int, int]:
    """The lowest level, and above it the highest one and the lowest one of a chosen bin."""
    base = int(levels[mask].min())
    span = int(levels[mask].max()) - base
    two_classes = header.mask == "mixed" and chosen.any()
    return base, span, int(levels[chosen].min()) - base if two_classes else span


def _decode_levels(
    header: Header,
    chosen: Bool[np.ndarray, "T F"],
    mask: Bool[np.ndarray, "T F"],
    data: bytes | memoryview,
) -> Int[np.ndarray, "T F"]:
    levels = np.zeros(mask.shape, np.int64)
    if not mask.any():
        if len(data):
            raise ContainerError("the values part holds values of a segment that keeps none")
        return levels
    if len(data) < _LEVELS.size:
        raise ContainerError("the values part ends before its first value")
    base, span, threshold = _LEVELS.unpack_from(data)
    if span > header.max_span or threshold > span:
        raise ContainerError("the values part contradicts itself")
    coder = _Decoder(data[_LEVELS.size :], "values")
    _code_levels(coder, header, levels, chosen, mask, threshold, span)
    coder.finish()
    if _range_of_levels(header, chosen, mask, levels) != (0, span, threshold):
        raise ContainerError("the values part contradicts itself")
    return np.where(mask, levels + base, 0)


def _code_levels(
    coder: _Coder,
    header: Header,
    levels: Int[np.ndarray, "T F"],
    chosen: Bool[np.ndarray, "T F"],
    mask: Bool[np.ndarray, "T F"],
    threshold: int,
    span: int,
) -> None:
    """Codes levels from 0 to `span`, or decodes into them.

    In a mixed mask the chosen ones come first: they are at or above the threshold, the others at
    or below it.
    """
    known = np.zeros((2, mask.shape[0] + 2 * _REACH, mask.shape[1] + 2 * _REACH), np.int64)
    if header.mask == "mixed":
        _code_class(coder, header, levels, chosen, known, threshold, span)
        _code_class(coder, header, levels, mask & ~chosen, known, 0, threshold)
    else:
        _code_class(coder, header, levels, mask, known, 0, span)


def _code_class(
    coder: _Coder,
    header: Header,
    levels: Int[np.ndarray, "T F"],
    mask: Bool[np.ndarray, "T F"],
    known: Int[np.ndarray, "2 T_padded F_padded"],
    low: int,
    high: int,
) -> None:
    """Codes the levels of one class, all from `low` to `high`.

    Each is predicted by a weighted mean of the known levels around it. How far levels lie from
    their predictions is counted separately by how much was known.
    """
    n_frames, n_bins = mask.shape
    inner = known[:, _REACH : _REACH + n_frames, _REACH : _REACH + n_bins]
    flat = known.reshape(2, -1)
    reach = np.arange(-_REACH, _REACH + 1)
    offsets = np.add.outer(reach * known.shape[2], reach).reshape(-1)
    total, count = 2 * (low + high), 4
    for start, step, _ in _PASSES:
        spread = _Spread(header.value_step_mdb, low, high)
        for t in range(n_frames):
            rows = start + step * np.flatnonzero(mask[t, start::step])
            if not len(rows):
                continue
            centres = (t + _REACH) * known.shape[2] + rows + _REACH
            evidence, weighted = flat[:, centres[:, None] + offsets] @ _WEIGHTS
            mean = total // count
            above = 2 * (weighted + _MEAN_WEIGHT * mean) + evidence + _MEAN_WEIGHT
            prediction = np.clip(above // (2 * (evidence + _MEAN_WEIGHT)), low, high)
            confidence = np.searchsorted(_CONFIDENCES, evidence, side="right")
            symbols = spread.code(coder, levels[t, rows], prediction, confidence)
            levels[t, rows] = symbols
            inner[0, t, rows], inner[1, t, rows] = 1, symbols
            total, count = total + int(symbols.sum()), count + len(rows)


class _Spread:
    """Counts of how far levels lie from their predictions, for each confidence."""

    def __init__(self, step_mdb: int, low: int, high: int) -> None:
        self._low, self._span = low, high - low
        # Long-tailed, 6 dB wide; an observation outweighs an eighth of it.
        distance = np.arange(-self._span, self._span + 1) * step_mdb / 6000
        tail = 1 + distance * distance
        start = 1 + np.floor(_UNIT / (tail * np.sqrt(tail))).astype(np.int64)
        self._counts = np.tile(start, (len(_CONFIDENCES) + 1, 1))
        half = min(1500 // step_mdb, 8)
        self._around = np.arange(-half, half + 1)
        kernel = half + 1 - np.abs(self._around)
        self._kernel = kernel * max(int(start.sum()) // (8 * int(kernel.sum())), 1)

    def code(
        self,
        coder: _Coder,
        levels: Int[np.ndarray, " K"],
        prediction: Int[np.ndarray, " K"],
        confidence: Int[np.ndarray, " K"],
    ) -> Int[np.ndarray, " K"]:
        """Codes the levels of one frame, then counts them."""
        if self._span == 0:
            return np.full(len(levels), self._low)
        shift = self._span - (prediction - self._low)
        columns = shift[:, None] + np.arange(self._span + 1)
        table = self._counts[confidence[:, None], columns].astype(np.float64)
        symbols = coder(levels - self._low, _CATEGORICAL, table)
        places = np.clip((shift + symbols)[:, None] + self._around, 0, 2 * self._span)
        np.add.at(self._counts, (confidence[:, None], places), self._kernel)
        return symbols + self._low


def _code_phases(
    coder: _Coder,
    phases: Int[np.ndarray, "T F"],
    mask: Bool[np.ndarray, "T F"],
    bits: int,
) -> None:
    """Codes stored phases, or decodes into `phases`.

    Phases are uniform, to a good approximation; counts make those of digital silence, all zero,
    cost nothing.
    """
    counts = np.full(2**bits, 32)
    for t in range(len(mask)):
        model = _stream.model.Categorical(counts.astype(np.float64), perfect=False)
        if mask[t].any():
            symbols = coder(phases[t, mask[t]], model)
            phases[t, mask[t]] = symbols
            counts += np.bincount(symbols, minlength=len(counts))
