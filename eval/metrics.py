"""How far the metrics on the device are from `pesq` and `pystoi`.

``python -m eval.metrics --data $JAXSPARSE_DATA/valid $JAXSPARSE_DATA/test --out RUN`` makes the
first 77,276 samples of each clip worse in 25 ways: random, clustered and mixed masks, noise,
clipping, low-pass, Opus and lost packets, and five kinds that the surrogate was not calibrated on:
MP3, Vorbis, reverberation, pink noise and what subtracting noise leaves. `pesq`, `pystoi` and
`jaxsparse.metrics` score each, and the differences are reported, kind by kind. STOI and extended
STOI should be the same; the surrogate is no PESQ, and is compared with it. Rank correlations are
over all pairs, over the masks of each clip, and over random masks of the same sparsity of some
clips, as they are in a search's first generation.

`pesq` is also asked about the same pairs with a quarter of a second of silence before both sounds.
How far that moves it is what no surrogate for aligned sounds can foresee.

RUN gets rows.csv, summary.json, table.md and accuracy.png. A run that was stopped goes on where it
was when the same command is given again. A clip takes some six seconds on two cores.
"""

import functools
import io
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from tqdm import tqdm

from eval import report
from eval.command import parse_settings, run_command
from eval.degradations import (
    KINDS,
    MASK_KINDS,
    UNSEEN_KINDS,
    Degraded,
    degrade,
    same_sparsity,
    unseen,
)
from eval.rows import Row, RowFile, parse_reasons
from jaxsparse.data.clips import Clip, find_clips
from jaxsparse.data.folder import CLIP_SAMPLES
from jaxsparse.errors import AudioError
from jaxsparse.files import atomic_write
from jaxsparse.metrics import Metric, Score, ScorePool, estoi, pesq_surrogate, stoi
from jaxsparse.metrics.surrogate import fingerprint
from jaxsparse.settings import SettingsError, check_least
from jaxsparse.types import SAMPLE_RATE

# Metrics of the host, and what stands beside each on the device.
DEVICE: dict[Metric, Callable[..., jax.Array]] = {
    "pesq_wb": lambda **pair: pesq_surrogate(band="wb", **pair),
    "pesq_nb": lambda **pair: pesq_surrogate(band="nb", **pair),
    "stoi": stoi,
    "estoi": estoi,
}
NAMES: dict[Metric, str] = {
    "pesq_wb": "surrogate_wb",
    "pesq_nb": "surrogate_nb",
    "stoi": "device_stoi",
    "estoi": "device_estoi",
}
TITLES: dict[Metric, str] = {
    "pesq_wb": "Surrogate of PESQ, wide band",
    "pesq_nb": "Surrogate of PESQ, narrow band",
    "stoi": "STOI",
    "estoi": "Extended STOI",
}
# Of PESQ, with silence before both sounds.
MOVED: tuple[Metric, ...] = ("pesq_wb", "pesq_nb")
_SILENCE = SAMPLE_RATE // 4
# Where the silence moves it by less, it is taken as judging what the surrogate judges.
STEADY = 0.05
PLOTTED = (*KINDS, "one sparsity", *UNSEEN_KINDS)
# The device takes so many pairs at once.
_BATCH = 16
COLUMNS: dict[str, Callable[[str], Any]] = {
    "clip": str,
    "pair": int,
    "kind": str,
    "level": float,
    **{name: float for metric in DEVICE for name in (metric, NAMES[metric])},
    **{f"moved_{metric}": float for metric in MOVED},
    **{f"{NAMES[metric]}_slope": float for metric in DEVICE},
    "reasons": parse_reasons,
}


@dataclass(frozen=True)
class Settings:
    """Settings of a comparison of metrics."""

    data: tuple[Path, ...]
    """Folders of clips, searched in depth."""
    out: Path
    """Folder for all results; a run in it is resumed."""
    limit: int | None = None
    """Only the first clips of each folder."""
    generation: int = 30
    """Random masks of the same sparsity."""
    generation_clips: int = 8
    """Clips that get them."""
    n_samples: int = CLIP_SAMPLES
    """Length of a clip in samples at 16 kHz; longer ones are cut, shorter ones padded."""
    seed: int = 0
    """Of what is drawn, with the clip's name."""
    workers: int | None = None
    """Processes that run `pesq` and `pystoi`; one for each CPU by default."""
    json: bool = False
    """Print the JSON summary instead of the tables."""


class Pending(NamedTuple):
    """A row whose scores are being computed."""

    row: Row
    scores: dict[str, Future[Score]]


def run(settings: Settings) -> dict[str, Any]:
    """Scores all pairs, writes tables and plot, and returns the summary.

    Raises:
        AudioError: If a clip can't be read; it is named.
        BlockingIOError: If another process uses `settings.out`.
        FileExistsError: If `settings.out` holds a run with other settings.
        OSError: If the clips can't be found or the results can't be written.
        RowsError: If what is in `settings.out` is damaged.
        SettingsError: If a setting is out of range, or clips have the same name.
    """
    least = {"generation": 2, "generation_clips": 0, "limit": 1, "workers": 1}
    # What `pesq` takes at least.
    least["n_samples"] = SAMPLE_RATE // 4
    check_least(settings, least)
    clips = [clip for data in settings.data for clip in find_clips(data, None)[: settings.limit]]
    if len({clip.name for clip in clips}) < len(clips):
        raise SettingsError("clips of several folders need different names")
    names = ("seed", "generation", "generation_clips", "n_samples")
    identity = {name: getattr(settings, name) for name in names}
    identity |= {"calibration": fingerprint(), "kinds": list(PLOTTED)}
    out = RowFile(settings.out, COLUMNS, identity)
    with out, ScorePool(settings.workers) as pool:
        done = {row["clip"] for row in out.rows}
        for i, clip in enumerate(tqdm(clips, "clips", unit="clip", disable=None)):
            if clip.name in done:
                continue
            # All of a clip or nothing of it: a stopped run begins with whole clips.
            out.add(*compare(settings, clip, i < settings.generation_clips, pool))
        summary = summarize(out.rows)
        text = json.dumps(summary, indent=1) + "\n"
        atomic_write(settings.out / "summary.json", text.encode())
        atomic_write(settings.out / "table.md", table(summary).encode())
        atomic_write(settings.out / "accuracy.png", plot(out.rows))
    return summary


def compare(
    settings: Settings, clip: Clip, with_generation: bool, pool: ScorePool
) -> Iterator[Row]:
    """Rows of a clip's pairs.

    Raises:
        AudioError: If the clip can't be read; it is named.
    """
    try:
        signal = clip.read(settings.n_samples)
    except AudioError as error:
        raise AudioError(f"{clip.name}: {error}") from error
    pairs = [
        *degrade(clip.name, signal, settings.seed),
        *unseen(clip.name, signal, settings.seed),
    ]
    if with_generation:
        pairs += same_sparsity(clip.name, signal, settings.generation, settings.seed)
    pending = [
        Pending(
            {"clip": clip.name, "pair": i, "kind": pair.kind, "level": pair.level},
            _submit(signal, pair, pool),
        )
        for i, pair in enumerate(pairs)
    ]
    values, slopes = _on_device(signal, [pair.signal for pair in pairs])
    for i, (row, scores) in enumerate(pending):
        results = {name: future.result() for name, future in scores.items()}
        row |= {NAMES[metric]: float(values[metric][i]) for metric in DEVICE}
        row |= {f"{NAMES[metric]}_slope": float(slopes[metric][i]) for metric in DEVICE}
        row |= {name: result.value for name, result in results.items()}
        row["reasons"] = {name: result.reason for name, result in results.items() if result.reason}
        yield row


def _submit(signal: np.ndarray, pair: Degraded, pool: ScorePool) -> dict[str, Future[Score]]:
    def submit(metric: Metric, silence: int) -> Future[Score]:
        x, y = (np.pad(sound, (silence, 0)) for sound in (signal, pair.signal))
        return pool.submit(metric, reference=x, estimate=y, sample_rate=SAMPLE_RATE)

    scores = {str(metric): submit(metric, 0) for metric in DEVICE}
    return scores | {f"moved_{metric}": submit(metric, _SILENCE) for metric in MOVED}


def _on_device(
    signal: np.ndarray, estimates: list[np.ndarray]
) -> tuple[dict[Metric, np.ndarray], dict[Metric, np.ndarray]]:
    """Each metric of the pairs, and the largest entry of each gradient."""
    # Filled up, so that nothing is compiled anew.
    padded = np.stack(estimates + estimates[:1] * (-len(estimates) % _BATCH))
    batches = padded.reshape(-1, _BATCH, signal.size)
    reference = np.broadcast_to(signal, batches.shape[1:])
    values, slopes = {}, {}
    for metric in DEVICE:
        parts = [_value_and_slope(metric)(reference, estimate) for estimate in batches]
        values[metric], slopes[metric] = (
            np.concatenate(arrays) for arrays in zip(*parts, strict=True)
        )
    return values, slopes


@functools.cache
def _value_and_slope(metric: Metric) -> Callable[..., tuple[jax.Array, jax.Array]]:
    def total(estimate: jax.Array, reference: jax.Array) -> tuple[jax.Array, jax.Array]:
        value = DEVICE[metric](reference=reference, estimate=estimate, sample_rate=SAMPLE_RATE)
        return value.sum(), value

    @jax.jit
    def both(reference: jax.Array, estimate: jax.Array) -> tuple[jax.Array, jax.Array]:
        gradient, value = jax.grad(total, has_aux=True)(estimate, reference)
        return value, jnp.max(jnp.abs(gradient), axis=1)

    return both


def summarize(rows: Sequence[Row]) -> dict[str, Any]:
    """Differences between device and host for each metric: all pairs, and kind by kind."""
    summary: dict[str, Any] = {"pairs": len(rows), "clips": len({row["clip"] for row in rows})}
    for metric in DEVICE:
        # Those of one sparsity are of a few clips, and would weigh these more than the others.
        groups = {
            "all": [row for row in rows if row["kind"] in KINDS],
            "not calibrated on": [row for row in rows if row["kind"] in UNSEEN_KINDS],
        }
        groups |= {kind: [row for row in rows if row["kind"] == kind] for kind in PLOTTED}
        lines = {kind: differences(group, NAMES[metric], metric) for kind, group in groups.items()}
        found: dict[str, Any] = {"kinds": {k: line for k, line in lines.items() if line["pairs"]}}
        masks = [row for row in rows if row["kind"] in MASK_KINDS]
        found["finite_gradients"] = sum(
            math.isfinite(row[f"{NAMES[metric]}_slope"]) for row in rows
        )
        found["masks_of_a_clip"] = ranks_in_clips(masks, NAMES[metric], metric)
        same = [row for row in rows if row["kind"] == "one sparsity"]
        found["masks_of_one_sparsity"] = ranks_in_clips(same, NAMES[metric], metric)
        if metric in MOVED:
            steady = [r for r in groups["all"] if abs(r[f"moved_{metric}"] - r[metric]) < STEADY]
            found["moved"] = differences(groups["all"], f"moved_{metric}", metric)
            found["steady"] = differences(steady, NAMES[metric], metric)
            found["moved_masks_of_one_sparsity"] = ranks_in_clips(same, f"moved_{metric}", metric)
        summary[NAMES[metric]] = found
    return summary


def differences(rows: Sequence[Row], name: str, metric: str) -> dict[str, Any]:
    """Of one column from another, over the rows that have both."""
    x, y = _both(rows, name, metric)
    if not len(x):
        return {"pairs": 0, "unscored": len(rows)}
    error = np.abs(x - y)
    return {
        "pairs": len(x),
        "unscored": len(rows) - len(x),
        "median": float(np.median(error)),
        "95 %": float(np.quantile(error, 0.95)),
        "largest": float(np.max(error)),
        "mean difference": float(np.mean(x - y)),
        "rank correlation": _rank_correlation(x, y),
    }


def ranks_in_clips(rows: Sequence[Row], name: str, metric: str) -> dict[str, Any]:
    """Rank correlations of two columns within each clip: their mean and the lowest."""
    clips: dict[str, list[Row]] = {}
    for row in rows:
        clips.setdefault(row["clip"], []).append(row)
    ranks = [_rank_correlation(*_both(clip, name, metric)) for clip in clips.values()]
    known = [rank for rank in ranks if rank is not None]
    if not known:
        return {"clips": 0}
    return {"clips": len(known), "mean": float(np.mean(known)), "lowest": min(known)}


def _both(rows: Sequence[Row], *names: str) -> tuple[np.ndarray, np.ndarray]:
    values = np.array([[row[name] for name in names] for row in rows]).reshape(-1, 2)
    x, y = values[np.isfinite(values).all(axis=1)].T
    return x, y


def _rank_correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.asarray(scipy.stats.spearmanr(x, y))[0])


def table(summary: dict[str, Any]) -> str:
    """The summary as Markdown."""
    text = f"{summary['pairs']} pairs of {summary['clips']} clips; 'all' is without those of one "
    text += "sparsity, which are of a few clips alone, and without what surrogates were not "
    text += "calibrated on.\n"
    for metric, title in TITLES.items():
        found, digits = summary[NAMES[metric]], 3 if metric in MOVED else 6
        names = ("median", "95 %", "largest", "mean difference")
        lines = [
            [
                *(kind, str(line["pairs"])),
                *(f"{line[name]:.{digits}f}" for name in names),
                _number(line["rank correlation"]),
            ]
            for kind, line in found["kinds"].items()
        ]
        text += f"\n## {title}\n\nAbsolute differences from `{metric.partition('_')[0]}`'s"
        text += " value.\n\n" if metric in MOVED else " value (`pystoi`).\n\n"
        header = ["made worse by", "pairs", "median", "95 %", "largest", "mean difference"]
        text += report.grid([*header, "rank correlation"], lines)
        text += f"\nThe gradient is finite for {found['finite_gradients']} of {summary['pairs']}.\n"
        for key, words in (
            ("masks_of_a_clip", "the masks of each clip, all kinds and sparsities"),
            ("masks_of_one_sparsity", "random masks at 95 % of one clip"),
        ):
            if (ranks := found[key])["clips"]:
                text += f"\nRank correlation among {words}, {ranks['clips']} clips: mean "
                text += f"{ranks['mean']:.3f}, lowest {ranks['lowest']:.3f}.\n"
        if metric in MOVED:
            text += _moved(found)
    return text


def _moved(found: dict[str, Any]) -> str:
    moved, ranks = found["moved"], found["moved_masks_of_one_sparsity"]
    if not moved["pairs"]:
        return ""
    text = "\nA quarter of a second of silence before both sounds moves `pesq` itself by "
    text += f"{moved['median']:.3f} (median), {moved['95 %']:.3f} (95 %) and at most "
    text += f"{moved['largest']:.3f}"
    if ranks["clips"]:
        text += "; its rank correlation with itself among random masks at 95 % of one clip is "
        text += f"then {ranks['mean']:.3f} (lowest {ranks['lowest']:.3f})"
    if (steady := found["steady"])["pairs"]:
        text += f". Where it is moved by less than {STEADY:g} ({steady['pairs']} pairs), the "
        text += f"surrogate is {steady['median']:.3f} (median), {steady['95 %']:.3f} (95 %) and at "
        text += f"most {steady['largest']:.3f} from it"
    return text + ".\n"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def plot(rows: Sequence[Row]) -> bytes:
    """Device against host, a panel for each metric, as PNG."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure((9, 8), layout="constrained")
    panels = figure.subplots(2, 2).ravel()
    for axes, (metric, title) in zip(panels, TITLES.items(), strict=True):
        for kind in PLOTTED:
            x, y = _both([r for r in rows if r["kind"] == kind], metric, NAMES[metric])
            axes.plot(x, y, ".", markersize=3, label=kind)
        low, high = (
            min(axes.get_xlim()[0], axes.get_ylim()[0]),
            max(axes.get_xlim()[1], axes.get_ylim()[1]),
        )
        axes.plot((low, high), (low, high), "k-", linewidth=0.5)
        package = "pesq" if metric in MOVED else "pystoi"
        axes.set(title=title, xlabel=f"{package}", ylabel="on the device")
        axes.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=7, fontsize="small")
    with io.BytesIO() as buffer:
        figure.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs from the command line; returns the exit code of `run_command`."""

    def work() -> str:
        settings = parse_settings(Settings, "eval.metrics", __doc__, argv)
        summary = run(settings)
        return json.dumps(summary, indent=1) if settings.json else table(summary)

    return run_command("eval.metrics", work)


if __name__ == "__main__":
    sys.exit(main())
