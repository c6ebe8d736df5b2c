"""Files of the format for tests: headers, segments, and fields that were forged."""

import struct
import zlib

import numpy as np

from jaxsparse.codec import container
from jaxsparse.codec.header import Header, fields_of
from jaxsparse.codec.segment import Segment, complete_mask, encode_segment

# Pairs of coded_share and loudest; version 1 has the first three.
MASKS = {
    "positions": ("1", False),
    "mixed": ("0.5", True),
    "random": ("0", False),
    "loudest": ("1", True),
    "loudest third": ("0.333", True),
    "some positions": ("0.25", False),
}
VERSION_1_MASKS = tuple(MASKS)[:3]
# What stands before the fields.
PREFIX = {"magic": "4s", "version": "B", "header_size": "H", "file_size": "Q"}


def offsets(version):
    """Offset and code of `struct` for all that stands before the texts of a header."""
    codes = PREFIX | {each.name: each.code for each in fields_of(version) if each.code}
    places, offset = {}, 0
    for name, code in codes.items():
        places[name] = (offset, f"<{code}")
        offset += struct.calcsize(f"<{code}")
    return places


def make_header(**changes):
    """A header with the numbers that `compress` writes, but for `changes`.

    A name of `MASKS` as ``mask`` stands for the pair.
    """
    coded_share, loudest = MASKS[changes.pop("mask", "mixed")]
    defaults = {
        "sample_rate": 16_000,
        "channels": 1,
        "n_samples": 77_276,
        "sparsity": "0.95",
        "coded_share": coded_share,
        "loudest": loudest,
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
    mask = complete_mask(header, channel, index, chosen)
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
        encode_segment(header, *place, segment)
        for place, segment in zip(places, segments, strict=True)
    ]
    return container.pack(header, parts), segments


def forge(data, **changes):
    """Changes fields of the header and makes its checksum fit."""
    forged = bytearray(data)
    places = offsets(data[4])
    for name, value in changes.items():
        offset, code = places[name]
        struct.pack_into(code, forged, offset, value)
    (size,) = struct.unpack_from("<H", data, 5)
    forged[size - 4 : size] = struct.pack("<I", zlib.crc32(forged[: size - 4]))
    return bytes(forged)


def same(left, right):
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))
