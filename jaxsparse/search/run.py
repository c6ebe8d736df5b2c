"""Running searches in compiled calls, with progress, budgets and checkpoints between them."""

import functools
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Bool
from tqdm import tqdm

from jaxsparse import manifest, sharding
from jaxsparse.masks import unpack_mask
from jaxsparse.search.contract import Best, Search, as_tree
from jaxsparse.types import PRNGKey

# A compiled call of `run` takes about as long: short enough for a bar, budgets and Ctrl-C.
CALL_SECONDS = 3.0
# and has at most as many steps, unless everything is one call.
CALL_STEPS = 500
# Between two checkpoints.
SAVE_SECONDS = 60.0
# What `init` folds into the key; steps fold in their number.
_INIT = np.uint32(2**32 - 1)


class Result(NamedTuple):
    """How a run ended."""

    state: Any
    first: np.ndarray
    """Loss of the archive before the first step."""
    history: dict[str, np.ndarray]
    """The infos' fields, stacked: arrays on the host with the number of steps first."""
    steps: int
    evaluations: int
    seconds: float
    """Of this run and those that it resumed."""

    @property
    def best(self) -> Best:
        """The archive of the last state."""
        return self.state.best

    def mask(self, shape: tuple[int, ...]) -> Bool[Array, "..."]:
        """Unpacks the best mask; for a batch, with its axis first."""
        bits = self.best.bits
        unpack = functools.partial(unpack_mask, shape=shape)
        return unpack(bits) if bits.ndim == 1 else jax.vmap(unpack)(bits)


def batch(make: Callable[[Any], Search], data: Any) -> Search:
    """Makes independent searches run side by side, by ``vmap``: over clips, settings or islands.

    States, infos and results have the batch as their first axis. Each search gets a key of its
    own, split from the one that `init` or `step` is given. Each evaluates a chunk at a time, so
    that on a large batch `chunk_bytes` of each should be less. On several devices each takes its
    share of the batch (`jaxsparse.sharding`).

    Args:
        make: Builds a search from one entry of `data`; called while being traced. Arrays that it
            closes over, such as a network's parameters, are shared and become constants.
        data: A tree of arrays with a common leading axis; ``jnp.arange(n)`` where all are alike.

    Raises:
        ValueError: If the search's objective leaves the device.
    """
    first = make(jax.tree.map(lambda leaf: leaf[0], data))
    if first.on_host:
        raise ValueError("searches whose objective leaves the device can't be batched")
    n = jax.tree.leaves(data)[0].shape[0]
    searches = _Batch(data, make)
    return Search(
        Partial(_init_batch, searches),
        Partial(_step_batch, searches),
        n * first.initial_evaluations,
        n * first.evaluations,
        identity=first.identity,
    )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Batch:
    data: Any
    make: Callable[[Any], Search] = field(metadata={"static": True})

    def split(self, key: PRNGKey) -> Array:
        return jax.random.split(key, jax.tree.leaves(self.data)[0].shape[0])


def _init_batch(searches: _Batch, key: PRNGKey) -> Any:
    each = jax.vmap(lambda entry, own: searches.make(entry).init(own))
    return each(*sharding.split((searches.data, searches.split(key))))


def _step_batch(searches: _Batch, key: PRNGKey, state: Any) -> tuple[Any, Any]:
    advance = jax.vmap(lambda entry, own, state: searches.make(entry).step(own, state))
    return advance(*sharding.split((searches.data, searches.split(key), state)))


def run(
    search: Search,
    key: PRNGKey,
    *,
    steps: int,
    minutes: float | None = None,
    evaluations: int | None = None,
    one_call: bool = False,
    folder: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
    label: str = "search",
) -> Result:
    """Runs a search, in compiled calls of many steps each.

    Step i uses ``fold_in(key, i)``, so that the result does not depend on how steps are grouped,
    and a run that was stopped goes on to the same one.

    Args:
        search: What to run.
        key: Of the run.
        steps: Steps after `init`.
        minutes: No further call is begun after this time, counted from the end of the first one, of
            one step, which compiles; what was begun is finished.
        evaluations: No step is begun that would evaluate more masks than these in all.
        one_call: All steps in a single call: without progress, and with checkpoints and the budget
            in minutes at its end alone.
        folder: For checkpoints, every minute and at the end; a run in it is resumed, and one that
            is further is returned as it is. Where the objective leaves the device, resuming scores
            a population anew, for its structure.
        progress: Show a bar; by default where standard error is a terminal.
        label: Of the bar.

    Returns:
        The last state, the history and what it took.

    Raises:
        CheckpointError: If `folder` has no checkpoint that is whole, or one of another search.
        FileExistsError: If `folder` holds a run of another search, clip, count or key, as far as
            arrays, settings and functions' identities show it.
        OSError: If a checkpoint can't be written.
        ValueError: If `steps`, `minutes` or `evaluations` are negative.
    """
    if steps < 0 or (minutes or 0) < 0 or (evaluations or 0) < 0:
        raise ValueError("steps, minutes and evaluations can't be negative")
    if evaluations is not None:
        room = max(evaluations - search.initial_evaluations, 0)
        steps = min(steps, room // max(search.evaluations, 1))
    with _Saved(folder, search, key) as saved:
        loop = _Loop(search, key, steps, one_call)
        loop.begin(saved)
        bar = tqdm(
            total=steps,
            initial=loop.step,
            desc=label,
            unit="step",
            disable=True if not sharding.is_main() else None if progress is None else not progress,
        )
        with bar:
            for done in loop.calls(minutes):
                bar.update(done)
                best = np.mean(sharding.fetch(loop.state.best.loss))
                bar.set_postfix_str(f"best loss {float(best):.4g}")
                saved.keep(loop, final=loop.step == steps)
        saved.keep(loop, final=True)
    return loop.result()


class _Loop:
    """A run's state and history, advanced call by call."""

    def __init__(self, search: Search, key: PRNGKey, steps: int, one_call: bool) -> None:
        self.search, self.key, self.steps = search, key, steps
        # The room for infos, which is the same whatever the steps, so that it is compiled once.
        self.call_steps = max(steps, 1) if one_call else CALL_STEPS
        self.one_call = one_call
        self.step = 0
        self.seconds = 0.0
        self.state: Any = None
        self.first = np.asarray(np.inf)
        self.history: list[dict[str, np.ndarray]] = []

    def begin(self, saved: "_Saved") -> None:
        init = as_tree(self.search.init)
        if not self.search.on_host:
            init = functools.partial(_init, init)
        # Steps fold in their number from 0 on.
        key = jax.random.fold_in(self.key, _INIT)
        if found := saved.newest():
            like = init(key) if self.search.on_host else jax.eval_shape(init, key)
            self.step, self.seconds = found.step, float(found.data["seconds"])
            state, self.first, history = saved.restore(found, like)
            self.state = sharding.place_whole(state)
            self.history = [history] if history else []
            return
        began = time.perf_counter()
        self.state = jax.block_until_ready(init(key))
        self.first = np.asarray(sharding.fetch(self.state.best.loss))
        self.seconds = time.perf_counter() - began

    def calls(self, minutes: float | None) -> Iterator[int]:
        """Advances call by call; yields the steps of each call."""
        advance = self._on_host if self.search.on_host else self._compiled()
        n = self.call_steps if self.one_call else 1
        began: float | None = None
        while self.step < self.steps:
            n = min(n, self.steps - self.step)
            call_began = time.perf_counter()
            advance(n)
            took = time.perf_counter() - call_began
            self.seconds += took
            self.step += n
            yield n
            # The first call compiles.
            began = began or time.perf_counter()
            over = minutes is not None and time.perf_counter() - began >= 60 * minutes
            if sharding.any_process(over):
                return
            n = min(max(int(n * CALL_SECONDS / max(took, 1e-9)), 1), 2 * n, self.call_steps)
            n = sharding.of_main(n)

    def _compiled(self) -> Callable[[int], None]:
        step = as_tree(self.search.step)
        _, info = jax.eval_shape(step, self.key, self.state)
        empty = jax.tree.map(lambda x: jnp.zeros((self.call_steps, *x.shape), x.dtype), info)

        def advance(n: int) -> None:
            self.state, infos = _advance(
                step, self.key, self.state, self.step, self.step + n, empty
            )
            values = jax.device_get(sharding.fetch(infos))._asdict()
            self.history.append({name: value[:n] for name, value in values.items()})

        return advance

    def _on_host(self, n: int) -> None:
        for i in range(self.step, self.step + n):
            key = jax.random.fold_in(self.key, np.uint32(i))
            self.state, info = self.search.step(key, self.state)
            self.history.append({k: np.asarray(v)[None] for k, v in info._asdict().items()})

    def stacked(self) -> dict[str, np.ndarray]:
        """Joins the history so far, its fields in order; empty before the first step."""
        parts = self.history
        if not parts:
            return {}
        self.history = [{k: np.concatenate([part[k] for part in parts]) for k in sorted(parts[0])}]
        return self.history[0]

    def result(self) -> Result:
        evaluations = self.search.initial_evaluations + self.step * self.search.evaluations
        state = sharding.fetch(self.state)
        return Result(state, self.first, self.stacked(), self.step, evaluations, self.seconds)


@jax.jit
def _init(init: Callable, key: PRNGKey) -> Any:
    return init(key)


@functools.partial(jax.jit, donate_argnums=2)
def _advance(
    step: Callable, key: PRNGKey, state: Any, start: Any, stop: Any, infos: Any
) -> tuple[Any, Any]:
    """Advances from step `start` to `stop`, both traced: calls of any length compile once."""

    def body(i: Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        state, infos = carry
        state, info = step(jax.random.fold_in(key, i.astype(jnp.uint32)), state)
        return state, jax.tree.map(lambda all, one: all.at[i - start].set(one), infos, info)

    return lax.fori_loop(start, stop, body, (state, infos))


class _Saved:
    """A run's checkpoints, or none; a context."""

    def __init__(self, folder: str | os.PathLike[str] | None, search: Search, key: PRNGKey) -> None:
        self._checkpoints: Any = None
        if folder is not None:
            # Orbax takes seconds to import.
            from jaxsparse.checkpoint import Checkpoints

            self._checkpoints = Checkpoints(folder)
            self._folder = Path(folder)
            self._manifest = _manifest(search, key)
        self._last = time.perf_counter()
        self._step: int | None = None

    def __enter__(self) -> "_Saved":
        return self

    def __exit__(self, *_: object) -> None:
        if self._checkpoints:
            self._checkpoints.close()

    def newest(self) -> Any:
        found = self._checkpoints.newest(_check_saved) if self._checkpoints else None
        if found:
            manifest.check_same(self._folder, found.settings, self._manifest)
        self._step = found.step if found else None
        return found

    def restore(self, found: Any, like: Any) -> tuple[Any, np.ndarray, dict[str, np.ndarray]]:
        history = {
            name.removeprefix("history."): value
            for name, value in found.state.items()
            if name.startswith("history.")
        }
        first = found.state["first"]
        tree = found.restore({"state": like, "first": first, "history": history})
        return jax.tree.map(jnp.asarray, tree["state"]), first, history

    def keep(self, loop: _Loop, *, final: bool) -> None:
        if not self._checkpoints or self._step == loop.step:
            return
        due = final or time.perf_counter() - self._last >= SAVE_SECONDS
        if not sharding.any_process(due):
            return
        state = {
            "state": sharding.fetch(loop.state),
            "first": loop.first,
            "history": loop.stacked(),
        }
        if sharding.is_main():
            self._checkpoints.save(loop.step, state, {"seconds": loop.seconds}, self._manifest)
        self._last, self._step = time.perf_counter(), loop.step


def _check_saved(found: Any) -> None:
    """Raises anything where a checkpoint lacks what resuming reads beside the state."""
    np.shape(found.state["first"])
    float(found.data["seconds"])


def _manifest(search: Search, key: PRNGKey) -> dict[str, str]:
    """Digests of all that determines a run but the arrays of closures."""
    functions = as_tree(search.init), as_tree(search.step)
    parts = {"search": search[2:], "arrays, such as clip, weights or count": functions, "key": key}
    return {name: _digest(part) for name, part in parts.items()}


def _digest(tree: Any) -> str:
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
