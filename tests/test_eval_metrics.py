import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from pesq import pesq
from pystoi import stoi
from reference import decoder
from test_reference_metrics import speech_like

from eval import degradations, metrics
from eval.degradations import KINDS, UNSEEN_KINDS, degrade, same_sparsity, unseen
from eval.rows import RowFile
from jaxsparse import pretrained
from jaxsparse.errors import AudioError
from jaxsparse.metrics import pesq_surrogate
from jaxsparse.metrics.surrogate import published
from jaxsparse.types import SAMPLE_RATE
from train import surrogate

N_SAMPLES = 12_000
# Random and clustered masks at four sparsities, mixed ones at two, twice five others.
N_PAIRS = 4 + 4 + 2 + 10
N_UNSEEN = len(UNSEEN_KINDS)


def apply(params, spectrogram, mask, valid=None):
    """A 'network' that knows the level of what it doesn't see."""
    return jnp.where(mask, spectrogram, params["level"])


@pytest.fixture(scope="module", autouse=True)
def networks():
    loaded = pretrained.Pretrained(
        decoder(apply), {"level": jnp.float32(-20.0)}, pretrained.Card("")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrained, "load_pretrained", lambda name: loaded)
        degradations._load.cache_clear()
        yield
    degradations._load.cache_clear()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for i in range(3):
        soundfile.write(folder / f"{i}.flac", speech_like(N_SAMPLES / 16_000, i), SAMPLE_RATE)
    return folder


def flags(data, out, *more):
    return [
        *("--data", str(data), "--out", str(out), "--limit", "2", "--workers", "2"),
        *("--n-samples", str(N_SAMPLES), "--generation", "3", "--generation-clips", "1", *more),
    ]


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A run that no test may change."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert metrics.main(flags(data, out)) == 0
    return out


def read_rows(out):
    settings = json.loads((out / "settings.json").read_text())
    with RowFile(out, metrics.COLUMNS, settings) as file:
        return file.rows


@pytest.mark.slow
def test_degradations_are_drawn_from_name_and_seed():
    signal = speech_like(N_SAMPLES / 16_000)
    first = list(degrade("a", signal))
    assert {pair.kind for pair in first} == set(KINDS)
    assert len(first) == N_PAIRS
    again = next(degrade("a", signal))
    assert again.level == first[0].level
    np.testing.assert_array_equal(again.signal, first[0].signal)
    for other in (next(degrade("b", signal)), next(degrade("a", signal, seed=1))):
        assert np.any(other.signal != first[0].signal)
    masks = list(same_sparsity("a", signal, 3))
    assert {pair.level for pair in masks} == {0.95}
    assert np.any(masks[0].signal != masks[1].signal)


def test_kinds_that_are_not_calibrated_on_keep_time_and_length():
    """Neither codecs nor filters move the sound, which metrics would take for much worse."""
    signal = speech_like(N_SAMPLES / 16_000)
    pairs = list(unseen("a", signal))
    assert {pair.kind for pair in pairs} == set(UNSEEN_KINDS)
    for pair, again in zip(pairs, unseen("a", signal), strict=True):
        np.testing.assert_array_equal(pair.signal, again.signal)
        assert pair.signal.shape == signal.shape and pair.signal.dtype == np.float32
        lags = range(-400, 401)
        products = [np.dot(signal, np.roll(pair.signal, lag)) for lag in lags]
        assert lags[int(np.argmax(products))] == 0, pair.kind
        assert np.any(pair.signal != signal)


@pytest.mark.slow
def test_each_pair_has_what_host_and_device_say(finished, data):
    rows = read_rows(finished)
    assert len(rows) == 2 * (N_PAIRS + N_UNSEEN) + 3
    signal = soundfile.read(data / "0.flac", dtype="float32")[0]
    pairs = list(degrade("0.flac", signal))
    for i in (0, 3, len(pairs) - 1):
        row, pair = rows[i], pairs[i]
        assert (row["clip"], row["pair"], row["kind"]) == ("0.flac", i, pair.kind)
        assert row["pesq_wb"] == pytest.approx(pesq(SAMPLE_RATE, signal, pair.signal, "wb"))
        assert row["stoi"] == pytest.approx(stoi(signal, pair.signal, SAMPLE_RATE), rel=1e-4)
        assert row["device_stoi"] == pytest.approx(row["stoi"], abs=1e-4)
        said = pesq_surrogate(
            reference=signal[None],
            estimate=pair.signal[None],
            sample_rate=SAMPLE_RATE,
            band="nb",
        )
        assert row["surrogate_nb"] == pytest.approx(float(said[0]), abs=1e-3)
        silence = np.zeros(SAMPLE_RATE // 4, np.float32)
        x, y = (np.concatenate([silence, sound]) for sound in (signal, pair.signal))
        assert row["moved_pesq_wb"] == pytest.approx(pesq(SAMPLE_RATE, x, y, "wb"))


@pytest.mark.slow
def test_the_summary_is_of_the_rows(finished):
    rows, summary = read_rows(finished), json.loads((finished / "summary.json").read_text())
    pairs = [row for row in rows if row["kind"] in KINDS]
    errors = [abs(row["surrogate_wb"] - row["pesq_wb"]) for row in pairs]
    line = summary["surrogate_wb"]["kinds"]["all"]
    assert (line["pairs"], summary["pairs"]) == (len(pairs), len(rows))
    steady = [
        error
        for row, error in zip(pairs, errors, strict=True)
        if abs(row["moved_pesq_wb"] - row["pesq_wb"]) < metrics.STEADY
    ]
    assert summary["surrogate_wb"]["steady"]["pairs"] == len(steady)
    if steady:
        assert summary["surrogate_wb"]["steady"]["largest"] == pytest.approx(max(steady))
    unseen_line = summary["surrogate_wb"]["kinds"]["not calibrated on"]
    assert unseen_line["pairs"] == 2 * N_UNSEEN
    assert line["median"] == pytest.approx(np.median(errors))
    assert line["largest"] == pytest.approx(max(errors))
    assert summary["device_stoi"]["kinds"]["all"]["largest"] < 1e-3
    names = metrics.NAMES.values()
    assert all(summary[name]["finite_gradients"] == len(rows) for name in names)
    assert min(row["surrogate_wb_slope"] for row in rows) > 0
    assert summary["surrogate_wb"]["masks_of_a_clip"]["clips"] == 2
    assert summary["surrogate_wb"]["masks_of_one_sparsity"]["clips"] == 1
    text = (finished / "table.md").read_text()
    assert f"| all | {len(pairs)} |" in text
    assert (finished / "accuracy.png").stat().st_size > 0


def test_differences_and_ranks():
    rows = [
        {"clip": clip, "a": a, "b": b}
        for clip, a, b in (("x", 1, 2), ("x", 2, 3), ("x", 3, 4.5), ("y", 1, 3), ("y", 2, 2))
    ] + [{"clip": "y", "a": 3, "b": 1}, {"clip": "y", "a": 9, "b": float("nan")}]
    found = metrics.differences(rows, "a", "b")
    assert (found["pairs"], found["unscored"]) == (6, 1)
    assert found["median"] == pytest.approx(1.25)
    assert found["mean difference"] == pytest.approx((-1 - 1 - 1.5 - 2 + 0 + 2) / 6)
    ranks = metrics.ranks_in_clips(rows, "a", "b")
    assert (ranks["clips"], ranks["mean"], ranks["lowest"]) == pytest.approx((2, 0.0, -1.0))


@pytest.mark.slow
def test_a_finished_run_is_not_computed_again(finished, data, monkeypatch):
    monkeypatch.setattr(metrics, "compare", None)
    before = (finished / "rows.csv").read_bytes()
    assert metrics.main(flags(data, finished, "--json")) == 0
    assert (finished / "rows.csv").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("--seed", "1"), "another seed"),
        (("--n-samples", "27"), "n_samples must be at least 4000"),
        (("--generation-clips", "2"), "another generation_clips"),
        (("--generation", "1"), "generation must be at least 2"),
        (("--data", "nowhere"), "nowhere"),
    ],
)
def test_what_is_refused_is_one_line(finished, data, capsys, change, words):
    assert metrics.main(flags(data, finished, *change)) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("eval.metrics: ") and error.count("\n") == 1


def test_a_damaged_clip_is_named(tmp_path, capsys):
    (tmp_path / "bad.flac").write_bytes(b"fLaC" + bytes(100))
    assert metrics.main(flags(tmp_path, tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert "bad.flac" in error and error.count("\n") == 1
    assert not (tmp_path / "out" / "rows.csv").exists()


@pytest.fixture(scope="module")
def calibration(data, tmp_path_factory):
    """Settings of a calibration, and what it printed and wrote."""
    out = tmp_path_factory.mktemp("runs") / "calibration"
    # Compiling takes seconds, and the other band goes the same way.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(surrogate, "BANDS", ("wb",))
        settings = surrogate.Settings(
            data, out, clips=2, n_samples=6_000, epochs=20, batch=16, coded=1, searched=0, masks=1
        )
        yield settings, surrogate.run(settings)


@pytest.mark.slow
def test_calibrating_brings_the_surrogate_nearer_to_pesq(calibration):
    settings, result = calibration
    written = json.loads((settings.out / "surrogate.json").read_text())
    assert written == result
    files = sorted(settings.out.glob("pairs/*.npz"))[:1]
    kinds = surrogate.load_kinds(files, "wb")
    seen = ~np.isin(kinds, UNSEEN_KINDS)
    pairs = surrogate.Pairs(*(values[seen] for values in surrogate.load_pairs(files, "wb")))
    fitted = surrogate.Calibration(
        **{k: jnp.asarray(v) for k, v in result["wb"]["calibration"].items()}
    )
    before, after = (
        np.median(np.abs(surrogate.predict(pairs, c, "wb", 16) - pairs.pesq))
        for c in (published(), fitted)
    )
    assert result["wb"]["pairs"] == len(pairs.pesq) == N_PAIRS + 2
    held_out = result["wb"]["held_out"]
    assert held_out["codec"]["pairs"] == held_out["searched mask"]["pairs"] == 1
    assert held_out["all"]["pairs"] == N_PAIRS + 2
    assert held_out["not calibrated on"]["pairs"] == N_UNSEEN
    assert held_out["all"]["median_error"] != result["wb"]["before"]["all"]["median_error"]
    assert after < before / 2


@pytest.mark.slow
def test_pairs_that_are_there_are_not_made_again(calibration, monkeypatch):
    settings, result = calibration
    monkeypatch.setattr(surrogate, "fit", lambda *_: published())
    with monkeypatch.context() as patch:
        patch.setattr(surrogate, "degrade", None)
        again = surrogate.run(settings)
    assert again["wb"]["pairs"] == result["wb"]["pairs"]
    assert again["wb"]["calibration"] != result["wb"]["calibration"]
    # Those of another clip are added.
    kept = sorted(settings.out.glob("pairs/*.npz"))
    times = [path.stat().st_mtime_ns for path in kept]
    more = surrogate.run(dataclasses.replace(settings, clips=3))
    assert [path.stat().st_mtime_ns for path in kept] == times
    assert more["wb"]["pairs"] == 2 * result["wb"]["pairs"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("--clips", "1"), "clips must be at least 2"),
        (("--n-samples", "27"), "n_samples must be at least 4000"),
        (("--workers", "-1"), "workers must be at least 1"),
        (("--learning-rate", "nan"), "learning_rate"),
        (("--n-samples", "8000"), "another n_samples"),
        (("--data", "nowhere"), "nowhere"),
    ],
)
def test_calibrations_are_refused_in_one_line(calibration, capsys, change, words):
    settings, _ = calibration
    flags = ["--data", str(settings.data), "--out", str(settings.out), "--clips", "2"]
    flags += ["--coded", "1", "--searched", "0", "--masks", "1", *change]
    assert surrogate.main(flags) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("train.surrogate: ") and error.count("\n") == 1


@pytest.mark.slow
def test_pairs_without_any_score_are_refused(calibration, tmp_path):
    settings, _ = calibration
    with np.load(next(settings.out.glob("pairs/*.npz"))) as file:
        content = dict(file)
    content["wb-pesq"] = np.full_like(content["wb-pesq"], np.nan)
    np.savez(tmp_path / "pairs.npz", allow_pickle=False, **content)
    with pytest.raises(AudioError, match="pesq scores none of the clips in wb"):
        surrogate.load_pairs([tmp_path / "pairs.npz"], "wb")


@pytest.mark.slow
def test_a_table_of_pairs_without_any_score(finished):
    unscored = {name: float("nan") for name in ("pesq_wb", "moved_pesq_wb")}
    summary = metrics.summarize([row | unscored for row in read_rows(finished)])
    text = metrics.table(summary)
    assert summary["surrogate_wb"]["kinds"] == {}
    assert "| all |" not in text.partition("narrow band")[0]
