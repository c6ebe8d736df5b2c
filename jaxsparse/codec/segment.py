"""A segment of one channel, and the four parts of a ``.jsac`` file that hold it.

Arrays are [F, T] at the surface and [T, F], frame after frame, inside.
"""

import struct
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np
from jaxtyping import Bool, Int

from jaxsparse.codec.entropy import (
    Decoder,
    Encoder,
    LevelClass,
    code_bitmap,
    code_levels,
    code_phases,
)
from jaxsparse.codec.header import Header
from jaxsparse.errors import ContainerError

PartName: TypeAlias = Literal["mask", "values", "phase_bitmap", "phases"]
Parts: TypeAlias = Sequence[bytes | memoryview]

PARTS: tuple[PartName, ...] = get_args(PartName)

_LEVELS = struct.Struct("<hHH")


class Segment(NamedTuple):
    """What a file stores of one segment of one channel.

    Attributes:
        chosen: The bins whose positions are stored, `Header.coded_count` of them.
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
            phases, or a drawn bin that is louder than one of the loudest.
    """
    _check_segment(header, index, segment)
    mask_coder, phase_mask_coder, phase_coder = Encoder(), Encoder(), Encoder()
    # The shared functions write what they code back into these.
    chosen, mask, levels, phase_mask, phases = (np.array(array.T, order="C") for array in segment)
    if count := header.coded_count(index):
        code_bitmap(mask_coder, chosen, None, Fraction(count, chosen.size))
    values = _encode_levels(header, chosen, mask, levels)
    if header.phase_threshold is not None:
        hint = _phase_hint(header, mask, levels)
        code_bitmap(phase_mask_coder, phase_mask, hint, Fraction(1, 2))
    code_phases(phase_coder, phases, phase_mask, header.phase_bits)
    return [mask_coder.data(), values, phase_mask_coder.data(), phase_coder.data()]


def decode_segment(header: Header, channel: int, index: int, parts: Parts) -> Segment:
    """Decodes what `encode_segment` gave.

    Raises:
        ContainerError: If the parts can't come from an encoder.
    """
    n_bins, n_frames = header.segment_shape(index)
    chosen = np.zeros((n_frames, n_bins), bool)
    positions, values, phase_bitmap, phase_data = parts
    coder = Decoder(positions, "mask")
    if count := header.coded_count(index):
        code_bitmap(coder, chosen, None, Fraction(count, chosen.size))
    coder.finish()
    if np.count_nonzero(chosen) != count:
        raise ContainerError(f"the mask part holds another number of positions than {count}")
    mask = complete_mask(header, channel, index, np.ascontiguousarray(chosen.T)).T
    levels = _decode_levels(header, chosen, mask, values)
    phase_mask = np.ones_like(chosen)
    coder = Decoder(phase_bitmap, "phase bitmap")
    if header.phase_threshold is not None:
        code_bitmap(coder, phase_mask, _phase_hint(header, mask, levels), Fraction(1, 2))
    coder.finish()
    phases = np.zeros(chosen.shape, np.int16)
    coder = Decoder(phase_data, "phases")
    code_phases(coder, phases, phase_mask, header.phase_bits)
    coder.finish()
    return Segment(chosen.T, mask.T, levels.astype(np.int32).T, phase_mask.T, phases.T)


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
    coder = Encoder()
    relative = np.where(mask, levels - base, 0)
    classes = _classes(header, chosen, mask, threshold, span)
    code_levels(coder, relative, classes, header.value_step_mdb)
    return _LEVELS.pack(base, span, threshold) + coder.data()


def _range_of_levels(
    header: Header,
    chosen: Bool[np.ndarray, "T F"],
    mask: Bool[np.ndarray, "T F"],
    levels: Int[np.ndarray, "T F"],
) -> tuple[int, int, int]:
    """The lowest level, and how far above it the highest one and the threshold lie.

    The threshold is the lowest level of the loudest bins, or else the highest one of all.
    """
    base = int(levels[mask].min())
    span = int(levels[mask].max()) - base
    bounded = header.loudest and chosen.any()
    return base, span, int(levels[chosen].min()) - base if bounded else span


def _classes(
    header: Header,
    chosen: Bool[np.ndarray, "T F"],
    mask: Bool[np.ndarray, "T F"],
    threshold: int,
    span: int,
) -> list[LevelClass]:
    """The loudest bins come first, at or above the threshold; the others are at or below it."""
    if header.loudest:
        return [LevelClass(chosen, threshold, span), LevelClass(mask & ~chosen, 0, threshold)]
    return [LevelClass(mask, 0, span)]


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
    coder = Decoder(data[_LEVELS.size :], "values")
    classes = _classes(header, chosen, mask, threshold, span)
    code_levels(coder, levels, classes, header.value_step_mdb)
    coder.finish()
    if _range_of_levels(header, chosen, mask, levels) != (0, span, threshold):
        raise ContainerError("the values part contradicts itself")
    return np.where(mask, levels + base, 0)


def _phase_hint(
    header: Header, mask: Bool[np.ndarray, "T F"], levels: Int[np.ndarray, "T F"]
) -> Int[np.ndarray, "T F"]:
    """What the kept values say about which phases are stored: 0 nothing, 1 hardly, 2 likely."""
    if not mask.any() or header.phase_threshold is None:
        return np.zeros(mask.shape, np.int64)
    step = header.value_step_mdb
    limit = int(levels[mask].max()) * step - 1000 * header.phase_threshold
    return np.where(mask, 1 + (levels.astype(np.int64) * step >= limit), 0)
