"""What the decoder may make of any bytes: its own error, or a file that keeps its promises."""

import json

import numpy as np

from jaxsparse.codec import container
from jaxsparse.codec.header import Header
from jaxsparse.codec.segment import Segment, decode_segment, encode_segment
from jaxsparse.errors import ContainerError

# Segments beyond are only parsed: each bin costs 10 us, and the same code runs for fewer of them.
MAX_BINS = 6_000


def check(data: bytes) -> int:
    """Decodes all that there is to decode.

    Args:
        data: Any bytes.

    Returns:
        How many segments were accepted.

    Raises:
        AssertionError: If something was accepted that breaks a promise of the decoder.
        Exception: Whatever but its own error the decoder lets through.
    """
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


def _check_message(error: ContainerError) -> None:
    message = str(error)
    assert message and message.isprintable() and len(message) < 200, message
