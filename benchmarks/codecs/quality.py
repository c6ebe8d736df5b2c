"""ViSQOL 3 in its mode for speech (M. Chinen et al., 2020), by the package visqol-python."""

import functools
import math
from typing import Any

import numpy as np
from jaxtyping import Float32

from jaxsparse.errors import needs_extra
from jaxsparse.metrics.reference import Score
from jaxsparse.types import SAMPLE_RATE


def check_visqol() -> None:
    """Refuses before anything is computed.

    Raises:
        MissingExtraError: If a package is not installed.
    """
    _api()


@functools.cache
def _api() -> Any:
    with needs_extra("peers"):
        import ai_edge_litert.interpreter  # noqa: F401
        from visqol import VisqolApi
    api = VisqolApi()
    # The reference software's default, which is trained on lower quality than the polynomial.
    api.create(mode="speech", use_lattice_model=True)
    return api


def visqol(reference: Float32[np.ndarray, " N"], estimate: Float32[np.ndarray, " N"]) -> Score:
    """Predicts the mean opinion score, from 1 to 5."""
    for name, signal in (("reference", reference), ("estimate", estimate)):
        if not signal.any():
            return Score(math.nan, f"{name} is silent")
    pair = reference.astype(np.float64), estimate.astype(np.float64)
    try:
        return Score(float(_api().measure_from_arrays(*pair, SAMPLE_RATE).moslqo), None)
    except (IndexError, ValueError):
        return Score(math.nan, "too short for ViSQOL")
