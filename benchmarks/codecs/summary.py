"""Means over the clips, for each codec and setting."""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.codecs import opus
from benchmarks.codecs.contract import MOVED
from benchmarks.codecs.peers import PEERS, PUBLISHED, find
from eval.report import statistics
from eval.rows import Row
from jaxsparse.types import SAMPLE_RATE

TIMES = ("encode_seconds", "decode_seconds", "opus_encode_seconds", "opus_decode_seconds")
# Tables show them in this order.
METRICS = ("pesq_wb", MOVED, "pesq_nb", "stoi", "estoi", "visqol")


def summarize(rows: Sequence[Row], missing: Mapping[str, str], with_visqol: bool) -> dict[str, Any]:
    """Makes what ``summary.json`` holds.

    Args:
        rows: Of the clips, one for each codec and setting.
        missing: Reasons why codecs can't be used on this machine, by name.
        with_visqol: Whether the rows have it.
    """
    groups: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["codec"], row["setting"]), []).append(row)
    metrics = METRICS if with_visqol else [name for name in METRICS if name != "visqol"]
    samples = {row["clip"]: row["samples"] for row in rows}
    n_clips = len(samples)

    def is_complete(name: str) -> bool:
        counts = [len(groups.get((name, setting), ())) for setting in find(name).settings]
        return n_clips > 0 and min(counts) == n_clips

    return {
        "clips": n_clips,
        "seconds": sum(samples.values()) / SAMPLE_RATE,
        "opus": opus.version(),
        "metrics": list(metrics),
        "groups": [
            _summarize_group(*group, groups[group], metrics) for group in sorted(groups, key=_place)
        ],
        # What another machine has added to the rows is there.
        "missing": {
            find(name).title: why for name, why in missing.items() if not is_complete(name)
        },
        "unscored": [
            {key: row[key] for key in ("clip", "codec", "setting")}
            | {"metric": metric, "reason": why}
            for row in rows
            for metric, why in row["reasons"].items()
        ],
        "published": [each._asdict() for each in PUBLISHED],
    }


def _place(group: tuple[str, float]) -> tuple[int, str, float]:
    """Puts this project's codec first, and the others in the order of their dict."""
    name, setting = group
    return list(PEERS).index(name) if name in PEERS else -1, name, setting


def _summarize_group(
    name: str, setting: float, rows: Sequence[Row], metrics: Sequence[str]
) -> dict[str, Any]:
    return {
        "codec": name,
        "title": find(name).title,
        "counted": find(name).counted,
        "setting": setting,
        "clips": len(rows),
        **{metric: statistics([[row[metric]] for row in rows]) for metric in ("kbps", *metrics)},
        **_times(rows, "encode"),
        **_times(rows, "decode"),
    }


def _times(rows: Sequence[Row], step: str) -> dict[str, float | None]:
    """Medians over clips: seconds, seconds per second of sound, and multiples of Opus'."""
    seconds = [row[f"{step}_seconds"] for row in rows]
    factors = [s / (row["samples"] / SAMPLE_RATE) for s, row in zip(seconds, rows, strict=True)]
    ratios = [s / row[f"opus_{step}_seconds"] for s, row in zip(seconds, rows, strict=True)]
    known = [ratio for ratio in ratios if math.isfinite(ratio)]
    return {
        f"{step}_seconds": median(seconds),
        f"{step}_real_time_factor": median(factors),
        f"{step}_times_opus": median(known) if known else None,
    }
