import dataclasses
import hashlib
import itertools
import json
import struct
import tracemalloc
import zlib

import jaxtyping
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsparse.codec import container
from jaxsparse.codec.container import Header, Segment
from jaxsparse.errors import ContainerError

# Where the fields of the header lie in a file of version 1.
FIELDS = {
    "version": (4, "<B"),
    "header_size": (5, "<H"),
    "file_size": (7, "<Q"),
    "sample_rate": (15, "<I"),
    "channels": (19, "<B"),
    "n_samples": (20, "<Q"),
    "coded_rate": (28, "<I"),
    "n_fft": (32, "<I"),
    "win_length": (36, "<I"),
    "hop_length": (40, "<I"),
    "window": (44, "<B"),
    "center": (45, "<B"),
    "pad_mode": (46, "<B"),
    "frames_per_segment": (47, "<H"),
    "mask": (49, "<B"),
    "seed": (50, "<Q"),
    "value_step_mdb": (58, "<I"),
    "phase_bits": (62, "<B"),
    "phase_threshold": (63, "<B"),
    "keep_observed": (64, "<B"),
    "network_sha256": (65, "32s"),
}


def make_header(**changes):
    defaults = {
        "sample_rate": 16_000,
        "channels": 1,
        "n_samples": 77_276,
        "sparsity": "0.95",
        "mask": "mixed",
        "seed": 3,
        "network": "mixed",
        "network_sha256": "0123456789abcdef" * 4,
    }
    return Header(**(defaults | changes))


def small_header(**changes):
    """Few bins and frames: 17 by 12 in a segment."""
    small = {"n_fft": 32, "win_length": 32, "hop_length": 8, "frames_per_segment": 12}
    return make_header(**({"n_samples": 90, "sparsity": "0.7"} | small | changes))


def loudest(values, count):
    mask = np.zeros(values.size, bool)
    mask[np.argsort(-values.ravel(), kind="stable")[:count]] = True
    return mask.reshape(values.shape)


def make_segment(header, channel, index, rng):
    """A segment whose levels and phases vary smoothly, with noise."""
    n_bins, n_frames = header.segment_shape(index)
    slope = -60 * np.arange(n_bins)[:, None] / n_bins + 10 * np.sin(np.arange(n_frames) / 9)
    db = slope + 10 * np.log10(rng.exponential(size=(n_bins, n_frames)) + 1e-9)
    db = np.maximum(db, db.max() - 80)
    chosen = loudest(db, header.coded_count(index))
    mask = container.complete_mask(header, channel, index, chosen)
    levels = np.where(mask, np.rint(db * 1000 / header.value_step_mdb), 0).astype(np.int64)
    stored = np.ones(db.shape, bool)
    if header.phase_threshold is not None:
        stored = db >= db.max() - header.phase_threshold
    phases = np.where(stored, rng.integers(0, 2**header.phase_bits, db.shape), 0)
    return Segment(chosen, mask, levels, stored, phases)


def segments_of(header):
    """(channel, segment) in the order of the file."""
    return [
        (channel, segment)
        for channel in range(header.channels)
        for segment in range(header.n_segments)
    ]


def make_file(header, seed=0):
    rng = np.random.default_rng(seed)
    places = segments_of(header)
    segments = [make_segment(header, *place, rng) for place in places]
    parts = [
        container.encode_segment(header, *place, segment)
        for place, segment in zip(places, segments, strict=True)
    ]
    return container.pack(header, parts), segments


def forge(data, **changes):
    """Changes fields of the header and makes its checksum fit."""
    forged = bytearray(data)
    for name, value in changes.items():
        offset, code = FIELDS[name]
        struct.pack_into(code, forged, offset, value)
    (size,) = struct.unpack_from("<H", data, 5)
    forged[size - 4 : size] = struct.pack("<I", zlib.crc32(forged[: size - 4]))
    return bytes(forged)


def same(left, right):
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def entropy(p):
    return -p * np.log2(p) - (1 - p) * np.log2(1 - p)


@given(
    mask=st.sampled_from(["positions", "mixed", "random"]),
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
    places = segments_of(header)
    assert len(parts) == len(places) == len(segments)
    for place, part, segment in zip(places, parts, segments, strict=True):
        assert same(container.decode_segment(header, *place, part), segment)
        assert np.count_nonzero(segment.mask) == header.count(place[1])


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


@pytest.mark.parametrize("density", [0.05, 0.1, 0.2])
def test_uniform_positions_cost_their_entropy(density):
    header = make_header(mask="positions", sparsity=str(round(1 - density, 2)))
    rng = np.random.default_rng(1)
    shape = header.segment_shape(0)
    mask = loudest(rng.random(shape), header.count(0))
    empty = np.zeros(shape, np.int64)
    segment = Segment(mask, mask, empty, np.ones(shape, bool), empty)
    parts = container.encode_segment(header, 0, 0, segment)
    bound = mask.size * entropy(mask.mean())
    assert bound < 8 * len(parts[0]) < 1.03 * bound
    assert same(container.decode_segment(header, 0, 0, parts), segment)


def blobs(rng, shape, size):
    """Noise, smoothed over `size` bins and frames by its spectrum."""
    frequencies = np.hypot(*np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij"))
    noise = np.fft.fft2(rng.standard_normal(shape))
    return np.fft.ifft2(noise * np.exp(-((frequencies * size) ** 2))).real


def test_clustered_positions_cost_clearly_less():
    header = make_header(mask="positions")
    rng = np.random.default_rng(2)
    mask = loudest(blobs(rng, header.segment_shape(0), 8), header.count(0))
    empty = np.zeros(mask.shape, np.int64)
    segment = Segment(mask, mask, empty, np.ones(mask.shape, bool), empty)
    parts = container.encode_segment(header, 0, 0, segment)
    assert 8 * len(parts[0]) < 0.5 * mask.size * entropy(mask.mean())


def test_smooth_levels_cost_less_than_noise_and_constant_ones_nothing():
    header = make_header(mask="positions")
    rng = np.random.default_rng(3)
    shape = header.segment_shape(0)
    mask = loudest(rng.random(shape), header.count(0))
    smooth = blobs(rng, shape, 40)
    smooth = np.rint(80 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.int64)
    shuffled = rng.permutation(smooth.ravel()).reshape(shape)
    bits = {}
    for name, levels in {"smooth": smooth, "shuffled": shuffled, "flat": 0 * smooth - 200}.items():
        zeros = np.zeros(shape, np.int64)
        segment = Segment(mask, mask, np.where(mask, levels, 0), np.ones(shape, bool), zeros)
        parts = container.encode_segment(header, 0, 0, segment)
        assert same(container.decode_segment(header, 0, 0, parts), segment)
        bits[name] = 8 * len(parts[1])
        # All phases are zero, as in digital silence.
        assert 8 * len(parts[3]) < 0.05 * mask.size
    count = np.bincount(shuffled[mask])
    share = count[count > 0] / count.sum()
    order_zero = -mask.sum() * (share * np.log2(share)).sum()
    assert bits["shuffled"] < 1.04 * order_zero
    assert bits["smooth"] < 0.8 * order_zero
    assert bits["flat"] <= 8 * 6


def test_random_phases_cost_their_bits():
    header = make_header(mask="random", phase_bits=4)
    segment = make_segment(header, 0, 0, np.random.default_rng(0))
    bits = 8 * len(container.encode_segment(header, 0, 0, segment)[3])
    assert 4 * segment.phases.size <= bits < 4.004 * segment.phases.size


def test_drawn_positions_are_fixed_by_the_format():
    header = small_header(mask="random", sparsity="0.96", seed=2**63 + 5)
    nothing = np.zeros(header.segment_shape(0), bool)
    drawn = [
        np.flatnonzero(container.complete_mask(header, channel, 0, nothing)).tolist()
        for channel in (0, 1)
    ]
    assert drawn == [[9, 24, 58, 63, 67, 80, 93, 200], [16, 23, 46, 57, 63, 130, 152, 203]]
    full = make_header(mask="random", seed=0)
    nothing = np.zeros(full.segment_shape(0), bool)
    mask = container.complete_mask(full, 31, 0, nothing)
    assert hashlib.sha256(np.packbits(mask).tobytes()).hexdigest()[:16] == "930a7d00c312c111"


def test_drawn_positions_differ_by_seed_channel_and_segment():
    nothing = np.zeros((17, 12), bool)
    masks = set()
    for seed, channel, segment in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0)]:
        header = small_header(mask="random", seed=seed, n_samples=400, channels=2)
        masks.add(container.complete_mask(header, channel, segment, nothing).tobytes())
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
    mask = container.complete_mask(header, 0, 0, chosen)
    assert np.flatnonzero(mask).tolist() == [0, 1, 2, 3, 4, 5, 100, 101]


def test_bytes_are_fixed_by_the_format():
    """From integers alone, so that only the format itself can change the bytes."""
    header = make_header(n_samples=20_000, phase_threshold=40, seed=9)
    shape = header.segment_shape(0)
    noise = np.random.Philox(key=5).random_raw(2 * shape[0] * shape[1]).reshape(2, *shape)
    levels = (noise[0] % 60).astype(np.int64) - np.arange(shape[0])[:, None] // 10
    chosen = loudest(levels, header.coded_count(0))
    mask = container.complete_mask(header, 0, 0, chosen)
    stored = levels > -20
    phases = np.where(stored, noise[1] % 16, 0).astype(np.int64)
    segment = Segment(chosen, mask, np.where(mask, levels, 0), stored, phases)
    parts = container.encode_segment(header, 0, 0, segment)
    data = container.pack(header, [parts])
    assert [len(part) for part in parts] == [1164, 2726, 4748, 19592]
    assert hashlib.sha256(data).hexdigest()[:16] == "a2be591a80eca927"


def test_every_single_changed_byte_is_refused():
    header = small_header(n_samples=7, sparsity="0.9", phase_threshold=40)
    data, _ = make_file(header)
    assert container.unpack(data).header == header
    for position in range(len(data)):
        changed = bytearray(data)
        for value in range(256):
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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_samples", 0),
        ("n_samples", 2**40),
        ("n_samples", 2**64 - 1),
        ("n_samples", 77_276),
        ("n_samples", 2**31),
        ("sample_rate", 0),
        ("sample_rate", 999),
        ("sample_rate", 2**32 - 1),
        ("channels", 0),
        ("channels", 2),
        ("channels", 33),
        ("coded_rate", 16_001),
        ("n_fft", 0),
        ("n_fft", 33),
        ("n_fft", 2**14),
        ("n_fft", 2**31),
        ("win_length", 0),
        ("win_length", 33),
        ("win_length", 7),
        ("hop_length", 0),
        ("hop_length", 3),
        ("hop_length", 17),
        ("window", 1),
        ("center", 0),
        ("center", 2),
        ("pad_mode", 1),
        ("frames_per_segment", 0),
        ("frames_per_segment", 303),
        ("mask", 3),
        ("value_step_mdb", 0),
        ("value_step_mdb", 2**32 - 1),
        ("phase_bits", 0),
        ("phase_bits", 13),
        ("keep_observed", 2),
    ],
)
def test_forged_header_is_refused_without_large_memory(name, value):
    data, _ = make_file(small_header())
    tracemalloc.start()
    with pytest.raises(ContainerError):
        container.unpack(forge(data, **{name: value}))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6


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
@pytest.mark.parametrize("mask", ["positions", "mixed", "random"])
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
    kept = container.complete_mask(header, 0, 0, chosen)
    segment = Segment(chosen, kept, zeros, kept | (threshold is None), zeros)
    parts = container.encode_segment(header, 0, 0, segment)
    data = container.pack(header, [parts] * header.n_segments)
    assert container.unpack(data).header == header


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
        container.decode_segment(header, 0, 0, [b"", values, b"", b""])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6
    values = struct.pack("<hHH", 0, header.max_span + 1, 0)
    with pytest.raises(ContainerError, match="contradicts"):
        container.decode_segment(header, 0, 0, [b"", values, b"", b""])


@pytest.mark.parametrize(
    "name", ["seed", "phase_bits", "phase_threshold", "n_samples", "value_step_mdb"]
)
def test_whole_numbers_are_integers(name, monkeypatch):
    # The tests' own checks of types would come first.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for value in (60.5, 60.0, True, "60"):
        with pytest.raises(ContainerError, match=f"{name} .* integer"):
            make_header(**{name: value})


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


@given(data=st.data())
def test_forged_parts_decode_to_something_valid_or_are_refused(data):
    header = small_header(
        mask=data.draw(st.sampled_from(["positions", "mixed", "random"])),
        phase_threshold=data.draw(st.sampled_from([None, 40])),
    )
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    parts = container.encode_segment(header, 0, 0, make_segment(header, 0, 0, rng))
    for number in data.draw(st.sets(st.integers(0, 3), min_size=1)):
        length = data.draw(st.sampled_from([0, 2, 4, 8, 10, 64, len(parts[number])]))
        parts[number] = rng.bytes(length)
    # The file's checksums fit the forged parts.
    unpacked = container.unpack(container.pack(header, [parts]))
    try:
        segment = container.decode_segment(header, 0, 0, unpacked.parts[0])
    except ContainerError:
        return
    assert all(array.shape == (17, 12) for array in segment)
    assert np.count_nonzero(segment.mask) == header.count(0)
    assert segment.phases.min() >= 0 and segment.phases.max() < 2**header.phase_bits
    assert np.ptp(segment.levels[segment.mask]) < 2**12


@pytest.mark.parametrize("span", [4096, 2**16 - 1])
def test_forged_range_of_levels_is_refused_before_tables_are_made(span):
    header = small_header()
    parts = container.encode_segment(
        header, 0, 0, make_segment(header, 0, 0, np.random.default_rng(0))
    )
    parts[1] = struct.pack("<hHH", 0, span, 0) + parts[1][6:]
    with pytest.raises(ContainerError, match="contradicts"):
        container.decode_segment(header, 0, 0, parts)


@pytest.mark.parametrize("mask", ["positions", "mixed", "random"])
@pytest.mark.parametrize("changes", [(-1, 1, 1), (0, 1, 0), (0, 0, -1)])
def test_range_that_the_levels_do_not_fill_is_refused(changes, mask):
    """Base, span and threshold follow from the levels: there is one way to write them."""
    header = small_header(mask=mask)
    segment = make_segment(header, 0, 0, np.random.default_rng(0))
    chosen, kept, levels = (np.array(array.T) for array in segment[:3])
    base = levels[kept].min()
    span = int(levels[kept].max() - base)
    threshold = int(levels[chosen].min() - base) if mask == "mixed" else span

    def code(low, span, threshold):
        coder = container._Encoder()
        relative = np.where(kept, levels - low, 0)
        container._code_levels(coder, header, relative, chosen, kept, threshold, span)
        parts = container.encode_segment(header, 0, 0, segment)
        parts[1] = struct.pack("<hHH", low, span, threshold) + coder.data()
        return container.decode_segment(header, 0, 0, parts)

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


@pytest.mark.parametrize("kind", range(4), ids=container.PARTS)
@pytest.mark.parametrize("forgery", FORGERIES)
def test_part_that_no_encoder_wrote_is_refused(forgery, kind):
    """A range coder reads zeros where its data end, and may not miss what was cut off."""
    for seed, mask in itertools.product(range(2), ("positions", "mixed", "random")):
        header = small_header(phase_threshold=40, mask=mask, sparsity="0.4")
        segment = make_segment(header, 0, 0, np.random.default_rng(seed))
        parts = container.encode_segment(header, 0, 0, segment)
        if not parts[kind]:
            continue
        parts[kind] = FORGERIES[forgery](parts[kind])
        _, (forged,) = container.unpack(container.pack(header, [parts]))
        with pytest.raises(ContainerError, match=container.PARTS[kind].replace("_", " ")):
            container.decode_segment(header, 0, 0, forged)


def test_part_that_should_be_empty_is_refused():
    header = small_header(mask="random")
    parts = container.encode_segment(
        header, 0, 0, make_segment(header, 0, 0, np.random.default_rng(0))
    )
    assert parts[0] == b"" == parts[2]
    parts[0] = b"\0\0\0\0"
    with pytest.raises(ContainerError, match="longer"):
        container.decode_segment(header, 0, 0, parts)


@pytest.mark.parametrize("field", ["chosen", "mask", "levels", "phases"])
def test_segment_that_contradicts_the_header_is_not_encoded(field):
    header = small_header()
    segment = make_segment(header, 0, 0, np.random.default_rng(0))
    replaced = {
        "chosen": ~segment.chosen,
        "mask": ~segment.mask,
        # Drawn bins above the chosen ones.
        "levels": np.where(segment.mask & ~segment.chosen, 200, segment.levels),
        "phases": segment.phases + 16,
    }
    with pytest.raises(ValueError):
        container.encode_segment(header, 0, 0, segment._replace(**{field: replaced[field]}))


def test_description_accounts_for_every_bit():
    header = make_header(
        sample_rate=44_100, channels=2, n_samples=5_000, sparsity="0.9", phase_threshold=60
    )
    data, segments = make_file(header)
    described = container.describe(data)
    part_bits = described["part_bits"]
    assert sum(part_bits.values()) == described["bits"] == 8 * len(data)
    assert all(part_bits[name] > 0 for name in (*container.PARTS, "overhead"))
    assert described["bytes"] == len(data)
    assert described["kbit_per_s"] == pytest.approx(8 * len(data) * 44.1 / 5_000)
    assert described["size_ratio"] == pytest.approx(len(data) / (5_000 * 2 * 2))
    assert described["size_ratio_16khz"] == pytest.approx(len(data) / (1815 * 2 * 2))
    assert described["kept_bins"] == sum(int(segment.mask.sum()) for segment in segments)
    assert {name: described[name] for name in dataclasses.asdict(header)} == dataclasses.asdict(
        header
    )
    assert json.loads(json.dumps(described)) == described
