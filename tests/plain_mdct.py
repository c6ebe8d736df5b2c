"""A decoder of version 3 in plain Python and NumPy, written from ``docs/format.md`` alone.

It shares nothing with the codec but the file of weights, which it reads by itself.
"""

import dataclasses
import hashlib
import json
import math
import re
import struct
import zlib

import numpy as np
import soxr

from tests import plain_networks
from tests.plain_decoder import PlainDecoder, PlainEncoder

_EDGES = np.array([0, 12, 24, 40, 56, 76, 100, 128, 160, 200, 256])
_SIZES = np.diff(_EDGES)
# What a magnitude looks like to the models.
_LOOKS = np.array([0, 16, 25, 32, 37, 41, 45, 48, 51, 53, 55, 57, 59, 61, 63, 64, 64, 64])
_BIT = (2**23, 2**24)


@dataclasses.dataclass
class Header:
    """The fields of a header, as they stand in the file."""

    sample_rate: int
    channels: int
    n_samples: int
    quality: int
    codec_sha256: bytes
    codec: str

    @property
    def n_coded(self):
        """Samples of a channel at 16 kHz."""
        return -(-self.n_samples * 16_000 // self.sample_rate)

    @property
    def n_frames(self):
        """Frames of a channel."""
        return -(-self.n_coded // 256) + 1

    @property
    def segment_frames(self):
        """Frames of each segment of a channel."""
        return [min(320, self.n_frames - first) for first in range(0, self.n_frames, 320)]


@dataclasses.dataclass
class Segment:
    """What stands in front of the words of a segment, and these."""

    step: int
    rate: int
    words: bytes


class Weights:
    """The tensors and settings of a file of weights."""

    def __init__(self, data):
        (size,) = struct.unpack("<Q", data[:8])
        entries = json.loads(data[8 : 8 + size])
        self.sha256 = hashlib.sha256(data).digest()
        self.settings = json.loads(entries.pop("__metadata__")["config"])
        self.tensors = {}
        for name, entry in entries.items():
            start, end = (8 + size + offset for offset in entry["data_offsets"])
            array = _numbers(data[start:end], entry["dtype"])
            self.tensors[name] = array.reshape(entry["shape"])

    def under(self, prefix):
        """Gives the tensors whose names begin with a prefix and a dot, without these."""
        start = prefix + "."
        return {n.removeprefix(start): x for n, x in self.tensors.items() if n.startswith(start)}


def _numbers(data, kind):
    if kind == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, {"I32": "<i4", "F32": "<f4"}[kind])


def read(data):
    """Splits a file in its header and segments."""
    assert data[:5] == b"JSAC\3"
    size, rate, channels, n_samples, quality = struct.unpack("<BIBIB", data[5:16])
    length = data[24]
    assert size == 25 + length + 4
    name = data[25 : 25 + length].decode("ascii")
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name)
    assert struct.unpack("<I", data[size - 4 : size]) == (zlib.crc32(data[: size - 4]),)
    header = Header(rate, channels, n_samples, quality, data[16:24], name)
    assert 1_000 <= rate <= 768_000 and 1 <= channels <= 32 and n_samples >= 1
    assert n_samples * channels <= 2_147_483_136
    assert header.n_frames * channels <= 36 * len(data)
    segments = []
    for number in range(channels * len(header.segment_frames)):
        n_words, step, rate, crc = struct.unpack("<HHBI", data[size : size + 9])
        words = data[size + 9 : size + 9 + 4 * n_words]
        assert len(words) == 4 * n_words and rate <= 63 and step <= 16_384
        assert words or step == rate == 0
        assert crc == zlib.crc32(struct.pack("<IHHB", number, n_words, step, rate) + words)
        segments.append(Segment(step, rate, words))
        size += 9 + len(words)
    assert size == len(data)
    return header, segments


class _Coder:
    """Decodes symbols, and encodes them again."""

    def __init__(self, words):
        self._words = words
        self._decoder, self._encoder = PlainDecoder(words), PlainEncoder()

    def decode(self, ends):
        symbol = self._decoder.decode_interval(ends)
        self._encoder.encode_interval(symbol, ends)
        return symbol

    def finish(self):
        assert self._encoder.data() == self._words


class _Model:
    """Says which table codes a symbol."""

    def __init__(self, tensors):
        self._tensors = {name: tensor.astype(np.int64) for name, tensor in tensors.items()}
        widths = self._tensors["tables"] + 1
        assert (widths.sum(1) == 2**24).all()
        self._ends = np.cumsum(widths, 1).tolist()

    def ends(self, group, places, inputs):
        """Gives the ends of the intervals of symbols, with inputs [symbols, inputs]."""
        w = self._tensors
        y = np.maximum(inputs @ w["first"][group] + w["first_bias"][group, places], 0) >> 8
        z = np.maximum(y @ w["second"] + w["second_bias"], 0) >> 16
        tables = (z @ w["third"] + w["third_bias"]) >> 24
        return [self._ends[table] for table in np.clip(tables, 0, len(self._ends) - 1)]


def decode_segment(segment, n_frames, weights):
    """Decodes the whole numbers of a segment.

    Returns:
        The values [256, frames] and the levels [10, rows of two frames].
    """
    if not segment.words:
        return np.zeros((256, n_frames), int), np.zeros((10, -(-n_frames // 2)), int)
    coder = _Coder(segment.words)
    magnitudes = _decode_magnitudes(
        coder, n_frames, segment.rate, _Model(weights.under("magnitudes"))
    )
    levels = _decode_levels(coder, magnitudes, segment.rate, _Model(weights.under("levels")))
    for t, f in np.argwhere(magnitudes == 17):
        magnitudes[t, f] = 16 + _decode_escape(coder)
    for t, f in np.argwhere(magnitudes):
        if coder.decode(_BIT):
            magnitudes[t, f] = -magnitudes[t, f]
    coder.finish()
    return magnitudes.T, levels.T


def _decode_magnitudes(coder, n_frames, rate, model):
    magnitudes = np.zeros((n_frames, 256), int)
    # Eight frames and 16 columns of zeros around.
    looks = np.zeros((n_frames + 8, 256 + 32), int)
    for t in range(n_frames):
        before, now = looks[t : t + 8], looks[t + 8]
        sums = [
            (before[-1], 8, 8),
            (before[-4:].sum(0), 16, 32),
            (before.sum(0), 2, 16),
        ]
        for group, first in enumerate((0, 2, 1, 3)):
            f = np.arange(first, 256, 4)
            inputs = [now[16 + f + i] for i in (-8, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 8)]
            for ago, reach in ((1, 4), (2, 3), (3, 1), (4, 0)):
                inputs += [before[-ago, 16 + f + i] for i in range(-reach, reach + 1)]
            for plane, reach, divisor in sums:
                total = sum(plane[16 + f + i] for i in range(-reach, reach + 1))
                inputs.append(total // divisor)
            inputs.append(np.full(len(f), rate))
            ends = model.ends(group, f // 32, np.stack(inputs, -1))
            magnitudes[t, f] = [coder.decode(own) for own in ends]
            now[16 + f] = _LOOKS[magnitudes[t, f]]
    return magnitudes


def _decode_levels(coder, magnitudes, rate, model):
    n_rows = -(-len(magnitudes) // 2)
    # Three rows and two bands of zeros around each plane.
    levels, m, n = (np.zeros((n_rows + 6, 14), int) for _ in range(3))
    for row in range(n_rows):
        for band in range(10):
            part = magnitudes[2 * row : 2 * row + 2, _EDGES[band] : _EDGES[band + 1]]
            m[3 + row, 2 + band] = _LOOKS[part].sum() // (2 * _SIZES[band])
            n[3 + row, 2 + band] = 64 * (part > 0).sum() // (2 * _SIZES[band])
    for u in range(3, 3 + n_rows):
        for group in (0, 1):
            bands = np.arange(group, 10, 2)
            b = 2 + bands
            inputs = [5 * levels[u, b + i] for i in (-2, -1, 1, 2)]
            for ago, reach in ((1, 2), (2, 1), (3, 0)):
                inputs += [5 * levels[u - ago, b + i] for i in range(-reach, reach + 1)]
            inputs += [plane[u, b + i] for plane in (m, n) for i in (-1, 0, 1)]
            inputs += [plane[u + i, b] for i in (-1, 1) for plane in (m, n)]
            inputs.append(np.full(len(b), rate))
            ends = model.ends(group, bands, np.stack(inputs, -1))
            levels[u, b] = [coder.decode(own) for own in ends]
    return levels[3 : 3 + n_rows, 2:12]


def _decode_escape(coder):
    k = 0
    while coder.decode(_BIT):
        k += 1
        assert k <= 20
    r = 1
    for _ in range(k):
        r = 2 * r + coder.decode(_BIT)
    return r


def decompress(data, weights):
    """Gives the sound [samples, channels] of a file."""
    header, segments = read(data)
    return make_sound(header, segments, decode_numbers(header, segments, weights), weights)


def decode_numbers(header, segments, weights):
    """Gives what `decode_segment` gives of each segment of a file."""
    frames = header.channels * header.segment_frames
    return [
        decode_segment(segment, n_frames, weights)
        for segment, n_frames in zip(segments, frames, strict=True)
    ]


def make_sound(header, segments, numbers, weights):
    """Gives the sound [samples, channels] that the numbers of all segments stand for."""
    assert weights.sha256.startswith(header.codec_sha256)
    n_segments, columns = len(header.segment_frames), []
    for first in range(0, len(segments), n_segments):
        own = slice(first, first + n_segments)
        signal = _channel_signal(segments[own], numbers[own], weights)[: header.n_coded]
        if header.sample_rate != 16_000:
            signal = soxr.resample(signal, 16_000, header.sample_rate, quality="HQ")
        columns.append(signal[: header.n_samples])
    return np.stack(columns, -1)


def _channel_signal(segments, numbers, weights):
    """Gives the signal of a channel at 16 kHz, and what lies behind its end."""
    coefficients = np.concatenate(
        [_coefficients(place, segments, numbers, weights) for place in range(len(segments))],
        axis=1,
    )
    n_frames = coefficients.shape[1]
    f, n = np.arange(256), np.arange(512)
    cosines = np.cos(math.pi / 256 * (n[:, None] + 0.5 + 128) * (f + 0.5))
    frames = (
        np.sin(math.pi * (n + 0.5) / 512)[:, None] * math.sqrt(2 / 256) * (cosines @ coefficients)
    )
    signal = np.zeros(256 * (n_frames + 1))
    for t in range(n_frames):
        signal[256 * t : 256 * t + 512] += frames[:, t]
    return signal[256:].astype(np.float32)


def _coefficients(place, segments, numbers, weights):
    """Gives the coefficients of the segment of that place in its channel."""
    settings, own = weights.settings, segments[place]
    n_frames = [values.shape[1] for values, _ in numbers]
    if not own.words:
        return np.zeros((256, n_frames[place]))
    start = sum(n_frames[:place])
    around = halo(settings) if len(segments) > 1 else 0
    frames = np.arange(start - around, start + n_frames[place] + around)
    exists = (frames >= 0) & (frames < sum(n_frames))
    q, v = np.zeros((2, 256, len(frames)))
    q[:, exists], v[:, exists] = (
        plane[:, frames[exists]] for plane in _in_steps_of(own, segments, numbers)
    )
    sign = _signs(frames)
    e = sign * np.where(v > 0, 10 ** ((-9 + 5 * (v - 11)) / 20), 0) * settings["damping"]
    planes = [
        np.clip(q, -2, 2),
        np.log1p(np.abs(q)),
        np.minimum(np.abs(q), 1),
        v / 4 - 1.5,
        2 * e,
        sign,
        np.full_like(q, own.rate / 8 - 4),
    ]
    planes = np.stack(planes, -1) * exists[:, None]
    seen, tensors = np.broadcast_to(exists, q.shape), weights.under("decoder")
    b, c = np.moveaxis(plain_networks.unet(planes, seen, settings, tensors, 256), -1, 0)
    d, reach = b + e * np.exp(np.clip(c, -8, 4)), settings["reach"]
    x = 2.0 ** ((own.step - 8192) / 256) * (q + reach * np.tanh(d / reach))
    return x[:, around : around + n_frames[place]]


def _in_steps_of(own, segments, numbers):
    """Gives values and levels of a whole channel [256, frames] in steps of a segment."""
    all_q, all_v = [], []
    for segment, (values, levels) in zip(segments, numbers, strict=True):
        octaves = (segment.step - own.step) / 256
        moved = np.clip(levels + octaves * 20 * math.log10(2) / 5, 0, 12)
        v = np.repeat(np.where(levels > 0, moved, 0), _SIZES, axis=0)
        all_q.append(values * 2.0**octaves)
        all_v.append(np.repeat(v, 2, axis=1)[:, : values.shape[1]])
    return np.concatenate(all_q, 1), np.concatenate(all_v, 1)


def alignment(settings):
    """Gives the frames at whose multiples what the networks see is cut."""
    c = settings["cell"][1]
    return max(c * 2 ** (len(settings[name]) - 1) for name in ("features", "encoder_features"))


def halo(settings):
    """Gives the frames that the networks see on each side of a segment."""
    c, halos = settings["cell"][1], []
    for name in ("features", "encoder_features"):
        depth = len(settings[name])
        halos.append(c * (2 + 4 * (2**depth - 1)) + c * 2 ** (depth - 1))
    multiple = math.lcm(alignment(settings), 2)
    return -(-max(halos) // multiple) * multiple


def _signs(frames):
    """Gives the signs [256, frames] of the noise."""
    x = (256 * frames + np.arange(256)[:, None]) % 2**32
    x = (x ^ x >> 16) * 0x85EBCA6B % 2**32
    x = (x ^ x >> 13) * 0xC2B2AE35 % 2**32
    x = x ^ x >> 16
    return np.where(x >= 2**31, 1, -1)
