"""What the benchmarks have in common: threads, and a result on standard output."""

import json
import os
from collections.abc import Callable
from typing import Any

import tyro


def main(kind: type, run: Callable[[Any], dict[str, Any]], description: str | None) -> None:
    """Parses settings, runs a benchmark on so many cores and prints its result.

    Args:
        kind: Settings, a dataclass with `threads` and `json`.
        run: The benchmark.
        description: What ``--help`` begins with.
    """
    settings = tyro.cli(kind, description=description)
    restrict_threads(settings.threads)
    result = run(settings)
    print(json.dumps(result) if settings.json else _lines(result))


def restrict_threads(threads: int) -> None:
    """Pins the process to `threads` cores, before XLA and PyTorch size their thread pools."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    os.environ["OMP_NUM_THREADS"] = str(threads)


def _lines(result: dict[str, Any], prefix: str = "") -> str:
    """A line for each number; what lies in a tree is named by its path."""
    lines = []
    for name, value in result.items():
        if isinstance(value, dict):
            lines.append(_lines(value, f"{prefix}{name}."))
        else:
            digits = {float: ".3f", int: ","}.get(type(value), "")
            lines.append(f"{prefix + name:40} {value:{digits}}")
    return "\n".join(lines)
