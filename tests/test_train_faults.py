"""What happens to a run on real machines: kills, full disks, other data, NaN."""

import contextlib
import csv
import dataclasses
import errno
import json
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxsparse import checkpoint
from jaxsparse.audio import write_wav
from jaxsparse.checkpoint import Checkpoints
from jaxsparse.data.clips import find_clips
from jaxsparse.nn.sparse_cnn import SparseCNNConfig
from train import loop, main
from train.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
STEPS = 12
SIZES = {
    "steps": STEPS,
    "batch_size": 1,
    "n_samples": 2_000,
    "crop": (16, 4),
    "log_every": 2,
    "checkpoint_every": 3,
    "picture_every": 0,
    "learning_rate": 1e-3,
    "decoder": SparseCNNConfig(kernel_gradient="native"),
}


def write_clips(directory, *, seconds=0.2, count=5):
    directory.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        samples = 0.1 * rng.standard_normal((int(seconds * 16_000), 1)).astype(np.float32)
        write_wav(directory / f"{i}.wav", samples, 16_000)


@pytest.fixture(scope="module", autouse=True)
def cache(compiled_once):
    """Every run compiles the same step: the first one does, for the processes too."""
    return compiled_once


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    directory = tmp_path_factory.mktemp("speech") / "corpus"
    write_clips(directory)
    return directory


@pytest.fixture
def settings(corpus, tmp_path):
    return Settings(corpus, tmp_path / "run", **SIZES)


def arguments(settings, *more):
    """The command's arguments for the settings."""
    words = ["--data", str(settings.data), "--workdir", str(settings.workdir)]
    for name in SIZES:
        value = getattr(settings, name)
        if name == "decoder":
            name, value = "decoder.kernel-gradient", value.kernel_gradient
        words += ["--" + name.replace("_", "-"), *map(str, np.atleast_1d(value))]
    return [*words, *more]


class End:
    """What a finished run leaves behind, without times."""

    def __init__(self, workdir):
        self.workdir = workdir
        self.network = (workdir / "network.safetensors").read_bytes()
        with (workdir / "log.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        self.log = [(row["step"], row["loss"], row["learning_rate"]) for row in rows]

    def __eq__(self, other):
        return self.network == other.network and self.log == other.log


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """The end of the run that nothing happens to."""
    settings = Settings(corpus, tmp_path_factory.mktemp("whole") / "run", **SIZES)
    loop.train(settings)
    end = End(settings.workdir)
    assert [int(step) for step, *_ in end.log] == [2, 3, 5, 6, 8, 9, 11, 12]
    assert len({loss for _, loss, _ in end.log}) == 8
    return end


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    """Settings of a run of three steps, whose clips were moved since, and which went on there."""
    folder = tmp_path_factory.mktemp("short")
    settings = Settings(folder / "corpus", folder / "run", **SIZES)
    settings = dataclasses.replace(settings, steps=3)
    write_clips(settings.data)
    assert main.main(arguments(settings)) == 0
    moved = settings.data.rename(folder / "elsewhere")
    settings = dataclasses.replace(settings, data=moved)
    assert main.main(arguments(settings, "--resume")) == 0
    return settings


@pytest.fixture
def short(short_run, tmp_path):
    """Settings of a copy of that run and of its clips, which a test may change."""
    data, workdir = (tmp_path / path.name for path in (short_run.data, short_run.workdir))
    shutil.copytree(short_run.data, data)
    shutil.copytree(short_run.workdir, workdir)
    return dataclasses.replace(short_run, data=data, workdir=workdir)


def newest_step(settings):
    checkpoints = Checkpoints(settings.workdir / "checkpoints")
    found = checkpoints.newest()
    checkpoints.close()
    return found and found.step


class Process:
    """The command as a process of its own."""

    def __init__(self, settings, cache, *more):
        self.workdir = settings.workdir
        # What a killed process left half-written stays until the next checkpoint is saved.
        self.left = self.unfinished()
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            **{name.upper(): str(value) for name, value in cache.items()},
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "train.main", *arguments(settings, *more)],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait_for(self, condition):
        """Polls until the condition holds; False if the process ended before."""
        while not condition():
            if self.process.poll() is not None:
                return False
            time.sleep(0.001)
        return True

    def rows(self):
        path = self.workdir / "log.csv"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def unfinished(self):
        found = set()
        for path in self.workdir.glob("checkpoints/*.unfinished*"):
            with contextlib.suppress(FileNotFoundError):
                found.add((path.name, path.stat().st_mtime_ns))
        return found

    def is_writing(self):
        return bool(self.unfinished() - self.left)

    def hold_while_writing(self, rng):
        """Stops the process at some moment of a checkpoint's being written."""
        while self.wait_for(self.is_writing):
            time.sleep(rng.uniform(0, 0.05))
            self.process.send_signal(signal.SIGSTOP)
            if self.is_writing():
                return
            self.process.send_signal(signal.SIGCONT)

    def end(self, number=None):
        """Sends the signal, if one is given; returns the exit status and the lines on stderr."""
        if number is not None:
            self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=300)
        return self.process.returncode, errors.splitlines()


MOMENTS = ("starting", "training", "writing")


def kill_at(process, moment, rng):
    """Waits for a random moment and kills; tells if that was before the end."""
    rows = process.rows()
    if moment == "starting":
        time.sleep(rng.uniform(0.1, 4))
    elif moment == "training":
        process.wait_for(lambda: process.rows() > rows + rng.randrange(2))
        time.sleep(rng.uniform(0, 0.05))
    else:
        process.hold_while_writing(rng)
    status, _ = process.end(signal.SIGKILL)
    assert status in (0, -signal.SIGKILL)
    return status != 0


def run_with_kills(settings, cache, moments, rng):
    """Kills a run at each of the moments, starting it again in between, and lets it end.

    Returns:
        The kills, those among them that came while a checkpoint was being written, and those after
        which the next process found a checkpoint.
    """
    counts = {"kills": 0, "while_writing": 0, "resumed": 0}
    before = None
    process = Process(settings, cache, "--resume")
    for moment in moments:
        if kill_at(process, moment, rng):
            counts["kills"] += 1
            counts["while_writing"] += process.is_writing()
        before = newest_step(settings)
        counts["resumed"] += bool(before)
        process = Process(settings, cache, "--resume")
    status, errors = process.end()
    assert status == 0, errors
    assert (f"resuming at step {before}" in errors) == bool(before)
    assert not any("damaged" in line for line in errors)
    assert not process.unfinished()
    return counts


@pytest.mark.slow
def test_three_kills_change_nothing(settings, whole, cache):
    counts = run_with_kills(settings, cache, ("writing", "training", "starting"), random.Random(0))
    assert counts["kills"] == 3
    assert counts["while_writing"] >= 1
    assert End(settings.workdir) == whole


@pytest.mark.slow
def test_fifty_kills_change_nothing(settings, whole, cache, tmp_path):
    rng = random.Random(1)
    total = {"kills": 0, "while_writing": 0, "resumed": 0}
    runs = 0
    while total["kills"] < 50:
        runs += 1
        workdir = tmp_path / f"run-{runs}"
        moments = rng.choices(MOMENTS, k=min(5, 50 - total["kills"]))
        counts = run_with_kills(dataclasses.replace(settings, workdir=workdir), cache, moments, rng)
        total = {name: total[name] + counts[name] for name in total}
        assert End(workdir) == whole
        print(f"run {runs}: {moments}, {counts}; in all {total}", flush=True)
    assert total["while_writing"] >= 5
    assert total["resumed"] >= 10


def send_at(step, number, monkeypatch):
    """Lets the run get a signal during a step."""
    add = loop.Log.add

    def add_and_send(self, loss):
        if self.step + 1 == step:
            os.kill(os.getpid(), number)
        add(self, loss)

    monkeypatch.setattr(loop.Log, "add", add_and_send)


@pytest.mark.parametrize(
    ("number", "code", "step"),
    # Between two lines of the log, at a line, and at a checkpoint.
    [
        (signal.SIGTERM, 75, 4),
        pytest.param(signal.SIGINT, 130, 5, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 75, 6, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_the_step_and_the_end_is_the_same(
    settings, whole, monkeypatch, capfd, number, code, step
):
    before = signal.getsignal(number)
    send_at(step, number, monkeypatch)
    assert main.main(arguments(settings)) == code
    monkeypatch.undo()
    assert signal.getsignal(number) is before
    assert capfd.readouterr().err.splitlines() == [
        f"train: stopped at step {step} of {STEPS}, which is saved in {settings.workdir}; "
        "the same command with --resume goes on"
    ]
    assert newest_step(settings) == step
    assert main.main(arguments(settings, "--resume")) == 0
    assert End(settings.workdir) == whole


@pytest.mark.slow
def test_a_signal_that_the_readers_get_too_saves_the_step(settings, cache):
    """As Ctrl-C in a terminal and the end of a service do."""
    long = dataclasses.replace(settings, steps=100_000, checkpoint_every=100_000, log_every=1)
    process = Process(long, cache, "--workers", "1")
    assert process.wait_for(lambda: process.rows() > 3)
    os.killpg(process.process.pid, signal.SIGTERM)
    status, errors = process.end()
    assert status == 75, errors
    step = newest_step(long)
    assert step is not None and step >= 3
    assert any(line.startswith(f"train: stopped at step {step} of ") for line in errors)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(number):
    code = (
        "import os; from train.main import StopSignals\n"
        "with StopSignals() as signals:\n"
        "    assert not signals.requested()\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
        "    assert signals.requested()\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
        "    print('not reached')\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (-number, "")


def test_ignored_signals_stay_ignored():
    code = (
        "import os, signal; from train.main import StopSignals\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "with StopSignals():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "print('reached')\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout == "reached\n"


def test_a_signal_while_starting_ends_with_its_code(settings, cache):
    process = Process(settings, cache)
    # Within the imports, of which there are seconds.
    time.sleep(0.8)
    status, errors = process.end(signal.SIGTERM)
    assert (status, errors) == (75, ["train: stopped before the first step"])
    assert not settings.workdir.exists()


def can_mount(directory):
    if os.geteuid() != 0 or not shutil.which("mount"):
        return False
    options = ["-t", "tmpfs", "-o", "size=4m", "none", str(directory)]
    return subprocess.run(["mount", *options], capture_output=True).returncode == 0


class FullDisk:
    """A directory in which writing can be made to fail, and works again afterwards.

    Where the account may mount one, that is a small file system, filled up; everywhere else, and
    with `mount` false, files are kept from growing beyond a limit.
    """

    def __init__(self, directory, *, mount):
        self.directory = directory
        self.mounted = mount and can_mount(directory)
        self.error = errno.ENOSPC if self.mounted else errno.EFBIG
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self, limit):
        if not self.mounted:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, self._limits[1]))
            return
        with (self.directory / "ballast").open("wb", buffering=0) as file:
            for size in (1 << 16, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError as error:
                    assert error.errno == errno.ENOSPC

    def free(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)
        (self.directory / "ballast").unlink(missing_ok=True)

    def close(self):
        self.free()
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.directory)], check=True)


@pytest.fixture(params=[pytest.param(True, marks=pytest.mark.slow), False], ids=["full", "limited"])
def disk(request, tmp_path):
    directory = tmp_path / "disk"
    directory.mkdir()
    full = FullDisk(directory, mount=request.param)
    yield full
    full.close()


def fill_at(step, limit, disk, monkeypatch):
    add = loop.Log.add

    def fill_and_add(self, loss):
        if self.step + 1 == step:
            disk.fill(limit)
        add(self, loss)

    monkeypatch.setattr(loop.Log, "add", fill_and_add)


def assert_full(disk, path, capture):
    disk.free()
    line = f"train: {path}: {os.strerror(disk.error)}"
    assert capture.readouterr().err.splitlines() == [line]


def test_no_room_for_a_checkpoint(settings, whole, disk, monkeypatch, capfd):
    settings = dataclasses.replace(settings, workdir=disk.directory / "run")
    fill_at(5, 50_000, disk, monkeypatch)
    assert main.main(arguments(settings)) == 2
    monkeypatch.undo()
    checkpoints = settings.workdir / "checkpoints"
    assert_full(disk, checkpoints / "6", capfd)
    assert [path.name for path in checkpoints.iterdir()] == ["3"]
    assert main.main(arguments(settings, "--resume")) == 0
    assert End(settings.workdir) == whole


def test_no_room_for_the_log_at_the_start(settings, capfd):
    settings.workdir.mkdir()
    (settings.workdir / "log.csv").symlink_to("/dev/full")
    assert main.main(arguments(settings)) == 2
    line = f"train: {settings.workdir / 'log.csv'}: No space left on device"
    assert capfd.readouterr().err.splitlines() == [line]


@pytest.mark.slow
def test_no_room_for_the_log_later(settings, whole, tmp_path, monkeypatch, capsys):
    # `capsys`, since what is printed would not fit into a file of `capfd` either.
    disk = FullDisk(tmp_path, mount=False)
    fill_at(5, 120, disk, monkeypatch)
    assert main.main(arguments(settings)) == 2
    monkeypatch.undo()
    assert_full(disk, settings.workdir / "log.csv", capsys)
    assert newest_step(settings) == 3
    assert main.main(arguments(settings, "--resume")) == 0
    assert End(settings.workdir) == whole


@pytest.mark.slow
def test_no_room_for_a_picture(settings, disk, monkeypatch, capfd):
    settings = dataclasses.replace(settings, workdir=disk.directory / "run", picture_every=4)
    fill_at(4, 10_000, disk, monkeypatch)
    assert main.main(arguments(settings)) == 2
    assert_full(disk, settings.workdir / "pictures" / "step-000004.png", capfd)
    assert list((settings.workdir / "pictures").iterdir()) == []
    assert newest_step(settings) == 3


def test_no_room_for_the_network(settings, whole, disk, monkeypatch, capfd):
    settings = dataclasses.replace(settings, workdir=disk.directory / "run")
    save_weights = loop.save_weights

    def fill_and_save(*args, **options):
        disk.fill(50_000)
        save_weights(*args, **options)

    monkeypatch.setattr(loop, "save_weights", fill_and_save)
    assert main.main(arguments(settings)) == 2
    monkeypatch.undo()
    network = settings.workdir / "network.safetensors"
    assert_full(disk, network, capfd)
    assert not network.exists()
    assert main.main(arguments(settings, "--resume")) == 0
    assert End(settings.workdir) == whole


def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(settings, whole, caplog):
    shutil.copytree(whole.workdir, settings.workdir)
    (settings.workdir / "network.safetensors").unlink()
    checkpoints = settings.workdir / "checkpoints"
    largest = max((checkpoints / "12").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    caplog.clear()
    with caplog.at_level(logging.INFO, "train"):
        assert main.main(arguments(settings, "--resume")) == 0
    name = largest.relative_to(checkpoints / "12")
    assert [record.getMessage() for record in caplog.records if record.name != "absl"] == [
        f"{checkpoints / '12'} is damaged and passed over: {name}: "
        "not the SHA-256 that SHA256SUMS lists",
        "resuming at step 9",
    ]
    assert End(settings.workdir) == whole
    assert (checkpoints / "damaged-12").is_dir()


def contents(settings):
    """What a checkpoint of a run holds beside its state."""
    rows = [dict.fromkeys(loop.Log(settings).fields, 1.0)]
    pending = [dict.fromkeys(("loss", *settings.terms), 1.0)]
    return {
        "data": {"loader": {}, "log": {"rows": rows, "pending": pending}},
        "settings": {"settings": loop._identity(settings), "clips": {"count": 1, "sha256": "0"}},
    }


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("settings", {}),
        ("settings", {"settings": [], "clips": {"count": 4, "sha256": "0"}}),
        ("settings", {"settings": {}, "clips": {"count": 4}}),
        ("settings", {"settings": {}, "clips": None}),
        ("data", {}),
        ("data", {"log": {"rows": [], "pending": []}}),
        ("data", {"loader": {}, "log": {"rows": None, "pending": []}}),
        ("data", {"loader": {}, "log": {"rows": [{"step": 1}], "pending": []}}),
        ("data", {"loader": {}, "log": {"rows": [], "pending": [{"mse": 1.0}]}}),
    ],
)
def test_a_checkpoint_without_what_the_run_needs_is_passed_over(tmp_path, caplog, part, value):
    settings = Settings(tmp_path, tmp_path / "run", resume=True)
    with contextlib.closing(Checkpoints(settings.workdir / "checkpoints")) as checkpoints:
        checkpoints.save(1, {"step": np.ones(1)}, **contents(settings))
        checkpoints.save(2, {"step": np.ones(1)}, **(contents(settings) | {part: value}))
        found = loop._find_run(checkpoints, settings, loop._identity(settings))
    assert found and found.step == 1
    (line,) = [r.getMessage() for r in caplog.records if r.name == "jaxsparse.checkpoint"]
    assert line.startswith(f"{settings.workdir / 'checkpoints' / '2'} is damaged and passed over: ")


def test_the_log_of_another_loss_is_no_damage(tmp_path, caplog):
    before = Settings(tmp_path, tmp_path / "run", resume=True, loss="mse+mfcc")
    with contextlib.closing(Checkpoints(before.workdir / "checkpoints")) as checkpoints:
        checkpoints.save(1, {"step": np.ones(1)}, **contents(before))
        with pytest.raises(FileExistsError, match="another loss"):
            other = dataclasses.replace(before, loss="mse")
            loop._find_run(checkpoints, other, loop._identity(other))
    assert not [r for r in caplog.records if r.name == "jaxsparse.checkpoint"]


def test_a_state_that_is_not_the_loaders_is_one_error(short, capfd):
    path = short.workdir / "checkpoints" / "3"
    about = json.loads((path / "about" / "metadata").read_text())
    about["data"]["loader"] = {"next": 1}
    (path / "about" / "metadata").write_text(json.dumps(about))
    (path / "SHA256SUMS").write_bytes(checkpoint._sums(path))
    assert main.main(arguments(short, "--resume")) == 2
    line = f"train: {path}: the loader can't go on from its state"
    assert capfd.readouterr().err.splitlines()[-1] == line


def test_no_good_checkpoint_is_an_error(short, capfd, caplog):
    checkpoints = short.workdir / "checkpoints"
    (checkpoints / "3" / "SHA256SUMS").unlink()
    before = sorted(short.workdir.rglob("*"))
    assert main.main(arguments(short, "--resume")) == 2
    line = f"train: {checkpoints}: no checkpoint is whole and unaltered"
    assert capfd.readouterr().err.splitlines() == [line]
    assert [record.getMessage() for record in caplog.records if record.name != "absl"] == [
        f"{checkpoints / '3'} is damaged and passed over: it has no SHA256SUMS"
    ]
    assert sorted(short.workdir.rglob("*")) == before


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_never_saved(settings, capfd):
    argv = arguments(settings, "--learning-rate", "1e38", "--checkpoint-every", "1")
    assert main.main(argv) == 2
    line = f"train: {settings.workdir}: the loss is nan at step 2; the checkpoint of step 1 stays"
    assert capfd.readouterr().err.splitlines() == [line]
    assert newest_step(settings) == 1
    assert not (settings.workdir / "network.safetensors").exists()


def test_the_step_with_the_bad_loss_is_named_though_losses_are_read_later(settings, capfd):
    argv = arguments(settings, "--learning-rate", "1e38", "--log-every", "6")
    assert main.main([*argv, "--checkpoint-every", "12"]) == 2
    line = f"train: {settings.workdir}: the loss is nan at step 2; no checkpoint was made"
    assert capfd.readouterr().err.splitlines() == [line]
    assert newest_step(settings) is None


@pytest.mark.slow
def test_parameters_that_are_not_finite_are_never_saved(settings, capfd):
    # The first loss is finite, the update that follows it is not.
    argv = arguments(settings, "--learning-rate", "3.4e38", "--weight-decay", "1")
    assert main.main([*argv, "--checkpoint-every", "1"]) == 2
    line = (
        f"train: {settings.workdir}: the parameters are not finite after step 1; "
        "no checkpoint was made"
    )
    assert capfd.readouterr().err.splitlines() == [line]
    assert newest_step(settings) is None


def change_a_name(corpus):
    (corpus / "0.wav").rename(corpus / "00.wav")


def change_a_size(corpus):
    write_wav(corpus / "0.wav", np.zeros((3_300, 1), np.float32), 16_000)


def leave_one_out(corpus):
    (corpus / "0.wav").unlink()


def make_one_unusable(corpus):
    size = (corpus / "0.wav").stat().st_size
    (corpus / "0.wav").write_bytes(b"x" * size)


@pytest.mark.parametrize("change", [change_a_name, change_a_size, leave_one_out, make_one_unusable])
def test_resuming_on_other_data_is_refused(short, change, capfd):
    change(short.data)
    before = (short.workdir / "log.csv").read_text()
    assert main.main(arguments(short, "--resume")) == 2
    *_, line = capfd.readouterr().err.splitlines()
    assert line.startswith(f"train: {short.workdir} holds a run with another clips.")
    assert (short.workdir / "log.csv").read_text() == before


def test_the_fingerprint_is_of_names_and_sizes(corpus, tmp_path):
    write_clips(tmp_path / "same")
    write_clips(tmp_path / "longer", seconds=0.3)
    prints = [
        loop.fingerprint(find_clips(path))
        for path in (corpus, tmp_path / "same", tmp_path / "longer")
    ]
    assert prints[0] == prints[1] != prints[2]
    assert prints[0]["count"] == 5
    assert json.loads(json.dumps(prints[0])) == prints[0]


def test_other_settings_are_named_with_both_values(short, capfd):
    argv = arguments(short, "--resume", "--seed", "4", "--weight-decay", "0")
    assert main.main(argv) == 2
    assert capfd.readouterr().err.splitlines() == [
        f"train: {short.workdir} holds a run with another weight_decay (0.0005, now 0.0), "
        "seed (0, now 4): take another folder"
    ]


def test_a_workdir_that_is_a_file(settings, capfd):
    settings.workdir.write_text("mine")
    assert main.main(arguments(settings)) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("train: ")
    assert str(settings.workdir) in line
    assert settings.workdir.read_text() == "mine"


def test_a_workdir_that_is_not_writable(settings, tmp_path, capfd):
    # Not even root may write there; as anyone else, permissions suffice.
    parent = Path("/proc/self") if os.geteuid() == 0 else tmp_path / "readonly"
    if os.geteuid() != 0:
        parent.mkdir(mode=0o555)
    settings = dataclasses.replace(settings, workdir=parent / "run")
    assert main.main(arguments(settings)) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"train: {parent / 'run'}: ")


def test_a_fault_of_the_program_is_a_traceback(settings, monkeypatch):
    def broken(*_):
        raise ValueError("shapes do not match")

    monkeypatch.setattr(loop, "make_step", broken)
    with pytest.raises(ValueError, match="shapes"):
        main.main(arguments(settings))
