"""Segments: drawn positions, and what a decoder makes of parts that no encoder wrote."""

import hashlib
import itertools
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsparse.codec import container
from jaxsparse.codec.entropy import Encoder, LevelClass, code_levels
from jaxsparse.codec.segment import PARTS, complete_mask, decode_segment, encode_segment
from jaxsparse.errors import ContainerError
from tests.jsac_files import (
    MASKS,
    VERSION_1_MASKS,
    loudest,
    make_header,
    make_segment,
    same,
    small_header,
)


def test_drawn_positions_are_fixed_by_the_format():
    header = small_header(mask="random", sparsity="0.96", seed=2**63 + 5)
    nothing = np.zeros(header.segment_shape(0), bool)
    drawn = [
        np.flatnonzero(complete_mask(header, channel, 0, nothing)).tolist() for channel in (0, 1)
    ]
    assert drawn == [[9, 24, 58, 63, 67, 80, 93, 200], [16, 23, 46, 57, 63, 130, 152, 203]]
    full = make_header(mask="random", seed=0)
    nothing = np.zeros(full.segment_shape(0), bool)
    mask = complete_mask(full, 31, 0, nothing)
    assert hashlib.sha256(np.packbits(mask).tobytes()).hexdigest()[:16] == "930a7d00c312c111"


def test_drawn_positions_differ_by_seed_channel_and_segment():
    nothing = np.zeros((17, 12), bool)
    masks = set()
    for seed, channel, segment in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0)]:
        header = small_header(mask="random", seed=seed, n_samples=400, channels=2)
        masks.add(complete_mask(header, channel, segment, nothing).tobytes())
    assert len(masks) == 5


def test_equal_keys_go_to_the_lower_index_outside_the_chosen(monkeypatch):
    class Constant:
        def __init__(self, key):
            pass

        def random_raw(self, count):
            return np.full(count, 7, np.uint64)

    monkeypatch.setattr(np.random, "Philox", Constant)
    header = small_header(mask="mixed", sparsity="0.96")
    assert header.count(0) == 8
    chosen = np.zeros((17, 12), bool)
    chosen.ravel()[[0, 2, 100, 101]] = True
    mask = complete_mask(header, 0, 0, chosen)
    assert np.flatnonzero(mask).tolist() == [0, 1, 2, 3, 4, 5, 100, 101]


@pytest.mark.parametrize("value_step_mdb", [50, 500])
def test_tables_for_forged_levels_are_small(value_step_mdb):
    """The widest range of levels, in a segment that keeps every second bin."""
    header = make_header(
        mask="random", sparsity="0.5", value_step_mdb=value_step_mdb, n_samples=10_000
    )
    # No levels follow, which is found at the end.
    values = struct.pack("<hHH", 0, header.max_span, 0)
    tracemalloc.start()
    with pytest.raises(ContainerError, match="not as an encoder"):
        decode_segment(header, 0, 0, [b"", values, b"", b""])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6
    values = struct.pack("<hHH", 0, header.max_span + 1, 0)
    with pytest.raises(ContainerError, match="contradicts"):
        decode_segment(header, 0, 0, [b"", values, b"", b""])


@given(data=st.data())
def test_forged_parts_decode_to_something_valid_or_are_refused(data):
    header = small_header(
        mask=data.draw(st.sampled_from(sorted(MASKS))),
        phase_threshold=data.draw(st.sampled_from([None, 40])),
    )
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    parts = encode_segment(header, 0, 0, make_segment(header, 0, 0, rng))
    for number in data.draw(st.sets(st.integers(0, 3), min_size=1)):
        length = data.draw(st.sampled_from([0, 2, 4, 8, 10, 64, len(parts[number])]))
        parts[number] = rng.bytes(length)
    # The file's checksums fit the forged parts.
    unpacked = container.unpack(container.pack(header, [parts]))
    try:
        segment = decode_segment(header, 0, 0, unpacked.parts[0])
    except ContainerError:
        return
    assert all(array.shape == (17, 12) for array in segment)
    assert np.count_nonzero(segment.mask) == header.count(0)
    assert segment.phases.min() >= 0 and segment.phases.max() < 2**header.phase_bits
    assert np.ptp(segment.levels[segment.mask]) < 2**12


@pytest.mark.parametrize("span", [4096, 2**16 - 1])
def test_forged_range_of_levels_is_refused_before_tables_are_made(span):
    header = small_header()
    parts = encode_segment(header, 0, 0, make_segment(header, 0, 0, np.random.default_rng(0)))
    parts[1] = struct.pack("<hHH", 0, span, 0) + parts[1][6:]
    with pytest.raises(ContainerError, match="contradicts"):
        decode_segment(header, 0, 0, parts)


@pytest.mark.parametrize(
    ("changes", "mask"),
    # Where all kept bins are the loudest ones, the threshold is the lowest level already.
    [
        (changes, mask)
        for changes, mask in itertools.product([(-1, 1, 1), (0, 1, 0), (0, 0, -1)], MASKS)
        if (changes, mask) != ((0, 0, -1), "loudest")
    ],
)
def test_range_that_the_levels_do_not_fill_is_refused(changes, mask):
    """Base, span and threshold follow from the levels: there is one way to write them."""
    header = small_header(mask=mask)
    segment = make_segment(header, 0, 0, np.random.default_rng(0))
    chosen, kept, levels = (np.array(array.T) for array in segment[:3])
    base = levels[kept].min()
    span = int(levels[kept].max() - base)
    threshold = int(levels[chosen].min() - base) if header.loudest else span

    def code(low, span, threshold):
        coder = Encoder()
        relative = np.where(kept, levels - low, 0)
        classes = [LevelClass(kept, 0, span)]
        if header.loudest:
            rest = LevelClass(kept & ~chosen, 0, threshold)
            classes = [LevelClass(chosen, threshold, span), rest]
        code_levels(coder, relative, classes, header.value_step_mdb)
        parts = encode_segment(header, 0, 0, segment)
        parts[1] = struct.pack("<hHH", low, span, threshold) + coder.data()
        return decode_segment(header, 0, 0, parts)

    assert same(code(base, span, threshold), segment)
    with pytest.raises(ContainerError, match="contradicts"):
        code(base + changes[0], span + changes[1], threshold + changes[2])


# What is done to a part; its checksum fits again.
FORGERIES = {
    "emptied": lambda part: b"",
    "cut to six bytes": lambda part: part[:6],
    "cut by a word": lambda part: part[:-4],
    "cut by four words": lambda part: part[:-16],
    "a word appended": lambda part: part + b"\x12\x34\x56\x78",
    "four words appended": lambda part: part + b"\x12\x34\x56\x78" * 4,
    "a word of zeros appended": lambda part: part + bytes(4),
    "words of zeros appended": lambda part: part + bytes(400),
    "lowest bit of the last word": lambda part: part[:-4] + bytes([part[-4] ^ 1]) + part[-3:],
}


@pytest.mark.parametrize("kind", range(4), ids=PARTS)
@pytest.mark.parametrize("forgery", FORGERIES)
def test_part_that_no_encoder_wrote_is_refused(forgery, kind):
    """A range coder reads zeros where its data end, and may not miss what was cut off."""
    for mask in (*VERSION_1_MASKS, "loudest"):
        header = small_header(phase_threshold=40, mask=mask, sparsity="0.4")
        segment = make_segment(header, 0, 0, np.random.default_rng(0))
        parts = encode_segment(header, 0, 0, segment)
        if not parts[kind]:
            continue
        parts[kind] = FORGERIES[forgery](parts[kind])
        _, (forged,) = container.unpack(container.pack(header, [parts]))
        with pytest.raises(ContainerError, match=PARTS[kind].replace("_", " ")):
            decode_segment(header, 0, 0, forged)


@pytest.mark.parametrize("mask", ["positions", "some positions"])
def test_stored_positions_need_not_be_the_loudest(mask):
    header = small_header(mask=mask)
    rng = np.random.default_rng(0)
    made = make_segment(header, 0, 0, rng)
    chosen = loudest(rng.random(made.mask.shape), header.coded_count(0))
    kept = complete_mask(header, 0, 0, chosen)
    segment = made._replace(
        chosen=chosen, mask=kept, levels=np.where(kept, rng.integers(60, size=kept.shape), 0)
    )
    parts = encode_segment(header, 0, 0, segment)
    assert same(decode_segment(header, 0, 0, parts), segment)


def test_part_that_should_be_empty_is_refused():
    header = small_header(mask="random")
    parts = encode_segment(header, 0, 0, make_segment(header, 0, 0, np.random.default_rng(0)))
    assert parts[0] == b"" == parts[2]
    parts[0] = b"\0\0\0\0"
    with pytest.raises(ContainerError, match="longer"):
        decode_segment(header, 0, 0, parts)


@pytest.mark.parametrize("mask", ["mixed", "loudest third"])
@pytest.mark.parametrize("field", ["chosen", "mask", "levels", "phases"])
def test_segment_that_contradicts_the_header_is_not_encoded(field, mask):
    header = small_header(mask=mask)
    segment = make_segment(header, 0, 0, np.random.default_rng(0))
    replaced = {
        "chosen": ~segment.chosen,
        "mask": ~segment.mask,
        # Drawn bins above the chosen ones.
        "levels": np.where(segment.mask & ~segment.chosen, 200, segment.levels),
        "phases": segment.phases + 16,
    }
    with pytest.raises(ValueError):
        encode_segment(header, 0, 0, segment._replace(**{field: replaced[field]}))
