"""Several devices, made of one processor, and several processes, by programs of their own."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxsparse import sharding
from jaxsparse.audio import write_wav
from jaxsparse.sharding import ShardingError
from train.main import main

PROGRAM = Path(__file__).with_name("on_devices.py")
# As Slurm has them; the coordinator's port comes from the job's number.
SLURM = {"SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "localhost"}


def environment(n_devices, **more):
    found = os.environ | {"JAX_NUM_CPU_DEVICES": str(n_devices), **more}
    # With fewer threads, devices that wait for each other hang on two cores.
    found["NPROC"] = "16"
    found["PYTHONPATH"] = str(PROGRAM.parents[1])
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("devices")
    rng = np.random.default_rng(0)
    (folder / "corpus").mkdir()
    for i in range(11):
        noise = 0.01 * (1 + i) * rng.standard_normal((5_000, 1))
        write_wav(folder / "corpus" / f"{i:02}.wav", noise.astype(np.float32), 16_000)
    return folder


def steps_saved(run):
    found = (run / "checkpoints").glob("[0-9]*")
    return max((int(path.name) for path in found if path.name.isdigit()), default=0)


@pytest.fixture(scope="module")
def pair(folder):
    """Two processes with two devices each, of which one is killed while they train."""
    job = str(os.getpid())
    logs = [folder / f"{i}.log" for i in range(2)]
    processes = []
    for i, log in enumerate(logs):
        own = {"SLURM_JOB_ID": job, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}
        with log.open("wb") as file:
            processes.append(
                subprocess.Popen(
                    [sys.executable, str(PROGRAM), "one-of-two", str(folder)],
                    env=environment(2, **SLURM, **own),
                    stdout=file,
                    stderr=file,
                )
            )
    try:
        deadline = time.monotonic() + 200
        while not steps_saved(folder / "pair") >= 3:
            assert all(process.poll() is None for process in processes), logs[0].read_text()
            assert time.monotonic() < deadline, logs[0].read_text()
            time.sleep(0.05)
        processes[0].send_signal(signal.SIGKILL)
        # Without it the other one ends as well.
        assert processes[1].wait(100) != 0
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return json.loads((folder / "pair.json").read_text())


@pytest.fixture(scope="module")
def eight(folder, pair):
    """What a process with eight devices finds."""
    command = [sys.executable, str(PROGRAM), "eight", str(folder)]
    ran = subprocess.run(command, env=environment(8), capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def losses(folder, name):
    with (folder / name / "log.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_a_search_is_the_same_on_any_number_of_devices(pair, eight):
    assert eight["split"]
    for found in (eight["eight"], pair):
        for (loss, bits), (expected, expected_bits) in zip(found, eight["alone"], strict=True):
            np.testing.assert_allclose(loss, expected, rtol=1e-6)
            assert bits == expected_bits


def test_training_is_the_same_on_eight_devices_then_two_then_one(folder, eight):
    expected = losses(folder, "one")
    assert len(expected) == 4 and expected[3] < expected[0]
    np.testing.assert_allclose(losses(folder, "fewer"), expected, rtol=1e-5)


def test_one_process_goes_on_from_what_a_killed_one_left(folder, eight):
    expected, found = losses(folder, "one"), losses(folder, "pair")
    assert len(found) >= 4
    np.testing.assert_allclose(found[:4], expected, rtol=1e-5)
    assert (folder / "pair" / "pictures" / "step-000002.png").stat().st_size > 0


def test_without_a_mesh_there_is_one_device():
    assert sharding.n_devices() == 1
    tree = {"a": [1, 2]}
    assert sharding.split(tree) is tree
    with sharding.use(1):
        assert sharding.n_devices() == 1
        assert sharding.order_of_rows(3).tolist() == [0, 1, 2]
        assert sharding.place_rows(np.ones((2, 3))).shape == (2, 3)


@pytest.mark.parametrize("n", [0, 1_000])
def test_a_mesh_has_the_devices_that_there_are(n):
    with pytest.raises(ValueError, match=f"a mesh has 1 to [0-9]+ devices here, not {n}"):
        sharding.make_mesh(n)


def test_devices_that_are_not_there_are_refused_in_one_line(folder, tmp_path, capsys):
    flags = ["--data", str(folder / "corpus"), "--workdir", str(tmp_path / "run"), "--mesh"]
    assert main([*flags, "1000"]) == 2
    assert "train: a mesh has 1 to" in capsys.readouterr().err
    # JAX has begun to compute here, which is too late for a cluster.
    jax.block_until_ready(jax.numpy.zeros(()))
    assert main([*flags, "cluster"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("train: no cluster is found: ") and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_batch_that_devices_do_not_divide_is_refused(monkeypatch):
    monkeypatch.setattr(sharding, "n_devices", lambda: 4)
    monkeypatch.setattr(sharding, "n_processes", lambda: 2)
    with pytest.raises(ShardingError, match="a batch of 6 can't be split over 4 devices"):
        sharding.order_of_rows(6)
    # Process 0 holds the rows 0, 2, 4 and 6, dealt out to its two devices.
    assert sharding.order_of_rows(8).tolist() == [0, 4, 2, 6, 1, 5, 3, 7]


@pytest.mark.slow
def test_an_evaluation_is_the_same_on_two_devices(folder, tmp_path):
    words = ["--data", str(folder / "corpus"), "--limit", "3", "--n-samples", "8000"]
    words += ["--decoders", "unet", "linear", "--mask", "random", "--sparsity", "0.9"]
    words += ["--seeds", "0", "--phases", "all", "--batch", "2"]
    rows = {}
    for name, more in {"one": [], "two": ["--mesh", "all"]}.items():
        command = [sys.executable, "-m", "eval.reconstruction", *words, *more]
        command += ["--out", str(tmp_path / name)]
        subprocess.run(command, env=environment(2), capture_output=True, check=True, timeout=300)
        with (tmp_path / name / "rows.csv").open(newline="") as file:
            rows[name] = list(csv.DictReader(file))
    assert len(rows["one"]) == len(rows["two"]) > 3
    for one, two in zip(rows["one"], rows["two"], strict=True):
        assert (one["clip"], one["method"]) == (two["clip"], two["method"])
        assert float(two["mse"]) == pytest.approx(float(one["mse"]), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_process_stops_all_after_the_same_step(number, folder, tmp_path):
    """They find each other by JAX's own variables here."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    words = ["--data", str(folder / "corpus"), "--workdir", str(tmp_path / "run"), "--batch-size"]
    words += ["8", "--n-samples", "4000", "--crop", "24", "16", "--picture-every", "0"]
    words += ["--checkpoint-every", "1", "--workers", "1", "--mesh", "cluster"]
    processes = []
    for i in range(2):
        own = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
        command = [sys.executable, "-m", "train.main", *words]
        env = environment(2, JAX_PROCESS_ID=str(i), **own)
        processes.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
    try:
        deadline = time.monotonic() + 200
        while not steps_saved(tmp_path / "run"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        processes[1].send_signal(number)
        told = [process.communicate(timeout=100)[1].splitlines()[-1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    # The other one can only know that it was stopped.
    assert [process.returncode for process in processes] == [75, 75 if number == 15 else 130]
    assert told[0] == told[1] and "the same command with --resume goes on" in told[0]
