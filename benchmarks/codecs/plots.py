"""Plots of quality against bit rate, a line for each codec."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.codecs import own
from eval.report import TITLES
from jaxsparse.files import atomic_write

METRICS = ("pesq_wb", "pesq_nb", "stoi", "estoi")
# Beyond it lies what is lossless, and is drawn as a level.
MAX_KBPS = 64
TICKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
MARKERS = "osD^v<>PX*ph"


def plot(summary: dict[str, Any], out: Path) -> None:
    """Writes a PNG for each metric."""
    for metric in METRICS:
        _plot_metric(summary["groups"], metric, out / f"{metric.replace('_', '-')}.png")


def _plot_metric(groups: Sequence[dict[str, Any]], metric: str, path: Path) -> None:
    import matplotlib.figure

    figure = matplotlib.figure.Figure((10, 5.5), layout="constrained")
    axes = figure.subplots()
    axes.set(xscale="log", xlabel="kbit/s", ylabel=f"{TITLES[metric]}, mean and standard error")
    axes.set_xticks(TICKS, [str(tick) for tick in TICKS])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    lines: dict[str, list[dict[str, Any]]] = {}
    for group in groups:
        lines.setdefault(group["title"], []).append(group)
    for number, (title, points) in enumerate(lines.items()):
        _draw(axes, title, points, metric, f"C{number % 10}", MARKERS[number % len(MARKERS)])
    if lines:
        figure.legend(loc="outside right upper", fontsize="small")
    with io.BytesIO() as buffer:
        figure.savefig(buffer, format="png", dpi=100)
        atomic_write(path, buffer.getvalue())


def _draw(
    axes: Any, title: str, points: Sequence[dict[str, Any]], metric: str, colour: str, marker: str
) -> None:
    rates = [point["kbps"]["mean"] for point in points]
    means = [_number(point[metric]["mean"]) for point in points]
    if min(rates) > MAX_KBPS:
        label = f"{title}, {rates[0]:.0f} kbit/s"
        axes.axhline(means[0], color="grey", linestyle="--", label=label)
        return
    errors = [point[metric]["standard_error"] or 0.0 for point in points]
    width = 2.5 if title.startswith(own.NAME) else 1.2
    axes.errorbar(
        rates,
        means,
        errors,
        color=colour,
        marker=marker,
        markersize=5,
        capsize=2,
        linewidth=width,
        label=title,
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value
