import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import pytest
import soundfile
from reference import decoder
from test_reference_metrics import worker_command

from eval import reconstruction, report
from eval.rows import RowFile
from jaxsparse import interpolate
from jaxsparse.data.clips import find_clips
from jaxsparse.masks import count_observed
from jaxsparse.metrics import reference as host
from jaxsparse.pretrained import Card, Pretrained
from jaxsparse.spectrogram import log_power
from jaxsparse.transforms.stft import stft
from jaxsparse.types import SAMPLE_RATE

N_SAMPLES = 12_000
SHAPE = (1025, 1 + N_SAMPLES // 256)
OBSERVED = 60.0
CARDS = {
    "random-95": Card("that of random-95", ("random",), (0.95,)),
    "unet": Card("that of unet", ("mixed",), (0.8, 0.95)),
}


def apply(params, spectrogram, mask, valid=None):
    """A 'network' whose error is known: so many dB off wherever it has no observation."""
    return jnp.where(mask, OBSERVED, spectrogram + params["offset"])


def voice(index, level):
    t = np.arange(10_000) / SAMPLE_RATE
    harmonics = sum(np.sin(2 * np.pi * (110 + 30 * index) * k * t) / k for k in range(1, 12))
    noise = 0.01 * np.random.default_rng(index).normal(size=t.size)
    return 0.5 * level * (harmonics * np.sin(2 * np.pi * 2 * t) ** 2 + noise)


@pytest.fixture
def data(tmp_path):
    """Two clips of speech-like sound and one that is silent, in a folder of their own each."""
    for index, level in enumerate((0.3, 0.2, 0.0)):
        folder = tmp_path / "data" / str(index)
        folder.mkdir(parents=True)
        soundfile.write(folder / f"clip{index}.flac", voice(index, level), SAMPLE_RATE)
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def networks(monkeypatch):
    offsets = {"random-95": 3.0, "unet": 1.0}
    monkeypatch.setattr(
        reconstruction.pretrained,
        "load_pretrained",
        lambda name: Pretrained(decoder(apply), {"offset": offsets[name]}, CARDS[name]),
    )
    return offsets


def settings(data, **changes):
    defaults = {
        "decoders": ("random-95", "unet"),
        "phases": ("all",),
        "seeds": (0, 1),
        "n_samples": N_SAMPLES,
        "workers": 1,
        "scores": False,
    }
    return reconstruction.Settings(data=data, **(defaults | changes))


def flags(data, *more):
    return [
        *("--data", str(data), "--decoders", "unet", "--phases", "all"),
        *("--seeds", "3", "--n-samples", str(N_SAMPLES), "--no-scores", *more),
    ]


def read_rows(out):
    return list(csv.DictReader((out / "rows.csv").read_text().splitlines()))


@pytest.mark.slow
def test_evaluates_every_clip_method_and_seed(data, networks, tmp_path):
    out = tmp_path / "run"
    summary = reconstruction.run(
        settings(data, decoders=("random-95", "unet", "linear"), scores=True, out=out, workers=2)
    )

    rows = read_rows(out)
    assert len(rows) == 3 * (1 + 2 * 2 * 2 + 2 * 2)
    groups = {(group["method"], group["keep_observed"]): group for group in summary["groups"]}
    ceiling = groups["ceiling", False]
    assert ceiling["mse"]["mean"] == 0
    assert ceiling["pesq_wb"]["mean"] > 4.3
    assert ceiling["stoi"]["mean"] > 0.99
    assert ceiling["estoi"]["mean"] > 0.99

    # Where bins are put back, only the unobserved ones are wrong, by the known offset.
    hidden = 1 - count_observed(SHAPE, 0.95) / np.prod(SHAPE)
    for name, offset in networks.items():
        group = groups[name, True]
        assert group["mse"]["mean"] == pytest.approx(hidden * offset**2, rel=1e-4)
        assert group["mse"]["mean"] < groups[name, False]["mse"]["mean"]
        assert groups[name, False]["pesq_wb"]["mean"] < ceiling["pesq_wb"]["mean"]

    # The silent clip has an MSE, no scores, and is named.
    for group in summary["groups"]:
        assert (group["mse"]["clips"], group["mse"]["unscored"]) == (3, 0)
        assert (group["pesq_nb"]["clips"], group["pesq_nb"]["unscored"]) == (2, 1)
    assert {row["clip"] for row in summary["unscored"]} == {"2/clip2.flac"}
    assert {row["reason"] for row in summary["unscored"]} == {"reference is silent"}
    table = (out / "table.md").read_text()
    assert "(1 missing)" in table
    assert "- 2/clip2.flac: reference is silent (pesq_nb of ceiling 1 times, " in table

    # Means and standard errors again, from the rows alone: seeds first, then clips.
    scores: dict[str, list[float]] = {}
    for row in rows:
        if (row["method"], row["keep_observed"]) == ("unet", "False"):
            scores.setdefault(row["clip"], []).append(float(row["pesq_nb"]))
    assert np.isnan(scores.pop("2/clip2.flac")).all()
    clips = [float(np.mean(seeds)) for seeds in scores.values()]
    group = groups["unet", False]["pesq_nb"]
    assert group["mean"] == pytest.approx(np.mean(clips))
    assert group["standard_error"] == pytest.approx(abs(clips[0] - clips[1]) / 2)
    assert json.loads((out / "summary.json").read_text()) == json.loads(json.dumps(summary))


@pytest.mark.slow
def test_the_choices_of_phases(data, tmp_path):
    summary = reconstruction.run(
        settings(data / "0", phases=report.PHASES, scores=True, seeds=(0,), out=tmp_path / "run")
    )
    groups = {
        (g["method"], g["phases"]): g for g in summary["groups"] if g["keep_observed"] is False
    }
    dense = log_power(stft(jnp.asarray(find_clips(data / "0")[0].read(N_SAMPLES))))
    for (name, phases), group in groups.items():
        share = {
            "all": 0.0,
            "none": 1.0,
            "kept": 1 - count_observed(SHAPE, 0.95) / np.prod(SHAPE),
        }.get(phases)
        if share is None:
            share = float(np.mean(np.asarray(dense) < dense.max() - float(phases)))
        assert group["phases_saved"]["mean"] == pytest.approx(share, abs=1e-6)
        # Phases change the sound and not the spectrogram.
        assert group["mse"] == groups[name, "all"]["mse"]

    def stoi(name, phases):
        return groups[name, phases]["stoi"]["mean"]

    assert ("ceiling", "kept") not in groups
    for name in ("ceiling", "random-95", "unet"):
        fewer = [stoi(name, phases) for phases in ("all", "75", "70", "65", "60")]
        assert fewer == sorted(fewer, reverse=True)
        assert fewer[0] > fewer[-1] + 0.05
        assert fewer[0] > stoi(name, "none") + 0.05
    for name in ("random-95", "unet"):
        assert stoi(name, "all") > stoi(name, "kept") > stoi(name, "none") + 0.05
    text = (tmp_path / "run" / "table.md").read_text()
    assert "| within 60 dB |" in text
    assert "| 44% |" in text


def test_masks_depend_on_the_seed_and_the_clips_name_only(data, monkeypatch):
    seen = []

    def spy(params, spectrogram, mask, valid=None):
        jax.debug.callback(lambda m: seen.append(np.packbits(m).tobytes()), mask)
        return spectrogram

    monkeypatch.setattr(
        reconstruction.pretrained,
        "load_pretrained",
        lambda name: Pretrained(decoder(spy), {}, CARDS[name]),
    )

    def masks(folder=data, **changes):
        seen.clear()
        reconstruction.run(settings(folder, **({"decoders": ("random-95",)} | changes)))
        jax.effects_barrier()
        return set(seen)

    both = masks(batch=1)
    assert len(both) == 3 * 2
    assert masks(batch=2) == both
    one = masks(data / "1", batch=1, seeds=(1, 2))
    assert len(one) == 2
    assert len(one & both) == 1

    interpolated = set()

    def note(spectrogram, mask, method):
        interpolated.add(np.packbits(mask).tobytes())
        return spectrogram

    monkeypatch.setattr(interpolate, "interpolate", note)
    assert masks(decoders=("random-95", "nearest")) == both == interpolated


def test_an_interpolation_is_closer_where_more_is_kept(data):
    errors = [
        reconstruction.run(settings(data / "0", decoders=(name, "linear"), sparsity=(sparsity,)))[
            "groups"
        ][-1]["mse"]["mean"]
        for name, sparsity in (("unet", 0.8), ("unet", 0.95))
    ]
    assert 0 < errors[0] < errors[1]


def test_files_of_weights(data, monkeypatch, tmp_path):
    mine, other = (str(tmp_path / name / "network.safetensors") for name in ("mine", "other"))
    offsets = {mine: 2.0, other: 3.0}
    monkeypatch.setattr(
        reconstruction.pretrained,
        "load_weights",
        lambda path: Pretrained(decoder(apply), {"offset": offsets[path]}, Card("")),
    )
    chosen = settings(
        data, mask=("mixed",), sparsity=(0.8, 0.9), limit=1, keep_observed="yes", scores=False
    )
    one = reconstruction.run(replace(chosen, decoders=(mine,)))["groups"]
    assert [(g["method"], g["mask"], g["sparsity"]) for g in one[1:]] == [
        ("network", "mixed", 0.8),
        ("network", "mixed", 0.9),
    ]
    both = reconstruction.run(replace(chosen, decoders=(mine, other)))["groups"]
    found = {(g["method"], g["sparsity"]): g["mse"]["mean"] for g in both[1:]}
    expected = {
        (Path(path).parent.name, sparsity): sparsity * offset**2
        for path, offset in offsets.items()
        for sparsity in (0.8, 0.9)
    }
    assert found == pytest.approx(expected, rel=1e-3)


def test_networks_that_would_have_the_same_name_are_refused(data, tmp_path):
    files = tuple(str(tmp_path / name / "x" / "network.safetensors") for name in "ab")
    with pytest.raises(reconstruction.SettingsError, match="different names"):
        reconstruction.run(settings(data, decoders=files))


def test_missing_values_never_hide_in_a_mean():
    base = dict.fromkeys(report.GROUP, "")
    rows = [
        base | {"clip": clip, "seed": seed, "mse": value, "reasons": {}}
        for clip, seed, value in (
            ("a", 0, 1.0),
            ("a", 1, 3.0),
            ("b", 0, 6.0),
            ("b", 1, 6.0),
            ("c", 0, 100.0),
            ("c", 1, float("nan")),
        )
    ]
    (group,) = report.summarize(rows, ["mse"])
    assert group["mse"] == {"mean": 4.0, "standard_error": 2.0, "clips": 2, "unscored": 1}
    (group,) = report.summarize(rows[-2:], ["mse"])
    assert group["mse"] == {"mean": None, "standard_error": None, "clips": 0, "unscored": 1}


@pytest.mark.slow
def test_a_clip_that_fails_is_counted_with_its_reason_and_stops_nothing(data, tmp_path):
    bad = {
        "broken.wav": lambda path: path.write_bytes(b"RIFF"),
        "nan.wav": lambda path: soundfile.write(
            path, np.where(np.arange(9_000) == 5, np.nan, 0.1), SAMPLE_RATE, subtype="FLOAT"
        ),
        "sample.wav": lambda path: soundfile.write(path, np.array([0.5]), SAMPLE_RATE),
    }
    before = reconstruction.run(settings(data, scores=True))
    for name, write in bad.items():
        write(data / name)
    out = tmp_path / "run"
    summary = reconstruction.run(settings(data, scores=True, out=out))
    reasons = {row["clip"]: row["reason"] for row in summary["unscored"]}
    assert "not finite" in reasons["nan.wav"] or "NaN" in reasons["nan.wav"]
    assert reasons["2/clip2.flac"] == "reference is silent"
    assert set(reasons) == {*bad, "2/clip2.flac"}
    for old, new in zip(before["groups"], summary["groups"], strict=True):
        # The single sample has an MSE, like silence, and no scores.
        assert (new["mse"]["clips"], new["mse"]["unscored"]) == (4, 2)
        assert (new["stoi"]["clips"], new["stoi"]["unscored"]) == (2, 4)
        assert new["stoi"]["mean"] == pytest.approx(old["stoi"]["mean"], abs=1e-6)
    table = (out / "table.md").read_text()
    assert f"- broken.wav: {reasons['broken.wav']} (clip of ceiling 1 times" in table


def test_where_no_clip_can_be_read_one_line_says_so_and_nothing_is_written(tmp_path, capsys):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "broken.wav").write_bytes(b"RIFF")
    assert reconstruction.main(flags(folder, "--out", str(tmp_path / "run"))) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"eval.reconstruction: {folder}: no clip can be read: ")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["pesq_nb", "stoi"])
def test_a_worker_that_dies_is_replaced(data, monkeypatch, tmp_path, metric):
    marker = tmp_path / "died"
    prelude = f"""
def fragile(job):
    if job.metric == {metric!r} and not os.path.exists({str(marker)!r}):
        open({str(marker)!r}, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return score(job)
scoring.score = fragile
"""
    expected = reconstruction.run(settings(data / "0", scores=True, seeds=(0,)))
    monkeypatch.setattr(host, "_WORKER_COMMAND", worker_command(prelude))
    summary = reconstruction.run(settings(data / "0", scores=True, seeds=(0,)))
    assert marker.exists()
    assert summary["unscored"] == expected["unscored"] == []
    for group, other in zip(summary["groups"], expected["groups"], strict=True):
        for name in report.SCORES:
            # Extended STOI adds noise at the level of rounding.
            assert group[name]["mean"] == pytest.approx(other[name]["mean"], rel=1e-9)


@pytest.mark.slow
def test_long_clips_are_scored_in_segments(tmp_path):
    """A clip's score is the mean over its segments, as if each were a clip."""
    long = np.concatenate([np.pad(voice(i, 0.2), (0, 2_000)) for i in range(3)] + [np.zeros(500)])
    for name, pieces in {"whole": [long], "cut": np.split(long, [12_000, 24_000, 36_000])}.items():
        (tmp_path / name).mkdir()
        for i, piece in enumerate(pieces):
            # The same stem, and so the same mask.
            (tmp_path / name / str(i)).mkdir()
            soundfile.write(tmp_path / name / str(i) / "clip.flac", piece, SAMPLE_RATE)
    choice = {"scores": True, "seeds": (0,), "batch": 3}
    reconstruction.run(settings(tmp_path / "cut", out=tmp_path / "run0", **choice))
    reconstruction.run(settings(tmp_path / "whole", out=tmp_path / "run1", whole=True, **choice))
    cut, whole = read_rows(tmp_path / "run0"), read_rows(tmp_path / "run1")
    assert {row["segments"] for row in whole} == {"4"}
    for row in whole:
        same = [r for r in cut if all(r[name] == row[name] for name in report.GROUP)]
        for metric, n in (("mse", 4), ("pesq_nb", 3), ("estoi", 3)):
            values = [float(r[metric]) for r in same]
            assert np.isfinite(values).sum() == n
            assert float(row[metric]) == pytest.approx(np.nanmean(values), rel=1e-5)
        reasons = json.loads(row["reasons"])
        assert reasons["stoi"] == "reference is silent (1 of 4 segments)"


def test_a_segment_that_the_method_lost_makes_its_clip_missing():
    base: dict = {name: "" for name in report.GROUP} | {"clip": "a", "seed": 0, "segments": 2}
    base |= dict.fromkeys(("phases_saved", "mse", *report.SCORES), 1.0)
    nan = float("nan")
    lost = base | {"pesq_nb": nan, "reasons": {"pesq_nb": "estimate is silent"}}
    row = reconstruction.join([base | {"reasons": {}}, lost])
    assert np.isnan(row["pesq_nb"])
    assert row["stoi"] == 1.0
    assert row["reasons"] == {"pesq_nb": "estimate is silent (1 of 2 segments)"}


@pytest.mark.slow
def test_a_stopped_run_goes_on_where_it_was(data, monkeypatch, tmp_path, capsys):
    more = ("--batch", "1", "--json", "--decoders", "unet", "random-95", "--seeds", "0", "1")
    assert reconstruction.main(flags(data, *more, "--out", str(tmp_path / "whole"))) == 0
    expected = json.loads(capsys.readouterr().out)

    out = tmp_path / "run"
    add, added = RowFile.add, []

    def stop_after(n):
        def counting_add(self, row):
            if n is not None and len(self.rows) == n:
                raise KeyboardInterrupt
            added.append(row)
            add(self, row)

        monkeypatch.setattr(RowFile, "add", counting_add)

    for n in (1, 6, 13, 13):
        stop_after(n)
        assert reconstruction.main(flags(data, *more, "--out", str(out))) == 130
        assert "the same command goes on" in capsys.readouterr().err.splitlines()[-1]
    # Killed in the middle of a line, and with the last whole line lost.
    text = (out / "rows.csv").read_text()
    (out / "rows.csv").write_text(text[: text.rindex(",0.95") + 2])
    stop_after(None)
    assert reconstruction.main(flags(data, *more, "--out", str(out))) == 0
    assert len(added) == 3 * (1 + 2 * 2 * 2) + 1
    summary = json.loads(capsys.readouterr().out)
    assert summary["groups"] == expected["groups"]
    for name in ("rows.csv", "settings.json", "table.md"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_folder_with_another_run_is_refused(data, tmp_path, capsys):
    out = tmp_path / "run"
    more = ("--limit", "1", "--out", str(out))
    assert reconstruction.main(flags(data, *more)) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    capsys.readouterr()
    assert reconstruction.main(flags(data, *more, "--seeds", "4")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"eval.reconstruction: {out} holds a run with another seeds ([3], now [4]): "
        "take another folder"
    )
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (out / "settings.json").unlink()
    assert reconstruction.main(flags(data, *more)) == 2
    assert "holds rows of another program" in capsys.readouterr().err


def test_damaged_rows_are_one_line(data, tmp_path, capsys):
    out = tmp_path / "run"
    more = ("--limit", "1", "--out", str(out))
    assert reconstruction.main(flags(data, *more)) == 0
    whole = {name: (out / name).read_text() for name in ("rows.csv", "settings.json")}
    for name, damaged in (
        ("rows.csv", whole["rows.csv"].replace(",3,unet", ",three,unet", 1)),
        ("rows.csv", "what\nis this\n"),
        ("rows.csv", whole["rows.csv"].replace(",3,unet", ",4,unet", 1)),
        ("rows.csv", whole["rows.csv"].replace(",{}\n", ',"{""stoi"": []}"\n', 1)),
        ("settings.json", whole["settings.json"][:-9]),
        ("settings.json", "[]"),
    ):
        (out / name).write_text(damaged)
        capsys.readouterr()
        assert reconstruction.main(flags(data, *more)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"eval.reconstruction: {out / name} is damaged")
        (out / name).write_text(whole[name])
    assert reconstruction.main(flags(data, *more)) == 0


def test_names_that_are_no_utf8(data, tmp_path, capsys):
    (data / "0" / "clip0.flac").rename(os.fsdecode(os.fsencode(data / "0") + b"/cl\xffp.flac"))
    out = tmp_path / "run"
    for _ in range(2):
        assert reconstruction.main(flags(data / "0", "--json", "--out", str(out))) == 0
    (out / "summary.json").unlink()
    (out / "rows.csv").write_bytes((out / "rows.csv").read_bytes()[:-20])
    assert reconstruction.main(flags(data / "0", "--out", str(out))) == 0
    assert (out / "rows.csv").read_bytes().count(b"cl\xffp.flac") == 3


def test_rows_on_a_full_disk(tmp_path):
    code = f"""
import pathlib, resource, signal
from eval.rows import RowFile
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
with RowFile(pathlib.Path({str(tmp_path / "run")!r}), {{"a": int, "b": str}}, {{}}) as rows:
    while True:
        rows.add({{"a": len(rows.rows), "b": "x" * 90}})
"""
    root = Path(reconstruction.__file__).parent.parent
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert f"File too large: '{tmp_path / 'run' / 'rows.csv'}'" in run.stderr.splitlines()[-1]
    rows = RowFile(tmp_path / "run", {"a": int, "b": str}, {}).rows
    assert rows == [{"a": i, "b": "x" * 90} for i in range(len(rows))]
    assert len(rows) * 94 > 1800


@pytest.mark.slow
def test_plots_show_the_means(data, tmp_path, monkeypatch):
    drawn, figures = {}, []
    savefig = matplotlib.figure.Figure.savefig

    def note(figure, *args, **kwargs):
        figures.append(figure)
        savefig(figure, *args, **kwargs)

    def name(path, content):
        (axes,) = figures.pop().axes
        drawn[path.name] = {
            box.get_label(): box.lines[0].get_ydata().tolist() for box in axes.containers
        }
        assert content.startswith(b"\x89PNG")

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", note)
    monkeypatch.setattr(report, "atomic_write", name)
    summary = reconstruction.run(
        settings(data, scores=True, phases=("all", "60"), out=tmp_path / "run", seeds=(0,))
    )
    means = {
        (g["method"], g["keep_observed"], g["phases"], m): g[m]["mean"]
        for g in summary["groups"]
        for m in ("mse", "pesq_nb", "stoi")
    }
    names = {"mse", "pesq", "stoi", "pesq-phases", "stoi-phases"}
    assert set(drawn) == {f"{name}.png" for name in names}
    assert drawn["mse.png"] == {
        f"{name}, {kind} masks{put_back}": [means[method, bool(put_back), "all", "mse"]]
        for name, method, kind in (
            ("thesis' networks", "random-95", "random"),
            ("unet", "unet", "mixed"),
        )
        for put_back in ("", ", kept bins put back")
    }
    assert drawn["stoi-phases.png"] == {
        "phases: all": [means["random-95", False, "all", "stoi"]],
        "phases: within 60 dB": [means["random-95", False, "60", "stoi"]],
    }


@pytest.mark.slow
def test_no_plot_is_drawn_without_a_line(data, tmp_path):
    choice = {"decoders": ("unet",), "phases": ("all", "60"), "scores": True, "seeds": (0,)}
    reconstruction.run(settings(data / "0", out=tmp_path / "run", **choice))
    names = {path.name for path in (tmp_path / "run").glob("*.png")}
    assert names == {"mse.png", "pesq.png", "stoi.png"}


def test_command_line(data, capsys):
    assert reconstruction.main(flags(data, "--limit", "1", "--json")) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["settings"]["seeds"] == [3]
    assert summary["groups"][2]["mse"]["mean"] == pytest.approx(0.95, rel=1e-3)
    assert reconstruction.main(flags(data, "--limit", "1")) == 0
    assert "| unet | mixed, 95% | yes | 0.95 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        (("--sparsity", "1.5"), "sparsity 1.5 is not between 0 and 1"),
        (("--batch", "0"), "batch must be at least 1"),
        (("--seeds", "1", "1"), "seeds needs at least one value, each of them once"),
        (("--split", "test"), "not a prepared data set"),
        (
            ("--decoders", "huge"),
            "no decoder is named 'huge'; there are unet, unet-small, random-80",
        ),
        (("--out", __file__), f"{__file__}: Not a directory"),
        (("--decoders", "unet", "unet"), "decoders needs at least one value, each of them once"),
        (("--decoders",), "decoders needs at least one value"),
        (("--decoders", "sparse-cnn"), "sparse-cnn has to be trained"),
        (("--mask", "loud"), "no policy is named 'loud'; there are random, mixed"),
    ],
)
def test_bad_settings_are_one_line(data, monkeypatch, capsys, more, fault):
    monkeypatch.undo()
    assert reconstruction.main(flags(data, *more)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("eval.reconstruction: ")
    assert fault in line
