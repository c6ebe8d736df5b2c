"""The command line: the round trip, what it prints, and arguments that it refuses.

For files that it refuses see test_input_faults.py.
"""

import contextlib
import io
import json
import os
import pickle
import pty
import signal
import subprocess
import sys
import threading
import time
import tomllib
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

import jaxsparse
from jaxsparse import _scoring, audio, cli, codec
from jaxsparse.cli import main
from jaxsparse.codec import container, describe, find_models, mdct_container, stream
from jaxsparse.mask_files import save_mask

SAMPLE_RATE = 22_050
N_SAMPLES = 23_457


def voice(n_samples, sample_rate):
    """A harmonic sound with syllables, in two channels that differ."""
    time = np.arange(n_samples) / sample_rate
    pitch = 130 + 20 * np.sin(2 * np.pi * 1.5 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / sample_rate
    harmonics = sum(np.sin(k * phase) / k for k in range(1, 25))
    left = 0.1 * harmonics * (0.55 + 0.45 * np.sin(2 * np.pi * 3 * time))
    noise = np.random.default_rng(0).normal(scale=1e-3, size=n_samples)
    return np.stack([left + noise, 0.5 * left - noise], axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def wav(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "voice.wav"
    audio.write_wav(path, voice(N_SAMPLES, SAMPLE_RATE), SAMPLE_RATE)
    return path


@pytest.fixture(scope="module")
def compressed(wav):
    path = wav.with_suffix(".jsac")
    assert main(["compress", str(wav), str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def decompressed(compressed):
    path = compressed.with_name("decoded.wav")
    assert main(["decompress", str(compressed), str(path)]) == 0
    return path


@pytest.fixture
def no_codec(monkeypatch):
    """Importing the codec, and with it the array library, fails."""
    for package, name in ((codec, "stream"), (jaxsparse, "demo")):
        monkeypatch.delattr(package, name, raising=False)
        monkeypatch.setitem(sys.modules, f"{package.__name__}.{name}", None)


def snapshot(folder):
    return {
        path.name: path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def refusal(capsys, arguments):
    """Runs a command that must be refused, and returns its one line."""
    capsys.readouterr()
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    assert status == 2
    assert out == ""
    assert err.startswith("jaxsparse: ") and err.endswith("\n") and err.count("\n") == 1
    assert "Traceback" not in err
    return err


def test_round_trip_keeps_rate_channels_and_length(wav, decompressed):
    decoded, rate = soundfile.read(decompressed, always_2d=True)
    original, _ = soundfile.read(wav, always_2d=True)
    assert rate == SAMPLE_RATE
    assert decoded.shape == original.shape
    # Nothing of the channels is swapped, shifted or lost: what 5 % of the levels and the phases
    # give back is far closer to the original than to the other channel's scale.
    for channel in range(2):
        error = np.mean((decoded[:, channel] - original[:, channel]) ** 2)
        assert error < 0.3 * np.mean(original[:, channel] ** 2)


def test_the_file_says_what_the_library_decodes(compressed, decompressed):
    samples, _ = codec.decompress(compressed.read_bytes())
    decoded, _ = audio.read_audio(decompressed)
    assert np.abs(decoded - np.clip(samples, -1, 1)).max() <= 1.01 / 2**15


def test_help_and_version_load_nothing_heavy():
    code = (
        "import sys\n"
        "from jaxsparse.cli import main\n"
        "for arguments in (['--help'], ['compress', '--help']):\n"
        "    try: main(arguments)\n"
        "    except SystemExit as stop: assert stop.code == 0\n"
        "slow = {'flax', 'importlib.metadata', 'jax', 'librosa', 'matplotlib', 'numpy', 'tqdm'}\n"
        "print(slow & set(sys.modules), len(sys.modules))\n"
        "try: main(['--version'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "print(slow & set(sys.modules))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *_, loaded, version, loaded_for_version = run.stdout.splitlines()
    # A bare interpreter has some 70; argparse, json and the like bring it to a hundred.
    assert loaded.startswith("set() ") and int(loaded.split()[1]) < 150
    # Where it stands in the packages' metadata takes a while to find out.
    assert version == f"jaxsparse {jaxsparse.__version__}"
    assert loaded_for_version == "{'importlib.metadata'}"
    for word in ("compress", "decompress", "info", "demo", "examples:", "--sparsity", "dB"):
        assert word in run.stdout


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_and_version_take_no_longer_than_a_few_bare_interpreters(argument):
    command = f"from jaxsparse.cli import main; main([{argument!r}])"
    times = {command: [], "pass": []}
    # In turns, and the best of them, since the machine has other work too.
    for _ in range(5):
        for code, taken in times.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
            taken.append(time.perf_counter() - start)
    # Two to seven, by what the environment adds to each; with JAX it would be fifty.
    assert min(times[command]) < 10 * min(times["pass"])


def test_the_version_is_that_of_the_project():
    project = (Path(__file__).resolve().parent.parent / "pyproject.toml").read_text("utf-8")
    assert jaxsparse.__version__ == tomllib.loads(project)["project"]["version"]


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--sparsity", "1"],
        ["--sparsity", "-0.1"],
        ["--sparsity", "nan"],
        ["--sparsity", "most"],
        ["--phases", "61"],
        ["--grid", "cqt"],
        ["--effort", "4"],
        ["--kbps", "6", "--pesq", "3"],
        ["--seed", "x"],
        ["--sparcity", "0.9"],
        ["--seed"],
        ["one", "too", "many"],
        ["line\nbreak"],
    ],
)
def test_arguments_that_cannot_be_parsed(options, capsys, no_codec):
    files = ["in.wav", "out.jsac"] if options else []
    line = refusal(capsys, ["compress", *files, *options])
    assert "--help" in line


def test_settings_that_the_codec_refuses(wav, tmp_path, capsys):
    for options in (
        ["--value-step", "0"],
        ["--value-step", "nan"],
        ["--phase-bits", "0"],
        ["--phase-bits", "99"],
        ["--seed", "-1"],
        ["--network", "unheard-of"],
        ["--decoder", "sparse-cnn"],
        ["--mask", "loud"],
    ):
        refusal(capsys, ["compress", wav, tmp_path / "out.jsac", "--grid", "stft", *options])
    for options in (
        ["--kbps", "0"],
        ["--kbps", "nan"],
        ["--pesq", "9"],
        ["--bandwidth", "9000"],
        ["--codec", "unheard-of"],
        ["--codec", "unheard-of.safetensors"],
    ):
        refusal(capsys, ["compress", wav, tmp_path / "out.jsac", *options])
    budget = ["--grid", "stft", "--budget", "9"]
    line = refusal(capsys, ["compress", wav, tmp_path / "out.jsac", *budget])
    assert "--budget: there is no --search that would take it" in line
    for options in (
        ["--phases", "60"],
        ["--search", "swaps"],
        ["--grid", "stft", "--kbps", "6"],
    ):
        line = refusal(capsys, ["compress", wav, tmp_path / "out.jsac", *options])
        assert "belongs to --grid" in line
    assert snapshot(tmp_path) == {}


def test_damaged_files(compressed, tmp_path, capsys, no_codec):
    data = compressed.read_bytes()
    middle = len(data) // 2
    damaged = {
        "cut": data[:-1],
        "headless": data[:5],
        "longer": data + b"\0",
        "altered": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
        "newer": data[:4] + b"\xff" + data[5:],
    }
    for name, content in damaged.items():
        path = tmp_path / name
        path.write_bytes(content)
        line = refusal(capsys, ["decompress", path, tmp_path / "out.wav"])
        assert line.startswith(f"jaxsparse: {path}: ")
        assert refusal(capsys, ["info", path]) == line
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(damaged)


@pytest.mark.parametrize("command", ["info", "decompress"])
def test_large_files_of_another_kind_are_refused_unread(command, tmp_path, capsys, no_codec):
    path = tmp_path / "large.wav"
    path.write_bytes(b"RIFF")
    os.truncate(path, 2**36)
    arguments = [command, path, *[tmp_path / "out.wav"] * (command == "decompress")]
    tracemalloc.start()
    line = refusal(capsys, arguments)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert line == f"jaxsparse: {path}: not a .jsac file\n"
    assert peak < 10e6


@pytest.mark.parametrize("total", [1, 3])
def test_progress_is_shown_for_several_segments(total, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    with cli._progress("compressing") as progress:
        for done in range(total + 1):
            time.sleep(0.12)  # the bar isn't drawn more often than every 0.1 s
            progress(done, total)
    shown = terminal.getvalue()
    assert ("0/3" in shown and "3/3" in shown) if total > 1 else shown == ""


def test_a_worker_whose_caller_left_ends_quietly():
    job = _scoring.Job("stoi", np.zeros(10), np.zeros(10), 16_000)
    request = pickle.dumps(tuple(job))
    for sent in (request, request + request[:-20], request[:-20]):
        with subprocess.Popen(
            [sys.executable, "-P", _scoring.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as worker:
            assert worker.stdin and worker.stdout and worker.stderr
            worker.stdout.close()
            worker.stdin.write(sent)
            worker.stdin.close()
            assert worker.stderr.read() == b""
        assert worker.returncode == 0


def test_control_c_is_quiet(wav, tmp_path, capsys, monkeypatch):
    def interrupted(*arguments, **options):
        signal.raise_signal(signal.SIGINT)
        time.sleep(1)

    monkeypatch.setattr(stream, "compress", interrupted)
    assert main(["compress", str(wav), str(tmp_path / "out.jsac")]) == 130
    assert capsys.readouterr().err == ""
    assert snapshot(tmp_path) == {}


def test_a_programming_error_is_not_hidden(wav, tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "compress", lambda *arguments, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["compress", str(wav), str(tmp_path / "out.jsac")])


@contextlib.contextmanager
def standard_streams(stdin=None, stdout=None):
    """Descriptors in the places of standard input and output."""
    saved = os.dup(0), os.dup(1)
    try:
        for place, descriptor in enumerate((stdin, stdout)):
            if descriptor is not None:
                os.dup2(descriptor, place)
        yield
    finally:
        for place, descriptor in enumerate(saved):
            os.dup2(descriptor, place)
            os.close(descriptor)


@contextlib.contextmanager
def pipe_that_brings(data):
    source, sink = os.pipe()

    def write():
        with contextlib.suppress(BrokenPipeError), open(sink, "wb") as file:
            file.write(data)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield source
    finally:
        os.close(source)
        writer.join()


def through_pipes(arguments, data):
    """What a command makes of the bytes of one pipe in another one."""
    source, sink = os.pipe()
    read = []

    def collect():
        with open(source, "rb") as file:
            read.append(file.read())

    reader = threading.Thread(target=collect)
    reader.start()
    with pipe_that_brings(data) as stdin, standard_streams(stdin, sink):
        os.close(sink)
        status = main(arguments)
    reader.join()
    assert status == 0
    return read[0]


@pytest.mark.parametrize("names", [("-", "-"), ("/dev/stdin", "/dev/stdout")])
def test_pipes_in_both_directions(names, wav, compressed, decompressed, capsys):
    """Bytes alone go to standard output; what is said of them goes elsewhere."""
    data = through_pipes(["compress", *names], wav.read_bytes())
    assert data == compressed.read_bytes()
    out, err = capsys.readouterr()
    assert out == "" and f"{len(data):,} bytes" in err
    assert through_pipes(["decompress", *names], data) == decompressed.read_bytes()
    assert capsys.readouterr() == ("", "")
    with pipe_that_brings(data) as stdin, standard_streams(stdin):
        assert main(["info", names[0]]) == 0
    piped, _ = capsys.readouterr()
    assert main(["info", str(compressed)]) == 0
    assert capsys.readouterr().out == piped


def test_json_beside_a_file_on_standard_output(wav, compressed, capsys):
    data = through_pipes(["compress", str(wav), "-", "--json"], b"")
    assert data == compressed.read_bytes()
    out, err = capsys.readouterr()
    assert out == "" and json.loads(err) == describe(data, models=find_models(data))


def test_pipes_that_have_a_path(wav, compressed, decompressed, tmp_path, capsys):
    """As of ``<(...)`` and ``>(...)``, and those of mkfifo."""
    with pipe_that_brings(wav.read_bytes()) as source:
        path = f"/dev/fd/{source}"
        assert main(["compress", path, str(tmp_path / "out.jsac")]) == 0
    assert (tmp_path / "out.jsac").read_bytes() == compressed.read_bytes()
    named = tmp_path / "pipe"
    os.mkfifo(named)
    read = []
    reader = threading.Thread(target=lambda: read.append(named.read_bytes()))
    reader.start()
    assert main(["decompress", str(compressed), str(named), "--force"]) == 0
    reader.join()
    assert named.is_fifo() and read == [decompressed.read_bytes()]
    writer = threading.Thread(target=lambda: named.write_bytes(compressed.read_bytes()))
    writer.start()
    assert main(["info", str(named), "--json"]) == 0
    writer.join()


def test_a_file_behind_standard_output_is_gone_on_with(compressed, decompressed, tmp_path):
    path = tmp_path / "out"
    with open(path, "wb") as file, open(compressed, "rb") as source:
        file.write(b"before")
        file.flush()
        with standard_streams(source.fileno(), file.fileno()):
            assert main(["decompress", "-", "/dev/stdout"]) == 0
    assert path.read_bytes() == b"before" + decompressed.read_bytes()
    assert snapshot(tmp_path).keys() == {"out"}


def test_a_file_that_is_named_as_a_dash(compressed, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-").write_bytes(compressed.read_bytes())
    assert main(["info", "./-", "--json"]) == 0
    data = compressed.read_bytes()
    assert json.loads(capsys.readouterr().out) == describe(data, models=find_models(data))


def test_standard_streams_that_are_refused(wav, compressed, tmp_path, capsys, no_codec):
    """Before anything is read or computed."""
    (tmp_path / "empty").touch()
    controller, terminal = pty.openpty()
    null, full = os.open("/dev/null", os.O_RDWR), os.open("/dev/full", os.O_RDWR)
    folder, itself = os.open(tmp_path, os.O_RDONLY), os.open(compressed, os.O_RDWR)
    empty = os.open(tmp_path / "empty", os.O_RDONLY)
    for stdin, reason in {
        terminal: "is a terminal",
        null: "is not a regular file",
        folder: "is a directory",
        empty: "is empty",
    }.items():
        for command in (["info", "-"], ["compress", "-", "-"], ["decompress", "-", "-"]):
            with standard_streams(stdin, full):
                line = refusal(capsys, command)
            assert line == f"jaxsparse: standard input: {reason}\n"
    for stdout, reason in {
        terminal: "is a terminal",
        folder: "is a directory",
        itself: "is the input itself",
    }.items():
        for command in ("compress", "decompress"):
            with standard_streams(stdout=stdout):
                line = refusal(capsys, [command, compressed, "-"])
            assert line == f"jaxsparse: standard output: {reason}\n"
    for data, reason in ((b"", "the file is empty"), (b"RIFF", "not a .jsac file")):
        for command in (["info", "-"], ["decompress", "-", tmp_path / "out"]):
            with pipe_that_brings(data) as stdin, standard_streams(stdin):
                line = refusal(capsys, command)
            assert line == f"jaxsparse: standard input: {reason}\n"
    for descriptor in (controller, terminal, null, full, folder, itself, empty):
        os.close(descriptor)
    assert refusal(capsys, ["info", "/dev/fd/99"]) == (
        "jaxsparse: /dev/fd/99: Bad file descriptor\n"
    )
    assert snapshot(tmp_path) == {"empty": b""}


def test_standard_output_that_is_full_or_read_by_nobody(compressed, capsys, monkeypatch):
    monkeypatch.setattr(codec, "decompress", lambda *_, **options: (np.zeros((9, 1)), 16_000))
    with open("/dev/full", "wb") as full, standard_streams(stdout=full.fileno()):
        line = refusal(capsys, ["decompress", compressed, "-"])
    assert line == "jaxsparse: standard output: No space left on device\n"
    source, sink = os.pipe()
    os.close(source)
    with standard_streams(stdout=sink):
        assert main(["decompress", str(compressed), "-"]) == 1
    os.close(sink)
    assert capsys.readouterr() == ("", "")


def test_an_endless_pipe_is_refused(capsys, monkeypatch, no_codec):
    monkeypatch.setattr(audio, "MAX_PIPE_BYTES", 2**20)
    for command, data in ((["compress", "-", "-"], b"RIFF"), (["info", "-"], b"JSAC")):
        with (
            pipe_that_brings(data + bytes(2**21)) as stdin,
            open("/dev/full", "wb") as full,
            standard_streams(stdin, full.fileno()),
        ):
            line = refusal(capsys, command)
        assert line == "jaxsparse: standard input: a pipe brought more than 1 MiB\n"


def test_force_overwrites(compressed, decompressed, tmp_path, capsys):
    target = tmp_path / "out.wav"
    target.write_bytes(b"old")
    assert main(["decompress", str(compressed), str(target), "--force"]) == 0
    assert target.read_bytes() == decompressed.read_bytes()


def info(path, capsys):
    """What info prints of a file, and what it prints as JSON."""
    assert main(["info", str(path), "--json"]) == 0
    description = json.loads(capsys.readouterr().out)
    assert main(["info", str(path)]) == 0
    return capsys.readouterr().out, description


def check_rows(table, description, labels):
    rows = {line[:24].strip(): line[24:].split() for line in table.splitlines()}
    for part, label in labels.items():
        assert rows[label][0] == f"{description['part_bits'][part]:,}"
    assert rows["whole file"][0] == f"{description['bits']:,}"


def test_info(compressed, capsys, no_codec):
    table, description = info(compressed, capsys)
    data = compressed.read_bytes()
    assert description == describe(data, models=find_models(data))
    assert description["pesq_wb_estimate"] > 1 and "PESQ of about" in table
    assert description["bits"] == 8 * compressed.stat().st_size
    check_rows(table, description, {"signs": "signs", "overhead": "header and checksums"})
    assert f"{description['size_ratio_16khz']:.3f}" in table
    assert "larger, not smaller" not in table


def test_info_of_the_other_grid(capsys, no_codec):
    path = Path(__file__).parent / "same_numbers.jsac"
    table, description = info(path, capsys)
    assert description == {"grid": "stft", **container.describe(path.read_bytes())}
    check_rows(table, description, {"mask": "mask", "values": "values"})


def test_outputs_are_named_after_inputs(wav, compressed, tmp_path, capsys):
    clip = tmp_path / "clip.one.wav"
    clip.write_bytes(wav.read_bytes())
    assert main(["compress", str(clip)]) == 0
    coded = tmp_path / "clip.one.jsac"
    assert coded.read_bytes() == compressed.read_bytes()
    assert "exists already" in refusal(capsys, ["compress", clip])
    assert "exists already" in refusal(capsys, ["decompress", coded])
    assert "needs a name" in refusal(capsys, ["compress", coded])
    clip.unlink()
    assert main(["decompress", str(coded)]) == 0
    assert soundfile.info(clip).samplerate == SAMPLE_RATE


def test_a_part_is_decompressed(compressed, decompressed, tmp_path, capsys):
    part = tmp_path / "part.wav"
    span = ["--start", "0.1", "--duration", "0.2"]
    assert main(["decompress", str(compressed), str(part), *span]) == 0
    whole, rate = soundfile.read(decompressed)
    decoded, _ = soundfile.read(part)
    first, last = round(0.1 * rate), round(0.1 * rate) + round(0.2 * rate)
    np.testing.assert_allclose(decoded, whole[first:last], atol=2 / 2**15)
    line = refusal(capsys, ["decompress", compressed, tmp_path / "no.wav", "--start", "99"])
    assert "the clip ends after" in line


def test_damage_is_an_error_or_concealed(compressed, tmp_path, capsys):
    spoiled = tmp_path / "spoiled.jsac"
    data = bytearray(compressed.read_bytes())
    data[-9] ^= 1
    spoiled.write_bytes(data)
    target = tmp_path / "out.wav"
    assert "is damaged" in refusal(capsys, ["decompress", spoiled, target])
    assert main(["decompress", str(spoiled), str(target), "--conceal"]) == 0
    assert capsys.readouterr().err.startswith(f"jaxsparse: {spoiled}: 0.00 to ")
    decoded, _ = soundfile.read(target)
    assert decoded[:, 0].any() and not decoded[:, -1].any()


@pytest.mark.slow
def test_a_mask_goes_into_a_file(wav, compressed, tmp_path, capsys):
    coded, path = tmp_path / "masked.jsac", tmp_path / "mask.npz"
    arguments = ["compress", wav, coded, "--mask", path]
    assert f"{path}: No such file" in refusal(capsys, arguments)
    path.write_bytes(b"no mask")
    assert f"{path}: is no .npz file" in refusal(capsys, arguments)
    header = mdct_container.unpack(compressed.read_bytes()).header
    shapes = {"stft": (1025, 1 + header.n_coded_samples // 256), "mdct": (256, header.n_frames)}
    for grid, shape in shapes.items():
        mask = np.random.default_rng(0).random(shape) < 0.05
        save_mask(path, mask)
        grid_arguments = [*map(str, arguments), "--grid", grid, "--force"]
        assert main(grid_arguments) == 0
        capsys.readouterr()
        description = info(coded, capsys)[1]
        kept = "kept" if grid == "mdct" else "kept_bins"
        assert description[kept] == header.channels * mask.sum()
        assert description["part_bits"]["mask"] > mask.sum()
        assert "sparsity of its own" in refusal(capsys, [*grid_arguments, "--sparsity", "0.9"])
    save_mask(path, np.ones((256, 3), bool))
    assert "the mask is of the shape" in refusal(capsys, [*arguments, "--force"])
    assert "policies belong to --grid stft" in refusal(
        capsys, ["compress", wav, tmp_path / "no.jsac", "--mask", "random"]
    )
    assert "is of one clip" in refusal(
        capsys, ["compress", wav, "--out", tmp_path / "out", "--mask", path]
    )


def test_networks_of_the_other_grid_are_refused(compressed, tmp_path, capsys):
    line = refusal(capsys, ["decompress", compressed, tmp_path / "a.wav", "--decoder", "unet"])
    assert "--codec names" in line


@pytest.mark.parametrize(
    ("name", "positions"),
    [
        ("mixed", "50 % stored (the loudest), the others drawn by seed 5"),
        ("positions", "all stored"),
        ("random", "all drawn by seed 5"),
        ("loudest", "all stored (the loudest)"),
        ("loudest-quarter", "25 % stored (the loudest), the others drawn by seed 5"),
        ("some-positions", "33.3 % stored, the others drawn by seed 5"),
    ],
)
def test_info_says_where_the_kept_bins_come_from(name, positions, capsys):
    path = Path(__file__).parent / "fuzz" / "corpus" / "valid" / f"{name}.jsac"
    assert main(["info", str(path)]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "sparsity" in line]
    assert row.startswith("mask ") and row.endswith(f" bins, {positions}")


def test_compress_reports_size_and_a_network_that_fits_only_nearly(wav, tmp_path, capsys):
    options = ["--grid", "stft", "--mask", "random", "--seed", "7", "--phases", "60"]
    options += ["--phase-bits", "2"]
    small, smaller = tmp_path / "small.jsac", tmp_path / "smaller.jsac"
    assert main(["compress", str(wav), str(small), *options, "--sparsity", ".9"]) == 0
    out, err = capsys.readouterr()
    assert f"{small.stat().st_size:,} bytes" in out and "kbit/s" in out
    assert err == ""
    options += ["--sparsity", "0.99", "--json"]
    assert main(["compress", str(wav), str(smaller), *options]) == 0
    out, err = capsys.readouterr()
    description = json.loads(out)
    assert description == codec.describe(smaller.read_bytes())
    assert (description["coded_share"], description["loudest"]) == ("0", False)
    chosen = {"seed": 7, "phase_threshold": 60, "phase_bits": 2}
    assert chosen | {"sparsity": "0.99", "network": "unet"} == {
        name: description[name] for name in [*chosen, "sparsity", "network"]
    }
    assert "0.99" in err and "unet" in err and err.count("\n") == 1
