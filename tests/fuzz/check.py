"""What the decoder may make of any bytes: its own error, or a file that keeps its promises."""

import json
import re

import numpy as np

from jaxsparse.codec import container, mdct_container, mdct_segment
from jaxsparse.codec.header import Header
from jaxsparse.codec.mdct_container import CodedSegment
from jaxsparse.codec.mdct_segment import MAX_ESCAPE_BITS, QuantizedSegment
from jaxsparse.codec.segment import Segment, decode_segment, encode_segment
from jaxsparse.errors import ContainerError
from jaxsparse.transforms.grid import BAND_FRAMES, HOP_LENGTH, N_BANDS, N_LEVELS
from tests import small_codec

# Segments beyond are only parsed: each bin costs 10 us, and the same code runs for fewer of them.
MAX_BINS = 6_000
# Of version 3: each frame costs 2 ms. Silence costs nothing.
MAX_FRAMES = 24
# What an escape adds to 16, see docs/format.md.
_LARGEST = 16 + 2 ** (MAX_ESCAPE_BITS + 1) - 1
# Refusals that are not about the header: what they are about can be concealed.
_OF_A_SEGMENT = re.compile(
    r"segment \d+ is damaged|the file ends (before|in) segment \d+"
    r"|\d+ bytes follow the last segment"
)


def check(data: bytes) -> int:
    """Decodes all that there is to decode; of version 3 by the tests' small codec.

    Args:
        data: Any bytes.

    Returns:
        How many segments were accepted.

    Raises:
        AssertionError: If something was accepted that breaks a promise of the decoder.
        Exception: Whatever but its own error the decoder lets through.
    """
    return _check_mdct(data) if mdct_container.is_mdct(data) else _check_stft(data)


def _check_stft(data: bytes) -> int:
    try:
        described = container.describe(data)
    except ContainerError as error:
        _check_message(error)
        return 0
    header, parts = container.unpack(data)
    assert len(parts) == header.channels * header.n_segments
    assert container.pack(header, parts) == data, "there are two ways to write the header"
    assert sum(described["part_bits"].values()) == 8 * len(data)
    assert json.loads(json.dumps(described)) == described
    places = [(c, s) for c in range(header.channels) for s in range(header.n_segments)]
    accepted = bins = 0
    for (channel, index), own in zip(places, parts, strict=True):
        n_bins, n_frames = header.segment_shape(index)
        bins += n_bins * n_frames
        if bins > MAX_BINS:
            break
        try:
            segment = decode_segment(header, channel, index, own)
        except ContainerError as error:
            _check_message(error)
            continue
        check_segment(header, index, segment)
        again = encode_segment(header, channel, index, segment)
        decoded = decode_segment(header, channel, index, again)
        assert all(np.array_equal(a, b) for a, b in zip(segment, decoded, strict=True))
        accepted += 1
    return accepted


def check_segment(header: Header, index: int, segment: Segment) -> None:
    """Asserts that a decoded segment is what its header says."""
    chosen, mask, levels, phase_mask, phases = segment
    assert {array.shape for array in segment} == {header.segment_shape(index)}
    assert np.count_nonzero(chosen) == header.coded_count(index)
    assert np.count_nonzero(mask) == header.count(index)
    assert mask[chosen].all()
    assert not levels[~mask].any()
    if mask.any():
        kept = levels[mask].astype(np.int64)
        assert kept.min() >= -(2**15) and kept.max() - kept.min() <= header.max_span
        if header.loudest and chosen.any():
            assert levels[mask & ~chosen].max(initial=kept.min()) <= levels[chosen].min()
    assert not phases[~phase_mask].any()
    assert phases.min() >= 0 and phases.max() < 2**header.phase_bits
    assert phase_mask.all() or header.phase_threshold is not None


def _check_mdct(data: bytes) -> int:
    try:
        described = mdct_container.describe(data)
    except ContainerError as error:
        _check_message(error)
        _check_concealed(data, str(error))
        return 0
    header, segments = mdct_container.unpack(data)
    assert mdct_container.unpack(data, conceal=True) == (header, segments)
    assert len(segments) == header.channels * header.n_segments
    assert mdct_container.pack(header, segments) == data, "there are two ways to write the header"
    assert sum(described["part_bits"].values()) == 8 * len(data)
    assert json.loads(json.dumps(described)) == described
    accepted = frames = 0
    for number, own in enumerate(segments):
        n_frames = header.segment_frames(number % header.n_segments)
        frames += n_frames * bool(own.data)
        if frames > MAX_FRAMES:
            break
        try:
            segment = mdct_segment.decode_segment(
                own.data, n_frames, own.rate, small_codec.models()
            )
        except ContainerError as error:
            _check_message(error)
            continue
        check_mdct_segment(own, n_frames, segment)
        accepted += 1
    return accepted


def check_mdct_segment(own: CodedSegment, n_frames: int, segment: QuantizedSegment) -> None:
    """Asserts that a decoded segment is what format.md promises, and is coded as it was."""
    values, levels, rate = segment
    assert values.shape == (HOP_LENGTH, n_frames)
    assert levels.shape == (N_BANDS, -(-n_frames // BAND_FRAMES))
    assert np.abs(values).max() <= _LARGEST
    assert levels.min() >= 0 and levels.max() < N_LEVELS
    assert rate == own.rate
    assert mdct_segment.is_silent(segment) == (not own.data)
    models = small_codec.models()
    assert mdct_segment.encode_segment(segment, models) == own.data
    decoded = mdct_segment.decode_segment(own.data, n_frames, rate, models)
    assert all(np.array_equal(a, b) for a, b in zip(segment, decoded, strict=True))
    # A range coder ends with a word or two that are not full.
    bits = mdct_segment.cost(segment, models).total
    assert bits - 1 <= 8 * len(own.data) <= bits + 64


def _check_concealed(data: bytes, refusal: str) -> None:
    """Asserts that damage is concealed, unless it is the header's."""
    try:
        header, segments = mdct_container.unpack(data, conceal=True)
    except ContainerError as error:
        assert str(error) == refusal
        assert not _OF_A_SEGMENT.fullmatch(refusal), "it could be concealed"
        return
    assert _OF_A_SEGMENT.fullmatch(refusal), "a broken header was accepted"
    # What is not silence now stood there with a checksum of its place.
    whole = mdct_container.pack(header, segments)
    assert mdct_container.unpack(whole) == (header, segments)


def _check_message(error: ContainerError) -> None:
    message = str(error)
    assert message and message.isprintable() and len(message) < 200, message
