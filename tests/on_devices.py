"""Searches and training on several devices and on one; a program, since a process has its devices.

``eight FOLDER`` compares eight devices with one, and goes on with runs that others began;
``one-of-two FOLDER`` is one of two processes, which train until they are killed.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxsparse import sharding
from jaxsparse.nn.sparse_cnn import SparseCNNConfig
from jaxsparse.search.genetic import GeneticConfig, genetic
from jaxsparse.search.population import evaluate
from jaxsparse.search.run import batch, run
from jaxsparse.search.swaps import swaps
from train.loop import Stopped, train
from train.settings import Settings

SHAPE, COUNT = (32, 16), 60
# No run ends by itself.
STEPS = 1_000_000


def objective(target, mask):
    """The distance of a blurred mask from a target."""
    soft = mask.astype(jnp.float32)
    blurred = (soft + jnp.roll(soft, 1, 0) + jnp.roll(soft, 1, 1)) / 3
    return jnp.mean(jnp.square(blurred - target)), {"sum": jnp.sum(mask)}


def search():
    """Loss and bits of the best masks of a population, and of a batch of searches."""
    targets = np.random.default_rng(1).uniform(size=(8, *SHAPE)).astype(np.float32) / 4
    scored = Partial(objective, targets[0])
    searches = (
        genetic(scored, SHAPE, COUNT, GeneticConfig(21)),
        batch(lambda target: swaps(Partial(objective, target), SHAPE, COUNT), targets),
    )
    for each in searches:
        result = run(each, jax.random.key(0), steps=6, progress=False)
        yield np.asarray(result.best.loss).tolist(), np.asarray(result.best.bits).tolist()


def learn(folder, name, steps, resume=False):
    """Trains for so many steps, and leaves the run unfinished."""
    settings = Settings(
        folder / "corpus",
        folder / name,
        steps=STEPS,
        batch_size=8,
        n_samples=4_000,
        crop=(24, 16),
        learning_rate=3e-3,
        log_every=1,
        checkpoint_every=1,
        picture_every=2 if name == "pair" else 0,
        decoder=SparseCNNConfig((3,), features=2),
        resume=resume,
    )
    # It is asked once before the first step.
    answers = iter([False] * (steps + 1))
    try:
        train(settings, stop=lambda: next(answers, True))
    except Stopped:
        return
    raise AssertionError("it was not stopped")


def of_eight(folder):
    alone = list(search())
    learn(folder, "one", 4)
    with sharding.use("all"):
        found = list(search())
        learn(folder, "fewer", 2)
        bits = jnp.zeros((21, SHAPE[0] * SHAPE[1] // 8), jnp.uint8)
        scored = Partial(objective, jnp.zeros(SHAPE))
        split = jax.jit(lambda bits: evaluate(scored, bits, SHAPE, 2)).lower(bits).compile()
    with sharding.use(2):
        learn(folder, "fewer", 1, resume=True)
    learn(folder, "fewer", 1, resume=True)
    if (folder / "pair").exists():
        learn(folder, "pair", 1, resume=True)
    return {"alone": alone, "eight": found, "split": "num_partitions=8" in str(split.as_text())}


def of_two(folder):
    with sharding.use("cluster"):
        found = list(search())
        if sharding.is_main():
            (folder / "pair.json").write_text(json.dumps(found))
        learn(folder, "pair", STEPS)


if __name__ == "__main__":
    work = {"eight": of_eight, "one-of-two": of_two}[sys.argv[1]]
    print(json.dumps(work(Path(sys.argv[2]))))
