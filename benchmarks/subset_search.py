"""How well searches choose k of n: ours beside pymoo's genetic algorithm, at equal evaluations.

``python -m benchmarks.subset_search`` solves three small problems, each with ten seeds: the least
sum of 10 of 100 numbers (linear), the least sum over the pairs among 32 of 128 (quadratic), and 12
of 60 numbers whose sum is nearest to a target (subset sum). All searches stop after --evaluations;
the means over seeds are printed, lower is better. Ours run all seeds in one compiled call. pymoo
gets operators that keep k: it keeps what two parents share and draws the rest from what one of them
has, and moves one entry. It is in the extra ``jaxsparse[benchmark]``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from benchmarks.command import main

# JAX is imported in functions: it counts the cores when it starts.


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    evaluations: int = 5_000
    """Of each search, at most."""
    seeds: int = 10
    """Runs of each search on each problem."""
    population: int = 50
    """Individuals in a generation, ours and pymoo's."""
    threads: int = 2
    """Cores that the process may use."""
    json: bool = False
    """Print one line of JSON."""


class Problem(NamedTuple):
    """Choose k of n; a loss is ``x Q x + c x``, or its distance from a target."""

    k: int
    quadratic: np.ndarray
    linear: np.ndarray
    target: float | None = None

    def loss(self, chosen: Any) -> Any:
        """Evaluates a choice [n] of zeros and ones, by NumPy or JAX."""
        value = chosen @ self.quadratic @ chosen + self.linear @ chosen
        return value if self.target is None else abs(value - self.target)


def make_problems() -> dict[str, Problem]:
    """Draws the three problems, the same each time."""
    rng = np.random.default_rng(0)
    linear = rng.permutation(100).astype(np.float32)
    pairs = np.triu(rng.normal(size=(128, 128)), 1).astype(np.float32)
    weights = rng.uniform(0, 1000, 60).astype(np.float32)

    def none(n: int) -> np.ndarray:
        return np.zeros((n, n), np.float32)

    return {
        "linear": Problem(10, none(100), linear),
        "quadratic": Problem(32, pairs, np.zeros(128, np.float32)),
        "subset_sum": Problem(12, none(60), weights, target=7_000.0),
    }


def ours(problem: Problem, make: Callable[..., Any], settings: Settings) -> list[float]:
    """Losses that one of our searches ends with, one for each seed."""
    import jax
    import jax.numpy as jnp

    from jaxsparse.search.run import batch, run

    def objective(mask: Any) -> Any:
        return problem.loss(mask[0].astype(jnp.float32)), None

    n = len(problem.linear)
    search = batch(lambda _: make(objective, (1, n), problem.k), jnp.arange(settings.seeds))
    limit = settings.evaluations * settings.seeds
    result = run(
        search, jax.random.key(0), steps=limit, evaluations=limit, one_call=True, progress=False
    )
    return np.asarray(result.best.loss).tolist()


def searches(population: int) -> dict[str, Callable[..., Any]]:
    """Our searches by name, from an objective, a shape and a count."""
    import dataclasses
    import functools

    import optax

    from jaxsparse.search.genetic import THESIS, GeneticConfig, genetic
    from jaxsparse.search.lagrangian import lagrangian
    from jaxsparse.search.relaxations import RELAXATIONS
    from jaxsparse.search.swaps import SwapConfig, swaps

    def evolve(config: GeneticConfig) -> Callable[..., Any]:
        return functools.partial(
            genetic, config=dataclasses.replace(config, population_size=population)
        )

    def relax(name: str) -> Callable[..., Any]:
        return functools.partial(
            lagrangian,
            relaxation=RELAXATIONS[name](),
            optimizer=optax.adam(0.05),
            updates_per_step=8,
        )

    return {
        "genetic": evolve(GeneticConfig()),
        "genetic_thesis": evolve(THESIS),
        "swaps": functools.partial(swaps, config=SwapConfig(looked_at=1.0)),
        "swaps_random": functools.partial(swaps, config=SwapConfig("random", looked_at=1.0)),
        "relaxed_projection": relax("projection"),
        "relaxed_exact_sum": relax("exact-sum"),
    }


def peer(problem: Problem, settings: Settings) -> list[float]:
    """The same of pymoo's genetic algorithm, seed by seed."""
    try:
        from pymoo.algorithms.soo.nonconvex.ga import GA
        from pymoo.core.crossover import Crossover
        from pymoo.core.mutation import Mutation
        from pymoo.core.problem import Problem as PymooProblem
        from pymoo.core.sampling import Sampling
        from pymoo.optimize import minimize
    except ImportError as error:
        raise SystemExit("benchmarks.subset_search needs the extra jaxsparse[benchmark]") from error

    n, k = len(problem.linear), problem.k

    class Choose(PymooProblem):
        def _evaluate(self, x: Any, out: dict[str, Any], *_: Any, **__: Any) -> None:
            out["F"] = np.array([problem.loss(each.astype(np.float64)) for each in x])

    def solve(seed: int) -> float:
        rng = np.random.default_rng(seed)

        def choose(places: np.ndarray, count: int) -> np.ndarray:
            return rng.choice(places, count, replace=False)

        class Draw(Sampling):
            def _do(self, problem: Any, n_samples: int, **_: Any) -> np.ndarray:
                chosen = np.zeros((n_samples, n), bool)
                for each in chosen:
                    each[choose(np.arange(n), k)] = True
                return chosen

        class Cross(Crossover):
            def __init__(self) -> None:
                super().__init__(2, 1)

            def _do(self, problem: Any, x: np.ndarray, **_: Any) -> np.ndarray:
                children = x[0] & x[1]
                for child, differ in zip(children, x[0] ^ x[1], strict=True):
                    child[choose(np.flatnonzero(differ), k - int(child.sum()))] = True
                return children[None]

        class Move(Mutation):
            def _do(self, problem: Any, x: np.ndarray, **_: Any) -> np.ndarray:
                x = x.copy()
                for each in x:
                    gone, come = choose(np.flatnonzero(each), 1), choose(np.flatnonzero(~each), 1)
                    each[gone], each[come] = False, True
                return x

        algorithm = GA(
            pop_size=settings.population, sampling=Draw(), crossover=Cross(), mutation=Move()
        )
        made = Choose(n_var=n, n_obj=1, vtype=bool)
        found = minimize(made, algorithm, ("n_eval", settings.evaluations), seed=seed)
        return float(np.ravel(found.F)[0])

    return [solve(seed) for seed in range(settings.seeds)]


def run(settings: Settings) -> dict[str, Any]:
    """Solves all problems by all searches; means over seeds, problem by problem."""
    return {
        name: {"pymoo": float(np.mean(peer(problem, settings)))}
        | {
            search: float(np.mean(ours(problem, make, settings)))
            for search, make in searches(settings.population).items()
        }
        for name, problem in make_problems().items()
    }


if __name__ == "__main__":
    main(Settings, run, __doc__)
