"""The comparison of ways to masks."""

import csv
import json

import numpy as np
import pytest
import soundfile
from test_eval import voice

from eval import searches, searches_report
from jaxsparse.mask_files import load_mask
from jaxsparse.masks import count_observed
from jaxsparse.types import SAMPLE_RATE

N_SAMPLES = 8_000
NAMES_OF_PESQ = ("surrogate", "pesq")
SHAPE = (1025, 1 + N_SAMPLES // 256)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for i in range(3):
        soundfile.write(folder / f"{i}.flac", voice(i, 0.3)[:N_SAMPLES], SAMPLE_RATE)
    return folder


def flags(data, out, *more):
    return [
        *("--data", str(data), "--out", str(out), "--n-samples", str(N_SAMPLES)),
        *("--decoder", "pyramid", "--loss", "mse", "--start", "contrast", "--workers", "1", *more),
    ]


def read_row(out, method, evaluations):
    """That of the first clip."""
    rows = csv.DictReader((out / "rows.csv").read_text().splitlines())
    (row,) = (
        {"loss": float(row["loss"])}
        for row in rows
        if (row["clip"], row["method"], row["evaluations"]) == ("0.flac", method, str(evaluations))
    )
    return row


@pytest.mark.slow
def test_all_ways_are_scored_after_each_number_of_evaluations(data, tmp_path, capsys):
    out = tmp_path / "run"
    methods = ("random", "contrast", "swaps", "relaxed-projection", "genetic-thesis")
    methods += ("annealed-projection", "genetic", "relaxed-then-genetic", "relaxed-then-swaps")
    more = ("--clips", "2", "--methods", *methods, "--evaluations", "61", "110")
    assert searches.main(flags(data, out, *more, "--json")) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["clips"] == 2
    groups = {(g["method"], g["evaluations"]): g for g in summary["groups"]}
    assert set(groups) == {("random", 0), ("contrast", 0)} | {
        (method, n) for method in methods[2:] for n in (61, 110)
    } | {
        (f"{kind}-projection-{end}", 110)
        for kind in ("relaxed", "annealed")
        for end in ("soft", "rounded")
    }
    # A hybrid or an annealing with another budget is another search.
    for method in ("swaps", "relaxed-projection", "genetic-thesis", "genetic"):
        assert groups[method, 110]["loss"]["mean"] <= groups[method, 61]["loss"]["mean"]
    for method in ("swaps", "relaxed-projection"):
        assert groups[method, 110]["mse"]["mean"] < groups["contrast", 0]["mse"]["mean"]
    soft, rounded, best = (
        groups[f"relaxed-projection{end}", 110]["loss"]["mean"] for end in ("-soft", "-rounded", "")
    )
    assert soft != rounded and best <= rounded

    def gap(kind):
        soft, rounded = (
            groups[f"{kind}-projection-{end}", 110]["loss"]["mean"] for end in ("soft", "rounded")
        )
        return abs(rounded - soft)

    # What an annealing ends with is nearly hard.
    assert gap("annealed") < 0.2 * gap("relaxed")
    assert groups["annealed-projection", 61]["loss"] != groups["annealed-projection", 110]["loss"]
    for end in ("-soft", "-rounded"):
        ends = groups[f"relaxed-projection{end}", 110]
        assert ends["loss"]["mean"] == pytest.approx(ends["mse"]["mean"], rel=1e-4)
    for (method, n), group in groups.items():
        assert group["done"]["mean"] <= n or method == "genetic-thesis"
    assert groups["relaxed-then-swaps", 110]["loss"]["mean"] < groups["contrast", 0]["mse"]["mean"]
    # Half of the evaluations are the relaxation's: 1 + 9 x 6 of them, and then 1 + 27 x 2, or a
    # population of 16 and twice 14 more.
    assert groups["relaxed-then-swaps", 110]["done"]["mean"] == 110
    assert groups["relaxed-then-genetic", 110]["done"]["mean"] == 99
    short = ("--methods", "relaxed-straight-through-exact-sum", "--evaluations", "55")
    assert searches.main(flags(data, out, "--clips", "2", *short)) == 0
    first = read_row(out, "relaxed-straight-through-exact-sum", 55)
    assert first["loss"] >= read_row(out, "relaxed-then-genetic", 110)["loss"]
    assert groups["genetic-thesis", 61]["done"]["mean"] == 50
    assert groups["genetic-thesis", 110]["done"]["mean"] == 95
    for band in ("wb", "nb"):
        surrogate, scored = (groups["swaps", 110][f"{n}_{band}"]["mean"] for n in NAMES_OF_PESQ)
        assert surrogate == pytest.approx(scored, abs=0.7)
    # What is searched for is what the mask is scored with.
    loss, mse = (groups["swaps", 110][name]["mean"] for name in ("loss", "mse"))
    assert loss == pytest.approx(mse, rel=1e-4)
    for name in ("table.md", "summary.json", "quality-95.png"):
        assert (out / name).stat().st_size > 0
    mask = load_mask(out / "masks" / "0-95-swaps.npz")
    assert mask.shape == SHAPE and np.count_nonzero(mask) == count_observed(SHAPE, 0.95)
    # All is there.
    rows = (out / "rows.csv").read_bytes()
    assert searches.main(flags(data, out, *more)) == 0
    assert (out / "rows.csv").read_bytes() == rows
    assert "| 0.95 | swaps | 110 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        (("--methods", "guess"), "no method is named 'guess'; there are random"),
        (("--start", "swaps"), "no policy is named 'swaps'; there are random"),
        (("--sparsity", "1"), "sparsity needs numbers between 0 and 1"),
        (("--evaluations", "0"), "evaluations needs whole numbers above 0"),
        (("--loss", "pleasure"), "loss has no term 'pleasure'"),
        (("--decoder", "linear"), "the decoder linear runs on the host"),
        (("--clips", "0"), "clips"),
    ],
)
def test_bad_settings_are_one_line(data, tmp_path, capsys, more, fault):
    assert searches.main(flags(data, tmp_path / "run", *more)) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("eval.searches: ")
    assert fault in captured.err and captured.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_an_unreadable_clip_is_named(tmp_path, capsys):
    (tmp_path / "clip.wav").write_bytes(b"RIFF")
    assert searches.main(flags(tmp_path, tmp_path / "run", "--methods", "random")) == 2
    assert "clip.wav: " in capsys.readouterr().err


def row(clip, method, evaluations, **values):
    found = dict.fromkeys(searches_report.METRICS, 1.0)
    return (
        {
            "clip": clip,
            "sparsity": 0.95,
            "method": method,
            "evaluations": evaluations,
        }
        | found
        | values
    )


def test_means_are_over_clips():
    rows = [
        row("a", "random", 0, loss=np.nan, pesq_wb=2.0),
        row("b", "random", 0, loss=np.nan, pesq_wb=3.0),
        row("a", "swaps", 25, pesq_wb=4.0, seconds=12.34),
        row("b", "swaps", 25, pesq_wb=np.nan, seconds=12.34),
    ]
    settings = {"decoder": "unet", "loss": "quality", "start": "learned"}
    summary = searches_report.summarize(rows, settings)
    random, swapped = summary["groups"]
    assert random["pesq_wb"]["mean"] == 2.5 and random["loss"]["mean"] is None
    assert swapped["pesq_wb"]["mean"] == 4.0 and swapped["pesq_wb"]["unscored"] == 1
    text = searches_report.table(summary)
    assert "| 0.95 | random | 0 | 1 ± 0 | 1.0 ± 0.0 | none |" in text
    assert "| 12.3 ± 0.0 |" in text and "4.000 (1 missing)" in text
    assert "Clips: 2; decoder: unet; searches for quality" in text
