"""Files of versions 1 and 2 for the corpus: valid ones, and faulty ones."""

import copy
import json
import struct
from collections.abc import Iterator
from fractions import Fraction
from importlib import resources
from typing import Any

import numpy as np

from jaxsparse.codec import container
from jaxsparse.codec.entropy import Encoder, LevelClass, code_bitmap, code_levels
from jaxsparse.codec.header import FIELDS, Header, Integer
from jaxsparse.codec.segment import PARTS, Segment, complete_mask, encode_segment
from tests.fuzz import stft_file
from tests.fuzz.faults import Fault, flip

NETWORK = "random-95"
POSITIONS: dict[str, Any] = {"coded_share": "1", "loudest": False}
RANDOM: dict[str, Any] = {"coded_share": "0", "loudest": False}

_NO_FLAG = "a flag in the header is neither 0 nor 1"
_OF_NOTHING = "no positions are stored that could be those of the loudest bins"


def _network_sha256() -> str:
    card = resources.files("jaxsparse") / "weights" / f"{NETWORK}.json"
    return json.loads(card.read_text(encoding="utf-8"))["sha256"]


def make_header(**changes: Any) -> Header:
    """9 bins by 6 frames in a segment, two segments."""
    defaults: dict[str, Any] = {
        "sample_rate": 16_000,
        "channels": 1,
        "n_samples": 35,
        "sparsity": "0.7",
        "coded_share": "0.5",
        "loudest": True,
        "seed": 5,
        "network": NETWORK,
        "network_sha256": _network_sha256(),
        "phase_threshold": 40,
        "frames_per_segment": 6,
        "n_fft": 16,
        "win_length": 16,
        "hop_length": 4,
    }
    return Header(**(defaults | changes))


def make_segment(header: Header, channel: int, index: int) -> Segment:
    """Levels and phases by a rule: they need no random numbers, which may change."""
    n_bins, n_frames = header.segment_shape(index)
    place = np.arange(n_bins)[:, None] * 7 + np.arange(n_frames) * 13 + 5 * channel + 3 * index
    mdb = 60_000 - (place * place * 977) % 61_000
    order = np.argsort(-mdb, axis=None, kind="stable")
    chosen = np.zeros(mdb.shape, bool)
    chosen.reshape(-1)[order[: header.coded_count(index)]] = True
    mask = complete_mask(header, channel, index, chosen)
    levels = np.where(mask, mdb // header.value_step_mdb, 0)
    stored = np.ones(mdb.shape, bool)
    if header.phase_threshold is not None:
        stored = mdb >= mdb.max() - 1000 * header.phase_threshold
    phases = np.where(stored, place % 2**header.phase_bits, 0)
    return Segment(chosen, mask, levels, stored, phases)


def make_file(header: Header) -> bytes:
    """A valid file."""
    places = [(c, s) for c in range(header.channels) for s in range(header.n_segments)]
    return container.pack(
        header,
        [encode_segment(header, *place, make_segment(header, *place)) for place in places],
    )


def valid_files() -> Iterator[tuple[str, bytes]]:
    """Small files of every kind."""
    changes: dict[str, dict[str, Any]] = {
        "mixed": {},
        "positions": POSITIONS,
        "random": RANDOM,
        "all-phases": {"phase_threshold": None},
        "one-sample": {"n_samples": 1},
        "one-frame": {"n_samples": 9, "frames_per_segment": 1},
        "stereo": {"channels": 2, "sample_rate": 44_100, "n_samples": 40},
        "nothing-kept": {"sparsity": "0.999"},
        "nearly-all-kept": {"sparsity": "0.001", **RANDOM},
        "coarse": {"value_step_mdb": 10_000, "phase_bits": 1},
        "fine": {"value_step_mdb": 50, "phase_bits": 12},
        "smallest-transform": {"n_fft": 4, "win_length": 4, "hop_length": 1, "n_samples": 12},
        "wide": {"n_fft": 64, "win_length": 64, "hop_length": 32, "n_samples": 120},
        "not-put-back": {"keep_observed": False, "seed": 2**64 - 1},
        # Version 2.
        "loudest": {"coded_share": "1"},
        "loudest-quarter": {"coded_share": "0.25"},
        "some-positions": {"coded_share": "0.333", "loudest": False},
    }
    for name, change in changes.items():
        yield name, make_file(make_header(**change))


def faulty_files() -> Iterator[Fault]:
    """One file for each thing that can be wrong."""
    yield from _faults_of_bytes()
    yield from _faults_of_fields()
    yield from _faults_of_texts()
    yield from _faults_of_parts()
    yield from _faults_of_networks()
    yield from _faults_of_code()


def _file(**changes: Any) -> stft_file.File:
    file = stft_file.take_apart(make_file(make_header(**changes)))
    assert file is not None
    return file


def _with(file: stft_file.File, **changes: Any) -> bytes:
    changed = copy.deepcopy(file)
    for name, value in changes.items():
        if name in changed.fields:
            changed.fields[name] = value
        else:
            setattr(changed, name, value)
    return stft_file.put_together(changed)


def _part_starts(file: stft_file.File) -> list[int]:
    """Where the parts and what follows them begin."""
    sizes = [8 + len(payload) for payload in file.payloads]
    start = len(stft_file.put_together(file)) - len(file.tail) - sum(sizes)
    return [start + sum(sizes[:number]) for number in range(len(sizes) + 1)]


def _faults_of_bytes() -> Iterator[Fault]:
    file = _file()
    data = stft_file.put_together(file)
    size = len(data)
    in_header = "the file ends in its header"
    header_damaged = "the header is damaged"
    yield Fault("empty", "nothing in it", "is empty", b"")
    yield Fault("one-byte", "ends after its first byte", in_header, data[:1])
    yield Fault("other-byte", "one byte of something else", "not a .jsac file", b"R")
    yield Fault("magic-alone", "ends after its magic", in_header, data[:4])
    yield Fault("wrong-magic", "a WAV file's magic", "not a .jsac file", b"RIFF" + data[4:])
    yield Fault("magic-case", "magic in lower case", "not a .jsac file", b"jsac" + data[4:])
    for version in (0, 4, 255):
        yield Fault(
            f"version-{version}",
            f"version {version}, checksum fits",
            f"version {version} of the format is not known, only 1 to 3",
            _with(file, version=version),
        )
    start, *_ = starts = _part_starts(file)
    yield Fault("cut-in-header", "ends in the header's numbers", in_header, data[:60])
    yield Fault("cut-in-texts", "ends in the header's texts", in_header, data[: start - 6])
    for value, message in ((0, header_damaged), (60, header_damaged), (65535, in_header)):
        yield Fault(
            f"header-size-{value}",
            f"the header claims {value} bytes",
            message,
            stft_file.put_together(file, header_size=value),
        )
    yield Fault("header-bit", "a bit of the header flipped", header_damaged, flip(data, 25))
    yield Fault(
        "header-checksum", "the header's checksum flipped", header_damaged, flip(data, start - 1)
    )
    for number, where in (
        *((0, "after-header"), (1, "after-mask"), (2, "after-values"), (3, "after-phase-bitmap")),
        *((4, "after-segment"), (7, "before-last-part")),
    ):
        cut = starts[number]
        yield Fault(
            f"cut-{where}",
            f"ends {where.replace('-', ' ')}",
            f"the file is truncated: {cut} of {size} bytes",
            data[:cut],
        )
    yield Fault(
        "cut-last-byte",
        "the last byte is missing",
        f"the file is truncated: {size - 1} of {size} bytes",
        data[:-1],
    )
    yield Fault(
        "trailing-byte",
        "a byte follows",
        f"the file is longer than it should be: {size + 1} of {size} bytes",
        data + b"\0",
    )
    yield Fault(
        "twice",
        "the file twice",
        f"the file is longer than it should be: {2 * size} of {size} bytes",
        data + data,
    )
    yield Fault(
        "file-size-huge",
        "the header claims 2^64 - 1 bytes",
        f"the file is truncated: {size} of {2**64 - 1} bytes",
        stft_file.put_together(file, file_size=2**64 - 1),
    )
    yield Fault(
        "file-size-0",
        "the header claims no bytes",
        f"the file is longer than it should be: {size} of 0 bytes",
        stft_file.put_together(file, file_size=0),
    )


def _faults_of_fields() -> Iterator[Fault]:
    file = _file()
    size = len(stft_file.put_together(file))
    faulty_values = {
        "sample_rate": (0, 999, 2**32 - 1),
        "channels": (0, 255),
        "n_samples": (0, 2**31, 2**64 - 1),
        "coded_rate": (0, 48_000),
        "n_fft": (0, 2, 2**31),
        "win_length": (0, 17),
        "hop_length": (0, 1, 9),
        "frames_per_segment": (0, 65535),
        "value_step_mdb": (0, 49, 2**32 - 1),
        "phase_bits": (0, 13, 255),
    }
    limits = {each.name: (each.low, each.high) for each in FIELDS if isinstance(each, Integer)}
    # Where the number alone would do, but not with an n_fft of 16.
    narrower = {("win_length", 17): (4, 16), ("hop_length", 1): (2, 8), ("hop_length", 9): (2, 8)}
    for name, values in faulty_values.items():
        for value in values:
            low, high = narrower.get((name, value), limits[name])
            yield Fault(
                f"{name.replace('_', '-')}-{value}",
                f"{name} is {value}",
                f"{name} {value} is not from {low} to {high}",
                _with(file, **{name: value}),
            )
    for name in ("window", "pad_mode", "mask"):
        yield Fault(
            f"{name.replace('_', '-')}-unknown",
            f"{name} is a choice that there is not",
            "choice 9 in the header is not known",
            _with(file, **{name: 9}),
        )
    for name in ("center", "keep_observed"):
        yield Fault(
            f"{name.replace('_', '-')}-2",
            f"{name} is neither yes nor no",
            _NO_FLAG,
            _with(file, **{name: 2}),
        )
    shared = _file(coded_share="0.25")
    one_way = "version 2 of the format says what version 1 can say"
    for name, fault, message, numbers in (
        (
            "share-1001",
            "more than all",
            "coded_share of 1001 thousandths is more than all",
            (1001, 1),
        ),
        ("share-0-loudest", "the loudest ones of none", _OF_NOTHING, (0, 1)),
        ("share-0", "version 2 where version 1 would do", one_way, (0, 0)),
        ("share-500-loudest", "version 2 where version 1 would do", one_way, (500, 1)),
        ("share-1000", "version 2 where version 1 would do", one_way, (1000, 0)),
        ("loudest-2", "loudest is neither yes nor no", _NO_FLAG, (250, 2)),
    ):
        coded_share, loudest = numbers
        yield Fault(name, fault, message, _with(shared, coded_share=coded_share, loudest=loudest))
    framed = "frames must be centred and n_fft even"
    yield Fault("n-fft-odd", "n_fft is odd", framed, _with(file, n_fft=17))
    yield Fault("not-centred", "frames are not centred", framed, _with(file, center=0))
    yield Fault(
        "bomb-samples",
        "a few bytes that promise 37 hours",
        f"{size} bytes can't hold {1 + (2**31 - 1000) // 4} frames",
        _with(file, n_samples=2**31 - 1000),
    )
    yield Fault(
        "bomb-channels",
        "32 channels that share a few bytes",
        f"{size} bytes can't hold 64 segments",
        _with(file, channels=32),
    )
    yield Fault(
        "bomb-channels-samples",
        "more samples than a WAV file holds",
        f"{2**30} samples in 32 channels, too many",
        _with(file, channels=32, n_samples=2**30),
    )
    yield Fault(
        "bomb-empty-parts",
        "40 segments of nothing that promise three minutes",
        "1395 bytes can't hold 12080 frames",
        _with(
            file,
            n_samples=40 * 302 * 256 - 256,
            n_fft=2048,
            win_length=2048,
            hop_length=256,
            frames_per_segment=302,
            payloads=[b""] * 160,
        ),
    )
    yield Fault(
        "bomb-frames",
        "many segments of one frame",
        f"{size} bytes can't hold 501 segments",
        _with(file, n_samples=1000, hop_length=2, frames_per_segment=1),
    )


def _faults_of_texts() -> Iterator[Fault]:
    file = _file()
    sparsity, network = file.texts
    for name, text in {
        "zero": "0.0",
        "one": "1",
        "negative": "-0.5",
        "nan": "nan",
        "infinite": "inf",
        "exponent": "5e-1",
        "comma": "0,5",
        "newline": "0.5\n",
        "nul": "0.5\0",
        "empty": "",
        "long": "0." + 19 * "1",
        "fraction": "1/2",
    }.items():
        yield Fault(
            f"sparsity-{name}",
            f"sparsity is {text!r}",
            f"sparsity {text!r} is not a decimal between 0 and 1",
            _with(file, texts=[text.encode(), network]),
        )
    for name, text in {
        "path": "../mixed",
        "empty": "",
        "nul": "mixed\0",
        "newline": "mixed\n",
        "long": 65 * "m",
    }.items():
        yield Fault(
            f"network-{name}",
            f"the network's name is {text!r}",
            f"network {text!r} is not a usable name",
            _with(file, texts=[sparsity, text.encode()]),
        )
    yield Fault(
        "network-escapes",
        "the network's name is 100 times NUL",
        "network '" + 24 * r"\x00" + "... is not a usable name",
        _with(file, texts=[sparsity, bytes(100)]),
    )
    contradiction = "the header contradicts itself"
    for name, fault, texts in (
        ("texts-not-ascii", "a text is not ASCII", [sparsity, b"m\xc3\xb6xed"]),
        ("texts-missing", "there is no network's name", [sparsity + b"+mixed"]),
        ("texts-three", "there is a third text", [sparsity, network, b"more"]),
    ):
        yield Fault(name, fault, contradiction, _with(file, texts=texts))


def _faults_of_parts() -> Iterator[Fault]:
    file = _file()
    data = stft_file.put_together(file)
    starts = _part_starts(file)
    for number in (0, 1, 2, 3, 5):
        name = PARTS[number % 4]
        yield Fault(
            f"{name.replace('_', '-')}-bit-{number // 4}",
            f"a bit of the {name} part of segment {number // 4} flipped",
            f"the {name} part of segment {number // 4} is damaged",
            flip(data, starts[number] + 9),
        )
    yield Fault(
        "part-checksum",
        "a part's checksum flipped",
        "the values part of segment 0 is damaged",
        flip(data, starts[1] + 4),
    )
    huge = data[: starts[1]] + b"\xff" * 4 + data[starts[1] + 4 :]
    yield Fault(
        "part-length-huge",
        "a part claims 2^32 - 1 bytes",
        "the file ends in the values part of segment 0",
        huge,
    )
    exchanged = data[: starts[0]] + data[starts[4] :] + data[starts[0] : starts[4]]
    yield Fault(
        "segments-exchanged",
        "two segments changed places",
        "the mask part of segment 0 is damaged",
        exchanged,
    )
    yield Fault(
        "segment-missing",
        "a segment is missing, sizes fit",
        "the file ends before the mask part of segment 1",
        _with(file, payloads=file.payloads[:4]),
    )
    yield Fault(
        "part-missing",
        "the last part is missing, sizes fit",
        "the file ends before the phases part of segment 1",
        _with(file, payloads=file.payloads[:7]),
    )
    yield Fault(
        "part-too-many",
        "a ninth part, sizes fit",
        "8 bytes follow the last segment",
        _with(file, payloads=[*file.payloads, b""]),
    )
    yield Fault(
        "tail",
        "bytes follow, sizes fit",
        "5 bytes follow the last segment",
        _with(file, tail=b"later"),
    )


def _faults_of_networks() -> Iterator[Fault]:
    file = _file()
    yield Fault(
        "network-unknown",
        "a network that there is not",
        "the decoder 'nobody' is not installed: give its .safetensors file",
        _with(file, texts=[file.texts[0], b"nobody"]),
        decoded=True,
    )
    yield Fault(
        "network-other",
        "a network with other weights",
        f"the file needs the network {NETWORK} with the weights {'0' * 64}, "
        f"not {_network_sha256()}",
        _with(file, sha256=bytes(32)),
        decoded=True,
    )


def _faults_of_code() -> Iterator[Fault]:
    """Checksums fit here: an encoder that errs, or somebody who means harm."""
    file = _file()
    noise = bytes((37 * i * i + 91) % 256 for i in range(64))

    def fault(
        name: str,
        fault: str,
        message: str,
        number: int,
        payload: bytes,
        source: stft_file.File = file,
    ) -> Fault:
        payloads = [*source.payloads[:number], payload, *source.payloads[number + 1 :]]
        return Fault(name, fault, message, _with(source, payloads=payloads), decoded=True)

    for number, name in enumerate(PARTS):
        said = name.replace("_", " ")
        slug = name.replace("_", "-")
        # The values part begins with three numbers.
        start = file.payloads[number][:6] if name == "values" else b""
        yield fault(
            f"{slug}-odd",
            f"the {said} part is not made of whole words",
            f"the {said} part has {len(file.payloads[number]) - len(start) + 1} bytes, "
            "not a multiple of 4",
            number,
            file.payloads[number] + b"x",
        )
        yield fault(
            f"{slug}-goes-on",
            f"more words behind those of the {said} part",
            f"the {said} part is longer than what it codes",
            number,
            file.payloads[number] + noise[:12],
        )
        yield fault(
            f"{slug}-cut",
            f"the last word of the {said} part is missing",
            f"the {said} part is not as an encoder writes it",
            number,
            file.payloads[number][:-4],
        )
        yield fault(
            f"{slug}-last-bit",
            f"a bit flipped that doesn't change what the {said} part codes",
            f"the {said} part is not as an encoder writes it",
            number,
            flip(file.payloads[number], len(file.payloads[number]) - 4),
        )
        yield fault(
            f"{slug}-noise",
            f"noise instead of the {said} part",
            f"the {said} part is longer than what it codes",
            number,
            start + noise,
        )
        yield fault(
            f"{slug}-ones",
            f"ones instead of the {said} part",
            f"the {said} part can't be decoded",
            number,
            start + b"\xff" * 16,
        )
    yield fault(
        "mask-empty",
        "nothing in the mask part",
        "the mask part is not as an encoder writes it",
        0,
        b"",
    )
    yield fault(
        "mask-count",
        "a position too many",
        "the mask part holds another number of positions than 8",
        0,
        _mask_of_one_more(),
    )
    yield fault(
        "mask-second-segment",
        "noise in the second segment, the first is sound",
        "the mask part is longer than what it codes",
        4,
        noise,
    )
    yield fault(
        "values-empty",
        "nothing in the values part",
        "the values part ends before its first value",
        1,
        b"",
    )
    contradicts = "the values part contradicts itself"
    base, span, threshold = struct.unpack_from("<hHH", file.payloads[1])
    for name, text, numbers in (
        ("values-span", "levels that reach over 2^16 steps", (base, 2**16 - 1, threshold)),
        ("values-span-163", "levels that reach over 81.5 dB", (base, 163, threshold)),
        ("values-threshold", "a threshold above all levels", (base, span, span + 1)),
    ):
        payload = struct.pack("<hHH", *numbers) + file.payloads[1][6:]
        yield fault(name, text, contradicts, 1, payload)
    loud = struct.pack("<hHH", 2**15 - 1, span, threshold) + file.payloads[1][6:]
    yield fault(
        "values-loud", "levels of 16,000 dB", "the file holds levels that no audio has", 1, loud
    )
    silent = _file(sparsity="0.999")
    yield fault(
        "values-of-nothing",
        "values of a segment that keeps none",
        "the values part holds values of a segment that keeps none",
        1,
        bytes(6),
        silent,
    )
    drawn = _file(**RANDOM)
    yield fault(
        "mask-of-seed",
        "positions where the seed gives them",
        "the mask part is longer than what it codes",
        0,
        bytes(4),
        drawn,
    )
    yield fault(
        "values-short-of-span",
        "levels that don't reach as far as they say",
        contradicts,
        1,
        _values_of_a_wider_span(),
        drawn,
    )
    stored = _file(phase_threshold=None)
    yield fault(
        "phase-bitmap-of-all",
        "a bitmap where all phases are stored",
        "the phase bitmap part is longer than what it codes",
        2,
        bytes(4),
        stored,
    )


def _mask_of_one_more() -> bytes:
    """The mask part of the first segment with a position too many."""
    header = make_header()
    chosen = np.ascontiguousarray(make_segment(header, 0, 0).chosen.T)
    density = Fraction(header.coded_count(0), chosen.size)
    chosen.reshape(-1)[np.argmin(chosen)] = True
    coder = Encoder()
    code_bitmap(coder, chosen, None, density)
    return coder.data()


def _values_of_a_wider_span() -> bytes:
    """The values part of the first segment of a random mask with a span that is not reached."""
    header = make_header(**RANDOM)
    _, mask, levels = (np.array(array.T) for array in make_segment(header, 0, 0)[:3])
    base = int(levels[mask].min())
    span = int(levels[mask].max()) - base + 1
    coder = Encoder()
    relative = np.where(mask, levels - base, 0)
    code_levels(coder, relative, [LevelClass(mask, 0, span)], header.value_step_mdb)
    return struct.pack("<hHH", base, span, span) + coder.data()
