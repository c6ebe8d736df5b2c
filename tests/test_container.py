"""Whole ``.jsac`` files: what goes in comes out, and what is damaged or forged is refused."""

import dataclasses
import hashlib
import itertools
import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsparse.codec import container
from jaxsparse.codec.segment import PARTS, Segment, complete_mask, decode_segment, encode_segment
from jaxsparse.errors import ContainerError
from tests.jsac_files import (
    MASKS,
    VERSION_1_MASKS,
    forge,
    loudest,
    make_file,
    make_header,
    same,
    segments_of,
    small_header,
)


@given(
    mask=st.sampled_from(sorted(MASKS)),
    threshold=st.sampled_from([None, 10, 60]),
    sparsity=st.sampled_from(["0.02", "0.7", "0.95", "0.999", "0.99999"]),
    n_samples=st.integers(1, 400),
    channels=st.integers(1, 3),
    step=st.sampled_from([50, 500, 10_000]),
    phase_bits=st.sampled_from([1, 4, 9]),
    seed=st.integers(0, 2**64 - 1),
)
def test_decoding_gives_what_was_encoded(
    mask, threshold, sparsity, n_samples, channels, step, phase_bits, seed
):
    header = small_header(
        mask=mask,
        phase_threshold=threshold,
        sparsity=sparsity,
        n_samples=n_samples,
        channels=channels,
        value_step_mdb=step,
        phase_bits=phase_bits,
        seed=seed,
        keep_observed=seed % 2 == 0,
    )
    data, segments = make_file(header, seed % 1000)
    decoded_header, parts = container.unpack(data)
    assert decoded_header == header
    assert data[4] == header.version == (1 if mask in VERSION_1_MASKS else 2)
    places = segments_of(header)
    assert len(parts) == len(places) == len(segments)
    for place, part, segment in zip(places, parts, segments, strict=True):
        assert same(decode_segment(header, *place, part), segment)
        assert np.count_nonzero(segment.mask) == header.count(place[1])


def test_bytes_are_fixed_by_the_format():
    """From integers alone, so that only the format itself can change the bytes."""
    header = make_header(n_samples=20_000, phase_threshold=40, seed=9)
    shape = header.segment_shape(0)
    noise = np.random.Philox(key=5).random_raw(2 * shape[0] * shape[1]).reshape(2, *shape)
    levels = (noise[0] % 60).astype(np.int64) - np.arange(shape[0])[:, None] // 10
    chosen = loudest(levels, header.coded_count(0))
    mask = complete_mask(header, 0, 0, chosen)
    stored = levels > -20
    phases = np.where(stored, noise[1] % 16, 0).astype(np.int64)
    segment = Segment(chosen, mask, np.where(mask, levels, 0), stored, phases)
    parts = encode_segment(header, 0, 0, segment)
    data = container.pack(header, [parts])
    assert [len(part) for part in parts] == [1164, 2726, 4748, 19592]
    assert hashlib.sha256(data).hexdigest()[:16] == "a2be591a80eca927"


def test_every_single_changed_byte_is_refused():
    header = small_header(n_samples=7, sparsity="0.9", phase_threshold=40)
    data, _ = make_file(header)
    assert container.unpack(data).header == header
    for position in range(len(data)):
        changed = bytearray(data)
        # Each bit flipped, and bytes that mean something: a CRC-32 tells all changes of one byte.
        for value in {data[position] ^ 1 << bit for bit in range(8)} | {0, 1, 255}:
            changed[position] = value
            try:
                container.unpack(bytes(changed))
            except ContainerError as error:
                assert str(error).isprintable()
            else:
                assert value == data[position], f"byte {position} as {value} is accepted"


def test_every_truncation_and_extension_is_refused():
    data, _ = make_file(small_header(phase_threshold=40))
    for length in range(len(data)):
        with pytest.raises(ContainerError):
            container.unpack(data[:length])
    for more in (b"\0", b"JSAC", data):
        with pytest.raises(ContainerError):
            container.unpack(data + more)


def test_parts_that_changed_places_are_refused():
    header = small_header(n_samples=400, mask="random")
    data, _ = make_file(header)
    parts = container.unpack(data).parts
    swapped = container.pack(header, [parts[1], parts[0], *parts[2:]])
    assert container.unpack(swapped).parts[0][3] == parts[1][3]
    records = []
    offset = int.from_bytes(data[5:7], "little")
    start = offset
    for _ in range(8):
        end = offset + 8 + int.from_bytes(data[offset : offset + 4], "little")
        records.append(data[offset:end])
        offset = end
    exchanged = b"".join(records[4:] + records[:4])
    with pytest.raises(ContainerError, match="damaged"):
        container.unpack(data[:start] + exchanged + data[offset:])


def test_promised_frames_are_bounded_by_the_size():
    """Parts of next to nothing decode to something; without a bound 2 KB of them promise hours."""
    header = make_header(n_samples=60 * 302 * 256 - 256)
    data = container.pack(header, [[b""] * 4] * header.n_segments)
    assert len(data) < 2100
    with pytest.raises(ContainerError, match="can't hold"):
        container.unpack(data)
    with pytest.raises(ContainerError, match="too many"):
        make_header(n_samples=2**30, channels=2)


@pytest.mark.parametrize("n_fft", [4, 30, 2048])
@pytest.mark.parametrize("frames_per_segment", [1, 302])
def test_work_is_bounded_by_the_size(frames_per_segment, n_fft):
    """Frames cost time, and so do those that overlap: an addition of each is compiled."""
    size = {"n_fft": n_fft, "win_length": n_fft, "frames_per_segment": frames_per_segment}
    accepted = 0
    for hop_length, n_samples in itertools.product((1, 2, 3, 4, 15, 255, 256), (1, 90, 9_000)):
        try:
            header = make_header(**size, hop_length=hop_length, n_samples=n_samples)
            data = container.pack(header, [[b""] * 4] * header.n_segments)
            container.unpack(data)
        except ContainerError:
            continue
        accepted += 1
        assert header.n_fft <= 8 * header.hop_length
        assert header.n_frames <= 4 * len(data)
    assert accepted


def test_frames_that_overlap_more_than_an_encoder_s_are_refused():
    """186 bytes that took 21 s and 779 MB."""
    sparse = make_header(mask="random", phase_threshold=1, n_samples=301)
    parts = [b"", struct.pack("<hHH", 0, 0, 0), b"", b""]
    data = container.pack(sparse, [parts])
    assert container.unpack(data).header == sparse
    with pytest.raises(ContainerError, match="hop_length 1 is not from 256 to 256"):
        container.unpack(forge(data, hop_length=1))


@pytest.mark.parametrize("threshold", [None, 1])
@pytest.mark.parametrize("mask", MASKS)
def test_the_smallest_segments_are_within_the_bound(mask, threshold):
    """A tone of one bin in one frame, and all kept levels equal: nothing costs less."""
    header = make_header(
        mask=mask,
        phase_threshold=threshold,
        n_samples=20 * 302 * 256 - 256,
        sparsity="0.999995",
        phase_bits=1,
    )
    assert header.count(0) == 1
    zeros = np.zeros(header.segment_shape(0), np.int64)
    chosen = loudest(zeros, header.coded_count(0))
    kept = complete_mask(header, 0, 0, chosen)
    segment = Segment(chosen, kept, zeros, kept | (threshold is None), zeros)
    parts = encode_segment(header, 0, 0, segment)
    data = container.pack(header, [parts] * header.n_segments)
    assert container.unpack(data).header == header


def test_description_accounts_for_every_bit():
    header = make_header(
        sample_rate=44_100, channels=2, n_samples=5_000, sparsity="0.9", phase_threshold=60
    )
    data, segments = make_file(header)
    described = container.describe(data)
    part_bits = described["part_bits"]
    assert sum(part_bits.values()) == described["bits"] == 8 * len(data)
    assert all(part_bits[name] > 0 for name in (*PARTS, "overhead"))
    assert described["bytes"] == len(data)
    assert described["kbit_per_s"] == pytest.approx(8 * len(data) * 44.1 / 5_000)
    assert described["size_ratio"] == pytest.approx(len(data) / (5_000 * 2 * 2))
    assert described["size_ratio_16khz"] == pytest.approx(len(data) / (1815 * 2 * 2))
    assert described["kept_bins"] == sum(int(segment.mask.sum()) for segment in segments)
    assert {name: described[name] for name in dataclasses.asdict(header)} == dataclasses.asdict(
        header
    )
    assert json.loads(json.dumps(described)) == described
