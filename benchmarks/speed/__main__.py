"""How fast each part is: beside peers in the same process, and beside a floor.

``python -m benchmarks.speed --out results/speed`` times each case at each number of clips in a
process of its own. Variants take turns, after a first round that compiles, and the medians count.
Before anything is timed, the results of passes forward, steps, populations and transforms are
compared with those of plain PyTorch. All compute at float32. The ratio is our time over the peer's
with the same threads. The floor is the larger of two times: that of the direct method's
multiply-adds at the speed of a matrix product, and that of reading inputs and writing results once
at the speed of a copy, both measured in the same process. Memory is the peak of a process that runs
the variant twice and no other, libraries and compiler included; that of a GPU is not in it.

Peers are plain PyTorch, eager and compiled, librosa, Opus and evosax: the extra
``jaxsparse[benchmark]``. Rows of a case replace those that are in ``--out``.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

from benchmarks.command import restrict_threads
from eval.report import grid
from jaxsparse.errors import JaxsparseError
from jaxsparse.files import atomic_write

_MATRIX = 2048
_COPIED = 1 << 28


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    cases: tuple[str, ...] = ()
    """What to time; all cases by default. For an unknown one the names are listed."""
    clips: tuple[int, ...] = (1, 4, 16)
    """Clips of 4.83 s at once."""
    repeats: int = 5
    """Rounds that count."""
    threads: int = 2
    """Cores that a process may use."""
    memory: bool = True
    """Measure memory too, by a process for each variant."""
    compiled: bool = True
    """Time compiled PyTorch too, which takes minutes to compile."""
    out: Path | None = None
    """Folder for table.md and rows.json."""
    json: bool = False
    """Print JSON instead of the table."""
    child: tuple[str, int, str] | None = None
    """For the processes that this program starts: a case, clips and one variant or all."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs from the command line."""
    settings = tyro.cli(Settings, prog="python -m benchmarks.speed", description=__doc__, args=argv)
    restrict_threads(settings.threads)
    if settings.child:
        print(json.dumps(_measure(settings, *settings.child)))
        return
    try:
        rows = run(settings)
    except JaxsparseError as error:
        sys.exit(f"benchmarks.speed: {error}")
    print(json.dumps(rows) if settings.json else table(rows))


def run(settings: Settings) -> list[dict[str, Any]]:
    """Times all, writes the table after each case, and returns its rows.

    Raises:
        JaxsparseError: If a case is unknown or its process fails.
    """
    # Here, since JAX counts the cores when it starts.
    from benchmarks.speed.cases import CASES, ONE_CLIP

    for name in settings.cases:
        if name not in CASES:
            raise JaxsparseError(f"no case is named {name!r}; there are {', '.join(CASES)}")
    chosen = [
        (name, n)
        for name in settings.cases or CASES
        for n in ((1,) if name.split("-")[0] in ONE_CLIP else settings.clips)
    ]
    before = _read(settings.out)
    rows = []
    for name, n_clips in tqdm(chosen, unit="case", disable=None):
        rows += _case_rows(settings, name, n_clips)
        kept = [row for row in before if (row["case"], row["clips"]) not in _keys(rows)]
        if settings.out:
            order = list(CASES)
            both = sorted(kept + rows, key=lambda row: (order.index(row["case"]), row["clips"]))
            settings.out.mkdir(parents=True, exist_ok=True)
            atomic_write(settings.out / "rows.json", json.dumps(both, indent=1).encode())
            atomic_write(settings.out / "table.md", table(both).encode())
    return rows


def _read(out: Path | None) -> list[dict[str, Any]]:
    path = out and out / "rows.json"
    return json.loads(path.read_bytes()) if path and path.exists() else []


def _keys(rows: Sequence[dict[str, Any]]) -> set[tuple[str, int]]:
    return {(row["case"], row["clips"]) for row in rows}


def _case_rows(settings: Settings, name: str, n_clips: int) -> list[dict[str, Any]]:
    found = _start(settings, name, n_clips, "all")
    ours = found["seconds"]["ours"]
    rows = []
    for variant, seconds in found["seconds"].items():
        row = {"case": name, "clips": n_clips, "variant": variant, "seconds": seconds}
        row |= {"ratio": ours / seconds, "floor_seconds": found["floor_seconds"]}
        if settings.memory:
            row["peak_bytes"] = _start(settings, name, n_clips, variant)["peak_bytes"]
        rows.append(row | {"machine": found["machine"]})
    return rows


def _start(settings: Settings, name: str, n_clips: int, variant: str) -> dict[str, Any]:
    """Measures in a process of its own, which has its own memory and threads."""
    command = [sys.executable, "-m", "benchmarks.speed", "--child", name, str(n_clips), variant]
    command += ["--repeats", str(settings.repeats), "--threads", str(settings.threads)]
    command += [] if settings.compiled else ["--no-compiled"]
    # On a GPU PyTorch needs some of the memory too.
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode:
        last = (ran.stderr.strip().splitlines() or ["no message"])[-1]
        raise JaxsparseError(f"{name} of {n_clips} clips, {variant}: {last}")
    return json.loads(ran.stdout.splitlines()[-1])


def _measure(settings: Settings, name: str, n_clips: int, chosen: str) -> dict[str, Any]:
    import jax

    from benchmarks.speed.cases import CASES

    make, network = CASES[name]
    with jax.default_matmul_precision("highest"):
        case = make(network, n_clips)
        if chosen != "all":
            for _ in range(2):
                case.variants[chosen]()
            return {"peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}
        wanted = {
            variant: call
            for variant, call in case.variants.items()
            if settings.compiled or "compiled" not in variant
        }
        case.check()
        seconds = _time(wanted, settings.repeats)
        floor = _floor(case)
    return {
        "seconds": {variant: value / case.n_each for variant, value in seconds.items()},
        "floor_seconds": floor / case.n_each,
        "machine": f"{jax.devices()[0].device_kind}, {settings.threads} threads",
    }


def _time(variants: dict[str, Any], repeats: int) -> dict[str, float]:
    """Medians over rounds in which the variants take turns."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats + 1):
        for name, call in variants.items():
            began = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - began)
    # The first round compiles.
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def _floor(case: Any) -> float:
    """Computes the floor's seconds by this machine's speed."""
    import jax
    import jax.numpy as jnp

    square = jnp.ones((_MATRIX, _MATRIX))
    product = jax.jit(lambda a: a @ a)
    per_multiply_add = _fastest(lambda: product(square).block_until_ready()) / _MATRIX**3
    whole = jnp.ones(_COPIED // 4)
    copy = jax.jit(lambda a: a + 1)
    # What is copied is read and written.
    per_byte = _fastest(lambda: copy(whole).block_until_ready()) / (2 * _COPIED)
    return max(case.multiply_adds * per_multiply_add, case.n_bytes * per_byte)


def _fastest(call: Any) -> float:
    times = []
    for _ in range(6):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times[1:])


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown: of times only ratios, since machines differ."""
    header = ["case", "clips", "variant", "ours over it", "over the floor", "peak MB"]
    lines = []
    for row in rows:
        floor, peak = row["floor_seconds"], row.get("peak_bytes")
        lines.append(
            [
                row["case"],
                str(row["clips"]),
                row["variant"],
                "" if row["variant"] == "ours" else f"{row['ratio']:.2f}",
                f"{row['seconds'] / floor:.1f}" if floor else "",
                f"{peak / 1e6:,.0f}" if peak else "",
            ]
        )
    machines = ", ".join(dict.fromkeys(row["machine"] for row in rows))
    return grid(header, lines) + f"\nOn {machines}.\n"


if __name__ == "__main__":
    main()
