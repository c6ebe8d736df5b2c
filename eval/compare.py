"""One table for each metric, and a plot, over several evaluations.

``python -m eval.compare --runs RUN1 RUN2 --out OUT`` reads what ``eval.reconstruction`` wrote into
each RUN, on the same clips, so that many policies can be compared with one decoder and many
decoders on a few policies without all pairs of both. OUT gets ``table.md``, a table for each
metric, and ``pesq.png``. Counted are all phases, and kept bins that are put back.
"""

import io
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from eval import report
from eval.command import parse_settings, run_command
from eval.report import DIGITS, TITLES
from eval.rows import Row
from jaxsparse.errors import JaxsparseError
from jaxsparse.files import atomic_write
from jaxsparse.settings import SettingsError

# What runs have to share.
SAME = ("data", "split", "n_samples", "whole", "limit", "seeds")


@dataclass(frozen=True)
class Settings:
    """Settings of a comparison."""

    runs: tuple[Path, ...]
    """Folders that eval.reconstruction wrote."""
    out: Path
    """Folder for the tables and the plot."""
    decoder: str = "unet"
    """What the plot compares policies with."""
    mask: str = "random"
    """Policy that the plot compares decoders on."""


def run(settings: Settings) -> str:
    """Writes the tables and the plot; returns the tables.

    Raises:
        JaxsparseError: If a folder holds no finished evaluation.
        OSError: If something can't be read or written.
        SettingsError: If the evaluations are not of the same clips, or lack what is to be plotted.
    """
    summaries = [_read(path) for path in settings.runs]
    _check_same(settings.runs, summaries)
    groups = merge(summaries)
    for name, column, value in (
        ("decoder", "method", settings.decoder),
        ("mask", "mask", settings.mask),
    ):
        if value not in {group[column] for group in groups}:
            raise SettingsError(f"no evaluation has the {name} {value!r}")
    text = tables(groups) + (
        f"\n{summaries[0]['clips']} clips of {summaries[0]['settings']['data']}; mean ± standard "
        "error over clips; all phases, kept bins put back.\n"
    )
    plot = draw(groups, settings)
    settings.out.mkdir(parents=True, exist_ok=True)
    atomic_write(settings.out / "table.md", text.encode())
    atomic_write(settings.out / "pesq.png", plot)
    return text


def _read(path: Path) -> dict[str, Any]:
    file = path / "summary.json"
    try:
        summary = json.loads(file.read_bytes())
        msgspec.convert(summary["groups"], list[dict[str, Any]])
        return {name: summary[name] for name in ("settings", "clips", "groups")}
    except FileNotFoundError:
        raise JaxsparseError(f"{path} holds no finished evaluation (summary.json)") from None
    except (KeyError, TypeError, ValueError) as error:
        raise JaxsparseError(f"{file} is not what eval.reconstruction writes") from error


def _check_same(paths: Sequence[Path], summaries: Sequence[dict[str, Any]]) -> None:
    for path, summary in zip(paths, summaries, strict=True):
        for name in SAME:
            first, own = (each["settings"].get(name) for each in (summaries[0], summary))
            if first != own:
                raise SettingsError(f"{paths[0]} and {path} differ in {name}: {first} and {own}")
        if summary["clips"] != summaries[0]["clips"]:
            raise SettingsError(f"{paths[0]} and {path} have other numbers of clips")


def merge(summaries: Sequence[dict[str, Any]]) -> list[Row]:
    """Lists the groups with all phases and kept bins put back, each once.

    Raises:
        SettingsError: If two evaluations have other results for the same names.
    """
    found: dict[tuple[str, str, float], Row] = {}
    for summary in summaries:
        for group in summary["groups"]:
            if group["phases"] != "all" or (group["mask"] and not group["keep_observed"]):
                continue
            key = (group["method"], group["mask"], group["sparsity"])
            if found.setdefault(key, group)["mse"] != group["mse"]:
                raise SettingsError(f"two evaluations have other results for {group['method']}")
    return list(found.values())


def tables(groups: Sequence[Row]) -> str:
    """Renders a Markdown table for each metric: decoders and policies by sparsity."""
    masked = [group for group in groups if group["mask"]]
    sparsities = sorted({group["sparsity"] for group in masked})
    pairs = dict.fromkeys((group["method"], group["mask"]) for group in masked)
    cells = {(g["method"], g["mask"], g["sparsity"]): g for g in masked}
    text = ""
    for metric, title in TITLES.items():
        lines = [
            [method, mask]
            + [
                report.cell(cells[key][metric], DIGITS.get(metric, 3))
                if (key := (method, mask, sparsity)) in cells
                else ""
                for sparsity in sparsities
            ]
            for method, mask in pairs
        ]
        header = ["decoder", "masks", *(f"{100 * sparsity:.6g} %" for sparsity in sparsities)]
        text += f"\n## {title}\n\n" + report.grid(header, lines)
        for group in groups:
            if not group["mask"]:
                value = report.cell(group[metric], DIGITS.get(metric, 3))
                text += f"\n{group['method'].capitalize()}: {value}\n"
    return text.lstrip()


def draw(groups: Sequence[Row], settings: Settings) -> bytes:
    """Draws PESQ in both bands against sparsity, for decoders and for policies; returns a PNG."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure((11, 7.5), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey="row")
    for row, metric in zip(panels, ("pesq_wb", "pesq_nb"), strict=True):
        row[0].set_ylabel(TITLES[metric])
        for axes, fixed, label in (
            (row[0], ("mask", settings.mask), "method"),
            (row[1], ("method", settings.decoder), "mask"),
        ):
            _draw_lines(axes, [g for g in groups if g[fixed[0]] == fixed[1]], metric, label)
    panels[0][0].set_title(f"Decoders, {settings.mask} masks")
    panels[0][1].set_title(f"Policies, filled in by {settings.decoder}")
    for axes in panels[1]:
        axes.set_xlabel("sparsity (%)")
        axes.legend(fontsize="small", ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    with io.BytesIO() as buffer:
        figure.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()


def _draw_lines(axes: Any, groups: Sequence[Row], metric: str, label: str) -> None:
    for i, name in enumerate(dict.fromkeys(group[label] for group in groups)):
        line = sorted((g for g in groups if g[label] == name), key=lambda g: g["sparsity"])
        axes.errorbar(
            [100 * g["sparsity"] for g in line],
            [math.nan if g[metric]["mean"] is None else g[metric]["mean"] for g in line],
            [g[metric]["standard_error"] or 0 for g in line],
            # There are ten colours.
            linestyle="-" if i < 10 else "--",
            marker="o",
            markersize=3,
            capsize=2,
            label=name,
        )
    axes.grid(alpha=0.3)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; the exit codes are those of `run_command`."""

    def work() -> str:
        return run(parse_settings(Settings, "eval.compare", __doc__, argv))

    return run_command("eval.compare", work)


if __name__ == "__main__":
    sys.exit(main())
