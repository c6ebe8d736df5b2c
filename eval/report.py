"""Means, tables and plots of an evaluation, beside what the thesis reports."""

import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from eval.rows import Row
from jaxsparse.decoders import DECODERS
from jaxsparse.errors import one_line
from jaxsparse.files import atomic_write
from jaxsparse.metrics import Metric
from jaxsparse.pretrained import THESIS_NAMES

Phases: TypeAlias = Literal["all", "75", "70", "65", "60", "kept", "none"]
PHASES: tuple[Phases, ...] = ("all", "75", "70", "65", "60", "kept", "none")
SCORES: tuple[Metric, ...] = ("pesq_nb", "pesq_wb", "stoi", "estoi")
GROUP: tuple[str, ...] = ("method", "mask", "sparsity", "keep_observed", "phases")
TITLES = {
    "mse": "MSE (dB²)",
    "pesq_nb": "PESQ nb",
    "pesq_wb": "PESQ wb",
    "stoi": "STOI",
    "estoi": "ESTOI",
}
DIGITS = {"mse": 2}
PHASES_TITLES = {
    "all": "all",
    **{t: f"within {t} dB" for t in ("75", "70", "65", "60")},
    "kept": "Griffin-Lim, kept bins' given",
    "none": "Griffin-Lim, none given",
}
# Random masks, no bins put back, all phases; PESQ's band is not given. One clip of another corpus:
# tables 4.2 and 4.3, and for 95 % section 4.4. Figures 4.6 to 4.8, over 2,500 clips, are drawn
# only, but for a STOI of 0.81 at 95 %.
THESIS = {
    0.80: {"pesq": 3.00, "stoi": 0.88},
    0.85: {"pesq": 2.92, "stoi": 0.87},
    0.90: {"pesq": 2.89, "stoi": 0.87},
    0.95: {"mse": 35.234, "pesq": 2.48, "stoi": 0.845},
}
# Section 4.3.2: the mean over 2,500 clips.
THESIS_SAVED = {"75": 0.26, "70": 0.32, "65": 0.38, "60": 0.44}


def summarize(rows: Iterable[Row], metrics: Sequence[str]) -> list[Row]:
    """Mean and standard error over clips for each group; a clip's seeds are averaged first.

    A clip of which any seed has no score is left out of that metric, and counted.
    """
    groups: dict[tuple, dict[str, list[Row]]] = {}
    for row in rows:
        clips = groups.setdefault(tuple(row[name] for name in GROUP), {})
        clips.setdefault(row["clip"], []).append(row)
    return [
        dict(zip(GROUP, group, strict=True))
        | {
            metric: statistics([[row[metric] for row in clip] for clip in clips.values()])
            for metric in metrics
        }
        for group, clips in groups.items()
    ]


def statistics(clips: Sequence[Sequence[float]]) -> dict[str, float | int | None]:
    """Mean and standard error over clips, each of them the mean over its seeds; NaN is counted."""
    means = np.array([np.mean(seeds) for seeds in clips])
    scored = means[np.isfinite(means)]
    n = len(scored)
    return {
        "mean": float(scored.mean()) if n else None,
        "standard_error": float(scored.std(ddof=1) / math.sqrt(n)) if n > 1 else None,
        "clips": n,
        "unscored": len(means) - n,
    }


def unscored(rows: Iterable[Row]) -> list[Row]:
    """Every value that is missing or not over the whole clip, with the reason."""
    return [
        {name: row[name] for name in ("clip", "seed", *GROUP)} | {"metric": metric, "reason": why}
        for row in rows
        for metric, why in row["reasons"].items()
    ]


def table(summary: dict[str, Any]) -> str:
    """The summary as Markdown: all phases beside the thesis' figures, then fewer phases."""
    groups = summary["groups"]
    metrics = [metric for metric in TITLES if metric in groups[0]]
    text = "## All phases\n\n" if summary["settings"]["phases"] != ["all"] else ""
    text += grid(
        ["method", "masks", "kept bins put back", *(TITLES[m] for m in metrics), "thesis (1)"],
        [
            [*_names(g), *(cell(g[m], DIGITS.get(m, 3)) for m in metrics), _thesis(g)]
            for g in groups
            if g["phases"] == "all"
        ],
    )
    fewer = [g for g in groups if g["phases"] != "all" and g["method"] in _with_phases(groups)]
    if fewer:
        text += "\n## Fewer phases\n\n"
        text += _phases_table(groups, [metric for metric in metrics if metric != "mse"])
    settings, clips = summary["settings"], summary["clips"]
    split = f" of {settings['split']}" if settings["split"] else ""
    text += f"\n{clips} clip{'s' * (clips != 1)}{split}; mean ± standard error over clips"
    text += f", seeds {_words(settings['seeds'])} averaged first.\n" * (len(settings["seeds"]) > 1)
    text += ".\n" * (len(settings["seeds"]) == 1)
    text += any(map(_thesis, groups)) * (
        "\n(1) One clip of another corpus, random masks, no bins put back; the band of its PESQ is "
        "not given. The mean STOI over 2,500 clips at 95 % is 0.81; its other means are drawn only."
        "\n"
    )
    return text + _missing(summary["unscored"])


def _with_phases(groups: Iterable[Row]) -> set[str]:
    return {group["method"] for group in groups if group["phases"] != "all"}


def _phases_table(groups: Sequence[Row], metrics: Sequence[str]) -> str:
    """A row for each network and choice of phases, with the share of phases that is not stored."""
    methods = _with_phases(groups)
    return grid(
        ["method", "masks", "kept bins put back", "phases", "saved", "thesis saves"]
        + [TITLES[m] for m in metrics],
        [
            [
                *_names(g),
                PHASES_TITLES[g["phases"]],
                _percent(g["phases_saved"]["mean"]),
                _percent(THESIS_SAVED.get(g["phases"])),
                *(cell(g[m], 3) for m in metrics),
            ]
            for g in groups
            if g["method"] in methods
        ],
    )


def grid(header: list[str], lines: list[list[str]]) -> str:
    """A Markdown table."""
    return "".join(
        "| " + " | ".join(line) + " |\n" for line in (header, ["---"] * len(header), *lines)
    )


def _names(group: Row) -> list[str]:
    masks = f"{group['mask']}, {group['sparsity']:.0%}" if group["mask"] else ""
    return [group["method"], masks, ("yes" if group["keep_observed"] else "no") if masks else ""]


def cell(value: dict[str, Any], digits: int) -> str:
    """What `statistics` gave, as text."""
    if value["mean"] is None:
        return "none"
    text = f"{value['mean']:.{digits}f}"
    if value["standard_error"] is not None:
        text += f" ± {value['standard_error']:.{digits}f}"
    return text + (f" ({value['unscored']} missing)" if value["unscored"] else "")


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _thesis(group: Row) -> str:
    """What the thesis has of the networks for random masks."""
    is_thesis = (
        group["method"] in THESIS_NAMES and group["mask"] == "random" and not group["keep_observed"]
    )
    known = THESIS.get(group["sparsity"], {}) if is_thesis else {}
    return ", ".join(f"{name.upper()} {value}" for name, value in known.items())


def _words(values: Iterable[Any]) -> str:
    return ", ".join(str(value) for value in values)


def _missing(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        names = reasons.setdefault(one_line(f"{row['clip']}: {row['reason']}"), [])
        names.append(f"{row['metric']} of {row['method']}")
    text = f"\n{len(rows)} remarks on missing values (summary.json has each):\n\n"
    for reason, names in reasons.items():
        counts = {name: names.count(name) for name in names}
        text += f"- {reason} ({_words(f'{name} {n} times' for name, n in counts.items())})\n"
    return text


def plot(summary: dict[str, Any], out: Path) -> None:
    """Writes plots like the thesis' figures 4.6 to 4.8 and, for fewer phases, 4.9 and 4.10."""
    groups = [group for group in summary["groups"] if group["mask"]]
    for name, metric in (("mse", "mse"), ("pesq", "pesq_nb"), ("stoi", "stoi")):
        if metric in groups[0]:
            _plot_sparsities(groups, metric, out / f"{name}.png")
            if metric != "mse" and _with_phases(groups):
                _plot_phases(groups, metric, out / f"{name}-phases.png")


def _plot_sparsities(groups: Sequence[Row], metric: str, path: Path) -> None:
    """Score against sparsity with all phases, a line for each way of filling in."""
    lines: dict[str, list[Row]] = {}
    for group in groups:
        if group["phases"] == "all":
            lines.setdefault(_label(group), []).append(group)
    figure, axes = _axes(TITLES[metric])
    for label, points in lines.items():
        x = [100 * point["sparsity"] for point in points]
        _draw(axes, x, [point[metric] for point in points], label)
    name = metric.partition("_")[0]
    thesis = {sparsity: known[name] for sparsity, known in THESIS.items() if name in known}
    axes.plot([100 * s for s in thesis], list(thesis.values()), "k*", label="thesis, one clip")
    _save(figure, axes, path)


def _plot_phases(groups: Sequence[Row], metric: str, path: Path) -> None:
    """Score against sparsity for networks without put-back, a line for each choice of phases."""
    methods = _with_phases(groups)
    lines: dict[str, list[Row]] = {}
    for group in groups:
        if group["method"] in methods and group["mask"] == "random" and not group["keep_observed"]:
            lines.setdefault(PHASES_TITLES[group["phases"]], []).append(group)
    if not lines:
        return
    figure, axes = _axes(TITLES[metric])
    for label, points in lines.items():
        x = [100 * point["sparsity"] for point in points]
        _draw(axes, x, [point[metric] for point in points], f"phases: {label}")
    _save(figure, axes, path)


def _label(group: Row) -> str:
    # They are one for each sparsity.
    kind = "thesis' networks" if group["method"] in THESIS_NAMES else group["method"]
    put_back = ", kept bins put back" * (group["keep_observed"] and group["method"] not in DECODERS)
    return f"{kind}, {group['mask']} masks{put_back}"


def _axes(ylabel: str) -> tuple[Any, Any]:
    import matplotlib.figure

    figure = matplotlib.figure.Figure((9, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel="sparsity (%)", ylabel=f"{ylabel}, mean and standard error")
    axes.grid(alpha=0.3)
    return figure, axes


def _draw(axes: Any, x: Sequence[float], values: Sequence[dict[str, Any]], label: str) -> None:
    means = [math.nan if value["mean"] is None else value["mean"] for value in values]
    errors = [value["standard_error"] or 0.0 for value in values]
    axes.errorbar(x, means, errors, marker="o", markersize=4, capsize=3, label=label)


def _save(figure: Any, axes: Any, path: Path) -> None:
    axes.set_xticks(sorted({x for line in axes.lines for x in line.get_xdata()}))
    figure.legend(loc="outside right upper", fontsize="small")
    with io.BytesIO() as buffer:
        figure.savefig(buffer, format="png", dpi=100)
        atomic_write(path, buffer.getvalue())
