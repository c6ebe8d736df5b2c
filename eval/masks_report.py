"""Tables and figures of mask searches, beside those of the thesis' section 4.4."""

import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval import report
from eval.report import SCORES
from eval.rows import Row, RowsError
from jaxsparse.errors import one_line
from jaxsparse.files import atomic_write

# Searches by relaxation and, in words, what for.
RELAXATION_SEARCHES = {
    "relaxation": "the MSE",
    "relaxation-surrogate": "the surrogate",
    "relaxation-quality": "quality",
}
# Of runs that were made before these were settings.
DEFAULTS = {"relaxation": "logistic"}


def relaxed(search: str) -> tuple[str, str, str]:
    """Names of the masks that one of `RELAXATION_SEARCHES` gives."""
    return (f"{search}-soft", f"{search}-binary", f"{search}-best")


TITLES = {
    "genetic-pesq": "genetic PESQ",
    "genetic-mse": "genetic MSE",
    "control-pesq": "control PESQ",
    "control-mse": "control MSE",
    "relaxation-soft": "relaxation soft",
    "relaxation-binary": "relaxation binary",
    "relaxation-best": "relaxation best",
    "random": "random",
    "constant": "constant",
    "genetic-surrogate": "genetic surrogate",
    "control-surrogate": "control surrogate",
    "relaxation-surrogate-soft": "relaxation surrogate soft",
    "relaxation-surrogate-binary": "relaxation surrogate binary",
    "relaxation-surrogate-best": "relaxation surrogate best",
    "genetic-quality": "genetic quality",
    "control-quality": "control quality",
    "relaxation-quality-soft": "relaxation quality soft",
    "relaxation-quality-binary": "relaxation quality binary",
    "relaxation-quality-best": "relaxation quality best",
}
PHASES_TITLES = {"all": "all", "60": "within 60 dB"}
METRICS = ("mse", *SCORES)
# Of a relaxation's end; NaN for other methods.
MEASURES = (
    "crossings",
    "violation",
    "multiplier",
    "gradient_norm",
    "stationarity",
    "relative_stationarity",
)
REPRODUCTION = ("genetic-mse", "genetic-pesq", "control-mse", "control-pesq", "random")
COMPARED = (
    "genetic-pesq",
    "genetic-mse",
    "relaxation-soft",
    "relaxation-binary",
    "random",
    "constant",
    "relaxation-best",
)
BY_SURROGATE = (
    "genetic-surrogate",
    "control-surrogate",
    *relaxed("relaxation-surrogate"),
)
BY_QUALITY = ("genetic-quality", "control-quality", *relaxed("relaxation-quality"))
# What the thesis doesn't search for: columns only where there are such rows.
OURS = (*BY_SURROGATE, *BY_QUALITY)
_OURS_COMPARED = [method for method in OURS if not method.startswith("control")]
COLUMNS = {
    "4.1": (*REPRODUCTION, *(method for method in OURS if not method.startswith("relaxation"))),
    "4.2": (*COMPARED, *_OURS_COMPARED),
    "4.3": (*COMPARED, *_OURS_COMPARED),
}
# Numbers of the thesis' tables and the metrics that we give in each.
TABLES = {"4.1": METRICS, "4.2": ("pesq_nb", "pesq_wb"), "4.3": ("stoi", "estoi")}
# In the figures.
_KINDS = {"genetic": "with reproduction", "control": "without"}
# The band of its PESQ is not given; what random masks get speaks for the narrow one.
_THESIS_REPRODUCTION = {
    "mse": (31.370, 34.597, 33.337, 34.553, 35.234),
    "pesq_nb": (2.802, 3.353, 2.481, 2.798, 2.48),
    "stoi": (0.853, 0.869, 0.851, 0.857, 0.845),
}
_THESIS_COMPARED = {
    (0.80, "all", "pesq_nb"): (3.54, 3.06, 3.10, 2.83, 3.00),
    (0.80, "60", "pesq_nb"): (3.52, 3.06, 3.09, 2.83, 3.01),
    (0.85, "all", "pesq_nb"): (3.51, 3.08, 3.16, 2.94, 2.92),
    (0.85, "60", "pesq_nb"): (3.49, 3.07, 3.14, 2.94, 2.92),
    (0.90, "all", "pesq_nb"): (3.40, 3.01, 3.09, 2.74, 2.89),
    (0.90, "60", "pesq_nb"): (3.37, 3.01, 3.10, 2.75, 2.89),
    (0.95, "all", "pesq_nb"): (3.35, 2.80, 2.88, 2.36, 2.48),
    (0.95, "60", "pesq_nb"): (3.30, 2.81, 2.88, 2.35, 2.49),
    (0.80, "all", "stoi"): (0.90, 0.89, 0.89, 0.88, 0.88),
    (0.80, "60", "stoi"): (0.89, 0.89, 0.89, 0.88, 0.88),
    (0.85, "all", "stoi"): (0.90, 0.88, 0.88, 0.87, 0.87),
    (0.85, "60", "stoi"): (0.90, 0.88, 0.89, 0.88, 0.87),
    (0.90, "all", "stoi"): (0.89, 0.87, 0.89, 0.86, 0.87),
    (0.90, "60", "stoi"): (0.89, 0.87, 0.89, 0.86, 0.87),
    (0.95, "all", "stoi"): (0.87, 0.85, 0.87, 0.83, 0.85),
    (0.95, "60", "stoi"): (0.87, 0.85, 0.87, 0.83, 0.85),
}
_THESIS_RELAXATION = {"soft": 27.360, "binary": 36.676, "gap": 36.676 - 27.360, "random": 35.234}
THESIS_SPARSITY = 0.95
# Of figure 4.11.
_PANELS = {
    "gradient_norm": "gradient norm of\nthe Lagrangian",
    "violation": "violation",
    "multiplier": "multiplier",
}


def summarize(rows: Sequence[Row], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Means and standard errors over clips, table by table, with the thesis' values.

    Args:
        rows: Those of `eval.masks`, of any clips, sparsities and methods.
        settings: What to say of the run, as JSON, `keep_observed` and `fitness_band` among it.
    """
    keep = settings["keep_observed"]
    rows = [row | {"mask": "", "keep_observed": keep, "seed": settings["seed"]} for row in rows]
    groups = {
        (group["sparsity"], group["method"], group["phases"]): group
        for group in report.summarize(rows, METRICS)
    }
    progress = _progress(rows)
    sparsities = sorted({row["sparsity"] for row in rows})
    sparsest = THESIS_SPARSITY if THESIS_SPARSITY in sparsities else max(sparsities, default=0.0)
    places = {
        "4.1": itertools.product([sparsest], ["all"], COLUMNS["4.1"]),
        **{
            table: itertools.product(sparsities, PHASES_TITLES, COLUMNS[table])
            for table in ("4.2", "4.3")
        },
    }
    return {
        "settings": dict(settings),
        "clips": sorted({row["clip"] for row in rows}),
        "tables": {
            table: [
                {"sparsity": sparsity, "phases": phases, "method": method, "metric": metric}
                | groups[sparsity, method, phases][metric]
                | {"thesis": thesis(table, sparsity, phases, method, metric)}
                | progress[sparsity, method]
                for (sparsity, phases, method), metric in itertools.product(
                    list(places[table]), metrics
                )
                if (sparsity, method, phases) in groups
            ]
            for table, metrics in TABLES.items()
        },
        "relaxation": [
            line
            for search, sparsity in itertools.product(RELAXATION_SEARCHES, sparsities)
            for line in _relaxation(rows, search, sparsity, progress)
        ],
        "surrogate": [
            line
            for sparsity in sparsities
            for line in _surrogate(rows, sparsity, progress, settings["fitness_band"])
        ],
        "searches": [
            {"sparsity": sparsity, "method": method} | numbers
            for (sparsity, method), numbers in progress.items()
            if numbers["asked"]
        ],
        "unscored": report.unscored(rows),
    }


def thesis(table: str, sparsity: float, phases: str, method: str, metric: str) -> float | None:
    """What the thesis has in that place of a table, if anything; its PESQ counts as narrow band."""
    if table == "4.1":
        methods = REPRODUCTION
        values = _THESIS_REPRODUCTION.get(metric, ()) if sparsity == THESIS_SPARSITY else ()
    else:
        methods = COMPARED
        values = _THESIS_COMPARED.get((sparsity, phases, metric), ())
    known: dict[str, float] = dict(zip(methods, values, strict=False))
    return known.get(method)


def _progress(rows: Iterable[Row]) -> dict[tuple[float, str], Row]:
    """How far each method came at each sparsity, over all clips."""
    found: dict[tuple[float, str], list[Row]] = {}
    for row in rows:
        if row["phases"] == "all":
            found.setdefault((row["sparsity"], row["method"]), []).append(row)
    return {
        place: {
            "done_least": min(row["done"] for row in clips),
            "done_most": max(row["done"] for row in clips),
            "asked": max(row["asked"] for row in clips),
            "cut_short": sum(row["done"] < row["asked"] for row in clips),
            "evaluations": float(np.mean([row["evaluations"] for row in clips])),
            "seconds": float(np.mean([row["seconds"] for row in clips])),
        }
        for place, clips in found.items()
    }


def _relaxation(
    rows: Iterable[Row], search: str, sparsity: float, progress: Mapping[tuple[float, str], Row]
) -> Iterator[dict[str, Any]]:
    """MSE of a sparsity's masks, what rounding costs, and how the search ended."""
    names = soft, binary, _ = relaxed(search)
    found = _by_clip(rows, sparsity)
    clips = [clip for clip in found.values() if clip.keys() >= set(names)]
    if not clips:
        return
    line: dict[str, Any] = {"search": search, "sparsity": sparsity} | progress[sparsity, soft]
    for name, method in zip(("soft", "binary", "best"), names, strict=True):
        line[name] = _over_clips([clip[method]["mse"] for clip in clips])
    line["gap"] = _over_clips([clip[binary]["mse"] - clip[soft]["mse"] for clip in clips])
    for method in ("constant", "random"):
        values = [clip[method]["mse"] for clip in clips if method in clip]
        line[method] = _over_clips(values) if values else None
    for measure in MEASURES:
        line[measure] = _over_clips([clip[soft][measure] for clip in clips])
    of_thesis = search == "relaxation" and sparsity == THESIS_SPARSITY
    line["thesis"] = _THESIS_RELAXATION if of_thesis else {}
    yield line


def _by_clip(rows: Iterable[Row], sparsity: float) -> dict[str, dict[str, Row]]:
    """A sparsity's rows with all phases, by clip and method."""
    clips: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row["sparsity"] == sparsity and row["phases"] == "all":
            clips.setdefault(row["clip"], {})[row["method"]] = row
    return clips


def _surrogate(
    rows: Iterable[Row], sparsity: float, progress: Mapping[tuple[float, str], Row], band: str
) -> Iterator[dict[str, Any]]:
    """What searches by the surrogate saw, beside the PESQ of their masks and of that for PESQ."""
    found = _by_clip(rows, sparsity)
    clips = [clip for clip in found.values() if clip.keys() & set(BY_SURROGATE)]
    for method in (*BY_SURROGATE, "genetic-pesq"):
        scored = [clip[method] for clip in clips if method in clip]
        if not scored:
            continue
        pesq = [row[f"pesq_{band}"] for row in scored]
        line = {"sparsity": sparsity, "method": method, "surrogate": None, "gap": None}
        line |= progress[sparsity, method] | {"pesq": _over_clips(pesq)}
        for name in ("seconds", "evaluations"):
            line[name] = _over_clips([row[name] for row in scored])
        if method in BY_SURROGATE:
            seen = [-row["loss"] for row in scored]
            line["surrogate"] = _over_clips(seen)
            line["gap"] = _over_clips([a - b for a, b in zip(seen, pesq, strict=True)])
        yield line


def _over_clips(values: Iterable[float]) -> dict[str, Any]:
    return report.statistics([[value] for value in values])


def tables(summary: dict[str, Any]) -> str:
    """The summary as Markdown."""
    settings, clips = DEFAULTS | summary["settings"], summary["clips"]
    put_back = "put back" if settings["keep_observed"] else "not put back"
    text = f"{len(clips)} clip{'s' * (len(clips) != 1)} ({one_line(', '.join(clips))})"
    text += "; mean ± standard error over clips" * (len(clips) > 1)
    text += f". Kept bins are {put_back}; the search for PESQ is for that of the"
    text += f" {'narrow' if settings['fitness_band'] == 'nb' else 'wide'} band"
    text += f"{', and so is the surrogate' * bool(summary['surrogate'])}.\n"
    text += "The thesis' values are of one clip of another corpus; the band of its PESQ is not\n"
    text += "given, and it stands beside our narrow band.\n"
    headings = {
        "4.1": "MSE, PESQ and STOI of genetic searches with and without reproduction",
        "4.2": "PESQ",
        "4.3": "STOI",
    }
    for table, heading in headings.items():
        text += f"\n## Table {table}: {heading}\n\n"
        cells = summary["tables"][table]
        there = {cell["method"] for cell in cells}
        columns = [x for x in COLUMNS[table] if x not in OURS or x in there]
        text += _table(cells, columns) + _cut_short(summary["searches"], cells)
    for search, fitness in RELAXATION_SEARCHES.items():
        if lines := [line for line in summary["relaxation"] if line["search"] == search]:
            names = ("learning_rate", "multiplier_rate", "penalty", "steepness")
            used = ", ".join(f"{name.replace('_', ' ')} {settings[name]:g}" for name in names)
            by = f" for {fitness}" * (search != "relaxation")
            text += f"\n## Relaxation{by}\n\n"
            text += f"With the {settings['relaxation']} relaxation, {used}.\n"
            text += _relaxation_tables(lines)
            soft = [{"sparsity": x["sparsity"], "method": relaxed(search)[0]} for x in lines]
            text += _cut_short(summary["searches"], soft)
    if summary["surrogate"]:
        text += "\n## Surrogate\n\n" + _surrogate_table(summary)
        text += _cut_short(summary["searches"], summary["surrogate"])
    if summary["searches"]:
        text += "\n## Searches\n\n" + _searches(summary["searches"])
    return text + _missing(summary["unscored"])


def _table(cells: Sequence[Row], columns: Sequence[str]) -> str:
    """A line for each sparsity, choice of phases and metric, and below it the thesis'."""
    lines: dict[tuple, dict[str, Row]] = {}
    for cell in cells:
        place = (cell["sparsity"], cell["phases"], cell["metric"])
        lines.setdefault(place, {})[cell["method"]] = cell
    rows = []
    for (sparsity, phases, metric), line in lines.items():
        names = [_percent(sparsity), PHASES_TITLES[phases], report.TITLES[metric]]
        rows.append(names + [_cell(line.get(method), metric) for method in columns])
        known = [line[method]["thesis"] if method in line else None for method in columns]
        if any(value is not None for value in known):
            rows.append([*names[:2], f"{names[2]}, thesis", *map(_value, known)])
    header = ["sparsity", "phases", "score", *(TITLES[method] for method in columns)]
    return report.grid(header, rows)


def _cell(cell: Row | None, metric: str) -> str:
    if cell is None:
        return ""
    return report.cell(cell, report.DIGITS.get(metric, 3)) + "\\*" * bool(cell["cut_short"])


def _value(value: float | None) -> str:
    return "" if value is None else str(value)


def _percent(sparsity: float) -> str:
    return f"{100 * sparsity:g} %"


def _cut_short(searches: Iterable[Row], cells: Iterable[Row]) -> str:
    """What the stars in a table stand for."""
    places = {(cell["sparsity"], cell["method"]) for cell in cells}
    cut = [
        f"{TITLES[search['method']]} at {_percent(search['sparsity'])}: {_done(search)}"
        for search in searches
        if search["cut_short"] and (search["sparsity"], search["method"]) in places
    ]
    return f"\n\\* cut short: {'; '.join(cut)}.\n" if cut else ""


def _done(search: Row) -> str:
    least, most = search["done_least"], search["done_most"]
    done = str(least) if least == most else f"{least} to {most}"
    unit = "updates" if search["method"].startswith("relaxation") else "generations"
    return f"{done} of {search['asked']} {unit}"


def _relaxation_tables(lines: Sequence[Row]) -> str:
    mse = {
        "soft": "soft",
        "binary": "binary",
        "gap": "gap",
        "best": "best",
        "constant": "constant",
        "random": "random",
    }
    rows = []
    for line in lines:
        star = "\\*" * bool(line["cut_short"])
        percent = _percent(line["sparsity"])
        rows.append([percent] + [_digits(line[name], ".2f") + star for name in mse])
        if line["thesis"]:
            known = [line["thesis"].get(name) for name in mse]
            rows.append([f"{percent}, thesis"] + [_value(v and round(v, 3)) for v in known])
    text = "MSE (dB²); the gap is what rounding costs.\n\n"
    text += report.grid(["sparsity", *mse.values()], rows)
    titles = ["crossings", "violation", "multiplier", "gradient norm", "KKT residual", "relative"]
    text += "\nThe end of the search: entries whose rounded value is not that of the start, mean of"
    text += " the soft mask less the share of ones, and the gradient of the Lagrangian, alone and"
    text += f" over that of {RELAXATION_SEARCHES[lines[0]['search']]}.\n\n"
    return text + report.grid(
        ["sparsity", *titles],
        [
            [_percent(line["sparsity"])] + [_digits(line[name], ".3g") for name in MEASURES]
            for line in lines
        ],
    )


def _surrogate_table(summary: dict[str, Any]) -> str:
    band = report.TITLES[f"pesq_{summary['settings']['fitness_band']}"]
    text = "With all phases. The surrogate is what the search saw and is not PESQ, which is that of"
    text += " `pesq`; the gap is the first less the second.\n\n"
    rows = []
    for line in summary["surrogate"]:
        star = "\\*" * bool(line["cut_short"])
        scores = [line["surrogate"], line["pesq"], line["gap"]]
        rows.append(
            [TITLES[line["method"]], _percent(line["sparsity"])]
            + ["" if score is None else report.cell(score, 3) + star for score in scores]
            + [report.cell(line[name], 0) for name in ("seconds", "evaluations")]
        )
    header = ["mask", "sparsity", "surrogate", band, "gap", "seconds", "masks evaluated"]
    return text + report.grid(header, rows)


def _digits(value: dict[str, Any] | None, digits: str) -> str:
    """A mean and its standard error, in a format of numbers."""
    if value is None or value["mean"] is None:
        return ""
    error = value["standard_error"]
    return f"{value['mean']:{digits}}" + (f" ± {error:{digits}}" if error is not None else "")


def _searches(searches: Iterable[Row]) -> str:
    return report.grid(
        ["search", "sparsity", "done", "masks evaluated", "seconds"],
        [
            [
                TITLES[search["method"]].replace(" soft", ""),
                _percent(search["sparsity"]),
                _done(search),
                f"{search['evaluations']:.0f}",
                f"{search['seconds']:.0f}",
            ]
            for search in searches
            if not _is_rounded(search["method"])
        ],
    )


def _is_rounded(method: str) -> bool:
    """Whether a search is counted by another of its masks, the soft one."""
    return any(method in relaxed(search)[1:] for search in RELAXATION_SEARCHES)


def _missing(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    text = "\nMissing values:\n\n"
    for row in rows:
        place = f"{row['clip']}, {_percent(row['sparsity'])}, {row['method']}, {row['phases']}"
        text += f"- {row['metric']} of {one_line(place)}: {one_line(row['reason'])}\n"
    return text


def write(summary: dict[str, Any], out: Path) -> None:
    """Writes the tables and figures into a run's folder, whose history it reads.

    Raises:
        OSError: If a file can't be read or written.
    """
    atomic_write(out / "tables.md", tables(summary).encode(errors="surrogateescape"))
    atomic_write(out / "tables.json", json.dumps(summary, indent=1).encode())
    for table, cells in summary["tables"].items():
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(cells[0]) if cells else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(cells)
        atomic_write(out / f"table-{table}.csv", text.getvalue().encode())
    histories = read_histories(summary, out)
    for search in RELAXATION_SEARCHES:
        of = search.removeprefix("relaxation")
        _plot_relaxation(histories, search, out / f"figure-4.11{of}.png")
    for fitness, figure in (("mse", "4.12"), ("pesq", "4.13")):
        _plot_fitness(summary, histories, fitness, out / f"figure-{figure}.png")


def read_histories(summary: dict[str, Any], out: Path) -> dict[tuple, dict[str, np.ndarray]]:
    """Searches' courses by clip, sparsity and method, those that a run has.

    Raises:
        RowsError: If a file is damaged.
    """
    found = {}
    searches = {
        (search["sparsity"], search["method"].removesuffix("-soft"))
        for search in summary["searches"]
        if not _is_rounded(search["method"])
    }
    for clip, (sparsity, method) in itertools.product(summary["clips"], sorted(searches)):
        path = out / "history" / f"{clip}-{100 * sparsity:g}-{method}.csv"
        if path.exists():
            try:
                names, *lines = csv.reader(path.read_text(encoding="utf-8").splitlines())
                values = np.array(lines, float).reshape(-1, len(names)).T
            except (csv.Error, ValueError) as error:
                raise RowsError(f"{path} is damaged: {one_line(str(error))}") from error
            history = dict(zip(names, values, strict=True))
            drawn = {"update", *_PANELS} if method in RELAXATION_SEARCHES else {"generation"}
            if missing := (drawn | {"best"}) - history.keys():
                raise RowsError(f"{path} is damaged: no column {', '.join(sorted(missing))}")
            found[clip, sparsity, method] = history
    return found


def _plot_relaxation(
    histories: Mapping[tuple, dict[str, np.ndarray]], search: str, path: Path
) -> None:
    """Gradient norm, violation and multiplier against updates: the thesis' figure 4.11."""
    lines = {place: x for place, x in histories.items() if place[2] == search}
    if not lines:
        return
    figure, axes = _figure(len(_PANELS), "update")
    for (name, title), panel in zip(_PANELS.items(), axes, strict=True):
        panel.set_ylabel(title)
        for (clip, sparsity, _), history in lines.items():
            label = f"{one_line(clip)}, {_percent(sparsity)}" if panel is axes[0] else None
            _draw(panel, history["update"], history[name], linewidth=1, label=label)
    axes[0].set_yscale("log")
    _save(figure, path)


def _plot_fitness(
    summary: dict[str, Any],
    histories: Mapping[tuple, dict[str, np.ndarray]],
    fitness: str,
    path: Path,
) -> None:
    """Best fitness against generations at table 4.1's sparsity: figures 4.12 and 4.13.

    The surrogate is drawn on the scale of PESQ, which it estimates, and under its own name.
    """
    cells = summary["tables"]["4.1"]
    drawn = ("mse",) if fitness == "mse" else ("pesq", "surrogate")
    lines = {
        (clip, method): history
        for (clip, sparsity, method), history in histories.items()
        if cells
        and sparsity == cells[0]["sparsity"]
        # Of the relaxation there are no generations.
        and method.partition("-")[0] in _KINDS
        and method.endswith(drawn)
    }
    if not lines:
        return
    band = summary["settings"]["fitness_band"]
    metric = "mse" if fitness == "mse" else f"pesq_{band}"
    sign = 1 if fitness == "mse" else -1
    figure, (axes,) = _figure(1, "generation")
    by_surrogate = any(method in BY_SURROGATE for _, method in lines)
    axes.set_ylabel(f"best {report.TITLES[metric]}" + " or surrogate" * by_surrogate)
    for (clip, method), history in lines.items():
        kind = method.partition("-")[0]
        named = "surrogate, " * (method in BY_SURROGATE)
        _draw(
            axes,
            history["generation"],
            sign * history["best"],
            color=f"C{summary['clips'].index(clip) % 10}",
            linestyle="-" if kind == "genetic" else "--",
            alpha=0.5 if named else 1.0,
            label=f"{named}{_KINDS[kind]}, {one_line(clip)}",
        )
    known = {cell["method"]: cell for cell in cells if cell["metric"] == metric}
    if "random" in known and known["random"]["mean"] is not None:
        mean = known["random"]["mean"]
        axes.axhline(mean, color="grey", linestyle=":", label="one random mask, mean")
    thesis_metric = "mse" if fitness == "mse" else "pesq_nb"
    for method, style in ((f"genetic-{fitness}", "-"), (f"control-{fitness}", "--")):
        value = thesis("4.1", cells[0]["sparsity"], "all", method, thesis_metric)
        if value is not None:
            label = f"thesis' end, {_KINDS[method.partition('-')[0]]}"
            axes.axhline(value, color="black", linewidth=1, linestyle=style, label=label)
    _save(figure, path)


def _figure(n_panels: int, xlabel: str) -> tuple[Any, list[Any]]:
    import matplotlib.figure

    figure = matplotlib.figure.Figure((9, 3 + 1.5 * n_panels), layout="constrained")
    axes = figure.subplots(n_panels, sharex=True, squeeze=False)[:, 0]
    axes[-1].set_xlabel(xlabel)
    for panel in axes:
        panel.grid(alpha=0.3)
    return figure, list(axes)


def _draw(axes: Any, x: np.ndarray, y: np.ndarray, **style: Any) -> None:
    """A line, or a point where there is only one."""
    axes.plot(x, y, marker="." if len(x) == 1 else None, **style)


def _save(figure: Any, path: Path) -> None:
    figure.legend(loc="outside right upper", fontsize="small")
    with io.BytesIO() as buffer:
        figure.savefig(buffer, format="png", dpi=100)
        atomic_write(path, buffer.getvalue())
