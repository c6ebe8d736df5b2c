"""What the Lagrangian relaxation's settings do: a sweep in one compiled call.

``python -m benchmarks.relaxation_settings --clip $JAXSPARSE_DATA/valid/FILE`` runs every
combination of the given learning rates, multiplier rates, penalties and steepnesses side by side on
the beginning of a clip, from one and the same start, and prints for each the MSE of the soft mask
and of the rounded one, how far the soft one is from the constraint, and how many bins crossed over.
A random mask is the first line.
"""

import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxsparse import load_pretrained, log_power
from jaxsparse.data.clips import FileClip
from jaxsparse.errors import JaxsparseError, describe
from jaxsparse.masks import count_observed
from jaxsparse.objectives import mse_objective
from jaxsparse.search.contract import Search
from jaxsparse.search.lagrangian import LagrangianSettings, lagrangian
from jaxsparse.search.relaxations import RELAXATIONS
from jaxsparse.search.run import batch, run
from jaxsparse.transforms.stft import stft

NETWORK, SPARSITY = "random-95", 0.95


@dataclass(frozen=True)
class Settings:
    """Settings of the sweep."""

    clip: Path
    """An audio file."""
    n_samples: int = 8_192
    """How much of it, at 16 kHz."""
    updates: int = 400
    """Of the scores."""
    learning_rate: tuple[float, ...] = (0.01, 0.1)
    multiplier_rate: tuple[float, ...] = (1.0, 100.0)
    penalty: tuple[float, ...] = (0.0, 1000.0)
    steepness: tuple[float, ...] = (1.0, 4.0)
    relaxation: str = "logistic"
    """Map from scores to soft masks, by its name; for an unknown one the names are listed."""
    seed: int = 0
    """Of the start."""
    json: bool = False
    """Print JSON instead of the table."""


def sweep(settings: Settings) -> list[dict[str, float]]:
    """Runs all combinations; a line of results for each, in the order of `itertools.product`.

    Raises:
        AudioError: If the clip can't be read.
        JaxsparseError: If there is no relaxation of that name.
        OSError: If the clip can't be found.
    """
    if settings.relaxation not in RELAXATIONS:
        names = ", ".join(RELAXATIONS)
        raise JaxsparseError(f"relaxation must be one of {names}, not {settings.relaxation!r}")
    signal = FileClip(settings.clip, settings.clip.name).read(settings.n_samples)
    dense = log_power(stft(jnp.asarray(signal)))
    n_bins, n_frames = dense.shape
    shape, count = (n_bins, n_frames), count_observed(dense.shape, SPARSITY)
    decoder, params, _ = load_pretrained(NETWORK)
    objective = mse_objective(decoder, params, dense, keep_observed=False)
    names = ("learning_rate", "multiplier_rate", "penalty", "steepness")
    combinations = list(itertools.product(*(getattr(settings, name) for name in names)))
    columns = dict(zip(names, jnp.asarray(combinations).T, strict=True))

    def make(entry: dict[str, Any]) -> Search:
        relaxation = RELAXATIONS[settings.relaxation](steepness=entry.pop("steepness"))
        rates = LagrangianSettings(**entry)
        search = lagrangian(objective, shape, count, rates, relaxation=relaxation)
        key = jax.random.key(settings.seed)
        # The same start for all, where a batch would give each its own.
        return search._replace(init=lambda _: search.init(key))

    result = run(batch(make, columns), jax.random.key(0), steps=settings.updates // 100)
    shown = ("best", "loss", "hard_loss", "violation", "multiplier", "crossings")
    return [
        dict(zip(names, combination, strict=True))
        | {name: float(result.history[name][-1][i]) for name in shown}
        for i, combination in enumerate(combinations)
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs from the command line."""
    settings = tyro.cli(Settings, description=__doc__, args=argv)
    try:
        lines = sweep(settings)
    except (JaxsparseError, OSError) as error:
        print(f"benchmarks.relaxation_settings: {describe(error)}", file=sys.stderr)
        return 2
    if settings.json:
        print(json.dumps(lines))
        return 0
    print(" ".join(f"{name:>15}" for name in lines[0]))
    for line in lines:
        print(" ".join(f"{np.float32(value):15.5g}" for value in line.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
