"""Segments of the MDCT grid: what is coded comes back, and nothing else is taken for one."""

import numpy as np
import pytest

from jaxsparse.codec import context
from jaxsparse.codec.context import N_MAGNITUDES
from jaxsparse.codec.entropy import Encoder
from jaxsparse.codec.mdct_segment import (
    MAX_ESCAPE_BITS,
    _encode,
    cost,
    decode_segment,
    encode_segment,
    silence,
)
from jaxsparse.codec.weights import load_codec
from jaxsparse.errors import ContainerError
from jaxsparse.transforms.grid import HOP_LENGTH, N_BANDS, N_LEVELS
from tests.mdct_files import encode, make_segment

MODELS = load_codec().models


def same(left, right):
    return (
        (left.values == right.values).all()
        and (left.levels == right.levels).all()
        and left.rate == right.rate
    )


@pytest.mark.parametrize("n_frames", [1, 2, 3, 40, 320])
@pytest.mark.parametrize("rate", [0, 24, 63])
def test_what_was_coded_comes_back(n_frames, rate):
    segment = make_segment(n_frames, rate=rate)
    data = encode(segment)
    assert same(decode_segment(data, n_frames, rate, MODELS), segment)


@pytest.mark.parametrize("loudness", [0.01, 30, 3_000])
def test_any_loudness_comes_back(loudness):
    segment = make_segment(12, loudness=loudness)
    assert same(decode_segment(encode(segment), 12, segment.rate, MODELS), segment)


def test_values_of_every_size_and_sign_come_back():
    segment = silence(4)
    sizes = [0, 1, N_MAGNITUDES - 2, N_MAGNITUDES - 1, N_MAGNITUDES, 1000, 2**MAX_ESCAPE_BITS]
    for place, size in enumerate(sizes):
        segment.values[place, 1], segment.values[place, 2] = size, -size
    segment.levels[:] = np.arange(N_BANDS)[:, None] % N_LEVELS
    assert same(decode_segment(encode(segment), 4, 0, MODELS), segment)


def test_a_magnitude_beyond_all_is_refused():
    segment = silence(2)
    segment.values[5, 0] = 2 ** (MAX_ESCAPE_BITS + 2)
    with pytest.raises(ContainerError, match="too large"):
        encode(segment)


def test_bits_are_those_of_the_estimate():
    for loudness in (0.3, 1, 5):
        segment = make_segment(200, loudness=loudness)
        expected = cost(segment, MODELS).total
        assert expected - 1 <= 8 * len(encode(segment)) <= expected + 64


def test_encoding_leaves_the_segment_as_it_was():
    segment = make_segment(8, loudness=20)
    before = segment.values.copy(), segment.levels.copy()
    encode(segment)
    assert (segment.values == before[0]).all() and (segment.levels == before[1]).all()


def test_longer_shorter_and_other_data_are_refused():
    segment = make_segment(6)
    data = encode(segment)
    for spoiled in (data + bytes(4), data[:-4], data[:-1]):
        with pytest.raises(ContainerError):
            decode_segment(spoiled, 6, segment.rate, MODELS)


def test_no_changed_byte_gives_the_same_or_goes_unnoticed_as_longer():
    """A range coder has no checksum: a changed part is other numbers, or an error."""
    segment = make_segment(4)
    data = encode(segment)
    for place in range(len(data)):
        spoiled = bytearray(data)
        spoiled[place] ^= 0x41
        try:
            decoded = decode_segment(bytes(spoiled), 4, segment.rate, MODELS)
        except ContainerError:
            continue
        assert not same(decoded, segment)
        assert encode_segment(decoded, MODELS) == bytes(spoiled)


def test_random_bytes_end_in_time():
    rng = np.random.default_rng(3)
    for _ in range(20):
        data = rng.integers(0, 256, 4 * int(rng.integers(1, 40)), np.uint8).tobytes()
        try:
            decoded = decode_segment(data, 5, 10, MODELS)
        except ContainerError:
            continue
        assert encode_segment(decoded, MODELS) == data


def test_silence_is_no_bytes_and_nothing_else_is():
    assert encode(silence(320)) == b""
    assert same(decode_segment(b"", 7, 0, MODELS), silence(7))
    magnitudes, levels = (
        np.zeros((8, HOP_LENGTH), np.int64),
        np.zeros((4, N_BANDS), np.int64),
    )
    coder = Encoder()
    planes = context.magnitude_planes(magnitudes)
    tables = context.all_tables(MODELS["magnitudes"], context.MAGNITUDES, *planes, 0)
    _encode(coder, context.MAGNITUDES, magnitudes, MODELS["magnitudes"].tables[tables])
    planes = context.level_planes(levels, magnitudes)
    tables = context.all_tables(MODELS["levels"], context.LEVELS, *planes, 0)
    _encode(coder, context.LEVELS, levels, MODELS["levels"].tables[tables])
    with pytest.raises(ContainerError, match="silence"):
        decode_segment(coder.data(), 8, 0, MODELS)
