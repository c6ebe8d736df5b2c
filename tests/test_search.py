"""The contract of every search, in one table, and the loop that runs them."""

import dataclasses
import itertools
import json
import os
import runpy
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

from jaxsparse.masks import pack_mask, random_mask, unpack_mask
from jaxsparse.search import run as running
from jaxsparse.search.contract import (
    Best,
    HostObjective,
    Search,
    archive,
    as_tree,
    empty_archive,
    identity_of,
)
from jaxsparse.search.genetic import WITHOUT_REPRODUCTION, GeneticConfig, genetic
from jaxsparse.search.lagrangian import LagrangianSettings, lagrangian
from jaxsparse.search.relaxations import (
    RELAXATIONS,
    exact_sum,
    geometric,
    logistic,
    perturbed,
    straight_through,
)
from jaxsparse.search.run import batch, run
from jaxsparse.search.swaps import SwapConfig, swaps
from tests.reference import Compilations

SHAPE, COUNT = (4, 5), 6
SMALL = GeneticConfig(population_size=20)


def objective(weights, limit, mask):
    """A linear part, and neighbours that are worth more apart, for hard and soft masks.

    Masks whose first entry is above the limit have no loss.
    """
    m = mask.astype(jnp.float32)
    together = jnp.sum(m[:, 1:] * m[:, :-1]) + jnp.sum(m[1:] * m[:-1])
    return jnp.where(m[0, 0] > limit, jnp.nan, jnp.sum(weights * m) + 0.3 * together), None


def problem(seed=0, limit=2.0):
    return Partial(objective, jax.random.normal(jax.random.key(seed), SHAPE), jnp.float32(limit))


@jax.jit
def losses_of(objective, bits):
    return jax.vmap(lambda packed: objective(unpack_mask(packed, SHAPE))[0])(bits)


def on_host(objective):
    """The same objective, outside of the device."""
    return HostObjective(lambda bits: (np.asarray(losses_of(objective, bits)), None))


def relax(relaxation, rate=0.3):
    def make(objective):
        settings = LagrangianSettings(learning_rate=rate, multiplier_rate=5.0)
        return lagrangian(
            objective, SHAPE, COUNT, settings, relaxation=relaxation, updates_per_step=5
        )

    return make


SEARCHES = {
    "genetic": lambda objective: genetic(objective, SHAPE, COUNT, SMALL),
    "blocks": lambda objective: genetic(
        objective,
        SHAPE,
        COUNT,
        GeneticConfig(20, crossover="blocks", block=(2, 2), mutation=0.2, tournament=2),
    ),
    "control": lambda objective: genetic(
        objective,
        SHAPE,
        COUNT,
        GeneticConfig(20, WITHOUT_REPRODUCTION.elite_share, WITHOUT_REPRODUCTION.child_share),
    ),
    "host": lambda objective: genetic(on_host(objective), SHAPE, COUNT, SMALL),
    "logistic": relax(logistic()),
    "annealed": relax(logistic(geometric(1.0, 8.0, 200))),
    "straight-through": relax(straight_through(logistic())),
    "exact-sum": relax(exact_sum()),
    "swaps": lambda objective: swaps(objective, SHAPE, COUNT, SwapConfig(looked_at=0.5)),
}
STEPS = {name: 8 if name == "host" else 40 for name in SEARCHES}

# Of the same kind as others.
LIKE_OTHERS = ("blocks", "control", "logistic", "annealed", "straight-through")
every_search = pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n in LIKE_OTHERS)) for n in SEARCHES],
)


@pytest.fixture(scope="module")
def all_losses():
    """Losses of every mask of that count, in ascending order."""
    chosen = np.array(list(itertools.combinations(range(SHAPE[0] * SHAPE[1]), COUNT)))
    masks = np.zeros((len(chosen), SHAPE[0] * SHAPE[1]), bool)
    np.put_along_axis(masks, chosen, True, axis=1)
    bits = np.packbits(masks, axis=1)
    return np.sort(np.asarray(losses_of(problem(), bits)))


@pytest.fixture(scope="module")
def finished():
    """One run of each search, made when it is first asked for."""

    class Finished(dict):
        def __missing__(self, name):
            self[name] = run(SEARCHES[name](problem()), jax.random.key(1), steps=STEPS[name])
            return self[name]

    return Finished()


@every_search
def test_comes_close_to_the_known_optimum(name, finished, all_losses):
    """Far better than its start: among the best 1 % of all 38,760 masks, most among 0.1 %."""
    loss = float(finished[name].best.loss)
    assert loss >= all_losses[0] - 1e-5
    rank = np.searchsorted(all_losses, loss - 1e-5) / len(all_losses)
    assert rank < (0.01 if name in ("control", "host") else 0.002)


@every_search
def test_archive_is_a_hard_mask_of_the_count_with_its_loss(name, finished):
    result = finished[name]
    mask = result.mask(SHAPE)
    assert mask.dtype == bool and mask.shape == SHAPE
    assert int(mask.sum()) == COUNT
    np.testing.assert_allclose(result.best.loss, problem()(mask)[0], rtol=1e-6)
    assert int(np.unpackbits(np.asarray(result.best.bits)).sum()) == COUNT


@every_search
def test_archive_never_worsens(name, finished):
    best = finished[name].history["best"]
    assert best.shape == (STEPS[name],)
    assert (np.diff(best) <= 0).all() and best[-1] < best[0]
    assert best[-1] == finished[name].best.loss


@every_search
def test_same_key_same_result_another_key_another(name, finished):
    def again(seed):
        return run(SEARCHES[name](problem()), jax.random.key(seed), steps=STEPS[name])

    same, other = again(1), again(2)
    np.testing.assert_array_equal(same.history["best"], finished[name].history["best"])
    assert not np.array_equal(other.history["best"], finished[name].history["best"])


@every_search
def test_nan_never_wins(name):
    """The entry that is worth most is where the loss ends, for soft masks too."""
    weights = jax.random.normal(jax.random.key(0), SHAPE).at[0, 0].set(-10.0)
    search = SEARCHES[name](Partial(objective, weights, jnp.float32(0.5)))
    # Of a key whose first mask has a loss, since a gradient doesn't lead out of NaN.
    result = run(search, jax.random.key(3), steps=STEPS[name])
    history = result.history
    assert history["failed"].sum() > 0
    assert np.isfinite(history["best"]).all()
    mask = result.mask(SHAPE)
    assert int(mask.sum()) == COUNT and not mask[0, 0]


@every_search
def test_without_any_loss_the_archive_says_so(name):
    result = run(SEARCHES[name](problem(limit=-1.0)), jax.random.key(1), steps=3)
    assert result.first == result.best.loss == np.inf
    # There is a mask all the same.
    assert int(result.mask(SHAPE).sum()) == COUNT


@pytest.mark.parametrize(
    "name",
    [*(pytest.param(n, marks=pytest.mark.slow) for n in ("genetic", "logistic")), "exact-sum"],
)
def test_batch_equals_a_loop(name):
    weights = jax.random.normal(jax.random.key(5), (3, *SHAPE))

    def make(weights):
        return SEARCHES[name](Partial(objective, weights, jnp.float32(2.0)))

    together = run(batch(make, weights), jax.random.key(1), steps=4)
    assert together.history["best"].shape == (4, 3)
    # By hand, with the keys that `run` and a batch derive.
    for i, search in enumerate(map(make, weights)):
        key = jax.random.fold_in(jax.random.key(1), np.uint32(2**32 - 1))
        state = search.init(jax.random.split(key, 3)[i])
        for step in range(4):
            key = jax.random.split(jax.random.fold_in(jax.random.key(1), np.uint32(step)), 3)[i]
            state, info = call(search.step, key, state)
            np.testing.assert_allclose(together.history["best"][step, i], info.best, rtol=1e-5)
        np.testing.assert_array_equal(together.best.bits[i], state.best.bits)


@jax.jit
def call(step, key, state):
    return step(key, state)


@every_search
def test_compilations_do_not_grow_with_steps_clips_and_counts(name):
    run(SEARCHES[name](problem(7)), jax.random.key(1), steps=5)
    with Compilations() as compilations:
        run(SEARCHES[name](problem(8)), jax.random.key(2), steps=9)
    assert compilations.count == 0


@pytest.mark.parametrize("search", [genetic, lagrangian])
def test_five_hundred_steps_of_another_count_compile_nothing(search):
    def go(count, steps):
        made = search(problem(7), SHAPE, count, **more)
        return run(made, jax.random.key(1), steps=steps)

    more = {"config": SMALL} if search is genetic else {"updates_per_step": 1}
    go(COUNT, 2)
    # What a result is made of is eager, once for a count.
    with Compilations() as compilations:
        result = go(COUNT + 3, 500)
    assert compilations.count == 0
    assert int(result.mask(SHAPE).sum()) == COUNT + 3


@pytest.mark.parametrize("name", ["genetic", "exact-sum"])
def test_one_call_gives_the_same(name, finished):
    result = run(SEARCHES[name](problem()), jax.random.key(1), steps=STEPS[name], one_call=True)
    for field, values in finished[name].history.items():
        np.testing.assert_array_equal(result.history[field], values, err_msg=field)


@pytest.mark.parametrize("name", ["genetic", "host", "logistic"])
def test_a_budget_of_evaluations_is_respected(name):
    calls = []

    def counted(mask):
        # With the mask as an argument, since otherwise a batch of masks would be one call.
        jax.debug.callback(lambda _: calls.append(1), mask[0, 0])
        return problem()(mask)

    search = SEARCHES[name](Partial(counted))
    allowed = search.initial_evaluations + 3 * search.evaluations + search.evaluations - 1
    calls.clear()
    result = run(search, jax.random.key(1), steps=STEPS[name], evaluations=allowed)
    assert result.steps == 3 and result.evaluations <= allowed
    jax.effects_barrier()
    assert len(calls) == result.evaluations


@every_search
def test_a_budget_of_minutes_is_respected(name, monkeypatch):
    now = itertools.count(0.0, 1.0)
    monkeypatch.setattr(running.time, "perf_counter", lambda: next(now))
    search = SEARCHES[name](problem())
    # Each look at the clock takes a second: the first call, of one step, uses the minutes up.
    result = run(search, jax.random.key(1), steps=STEPS[name], minutes=3 / 60)
    assert 0 < result.steps < STEPS[name]
    assert len(result.history["best"]) == result.steps


@every_search
def test_a_resumed_run_equals_one_that_was_not_stopped(name, finished, tmp_path):
    search = SEARCHES[name](problem())
    part = run(search, jax.random.key(1), steps=3, folder=tmp_path / "run")
    assert part.steps == 3
    whole = run(search, jax.random.key(1), steps=STEPS[name], folder=tmp_path / "run")
    for field, values in finished[name].history.items():
        np.testing.assert_array_equal(whole.history[field], values, err_msg=field)
    jax.tree.map(np.testing.assert_array_equal, whole.state, finished[name].state)
    # Everything is there already, and nothing is done again.
    again = run(search, jax.random.key(1), steps=STEPS[name], folder=tmp_path / "run")
    assert again.seconds == whole.seconds
    np.testing.assert_array_equal(again.best.bits, whole.best.bits)


@pytest.mark.parametrize(
    ("other", "seed"),
    [
        (lambda: SEARCHES["genetic"](problem()), 2),
        (lambda: SEARCHES["genetic"](problem(1)), 1),
        (lambda: genetic(problem(), SHAPE, COUNT + 1, SMALL), 1),
        (lambda: genetic(problem(), SHAPE, COUNT, GeneticConfig(20, mutation=0.1)), 1),
        (lambda: SEARCHES["control"](problem()), 1),
        (lambda: SEARCHES["host"](problem()), 1),
        (lambda: SEARCHES["logistic"](problem()), 1),
    ],
)
def test_a_folder_of_another_run_is_refused(other, seed, tmp_path):
    folder = tmp_path / "run"
    run(SEARCHES["genetic"](problem()), jax.random.key(1), steps=2, folder=folder)
    with pytest.raises(FileExistsError, match=r"holds a run with another (search|arrays|key)"):
        run(other(), jax.random.key(seed), steps=2, folder=folder)


@pytest.mark.parametrize("data", [{}, {"seconds": None}, {"seconds": "long"}])
def test_a_checkpoint_without_its_time_is_passed_over(data, tmp_path, caplog):
    from jaxsparse import checkpoint

    search = SEARCHES["genetic"](problem())
    for steps in (1, 2):
        whole = run(search, jax.random.key(1), steps=steps, folder=tmp_path)
    path = tmp_path / "2" / "about" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data": data}))
    (tmp_path / "2" / checkpoint.SUMS).write_bytes(checkpoint._sums(tmp_path / "2"))
    again = run(search, jax.random.key(1), steps=2, folder=tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again.state, whole.state)
    (line,) = [r.getMessage() for r in caplog.records if r.name == "jaxsparse.checkpoint"]
    assert line.startswith(f"{tmp_path / '2'} is damaged and passed over: ")


def test_host_objectives_have_an_identity(tmp_path):
    """Their functions hide the arrays."""
    score = on_host(problem()).score

    def search(*identity):
        return genetic(HostObjective(score, identity), SHAPE, COUNT, SMALL)

    run(search("nb", jnp.ones(3)), jax.random.key(1), steps=1, folder=tmp_path)
    assert run(search("nb", jnp.ones(3)), jax.random.key(1), steps=2, folder=tmp_path).steps == 2
    for identity in (("wb", jnp.ones(3)), ("nb", jnp.zeros(3))):
        with pytest.raises(FileExistsError):
            run(search(*identity), jax.random.key(1), steps=2, folder=tmp_path)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weighted:
    """An objective that is a tree of its own, and looks the same as `problem`."""

    weights: jax.Array
    limit: jax.Array
    sign: int = dataclasses.field(default=1, metadata={"static": True})

    @property
    def identity(self):
        return f"weighted, {self.sign}"

    def __call__(self, mask):
        return objective(self.sign * self.weights, self.limit, mask)


def weighted(seed=0, sign=1):
    weights, limit = problem(seed).args
    return Weighted(weights, limit, sign)


on_device = pytest.mark.parametrize("name", ["genetic", "logistic", "exact-sum"])


@on_device
def test_a_dataclass_objective_is_searched_like_a_partial(name, finished):
    result = run(SEARCHES[name](weighted()), jax.random.key(1), steps=STEPS[name])
    for field, values in finished[name].history.items():
        np.testing.assert_allclose(result.history[field], values, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(result.best.bits, finished[name].best.bits)


@on_device
def test_a_dataclass_objective_is_compiled_once_for_two_clips(name):
    run(SEARCHES[name](weighted(7)), jax.random.key(1), steps=5)
    with Compilations() as compilations:
        run(SEARCHES[name](weighted(8)), jax.random.key(2), steps=9)
    assert compilations.count == 0


@on_device
def test_a_dataclass_objective_resumes_and_is_told_by_identity_and_arrays(name, tmp_path):
    def go(objective, steps, folder="run"):
        search = SEARCHES[name](objective)
        return run(search, jax.random.key(1), steps=steps, folder=tmp_path / folder)

    go(weighted(), 2)
    resumed, whole = go(weighted(), 4), go(weighted(), 4, "whole")
    jax.tree.map(np.testing.assert_array_equal, resumed.state, whole.state)
    for other in (weighted(sign=-1), weighted(1), problem()):
        with pytest.raises(FileExistsError, match=r"holds a run with another (search|arrays|key)"):
            go(other, 5)


def test_a_dataclass_objective_is_batched():
    objectives = jax.vmap(Weighted)(
        jax.random.normal(jax.random.key(5), (3, *SHAPE)), jnp.full(3, 2.0)
    )
    together = run(batch(SEARCHES["exact-sum"], objectives), jax.random.key(1), steps=2)
    assert len(np.unique(together.best.loss)) == 3


def test_only_functions_without_arrays_are_wrapped():
    for tree in (problem(), weighted()):
        assert as_tree(tree) is tree
    assert jax.tree.leaves(as_tree(on_host)) == []


def test_identities_are_names_unless_there_is_an_attribute():
    def named(mask):
        return jnp.sum(mask), None

    vars(named)["identity"] = "by name, 2"
    assert identity_of(named) == identity_of(Partial(named)) == "by name, 2"
    assert identity_of(weighted(sign=3)) == "weighted, 3"
    assert identity_of(problem()) == f"{__name__}.objective"

    class Unnamed:
        def __call__(self, mask):
            return named(mask)

    assert identity_of(Unnamed()).endswith(".Unnamed")


def test_relaxations_and_optimizers_are_told_apart():
    def identity(relaxation, optimizer=None):
        return str(
            lagrangian(problem(), SHAPE, COUNT, relaxation=relaxation, optimizer=optimizer).identity
        )

    kinds = [make() for make in RELAXATIONS.values()]
    kinds += [perturbed(kind, 1.0) for kind in kinds]
    found = {identity(kind) for kind in kinds}
    optimizers = (optax.adam(0.1), optax.sgd(0.1), optax.sgd(0.1, momentum=0.9))
    found |= {identity(exact_sum(), optimizer) for optimizer in optimizers}
    assert len(found) == len(kinds) + len(optimizers)


KILLED = """
    import sys
    import jax, jax.numpy as jnp
    from jax.tree_util import Partial
    from jaxsparse.search import run as running
    from jaxsparse.search.genetic import GeneticConfig, genetic

    running.CALL_SECONDS = running.SAVE_SECONDS = 0.0

    def loss(weights, mask):
        return jnp.sum(jnp.where(mask, weights, 0)), None

    weights = jax.random.normal(jax.random.key(0), (32, 32))
    search = genetic(Partial(loss, weights), (32, 32), 50, GeneticConfig(10))
    result = running.run(search, jax.random.key(1), steps=30, folder=sys.argv[1])
    print(result.best.loss.item().hex(), bytes(result.best.bits).hex())
"""


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, monkeypatch, capsys):
    """In another process than the one that began it, and as in one that does it all."""
    script = tmp_path / "search.py"
    script.write_text(textwrap.dedent(KILLED))
    command = [sys.executable, str(script), str(tmp_path / "run")]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}

    def saved():
        folder = tmp_path / "run"
        return [int(p.name) for p in folder.glob("*") if p.name.isdecimal()]

    killed = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (saved() and max(saved()) >= 3):
        assert killed.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert max(saved()) < 30
    for name in ("CALL_SECONDS", "SAVE_SECONDS"):
        monkeypatch.setattr(running, name, 0.0)
    found = []
    for folder in ("run", "other"):
        monkeypatch.setattr(sys, "argv", ["search.py", str(tmp_path / folder)])
        runpy.run_path(str(script), run_name="__main__")
        found.append(capsys.readouterr().out)
    resumed, whole = found
    assert resumed == whole and len(whole) > 20


class Count(NamedTuple):
    value: jax.Array
    best: Best


class CountInfo(NamedTuple):
    best: jax.Array
    step_key: jax.Array


def test_a_search_of_ones_own_in_ten_lines():
    """Any pair of functions will do; and each step gets the key of its number."""

    def init(key):
        return Count(jnp.int32(0), empty_archive(jnp.zeros(3, jnp.uint8), None))

    def step(key, state):
        mask = random_mask(key, SHAPE, COUNT)
        loss, aux = problem()(mask)
        best = archive(state.best, pack_mask(mask)[None], loss[None], aux)
        return Count(state.value + 1, best), CountInfo(best.loss, jax.random.key_data(key))

    result = run(Search(init, step), jax.random.key(3), steps=5)
    assert result.state.value == 5
    expected = [jax.random.fold_in(jax.random.key(3), i) for i in range(5)]
    np.testing.assert_array_equal(
        result.history["step_key"], [jax.random.key_data(key) for key in expected]
    )
    assert int(result.mask(SHAPE).sum()) == COUNT


@pytest.mark.slow
def test_islands_are_independent():
    search = SEARCHES["genetic"](problem())
    islands = run(batch(lambda _: search, jnp.arange(3)), jax.random.key(1), steps=2)
    assert islands.mask(SHAPE).shape == (3, *SHAPE)
    assert (islands.mask(SHAPE).sum((1, 2)) == COUNT).all()
    assert len({bytes(np.asarray(population)) for population in islands.state.population}) == 3
    assert islands.evaluations == 3 * run(search, jax.random.key(1), steps=2).evaluations


def test_host_objectives_are_not_batched():
    with pytest.raises(ValueError, match="leaves the device"):
        batch(lambda _: SEARCHES["host"](problem()), jnp.arange(2))


def test_no_steps_give_the_first_state():
    result = run(SEARCHES["genetic"](problem()), jax.random.key(1), steps=0)
    assert result.steps == 0 and result.history == {} and np.isfinite(result.best.loss)


@pytest.mark.parametrize("wrong", [{"steps": -1}, {"steps": 1, "minutes": -1.0}])
def test_negative_budgets_are_refused(wrong):
    with pytest.raises(ValueError, match="negative"):
        run(SEARCHES["genetic"](problem()), jax.random.key(1), **wrong)


def test_progress_is_shown_when_asked_for(capsys):
    run(SEARCHES["genetic"](problem()), jax.random.key(1), steps=4, progress=True, label="mine")
    shown = capsys.readouterr().err
    assert "mine" in shown and "best" in shown and "4/4" in shown
    run(SEARCHES["genetic"](problem()), jax.random.key(1), steps=4)
    assert capsys.readouterr().err == ""


def test_archive_keeps_aux_with_the_mask():
    best = empty_archive(jnp.zeros(1, jnp.uint8), jnp.float32(0))
    bits = jnp.array([[1], [2], [3]], jnp.uint8)
    best = archive(best, bits, jnp.array([3.0, jnp.nan, 2.0]), jnp.array([10.0, 20.0, 30.0]))
    assert (best.bits[0], best.loss, best.aux) == (3, 2.0, 30.0)
    best = archive(best, bits, jnp.array([2.0, 5.0, 5.0]), jnp.array([1.0, 2.0, 3.0]))
    assert (best.bits[0], best.loss, best.aux) == (3, 2.0, 30.0)


def test_checkpoints_say_what_they_hold(tmp_path):
    run(SEARCHES["genetic"](problem()), jax.random.key(1), steps=3, folder=tmp_path / "run")
    from jaxsparse.checkpoint import Checkpoints

    checkpoints = Checkpoints(tmp_path / "run")
    found = checkpoints.newest()
    checkpoints.close()
    assert found and found.step == 3 and {"seconds"} == set(found.data)
    assert json.dumps(found.settings)
