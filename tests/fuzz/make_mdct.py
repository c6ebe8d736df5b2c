"""Files of version 3 for the corpus: valid ones, and faulty ones.

What they code fits the small codec of the tests alone.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxsparse.codec import context, mdct_container
from jaxsparse.codec.entropy import Encoder
from jaxsparse.codec.mdct_container import FRAMES_PER_SEGMENT, SILENCE, CodedSegment, MDCTHeader
from jaxsparse.codec.mdct_segment import (
    _BERNOULLI,
    MAX_ESCAPE_BITS,
    QuantizedSegment,
    _encode,
    encode_segment,
    silence,
)
from jaxsparse.transforms.grid import BAND_FRAMES, HOP_LENGTH, N_BANDS, N_LEVELS
from tests import small_codec
from tests.fuzz import mdct_file
from tests.fuzz.faults import Fault, flip

_RATE = 24
# 1/64.
_STEP = 8_192 - 6 * 256


def make_header(**changes: Any) -> MDCTHeader:
    """Makes a header of three frames in one channel, but for `changes`."""
    defaults: dict[str, Any] = {
        "sample_rate": 16_000,
        "channels": 1,
        "n_samples": 500,
        "codec": small_codec.NAME,
        "codec_sha256": small_codec.sha256()[:16],
    }
    return MDCTHeader(**(defaults | changes))


def make_segment(n_frames: int, salt: int = 0, rate: int = _RATE) -> QuantizedSegment:
    """Makes numbers by a rule: it needs no random ones, which may change."""
    f, t = np.arange(HOP_LENGTH)[:, None], np.arange(n_frames)
    place = f * 7 + t * 13 + 3 * salt
    signed = (place * place * 977) % 41 - 20
    # Loud ones at low frequencies, hardly any above.
    values = np.sign(signed) * (np.abs(signed) // (1 + f // 12))
    band, row = np.arange(N_BANDS)[:, None], np.arange(-(-n_frames // BAND_FRAMES))
    levels = (band * 5 + row * 3 + salt) ** 2 % 17 % N_LEVELS
    return QuantizedSegment(values.astype(np.int64), levels.astype(np.int64), rate)


def make_loud_segment() -> QuantizedSegment:
    """Makes escapes of every size, the largest ones of both signs, and all levels."""
    segment = make_segment(5)
    sizes = [2**bits for bits in range(MAX_ESCAPE_BITS + 1)]
    segment.values[100 : 100 + len(sizes), 2] = sizes
    segment.values[100 : 100 + len(sizes), 3] = [-15 - 2 * size for size in sizes]
    segment.values[99, 3] = 15 + 2 ** (MAX_ESCAPE_BITS + 1)
    segment.levels[:] = np.arange(segment.levels.size).reshape(segment.levels.shape) % N_LEVELS
    return segment


def code(segment: QuantizedSegment, step: int = _STEP) -> CodedSegment:
    """Codes numbers."""
    return CodedSegment(step, segment.rate, encode_segment(segment, small_codec.models()))


def make_file(header: MDCTHeader, **changes: int) -> bytes:
    """Makes a valid file, whose segments get `changes` of their rate and step."""
    rate, step = changes.get("rate", _RATE), changes.get("step", _STEP)
    segments = []
    for number in range(header.channels * header.n_segments):
        n_frames = header.segment_frames(number % header.n_segments)
        # Whole segments are not decoded by the fuzzer, but for silence.
        long = n_frames == FRAMES_PER_SEGMENT
        own = SILENCE if long else code(make_segment(n_frames, number, rate), step)
        segments.append(own)
    return mdct_container.pack(header, segments)


def valid_files() -> Iterator[tuple[str, bytes]]:
    """Makes small files of every kind."""
    changes: dict[str, dict[str, Any]] = {
        "mono": {},
        "stereo": {"channels": 2, "sample_rate": 44_100, "n_samples": 1_500},
        "one-sample": {"n_samples": 1},
        "two-frames": {"n_samples": 256, "quality": 255},
        "eight-frames": {"n_samples": 7 * 256, "quality": 1},
        "several-segments": {"n_samples": 322 * HOP_LENGTH, "channels": 2},
        "lowest-sample-rate": {"sample_rate": 1_000, "n_samples": 20},
        "highest-sample-rate": {"sample_rate": 768_000, "n_samples": 20_000},
        "longest-name": {"codec": 64 * "a"},
    }
    for name, change in changes.items():
        yield name, make_file(make_header(**change))
    header = make_header()
    yield "lowest-rate", make_file(header, rate=0, step=0)
    yield "highest-rate", make_file(header, rate=63, step=16_384)
    yield "silence", mdct_container.pack(header, [SILENCE])
    loud = make_header(n_samples=4 * HOP_LENGTH)
    yield "loud", mdct_container.pack(loud, [code(make_loud_segment())])
    three = make_header(channels=3)
    between = [code(make_segment(3)), SILENCE, code(make_segment(3, 1))]
    yield "silence-between", mdct_container.pack(three, between)
    hissing = silence(3)
    hissing.levels[:] = 7
    yield "levels-alone", mdct_container.pack(header, [code(hissing._replace(rate=40))])


def faulty_files() -> Iterator[Fault]:
    """Makes one file for each thing that can be wrong."""
    yield from _faults_of_bytes()
    yield from _faults_of_fields()
    yield from _faults_of_names()
    yield from _faults_of_segments()
    yield from _faults_of_code()


def _file(**changes: Any) -> mdct_file.File:
    file = mdct_file.take_apart(make_file(make_header(**changes)))
    assert file is not None
    return file


def _with(file: mdct_file.File, **changes: Any) -> bytes:
    changed = copy.deepcopy(file)
    for name, value in changes.items():
        if name in changed.fields:
            changed.fields[name] = value
        else:
            setattr(changed, name, value)
    return mdct_file.put_together(changed)


def _with_segment(file: mdct_file.File, **changes: Any) -> bytes:
    """Changes the first segment."""
    changed = copy.deepcopy(file)
    for name, value in changes.items():
        setattr(changed.segments[0], name, value)
    return mdct_file.put_together(changed)


def _starts(file: mdct_file.File) -> list[int]:
    """Gives where the segments and what follows them begin."""
    sizes = [9 + len(segment.data) for segment in file.segments]
    start = len(mdct_file.put_together(file)) - len(file.tail) - sum(sizes)
    return [start + sum(sizes[:number]) for number in range(len(sizes) + 1)]


def _faults_of_bytes() -> Iterator[Fault]:
    file = _file()
    data = mdct_file.put_together(file)
    start, end = _starts(file)
    in_header = "the file ends in its header"
    header_damaged = "the header is damaged"
    no_file = "not a .jsac file"
    yield Fault("wrong-magic", "a WAV file's magic", no_file, b"RIFF" + data[4:])
    yield Fault("version-alone", "ends after its version", in_header, data[:5])
    yield Fault("cut-in-numbers", "ends in the header's numbers", in_header, data[:20])
    yield Fault("cut-in-name", "ends in the codec's name", in_header, data[: start - 7])
    yield Fault("cut-in-checksum", "ends in the header's checksum", in_header, data[: start - 1])
    for value in (0, 29, 255):
        yield Fault(
            f"header-size-{value}",
            f"the header claims {value} bytes",
            header_damaged,
            _with(file, header_size=value),
        )
    short = _with(file, header_size=255, segments=[])
    yield Fault("header-size-all", "the header claims more than there is", in_header, short)
    yield Fault("header-bit", "a bit of the header flipped", header_damaged, flip(data, 12))
    yield Fault(
        "header-checksum", "the header's checksum flipped", header_damaged, flip(data, start - 1)
    )
    before, within = "the file ends before segment 0", "the file ends in segment 0"
    yield Fault("cut-after-header", "ends after its header", before, data[:start])
    yield Fault("cut-in-lead", "ends in front of a segment's words", before, data[: start + 8])
    yield Fault("cut-after-lead", "ends before a segment's words", within, data[: start + 9])
    yield Fault("cut-last-byte", "the last byte is missing", within, data[:-1])
    yield Fault("trailing-byte", "a byte follows", "1 bytes follow the last segment", data + b"\0")
    yield Fault("twice", "the file twice", f"{end} bytes follow the last segment", data + data)


def _faults_of_fields() -> Iterator[Fault]:
    file = _file()
    size = len(mdct_file.put_together(file))
    faulty_values = {
        "sample_rate": (0, 999, 768_001, 2**32 - 1),
        "channels": (0, 33, 255),
        "n_samples": (0, 2**31 - 511, 2**32 - 1),
    }
    limits = {
        "sample_rate": (1_000, 768_000),
        "channels": (1, 32),
        "n_samples": (1, 2_147_483_136),
    }
    for name, values in faulty_values.items():
        low, high = limits[name]
        for value in values:
            yield Fault(
                f"{name.replace('_', '-')}-{value}",
                f"{name} is {value}",
                f"{name} {value} is not from {low} to {high}",
                _with(file, **{name: value}),
            )
    yield Fault(
        "bomb-samples",
        "a few bytes that promise 37 hours",
        f"{size} bytes can't hold {(2**31 - 512) // 256 + 1} frames",
        _with(file, n_samples=2**31 - 512),
    )
    yield Fault(
        "bomb-sample-rate",
        "a few bytes that promise half an hour by their sample rate",
        f"{size} bytes can't hold {1_600_000 * 16 // 256 + 1} frames",
        _with(file, sample_rate=1_000, n_samples=1_600_000),
    )
    yield Fault(
        "bomb-channels",
        "32 channels that share a few bytes",
        f"{size} bytes can't hold {32 * 1_001} frames",
        _with(file, channels=32, n_samples=256_000),
    )
    yield Fault(
        "bomb-channels-samples",
        "more samples than a WAV file holds",
        f"n_samples {2**30} is not from 1 to {(2**31 - 512) // 32}",
        _with(file, channels=32, n_samples=2**30),
    )


def _faults_of_names() -> Iterator[Fault]:
    file = _file()
    for name, text in {
        "path": "../mdct",
        "nul": "mdct\0",
        "newline": "mdct\n",
        "long": 65 * "m",
    }.items():
        yield Fault(
            f"codec-{name}",
            f"the codec's name is {text!r}",
            f"codec {text!r} is not a usable name",
            _with(file, codec=text.encode()),
        )
    yield Fault(
        "codec-escapes",
        "the codec's name is 100 times NUL",
        "codec '" + 24 * r"\x00" + "... is not a usable name",
        _with(file, codec=bytes(100)),
    )
    yield Fault("codec-empty", "no codec's name", "the header is damaged", _with(file, codec=b""))
    contradiction = "the header contradicts itself"
    for name, fault, changes in (
        ("name-not-ascii", "the codec's name is not ASCII", {"codec": b"m\xc3\xb6ed"}),
        ("name-shorter", "the codec's name is said to be shorter", {"name_size": 3}),
        ("name-longer", "the codec's name is said to be longer", {"name_size": 40}),
    ):
        yield Fault(name, fault, contradiction, _with(file, **changes))


def _faults_of_segments() -> Iterator[Fault]:
    file = _file(channels=2)
    data = mdct_file.put_together(file)
    first, second, _ = _starts(file)
    damaged = "segment {} is damaged"
    for name, place in (("step", 2), ("rate", 4), ("checksum", 5), ("words", 10)):
        yield Fault(
            f"{name}-bit",
            f"a bit flipped in a segment's {name}",
            damaged.format(0),
            flip(data, first + place),
        )
    yield Fault(
        "second-bit", "a bit flipped in a later segment", damaged.format(1), flip(data, second + 10)
    )
    n_words = len(file.segments[0].data) // 4
    yield Fault(
        "n-words-huge",
        "a segment claims 65,535 words",
        "the file ends in segment 0",
        _with_segment(file, n_words=2**16 - 1),
    )
    yield Fault(
        "n-words-fewer",
        "a segment claims a word too few, checksum fits what is there",
        damaged.format(0),
        _with_segment(file, n_words=n_words - 1),
    )
    for name, fault, changes in (
        ("step-16385", "a step beyond all", {"step": 16_385}),
        ("rate-64", "a rate beyond all", {"rate": 64}),
        ("silence-step", "silence with a step", {"data": b"", "rate": 0}),
        ("silence-rate", "silence with a rate", {"data": b"", "step": 0}),
    ):
        yield Fault(
            name, f"{fault}, checksum fits", damaged.format(0), _with_segment(file, **changes)
        )
    exchanged = data[:first] + data[second:] + data[first:second]
    yield Fault("segments-exchanged", "two segments changed places", damaged.format(0), exchanged)
    yield Fault(
        "segment-missing",
        "a segment is missing",
        "the file ends before segment 1",
        _with(file, segments=file.segments[:1]),
    )
    yield Fault(
        "segment-too-many",
        "a third segment of silence",
        "9 bytes follow the last segment",
        _with(file, segments=[*file.segments, mdct_file.Segment(0, 0, b"")]),
    )
    yield Fault(
        "tail", "bytes follow", "5 bytes follow the last segment", _with(file, tail=b"later")
    )


def _faults_of_code() -> Iterator[Fault]:
    """Makes files whose checksums fit: of an encoder that errs, or somebody who means harm."""
    file = _file()
    data = file.segments[0].data
    noise = bytes((37 * i * i + 91) % 256 for i in range(64))
    longer = "the coefficients part is longer than what it codes"
    other = "the coefficients part is not as an encoder writes it"
    for name, fault, message, changed in (
        ("goes-on", "more words behind those of a segment", longer, data + noise[:12]),
        ("zero-goes-on", "a word of zeros behind those of a segment", longer, data + bytes(4)),
        ("cut", "the last word of a segment is missing", other, data[:-4]),
        (
            "last-bit",
            "a bit flipped that doesn't change what a segment codes",
            other,
            flip(data, len(data) - 4),
        ),
        ("noise", "noise instead of a segment", longer, noise),
        (
            "ones",
            "ones instead of a segment",
            "the coefficients part can't be decoded",
            b"\xff" * 16,
        ),
        (
            "silence-in-words",
            "words that code silence",
            "silence is not as an encoder writes it",
            _code_by_hand(silence(3), []),
        ),
        (
            "magnitude",
            f"an escape of {MAX_ESCAPE_BITS + 1} bits",
            "a magnitude is too large",
            _code_by_hand(_one_escape(), (MAX_ESCAPE_BITS + 1) * [1]),
        ),
    ):
        yield Fault(name, fault, message, _with_segment(file, data=changed), decoded=True)
    two = _file(channels=2)
    two.segments[1].data = noise
    yield Fault(
        "second-segment",
        "noise in the second segment, the first is sound",
        longer,
        mdct_file.put_together(two),
        decoded=True,
    )
    yield Fault(
        "other-rate",
        "another rate than that which the words were coded for",
        longer,
        _with_segment(file, rate=0),
        decoded=True,
    )
    yield Fault(
        "codec-other",
        "a codec with other weights",
        f"the file needs the codec {small_codec.NAME} with the weights {'0' * 16}..., "
        f"not {small_codec.sha256()[:16]}...",
        _with(file, sha256=bytes(8)),
        decoded=True,
    )


def _one_escape() -> QuantizedSegment:
    segment = silence(3)
    segment.values[2, 1] = context.N_MAGNITUDES
    return segment


def _code_by_hand(segment: QuantizedSegment, bits: Sequence[int]) -> bytes:
    """Codes magnitudes and levels as an encoder does, and then these bits."""
    coder, models = Encoder(), small_codec.models()
    magnitudes = np.abs(segment.values.T)
    for name, symbols, planes in (
        (
            "magnitudes",
            np.minimum(magnitudes, context.N_MAGNITUDES - 1),
            context.magnitude_planes(magnitudes),
        ),
        ("levels", segment.levels.T, context.level_planes(segment.levels.T, magnitudes)),
    ):
        layout = context.LAYOUTS[name]
        tables = context.all_tables(models[name], layout, *planes, _RATE)
        _encode(coder, layout, symbols, models[name].tables[tables])
    for bit in bits:
        coder(np.array([bit]), _BERNOULLI, np.array([0.5]))
    return coder.data()
