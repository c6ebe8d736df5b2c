import inspect
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from pesq import pesq
from pystoi import stoi

from jaxsparse import _scoring, metrics
from jaxsparse.metrics import reference as host

RATE = 16_000


def speech_like(seconds: float, seed: int = 0, rate: int = RATE, bursts: float = 2.0):
    """Harmonics of a wandering pitch in `bursts` bursts a second, between near-silent pauses."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * np.cumsum(130 + 20 * np.sin(2 * np.pi * 0.7 * t + seed)) / rate
    voice = sum(np.sin(k * phase) / k for k in range(1, 20))
    envelope = np.sin(np.pi * ((t * bursts) % 1)) ** 2 * ((t * bursts) % 1 < 0.6)
    return (0.1 * voice * envelope + 1e-4 * rng.normal(size=t.size)).astype(np.float32)


def noisy(signal, level=0.02, seed=1):
    noise = np.random.default_rng(seed).normal(size=signal.shape)
    return (signal + level * noise).astype(np.float32)


@pytest.fixture(scope="module")
def pool():
    with metrics.ScorePool(2) as pool:
        yield pool


def test_mse_is_per_example_and_over_all_bins():
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 20, (2, 3, 17, 9)).astype(np.float32)
    expected = np.mean((x.astype(np.float64) - y) ** 2, axis=(1, 2))
    actual = metrics.mse(reference=jnp.asarray(x), estimate=jnp.asarray(y))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_scores_are_those_of_the_reference_packages(pool):
    x = np.stack([speech_like(2.0, seed) for seed in range(3)])
    y = np.stack([noisy(clip, level) for clip, level in zip(x, (0.003, 0.01, 0.1), strict=True)])
    kwargs = {"reference": x, "estimate": y, "sample_rate": RATE, "pool": pool}
    for scores, direct in (
        (metrics.reference_pesq(**kwargs), lambda a, b: pesq(RATE, a, b, "wb")),
        (metrics.reference_pesq(band="nb", **kwargs), lambda a, b: pesq(RATE, a, b, "nb")),
        (metrics.reference_stoi(**kwargs), lambda a, b: stoi(a, b, RATE)),
        (metrics.reference_stoi(extended=True, **kwargs), lambda a, b: stoi(a, b, RATE, True)),
    ):
        expected = [direct(a, b) for a, b in zip(x, y, strict=True)]
        assert expected[0] > expected[1] > expected[2]
        # The worker computes in float64 what these direct calls compute in float32.
        np.testing.assert_allclose(scores.values, expected, rtol=1e-4)
        assert scores.reasons == (None, None, None)


def test_a_pool_is_made_where_none_is_given():
    x = speech_like(1.0)[None]
    scores = metrics.reference_stoi(reference=x, estimate=x, sample_rate=RATE)
    np.testing.assert_allclose(scores.values, 1.0, atol=1e-6)


def test_narrow_band_at_8_khz(pool):
    x = speech_like(2.0, rate=8_000)
    score = pool.submit("pesq_nb", reference=x, estimate=noisy(x), sample_rate=8_000).result()
    assert score.value == pytest.approx(pesq(8_000, x, noisy(x), "nb"))


@pytest.mark.parametrize("metric", ["pesq_wb", "pesq_nb", "stoi", "estoi"])
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda x, y: (0 * x, y), "reference is silent"),
        (lambda x, y: (x, 0 * y), "estimate is silent"),
        (
            lambda x, y: (x * np.where(np.arange(x.size) == 7, np.nan, 1), y),
            "reference has samples",
        ),
        (lambda x, y: (x, y * np.where(np.arange(x.size) == 7, np.inf, 1)), "estimate has samples"),
        (lambda x, y: (x[:2000], y[:2000]), None),
        (lambda x, y: (x[:100], y[:100]), None),
        (lambda x, y: (x[:0], y[:0]), "reference is empty"),
    ],
    ids=["silent", "silent estimate", "nan", "inf", "short", "tiny", "empty"],
)
def test_what_cannot_be_scored_is_nan_with_a_reason(pool, metric, spoil, reason):
    x, y = spoil(speech_like(1.0), noisy(speech_like(1.0)))
    score = pool.submit(metric, reference=x, estimate=y, sample_rate=RATE).result()
    assert np.isnan(score.value)
    default = "shorter than 0.397 s" if "stoi" in metric else "pesq refused the clip: "
    assert (reason or default) in score.reason


def test_a_clip_that_is_nearly_all_pause_has_no_stoi(pool):
    x = np.where(np.arange(2 * RATE) < RATE // 4, speech_like(2.0, bursts=1.0), 0)
    score = pool.submit("stoi", reference=x, estimate=x, sample_rate=RATE).result()
    assert np.isnan(score.value)
    assert "without its silent frames" in score.reason


def test_one_bad_clip_leaves_the_rest_of_the_batch_alone(pool):
    x = np.stack([speech_like(1.0, 0), np.zeros(RATE, np.float32), speech_like(1.0, 1)])
    values, reasons = metrics.reference_pesq(
        reference=x, estimate=noisy(x), sample_rate=RATE, pool=pool
    )
    np.testing.assert_array_equal(np.isnan(values), [False, True, False])
    assert [reason is None for reason in reasons] == [True, False, True]


@pytest.mark.parametrize(
    ("metric", "rate", "samples"),
    [("pesq_wb", 8_000, 9), ("pesq_nb", 22_050, 9), ("stoi", 0, 9), ("haspi", RATE, 9)],
)
def test_undefined_requests_are_refused_at_once(pool, metric, rate, samples):
    # Unwrapped: under the tests' type checker the literal type would refuse the name first.
    submit = inspect.unwrap(metrics.ScorePool.submit)
    x = np.ones(samples, np.float32)
    with pytest.raises(ValueError, match=r"not defined at|unknown metric"):
        submit(pool, metric, reference=x, estimate=x, sample_rate=rate)
    with pytest.raises(ValueError, match="differ"):
        submit(pool, "stoi", reference=x, estimate=x[1:], sample_rate=RATE)


@pytest.mark.slow
def test_long_audio_is_scored_in_segments(pool):
    x = speech_like(42.0)
    y = noisy(x, 0.001)
    y[RATE * 14 : RATE * 28] = noisy(x, 0.1)[RATE * 14 : RATE * 28]
    segments = zip(np.split(x, 3), np.split(y, 3), strict=True)
    expected = [pesq(RATE, a, b, "nb") for a, b in segments]
    assert max(expected) - min(expected) > 0.5
    score = pool.submit("pesq_nb", reference=x, estimate=y, sample_rate=RATE).result()
    assert score.value == pytest.approx(np.mean(expected))


def test_long_pauses_are_left_out_but_a_lost_segment_is_not(pool):
    x = np.concatenate([speech_like(16.0), np.zeros(16 * RATE, np.float32)])
    y = noisy(x, 0.01)
    score = pool.submit("pesq_nb", reference=x, estimate=y, sample_rate=RATE).result()
    assert score.value == pytest.approx(pesq(RATE, x[: 16 * RATE], y[: 16 * RATE], "nb"))
    x, y = np.concatenate([speech_like(32.0)]), y * (np.arange(y.size) < 16 * RATE)
    score = pool.submit("pesq_nb", reference=x, estimate=y, sample_rate=RATE).result()
    assert np.isnan(score.value)
    assert "segment of the estimate is silent" in score.reason


def test_many_pauses_do_not_crash_the_reference_implementation(pool):
    x = speech_like(64.0, bursts=1.0)
    score = pool.submit("pesq_wb", reference=x, estimate=noisy(x), sample_rate=RATE).result()
    assert 1.0 < score.value < 4.7


def worker_command(prelude: str) -> list[str]:
    """A worker that runs `prelude`, with the module as `scoring`, before it serves."""
    code = f"""
import importlib.util, os, signal, sys
spec = importlib.util.spec_from_file_location("scoring", {_scoring.__file__!r})
scoring = importlib.util.module_from_spec(spec)
spec.loader.exec_module(scoring)
score = scoring.score
{prelude}
scoring.main()
"""
    return [sys.executable, "-P", "-c", code]


def test_a_worker_that_dies_is_replaced_and_its_clip_tried_again(monkeypatch, tmp_path):
    marker = tmp_path / "died"
    prelude = f"""
def fragile(job):
    if not os.path.exists({str(marker)!r}):
        open({str(marker)!r}, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return score(job)
scoring.score = fragile
"""
    monkeypatch.setattr(host, "_WORKER_COMMAND", worker_command(prelude))
    x = speech_like(1.0)
    with metrics.ScorePool(1) as pool:
        score = pool.submit("pesq_nb", reference=x, estimate=x, sample_rate=RATE).result()
    assert marker.exists()
    assert score.value == pytest.approx(pesq(RATE, x, x, "nb"))


def test_a_clip_that_always_kills_its_worker_is_nan_and_alone(monkeypatch):
    prelude = """
def fragile(job):
    if job.reference[0] == 0.5:
        os.kill(os.getpid(), signal.SIGSEGV)
    return score(job)
scoring.score = fragile
"""
    monkeypatch.setattr(host, "_WORKER_COMMAND", worker_command(prelude))
    x = np.stack([speech_like(1.0)] * 4)
    x[1, 0] = 0.5
    with metrics.ScorePool(2) as pool:
        values, reasons = metrics.reference_pesq(
            reference=x, estimate=x, sample_rate=RATE, pool=pool
        )
    np.testing.assert_array_equal(np.isnan(values), [False, True, False, False])
    assert reasons[1] == "pesq_wb crashed on the clip 2 times"


def test_a_fault_of_ours_is_raised_and_not_turned_into_nan(monkeypatch):
    monkeypatch.setattr(host, "_WORKER_COMMAND", worker_command("sys.modules['pesq'] = None"))
    x = speech_like(1.0)[None]
    with pytest.raises(RuntimeError, match="ModuleNotFoundError"):
        metrics.reference_pesq(reference=x, estimate=x, sample_rate=RATE)


def test_workers_import_neither_jax_nor_the_package():
    code = f"""
import runpy, sys
runpy.run_path({_scoring.__file__!r})
assert not {{"jax", "jaxsparse"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
