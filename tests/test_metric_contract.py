"""What holds for every metric of waveforms: one line in `TABLE` buys all the tests."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from reference import Compilations

from jaxsparse.metrics.contract import reasons
from jaxsparse.metrics.distances import (
    RESOLUTIONS,
    log_spectral_distance,
    mel_distance,
    mfcc_distance,
    multi_resolution_stft,
    si_sdr,
)
from jaxsparse.metrics.intelligibility import estoi, stoi
from jaxsparse.metrics.reference import ScorePool, reference_pesq, reference_stoi
from jaxsparse.metrics.surrogate import pesq_surrogate

RATE = 16_000


@dataclass(frozen=True, eq=False)
class Metric:
    """What a metric promises.

    `best` is the score of identical signals; `gain` and `level` say whether it stays when the
    estimate alone, or both signals, are halved; over `step` of the error it is nearly straight.
    """

    name: str
    function: Callable[..., Any]
    higher_is_better: bool
    best: float | None
    gain: bool
    level: bool
    options: dict[str, Any] = field(default_factory=dict)
    on_host: bool = False
    step: float = 0.01


NB = {"band": "nb"}
# The three resolutions are alike, and one compiles in a third of the time.
ONE_STFT = {"resolutions": RESOLUTIONS[2:]}
TABLE = [
    Metric("mel_distance", mel_distance, False, 0.0, gain=False, level=True),
    Metric("mfcc_distance", mfcc_distance, False, 0.0, gain=True, level=True),
    Metric("multi_resolution_stft", multi_resolution_stft, False, 0.0, False, True, ONE_STFT),
    # The logarithm bends at bins that are nearly zero; fewer are within a smaller step of that.
    Metric("log_spectral_distance", log_spectral_distance, False, 0.0, False, True, step=3e-4),
    Metric("si_sdr", si_sdr, True, 100.0, gain=True, level=True),
    Metric("stoi", stoi, True, 1.0, gain=True, level=True),
    Metric("estoi", estoi, True, 1.0, gain=True, level=True),
    # Dead zones and limits bend at many frames and bands; few of them within a smaller step.
    Metric("surrogate_wb", pesq_surrogate, True, 4.644, gain=True, level=True, step=1e-3),
    Metric("surrogate_nb", pesq_surrogate, True, 4.549, True, True, NB, step=1e-3),
    Metric("reference_pesq_wb", reference_pesq, True, 4.644, True, True, on_host=True),
    Metric("reference_pesq_nb", reference_pesq, True, 4.549, True, True, NB, on_host=True),
    Metric("reference_stoi", reference_stoi, True, 1.0, True, True, on_host=True),
]
ON_DEVICE = [metric for metric in TABLE if not metric.on_host]


def speech_like():
    """A second of harmonics in bursts, over noise loud enough to keep every bin off a floor."""
    rng = np.random.default_rng(0)
    # An odd length, which no other test compiles for.
    t = np.arange(RATE + 13) / RATE
    phase = 2 * np.pi * np.cumsum(130 + 20 * np.sin(5 * t)) / RATE
    voice = sum(np.sin(k * phase) / k for k in range(1, 20))
    envelope = np.sin(2 * np.pi * t) ** 2
    return (0.1 * voice * envelope + 0.005 * rng.normal(size=t.size)).astype(np.float32)


def with_sample(signal, value):
    return np.where(np.arange(signal.size) == 7, np.float32(value), signal)


CLEAN = speech_like()
NOISE = np.random.default_rng(1).normal(size=CLEAN.size).astype(np.float32)
NOISY = CLEAN + np.float32(0.02) * NOISE
SILENT = np.zeros_like(CLEAN)
CLIPS = {
    "identical": (CLEAN, CLEAN),
    "slightly noisy": (CLEAN, CLEAN + np.float32(0.004) * NOISE),
    "noisy": (CLEAN, NOISY),
    "very noisy": (CLEAN, CLEAN + np.float32(0.1) * NOISE),
    "half the estimate": (CLEAN, NOISY / 2),
    "half of both": (CLEAN / 2, NOISY / 2),
    "NaN in the reference": (with_sample(CLEAN, np.nan), NOISY),
    "infinity in the estimate": (CLEAN, with_sample(NOISY, np.inf)),
    "silent reference": (SILENT, NOISY),
    "silent estimate": (CLEAN, SILENT),
    "silence": (SILENT, SILENT),
    "NaN in both": (with_sample(CLEAN, np.nan), with_sample(NOISY, np.nan)),
}
NAMES = list(CLIPS)
NOT_FINITE = ["NaN in the reference", "infinity in the estimate", "NaN in both"]
REFERENCE = np.stack([reference for reference, _ in CLIPS.values()])
ESTIMATE = np.stack([estimate for _, estimate in CLIPS.values()])


class Evaluated:
    """A metric, and its values (and gradients) for `CLIPS`, together and for some one by one."""

    def __init__(self, metric: Metric, pool: ScorePool):
        self.metric = metric
        self._options = metric.options | ({"pool": pool} if metric.on_host else {})
        self.gradients = {}
        if metric.on_host:
            self.all_values, self.reasons = self(REFERENCE, ESTIMATE)
        else:
            self.all_values, gradients = self._under_every_transform()
            self.gradients = dict(zip(NAMES, gradients, strict=True))
            self.reasons = reasons(reference=REFERENCE, estimate=ESTIMATE)
        self.values = dict(zip(NAMES, np.asarray(self.all_values), strict=True))
        with Compilations() as first:
            self.alone = {"noisy": self.score(*CLIPS["noisy"])}
        with Compilations() as later:
            for name in ("slightly noisy", "half of both"):
                self.alone[name] = self.score(*CLIPS[name])
        self.compilations = first.count, later.count

    def __call__(self, reference, estimate, sample_rate=RATE):
        return self.metric.function(
            reference=reference, estimate=estimate, sample_rate=sample_rate, **self._options
        )

    def score(self, reference, estimate):
        """The score of one clip, in a batch of its own."""
        scores = self(reference[None], estimate[None])
        return float((scores.values if self.metric.on_host else scores)[0])

    def value_and_gradient(self, reference, estimate):
        """For arrays [B, N]: values [B] and their gradients with respect to the estimates."""

        def total(estimate):
            values = self(reference, estimate)
            return jnp.sum(values), values

        gradient, values = jax.grad(total, has_aux=True)(estimate)
        return values, gradient

    def _under_every_transform(self):
        """Under jit, and under vmap as a population of two batches: as a search calls it."""
        half = len(CLIPS) // 2
        populations = [z.reshape(2, half, -1) for z in (REFERENCE, ESTIMATE)]
        values, gradients = jax.jit(jax.vmap(self.value_and_gradient))(*populations)
        return values.reshape(-1), np.asarray(gradients).reshape(len(CLIPS), -1)


@pytest.fixture(scope="module")
def pool():
    with ScorePool(2) as pool:
        yield pool


@functools.cache
def evaluate(metric, pool):
    return Evaluated(metric, pool)


# Another band, or sums over the same spectra as others.
LIKE_OTHERS = ("surrogate_nb", "estoi", "reference_pesq_nb", "log_spectral_distance")


def params_of(metrics):
    slow = [pytest.mark.slow]
    return [pytest.param(m, id=m.name, marks=slow * (m.name in LIKE_OTHERS)) for m in metrics]


@pytest.fixture(scope="module", params=params_of(TABLE))
def evaluated(request, pool):
    return evaluate(request.param, pool)


def for_metrics_on_the_device(test):
    return pytest.mark.parametrize("evaluated", params_of(ON_DEVICE), indirect=True)(test)


def test_arguments_are_by_keyword_and_have_the_same_names(evaluated):
    parameters = inspect.signature(evaluated.metric.function).parameters
    assert list(parameters)[:3] == ["reference", "estimate", "sample_rate"]
    assert {p.kind for p in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}


def test_one_floating_point_value_for_each_clip(evaluated):
    values = evaluated.all_values
    assert values.shape == (len(CLIPS),)
    assert values.dtype == (np.float64 if evaluated.metric.on_host else np.float32)


def test_a_batch_is_a_loop_over_clips(evaluated):
    for name, alone in evaluated.alone.items():
        # Sums of float32 in another order: some 1e-6 of what is added up.
        assert evaluated.values[name] == pytest.approx(alone, rel=1e-4)


def test_noise_makes_it_worse_and_more_noise_still_worse(evaluated):
    metric = evaluated.metric
    names = ["identical", "slightly noisy", "noisy", "very noisy"]
    scores = [evaluated.values[name] for name in names]
    assert scores == sorted(scores, reverse=metric.higher_is_better)
    assert len(set(scores)) == len(scores)
    if metric.best is not None:
        # Four digits are given for the best PESQ, and float32 keeps as many of 100 dB.
        assert scores[0] == pytest.approx(metric.best, abs=1e-3)


@pytest.mark.parametrize(
    ("halved", "promise"), [("half the estimate", "gain"), ("half of both", "level")]
)
def test_halving_changes_what_is_said_to_change(evaluated, halved, promise):
    before, after = evaluated.values["noisy"], evaluated.values[halved]
    if getattr(evaluated.metric, promise):
        # Halving is exact but for floors, which one bin in ten thousand meets, and for `pesq`,
        # which sets the level in 16 bits.
        assert after == pytest.approx(before, rel=1e-3)
    else:
        assert abs(after - before) > 0.05 * abs(before)


def test_a_clip_that_is_not_finite_is_nan_with_a_reason_and_alone(evaluated):
    found = dict(zip(NAMES, evaluated.reasons, strict=True))
    for name in NOT_FINITE:
        culprit = "estimate" if name == "infinity in the estimate" else "reference"
        assert np.isnan(evaluated.values[name])
        assert found[name] == f"{culprit} has samples that are not finite"
    for name in set(NAMES) - set(NOT_FINITE):
        # The packages have no score for silence, and say so.
        silent = evaluated.metric.on_host and "silen" in name
        assert np.isfinite(evaluated.values[name]) != silent
        assert (found[name] is not None) == silent


def test_refuses_what_cannot_be_compared(evaluated, monkeypatch):
    x = REFERENCE[:2]
    with pytest.raises(ValueError, match="0 Hz"):
        evaluated(x, x, sample_rate=0)
    # The tests' type checker would refuse the shapes first.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for estimate in (x[:1], x[:, 1:]):
        with pytest.raises(ValueError, match=r"reference \(.*\) and estimate \(.*\) differ"):
            evaluated(x, estimate)


def test_empty_clips_have_no_score(evaluated):
    empty = REFERENCE[:2, :0]
    if evaluated.metric.on_host:
        scores = evaluated(empty, empty)
        assert np.all(np.isnan(scores.values))
        assert scores.reasons == ("reference is empty",) * 2
    else:
        with pytest.raises(ValueError, match="no samples"):
            evaluated(empty, empty)


@for_metrics_on_the_device
def test_gradients_are_finite_everywhere(evaluated):
    for name, gradient in evaluated.gradients.items():
        assert np.all(np.isfinite(gradient)), name
        if name in NOT_FINITE:
            assert not gradient.any()
    assert evaluated.gradients["noisy"].any()


@for_metrics_on_the_device
def test_one_sample_has_a_finite_value_and_gradient(evaluated):
    one, other = np.full((1, 1), 0.5, np.float32), np.full((1, 1), -0.2, np.float32)
    value, gradient = jax.jit(evaluated.value_and_gradient)(one, other)
    assert np.all(np.isfinite(value))
    assert np.all(np.isfinite(gradient))


@for_metrics_on_the_device
def test_gradient_agrees_with_finite_differences(evaluated):
    # A random gain on each sample of the error. In a white direction the differences of many
    # bins would nearly cancel, and rounding would drown what is left.
    direction = (NOISY - CLEAN) * np.random.default_rng(2).uniform(0, 2, CLEAN.size)
    step = evaluated.metric.step
    up, down = (
        evaluated.score(CLEAN, (NOISY + sign * step * direction).astype(np.float32))
        for sign in (1, -1)
    )
    assert abs(up - down) > 1e-4 * abs(up), "the difference is a thousand times the rounding"
    # Rounding is 1e-3 of the difference, and the step's square 1e-4; the rest is for bends.
    actual = evaluated.gradients["noisy"].astype(np.float64) @ direction
    assert actual == pytest.approx((up - down) / (2 * step), rel=1e-2)


@for_metrics_on_the_device
def test_is_compiled_once_for_a_shape(evaluated):
    first, later = evaluated.compilations
    assert first > 0
    assert later == 0
