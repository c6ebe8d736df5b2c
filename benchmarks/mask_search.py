"""Generations of the genetic search per second, ours and a plain PyTorch copy's.

``python -m benchmarks.mask_search --json`` evaluates populations of 50 masks of 1025 x 302: ours by
steps of the genetic search, with its children, draws and archive; PyTorch's with no_grad, one mask
at a time, its masks drawn beforehand. Both run in turns in one process with the same threads, and
their losses must agree before anything is timed. It also counts what is compiled in a search of
500 generations, and compares the memory of populations of 50 and of 5,000. It takes three minutes.
PyTorch is the extra ``jaxsparse[benchmark]``.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import train_step
from benchmarks.command import main

# JAX and PyTorch are imported in functions: both count the cores when they start.

SHAPE, SPARSITY = train_step.SHAPE, train_step.SPARSITY
# Of the loss; float32 sums over 309,550 bins in another order.
TOLERANCE = 1e-4
# So many are compiled at 128 x 64, since what is compiled does not depend on the clip's size.
GENERATIONS, SMALL_SHAPE = 500, (128, 64)


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    population: int = 50
    """Masks in a generation."""
    repeats: int = 3
    """Timed generations of each, of which the median is reported."""
    threads: int = 2
    """Cores that the process may use."""
    json: bool = False
    """Print one line of JSON."""


def make_search(problem: train_step.Problem, population: int) -> Any:
    """Our genetic search on the first spectrogram, without put-back."""
    import jax.numpy as jnp

    from jaxsparse.masks import count_observed
    from jaxsparse.nn.sparse_cnn import sparse_cnn
    from jaxsparse.objectives import mse_objective
    from jaxsparse.search.genetic import GeneticConfig, genetic

    dense = jnp.asarray(problem.spectrograms[0])
    objective = mse_objective(sparse_cnn(), problem.params, dense, keep_observed=False)
    shape = (dense.shape[0], dense.shape[1])
    return genetic(objective, shape, count_observed(shape, SPARSITY), GeneticConfig(population))


def ours(problem: train_step.Problem, population: int) -> tuple[Callable, Callable, int]:
    """The loss of one mask, a generation that blocks till done, and the masks that it evaluates."""
    import jax
    import jax.numpy as jnp

    search = make_search(problem, population)
    objective = search.step.args[0].objective
    state = [jax.jit(lambda init, key: init(key))(search.init, jax.random.key(0))]
    step = jax.jit(lambda step, key, state: step(key, state))

    def generation() -> None:
        state[0], info = step(search.step, jax.random.key(1), state[0])
        info.best.block_until_ready()

    def loss(mask: np.ndarray) -> float:
        return float(jax.jit(objective)(jnp.asarray(mask))[0])

    return loss, generation, search.evaluations


def peer(problem: train_step.Problem, masks: np.ndarray, threads: int) -> tuple[Callable, Callable]:
    """The same of a plain PyTorch module, for a population of masks [P, F, T]."""
    network = train_step.torch_network(problem, threads)
    # After the network, which says so where PyTorch is missing.
    import torch

    dense = torch.from_numpy(problem.spectrograms[:1])[:, None]

    def loss(mask: np.ndarray) -> float:
        weights = torch.from_numpy(mask.astype(np.float32))[None, None]
        with torch.no_grad():
            return torch.mean(torch.square(network(dense, weights) - dense)).item()

    def generation() -> None:
        for mask in masks:
            loss(mask)

    return loss, generation


def count_compilations() -> int:
    """What XLA compiles in a whole search of 500 generations of 50."""
    import jax

    from jaxsparse.search.run import run

    events = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(duration_secs)

    rng = np.random.default_rng(0)
    problem = train_step.make_problem(1)
    small = problem._replace(spectrograms=rng.normal(-25, 15, (1, *SMALL_SHAPE)).astype(np.float32))
    search, key = make_search(small, 50), jax.random.key(0)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        run(search, key, steps=GENERATIONS - 1)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return len(events)


def peak_bytes(problem: train_step.Problem, population: int) -> dict[str, int]:
    """What the compiler says that a generation takes, and the packed population's share of it."""
    import jax

    search = make_search(problem, population)
    key = jax.random.key(0)
    state = jax.eval_shape(search.init, key)
    step = jax.jit(lambda step, key, state: step(key, state), donate_argnums=2)
    compiled = step.lower(search.step, key, state).compile()
    packed = population * -(-SHAPE[0] * SHAPE[1] // 8)
    return {"peak": train_step.peak_bytes(compiled), "packed_population": packed}


def run(settings: Settings) -> dict[str, Any]:
    """Check that both agree, then time them in turns."""
    import jax

    from jaxsparse.masks import count_observed, random_mask

    problem = train_step.make_problem(1)
    loss, generation, evaluated = ours(problem, settings.population)
    count = count_observed(SHAPE, SPARSITY)
    keys = jax.random.split(jax.random.key(2), evaluated)
    draw = jax.jit(jax.vmap(lambda key: random_mask(key, SHAPE, count)))
    masks = np.asarray(draw(keys))
    peer_loss, peer_generation = peer(problem, masks, settings.threads)
    for mask in masks[:3]:
        mine, other = loss(mask), peer_loss(mask)
        assert abs(mine - other) < TOLERANCE * other, f"loss {mine} is not the peer's {other}"
    variants = {"ours_s": generation, "peer_s": peer_generation}
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(settings.repeats + 1):
        for name, advance in variants.items():
            start = time.perf_counter()
            advance()
            times[name].append(time.perf_counter() - start)
    # The first round warms up.
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    few, many = (peak_bytes(problem, size) for size in (settings.population, 5_000))
    return medians | {
        "ratio": medians["ours_s"] / medians["peer_s"],
        "generations_per_s": 1 / medians["ours_s"],
        "masks_evaluated": evaluated,
        "compilations": count_compilations(),
        "peak_bytes": few["peak"],
        "packed_bytes": few["packed_population"],
        "peak_bytes_5000": many["peak"],
        "packed_bytes_5000": many["packed_population"],
        "population": settings.population,
        "threads": settings.threads,
        "repeats": settings.repeats,
        "backend": jax.default_backend(),
    }


if __name__ == "__main__":
    main(Settings, run, __doc__)
