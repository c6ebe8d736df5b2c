import contextlib
import dataclasses
import functools
import platform
import random
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsparse import codec
from jaxsparse.cli import main
from jaxsparse.codec import container
from jaxsparse.codec.segment import Segment, decode_segment
from jaxsparse.errors import ContainerError
from jaxsparse.nn.sparse_cnn import SparseCNNConfig, sparse_cnn
from jaxsparse.pretrained import Card, Pretrained
from tests.fuzz import check as fuzz_check
from tests.fuzz import jsac, make
from tests.fuzz.check import MAX_BINS, check

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "tests" / "fuzz" / "corpus"
VALID = {path.stem: path.read_bytes() for path in sorted((CORPUS / "valid").iterdir())}
# | file | bytes | what is wrong | message |
ROW = re.compile(r"\| (\S+\.jsac) \| (\d+) \| (.*) \| `(.*)` \|")
TABLE = ROW.findall((CORPUS / "faulty" / "README.md").read_text(encoding="utf-8"))
SHA256 = container.unpack(VALID["mixed"]).header.network_sha256
files = st.sampled_from(sorted(VALID.values()))
randoms = st.randoms(use_true_random=False)


@functools.cache
def untrained():
    """A small network in the place of the one that the files name."""
    network = sparse_cnn(SparseCNNConfig(kernel_sizes=(3,), features=2))
    return Pretrained(network, network.init(jax.random.key(1)), Card(SHA256))


def pieces(name):
    file = jsac.take_apart(VALID[name])
    assert file is not None
    return file


def peak_of(run, *arguments):
    """Bytes that a call holds at most, whether it refuses its arguments or not."""
    tracemalloc.start()
    try:
        with contextlib.suppress(ContainerError):
            run(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def check_decompress(data):
    """Decoding gives all samples, finite, or the package's own error."""
    try:
        samples, rate = codec.decompress(data, decoder=untrained())
    except ContainerError as error:
        assert str(error).isprintable()
        return False
    header = container.unpack(data).header
    assert rate == header.sample_rate
    assert samples.shape == (header.n_samples, header.channels)
    assert np.isfinite(samples).all()
    return True


def test_corpus_is_what_the_script_makes():
    made = make.files()
    committed = {
        f"{folder}/{path.name}": path.read_bytes()
        for folder in ("valid", "faulty")
        for path in (CORPUS / folder).iterdir()
    }
    assert sorted(committed) == sorted(made)
    assert [name for name in made if made[name] != committed[name]] == []


def test_table_lists_every_faulty_file_with_its_size():
    sizes = {path.name: path.stat().st_size for path in (CORPUS / "faulty").glob("*.jsac")}
    assert {name: int(size) for name, size, _, _ in TABLE} == sizes
    assert sum(sizes.values()) < 100_000 and max(sizes.values()) < 2000


@pytest.mark.parametrize(("name", "size", "fault", "message"), TABLE, ids=[t[0] for t in TABLE])
def test_faulty_file_is_refused(name, size, fault, message, tmp_path, capsys):
    path = CORPUS / "faulty" / name
    decompress = ["decompress", str(path), str(tmp_path / "out.wav")]
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


@pytest.mark.parametrize("path", sorted((CORPUS / "found").iterdir()), ids=lambda path: path.name)
def test_what_the_fuzzer_found(path):
    check(path.read_bytes())


@settings(max_examples=150)
@given(data=files, rng=randoms)
def test_changed_files_are_refused_or_keep_their_promises(data, rng):
    check(jsac.mutate(data, rng))


@settings(max_examples=100)
@given(data=files, rng=randoms)
def test_memory_is_bounded(data, rng):
    data = jsac.mutate(data, rng)
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


@settings(max_examples=40)
@given(rng=randoms)
def test_changed_parts_decompress_to_finite_samples_or_are_refused(rng):
    """The header stays, or a network would be compiled for each of its changes."""
    changed = jsac.take_apart(jsac.mutate(VALID["mixed"], rng))
    payloads = [] if changed is None else changed.payloads
    check_decompress(jsac.put_together(dataclasses.replace(pieces("mixed"), payloads=payloads)))


@pytest.mark.slow
@settings(max_examples=150)
@given(data=files, rng=randoms)
def test_changed_files_decompress_to_finite_samples_or_are_refused(data, rng):
    changed = jsac.take_apart(jsac.mutate(data, rng))
    if changed is None or changed.fields["n_samples"] > 10_000 or len(changed.texts) != 2:
        return
    texts = [changed.texts[0], b"mixed"]
    data = jsac.put_together(
        dataclasses.replace(changed, texts=texts, sha256=bytes.fromhex(SHA256))
    )
    check_decompress(data)


def test_changes_reach_deep_code_and_shallow_code():
    rng = random.Random(0)
    messages = []
    accepted = 0
    for _ in range(400):
        data = jsac.mutate(VALID["mixed"], rng)
        try:
            header, parts = container.unpack(data)
            decode_segment(header, 0, 0, parts[0])
            accepted += data != VALID["mixed"]
        except ContainerError as error:
            messages.append(str(error))
    assert accepted > 40
    for part in ("mask", "values", "phase bitmap", "phases"):
        deep = [m for m in messages if m.startswith(f"the {part} part") and " of segment " not in m]
        assert len(deep) >= 5
    assert sum(" is not from " in message for message in messages) >= 5
    assert len(set(messages)) > 40


@pytest.mark.parametrize("name", VALID)
def test_taking_apart_and_putting_together(name):
    assert jsac.put_together(pieces(name)) == VALID[name]


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


def test_errors_of_another_kind_are_found(monkeypatch):
    def err(*arguments):
        raise IndexError("somewhere deep")

    monkeypatch.setattr(fuzz_check, "decode_segment", err)
    with pytest.raises(IndexError):
        check(VALID["mixed"])


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="there is no wheel of atheris for this platform",
)
def test_a_short_run_of_the_fuzzer_finds_nothing(tmp_path):
    command = [sys.executable, "-m", "tests.fuzz.container", "--minutes", "0.25", "--seed", "7"]
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
