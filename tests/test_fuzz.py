import contextlib
import dataclasses
import functools
import platform
import random
import re
import subprocess
import sys
import tracemalloc
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsparse import codec
from jaxsparse.cli import main
from jaxsparse.codec import container, mdct_container, mdct_segment
from jaxsparse.codec.mdct_container import SILENCE
from jaxsparse.codec.segment import Segment, decode_segment
from jaxsparse.errors import ContainerError
from jaxsparse.nn.sparse_cnn import SparseCNNConfig, sparse_cnn
from jaxsparse.pretrained import Card, Pretrained
from tests import plain_mdct, small_codec
from tests.fuzz import check as fuzz_check
from tests.fuzz import make, make_mdct, mdct_file, stft_file
from tests.fuzz.check import MAX_BINS, MAX_FRAMES, check
from tests.fuzz.mutate import mutate

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "tests" / "fuzz" / "corpus"
VALID = {path.stem: path.read_bytes() for path in sorted((CORPUS / "valid").iterdir())}
MDCT_VALID = {p.stem: p.read_bytes() for p in sorted((CORPUS / "mdct" / "valid").iterdir())}
FOUND = sorted([*(CORPUS / "found").iterdir(), *(CORPUS / "mdct" / "found").iterdir()])
# | file | bytes | what is wrong | message |
ROW = re.compile(r"\| (\S+\.jsac) \| (\d+) \| (.*) \| `(.*)` \|")
OPTIONS = {"faulty": [], "mdct/faulty": ["--codec", str(small_codec.PATH)]}
TABLE = [
    (folder, *row)
    for folder in OPTIONS
    for row in ROW.findall((CORPUS / folder / "README.md").read_text(encoding="utf-8"))
]
SHA256 = container.unpack(VALID["mixed"]).header.network_sha256
stft_files, mdct_files = (st.sampled_from(sorted(v.values())) for v in (VALID, MDCT_VALID))
randoms = st.randoms(use_true_random=False)


@functools.cache
def untrained():
    """A small network in the place of the one that the files name."""
    network = sparse_cnn(SparseCNNConfig(kernel_sizes=(3,), features=2))
    return Pretrained(network, network.init(jax.random.key(1)), Card(SHA256))


def pieces(name):
    file = stft_file.take_apart(VALID[name])
    assert file is not None
    return file


@functools.cache
def nine_segments():
    """A file of a segment in each channel, no two of which are alike; and its segments."""
    segments = [make_mdct.code(make_mdct.make_segment(2, salt, 5 * salt)) for salt in range(9)]
    return mdct_container.pack(make_mdct.make_header(channels=9, n_samples=1), segments), segments


def peak_of(run, *arguments):
    """Bytes that a call holds at most, whether it refuses its arguments or not."""
    tracemalloc.start()
    try:
        with contextlib.suppress(ContainerError):
            run(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def check_decompress(data, **options):
    """Decoding gives all samples, finite, or the package's own error."""
    try:
        samples, rate = codec.decompress(data, **options)
    except ContainerError as error:
        assert str(error).isprintable()
        return False
    mdct = mdct_container.is_mdct(data)
    unpack = partial(mdct_container.unpack, conceal=True) if mdct else container.unpack
    header = unpack(data).header
    assert rate == header.sample_rate
    assert samples.shape == (header.n_samples, header.channels)
    assert np.isfinite(samples).all()
    return True


def test_corpus_is_what_the_script_makes():
    made = make.files()
    committed = {
        f"{folder}/{path.name}": path.read_bytes()
        for folder in make.FOLDERS
        for path in (CORPUS / folder).iterdir()
    }
    assert sorted(committed) == sorted(made)
    assert [name for name in made if made[name] != committed[name]] == []


@pytest.mark.parametrize("folder", OPTIONS)
def test_table_lists_every_faulty_file_with_its_size(folder):
    sizes = {path.name: path.stat().st_size for path in (CORPUS / folder).glob("*.jsac")}
    assert {name: int(size) for where, name, size, *_ in TABLE if where == folder} == sizes
    assert sum(sizes.values()) < 100_000 and max(sizes.values()) < 2000


@pytest.mark.parametrize(
    ("folder", "name", "size", "fault", "message"), TABLE, ids=[f"{t[0]}/{t[1]}" for t in TABLE]
)
def test_faulty_file_is_refused(folder, name, size, fault, message, tmp_path, capsys):
    path = CORPUS / folder / name
    decompress = ["decompress", str(path), str(tmp_path / "out.wav"), *OPTIONS[folder]]
    assert main(decompress) == 2
    assert capsys.readouterr() == ("", f"jaxsparse: {path}: {message}\n")
    assert list(tmp_path.iterdir()) == []
    if "(*decoded*)" in fault:
        assert main(["info", str(path)]) == 0
    else:
        assert main(["info", str(path)]) == 2
        assert capsys.readouterr() == ("", f"jaxsparse: {path}: {message}\n")


@pytest.mark.parametrize("name", VALID)
def test_valid_file_is_accepted_whole(name):
    header = container.unpack(VALID[name]).header
    assert check(VALID[name]) == header.channels * header.n_segments > 0


@pytest.mark.parametrize("name", MDCT_VALID)
def test_valid_mdct_file_is_accepted_whole(name):
    header = mdct_container.unpack(MDCT_VALID[name]).header
    assert check(MDCT_VALID[name]) == header.channels * header.n_segments > 0


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.name)
def test_what_the_fuzzer_found(path):
    check(path.read_bytes())


@settings(max_examples=100)
@given(data=stft_files | mdct_files, rng=randoms)
def test_changed_files_are_refused_or_keep_their_promises(data, rng):
    check(mutate(data, rng))


@settings(max_examples=40)
@given(data=stft_files, rng=randoms)
def test_memory_is_bounded(data, rng):
    data = mutate(data, rng)
    by_size = 100_000 + 100 * len(data)
    assert peak_of(container.describe, data) < by_size
    try:
        header, parts = container.unpack(data)
    except ContainerError:
        return
    n_bins, n_frames = header.segment_shape(0)
    if n_bins * n_frames <= MAX_BINS:
        # Half the bins of a frame are coded at once, by four arrays as wide as the levels' range.
        tables = 8 * header.max_span * (30 + 4 * n_bins // 2)
        peak = peak_of(decode_segment, header, 0, 0, parts[0])
        assert peak < by_size + tables + 150 * n_bins * n_frames


@settings(max_examples=20)
@given(data=mdct_files, rng=randoms)
def test_memory_of_mdct_files_is_bounded(data, rng):
    data = mutate(data, rng)
    by_size = 100_000 + 100 * len(data)
    assert peak_of(mdct_container.describe, data) < by_size
    assert peak_of(partial(mdct_container.unpack, conceal=True), data) < by_size
    try:
        header, (first, *_) = mdct_container.unpack(data)
    except ContainerError:
        return
    if (n_frames := header.segment_frames(0)) <= MAX_FRAMES:
        decode = partial(mdct_segment.decode_segment, models=small_codec.models())
        peak = peak_of(decode, first.data, n_frames, first.rate)
        # A group of a frame has tables of 18 symbols, and 38 inputs; then there are few planes.
        assert peak < by_size + 8 * 64 * 6 * (18 + 38) + 8 * 256 * 12 * (8 + n_frames)


@settings(max_examples=15)
@given(rng=randoms)
def test_changed_parts_decompress_to_finite_samples_or_are_refused(rng):
    """The header stays, or a network would be compiled for each of its changes."""
    changed = stft_file.take_apart(mutate(VALID["mixed"], rng))
    payloads = [] if changed is None else changed.payloads
    data = stft_file.put_together(dataclasses.replace(pieces("mixed"), payloads=payloads))
    check_decompress(data, decoder=untrained())


@settings(max_examples=15)
@given(data=mdct_files, rng=randoms, conceal=st.booleans())
def test_changed_mdct_files_decompress_to_finite_samples_or_are_refused(data, rng, conceal):
    changed = mdct_file.take_apart(mutate(data, rng))
    # Clips of at most 32 frames are decoded in one array, others would compile another network.
    if changed is None or not changed.frames or changed.frames[0] > 32:
        return
    changed.sha256 = bytes.fromhex(small_codec.sha256())[:8]
    data = mdct_file.put_together(changed)
    check_decompress(data, codec=codec.load_codec(small_codec.PATH), conceal=conceal)


@pytest.mark.parametrize("n_lost", [1, 2, 7])
@settings(max_examples=15)
@given(rng=randoms)
def test_damage_silences_what_is_damaged_alone(n_lost, rng):
    """Whatever becomes of some neighbours: their lengths, checksums or words."""
    data, segments = nine_segments()
    sizes = [9 + len(segment.data) for segment in segments]
    first = rng.randint(0, len(segments) - n_lost)
    spoiled = bytearray(data)
    for number in range(first, first + n_lost):
        start = len(data) - sum(sizes[number:])
        for place in rng.sample(range(sizes[number]), rng.randint(1, 9)):
            spoiled[start + place] ^= rng.randint(1, 255)
    found = mdct_container.unpack(bytes(spoiled), conceal=True).segments
    lost = range(first, first + n_lost)
    assert found == [SILENCE if i in lost else each for i, each in enumerate(segments)]


@pytest.mark.parametrize("name", MDCT_VALID)
def test_valid_mdct_file_is_decoded_as_the_page_says(name):
    """``tests/plain_mdct.py`` knows the description alone, not its tables and models in NumPy."""
    weights = plain_mdct.Weights(small_codec.PATH.read_bytes())
    plain, segments = plain_mdct.read(MDCT_VALID[name])
    numbers = plain_mdct.decode_numbers(plain, segments, weights)
    for (values, levels), own in zip(numbers, segments, strict=True):
        n_frames = values.shape[1]
        found = mdct_segment.decode_segment(own.words, n_frames, own.rate, small_codec.models())
        np.testing.assert_array_equal(found.values, values)
        np.testing.assert_array_equal(found.levels, levels)


@pytest.mark.slow
@settings(max_examples=150)
@given(data=stft_files, rng=randoms)
def test_changed_files_decompress_to_finite_samples_or_are_refused(data, rng):
    changed = stft_file.take_apart(mutate(data, rng))
    if changed is None or changed.fields["n_samples"] > 10_000 or len(changed.texts) != 2:
        return
    texts = [changed.texts[0], b"mixed"]
    data = stft_file.put_together(
        dataclasses.replace(changed, texts=texts, sha256=bytes.fromhex(SHA256))
    )
    check_decompress(data, decoder=untrained())


def test_changes_reach_deep_code_and_shallow_code():
    rng = random.Random(0)
    messages = []
    accepted = 0
    for _ in range(300):
        data = mutate(VALID["mixed"], rng)
        try:
            header, parts = container.unpack(data)
            decode_segment(header, 0, 0, parts[0])
            accepted += data != VALID["mixed"]
        except ContainerError as error:
            messages.append(str(error))
    assert accepted > 20
    for part in ("mask", "values", "phase bitmap", "phases"):
        deep = [m for m in messages if m.startswith(f"the {part} part") and " of segment " not in m]
        assert len(deep) >= 5
    assert sum(" is not from " in message for message in messages) >= 5
    assert len(set(messages)) > 40


def test_changes_of_mdct_files_reach_deep_code_and_shallow_code():
    rng = random.Random(0)
    messages, loudest = [], []
    for _ in range(100):
        data = mutate(MDCT_VALID["one-sample"], rng)
        try:
            header, (first, *_) = mdct_container.unpack(data)
            decoded = mdct_segment.decode_segment(
                first.data, header.segment_frames(0), first.rate, small_codec.models()
            )
            loudest += [np.abs(decoded.values).max()] * (data != MDCT_VALID["one-sample"])
        except ContainerError as error:
            messages.append(str(error))
    # Escapes among them.
    assert len(loudest) > 20 and sum(a > 100 for a in loudest) >= 3
    assert sum("the coefficients part" in message for message in messages) >= 10
    for part in ("is not from ", "segment 0", "header", "follow the last segment"):
        assert any(part in message for message in messages), part
    assert len(set(messages)) > 15


@pytest.mark.parametrize("name", MDCT_VALID)
def test_taking_mdct_files_apart_and_putting_them_together(name):
    file = mdct_file.take_apart(MDCT_VALID[name])
    assert file is not None and mdct_file.put_together(file) == MDCT_VALID[name]


@pytest.mark.parametrize("name", VALID)
def test_taking_apart_and_putting_together(name):
    assert stft_file.put_together(pieces(name)) == VALID[name]


@pytest.mark.parametrize("field", Segment._fields)
def test_a_decoder_that_errs_is_found(field, monkeypatch):
    def err(*arguments):
        segment = decode_segment(*arguments)
        array = getattr(segment, field).copy()
        array.flat[np.flatnonzero(~segment.mask)[0]] ^= 1
        return segment._replace(**{field: array})

    monkeypatch.setattr(fuzz_check, "decode_segment", err)
    with pytest.raises((AssertionError, ValueError)):
        check(VALID["mixed"])


@pytest.mark.parametrize("field", ["values", "levels", "rate"])
def test_an_mdct_decoder_that_errs_is_found(field, monkeypatch):
    right = mdct_segment.decode_segment

    def err(*arguments):
        segment = right(*arguments)
        return segment._replace(**{field: getattr(segment, field) ^ 1})

    monkeypatch.setattr(mdct_segment, "decode_segment", err)
    with pytest.raises(AssertionError):
        check(MDCT_VALID["mono"])


@pytest.mark.parametrize("place", ["header", "segment"])
def test_a_decoder_that_conceals_too_much_or_too_little_is_found(place, monkeypatch):
    right = mdct_container.unpack

    def err(data, *, conceal=False):
        if conceal and place == "segment":
            conceal = False
        elif conceal:
            data = MDCT_VALID["mono"]
        return right(data, conceal=conceal)

    damaged = bytearray(MDCT_VALID["mono"])
    damaged[10 if place == "header" else -1] ^= 1
    monkeypatch.setattr(mdct_container, "unpack", err)
    with pytest.raises(AssertionError):
        check(bytes(damaged))


def test_errors_of_another_kind_are_found(monkeypatch):
    def err(*arguments):
        raise IndexError("somewhere deep")

    monkeypatch.setattr(fuzz_check, "decode_segment", err)
    with pytest.raises(IndexError):
        check(VALID["mixed"])


@pytest.mark.slow
@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="there is no wheel of atheris for this platform",
)
def test_a_short_run_of_the_fuzzer_finds_nothing(tmp_path):
    command = [sys.executable, "-m", "tests.fuzz.run", "--minutes", "0.05", "--seed", "7"]
    run = subprocess.run(
        [*command, "--out", tmp_path], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    # An input of more than 10 s is kept as slow-unit-*, on a busy machine any one.
    findings = [*tmp_path.glob("crash-*"), *tmp_path.glob("timeout-*"), *tmp_path.glob("oom-*")]
    assert (run.returncode, findings) == (0, []), run.stdout + run.stderr
    summary = re.search(r"^([\d,]+) inputs in .* nothing found$", run.stdout, re.MULTILINE)
    committed = sum(path.is_file() for path in CORPUS.rglob("*.jsac"))
    assert summary and int(summary[1].replace(",", "")) > committed
    # What is covered by the corpus alone, in counters of atheris.
    covered = [int(count) for count in re.findall(r" cov: (\d+) ", run.stderr)]
    assert covered and covered[-1] > 150
