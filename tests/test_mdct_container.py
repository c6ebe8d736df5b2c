"""Files of version 3: every altered byte is found, and what is not a whole file is refused."""

import dataclasses
import struct
import zlib

import pytest

from jaxsparse.codec import describe as describe_any
from jaxsparse.codec import mdct_container
from jaxsparse.codec.mdct_container import (
    SILENCE,
    CodedSegment,
    MDCTHeader,
    describe,
    overhead_bits,
    pack,
    step_size,
    unpack,
)
from jaxsparse.errors import ContainerError
from tests.mdct_files import encode, make_header, make_segment


def small_file(**changes):
    header = make_header(**({"n_samples": 500} | changes))
    segment = make_segment(header.n_frames)
    coded = CodedSegment(8_000, segment.rate, encode(segment))
    return pack(header, [coded] * header.channels * header.n_segments)


def seal(data, size):
    """Renews the checksum of a header of `size` bytes."""
    return data[: size - 4] + struct.pack("<I", zlib.crc32(data[: size - 4])) + data[size:]


def test_what_was_packed_comes_back():
    header = make_header(channels=2, quality=170, sample_rate=44_100, n_samples=1_000)
    segment = make_segment(header.n_frames)
    coded = [CodedSegment(code, 24, encode(segment)) for code in (1, 16_384)]
    found, segments = unpack(pack(header, coded))
    assert found == header
    assert [(s.step, s.rate, bytes(s.data)) for s in segments] == [tuple(s) for s in coded]


def test_every_changed_byte_is_found():
    data = small_file()
    for place in range(len(data)):
        for change in (1, 0x80):
            spoiled = bytearray(data)
            spoiled[place] ^= change
            with pytest.raises(ContainerError):
                describe_any(bytes(spoiled))


def test_every_cut_is_found():
    data = small_file(channels=2)
    for size in range(len(data)):
        with pytest.raises(ContainerError):
            unpack(data[:size])
    with pytest.raises(ContainerError, match="follow the last segment"):
        unpack(data + b"\0")


def test_segments_that_changed_places_are_found():
    header = make_header(n_samples=500, channels=2)
    coded = [
        CodedSegment(8_000, 24, encode(make_segment(header.n_frames, seed=seed)))
        for seed in range(2)
    ]
    whole = pack(header, coded)
    start = mdct_container.header_size(header)
    first = 9 + len(coded[0].data)
    swapped = whole[:start] + whole[start + first :] + whole[start : start + first]
    with pytest.raises(ContainerError, match="segment 0 is damaged"):
        unpack(swapped)


def test_damage_is_concealed_where_it_is():
    header = make_header(n_samples=500, channels=3)
    coded = [CodedSegment(8_000, 24, encode(make_segment(3, seed=seed))) for seed in range(3)]
    data = bytearray(pack(header, coded))
    start = mdct_container.header_size(header)
    second = start + 9 + len(coded[0].data)
    for place in (second, second + 3, second + 12):
        spoiled = bytearray(data)
        spoiled[place] ^= 0xFF
        with pytest.raises(ContainerError):
            unpack(bytes(spoiled))
        segments = unpack(bytes(spoiled), conceal=True).segments
        assert [segment == SILENCE for segment in segments] == [False, True, False]
    cut = unpack(bytes(data[:-5]), conceal=True).segments
    assert [segment == SILENCE for segment in cut] == [False, False, True]
    with pytest.raises(ContainerError, match="header"):
        unpack(bytes([*data[:16], data[16] ^ 1, *data[17:]]), conceal=True)


def test_neighbours_that_are_damaged_don_t_silence_the_rest():
    header = make_header(n_samples=500, channels=5)
    coded = [CodedSegment(8_000, 24, encode(make_segment(3, seed=seed))) for seed in range(5)]
    whole = pack(header, coded)
    size = 9 + len(coded[1].data)
    second = mdct_container.header_size(header) + 9 + len(coded[0].data)
    third = second + size
    # Lengths that can't be, words of both, and a length of one with the other's words.
    for places in ((second + 1, third + 1), (second + 9, third + 9), (second + 1, third + 9)):
        spoiled = bytearray(whole)
        for place in places:
            spoiled[place] ^= 0xFF
        segments = unpack(bytes(spoiled), conceal=True).segments
        assert [segment == SILENCE for segment in segments] == [False, True, True, False, False]


def test_another_magic_or_version_is_refused_though_checksums_fit():
    data = small_file()
    size = data[5]
    for spoiled, message in (
        (b"RIFF" + data[4:], "not a .jsac file"),
        (data[:4] + b"\2" + data[5:], "of version 2, not 3"),
    ):
        for conceal in (False, True):
            with pytest.raises(ContainerError, match=message):
                unpack(seal(spoiled, size), conceal=conceal)


def test_a_name_that_can_t_be_read_is_told_in_a_line():
    with pytest.raises(ContainerError, match="is not a usable name") as refused:
        make_header(codec=100 * "\0")
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize(
    "changes",
    [
        {"sample_rate": 999},
        {"channels": 0},
        {"channels": 33},
        {"n_samples": 0},
        {"n_samples": 2**31},
        {"n_samples": 2**30, "channels": 2},
        {"codec": ""},
        {"codec": "a/b"},
        {"codec_sha256": "0" * 15},
        {"quality": 256},
    ],
)
def test_headers_out_of_limits_are_refused(changes):
    with pytest.raises(ContainerError):
        make_header(**changes)


def test_a_sealed_header_that_promises_too_much_is_refused_at_once():
    data = small_file()
    size = data[5]
    forged = data[:11] + struct.pack("<I", 2_000_000_000) + data[15:]
    with pytest.raises(ContainerError, match="can't hold"):
        unpack(seal(forged, size))
    named = data[:24] + bytes([200]) + data[25:]
    with pytest.raises(ContainerError, match="contradicts"):
        unpack(seal(named, size))


def test_more_or_fewer_segments_are_refused():
    header = make_header(n_samples=500)
    coded = CodedSegment(8_000, 24, encode(make_segment(3)))
    for n in (0, 2):
        with pytest.raises(ValueError, match="segments instead of 1"):
            pack(header, [coded] * n)
    with pytest.raises(ValueError, match="bytes"):
        pack(header, [coded._replace(data=bytes(4 * 0x10000))])


@pytest.mark.parametrize("spoil", [{"step": 16_385}, {"rate": 64}, {"data": b""}])
def test_segments_out_of_limits_are_refused(spoil):
    header = make_header(n_samples=500)
    coded = CodedSegment(8_000, 24, encode(make_segment(3)))
    with pytest.raises(ContainerError, match="segment 0 is damaged"):
        unpack(pack(header, [coded._replace(**spoil)]))
    assert unpack(pack(header, [SILENCE])).segments == [SILENCE]


def test_bits_add_up():
    data = small_file(channels=2)
    header = unpack(data).header
    described = describe(data)
    assert sum(described["part_bits"].values()) == described["bits"] == 8 * len(data)
    assert described["part_bits"]["overhead"] == overhead_bits(header)
    assert described["kbit_per_s"] == pytest.approx(8 * len(data) / (500 / 16_000) / 1000)
    fields = {field.name for field in dataclasses.fields(MDCTHeader)} - {"quality"}
    assert fields <= described.keys()


def test_steps_are_even_in_octaves():
    assert step_size(8_192) == 1
    assert step_size(8_192 + 256) == 2
    assert step_size(0) == 2.0**-32
