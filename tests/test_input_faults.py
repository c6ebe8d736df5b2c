"""Every command with every kind of input: refused in one line with nothing left behind, or right.

A table for each group: rows are inputs or outputs, columns are commands, and a cell is what the
one line says besides the file's name.
"""

import contextlib
import csv
import ctypes
import json
import logging
import os
import resource
import stat
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from eval import masks, reconstruction
from jaxsparse import codec
from jaxsparse.audio import read_audio, resample, to_mono
from jaxsparse.cli import main
from train import rebuild_splits
from train.main import main as train

# <linux/capability.h>
_CAPABILITY_VERSION_3 = 0x20080522
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1 << 1, 1 << 2

COMMANDS = ("compress", "decompress", "info", "demo")

MISSING = "No such file or directory"
NO_AUDIO = "not readable as audio: format not recognised"
NO_JSAC = "not a .jsac file"
SHORT = "truncated: at least 4000 bytes are missing"
CUT = "damaged or cut short"
NAN = "1 of 8000 samples are NaN, infinite or too large, the first at 7999"
WORKS = None

# What a file is -> what is wrong with it for compress, decompress, info and demo, and for training
# and evaluation among others in a folder.
INPUTS = {
    "missing": (MISSING,) * 5,
    "directory": ("is a directory",) * 4 + (WORKS,),
    "pipe": (WORKS,) * 3 + ("not a regular file",) * 2,
    "socket": ("not a regular file",) * 5,
    "device": ("not a regular file",) * 5,
    "no permission": ("Permission denied",) * 5,
    "empty": ("is empty",) * 5,
    "text": (NO_AUDIO, NO_JSAC, NO_JSAC, NO_AUDIO, NO_AUDIO),
    "random bytes": (NO_AUDIO, NO_JSAC, NO_JSAC, NO_AUDIO, NO_AUDIO),
    "WAV": (WORKS, NO_JSAC, NO_JSAC, WORKS, WORKS),
    "jsac": (NO_AUDIO, WORKS, WORKS, NO_AUDIO, NO_AUDIO),
    "truncated WAV": (SHORT, NO_JSAC, NO_JSAC, SHORT, SHORT),
    "truncated FLAC": (CUT, NO_JSAC, NO_JSAC, CUT, CUT),
    "truncated jsac": (NO_AUDIO, "truncated", "truncated", NO_AUDIO, NO_AUDIO),
    "no samples": ("no samples", NO_JSAC, NO_JSAC, "no samples", "no samples"),
    "NaN": (NAN, NO_JSAC, NO_JSAC, NAN, NAN),
    "infinite": (NAN, NO_JSAC, NO_JSAC, NAN, NAN),
}
REFUSALS = [
    (command, kind, reasons[column])
    for kind, reasons in INPUTS.items()
    for column, command in enumerate(COMMANDS)
    if reasons[column] is not WORKS
]


def voice(seconds=0.5, sample_rate=16_000, channels=1):
    """The same sound below 3 kHz at any rate; the channels have pitches of their own."""
    time = np.arange(round(seconds * sample_rate))[:, None] / sample_rate
    pitch = 130 + 23 * np.arange(channels)
    turns = pitch * (time + 0.02 * np.sin(2 * np.pi * time))
    harmonics = sum(np.sin(2 * np.pi * k * turns) / k for k in range(1, 13))
    return (0.15 * harmonics * (0.55 - 0.45 * np.cos(2 * np.pi * 4 * time))).astype(np.float32)


def write(path, samples, sample_rate=16_000, **options):
    soundfile.write(path, samples, sample_rate, **options)
    return path


def cut(path, removed):
    os.truncate(path, path.stat().st_size - removed)
    return path


def make_input(kind, folder, compressed):
    """Writes an input of a kind."""
    path = folder / f"{kind}.wav"
    samples = voice()
    match kind:
        case "missing":
            path.symlink_to(folder / "nothing")
        case "directory":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "socket":
            os.mknod(path, 0o600 | stat.S_IFSOCK)
        case "device":
            path.symlink_to("/dev/null")
        case "no permission":
            path.write_bytes(compressed)
            path.chmod(0)
        case "empty":
            path.touch()
        case "text":
            path.write_text("These are not the bytes you are looking for.\n" * 20)
        case "random bytes":
            path.write_bytes(np.random.default_rng(0).bytes(5_000))
        case "WAV":
            write(path, samples, format="WAV")
        case "jsac":
            path.write_bytes(compressed)
        case "truncated WAV":
            cut(write(path, samples, format="WAV"), 4_000)
        case "truncated FLAC":
            cut(write(path, samples, format="FLAC"), 2_000)
        case "truncated jsac":
            path.write_bytes(compressed[:-100])
        case "no samples":
            write(path, samples[:0], format="WAV")
        case "NaN" | "infinite":
            samples[-1] = np.nan if kind == "NaN" else -np.inf
            write(path, samples, format="WAV", subtype="FLOAT")
    return path


def snapshot(folder):
    """All that is in a folder: kinds, permissions and contents."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() and os.access(path, os.R_OK) else None
        found[path.relative_to(folder)] = status.st_mode, status.st_size, content
    return found


def arguments(command, source, target):
    return {
        "compress": ["compress", source, target],
        "decompress": ["decompress", source, target],
        "info": ["info", source],
        "demo": ["demo", "--input", source, "--out", target],
    }[command]


def refusal(capsys, words):
    """Runs a command that must be refused, and returns its one line without the program's name."""
    capsys.readouterr()
    status = main([os.fspath(word) for word in words])
    out, err = capsys.readouterr()
    assert status == 2
    assert out == ""
    *steps, line = err.splitlines()
    assert err.endswith("\n") and line.isprintable()
    assert all(words[0] == "demo" and ": reading" in step for step in steps), err
    assert line.startswith("jaxsparse: ")
    return line.removeprefix("jaxsparse: ")


@pytest.fixture
def folder(tmp_path):
    return tmp_path


@contextlib.contextmanager
def bound_by_permissions():
    """Takes from root, in this thread, what lets it read and write whatever it likes."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    # Effective, permitted and inheritable, of the first 32 capabilities and of the others.
    sets = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    effective = sets[0]
    sets[0] &= ~(_CAP_DAC_OVERRIDE | _CAP_DAC_READ_SEARCH)
    assert libc.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[0] = effective
        assert libc.capset(header, sets) == 0


@pytest.fixture(scope="module")
def compressed(tmp_path_factory):
    """A .jsac file's bytes."""
    path = write(tmp_path_factory.mktemp("faults") / "voice.wav", voice())
    assert main(["compress", str(path), str(path.with_suffix(".jsac"))]) == 0
    return path.with_suffix(".jsac").read_bytes()


@pytest.mark.parametrize(("command", "kind", "reason"), REFUSALS)
def test_refused_inputs(command, kind, reason, folder, compressed, capsys, monkeypatch):
    path = make_input(kind, folder, compressed)
    before = snapshot(folder)
    if command != "demo":
        # Refused at once: before the array library is loaded, which takes seconds.
        monkeypatch.delattr(codec, "stream", raising=False)
        monkeypatch.setitem(sys.modules, "jaxsparse.codec.stream", None)
    with bound_by_permissions():
        line = refusal(capsys, arguments(command, path, folder / "out"))
    assert line.startswith(f"{path}: ") and reason in line
    assert snapshot(folder) == before


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(kind, reasons[3]) for kind, reasons in INPUTS.items() if reasons[3] is not WORKS],
)
def test_inputs_that_mask_searches_refuse(kind, reason, folder, compressed, capsys):
    path = make_input(kind, folder, compressed)
    before = snapshot(folder)
    with bound_by_permissions():
        assert masks.main(["--clip", os.fspath(path), "--out", os.fspath(folder / "out")]) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert out == "" and line.isprintable()
    assert line.startswith(f"eval.masks: {path}: ") and reason.lower() in line.lower()
    assert snapshot(folder) == before


# What there is -> what compress, decompress and demo say of it as an output.
OUTPUTS = {
    "file": ("exists already (--force", "exists already (--force", "is not a directory"),
    "directory": ("is a directory", "is a directory", "is not empty (--force"),
    "nowhere/out": ("there is no directory",) * 3,
    "file/out": ("Not a directory", "Not a directory", "Not a directory"),
    "n" * 300: ("File name too long",) * 3,
    "read-only/out": ("ermission",) * 3,
    "input": ("is the input itself", "is the input itself", "is not a directory"),
    "link to the input": ("is the input itself", "is the input itself", "is not a directory"),
}
WRITING = ("compress", "decompress", "demo")
THESIS = ("--grid", "stft", "--mask", "mixed")


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("command", WRITING)
def test_refused_outputs(command, name, folder, compressed, capsys):
    source = make_input("jsac" if command == "decompress" else "WAV", folder, compressed)
    (folder / "link to the input").symlink_to(source)
    (folder / "file").write_bytes(b"precious")
    (folder / "directory").mkdir()
    (folder / "directory" / "file").write_bytes(b"precious")
    (folder / "read-only").mkdir(mode=0o555)
    before = snapshot(folder)
    path = source if name == "input" else folder / name
    with bound_by_permissions():
        line = refusal(capsys, arguments(command, source, path))
        assert line.startswith(f"{path}: ") and OUTPUTS[name][WRITING.index(command)] in line
        if "exists" not in line and "empty" not in line:
            assert refusal(capsys, [*arguments(command, source, path), "--force"]) == line
    assert snapshot(folder) == before


@pytest.fixture
def full_disk():
    """No file of this process grows beyond 200 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("command", WRITING)
def test_full_disk(command, folder, compressed, capsys, request):
    source = make_input("jsac" if command == "decompress" else "WAV", folder, compressed)
    old = folder / "old"
    if command == "demo":
        old.mkdir()
        (old / "index.html").write_bytes(b"precious")
    else:
        old.write_bytes(b"precious")
    before = snapshot(folder)
    request.getfixturevalue("full_disk")
    for target, force in ((folder / "new", []), (old, ["--force"])):
        line = refusal(capsys, [*arguments(command, source, target), *force])
        assert line == f"{target}: File too large"
    assert snapshot(folder) == before


def test_full_disk_behind_standard_output(folder, compressed):
    path = make_input("jsac", folder, compressed)
    code = "import sys; from jaxsparse.cli import main; sys.exit(main())"
    with open("/dev/full", "w") as full:
        run = subprocess.run(
            [sys.executable, "-c", code, "info", path], stdout=full, stderr=subprocess.PIPE
        )
    assert run.returncode == 2
    assert run.stderr == b"jaxsparse: standard output: No space left on device\n"


ODD_NAMES = ("new\nline", "not \udcff UTF-8", "--force", "Grüße 🎵", "\x1b[31mred")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (i % 2)) for i, n in enumerate(ODD_NAMES)]
)
def test_odd_names(name, folder, compressed, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    for command in COMMANDS:
        line = refusal(capsys, arguments(command, f"./{name}", "out"))
        assert line.endswith(f": {MISSING}")
    assert list(folder.iterdir()) == []
    make_input("WAV", folder, compressed).rename(folder / name)
    assert main(["compress", f"./{name}", f"./{name}.jsac"]) == 0
    assert main(["info", f"./{name}.jsac"]) == 0
    assert main(["decompress", f"./{name}.jsac", f"./{name}.wav"]) == 0
    assert (folder / f"{name}.jsac").read_bytes() == compressed
    assert sorted(os.listdir()) == sorted([name, f"{name}.jsac", f"{name}.wav"])


# Rates and channels; the sound lies below 4 kHz, so that every rate holds it.
ODD_AUDIO = {
    "16 kHz": (16_000, 1),
    "8 kHz": (8_000, 1),
    "44.1 kHz": (44_100, 1),
    "96 kHz": (96_000, 1),
    "six channels": (16_000, 6),
    "six channels at 44.1 kHz": (44_100, 6),
}


def correlation(a, b):
    return np.corrcoef(a, b)[0, 1]


def round_trip(folder, samples, sample_rate, capsys, *options):
    """What compress, info and decompress make of samples, with the right rate, channels, length."""
    wav, jsac, out = (folder / name for name in ("in.wav", "coded.jsac", "out.wav"))
    write(wav, samples, sample_rate)
    assert main(["compress", str(wav), str(jsac), *options]) == 0
    capsys.readouterr()
    assert main(["info", str(jsac), "--json"]) == 0
    out_text, err = capsys.readouterr()
    description = json.loads(out_text)
    wanted = {"sample_rate": sample_rate, "channels": samples.shape[1], "n_samples": len(samples)}
    assert wanted == {name: description[name] for name in wanted}
    assert main(["decompress", str(jsac), str(out)]) == 0
    decoded, decoded_rate = read_audio(out)
    assert decoded_rate == sample_rate and decoded.shape == samples.shape
    assert err + capsys.readouterr().err == ""
    return decoded


@pytest.fixture(scope="module")
def usual_correlation(tmp_path_factory):
    """How much of the usual input, 16 kHz mono, comes back where the loudest bins are kept."""
    folder = tmp_path_factory.mktemp("usual")
    path = write(folder / "in.wav", voice())
    assert main(["compress", str(path), str(folder / "in.jsac"), *THESIS]) == 0
    assert main(["decompress", str(folder / "in.jsac"), str(folder / "out.wav")]) == 0
    usual = correlation(read_audio(folder / "out.wav")[0][:, 0], voice()[:, 0])
    assert usual > 0.99
    return usual


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(
            k, marks=[] if k in ("8 kHz", "six channels at 44.1 kHz") else pytest.mark.slow
        )
        for k in ODD_AUDIO
    ],
)
def test_odd_rates_and_channels(kind, folder, capsys, usual_correlation):
    sample_rate, channels = ODD_AUDIO[kind]
    samples = voice(0.5, sample_rate, channels)
    decoded = round_trip(folder, samples, sample_rate, capsys, *THESIS)
    for i in range(channels):
        of_channels = [correlation(decoded[:, i], samples[:, j]) for j in range(channels)]
        # The first channel is the usual input; the higher the pitch of a channel, the more bins
        # its harmonics have.
        allowed = 0.0005 + 0.001 * i
        assert of_channels[i] > usual_correlation - allowed
        assert max(np.abs(np.delete(of_channels, i)), default=0) < 0.1


@pytest.mark.parametrize(("n_samples", "channels"), [(8_000, 1), (8_001, 6), (300_000, 1)])
def test_silence_stays_silence(n_samples, channels, folder, capsys):
    silence = np.zeros((n_samples, channels), np.float32)
    np.testing.assert_array_equal(round_trip(folder, silence, 44_100, capsys), silence)


@pytest.mark.parametrize(
    ("sample_rate", "channels"),
    [(16_000, 1), pytest.param(8_000, 1, marks=pytest.mark.slow), (96_000, 6)],
)
def test_one_sample_stays_one_sample(sample_rate, channels, folder, capsys):
    sample = np.full((1, channels), 0.5, np.float32)
    decoded = round_trip(folder, sample, sample_rate, capsys)
    # What is left of it at 16 kHz, and of that what 5 % of the bins hold; levels are stored in
    # steps of half a dB, so that it may get louder by 3 %.
    coded = resample(resample(sample, sample_rate, 16_000), 16_000, sample_rate)[:1]
    assert (decoded > 0.4 * coded).all() and (decoded < 1.03 * coded).all()


DEMOS = ("six channels at 44.1 kHz", "8 kHz", "44.1 kHz", "96 kHz", "six channels", "one sample")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*DEMOS, "silence"])
def test_demo_of_odd_audio_with_an_odd_name(kind, folder, capsys):
    sample_rate, channels = ODD_AUDIO.get(kind, (16_000, 1))
    samples = voice(0.5, sample_rate, channels)
    samples = {"silence": 0 * samples, "one sample": samples[100:101]}.get(kind, samples)
    source, out = folder / "not \udcff\n<b>.wav", folder / "out \udcff\n"
    write(folder / "in.wav", samples, sample_rate).rename(source)
    assert main(["demo", "--input", os.fspath(source), "--out", os.fspath(out)]) == 0
    line = f"{folder}/out \\udcff\\n/index.html: the page to open in a browser\n"
    assert capsys.readouterr().out == line

    page = (out / "index.html").read_text("utf-8")
    assert "not \ufffd" in page and "<b>.wav" not in page
    figures = json.loads((out / "scores.json").read_text("utf-8"))
    assert figures["clip"] == "not \ufffd\n<b>.wav"
    original, original_rate = read_audio(out / "original.wav")
    mono = to_mono(read_audio(source)[0])[:, None]
    assert original_rate == 16_000
    np.testing.assert_allclose(
        original, resample(mono, sample_rate, 16_000), rtol=0, atol=0.501 / 2**15
    )
    decoded, _ = read_audio(out / "learned.wav")
    assert decoded.shape == original.shape
    best = figures["masks"]["learned"]
    if kind == "silence":
        np.testing.assert_array_equal(decoded, original)
        # Before 16 bits make zeros of them, the samples are below 1e-6.
        assert best["scores"]["mse"] < 1e-3
    elif kind != "one sample":
        # Six voices at once have more harmonics than 5 % of the bins hold.
        assert correlation(decoded[:, 0], original[:, 0]) > 0.98
        assert best["reasons"] == {} and None not in best["scores"].values()
    if kind in ("silence", "one sample"):
        unscored = {"pesq_wb", "pesq_nb", "stoi"}
        assert best["reasons"].keys() == unscored
        assert all(best["scores"][metric] is None for metric in unscored)


@pytest.fixture
def corpus(folder, compressed):
    """A folder with one file of every kind, and their names with what is wrong with each."""
    (folder / "data").mkdir()
    for kind in INPUTS:
        make_input(kind, folder / "data", compressed)
    expected = {
        f"{kind}.wav": reasons[-1] for kind, reasons in INPUTS.items() if kind != "directory"
    }
    assert [name for name, reason in expected.items() if reason is WORKS] == ["WAV.wav"]
    return folder / "data", expected


@pytest.mark.slow
def test_training_skips_and_names_what_it_cannot_use(corpus, folder, caplog):
    data, expected = corpus
    caplog.set_level(logging.WARNING)
    run = folder / "run"
    with bound_by_permissions():
        assert train(["--data", str(data), "--workdir", str(run), *TINY_TRAINING]) == 0
    skipped = [record.getMessage() for record in caplog.records]
    faulty = {name: reason for name, reason in expected.items() if reason is not WORKS}
    assert len(skipped) == len(faulty)
    for name, reason in faulty.items():
        assert sum(f"skipping {name}: " in line and reason in line for line in skipped) == 1
    card = json.loads((run / "network.json").read_text())
    assert f"{len(skipped)} skipped" in card["data"]


def test_evaluation_counts_and_names_what_it_cannot_use(corpus, folder, capsys):
    data, expected = corpus
    out = folder / "run"
    with bound_by_permissions():
        assert reconstruction.main(["--data", str(data), "--out", str(out), *TINY_EVALUATION]) == 0
    rows = list(csv.DictReader((out / "rows.csv").read_text().splitlines()))
    assert {row["clip"] for row in rows} == set(expected)
    for row in rows:
        reason = expected[row["clip"]]
        assert (row["mse"] == "nan") == (reason is not WORKS)
        assert reason is WORKS or reason in json.loads(row["reasons"])["clip"]


TINY_TRAINING = ["--steps", "1", "--batch-size", "1", "--n-samples", "8000", "--picture-every", "0"]
TINY_EVALUATION = ["--decoders", "random-95", "nearest", "--n-samples", "8000", "--seeds", "0"]
TINY_EVALUATION += ["--no-scores", "--phases", "all", "--keep-observed", "yes"]

NO_FILES = "no audio files below"
# What is given as a folder -> what training, evaluation and the making of the splits say of it.
FOLDERS = {
    "missing": (MISSING, MISSING, "holds no"),
    "file": ("Not a directory", "Not a directory", "holds no"),
    "empty": (NO_FILES, NO_FILES, "holds no"),
    "without audio": (NO_FILES, NO_FILES, "holds no"),
    "nothing usable": ("none of 1 clips is usable", "no clip can be read", "holds no"),
    "no permission": ("Permission denied", "Permission denied", "holds no"),
}
FOLDER_COMMANDS = {
    "train": lambda data, out: train(["--data", data, "--workdir", out, *TINY_TRAINING]),
    "eval.reconstruction": lambda data, out: reconstruction.main(
        ["--data", data, "--out", out, *TINY_EVALUATION]
    ),
    "rebuild_splits": lambda data, out: rebuild_splits.main([data, "--data", out]),
}


@pytest.mark.parametrize("kind", FOLDERS)
@pytest.mark.parametrize("command", FOLDER_COMMANDS)
def test_refused_folders(command, kind, folder, capsys):
    path = folder / kind
    if kind == "file":
        write(path, voice(), format="WAV")
    elif kind != "missing":
        path.mkdir()
    if kind == "without audio":
        (path / "notes.txt").write_text("nothing to hear")
    elif kind == "nothing usable":
        (path / "a.wav").touch()
    elif kind == "no permission":
        path.chmod(0)
    before = snapshot(folder)
    with bound_by_permissions():
        status = FOLDER_COMMANDS[command](str(path), str(folder / "out"))
    if path.is_dir():
        path.chmod(0o700)
    out, err = capsys.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"{command}: ")
    assert str(path) in err and FOLDERS[kind][list(FOLDER_COMMANDS).index(command)] in err
    assert {name: kept[2] for name, kept in snapshot(folder).items()} == {
        name: kept[2] for name, kept in before.items()
    }
