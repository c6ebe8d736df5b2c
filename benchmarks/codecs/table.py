"""The table of a comparison, in Markdown."""

from typing import Any

from benchmarks.codecs.coding import UNIT
from benchmarks.codecs.contract import MOVED
from eval.report import TITLES, cell, grid
from jaxsparse.errors import one_line

DIGITS = {"pesq_wb": 2, MOVED: 2, "pesq_nb": 2, "visqol": 2}
_TITLES = {**TITLES, MOVED: "PESQ wb (2)", "visqol": "ViSQOL"}


def table(summary: dict[str, Any]) -> str:
    """Writes a summary as Markdown: a line for each codec and setting, then what is missing."""
    metrics = summary["metrics"]
    titles = [_TITLES[metric] for metric in metrics]
    text = grid(
        ["codec", "setting", "clips", "kbit/s", *titles, "encoding (1)", "decoding (1)"],
        [
            [
                group["title"],
                f"{group['setting']:g}",
                str(group["clips"]),
                cell({**group["kbps"], "standard_error": None}, 2),
                *(cell(group[metric], DIGITS.get(metric, 3)) for metric in metrics),
                _times(group["encode_times_opus"]),
                _times(group["decode_times_opus"]),
            ]
            for group in summary["groups"]
        ],
    )
    clips = summary["clips"]
    text += (
        f"\n{clips} clip{'s' * (clips != 1)}, {summary['seconds']:.0f} s in all; "
        "mean ± standard error over clips.\n\n(1) Times, as multiples of Opus' at "
        f"{UNIT.setting:g} kbit/s on the same clip in the same run: the median over clips.\n\n"
        "(2) With a quarter of a second of silence before both sounds: `pesq` misjudges the "
        "alignment of some clips, here or there, and is wrong by a point and more then.\n"
    )
    return text + _counted(summary) + _missing(summary) + _published(summary)


def _times(ratio: float | None) -> str:
    return "none" if ratio is None else f"{ratio:.2g}"


def _counted(summary: dict[str, Any]) -> str:
    """Says which bytes are counted, of codecs that were measured."""
    counted = {group["title"]: group["counted"] for group in summary["groups"]}
    lines = [f"- {title}: {what}\n" for title, what in counted.items()]
    return "\nBytes that are counted:\n\n" + "".join(lines) if lines else ""


def _missing(summary: dict[str, Any]) -> str:
    """Lists codecs that this machine lacks, and values that could not be computed."""
    text = ""
    if summary["missing"]:
        lines = [f"- {title}: {why}\n" for title, why in summary["missing"].items()]
        text += "\nMissing on this machine:\n\n" + "".join(lines)
    if summary["unscored"]:
        reasons = dict.fromkeys(
            one_line(f"{row['clip']}, {row['metric']}: {row['reason']}")
            for row in summary["unscored"]
        )
        lines = [f"- {reason}\n" for reason in reasons]
        text += "\nWithout scores (summary.json has each):\n\n" + "".join(lines)
    return text


def _published(summary: dict[str, Any]) -> str:
    text = "\nPublished figures of neural codecs: others' measurements, on others' speech.\n\n"
    rows = [
        [each["name"], f"{each['kbps']:g}", f"{each['pesq_wb']:.2f}"]
        for each in summary["published"]
    ]
    return text + grid(["codec", "kbit/s", TITLES["pesq_wb"]], rows)
