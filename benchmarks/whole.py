"""The thesis' training and searches as a whole: what takes hours on two cores.

``python -m benchmarks.whole`` measures, on whatever device JAX has, the thesis' training (11,250
steps of 16 clips, 180,000 samples), its genetic search (50 masks, 500 generations) by MSE and by
the surrogate of PESQ, and its relaxation (10,000 updates), on a clip of noise as long as the
thesis' clips, at JAX's default precision. Seconds leave compilation out, which is most of the
seconds of the first two steps. With --share 0.01 only a hundredth is computed, and what the whole
would take is extrapolated from it. `benchmarks.speed` has PyTorch and a floor beside such steps.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.command import main
from jaxsparse import pretrained
from jaxsparse.data.folder import CLIP_SAMPLES
from jaxsparse.masks import count_observed
from jaxsparse.objectives import mse_objective, surrogate_objective
from jaxsparse.search.contract import Search
from jaxsparse.search.genetic import THESIS, genetic
from jaxsparse.search.lagrangian import lagrangian
from jaxsparse.search.run import run as run_search
from jaxsparse.spectrogram import log_power
from jaxsparse.transforms.stft import stft
from train.loop import init_state, make_optimizer, make_step
from train.settings import RECIPES
from train.settings import Settings as Training

SPARSITY = 0.95
_UPDATES_PER_STEP = 100
# Steps before the clock starts: the first one compiles.
_WARM = 2


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    parts: tuple[str, ...] = ()
    """What to measure; all by default."""
    share: float = 1.0
    """Of each part's steps; what the whole would take is extrapolated."""
    threads: int = 2
    """Cores that the process may use, beside a GPU."""
    json: bool = False
    """Print one line of JSON."""


def training(share: float) -> dict[str, Any]:
    """Trains the thesis' network on batches from the host."""
    settings = Training(Path(), Path(), **RECIPES["thesis"])
    decoder, optimizer = settings.decoder.build(), make_optimizer(settings)
    step = make_step(settings, decoder, optimizer)
    rng = np.random.default_rng(0)
    batches = [
        rng.normal(0, 0.1, (settings.batch_size, settings.n_samples)).astype(np.float32)
        for _ in range(2)
    ]
    state = [init_state(settings, decoder, optimizer)]

    def advance(n: int) -> float:
        began = time.perf_counter()
        for i in range(n):
            state[0], losses = step(state[0], batches[i % 2])
            if i + 1 == n:
                jax.block_until_ready(losses)
        return time.perf_counter() - began

    compiling = advance(_WARM)
    n_steps = max(round(share * settings.steps), 1)
    return _result(advance(n_steps), compiling, n_steps, settings.steps)


def _result(seconds: float, first_seconds: float, done: float, of: float) -> dict[str, Any]:
    return {"seconds": seconds * of / done, "first_seconds": first_seconds, "share": done / of}


def searching(make: Callable[[Any], Search], n_steps: int, share: float) -> dict[str, Any]:
    """Runs a search on the thesis' network."""
    network = pretrained.load_pretrained("random-95")
    signal = np.random.default_rng(0).normal(0, 0.1, CLIP_SAMPLES).astype(np.float32)
    search = make((network, signal))
    key = jax.random.key(0)
    began = time.perf_counter()
    run_search(search, key, steps=_WARM, progress=False)
    compiling = time.perf_counter() - began
    done = max(round(share * n_steps), 1)
    began = time.perf_counter()
    run_search(search, key, steps=done)
    seconds = time.perf_counter() - began
    # The first population, or mask, is evaluated in any case.
    first = search.initial_evaluations / search.evaluations
    return _result(seconds, compiling, done + first, n_steps + first)


def _objective(fitness: str, given: Any) -> tuple[Any, tuple[int, int]]:
    network, signal = given
    spectrum = jax.jit(stft)(jnp.asarray(signal))
    dense = jax.jit(log_power)(spectrum)
    shape = (dense.shape[0], dense.shape[1])
    if fitness == "mse":
        return mse_objective(network.decoder, network.params, dense, keep_observed=False), shape
    phase = jnp.angle(spectrum)
    return (
        surrogate_objective(
            network.decoder, network.params, dense, phase, signal, keep_observed=False
        ),
        shape,
    )


def _genetic(fitness: str, given: Any) -> Search:
    objective, shape = _objective(fitness, given)
    config = dataclasses.replace(THESIS, population_size=50)
    return genetic(objective, shape, count_observed(shape, SPARSITY), config)


def _relaxation(given: Any) -> Search:
    objective, shape = _objective("mse", given)
    count = count_observed(shape, SPARSITY)
    return lagrangian(objective, shape, count, updates_per_step=_UPDATES_PER_STEP)


PARTS: dict[str, Callable[[float], dict[str, Any]]] = {
    "training": training,
    # The first population is a generation, too.
    "genetic-mse": functools.partial(searching, functools.partial(_genetic, "mse"), 499),
    "genetic-surrogate": functools.partial(
        searching, functools.partial(_genetic, "surrogate"), 499
    ),
    "relaxation": functools.partial(searching, _relaxation, 10_000 // _UPDATES_PER_STEP),
}


def run(settings: Settings) -> dict[str, Any]:
    """Measures all parts."""
    for name in settings.parts:
        if name not in PARTS:
            raise SystemExit(f"no part is named {name!r}; there are {', '.join(PARTS)}")
    device = jax.devices()[0].device_kind
    found = {name: PARTS[name](settings.share) for name in settings.parts or PARTS}
    return {"device": device, "jax": jax.__version__, **found}


if __name__ == "__main__":
    main(Settings, run, __doc__)
