"""Table and plot of a comparison of ways to masks."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval import report
from eval.report import DIGITS, SCORES, TITLES
from eval.rows import Row
from jaxsparse.files import atomic_write

METRICS = (
    "done",
    "seconds",
    "loss",
    "mse",
    *SCORES,
    "moved_pesq_wb",
    "surrogate_wb",
    "surrogate_nb",
)
_TITLES = TITLES | {
    "done": "done",
    "seconds": "seconds",
    "loss": "loss",
    "moved_pesq_wb": "PESQ wb behind silence",
    "surrogate_wb": "surrogate wb",
    "surrogate_nb": "surrogate nb",
}
_DIGITS = DIGITS | {"done": 0, "seconds": 1}
GROUP = ("sparsity", "method", "evaluations")


def summarize(rows: Sequence[Row], settings: dict[str, Any]) -> dict[str, Any]:
    """Means over clips for each sparsity, method and number of evaluations, in their order."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in GROUP), []).append(row)
    return {
        "settings": settings,
        "clips": len({row["clip"] for row in rows}),
        "groups": [
            dict(zip(GROUP, group, strict=True))
            | {name: report.statistics([[row[name]] for row in found]) for name in METRICS}
            for group, found in sorted(groups.items(), key=lambda item: item[0][0])
        ],
    }


def table(summary: dict[str, Any]) -> str:
    """The summary as Markdown."""
    header = ["sparsity", "method", "evaluations", *(_TITLES[name] for name in METRICS)]
    lines = [
        [f"{group['sparsity']:g}", group["method"], str(group["evaluations"])]
        + [report.cell(group[name], _DIGITS.get(name, 3)) for name in METRICS]
        for group in summary["groups"]
    ]
    settings = summary["settings"]
    return report.grid(header, lines) + (
        f"\nClips: {summary['clips']}; decoder: {settings['decoder']}; searches for "
        f"{settings['loss']}, from the masks of {settings['start']}; kept bins put back, all "
        "phases; mean ± standard error over clips.\n"
    )


def write(summary: dict[str, Any], out: Path) -> None:
    """Writes table, summary and plot.

    Raises:
        OSError: If they can't be written.
    """
    atomic_write(out / "table.md", table(summary).encode())
    atomic_write(out / "summary.json", (json.dumps(summary, indent=1) + "\n").encode())
    for sparsity in sorted({group["sparsity"] for group in summary["groups"]}):
        groups = [group for group in summary["groups"] if group["sparsity"] == sparsity]
        _plot(groups, out / f"quality-{100 * sparsity:g}.png")


def _plot(groups: Sequence[dict[str, Any]], path: Path) -> None:
    """PESQ and STOI against evaluations and against seconds, a line for each search."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained", sharey="row")
    methods = list(dict.fromkeys(group["method"] for group in groups))
    for (metric, x), axis in zip(
        [(metric, x) for metric in ("pesq_wb", "stoi") for x in ("evaluations", "seconds")],
        axes.flat,
        strict=True,
    ):
        for method in methods:
            own = [group for group in groups if group["method"] == method]
            ys = [group[metric]["mean"] for group in own]
            if len(own) == 1 and own[0]["evaluations"] == 0:
                axis.axhline(ys[0], label=method, linestyle=":", color=f"C{methods.index(method)}")
                continue
            xs = [group["done" if x == "evaluations" else x]["mean"] for group in own]
            axis.plot(xs, ys, "o-", label=method, color=f"C{methods.index(method)}")
        axis.set_xscale("log")
        axis.set_xlabel(x)
        axis.set_ylabel(TITLES[metric])
    axes[0, 1].legend(fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    plt.close(figure)
    atomic_write(path, buffer.getvalue())
