import csv
import functools
import json
import math
import os
import re
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from reference import decoder
from test_eval import voice

from eval import masks, masks_report
from eval.rows import RowFile, lock_folder
from jaxsparse import objectives, pretrained, terms
from jaxsparse.masks import count_observed, random_mask, unpack_mask
from jaxsparse.metrics import ScorePool, reference_pesq, reference_stoi
from jaxsparse.pretrained import Card, Pretrained
from jaxsparse.reconstruct import to_waveform
from jaxsparse.spectrogram import log_power, phase_mask
from jaxsparse.transforms.stft import stft
from jaxsparse.types import SAMPLE_RATE

N_SAMPLES = 8_000
SHAPE = (1025, 1 + N_SAMPLES // 256)
LEVEL = -30.0
RELAXED = masks_report.relaxed("relaxation")
ADDED = (
    "--sparsity",
    "0.95",
    "--methods",
    "relaxation",
    "genetic",
    "--fitness",
    "surrogate",
    "quality",
)
OURS = {
    *("genetic-surrogate", "genetic-quality"),
    *masks_report.relaxed("relaxation-surrogate"),
    *masks_report.relaxed("relaxation-quality"),
}
TABLES = ("tables.md", "tables.json", "table-4.1.csv", "table-4.2.csv", "table-4.3.csv")
FIGURES = (
    *("figure-4.11.png", "figure-4.12.png", "figure-4.13.png"),
    *("figure-4.11-surrogate.png", "figure-4.11-quality.png"),
)


def apply(params, spectrogram, mask, valid=None):
    """A 'network' that has a level of its own where it observes nothing."""
    weight = mask.astype(spectrogram.dtype)
    return params["level"] + weight * (spectrogram - params["level"])


def likeness(*, reference, estimate, sample_rate, band):
    """A 'surrogate' that compiles in no time."""
    error = jnp.sum(jnp.square(estimate - reference), axis=1)
    share = error / jnp.sum(jnp.square(reference), axis=1)
    return {"wb": 4.0, "nb": 4.5}[band] / (1 + sample_rate / SAMPLE_RATE * share)


def unlikeness(**clips):
    return 4.64 - likeness(**clips)


@pytest.fixture(scope="module", autouse=True)
def network():
    loaded = Pretrained(
        decoder(apply), {"level": jnp.float32(LEVEL)}, Card("that of the level", ("random",), ())
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrained, "load_pretrained", lambda name: loaded)
        patch.setattr(objectives, "pesq_surrogate", likeness)
        for term, band in (("surrogate", "wb"), ("surrogate-nb", "nb")):
            score = functools.partial(unlikeness, band=band)
            patch.setitem(terms.TERMS, term, terms.Term(1.0, score))
        yield


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "voice.wav"
    soundfile.write(path, voice(0, 0.3)[:N_SAMPLES], SAMPLE_RATE)
    return path


def flags(clip, out, *more):
    return [
        *("--clip", str(clip), "--out", str(out), "--sparsity", "0.9", "0.95", "--workers", "1"),
        *("--generations", "4", "--population", "4", "--steps", "2", *more),
    ]


@pytest.fixture(scope="module")
def finished(clip, tmp_path_factory):
    """A run of all methods, to which two fitnesses were added, and which no test may change."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert masks.main(flags(clip, out)) == 0
    shutil.copy(out / "rows.csv", out.with_name("before.csv"))
    assert masks.main(flags(clip, out, *ADDED)) == 0
    return out


def read_rows(out):
    lines = csv.DictReader((out / "rows.csv").read_text().splitlines())
    return {(row["sparsity"], row["method"], row["phases"]): row for row in lines}


def without_times(rows):
    """`pystoi`'s extended measure adds noise at rounding level, so its last digits vary."""
    return {
        key: {k: v for k, v in row.items() if k != "seconds"}
        | {"estoi": f"{float(row['estoi']):.9f}"}
        for key, row in rows.items()
    }


def read_mask(out, name):
    with np.load(out / "masks" / f"voice-{name}.npz") as file:
        return dict(file)


@pytest.mark.slow
def test_every_method_has_its_rows_masks_and_history(finished):
    rows = read_rows(finished)
    everywhere = {"random", "constant", "genetic-mse", "genetic-pesq", *RELAXED}
    sparsest = {"control-mse", "control-pesq"} | OURS
    assert set(rows) == {
        (sparsity, method, phases)
        for sparsity, methods in (("0.9", everywhere), ("0.95", everywhere | sparsest))
        for method in methods
        for phases in ("all", "60")
    }
    for (sparsity, method, _), row in rows.items():
        content = read_mask(finished, f"{100 * float(sparsity):g}-{method}")
        count = count_observed(SHAPE, float(sparsity))
        assert (*content["shape"], content["count"]) == (*SHAPE, count)
        if method == "constant" or method.endswith("-soft"):
            assert content["mask"].shape == SHAPE
        else:
            assert np.unpackbits(content["bits"]).sum() == count
        searched = method not in ("random", "constant")
        expected = {"genetic": 4, "control": 4, "relaxation": 2}.get(method.partition("-")[0], 0)
        assert int(row["done"]) == int(row["asked"]) == expected
        assert (int(row["evaluations"]) > 0) == searched
        # What was searched for is what the mask is scored with.
        if method.endswith("pesq") and row["phases"] == "all":
            assert float(row["loss"]) == pytest.approx(-float(row["pesq_nb"]), abs=1e-4)
        elif searched and not {"pesq", "surrogate", "quality"} & set(method.split("-")):
            assert float(row["loss"]) == pytest.approx(float(row["mse"]), rel=1e-5)
    for name in ("90-genetic-mse", "95-control-pesq", "95-genetic-surrogate"):
        history = (finished / "history" / f"voice-{name}.csv").read_text().splitlines()
        assert [line.partition(",")[0] for line in history] == ["generation", "1", "2", "3", "4"]
    for name in ("95-relaxation", "95-relaxation-surrogate"):
        assert (finished / "history" / f"voice-{name}.csv").read_text().startswith("update,")
    for name in (*TABLES, *FIGURES):
        assert (finished / name).stat().st_size > 0


SCORED = (
    "random",
    "genetic-pesq",
    "relaxation-soft",
    "genetic-surrogate",
    "relaxation-surrogate-soft",
    "genetic-quality",
)


@pytest.fixture(scope="module")
def pool():
    with ScorePool(1) as pool:
        yield pool


@pytest.mark.slow
@pytest.mark.parametrize("method", SCORED)
def test_rows_are_what_the_mask_gives_by_itself(method, clip, finished, pool):
    signal, _ = soundfile.read(clip, dtype="float32")
    spectrum = stft(jnp.asarray(signal))
    dense = log_power(spectrum)
    content = read_mask(finished, f"95-{method}")
    if "bits" in content:
        mask = unpack_mask(jnp.asarray(content["bits"]), SHAPE)
        weight = np.asarray(mask, np.float64)
    else:
        weight = content["mask"].astype(np.float64)
    estimate = LEVEL + weight * (np.asarray(dense, np.float64) - LEVEL)
    rows = read_rows(finished)
    for phases, threshold in (("all", None), ("60", 60.0)):
        row = rows["0.95", method, phases]
        error = np.mean((estimate - np.asarray(dense)) ** 2)
        assert float(row["mse"]) == pytest.approx(error, rel=1e-4)
        angle = jnp.where(phase_mask(dense, threshold), jnp.angle(spectrum), 0)
        sound = to_waveform(jnp.asarray(estimate, jnp.float32), angle, length=N_SAMPLES)
        batch = {"reference": signal[None], "estimate": np.asarray(sound)[None]}
        for band in ("nb", "wb"):
            scores = reference_pesq(**batch, sample_rate=SAMPLE_RATE, band=band, pool=pool)
            assert float(row[f"pesq_{band}"]) == pytest.approx(scores.values[0], abs=2e-3)
        scores = reference_stoi(**batch, sample_rate=SAMPLE_RATE, pool=pool)
        np.testing.assert_allclose(float(row["stoi"]), scores.values[0], atol=1e-3)
        if "surrogate" in method and phases == "all":
            seen = likeness(**batch, sample_rate=SAMPLE_RATE, band="nb")[0]
            assert float(row["loss"]) == pytest.approx(-float(seen), abs=1e-3)
        if method == "genetic-quality" and phases == "all":
            about = {**batch, "sample_rate": SAMPLE_RATE}
            of_bands = sum(unlikeness(**about, band=band)[0] for band in ("wb", "nb"))
            expected = float(of_bands) + 10 * (1 - scores.values[0])
            assert float(row["loss"]) == pytest.approx(expected, abs=5e-3)


@pytest.mark.slow
def test_the_baseline_is_the_mask_of_the_other_evaluation(finished):
    key = masks.mask_key(0, "folder/voice.flac")
    expected = random_mask(key, SHAPE, count_observed(SHAPE, 0.95))
    assert (read_mask(finished, "95-random")["bits"] == np.packbits(expected)).all()


@pytest.mark.slow
def test_a_run_that_was_cut_short_says_so_and_goes_on_to_the_same(clip, finished, tmp_path, capsys):
    out = tmp_path / "run"
    chosen = flags(clip, out, "--methods", "genetic", "--fitness", "mse", "pesq")
    # One step is done in any time.
    assert masks.main([*chosen, "--budget", "1e-9"]) == 0
    text = capsys.readouterr().out
    assert text == (out / "tables.md").read_text() + "\n"
    assert {row["done"] for row in read_rows(out).values()} == {"2"}
    assert len(re.findall(r"cut short: .*genetic MSE at 95 %: 2 of 4 generations", text)) == 3
    assert re.search(r"\| genetic PESQ \| 90 % \| 2 of 4 generations \|", text)
    assert masks.main(chosen) == 0
    text = capsys.readouterr().out
    assert "cut short" not in text and "\\*" not in text
    rows = read_rows(out)
    expected = read_rows(finished)
    assert len(rows) == 2 * 2 * 2
    assert without_times(rows) == without_times({key: expected[key] for key in rows})
    name = "voice-95-genetic-pesq"
    assert (out / "masks" / f"{name}.npz").read_bytes() == (
        finished / "masks" / f"{name}.npz"
    ).read_bytes()
    assert (out / "history" / f"{name}.csv").read_text() == (
        finished / "history" / f"{name}.csv"
    ).read_text()


@pytest.mark.slow
def test_a_fitness_is_added_to_what_is_there(finished):
    lines = finished.with_name("before.csv").read_text().splitlines()
    assert lines and set(lines) < set((finished / "rows.csv").read_text().splitlines())
    assert not any("surrogate" in line for line in lines)
    history = (finished / "history" / "voice-95-relaxation-surrogate.csv").read_text()
    (line,) = csv.DictReader(history.splitlines())
    assert line["failed"] == "0" and float(line["gradient_norm"]) > 0


def test_only_searches_for_pesq_and_what_stands_for_it_begin_with_the_same_population():
    keys = dict(masks._KEYS)
    assert keys.pop("genetic-surrogate") == keys["genetic-pesq"] == keys.pop("genetic-quality")
    assert len(set(keys.values())) == len(keys)
    assert {name for name, (_, fitness) in masks.NAMES.items() if fitness} == set(masks._KEYS)


def test_committed_results_can_be_gone_on_with():
    folder = Path(__file__).parents[1] / "results" / "mask-search"
    settings = masks.Settings((Path("x.flac"),), folder)
    file = RowFile(folder, masks.COLUMNS, masks._identity(settings), masks_report.DEFAULTS)
    assert {row["method"] for row in file.rows} <= {
        method for name in masks.NAMES for method in masks.row_methods(name)
    }


@pytest.mark.slow
def test_what_is_done_is_not_done_again(clip, finished, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    monkeypatch.setattr(masks, "_solve", None)
    assert masks.main(flags(clip, out, "--json")) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary == json.loads((finished / "tables.json").read_text())
    assert read_rows(out) == read_rows(finished)


@pytest.mark.slow
def test_a_run_that_does_not_name_its_relaxation_is_logistic(clip, finished, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    path = out / "settings.json"
    older = json.loads(path.read_text())
    assert older.pop("relaxation") == "logistic"
    path.write_text(json.dumps(older))
    assert masks.main(flags(clip, out, "--relaxation", "exact-sum")) == 2
    assert "another relaxation (logistic, now exact-sum)" in capsys.readouterr().err
    assert masks.main(flags(clip, out)) == 0
    assert read_rows(out) == read_rows(finished)


@pytest.mark.slow
def test_another_relaxation_has_its_own_masks(clip, finished, tmp_path, capsys):
    out = tmp_path / "run"
    chosen = ["--methods", "relaxation", "--fitness", "mse", "--sparsity", "0.95"]
    assert masks.main(flags(clip, out, *chosen, "--relaxation", "exact-sum")) == 0
    assert "With the exact-sum relaxation, learning rate 0.01" in capsys.readouterr().out
    count = count_observed(SHAPE, 0.95)
    sums = [
        np.sum(read_mask(folder, "95-relaxation-soft")["mask"], dtype=float)
        for folder in (out, finished)
    ]
    assert sums[0] == pytest.approx(count, rel=1e-5) and sums[1] > 1.1 * count


def made_up(clip, method, *, sparsity=0.95, phases="all", done=500, **values):
    return {
        "clip": clip,
        "sparsity": sparsity,
        "method": method,
        "phases": phases,
        "done": done,
        "asked": 500,
        "evaluations": 50,
        "seconds": 1.0,
        "reasons": {},
        **dict.fromkeys((*masks_report.METRICS, *masks_report.MEASURES), 1.0),
        **values,
    }


def summarize(rows):
    settings = {"keep_observed": False, "fitness_band": "nb", "seed": 0}
    settings |= {"learning_rate": 0.1, "multiplier_rate": 2.0, "penalty": 0.0, "steepness": 1.0}
    return masks_report.summarize(rows, settings)


def test_tables_over_clips_beside_the_thesis():
    rows = [
        made_up("a", "genetic-mse", mse=30.0, pesq_nb=2.0),
        made_up("b", "genetic-mse", mse=34.0, pesq_nb=math.nan, done=120)
        | {"reasons": {"pesq_nb": "no utterance"}},
        made_up("a", "genetic-mse", sparsity=0.8, phases="60", stoi=0.5),
        made_up("a", "genetic-mse", sparsity=0.8, stoi=0.5),
    ]
    summary = summarize(rows)
    cells = {
        (table, cell["sparsity"], cell["phases"], cell["metric"]): cell
        for table, lines in summary["tables"].items()
        for cell in lines
    }
    mse = cells["4.1", 0.95, "all", "mse"]
    # Of 30 and 34: sqrt(8) / sqrt(2).
    assert (mse["mean"], mse["standard_error"], mse["thesis"]) == (32, pytest.approx(2), 31.37)
    assert (mse["done_least"], mse["done_most"], mse["cut_short"]) == (120, 500, 1)
    pesq = cells["4.2", 0.95, "all", "pesq_nb"]
    assert (pesq["mean"], pesq["clips"], pesq["unscored"], pesq["thesis"]) == (2, 1, 1, 2.8)
    assert cells["4.2", 0.95, "all", "pesq_wb"]["thesis"] is None
    assert cells["4.3", 0.8, "60", "stoi"]["thesis"] == 0.89
    assert ("4.1", 0.8, "all", "mse") not in cells

    text = masks_report.tables(summary)
    assert "| 95 % | all | MSE (dB²) | 32.00 ± 2.00\\* |  |  |  |  |\n" in text
    assert "| 95 % | all | MSE (dB²), thesis | 31.37 |  |  |  |  |\n" in text
    assert "\\* cut short: genetic MSE at 95 %: 120 to 500 of 500 generations.\n" in text
    assert "2.000 (1 missing)\\*" in text
    assert "- pesq_nb of b, 95 %, genetic-mse, all: no utterance\n" in text


@pytest.mark.parametrize(
    ("table", "place", "expected"),
    [
        ("4.1", (0.95, "all", "control-pesq", "stoi"), 0.857),
        ("4.1", (0.95, "all", "random", "pesq_nb"), 2.48),
        ("4.1", (0.9, "all", "genetic-mse", "mse"), None),
        ("4.2", (0.85, "60", "relaxation-binary", "pesq_nb"), 2.94),
        ("4.2", (0.85, "60", "relaxation-binary", "pesq_wb"), None),
        ("4.2", (0.9, "60", "relaxation-soft", "pesq_nb"), 3.10),
        ("4.2", (0.9, "all", "constant", "pesq_nb"), None),
        ("4.3", (0.85, "60", "relaxation-soft", "stoi"), 0.89),
        ("4.3", (0.7, "all", "random", "stoi"), None),
    ],
)
def test_values_of_the_thesis(table, place, expected):
    assert masks_report.thesis(table, *place) == expected


def test_the_gap_of_a_relaxation_is_that_of_each_clip():
    rows = [
        made_up(clip, method, mse=mse, crossings=crossings, violation=-0.01)
        for clip, crossings, values in (("a", 10, (20, 36, 35)), ("b", 30, (30, 40, 34)))
        for method, mse in zip(RELAXED, values, strict=True)
    ]
    (line,) = summarize([*rows, made_up("a", "constant", mse=25.0)])["relaxation"]
    assert (line["gap"]["mean"], line["gap"]["standard_error"]) == (13, pytest.approx(3))
    assert (line["crossings"]["mean"], line["constant"]["mean"], line["random"]) == (20, 25, None)
    text = masks_report.tables(summarize(rows))
    assert "| 95 % | 25.00 ± 5.00 | 38.00 ± 2.00 | 13.00 ± 3.00 | 34.50 ± 0.50 |  |  |\n" in text
    assert "| 95 %, thesis | 27.36 | 36.676 | 9.316 |  |  | 35.234 |\n" in text
    # What its settings are made up of lacks the name, as older runs do.
    assert "\nWith the logistic relaxation, learning rate 0.1, multiplier rate 2," in text


def test_the_surrogate_stands_beside_the_pesq_of_its_masks():
    surrogate = [
        made_up(clip, method, loss=-seen, pesq_nb=pesq, pesq_wb=1.5, seconds=seconds)
        for method, clips in {
            "genetic-surrogate": (("a", 3.0, 2.5, 10.0), ("b", 3.5, 2.0, 20.0)),
            "relaxation-surrogate-soft": (("a", 4.0, 3.0, 7.0),),
        }.items()
        for clip, seen, pesq, seconds in clips
    ]
    # Of a clip without a mask by the surrogate nothing is compared.
    searched = [
        made_up(clip, "genetic-pesq", loss=-pesq, pesq_nb=pesq, seconds=300.0)
        for clip, pesq in (("a", 2.75), ("b", 3.25), ("c", 1.0))
    ]
    # With fewer phases the search saw nothing.
    fewer = [row | {"phases": "60", "pesq_nb": 1.0} for row in surrogate]
    summary = summarize([*surrogate, *fewer, *searched])
    text = masks_report.tables(summary)
    assert [line["method"] for line in summary["surrogate"]] == [
        *("genetic-surrogate", "relaxation-surrogate-soft", "genetic-pesq")
    ]
    for line in (
        "| mask | sparsity | surrogate | PESQ nb | gap | seconds | masks evaluated |\n",
        "| genetic surrogate | 95 % | 3.250 ± 0.250 | 2.250 ± 0.250 | 1.000 ± 0.500 | 15 ± 5 |"
        " 50 ± 0 |\n",
        "| relaxation surrogate soft | 95 % | 4.000 | 3.000 | 1.000 | 7 | 50 |\n",
        "| genetic PESQ | 95 % |  | 3.000 ± 0.250 |  | 300 ± 0 | 50 ± 0 |\n",
    ):
        assert line in text


def test_columns_of_the_surrogate_are_there_where_its_masks_are():
    rows = [made_up("a", "genetic-pesq"), made_up("a", "relaxation-soft")]
    without = masks_report.tables(summarize(rows))
    assert "urrogate" not in without
    more = masks_report.tables(summarize([*rows, made_up("a", "genetic-surrogate", loss=-2.0)]))
    headers = [line for line in more.splitlines() if line.startswith("| sparsity | phases")]
    assert [header.endswith("| genetic surrogate |") for header in headers] == [True] * 3
    assert not any("control surrogate" in header for header in headers)
    assert not any("relaxation surrogate" in header for header in headers)


def test_the_relaxation_by_the_surrogate_has_tables_of_its_own():
    rows = [
        made_up("a", method, mse=mse, loss=-2.0)
        for search, values in (("relaxation", (20, 36, 35)), ("relaxation-surrogate", (30, 41, 37)))
        for method, mse in zip(masks_report.relaxed(search), values, strict=True)
    ]
    text = masks_report.tables(summarize(rows))
    first, second = re.split(
        "\n## Relaxation for the surrogate\n", text.split("## Relaxation\n")[1]
    )
    assert "| 95 % | 20.00 | 36.00 | 16.00 | 35.00 |  |  |\n" in first
    assert "| 95 %, thesis | " in first and "over that of the MSE." in first
    assert "| 95 % | 30.00 | 41.00 | 11.00 | 37.00 |  |  |\n" in second
    assert "thesis" not in second and "over that of the surrogate." in second


def silent(folder):
    soundfile.write(folder / "silent.wav", np.zeros(N_SAMPLES), SAMPLE_RATE)
    return folder / "silent.wav"


def broken(folder):
    (folder / "broken.wav").write_bytes(b"RIFF")
    return folder / "broken.wav"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda folder: folder / "missing.wav", "missing.wav: No such file"),
        (silent, "silent.wav: reference is silent"),
        (broken, "broken.wav: "),
    ],
)
def test_clips_that_are_refused(make, reason, tmp_path, capsys):
    out = tmp_path / "run"
    assert masks.main(flags(make(tmp_path), out)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("eval.masks: ") and reason in line
    assert not out.exists()


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--sparsity", "1.5"], "sparsity 1.5 is not between 0 and 1"),
        (["--sparsity", "nan"], "sparsity nan is not between 0 and 1"),
        (["--sparsity", "0.9", "0.9"], "sparsity needs at least one value, each of them once"),
        (["--methods"], "methods needs at least one value"),
        (["--fitness"], "fitness needs at least one value"),
        (["--fitness", "mse", "mse"], "fitness needs at least one value, each of them once"),
        (["--methods", "relaxation", "--fitness", "pesq"], "needs a fitness that has a gradient"),
        (["--population", "3"], "population must be at least 4"),
        (["--generations", "0"], "generations must be at least 1"),
        (["--steps", "0"], "steps must be at least 1"),
        (["--budget", "0"], "budget must be more than 0"),
        (["--steepness", "nan"], "steepness must be more than 0"),
        (
            ["--relaxation", "logit"],
            "relaxation must be one of logistic, exact-sum, projection, lapsum, entropic,",
        ),
        (["--penalty", "-1"], "penalty can't be negative"),
        (["--clip", "a/x.wav", "b/x.flac"], "clips need different names"),
    ],
)
def test_settings_that_are_refused(more, reason, clip, tmp_path, capsys):
    assert masks.main(flags(clip, tmp_path / "run", *more)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("eval.masks: ") and reason in line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--seed", "1"], "another seed (0, now 1)"),
        (["--keep-observed"], "another keep_observed"),
        (["--population", "5"], "another population (4, now 5)"),
        (["--fitness-band", "wb"], "another fitness_band"),
        (["--learning-rate", "0.5"], "another learning_rate"),
        (["--relaxation", "exact-sum"], "another relaxation (logistic, now exact-sum)"),
        (["--n-samples", "7000"], "another n_samples"),
    ],
)
def test_a_run_of_something_else_is_left_alone(more, reason, clip, finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert masks.main(flags(clip, finished, *more)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


@pytest.mark.slow
def test_another_clip_of_the_same_name_is_left_alone(clip, finished, tmp_path, capsys):
    """Nothing is noted either of the sparsity that comes before and is new."""
    other = tmp_path / clip.name
    soundfile.write(other, voice(1, 0.3)[:N_SAMPLES], SAMPLE_RATE)
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert masks.main(flags(other, finished, "--sparsity", "0.85", "0.9")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "voice-90-random holds a run with another clip (" in line
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("searches/voice-90-random.json", "[1, 2", "Expecting ',' delimiter"),
        ("searches/voice-90-random.json", "[]", "its JSON is no object"),
        ("searches/voice-90-random.json", "null", "its JSON is no object"),
        ("searches/voice-90-random.json", "[" * 99_999, "its JSON is nested too deeply"),
        ("history/voice-95-control-mse.csv", "[1, 2", "no column best, generation"),
        ("history/voice-95-control-mse.csv", "generation,best\n1,two\n", "could not convert"),
        ("history/voice-95-control-mse.csv", "9" * 131_073, "field larger than field limit"),
        ("history/voice-90-relaxation.csv", "update,best\n", "no column gradient_norm, mul"),
        ("rows.csv", "clip,sparsity\nvoice,0.9\n", "no column method, phases"),
    ],
)
def test_damaged_files_are_named(name, text, fault, clip, finished, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / name).write_text(text)
    assert masks.main(flags(clip, out)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"eval.masks: {out / name} is damaged: {fault}")


@pytest.mark.slow
def test_rows_of_no_method_are_damaged(clip, finished, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    text = (out / "rows.csv").read_text()
    (out / "rows.csv").write_text(text.replace(",genetic-mse,", ",genetic-max,", 1))
    assert masks.main(flags(clip, out)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"eval.masks: {out / 'rows.csv'} is damaged: line ")


@pytest.mark.slow
def test_a_run_that_another_process_is_at_is_left_alone(clip, finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    lock = lock_folder(finished)
    try:
        assert masks.main(flags(clip, finished)) == 2
    finally:
        os.close(lock)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"eval.masks: {finished} is used by another process: ")
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


@pytest.mark.slow
def test_one_generation_is_the_first_population(clip, tmp_path):
    out = tmp_path / "run"
    chosen = ["--generations", "1", "--sparsity", "0.9", "--methods", "genetic", "--fitness", "mse"]
    assert masks.main(flags(clip, out, *chosen)) == 0
    header, *lines = (out / "history" / "voice-90-genetic-mse.csv").read_text().splitlines()
    assert header.startswith("generation,best") and len(lines) == 1
    assert float(lines[0].split(",")[1]) == float(
        read_rows(out)["0.9", "genetic-mse", "all"]["mse"]
    )


def test_an_output_that_is_a_file_is_refused(clip, tmp_path, capsys):
    (tmp_path / "run").touch()
    assert masks.main(flags(clip, tmp_path / "run")) == 2
    assert "run: Not a directory" in capsys.readouterr().err


@pytest.mark.slow
def test_stopped_by_hand(clip, tmp_path, capsys, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(masks, "run_search", stop)
    assert masks.main(flags(clip, tmp_path / "run", "--methods", "random", "genetic")) == 130
    assert capsys.readouterr().err == "eval.masks: stopped; the same command goes on\n"
    assert set(read_rows(tmp_path / "run")) == {("0.9", "random", "all"), ("0.9", "random", "60")}
