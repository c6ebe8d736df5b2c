"""Quality against training time.

``python -m eval.training_curve --data $JAXSPARSE_DATA/valid --runs RUN1 RUN2 --out OUT`` evaluates
the networks that ``train.main --snapshot-every`` kept in each run, the later run being one that
started from the earlier one's network, and draws MSE and PESQ over the hours of training in all.
OUT gets ``curve.png``, ``curve.json``, and a folder with the evaluation of each run.
"""

import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval import reconstruction
from eval.command import parse_settings, run_command
from jaxsparse.errors import JaxsparseError
from jaxsparse.files import atomic_write
from jaxsparse.pretrained import load_decoder
from jaxsparse.settings import check_least

METRICS = {"mse": "MSE (dB²)", "pesq_wb": "PESQ, wide band"}


@dataclass(frozen=True)
class Settings:
    """Settings of the curve."""

    data: Path
    """Folder of clips to evaluate on."""
    runs: tuple[Path, ...]
    """Folders of training runs, in order."""
    out: Path
    """Folder for the results; a run in it is resumed."""
    mask: tuple[str, ...] = ("random", "learned")
    """Policies that the masks are made by."""
    sparsity: float = 0.95
    """Share of bins that they hide."""
    limit: int | None = 8
    """Only the first clips."""
    json: bool = False
    """Print the points as JSON instead of the path of the plot."""


def measure(settings: Settings) -> list[dict[str, Any]]:
    """Evaluates every snapshot.

    Returns:
        For each snapshot and mask its ``run``, ``hours`` of training in all, ``mask``, and the
        means of `METRICS`.

    Raises:
        JaxsparseError: If a run kept no networks.
    """
    check_least(settings, {"limit": 1})
    points = []
    for run in settings.runs:
        # Without the samplers beside them.
        paths = sorted((run / "snapshots").glob("*[0-9].safetensors"))
        if not paths:
            raise JaxsparseError(f"{run} has no snapshots: train with --snapshot-every")
        hours = {path.stem: _seconds(load_decoder(path).card.about) / 3600 for path in paths}
        summary = reconstruction.run(_evaluation(settings, run, paths))
        for group in summary["groups"]:
            if group["method"] in hours:
                means = {name: group[name]["mean"] for name in METRICS}
                point = {"run": run.name, "hours": hours[group["method"]], "mask": group["mask"]}
                points.append({**point, **means})
    return points


def _seconds(about: Any) -> float:
    """Of a network's training, and of those that it started from."""
    earlier = about.get("started_from")
    return about["training_seconds"] + (_seconds(earlier) if earlier else 0.0)


def _evaluation(settings: Settings, run: Path, paths: Sequence[Path]) -> reconstruction.Settings:
    return reconstruction.Settings(
        data=settings.data,
        out=settings.out / run.name,
        decoders=tuple(map(str, paths)),
        mask=settings.mask,
        sparsity=(settings.sparsity,),
        keep_observed="yes",
        phases=("all",),
        seeds=(0,),
        limit=settings.limit,
    )


def draw(points: Sequence[dict[str, Any]], sparsity: float) -> bytes:
    """Draws a panel for each metric, with a line for each run and mask; returns a PNG."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure((9, 6), layout="constrained")
    panels = figure.subplots(len(METRICS), 1, sharex=True)
    for axes, (metric, title) in zip(panels, METRICS.items(), strict=True):
        for run, mask in dict.fromkeys((point["run"], point["mask"]) for point in points):
            line = [p for p in points if (p["run"], p["mask"]) == (run, mask)]
            axes.plot(
                [p["hours"] for p in line],
                [p[metric] for p in line],
                marker="o",
                markersize=4,
                label=f"{run}, {mask} masks, {sparsity:.0%}",
            )
        axes.set_ylabel(title)
        axes.grid(alpha=0.3)
    panels[-1].set_xlabel("training (hours)")
    panels[0].legend(fontsize="small")
    with io.BytesIO() as buffer:
        figure.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; the exit codes are those of `run_command`."""

    def work() -> str:
        settings = parse_settings(Settings, "eval.training_curve", __doc__, argv)
        points = measure(settings)
        text = json.dumps(points, indent=1)
        path = settings.out / "curve.png"
        atomic_write(settings.out / "curve.json", (text + "\n").encode())
        atomic_write(path, draw(points, settings.sparsity))
        return text if settings.json else str(path)

    return run_command("eval.training_curve", work)


if __name__ == "__main__":
    sys.exit(main())
