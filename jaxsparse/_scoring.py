"""PESQ and STOI of one clip, and the loop of the worker process that computes them.

`jaxsparse.metrics.ScorePool` runs this file as a script. It imports nothing of the package, so that
a worker starts without JAX and does not need the caller's main module.
"""

import os
import pickle
import signal
import warnings
from typing import BinaryIO, Literal, NamedTuple

import numpy as np

Metric = Literal["pesq_wb", "pesq_nb", "stoi", "estoi"]

PESQ: dict[str, Metric] = {"wb": "pesq_wb", "nb": "pesq_nb"}
PESQ_RATES = {"pesq_wb": (16_000,), "pesq_nb": (8_000, 16_000)}
PESQ_SEGMENT_SECONDS = 20
# Thirty half-overlapping frames of 256 samples at the 10 kHz at which STOI is defined.
STOI_SECONDS = (256 + 29 * 128) / 10_000


class Job(NamedTuple):
    """One clip to score; `reference` and `estimate` are [N], at `sample_rate` Hz."""

    metric: Metric
    reference: np.ndarray
    estimate: np.ndarray
    sample_rate: int


def score(job: Job) -> tuple[float, str | None]:
    """Score of one clip, or NaN and the reason why it has none.

    A reason that begins with "reference" holds whatever the estimate is.
    """
    for name, samples in (("reference", job.reference), ("estimate", job.estimate)):
        if samples.size == 0:
            return np.nan, f"{name} is empty"
        if not np.all(np.isfinite(samples)):
            return np.nan, f"{name} has samples that are not finite"
        if not np.any(samples):
            return np.nan, f"{name} is silent"
    return _pesq(job) if job.metric in PESQ_RATES else _stoi(job)


def _pesq(job: Job) -> tuple[float, str | None]:
    """Mean PESQ over equal segments of at most `PESQ_SEGMENT_SECONDS`.

    Segments whose reference is a pause have no PESQ and are left out; whatever else cannot be
    scored makes the whole clip NaN.
    """
    from pesq import NoUtterancesError, PesqError, pesq

    rate, band = job.sample_rate, job.metric[-2:]

    count = -(-job.reference.size // (PESQ_SEGMENT_SECONDS * job.sample_rate))
    references = np.array_split(job.reference, count)
    estimates = np.array_split(job.estimate, count)
    scores = []
    for reference, estimate in zip(references, estimates, strict=True):
        if not np.any(reference):
            continue
        if not np.any(estimate):
            return np.nan, "a segment of the estimate is silent"
        try:
            scores.append(pesq(rate, reference, estimate, band))
        except NoUtterancesError:
            if _is_speech(rate, reference, band):
                return np.nan, "pesq finds no utterance in the estimate"
        except (PesqError, ValueError) as error:
            return np.nan, f"pesq refused the clip: {_message(error)}"
    if not scores:
        return np.nan, "reference has no utterance that pesq finds"
    return float(np.mean(scores)), None


def _is_speech(sample_rate: int, reference: np.ndarray, band: str) -> bool:
    """Whether `pesq`, which does not say in which signal it finds no utterance, finds one here."""
    from pesq import NoUtterancesError, pesq

    try:
        pesq(sample_rate, reference, reference, band)
    except NoUtterancesError:
        return False
    return True


def _stoi(job: Job) -> tuple[float, str | None]:
    from pystoi import stoi

    if job.reference.size < STOI_SECONDS * job.sample_rate:
        return np.nan, f"reference is shorter than {STOI_SECONDS:.3f} s"
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Not enough STFT frames", RuntimeWarning)
        try:
            value = stoi(
                job.reference.astype(np.float64),
                job.estimate.astype(np.float64),
                job.sample_rate,
                extended=job.metric == "estoi",
            )
        except RuntimeWarning:
            return np.nan, f"reference has less than {STOI_SECONDS:.3f} s without its silent frames"
    return float(value), None if np.isfinite(value) else "stoi is not finite"


def _message(error: Exception) -> str:
    text = error.args[0] if error.args else type(error).__name__
    return text.decode() if isinstance(text, bytes) else str(text)


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer pickled jobs with pickled ``(value, reason)`` or an exception, until end of file.

    Also ends where the caller leaves in the middle of a job or before its reply.
    """
    while True:
        try:
            job = Job(*pickle.load(requests))
        except (EOFError, pickle.UnpicklingError):
            return
        try:
            reply = score(job)
        except Exception as error:
            reply = RuntimeError(f"{job.metric} failed: {type(error).__name__}: {error}")
        try:
            pickle.dump(reply, replies)
            replies.flush()
        except BrokenPipeError:
            return


def main() -> None:
    """Serve on standard input and output, of which native code that prints must not get hold."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with os.fdopen(0, "rb", closefd=False) as requests:
        serve(requests, replies)


if __name__ == "__main__":
    main()
