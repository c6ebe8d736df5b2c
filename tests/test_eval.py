import csv
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from eval import reconstruction
from jaxsparse.masks import count_observed
from jaxsparse.types import SAMPLE_RATE

N_SAMPLES = 12_000
OBSERVED = 60.0


def apply(params, spectrogram, mask, valid=None):
    """A 'network' whose error is known: so many dB off wherever it has no observation."""
    return jnp.where(mask, OBSERVED, spectrogram + params["offset"])


@pytest.fixture
def data(tmp_path):
    """Two clips of speech-like sound and one that is silent, in a folder of their own each."""
    rng = np.random.default_rng(0)
    t = np.arange(10_000) / SAMPLE_RATE
    for index, level in enumerate((0.3, 0.2, 0.0)):
        voice = sum(np.sin(2 * np.pi * (110 + 30 * index) * k * t) / k for k in range(1, 12))
        clip = level * voice * np.sin(2 * np.pi * 2 * t) ** 2 + level * 0.01 * rng.normal(
            size=t.size
        )
        folder = tmp_path / "data" / str(index)
        folder.mkdir(parents=True)
        soundfile.write(folder / f"clip{index}.flac", 0.5 * clip, SAMPLE_RATE)
    return tmp_path / "data"


@pytest.fixture
def networks(monkeypatch):
    offsets = {"random-95": 3.0, "mixed": 1.0}
    monkeypatch.setattr(
        reconstruction.pretrained,
        "load_pretrained",
        lambda name: (apply, {"offset": offsets[name]}, {}),
    )
    return offsets


def settings(data, **changes):
    defaults = {
        "networks": ("random-95", "mixed"),
        "seeds": (0, 1),
        "n_samples": N_SAMPLES,
        "workers": 1,
    }
    return reconstruction.Settings(data=data, **(defaults | changes))


def test_evaluates_every_clip_network_and_seed(data, networks, tmp_path):
    out = tmp_path / "run"
    summary = reconstruction.run(settings(data, keep_observed="both", out=out))

    rows = list(csv.DictReader((out / "rows.csv").read_text().splitlines()))
    assert len(rows) == 3 * (1 + 2 * 2 * 2)
    groups = {(group["network"], group["keep_observed"]): group for group in summary["groups"]}
    assert list(groups) == [
        ("ceiling", False),
        ("random-95", False),
        ("random-95", True),
        ("mixed", False),
        ("mixed", True),
    ]
    ceiling = groups["ceiling", False]
    assert ceiling["mse"]["mean"] == 0
    assert ceiling["pesq_wb"]["mean"] > 4.3
    assert ceiling["stoi"]["mean"] > 0.99

    # Where bins are put back, only the unobserved ones are wrong, by the known offset.
    shape = (1025, 1 + N_SAMPLES // 256)
    hidden = 1 - count_observed(shape, 0.95) / np.prod(shape)
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
    where = "2/clip2.flac, mixed, kept bins put back, seed 1"
    assert f"- {where}: reference is silent (pesq_nb, pesq_wb, stoi)\n" in table
    assert "(1 clips missing)" in table

    # Means and standard errors again, from the rows alone: seeds first, then clips.
    scores: dict[str, list[float]] = {}
    for row in rows:
        if (row["network"], row["keep_observed"]) == ("mixed", "False"):
            scores.setdefault(row["clip"], []).append(float(row["pesq_nb"]))
    assert np.isnan(scores.pop("2/clip2.flac")).all()
    clips = [float(np.mean(seeds)) for seeds in scores.values()]
    group = groups["mixed", False]["pesq_nb"]
    assert group["mean"] == pytest.approx(np.mean(clips))
    assert group["standard_error"] == pytest.approx(abs(clips[0] - clips[1]) / 2)
    assert json.loads((out / "summary.json").read_text()) == json.loads(json.dumps(summary))


def test_masks_depend_on_the_seed_and_the_clips_name_only(data, monkeypatch):
    seen = []

    def spy(params, spectrogram, mask, valid=None):
        jax.debug.callback(lambda m: seen.append(np.packbits(m).tobytes()), mask)
        return spectrogram

    monkeypatch.setattr(reconstruction.pretrained, "load_pretrained", lambda name: (spy, {}, {}))

    def masks(folder=data, **changes):
        seen.clear()
        reconstruction.run(settings(folder, networks=("random-95",), pesq=False, **changes))
        jax.effects_barrier()
        return set(seen)

    both = masks(batch=1)
    assert len(both) == 3 * 2
    assert masks(batch=2) == both
    one = masks(data / "1", batch=1, seeds=(1, 2))
    assert len(one) == 2
    assert len(one & both) == 1


def test_default_puts_bins_back_for_mixed_masks_only(data, networks):
    summary = reconstruction.run(settings(data, pesq=False, limit=1))
    kept = {group["network"]: group["keep_observed"] for group in summary["groups"]}
    assert kept == {"ceiling": False, "random-95": False, "mixed": True}
    assert "pesq_wb" not in summary["groups"][0]


def test_a_file_of_parameters_instead_of_the_shipped_networks(data, monkeypatch, tmp_path):
    file = tmp_path / "mine.safetensors"
    monkeypatch.setattr(
        reconstruction.pretrained,
        "load_weights",
        lambda path: (apply, {file: {"offset": 2.0}}[path], {}),
    )
    summary = reconstruction.run(
        settings(data, params=file, mask="mixed", sparsity=0.9, pesq=False, limit=1)
    )
    group = summary["groups"][1]
    assert (group["network"], group["mask"], group["sparsity"]) == ("mine", "mixed", 0.9)
    assert group["mse"]["mean"] == pytest.approx(0.9 * 4, rel=1e-3)


def test_missing_values_never_hide_in_a_mean():
    base = {"network": "n", "mask": "random", "sparsity": 0.9, "keep_observed": False}
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
    (group,) = reconstruction.summarize(rows)
    assert group["mse"] == {"mean": 4.0, "standard_error": 2.0, "clips": 2, "unscored": 1}
    (group,) = reconstruction.summarize(rows[-2:])
    assert group["mse"] == {"mean": None, "standard_error": None, "clips": 0, "unscored": 1}


def test_command_line(data, networks, monkeypatch, capsys):
    argv = ["eval", "--data", str(data), "--networks", "mixed", "--seeds", "3", "--limit", "1"]
    argv += ["--n-samples", "12000", "--no-pesq"]
    monkeypatch.setattr(sys, "argv", [*argv, "--json"])
    reconstruction.main()
    summary = json.loads(capsys.readouterr().out)
    assert summary["settings"]["seeds"] == [3]
    assert summary["groups"][1]["mse"]["mean"] == pytest.approx(0.95, rel=1e-3)

    monkeypatch.setattr(sys, "argv", argv)
    reconstruction.main()
    assert "| mixed | mixed, 95% | yes | 0.95 |" in capsys.readouterr().out


def test_a_bad_file_is_one_line_and_nothing_is_written(
    data, networks, monkeypatch, capsys, tmp_path
):
    (data / "broken.wav").write_bytes(b"RIFF")
    out = tmp_path / "run"
    argv = ["eval", "--data", str(data), "--no-pesq", "--n-samples", "12000", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [*argv, "--networks", "mixed", "--seeds", "0"])
    with pytest.raises(SystemExit) as exit_info:
        reconstruction.main()
    assert exit_info.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"eval.reconstruction: {data / 'broken.wav'}: ")
    assert not out.exists()
