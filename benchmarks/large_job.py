"""A folder of many files: clips per second against processes, and memory against files.

``python -m benchmarks.large_job`` writes 2,000 clips of a second, turned versions of the sentence
that ships, compresses them by one process and by two that share them (``--part``), and says how
many clips a second each makes, over that of one process, and how much memory a process takes for
all files, over that for a tenth of them.
"""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from benchmarks.command import main


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    files: int = 2_000
    """Clips."""
    seconds: float = 1.0
    """Length of a clip."""
    processes: tuple[int, ...] = (1, 2)
    """Numbers of processes; the first one is what the others are compared with."""
    threads: int = 2
    """Cores that all processes may use together."""
    json: bool = False
    """Print one line of JSON."""


def run(settings: Settings) -> dict[str, Any]:
    """Writes the clips, and compresses them in all ways."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        few = max(settings.files // 10, 1)
        _write(folder / "few", few, settings.seconds)
        _write(folder / "all", settings.files, settings.seconds)
        # Compiles for all.
        _compress(folder, "few", 1, "warm")
        _, small = _compress(folder, "few", 1, "few")
        found = {n: _compress(folder, "all", n, str(n)) for n in settings.processes}
    rates = {n: settings.files / seconds for n, (seconds, _) in found.items()}
    first = rates[settings.processes[0]]
    return {
        "clips": settings.files,
        "rate_over_first": {str(n): rate / first for n, rate in rates.items()},
        "times_real_time": {str(n): rate * settings.seconds for n, rate in rates.items()},
        "peak_mb": {str(n): peak / 1e6 for n, (_, peak) in found.items()},
        "peak_over_a_tenth": found[settings.processes[0]][1] / small,
    }


def _write(folder: Path, n: int, seconds: float) -> None:
    folder.mkdir()
    with resources.as_file(resources.files("jaxsparse") / "assets" / "sentence.flac") as path:
        sentence, rate = soundfile.read(path, dtype="float32")
    length = round(seconds * rate)
    for i in range(n):
        turned = np.roll(np.resize(sentence, max(length, len(sentence))), -997 * i)
        soundfile.write(folder / f"{i:06}.flac", turned[:length], rate)


def _compress(folder: Path, source: str, n: int, name: str) -> tuple[float, float]:
    """Seconds, and the largest process's peak memory in bytes."""
    environment = os.environ | {"JAXSPARSE_CACHE": str(folder / "cache")}
    began = time.perf_counter()
    started = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "jaxsparse", "compress", str(folder / source)),
                *("--out", str(folder / f"out-{name}"), "--part", f"{i + 1}/{n}"),
            ],
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        for i in range(n)
    ]
    peaks = []
    for process in started:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"compress ended with {process.returncode}")
        peaks.append(1024 * usage.ru_maxrss)
    return time.perf_counter() - began, float(max(peaks))


if __name__ == "__main__":
    main(Settings, run, __doc__)
