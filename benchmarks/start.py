"""Time from a command's start to its first result, cold and with what was compiled before.

``python -m benchmarks.start`` runs each command twice in processes of its own, with an empty folder
for compiled programs and with that of the first run, on the sentence that ships. What is printed is
over the time that ``import jax`` and one addition take in the same run.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from benchmarks.command import main

_ADD = [sys.executable, "-c", "import jax.numpy as jnp; (jnp.zeros(3) + 1).block_until_ready()"]


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    threads: int = 2
    """Cores that the process may use."""
    json: bool = False
    """Print one line of JSON."""


def commands(folder: Path) -> dict[str, list[str]]:
    """Commands by name; some need what the one before has written."""
    clip, coded = str(folder / "data" / "sentence.flac"), str(folder / "sentence.jsac")
    data = ["--data", str(folder / "data")]

    def module(name: str, *more: str) -> list[str]:
        return [sys.executable, "-m", name, *more]

    return {
        "help": module("jaxsparse", "--help"),
        "compress": module("jaxsparse", "compress", clip, coded, "--force"),
        "decompress": module("jaxsparse", "decompress", coded, f"{folder}/a.wav", "--force"),
        "compress, stft": module(
            *("jaxsparse", "compress", clip, f"{folder}/b.jsac", "--grid", "stft", "--force")
        ),
        "train, one step": module(
            *("train.main", "--recipe", "fast", *data, "--workdir", "RUN", "--steps", "1"),
            *("--batch-size", "1", "--picture-every", "0"),
        ),
        "eval.reconstruction": module(
            *("eval.reconstruction", *data, "--decoders", "unet", "--seeds", "0"),
            *("--phases", "all", "--keep-observed", "yes", "--batch", "1"),
        ),
        "eval.searches": module(
            *("eval.searches", *data, "--methods", "relaxed-straight-through-exact-sum"),
            *("--evaluations", "25", "--out", "RUN"),
        ),
    }


def run(settings: Settings) -> dict[str, Any]:
    """Times all commands."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data").mkdir()
        sentence = resources.files("jaxsparse") / "assets" / "sentence.flac"
        (folder / "data" / "sentence.flac").write_bytes(sentence.read_bytes())
        base = min(_time(folder, _ADD, "none") for _ in range(3))
        found = {}
        for title, command in commands(folder).items():
            cold, cached = (
                _time(folder, [word.replace("RUN", str(folder / run)) for word in command], title)
                for run in ("first", "second")
            )
            found[title] = {"cold": cold / base, "cached": cached / base}
    return found


def _time(folder: Path, command: Sequence[str], cache: str) -> float:
    environment = os.environ | {"JAXSPARSE_CACHE": str(folder / f"cache-{cache}")}
    began = time.perf_counter()
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode:
        sys.exit(f"{' '.join(command)}: {ran.stderr}")
    return time.perf_counter() - began


if __name__ == "__main__":
    main(Settings, run, __doc__)
