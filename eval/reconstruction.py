"""How well the networks fill in a spectrogram, over a folder of clips.

``python -m eval.reconstruction --data $JAXSPARSE_DATA/test`` takes the first 77,276 samples of each
clip (zero-padded at the end), draws a mask of the kind each network is meant for from (seed, clip
name), reconstructs with the original phases, and reports the MSE over all bins, PESQ in both bands
and STOI as mean and standard error over the clips. The row "ceiling" is the dense dB spectrogram
itself, with its 80 dB floor: what a perfect network would reach.
"""

import csv
import io
import json
import math
import sys
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tqdm import tqdm

from jaxsparse import pretrained
from jaxsparse.audio import atomic_write
from jaxsparse.data.folder import CLIP_SAMPLES, find_audio, portable_path, read_segment
from jaxsparse.errors import AudioError
from jaxsparse.masks import count_observed, mixed_mask, random_mask
from jaxsparse.metrics import Metric, Score, ScorePool, mse
from jaxsparse.reconstruct import reconstruct_spectrogram, to_waveform
from jaxsparse.spectrogram import log_power
from jaxsparse.stft import STFTConfig, stft
from jaxsparse.types import SAMPLE_RATE

SCORES: tuple[Metric, ...] = ("pesq_nb", "pesq_wb", "stoi")
GROUP: tuple[str, ...] = ("network", "mask", "sparsity", "keep_observed")
COLUMNS: tuple[str, ...] = (*GROUP, "clip", "seed", "mse", *SCORES, "reasons")
# Bounds the waveforms in memory while the scores are slower than the device.
MAX_PENDING = 64

Row: TypeAlias = dict[str, Any]
MaskKind: TypeAlias = Literal["random", "mixed"]
Fill: TypeAlias = Callable[[jax.Array, jax.Array, bool], jax.Array]


@dataclass(frozen=True)
class Settings:
    """Settings of a reconstruction evaluation."""

    data: Path
    """Folder of clips, searched in depth."""
    networks: tuple[str, ...] = pretrained.NAMES
    """Shipped networks to evaluate."""
    params: Path | None = None
    """A safetensors file of parameters to evaluate instead of the shipped networks."""
    mask: MaskKind = "random"
    """Masks for --params; a shipped network's name says which it is meant for."""
    sparsity: float = 0.95
    """Sparsity for --params and for the network "mixed"."""
    keep_observed: Literal["default", "yes", "no", "both"] = "default"
    """Put the kept bins back; by default for mixed masks only."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the masks."""
    n_samples: int = CLIP_SAMPLES
    """Length of a clip in samples at 16 kHz."""
    limit: int | None = None
    """Only the first clips of the folder."""
    batch: int = 2
    """Clips in one call on the device."""
    pesq: bool = True
    """PESQ and STOI too, not only the MSE."""
    workers: int | None = None
    """Processes that compute them; one for each CPU by default."""
    out: Path | None = None
    """Folder for rows.csv, summary.json and table.md."""
    json: bool = False
    """Print the JSON summary instead of the table."""

    def __post_init__(self) -> None:
        if not 0 < self.sparsity < 1:
            raise ValueError(f"sparsity {self.sparsity} is not between 0 and 1")
        for name in ("limit", "batch", "n_samples", "workers"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1")


class Task(NamedTuple):
    """One row of the table, or two: a network with the masks that it is evaluated on.

    `fill` maps a dense spectrogram [F, T], a key and whether to put the kept bins back to an
    estimate [F, T].
    """

    network: str
    mask: MaskKind | None
    sparsity: float
    keep_observed: tuple[bool, ...]
    seeds: tuple[int, ...]
    fill: Fill


def run(settings: Settings) -> dict[str, Any]:
    """Evaluate, write what `settings.out` asks for, and return the summary."""
    start = time.perf_counter()
    files = find_audio(settings.data)[: settings.limit]
    tasks = make_tasks(settings)
    total = len(files) * sum(len(task.seeds) * len(task.keep_observed) for task in tasks)
    with jax.default_matmul_precision("highest"), ScorePool(settings.workers) as pool:
        scored = evaluate(settings, files, tasks, pool)
        rows = list(tqdm(scored, total=total, unit="clip", disable=None))
    summary = {
        "settings": _jsonable(asdict(settings)),
        "clips": len(files),
        "backend": jax.default_backend(),
        "seconds": round(time.perf_counter() - start, 1),
        "groups": summarize(rows),
        "unscored": unscored(rows),
    }
    if settings.out:
        write(settings.out, rows, summary)
    return summary


def make_tasks(settings: Settings) -> list[Task]:
    """The ceiling, then each network with the masks that it is meant for."""
    tasks = [Task("ceiling", None, 0.0, (False,), (0,), lambda dense, key, keep: dense)]
    networks: list[tuple[str, MaskKind, float]]
    if settings.params:
        networks = [(settings.params.stem, settings.mask, settings.sparsity)]
    else:
        networks = [(name, *purpose(name, settings.sparsity)) for name in settings.networks]
    for name, mask, sparsity in networks:
        apply, params, _ = (
            pretrained.load_weights(settings.params)
            if settings.params
            else pretrained.load_pretrained(name)
        )
        choices = {"yes": (True,), "no": (False,), "both": (False, True)}
        keep = choices.get(settings.keep_observed, (mask == "mixed",))
        fill = network_fill(apply, params, mask, sparsity)
        tasks.append(Task(name, mask, sparsity, keep, settings.seeds, fill))
    return tasks


def purpose(name: str, sparsity: float) -> tuple[MaskKind, float]:
    """Masks that a shipped network is meant for; the mixed one takes any sparsity."""
    kind, _, percent = name.partition("-")
    return ("random", int(percent) / 100) if kind == "random" else ("mixed", sparsity)


def network_fill(apply: Callable, params: Any, mask: MaskKind, sparsity: float) -> Fill:
    """Draw a mask from the key, and reconstruct what it hides."""

    def fill(dense: jax.Array, key: jax.Array, keep: bool) -> jax.Array:
        count = count_observed(dense.shape, sparsity)
        if mask == "mixed":
            observed = mixed_mask(key, dense, count)
        else:
            observed = random_mask(key, dense.shape, count)
        return reconstruct_spectrogram(apply, params, dense, observed, keep_observed=keep)

    return fill


def mask_key(seed: int, clip: str) -> jax.Array:
    """Key of a clip's mask, so that methods are compared on the same masks."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(clip.encode()))


def evaluate(
    settings: Settings, files: Sequence[Path], tasks: Sequence[Task], pool: ScorePool
) -> Iterator[Row]:
    """Rows of all clips, tasks and seeds, while the pool scores and the device goes on."""
    steps = [_device_step(task, settings.n_samples) for task in tasks]
    pending: deque[tuple[Row, dict[Metric, Future[Score]]]] = deque()
    for first in range(0, len(files), settings.batch):
        batch = files[first : first + settings.batch]
        clips = [_read(file, settings.n_samples) for file in batch]
        # The last batch is filled up, so that nothing is compiled anew.
        signals = np.stack((clips * settings.batch)[: settings.batch])
        names = ([file.stem for file in batch] * settings.batch)[: settings.batch]
        for task, step in zip(tasks, steps, strict=True):
            for seed in task.seeds:
                keys = jnp.stack([mask_key(seed, name) for name in names])
                errors, estimates = jax.device_get(step(signals, keys))
                for clip, choice in np.ndindex(len(batch), len(task.keep_observed)):
                    row = {
                        "network": task.network,
                        "mask": task.mask,
                        "sparsity": task.sparsity,
                        "keep_observed": task.keep_observed[choice],
                        "clip": batch[clip].relative_to(settings.data).as_posix(),
                        "seed": seed,
                        "mse": float(errors[clip, choice]),
                    }
                    scores: dict[Metric, Future[Score]] = {
                        metric: pool.submit(
                            metric,
                            reference=clips[clip],
                            estimate=estimates[clip, choice],
                            sample_rate=SAMPLE_RATE,
                        )
                        for metric in (SCORES if settings.pesq else ())
                    }
                    pending.append((row, scores))
                while len(pending) > MAX_PENDING:
                    yield _finished(*pending.popleft())
    while pending:
        yield _finished(*pending.popleft())


def _device_step(task: Task, n_samples: int) -> Callable[[np.ndarray, jax.Array], Any]:
    """Map signals [B, N] and keys [B] to MSE [B, K] and waveforms [B, K, N]; K put-back choices."""
    config = STFTConfig()

    def one(signal: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        spectrum = stft(signal, config)
        dense = log_power(spectrum)
        estimates = jnp.stack([task.fill(dense, key, keep) for keep in task.keep_observed])
        waveforms = jax.vmap(
            lambda estimate: to_waveform(estimate, jnp.angle(spectrum), config, length=n_samples)
        )(estimates)
        references = jnp.broadcast_to(dense, estimates.shape)
        return mse(reference=references, estimate=estimates), waveforms

    return jax.jit(jax.vmap(one))


def _read(file: Path, n_samples: int) -> np.ndarray:
    try:
        return read_segment(file, n_samples)
    except AudioError as error:
        raise AudioError(f"{file}: {error}") from error


def _finished(row: Row, scores: dict[Metric, Future[Score]]) -> Row:
    results = {metric: future.result() for metric, future in scores.items()}
    reasons = {metric: result.reason for metric, result in results.items() if result.reason}
    if not math.isfinite(row["mse"]):
        reasons["mse"] = "not finite"
    values = {metric: result.value for metric, result in results.items()}
    return row | values | {"reasons": reasons}


def summarize(rows: Iterable[Row]) -> list[Row]:
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
            metric: _statistics([[row[metric] for row in clip] for clip in clips.values()])
            for metric in ("mse", *SCORES)
            if all(metric in row for clip in clips.values() for row in clip)
        }
        for group, clips in groups.items()
    ]


def _statistics(clips: Sequence[Sequence[float]]) -> dict[str, float | int | None]:
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
    """Every value that is missing from a mean, with the reason."""
    return [
        {name: row[name] for name in (*GROUP, "clip", "seed")} | {"metric": metric, "reason": why}
        for row in rows
        for metric, why in row["reasons"].items()
    ]


def table(summary: dict[str, Any]) -> str:
    """The summary as Markdown."""
    metrics = [metric for metric in ("mse", *SCORES) if metric in summary["groups"][0]]
    titles = {"mse": "MSE (dB²)", "pesq_nb": "PESQ nb", "pesq_wb": "PESQ wb", "stoi": "STOI"}
    header = ["network", "masks", "kept bins put back", *(titles[metric] for metric in metrics)]
    lines = [header, ["---"] * len(header)]
    for group in summary["groups"]:
        masks = f"{group['mask']}, {group['sparsity']:.0%}" if group["mask"] else ""
        keep = ("yes" if group["keep_observed"] else "no") if group["mask"] else ""
        cells = (_cell(group[metric], 2 if metric == "mse" else 3) for metric in metrics)
        lines.append([group["network"], masks, keep, *cells])
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    text += f"\n\n{summary['clips']} clips; mean and standard error over clips.\n"
    if missing := summary["unscored"]:
        text += f"\n{len(missing)} values are missing:\n\n"
        metrics_of: dict[str, list[str]] = {}
        for row in missing:
            kept = ", kept bins put back" if row["keep_observed"] else ""
            where = f"{row['clip']}, {row['network']}{kept}, seed {row['seed']}: {row['reason']}"
            metrics_of.setdefault(where, []).append(row["metric"])
        text += "".join(f"- {where} ({', '.join(names)})\n" for where, names in metrics_of.items())
    return text


def _cell(value: dict[str, Any], digits: int) -> str:
    if value["mean"] is None:
        return "none"
    text = f"{value['mean']:.{digits}f}"
    if value["standard_error"] is not None:
        text += f" ± {value['standard_error']:.{digits}f}"
    return text + (f" ({value['unscored']} clips missing)" if value["unscored"] else "")


def write(out: Path, rows: Iterable[Row], summary: dict[str, Any]) -> None:
    """Write rows.csv, summary.json and table.md."""
    out.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        reasons = "; ".join(f"{metric}: {why}" for metric, why in row["reasons"].items())
        writer.writerow(row | {"reasons": reasons})
    atomic_write(out / "rows.csv", text.getvalue().encode())
    atomic_write(out / "summary.json", json.dumps(summary, indent=1).encode())
    atomic_write(out / "table.md", table(summary).encode())


def _jsonable(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        name: portable_path(value) if isinstance(value, Path) else value
        for name, value in settings.items()
    }


def main() -> None:
    """Run from the command line."""
    try:
        settings = tyro.cli(Settings, description=__doc__)
        summary = run(settings)
    except (OSError, ValueError) as error:
        print(f"eval.reconstruction: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(json.dumps(summary, indent=1) if settings.json else table(summary))


if __name__ == "__main__":
    main()
