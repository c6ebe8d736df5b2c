"""Many files at once: what is made, skipped, refused and counted, and how reading overlaps."""

import errno
import io
import json
import os
import signal
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import soundfile

from jaxsparse import audio, batch, codec
from jaxsparse.audio import read_audio
from jaxsparse.cli import main
from jaxsparse.codec import mdct_container, stream
from jaxsparse.errors import AudioError, JaxsparseError
from jaxsparse.files import atomic_write
from tests.mdct_files import speech
from tests.reference import Compilations
from tests.test_input_faults import bound_by_permissions, refusal, snapshot

RATE = 16_000
# Of such clips arrays have 32 frames, one size that is compiled.
N_SAMPLES = 4_000


def write(path, seed=0, channels=1, **options):
    """Writes a clip of a quarter of a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.stack([speech(N_SAMPLES, seed + 10 * i) for i in range(channels)], axis=1)
    soundfile.write(path, samples, RATE, **options)
    return path


def run(capsys, *words):
    """Runs a command; returns its status, what --json says, and the lines of failures."""
    capsys.readouterr()
    status = main([*map(str, words), "--json"])
    out, err = capsys.readouterr()
    return status, json.loads(out), err.splitlines()


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


@pytest.fixture
def recordings(tmp_path):
    """Three clips in nested folders, of several formats, beside what isn't audio."""
    folder = tmp_path / "recordings"
    write(folder / "a.wav")
    write(folder / "deep" / "er" / "b.flac", 1, channels=2)
    write(folder / "deep" / "c.d.OGG", 2)
    (folder / "notes.txt").write_text("not to be read")
    write(folder / ".hidden" / "e.wav")
    return folder


MADE = ["a.jsac", "deep/c.d.jsac", "deep/er/b.jsac"]


@pytest.fixture(scope="module")
def coded(tmp_path_factory):
    """Two .jsac files in nested folders."""
    folder = tmp_path_factory.mktemp("batch")
    write(folder / "in" / "a.wav")
    write(folder / "in" / "deep" / "b.wav", 1)
    assert main(["compress", str(folder / "in"), "--out", str(folder / "coded")]) == 0
    return folder / "coded"


def test_a_folder_becomes_what_its_files_become_alone(recordings, tmp_path, capsys):
    out = tmp_path / "not yet" / "there"
    assert main(["compress", str(recordings), "--out", str(out), "--kbps", "12"]) == 0
    summary, err = capsys.readouterr()
    assert summary.startswith("3 files: 3 done, 0 already there, 0 failed; 0.75 s of audio, ")
    assert summary.count("\n") == 1 and err == ""
    assert names(out) == MADE
    alone = tmp_path / "alone.jsac"
    source = recordings / "deep" / "er" / "b.flac"
    assert main(["compress", str(source), str(alone), "--kbps", "12"]) == 0
    assert (out / "deep" / "er" / "b.jsac").read_bytes() == alone.read_bytes()

    back = tmp_path / "back"
    assert main(["decompress", str(out), "--out", str(back)]) == 0
    assert names(back) == ["a.wav", "deep/c.d.wav", "deep/er/b.wav"]
    samples, rate = read_audio(back / "deep" / "er" / "b.wav")
    expected, _ = codec.decompress(alone.read_bytes())
    assert (samples.shape, rate) == ((N_SAMPLES, 2), RATE)
    np.testing.assert_allclose(samples, expected.clip(-1, 1 - 2**-15), atol=1.01 / 2**15)


def test_several_inputs_and_one(recordings, tmp_path, capsys):
    first, out = write(tmp_path / "first.wav", 3), tmp_path / "out"
    status, summary, _ = run(capsys, "compress", first, recordings / "deep", "--out", out)
    assert (status, summary["done"]) == (0, 3)
    assert names(out) == ["c.d.jsac", "er/b.jsac", "first.jsac"]
    status, summary, _ = run(capsys, "compress", "--out", tmp_path / "one", recordings / "a.wav")
    assert (status, summary["files"], names(tmp_path / "one")) == (0, 1, ["a.jsac"])


def test_a_folder_of_other_lengths_compiles_nothing(tmp_path, capsys):
    for name, n_samples in {"0": N_SAMPLES, "1": 2_345, "2": 3_999, "3": 5_001}.items():
        soundfile.write(tmp_path / f"{name}.wav", speech(n_samples, 3), RATE)
    sizes = [tmp_path / "0.wav"], [tmp_path / f"{i}.wav" for i in (1, 2, 3)]
    counts = []
    for inputs in sizes:
        with Compilations() as compilations:
            assert main(["compress", *map(str, inputs), "--out", str(tmp_path / "out")]) == 0
            assert main(["decompress", str(tmp_path / "out"), "--out", str(tmp_path / "out")]) == 0
        counts.append(compilations.count)
    assert counts[1] == 0


def test_processes_share_the_files(coded, tmp_path, capsys):
    for i in (1, 2):
        status, summary, _ = run(
            capsys, "decompress", coded, "--out", tmp_path / "out", "--part", f"{i}/2"
        )
        assert status == 0 and summary["files"] == summary["done"] == 1
    assert names(tmp_path / "out") == ["a.wav", "deep/b.wav"]
    # A part may be empty.
    status, summary, _ = run(
        capsys, "decompress", coded, "--out", tmp_path / "out", "--part", "3/3"
    )
    assert status == 0 and summary["files"] == 0


def test_one_input_and_one_output_as_ever(recordings, tmp_path):
    source = recordings / "a.wav"
    assert main(["compress", str(source), str(tmp_path / "b.jsac")]) == 0
    assert main(["compress", "--kbps", "8", str(source)]) == 0
    assert (tmp_path / "b.jsac").read_bytes() == source.with_suffix(".jsac").read_bytes()
    assert main(["decompress", str(tmp_path / "b.jsac")]) == 0
    assert len(read_audio(tmp_path / "b.wav")[0]) == N_SAMPLES


def test_the_summary_adds_up(recordings, tmp_path, capsys):
    (recordings / "bad.wav").write_bytes(b"RIFF")
    out = tmp_path / "out"
    assert main(["compress", str(recordings / "a.wav"), "--out", str(out)]) == 0
    status, summary, (line,) = run(capsys, "compress", recordings, "--out", out)
    assert status == 2
    counts = [summary[name] for name in ("files", "done", "already_there", "failed")]
    assert counts == [4, 2, 1, 1]
    (failure,) = summary["failures"]
    assert failure["path"] == str(recordings / "bad.wav")
    assert line == f"jaxsparse: {failure['path']}: {failure['reason']}"
    sources = (recordings / "deep" / "c.d.OGG", recordings / "deep" / "er" / "b.flac")
    assert summary["bytes_in"] == sum(path.stat().st_size for path in sources)
    made = sum((out / name).stat().st_size for name in MADE[1:])
    assert summary["bytes_out"] == made
    assert summary["seconds"] == pytest.approx(0.5)
    assert summary["kbit_per_s"] == pytest.approx(8 * made / 0.5 / 1000)
    speed = summary["seconds"] / summary["elapsed_seconds"]
    assert summary["times_real_time"] == pytest.approx(speed)

    status, back, _ = run(capsys, "decompress", out, "--out", tmp_path / "back")
    assert status == 0 and back["bytes_in"] == made + (out / "a.jsac").stat().st_size
    assert back["kbit_per_s"] == pytest.approx(8 * back["bytes_in"] / 0.75 / 1000)


def test_a_second_run_makes_only_what_is_missing_or_damaged(recordings, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["compress", str(recordings), "--out", str(out)]) == 0
    before = {name: (out / name).read_bytes() for name in MADE}
    times = {name: (out / name).stat().st_mtime_ns for name in MADE}
    status, summary, _ = run(capsys, "compress", recordings, "--out", out)
    assert status == 0 and (summary["done"], summary["already_there"]) == (0, 3)
    assert summary["kbit_per_s"] is summary["times_real_time"] is None
    assert times == {name: (out / name).stat().st_mtime_ns for name in MADE}

    os.truncate(out / "a.jsac", 100)
    (out / "deep" / "c.d.jsac").unlink()
    status, summary, _ = run(capsys, "compress", recordings, "--out", out)
    assert status == 0 and (summary["done"], summary["already_there"]) == (2, 1)
    assert before == {name: (out / name).read_bytes() for name in MADE}

    status, summary, _ = run(capsys, "compress", recordings, "--out", out, "--force")
    assert status == 0 and (summary["done"], summary["already_there"]) == (3, 0)


def test_recordings_are_not_overwritten_by_what_is_decoded(coded, tmp_path, capsys):
    """Not even damaged ones, which the originals of a folder may be."""
    write(tmp_path / "a.wav", 5)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:-100])
    before = snapshot(tmp_path)
    status, summary, (line,) = run(capsys, "decompress", coded, "--out", tmp_path)
    assert status == 2 and (summary["already_there"], summary["failed"]) == (1, 1)
    assert line.startswith(f"jaxsparse: {tmp_path / 'deep' / 'b.wav'}: exists already, but ")
    assert line.endswith("(--force overwrites it)")
    assert snapshot(tmp_path) == before
    status, summary, _ = run(capsys, "decompress", coded, "--out", tmp_path, "--force")
    assert (status, summary["done"]) == (0, 2)


def test_failures_are_named_and_the_rest_is_done(recordings, tmp_path, capsys):
    out = tmp_path / "out"
    write(recordings / "cut.wav")
    os.truncate(recordings / "cut.wav", 1_000)
    (recordings / "empty.mp3").touch()
    (recordings / "gone.au").symlink_to("nothing")
    os.mkfifo(recordings / "pipe.wav")
    write(recordings / "taken.wav")
    (out / "taken.jsac").mkdir(parents=True)
    missing = tmp_path / "new\nline.wav"
    status, summary, lines = run(capsys, "compress", missing, recordings, "--out", out)
    assert status == 2 and (summary["done"], summary["failed"]) == (3, 6)
    assert all(line.isprintable() for line in lines)
    expected = {
        f"{tmp_path}/new\\nline.wav": "No such file or directory",
        f"{recordings}/cut.wav": "the file is truncated: at least 7044 bytes are missing",
        f"{recordings}/empty.mp3": "the file is empty",
        f"{recordings}/gone.au": "No such file or directory",
        f"{recordings}/pipe.wav": "not a regular file",
        f"{out}/taken.jsac": "not a regular file",
    }
    assert lines == [f"jaxsparse: {path}: {reason}" for path, reason in expected.items()]
    assert [name for name in names(out) if name != "taken.jsac"] == MADE


def test_outputs_within_the_inputs_are_no_inputs(coded, tmp_path, capsys):
    """Neither where they are new, nor in the next run."""
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "b.jsac").write_bytes((coded / "deep" / "b.jsac").read_bytes())
    out = folder / "coded"
    out.mkdir()
    (out / "old.jsac").write_bytes((coded / "a.jsac").read_bytes())
    (tmp_path / "link").symlink_to(folder)
    for done in (1, 0):
        status, summary, _ = run(capsys, "decompress", folder, "--out", tmp_path / "link" / "coded")
        assert (status, summary["files"], summary["done"]) == (0, 1, done)
    assert names(out) == ["deep/b.wav", "old.jsac"]
    # In place, and above.
    assert run(capsys, "decompress", folder, "--out", folder)[1]["done"] == 2
    assert run(capsys, "decompress", folder / "coded", "--out", folder)[1]["done"] == 1
    assert names(folder)[-1] == "old.wav"


def refused_cases(folder):
    """Writes what there is, and returns words and what is said of them."""
    a, b = write(folder / "a" / "x.wav"), write(folder / "b" / "x.flac")
    (folder / "empty").mkdir()
    out = folder / "out"
    both = f"{a} and {b} would both become {out}/x.jsac"
    return {
        ("compress", a, b, "--out", out): both,
        ("compress", a.parent, b.parent, "--out", out): both,
        ("compress", a, "--out", a): f"{a}: is not a directory",
        ("compress", a, "--out", a / "deep"): f"{a}/deep: Not a directory",
        ("compress", folder): f"{folder}: is a directory; --out DIR says where its files go",
        ("compress", folder, out): f"{folder}: is a directory; --out DIR says where its files go",
        ("decompress", folder): f"{folder}: is a directory; --out DIR says where its files go",
        (
            "compress",
            a,
            b,
            "c.wav",
        ): "several inputs need --out DIR, the folder that they go to (see --help)",
        ("compress", a, "-", "--out", out): "standard input has no name, so --out DIR can't tell "
        "its file's",
        ("compress", folder / "empty", "--out", out): f"{folder}/empty: no audio files below this "
        "directory",
        ("decompress", folder, "--out", out): f"{folder}: no .jsac files below this directory",
        ("decompress", a, "--out", a.parent): f"{a}: is one of the inputs",
        ("decompress", a, "--json"): "--json belongs to --out DIR",
        ("compress", a, "--part", "1/2"): "--part is for many files and needs --out DIR",
    }


def test_mistakes_are_refused_in_a_line_before_anything_is_done(tmp_path, capsys, monkeypatch):
    cases = refused_cases(tmp_path)
    monkeypatch.delattr(codec, "stream", raising=False)
    monkeypatch.setitem(sys.modules, "jaxsparse.codec.stream", None)
    before = snapshot(tmp_path)
    for words, said in cases.items():
        assert refusal(capsys, words) == said
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    line = refusal(capsys, ["compress", tmp_path / "a", "--out", tmp_path / "new" / "er"])
    assert line == f"{tmp_path}/new/er: no permission to write in {tmp_path}"
    assert snapshot(tmp_path) == before


def test_settings_are_refused_before_any_file(recordings, tmp_path, capsys):
    words = ["compress", recordings, "--out", tmp_path / "out", "--kbps"]
    assert "kbps 1000.0" in refusal(capsys, [*words, "1000"])
    assert "no codec is named" in refusal(capsys, [*words, "8", "--codec", "unheard-of"])
    assert not (tmp_path / "out").exists()


def test_help_tells_of_folders(capsys):
    for command, example in {
        "compress": "jaxsparse compress recordings --out coded",
        "decompress": "jaxsparse decompress coded --out decoded",
    }.items():
        with pytest.raises(SystemExit):
            main([command, "--help"])
        text = capsys.readouterr().out
        assert example in text and "IN ...] --out DIR" in text.replace(".jsac", "")


@pytest.mark.slow
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EACCES])
def test_a_full_disk_ends_the_run_in_one_line(error, recordings, tmp_path, capsys, monkeypatch):
    written = []

    def fill(path, data):
        if written:
            raise OSError(error, os.strerror(error), os.fspath(path))
        written.append(path)
        atomic_write(path, data)

    monkeypatch.setattr(batch, "atomic_write", fill)
    out = tmp_path / "out"
    line = refusal(capsys, ["compress", recordings, "--out", out])
    assert line == f"{out}/deep/c.d.jsac: {os.strerror(error)}"
    assert names(out) == ["a.jsac"]
    monkeypatch.undo()
    status, summary, _ = run(capsys, "compress", recordings, "--out", out)
    assert (status, summary["done"], summary["already_there"]) == (0, 2, 1)


def test_a_folder_that_cannot_be_written_ends_the_run(recordings, tmp_path, capsys):
    out = tmp_path / "out"
    (out / "deep").mkdir(parents=True)
    (out / "deep").chmod(0o555)
    with bound_by_permissions():
        line = refusal(capsys, ["compress", recordings, "--out", out])
    assert line == f"{out}/deep/c.d.jsac: Permission denied"
    assert names(out) == ["a.jsac"]


def test_control_c_leaves_nothing_in_part(recordings, tmp_path, capsys, monkeypatch):
    compress, begun = stream.compress, threading.Event()

    def interrupted(samples, *arguments, **options):
        if (samples[:, 0] == first).all():
            return compress(samples, *arguments, **options)
        assert begun.wait(10)
        signal.raise_signal(signal.SIGINT)

    def write_slowly(path, data):
        begun.set()
        time.sleep(0.3)
        atomic_write(path, data)

    first = read_audio(recordings / "a.wav")[0][:, 0]
    monkeypatch.setattr(batch, "atomic_write", write_slowly)
    monkeypatch.setattr(stream, "compress", interrupted)
    out = tmp_path / "out"
    assert main(["compress", str(recordings), "--out", str(out)]) == 130
    assert capsys.readouterr() == ("", "")
    # What was being written is whole.
    assert names(out) == ["a.jsac"]
    assert codec.describe((out / "a.jsac").read_bytes())["n_samples"] == N_SAMPLES
    monkeypatch.undo()
    status, summary, _ = run(capsys, "compress", recordings, "--out", out)
    assert (status, summary["done"], summary["already_there"]) == (0, 2, 1)


def spoil(data):
    """Changes a byte of the first segment."""
    header = mdct_container.unpack(data).header
    spoiled = bytearray(data)
    spoiled[mdct_container.header_size(header) + 40] ^= 1
    return bytes(spoiled)


def test_a_damaged_file_of_several(coded, tmp_path, capsys):
    folder, out = tmp_path / "coded", tmp_path / "out"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.jsac", "deep/b.jsac"):
        (folder / name).write_bytes((coded / name).read_bytes())
    (folder / "a.jsac").write_bytes(spoil((coded / "a.jsac").read_bytes()))
    # Nothing of the other grid can be concealed; it is decoded all the same.
    settings = codec.STFTSettings(mask="random", decoder="nearest")
    data = codec.compress(speech(N_SAMPLES)[:, None], RATE, settings)
    (folder / "c.jsac").write_bytes(data)
    status, summary, lines = run(capsys, "decompress", folder, "--out", out)
    assert status == 2 and (summary["done"], summary["failed"]) == (2, 1)
    assert lines == [f"jaxsparse: {folder}/a.jsac: segment 0 is damaged"]
    status, summary, lines = run(capsys, "decompress", folder, "--out", out, "--conceal")
    assert (status, summary["done"], summary["already_there"]) == (0, 1, 2)
    damage = "are damaged, and silence instead"
    assert lines == [f"jaxsparse: {folder}/a.jsac: 0.00 to {N_SAMPLES / RATE:.2f} s {damage}"]
    assert not read_audio(out / "a.wav")[0].any()


def test_parts_of_all_files(coded, tmp_path, capsys):
    words = ("decompress", coded, "--out", tmp_path, "--start", "0.1", "--duration", "0.1")
    status, summary, _ = run(capsys, *words)
    assert status == 0 and summary["seconds"] == pytest.approx(0.2)
    # The files hold more than that.
    assert summary["kbit_per_s"] is None
    assert len(read_audio(tmp_path / "deep" / "b.wav")[0]) == 1_600
    assert main([str(word) for word in (*words, "--force")]) == 0
    assert "kbit/s" not in capsys.readouterr().out


def test_networks_are_loaded_once(recordings, tmp_path, capsys, monkeypatch):
    loaded = []
    compress = stream.compress
    monkeypatch.setattr(
        stream,
        "compress",
        lambda *a, **named: loaded.append(named["codec"]) or compress(*a, **named),
    )
    assert main(["compress", str(recordings), "--out", str(tmp_path / "out")]) == 0
    assert len(loaded) == 3 and len(set(map(id, loaded))) == 1


def test_a_bar_is_shown_on_a_terminal_and_failures_above_it(recordings, tmp_path, monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    (recordings / "0.wav").touch()
    assert main(["compress", str(recordings), "--out", str(tmp_path / "out")]) == 2
    shown = terminal.getvalue()
    assert "compressing:" in shown and "/4 [" in shown and "segment" not in shown
    assert f"\rjaxsparse: {recordings}/0.wav: the file is empty\n" in shown


class Clip:
    """Something that is heavy while it is alive."""


def made_up_jobs(folder, count):
    jobs = [batch.Job(folder / f"{i}.in", folder / "out" / f"{i}.out") for i in range(count)]
    for source, _ in jobs:
        source.write_bytes(b"in")
    return jobs


def made_up_work(**changes):
    def code(content):
        return batch.Coded(b"out", 1.0, 3)

    def write(path, content):
        path.write_bytes(content)

    usual = batch.Work(Path.read_bytes, code, write, Path.is_file)
    return usual._replace(**changes)


@pytest.mark.parametrize("slow", ["read", "code", "write"])
def test_memory_does_not_grow_with_the_number_of_files(slow, tmp_path):
    alive, most = weakref.WeakSet(), {"read": 0, "coded": 0}
    made = weakref.WeakSet()

    def wait(step):
        time.sleep(0.01 * (step == slow))

    def read(path):
        wait("read")
        clip = Clip()
        alive.add(clip)
        most["read"] = max(most["read"], len(alive))
        return clip

    def code(clip):
        wait("code")
        result = Clip()
        made.add(result)
        most["coded"] = max(most["coded"], len(made))
        return batch.Coded(result, 1.0, 1)

    def write(path, result):
        wait("write")
        path.touch()

    work = batch.Work(read, code, write, Path.is_file)
    summary = batch.code_files(made_up_jobs(tmp_path, 30), work)
    assert summary.done == 30
    # One is coded while the next was read; one is written while the next was made.
    assert most["read"] <= 3 and most["coded"] <= 3


def test_reading_coding_and_writing_overlap(tmp_path):
    together = threading.Barrier(3, timeout=20)
    # The last file is read, the middle one coded and the first one written at the same time.
    jobs = made_up_jobs(tmp_path, 3)
    met = []

    def read(path):
        if path == jobs[2].source:
            met.append(together.wait())
        return path

    def code(path):
        if path == jobs[1].source:
            met.append(together.wait())
        return batch.Coded(b"out", 1.0, 3)

    def write(path, content):
        if path == jobs[0].target:
            met.append(together.wait())
        path.write_bytes(content)

    summary = batch.code_files(jobs, batch.Work(read, code, write, Path.is_file))
    assert summary.done == 3 and sorted(met) == [0, 1, 2]


def test_outcomes_come_in_order_and_other_errors_are_not_hidden(tmp_path):
    jobs = made_up_jobs(tmp_path, 4)
    jobs[1].source.unlink()
    jobs[2].target.parent.mkdir()
    jobs[2].target.write_bytes(b"there")
    outcomes = []
    summary = batch.code_files(jobs, made_up_work(), on_outcome=outcomes.append)
    assert outcomes == [
        batch.Done(1.0, 2, 3, 3),
        batch.Failure(jobs[1].source, "No such file or directory"),
        batch.AlreadyThere(jobs[2].target),
        batch.Done(1.0, 2, 3, 3),
    ]
    assert (summary.seconds, summary.bytes_in, summary.bytes_out) == (2.0, 4, 6)

    def refuse(content):
        raise JaxsparseError("no")

    def run_out(content):
        raise MemoryError

    for code, reason in ((refuse, "no"), (run_out, "does not fit into memory")):
        summary = batch.code_files(jobs[:1], made_up_work(code=code), force=True)
        assert summary.failures == [batch.Failure(jobs[0].source, reason)]
    for step in ("read", "code", "write", "is_whole"):
        work = made_up_work(**{step: lambda *arguments: 1 / 0})
        with pytest.raises(ZeroDivisionError):
            batch.code_files([jobs[3]], work, force=step != "is_whole")


def test_names_that_cannot_be_written_stop_nothing(tmp_path):
    jobs = made_up_jobs(tmp_path, 2)
    jobs[0] = jobs[0]._replace(target=tmp_path / "out" / ("n" * 300))
    file = tmp_path / "file"
    file.touch()
    jobs.append(jobs[1]._replace(target=file / "x"))
    summary = batch.code_files(jobs, made_up_work())
    assert summary.done == 1
    assert [failure.reason for failure in summary.failures] == [
        "File name too long",
        "Not a directory",
    ]


def test_sound_that_is_too_long_for_a_wav_file_is_a_failure(coded, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise AudioError("too long")

    monkeypatch.setattr(audio, "write_wav", refuse)
    job = batch.Job(coded / "a.jsac", tmp_path / "a.wav")
    summary = batch.code_files([job], batch.decompression())
    assert summary.failures == [batch.Failure(job.target, "too long")]


def test_large_files_of_another_kind_are_refused_unread(tmp_path):
    path = tmp_path / "large.jsac"
    path.write_bytes(b"RIFF")
    os.truncate(path, 2**36)
    job = batch.Job(path, tmp_path / "large.wav")
    summary = batch.code_files([job], batch.decompression())
    assert [failure.reason for failure in summary.failures] == ["not a .jsac file"]
