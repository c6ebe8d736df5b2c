"""PESQ and STOI by their reference packages, in processes on the host: what tables report.

PESQ is ITU-T P.862 (narrow band) or P.862.2 (wide band) as `pesq` computes it; STOI is that of Taal
et al. (2011), extended STOI that of Jensen and Taal (2016), as `pystoi` does. All take
``reference=`` and ``estimate=`` by keyword, are per example and are not differentiable. The extra
``eval`` brings both packages.
"""

import contextlib
import importlib
import os
import pickle
import queue
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float, Float64

from jaxsparse import _scoring
from jaxsparse._scoring import PESQ, PESQ_RATES, Metric
from jaxsparse.errors import needs_extra
from jaxsparse.metrics.contract import Batch

# -P keeps the package's own directory, and its types.py, out of the worker's import path.
_WORKER_COMMAND = [sys.executable, "-P", _scoring.__file__]
_ATTEMPTS = 2


class Score(NamedTuple):
    """Score of one clip; NaN with the reason why where it has none."""

    value: float
    reason: str | None


class Scores(NamedTuple):
    """Scores of a batch; `reasons` says for each NaN in `values` why the clip has no score."""

    values: Float64[np.ndarray, " B"]
    reasons: tuple[str | None, ...]


def check_installed(metric: Metric) -> None:
    """Refuses a metric whose package is missing, before a worker process falls over it.

    Raises:
        MissingExtraError: `pesq` or `pystoi` is not installed.
    """
    with needs_extra("eval"):
        importlib.import_module("pesq" if metric in PESQ_RATES else "pystoi")


class ScorePool:
    """Worker processes that score clips while the device goes on.

    A worker whose process dies, as `pesq` can, is replaced and its clip tried once more. Workers
    start with the first jobs and end with the context::

        with ScorePool() as pool:
            future = pool.submit("pesq_wb", reference=x, estimate=y, sample_rate=16_000)
            ...
            value, reason = future.result()
    """

    def __init__(self, workers: int | None = None):
        """Prepare for `workers` processes (default: one for each CPU)."""
        workers = workers or os.cpu_count() or 1
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="jaxsparse-score")
        self._idle: queue.SimpleQueue[_Worker | None] = queue.SimpleQueue()
        for _ in range(workers):
            self._idle.put(None)
        self._workers = workers

    def submit(
        self,
        metric: Metric,
        *,
        reference: Float[np.ndarray, " N"],
        estimate: Float[np.ndarray, " N"],
        sample_rate: int,
    ) -> Future[Score]:
        """Start scoring one clip, which must not be changed before the future is done.

        PESQ is the mean over equal segments of at most 20 s: the reference implementation crashes
        on long audio with many pauses.

        Raises:
            MissingExtraError: The package that computes the metric is not installed.
            ValueError: The metric is unknown or not defined at the sample rate, or the shapes
                differ.
        """
        if metric not in get_args(Metric):
            raise ValueError(f"unknown metric {metric!r}, expected one of {get_args(Metric)}")
        if sample_rate <= 0 or sample_rate not in PESQ_RATES.get(metric, (sample_rate,)):
            raise ValueError(f"{metric} is not defined at {sample_rate} Hz")
        if reference.shape != estimate.shape:
            raise ValueError(f"reference {reference.shape} and estimate {estimate.shape} differ")
        check_installed(metric)
        job = _scoring.Job(metric, np.asarray(reference), np.asarray(estimate), sample_rate)
        return self._threads.submit(self._run, job)

    def _run(self, job: _scoring.Job) -> Score:
        worker = self._idle.get()
        try:
            for _ in range(_ATTEMPTS):
                worker = worker or _Worker()
                try:
                    return worker.score(job)
                except _WorkerDiedError:
                    worker.close()
                    worker = None
            return Score(float("nan"), f"{job.metric} crashed on the clip {_ATTEMPTS} times")
        finally:
            self._idle.put(worker)

    def __enter__(self) -> "ScorePool":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._threads.shutdown(wait=True, cancel_futures=error is not None)
        for _ in range(self._workers):
            if worker := self._idle.get():
                worker.close()


class _WorkerDiedError(Exception):
    """The process ended before it answered."""


class _Worker:
    """One scoring process, used by one thread at a time.

    A plain process rather than `multiprocessing`: that one would import the caller's main module
    (and with it JAX) in each worker, and an executor of its own breaks when any worker dies.
    """

    def __init__(self):
        self._process = subprocess.Popen(
            _WORKER_COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )

    def score(self, job: _scoring.Job) -> Score:
        assert self._process.stdin and self._process.stdout
        try:
            pickle.dump(tuple(job), self._process.stdin, pickle.HIGHEST_PROTOCOL)
            self._process.stdin.flush()
            reply = pickle.load(self._process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise _WorkerDiedError from error
        if isinstance(reply, Exception):
            raise reply
        return Score(*reply)

    def close(self) -> None:
        # Closing a pipe whose reader died flushes what it still holds, and fails.
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                assert pipe
                pipe.close()
        self._process.wait()


def reference_pesq(
    *,
    reference: Batch,
    estimate: Batch,
    sample_rate: int,
    band: Literal["wb", "nb"] = "wb",
    pool: ScorePool | None = None,
) -> Scores:
    """PESQ (mean opinion score, listening quality) of each clip.

    Args:
        reference: Original waveforms.
        estimate: Waveforms to judge.
        sample_rate: 16,000 Hz, or 8,000 Hz in narrow band.
        band: Wide band (P.862.2) or narrow band (P.862).
        pool: Pool to score in; without one, a pool is made for the call.

    Raises:
        MissingExtraError: `pesq` is not installed.
        ValueError: The band is unknown or not defined at the sample rate, or the shapes differ.
    """
    if band not in PESQ:
        raise ValueError(f"unknown band {band!r}, expected one of {tuple(PESQ)}")
    return _score_batch(PESQ[band], reference, estimate, sample_rate, pool)


def reference_stoi(
    *,
    reference: Batch,
    estimate: Batch,
    sample_rate: int,
    extended: bool = False,
    pool: ScorePool | None = None,
) -> Scores:
    """Short-time objective intelligibility of each clip, up to 1.

    Args:
        reference: Original waveforms.
        estimate: Waveforms to judge.
        sample_rate: In Hz; resampled to 10 kHz inside.
        extended: The extended measure, for modulated distortions.
        pool: Pool to score in; without one, a pool is made for the call.

    Raises:
        MissingExtraError: `pystoi` is not installed.
        ValueError: The shapes differ.
    """
    return _score_batch("estoi" if extended else "stoi", reference, estimate, sample_rate, pool)


def _score_batch(
    metric: Metric,
    reference: Batch,
    estimate: Batch,
    sample_rate: int,
    pool: ScorePool | None,
) -> Scores:
    if reference.shape != estimate.shape:
        raise ValueError(f"reference {reference.shape} and estimate {estimate.shape} differ")
    own = ScorePool(min(len(reference), os.cpu_count() or 1)) if pool is None else None
    with own or contextlib.nullcontext(pool) as scorer:
        assert scorer
        futures = [
            scorer.submit(metric, reference=x, estimate=y, sample_rate=sample_rate)
            for x, y in zip(np.asarray(reference), np.asarray(estimate), strict=True)
        ]
        scores = [future.result() for future in futures]
    return Scores(
        np.array([score.value for score in scores], np.float64),
        tuple(score.reason for score in scores),
    )
