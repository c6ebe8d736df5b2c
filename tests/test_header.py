"""The header of a ``.jsac`` file: limits, bytes, and what follows from it."""

import dataclasses
import itertools
import struct
import tracemalloc

import jaxtyping
import pytest

from jaxsparse.codec import container
from jaxsparse.codec.header import (
    FIELDS,
    VERSIONS,
    Choice,
    Flag,
    Header,
    Integer,
    fields_of,
    pack_header,
    unpack_header,
)
from jaxsparse.errors import ContainerError
from tests.jsac_files import (
    MASKS,
    VERSION_1_MASKS,
    forge,
    make_file,
    make_header,
    offsets,
    small_header,
)


def test_what_follows_from_the_header():
    header = make_header(sample_rate=44_100, n_samples=1_000_001)
    assert header.n_coded_samples == 362_813
    assert header.n_frames == 1 + 362_813 // 256 == 1418
    assert header.n_segments == 5
    assert header.segment_shape(3) == (1025, 302)
    assert header.segment_shape(4) == (1025, 210)


@pytest.mark.parametrize(
    ("sparsity", "count"), [("0.8", 61_910), ("0.85", 46_432), ("0.9", 30_955), ("0.95", 15_477)]
)
def test_counts_are_exact(sparsity, count):
    assert make_header(sparsity=sparsity).count(0) == count


def test_table_lists_every_attribute_once():
    names = [each.name for each in fields_of(VERSIONS[-1])]
    assert sorted(names) == sorted(each.name for each in dataclasses.fields(Header))
    assert len({each.name for each in FIELDS}) == len(FIELDS)
    for version in VERSIONS:
        listed = [each.attributes or (each.name,) for each in fields_of(version)]
        assert sorted(itertools.chain(*listed)) == sorted(names)
        kinds = [bool(each.code) for each in fields_of(version)]
        assert kinds == sorted(kinds, reverse=True) and kinds.count(False) == 2


@pytest.mark.parametrize("mask", MASKS)
def test_a_header_comes_back(mask):
    header = small_header(mask=mask, phase_threshold=40, keep_observed=False, seed=2**64 - 1)
    packed = pack_header(header, 5000)
    assert header.version == packed[4] == (1 if mask in VERSION_1_MASKS else 2)
    data = packed + bytes(5000 - len(packed))
    assert unpack_header(data) == (header, len(packed))


@pytest.mark.parametrize("mask", ["mixed", "loudest"])
def test_every_changed_bit_is_refused(mask):
    data, _ = make_file(small_header(mask=mask))
    _, size = unpack_header(data)
    for position, bit in itertools.product(range(size), range(8)):
        changed = bytearray(data)
        changed[position] ^= 1 << bit
        with pytest.raises(ContainerError):
            unpack_header(bytes(changed))


INTEGERS = [each for each in FIELDS if isinstance(each, Integer)]
# Values of the others that a value at a limit of its own goes with.
FITTING = {
    "channels": {32: {"n_samples": 1}},
    "n_fft": {
        4: {"win_length": 4, "hop_length": 1},
        2048: {"win_length": 2048, "hop_length": 256},
    },
    "win_length": {2048: {"n_fft": 2048, "hop_length": 256}, 4: {"n_fft": 4, "hop_length": 1}},
    "hop_length": {1: {"n_fft": 4, "win_length": 4}, 256: {"n_fft": 2048, "win_length": 2048}},
}


@pytest.mark.parametrize("each", INTEGERS, ids=lambda each: each.name)
def test_limits_are_the_last_values_that_are_accepted(each):
    for limit, beyond in ((each.low, each.low - 1), (each.high, each.high + 1)):
        others = FITTING.get(each.name, {}).get(limit, {})
        assert getattr(make_header(**(others | {each.name: limit})), each.name) == limit
        message = f"{each.name} {beyond} is not from {each.low} to {each.high}"
        with pytest.raises(ContainerError, match=message):
            make_header(**(others | {each.name: beyond}))


@pytest.mark.parametrize("mask", ["mixed", "loudest"])
@pytest.mark.parametrize("each", INTEGERS, ids=lambda each: each.name)
def test_forged_numbers_are_refused_without_large_memory(each, mask):
    data, _ = make_file(small_header(mask=mask))
    largest = 2 ** (8 * struct.calcsize(each.code)) - 1
    # What is optional is stored as 0.
    lowest = 0 if each.optional else each.low
    for value in {0, 1, lowest - 1, each.high + 1, each.high**2, largest} - {-1}:
        if not lowest <= value <= each.high and value <= largest:
            assert_refused_cheaply(forge(data, **{each.name: value}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_samples", 2**40),
        ("n_samples", 77_276),
        ("channels", 2),
        ("n_fft", 33),
        ("n_fft", 2**14),
        ("n_fft", 2**31),
        ("win_length", 33),
        ("win_length", 7),
        ("hop_length", 3),
        ("hop_length", 17),
        ("center", 0),
        ("frames_per_segment", 303),
    ],
)
def test_fields_that_contradict_others_are_refused(name, value):
    data, _ = make_file(small_header())
    assert_refused_cheaply(forge(data, **{name: value}))


@pytest.mark.parametrize(
    "each",
    [each for each in FIELDS if isinstance(each, Flag | Choice)],
    ids=lambda each: each.name,
)
def test_choices_and_flags_that_are_not_known_are_refused(each):
    data, _ = make_file(small_header(mask="mixed" if 1 in each.versions else "loudest"))
    first = 2 if isinstance(each, Flag) else len(each.choices)
    for value in (first, 255):
        assert_refused_cheaply(forge(data, **{each.name: value}))


def assert_refused_cheaply(data):
    tracemalloc.start()
    with pytest.raises(ContainerError):
        container.unpack(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6


@pytest.mark.parametrize("each", INTEGERS, ids=lambda each: each.name)
def test_whole_numbers_are_integers(each, monkeypatch):
    # The tests' own checks of types would come first.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for value in (60.5, 60.0, True, "60"):
        with pytest.raises(ContainerError, match=f"{each.name} .* integer"):
            make_header(**{each.name: value})


@pytest.mark.parametrize("name", ["center", "loudest", "keep_observed"])
def test_flags_are_true_or_false(name, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for value in (1, 0, None, "yes"):
        with pytest.raises(ContainerError, match=f"{name} .* neither"):
            make_header(**{name: value})


@pytest.mark.parametrize(
    ("share", "thousandths"), [("0.001", 1), ("0.25", 250), ("0.1", 100), ("0.999", 999)]
)
def test_share_is_stored_in_thousandths(share, thousandths):
    header = make_header(coded_share=share, loudest=False, n_samples=1)
    data = container.pack(header, [[b""] * 4])
    offset, code = offsets(2)["coded_share"]
    assert struct.unpack_from(code, data, offset) == (thousandths,)
    assert container.unpack(data).header == header


@pytest.mark.parametrize(
    "share", ["0.50", "0.0", "1.0", "1.001", "00", ".5", "0.", "0.1234", "-0", "1e-1", "1/2", ""]
)
def test_share_has_one_text(share):
    with pytest.raises(ContainerError, match="coded_share"):
        make_header(coded_share=share)


@pytest.mark.parametrize(
    ("share", "count"), [("0", 0), ("0.5", 7738), ("0.333", 5153), ("0.001", 15), ("1", 15_477)]
)
def test_coded_counts_are_exact(share, count):
    assert make_header(coded_share=share, loudest=False).coded_count(0) == count


def test_the_loudest_of_nothing_is_refused():
    with pytest.raises(ContainerError, match="loudest"):
        make_header(coded_share="0", loudest=True)


def forged_share(thousandths, loudest):
    """A file of version 2 whose bytes say something that was never packed."""
    data = container.pack(make_header(mask="some positions", n_samples=1), [[b""] * 4])
    return forge(data, coded_share=thousandths, loudest=loudest)


@pytest.mark.parametrize(("thousandths", "loudest"), [(1000, 0), (500, 1), (0, 0)])
def test_there_is_one_way_to_write_a_header(thousandths, loudest):
    with pytest.raises(ContainerError, match="version 1 can"):
        container.unpack(forged_share(thousandths, loudest))


@pytest.mark.parametrize(
    ("thousandths", "loudest", "message"),
    [(1001, 0, "more than all"), (2**16 - 1, 1, "more than all"), (0, 1, "loudest")],
)
def test_impossible_shares_are_refused(thousandths, loudest, message):
    with pytest.raises(ContainerError, match=message):
        container.unpack(forged_share(thousandths, loudest))


@pytest.mark.parametrize("version", [0, 3, 255])
def test_unknown_versions_are_refused(version):
    data, _ = make_file(small_header())
    with pytest.raises(ContainerError, match="only 1 to 3"):
        container.unpack(data[:4] + bytes([version]) + data[5:])


def test_forging_works_at_all():
    data, _ = make_file(small_header())
    assert container.unpack(forge(data, seed=77)).header.seed == 77
    assert container.unpack(forge(data, sample_rate=16_001)).header.sample_rate == 16_001


@pytest.mark.parametrize(
    "sparsity", ["0", "1", "0.0", "1.5", "-0.5", "nan", "0.9e3", "0.5x", "", "0." + 19 * "1"]
)
def test_sparsity_is_a_plain_decimal(sparsity):
    with pytest.raises(ContainerError):
        make_header(sparsity=sparsity)
