"""Searches on several devices and on one; a program, since devices are counted at its start.

Its arguments are numbers of devices, up to the eight that its environment asks for.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxsparse import sharding
from jaxsparse.search.genetic import GeneticConfig, genetic
from jaxsparse.search.population import evaluate
from jaxsparse.search.run import batch, run
from jaxsparse.search.swaps import swaps

SHAPE, COUNT = (32, 16), 60


def objective(target, mask):
    """The distance of a blurred mask from a target."""
    soft = mask.astype(jnp.float32)
    blurred = (soft + jnp.roll(soft, 1, 0) + jnp.roll(soft, 1, 1)) / 3
    return jnp.mean(jnp.square(blurred - target)), {"sum": jnp.sum(mask)}


def best(search):
    result = run(search, jax.random.key(0), steps=6, progress=False)
    return {"losses": np.asarray(result.best.loss), "bits": np.asarray(result.best.bits)}


def searches():
    targets = jax.random.uniform(jax.random.key(1), (8, *SHAPE)) / 4
    scored = Partial(objective, targets[0])
    yield best(genetic(scored, SHAPE, COUNT, GeneticConfig(21)))
    yield best(batch(lambda target: swaps(Partial(objective, target), SHAPE, COUNT), targets))


def main():
    alone, found = list(searches()), {}
    for n in map(int, sys.argv[1:]):
        with jax.set_mesh(sharding.make_mesh(n)):
            pairs = list(zip(searches(), alone, strict=True))
        found[n] = {
            "same masks": all((a["bits"] == b["bits"]).all() for a, b in pairs),
            "difference": max(float(np.abs(a["losses"] - b["losses"]).max()) for a, b in pairs),
        }
    with jax.set_mesh(sharding.make_mesh()):
        bits = jnp.zeros((21, SHAPE[0] * SHAPE[1] // 8), jnp.uint8)
        scored = Partial(objective, jnp.zeros(SHAPE))
        split = jax.jit(lambda bits: evaluate(scored, bits, SHAPE, 2)).lower(bits).compile()
    print(json.dumps({"devices": found, "split": "num_partitions=8" in str(split.as_text())}))


if __name__ == "__main__":
    main()
