"""Quality of sound: ``metric(*, reference, estimate, sample_rate)`` of [B, N] gives [B].

`reference_pesq` and `reference_stoi` are the packages `pesq` and `pystoi`, in processes on the
host, and what tables report. The others are pure, differentiable JAX.
"""

from jaxsparse._scoring import Metric
from jaxsparse.losses import mse
from jaxsparse.metrics.contract import reasons
from jaxsparse.metrics.distances import (
    log_spectral_distance,
    mel_distance,
    mfcc_distance,
    multi_resolution_stft,
    si_sdr,
)
from jaxsparse.metrics.intelligibility import estoi, stoi
from jaxsparse.metrics.reference import (
    Score,
    ScorePool,
    Scores,
    check_installed,
    reference_pesq,
    reference_stoi,
)
from jaxsparse.metrics.surrogate import pesq_surrogate

__all__ = [
    "Metric",
    "Score",
    "ScorePool",
    "Scores",
    "check_installed",
    "estoi",
    "log_spectral_distance",
    "mel_distance",
    "mfcc_distance",
    "mse",
    "multi_resolution_stft",
    "pesq_surrogate",
    "reasons",
    "reference_pesq",
    "reference_stoi",
    "si_sdr",
    "stoi",
]
