"""All ways to a clip's mask beside each other: quality against evaluations and seconds.

``python -m eval.searches --data $JAXSPARSE_DATA/valid --clips 4 --out RUN`` takes the first 77,276
samples of each clip, one decoder for all masks, puts kept bins back and keeps the original phases.
Methods are one-shot policies, by name, and searches, which begin at the mask of the policy --start
unless they are the thesis'; "A-then-B" begins B at what A found with half of the evaluations. A
search is scored after at most so many evaluations (--evaluations), each a pass through the decoder,
with or without its gradient; "done" is how many it made. Seconds leave compilation out. Of the
thesis' genetic search the first population is evaluated in any case, 50 masks. What a relaxation
ends with is scored as well, soft and rounded, beside the best of its roundings; an annealed one
becomes steeper by equal factors until its evaluations are used up, so that it ends nearly hard.
Searches by a derivative take that of putting bins back alone, those named "annealed-whole" that
through the decoder, too, which takes twice as long.

Searches minimise --loss, a sum of terms or a name as for training. The scores are those of `pesq`
and `pystoi`, in both bands, and once more with a quarter of a second of silence before both sounds,
since a search may game where a metric's frames lie; beside them is what the surrogates say. RUN
gets rows.csv (resumed by the same command), table.md, summary.json and quality-*.png, and the masks
found, which `jaxsparse compress --mask` takes.
"""

import functools
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from eval import searches_report
from eval.command import parse_settings, run_command
from eval.reconstruction import CONFIG, make_synthesis, mask_key
from eval.report import SCORES
from eval.rows import Row, RowFile
from jaxsparse import pretrained
from jaxsparse.contracts import Decoder
from jaxsparse.data.clips import Clip, find_clips
from jaxsparse.data.folder import CLIP_SAMPLES
from jaxsparse.errors import AudioError
from jaxsparse.mask_files import save_mask
from jaxsparse.masks import count_observed
from jaxsparse.metrics import Metric, ScorePool, pesq_surrogate
from jaxsparse.metrics.surrogate import fingerprint
from jaxsparse.objectives import Derivative, mixture_objective
from jaxsparse.policies import POLICIES
from jaxsparse.pretrained import Pretrained
from jaxsparse.reconstruct import reconstruct_spectrogram
from jaxsparse.search.contract import Search
from jaxsparse.search.genetic import THESIS, GeneticConfig, genetic
from jaxsparse.search.lagrangian import hard_mask, soft_mask
from jaxsparse.search.relaxations import RELAXATIONS, SOFT, Relaxation, geometric
from jaxsparse.search.run import Result
from jaxsparse.search.run import run as run_search
from jaxsparse.search.swaps import SwapConfig, swaps
from jaxsparse.searched import UPDATES_PER_STEP, relaxed
from jaxsparse.settings import SettingsError, check_least
from jaxsparse.spectrogram import log_power
from jaxsparse.terms import parse_loss
from jaxsparse.transforms.stft import stft
from jaxsparse.types import SAMPLE_RATE, HardMask, PRNGKey

# Shifts the sound against the frame grids of PESQ and the STFT.
_SILENCE = np.zeros(SAMPLE_RATE // 4, np.float32)
MOVED: tuple[Metric, ...] = ("pesq_wb",)
# What searches see of PESQ.
SURROGATES: dict[str, Literal["wb", "nb"]] = {"surrogate_wb": "wb", "surrogate_nb": "nb"}
COLUMNS: dict[str, Callable[[str], Any]] = {
    "clip": str,
    "sparsity": float,
    "method": str,
    "evaluations": int,
    "done": int,
    "seconds": float,
    "loss": float,
    "mse": float,
    **dict.fromkeys(SCORES, float),
    **{f"moved_{metric}": float for metric in MOVED},
    **dict.fromkeys(SURROGATES, float),
}
# A projection is hard already where the others are nearly so.
_STEEPNESS = {"projection": 1.0}
_STEEPNESS_OF_OTHERS = 8.0
# Times the steepness, at the first and at the last update of an annealing.
_ANNEALED = (2.0, 25.0)


class Problem(NamedTuple):
    """What a search is made for."""

    objective: Callable[[Derivative], Any]
    shape: tuple[int, int]
    n_ones: int
    start: HardMask
    """To begin at."""
    one_shot: HardMask
    """Masks of several policies, S by F by T."""
    evaluations: int = 0
    """How many there are for the search."""


def _swaps(exchange: Any, problem: Problem) -> Search:
    first = SwapConfig.first if exchange == "regrow" else 0.02
    return swaps(
        problem.objective("put-back"),
        problem.shape,
        problem.n_ones,
        SwapConfig(exchange, first=first),
        start=problem.start,
    )


def _relaxation(method: str, evaluations: int) -> Relaxation:
    """That of a method, for so many evaluations."""
    kind, name = _kind_and_name(method)
    steepness = _STEEPNESS.get(name.removeprefix("straight-through-"), _STEEPNESS_OF_OTHERS)
    if kind == "relaxed":
        return RELAXATIONS[name](steepness=steepness)
    # The start is evaluated, and what each step ends with, soft and rounded.
    steps = (evaluations - 1) // (UPDATES_PER_STEP + 2)
    first, last = (steepness * factor for factor in _ANNEALED)
    return RELAXATIONS[name](steepness=geometric(first, last, max(steps, 1) * UPDATES_PER_STEP))


def _kind_and_name(method: str) -> tuple[str, str]:
    """Says how a relaxation is searched with, and which it is."""
    kind = next(
        kind for kind in ("annealed-whole", "annealed", "relaxed") if method.startswith(kind)
    )
    return kind, method.removeprefix(f"{kind}-")


def _relaxed(method: str, problem: Problem) -> Search:
    relaxation = _relaxation(method, problem.evaluations)
    whole = _kind_and_name(method)[0] == "annealed-whole"
    objective = problem.objective("whole" if whole else "put-back")
    return relaxed(objective, problem.shape, problem.n_ones, problem.start, relaxation)


def _genetic(config: GeneticConfig, begins: bool, problem: Problem) -> Search:
    return genetic(
        problem.objective("whole"),
        problem.shape,
        problem.n_ones,
        config,
        start=jnp.concatenate([problem.start[None], problem.one_shot]) if begins else None,
    )


_RELAXED = tuple(f"relaxed-{name}" for name in RELAXATIONS)
_ANNEALINGS = tuple(f"{kind}-{name}" for kind in ("annealed", "annealed-whole") for name in SOFT)
SEARCHES: dict[str, Callable[[Problem], Search]] = {
    "swaps": functools.partial(_swaps, "regrow"),
    "swaps-steepest": functools.partial(_swaps, "steepest"),
    "swaps-nonlocal": functools.partial(_swaps, "nonlocal"),
    "swaps-random": functools.partial(_swaps, "random"),
    **{name: functools.partial(_relaxed, name) for name in (*_RELAXED, *_ANNEALINGS)},
    # A population of 50 would be most of what there is to evaluate.
    "genetic": functools.partial(
        _genetic, GeneticConfig(population_size=16, crossover="blocks"), True
    ),
    "genetic-thesis": functools.partial(_genetic, THESIS, False),
}
"""Searches by name; `genetic` begins with the masks of several policies as well."""
_BEST_RELAXATION = "relaxed-straight-through-exact-sum"
HYBRIDS: dict[str, tuple[str, str]] = {
    "relaxed-then-swaps": (_BEST_RELAXATION, "swaps"),
    "swaps-then-relaxed": ("swaps", _BEST_RELAXATION),
    "relaxed-then-genetic": (_BEST_RELAXATION, "genetic"),
}
"""Two searches by name, of which the second begins at what the first found."""
METHODS = (*POLICIES, *SEARCHES, *HYBRIDS)
# Searches through soft masks, and what is scored of their ends.
_SOFT = (*(f"relaxed-{name}" for name in SOFT), *_ANNEALINGS)
ENDS = ("soft", "rounded")


@dataclass(frozen=True)
class Settings:
    """Settings of a comparison of ways to masks."""

    data: Path
    """Folder of clips, searched in depth, or a prepared data set."""
    out: Path
    """Folder for all results; a run in it is resumed."""
    split: str | None = None
    """Split of a prepared data set, by default train."""
    clips: int | None = None
    """Only so many clips, evenly spread over the folder."""
    methods: tuple[str, ...] = ("learned", "swaps", _BEST_RELAXATION, "genetic")
    """Policies and searches by name; for an unknown one the names are listed."""
    sparsity: tuple[float, ...] = (0.95,)
    """Shares of bins that are hidden."""
    evaluations: tuple[int, ...] = (25, 50, 100)
    """A search is scored after so many, each."""
    loss: str = "quality"
    """What is searched for: terms, as mse+10*stoi, or the name of a mixture."""
    decoder: str = "unet"
    """What fills in: a name, or the path of a .safetensors file."""
    start: str = "learned"
    """Policy whose mask searches begin at."""
    n_samples: int = CLIP_SAMPLES
    """Length of a clip in samples at 16 kHz; longer ones are cut, shorter ones padded."""
    seed: int = 0
    """Of masks and searches, with the clip's name."""
    workers: int | None = None
    """Processes that compute scores; one for each CPU by default."""
    json: bool = False
    """Print the JSON summary instead of the table."""


class Context(NamedTuple):
    """What all tasks share."""

    settings: Settings
    network: Pretrained
    pool: ScorePool
    compiled: set[str]
    """Searches that have run, so that timing them again leaves compilation out."""


class Task(NamedTuple):
    """One method on one clip at one sparsity."""

    clip: Clip
    sparsity: float
    method: str

    @property
    def name(self) -> str:
        """Of its files."""
        clip = "-".join(Path(self.clip.name).with_suffix("").parts)
        return f"{clip}-{100 * self.sparsity:g}-{self.method}"


def run(settings: Settings) -> dict[str, Any]:
    """Makes all masks, scores them, and returns the summary.

    Raises:
        AudioError: If a clip can't be read.
        BlockingIOError: If another process uses `settings.out`.
        FileExistsError: If `settings.out` holds a run with other settings.
        OSError: If a clip can't be found or the results can't be written.
        RowsError: If what is in `settings.out` is damaged.
        SettingsError: If a setting is out of range.
        WeightsError: If a network's file is damaged.
    """
    _check(settings)
    network = pretrained.load_decoder(settings.decoder)
    if network.decoder.on_host:
        raise SettingsError(f"the decoder {settings.decoder} runs on the host, without gradients")
    identity = {name: getattr(settings, name) for name in ("loss", "start", "n_samples", "seed")}
    identity |= {"decoder": Path(settings.decoder).name, "sha256": network.card.sha256}
    # What searches climb.
    identity |= {"calibration": fingerprint()}
    with RowFile(settings.out, COLUMNS, identity) as file, ScorePool(settings.workers) as pool:
        done = {_key(row) for row in file.rows}
        tasks = [task for task in _tasks(settings) if _missing(settings, task, done)]
        waiting: list[Row] = []
        context = Context(settings, network, pool, set())
        file.begin()
        for task in tqdm(tasks, unit="search", disable=None):
            made = list(_solve(context, task))
            # A mask is scored while the next one is searched for.
            file.add(*map(_finished, waiting))
            waiting = [row for row in made if _key(row) not in done]
        file.add(*map(_finished, waiting))
        summary = searches_report.summarize(file.rows, identity)
        searches_report.write(summary, settings.out)
    return summary


def _check(settings: Settings) -> None:
    check_least(settings, dict.fromkeys(("clips", "workers"), 1))
    # What `pesq` takes at least.
    check_least(settings, {"n_samples": SAMPLE_RATE // 4})
    for method in settings.methods:
        if method not in METHODS:
            raise SettingsError(f"no method is named {method!r}; there are {', '.join(METHODS)}")
    if settings.start not in POLICIES:
        known = ", ".join(POLICIES)
        raise SettingsError(f"no policy is named {settings.start!r}; there are {known}")
    if not all(0 < s < 1 for s in settings.sparsity):
        raise SettingsError("sparsity needs numbers between 0 and 1")
    if not settings.evaluations or min(settings.evaluations) < 1:
        raise SettingsError("evaluations needs whole numbers above 0")
    try:
        parse_loss(settings.loss)
    except ValueError as error:
        raise SettingsError(str(error)) from error


def _tasks(settings: Settings) -> list[Task]:
    clips = find_clips(settings.data, settings.split)
    if settings.clips is not None and settings.clips < len(clips):
        chosen = np.linspace(0, len(clips) - 1, settings.clips).round().astype(int)
        clips = [clips[i] for i in chosen]
    return [Task(*each) for each in itertools.product(clips, settings.sparsity, settings.methods)]


def _key(row: Row) -> tuple:
    return (row["clip"], row["sparsity"], row["method"], row["evaluations"])


def _missing(settings: Settings, task: Task, done: set[tuple]) -> bool:
    budgets = (0,) if task.method in POLICIES else settings.evaluations
    needed = [(task.method, n) for n in budgets]
    if task.method in _SOFT:
        needed += [(f"{task.method}-{end}", max(budgets)) for end in ENDS]
    return any((task.clip.name, task.sparsity, *each) not in done for each in needed)


class Sound(NamedTuple):
    """A clip [N], its spectrum [F, T] and that in dB."""

    signal: np.ndarray
    spectrum: jax.Array
    dense: jax.Array


@functools.lru_cache(maxsize=1)
def _read(clip: Clip, n_samples: int) -> Sound:
    try:
        signal = clip.read(n_samples)
    except AudioError as error:
        raise AudioError(f"{clip.name}: {error}") from error
    spectrum = _transform(jnp.asarray(signal))
    return Sound(signal, spectrum, log_power(spectrum))


@jax.jit
def _transform(signal: jax.Array) -> jax.Array:
    return stft(signal, CONFIG)


def _solve(context: Context, task: Task) -> Iterator[Row]:
    """Rows of a task's masks, with futures in the place of scores."""
    settings, network = context.settings, context.network
    sound = _read(task.clip, settings.n_samples)
    key = mask_key(settings.seed, task.clip.name)
    shape = sound.dense.shape[0], sound.dense.shape[1]
    count = count_observed(shape, task.sparsity)
    row: Row = {"clip": task.clip.name, "sparsity": task.sparsity, "method": task.method}
    if task.method in POLICIES:
        make = _policy(task.method)
        jax.block_until_ready(make(key, sound.dense, count))
        began = time.perf_counter()
        mask = jax.block_until_ready(make(key, sound.dense, count))
        found = {
            "evaluations": 0,
            "done": 0,
            "seconds": time.perf_counter() - began,
            "loss": float("nan"),
        }
        yield row | found | _score(context, task, sound, mask)
        return
    others = [name for name in ONE_SHOT if name != settings.start]
    start, *one_shot = [
        _policy(name)(key, sound.dense, count) for name in (settings.start, *others)
    ]

    def objective(derivative: Derivative) -> Any:
        return mixture_objective(
            network.decoder,
            network.params,
            sound.dense,
            jnp.angle(sound.spectrum),
            sound.signal,
            loss=settings.loss,
            derivative=derivative,
            config=CONFIG,
        )

    most = max(settings.evaluations)
    problem = Problem(objective, shape, count, start, jnp.stack(one_shot))
    for budget, result in _search(context, problem, task.method, key):
        mask = result.mask(shape)
        row |= {"evaluations": budget, "done": result.evaluations, "seconds": result.seconds}
        yield row | {"loss": float(result.best.loss)} | _score(context, task, sound, mask)
        if budget == most:
            for name, loss, mask in _ends(task.method, most, result, count):
                end = task._replace(method=f"{task.method}-{name}")
                scores = _score(context, end, sound, mask)
                yield row | {"method": end.method, "loss": loss} | scores


def _ends(
    method: str, evaluations: int, result: Result, count: int
) -> Iterator[tuple[str, float, jax.Array]]:
    """Names, losses and masks that a relaxation of soft masks ended with."""
    if method in _SOFT and result.steps:
        soft = soft_mask(_relaxation(method, evaluations), result.state, count)
        losses = [float(result.history[name][-1]) for name in ("loss", "hard_loss")]
        yield from zip(ENDS, losses, (soft, hard_mask(result.state, count)), strict=True)


def _search(
    context: Context, problem: Problem, method: str, key: PRNGKey
) -> Iterator[tuple[int, Result]]:
    """Yields what a method finds with each number of evaluations, the fewest first."""
    first, *then = HYBRIDS.get(method, (method,))
    # The policies draw by the key itself.
    keys = jax.random.split(jax.random.fold_in(key, 1))
    with tempfile.TemporaryDirectory() as folder:
        for budget in sorted(context.settings.evaluations):
            share = budget // 2 if then else budget
            # For more evaluations an annealing is another search from its first update on.
            goes_on = None if first in _ANNEALINGS else folder
            result = _advance(context, problem, first, keys[0], share, goes_on)
            for name in then:
                begun = problem._replace(start=result.mask(problem.shape))
                after = _advance(context, begun, name, keys[1], budget - result.evaluations)
                result = after._replace(
                    evaluations=result.evaluations + after.evaluations,
                    seconds=result.seconds + after.seconds,
                )
            yield budget, result


def _advance(
    context: Context,
    problem: Problem,
    name: str,
    key: PRNGKey,
    budget: int,
    folder: str | None = None,
) -> Result:
    """Runs a search, and goes on with it where it was if there is a folder."""
    search = SEARCHES[name](problem._replace(evaluations=budget))
    if name not in context.compiled:
        run_search(search, key, steps=1, progress=False)
        context.compiled.add(name)
    return run_search(search, key, steps=budget, evaluations=budget, folder=folder, progress=False)


# What a genetic search begins with.
ONE_SHOT = ("learned", "contrast-70", "mixed", "masking-50", "densification")


@functools.lru_cache
def _policy(name: str) -> Callable[..., jax.Array]:
    return jax.jit(POLICIES[name])


def _score(context: Context, task: Task, sound: Sound, mask: jax.Array) -> Row:
    """Writes a mask unless it is soft; returns its MSE, and futures of its scores."""
    settings, network, pool = context.settings, context.network, context.pool
    if mask.dtype == bool:
        path = settings.out / "masks" / f"{task.name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_mask(path, np.asarray(mask))
    estimate = _complete(network.decoder)(network.params, sound.dense, mask)
    synthesize = make_synthesis(("all",), settings.n_samples, 0)
    made = synthesize(
        sound.spectrum[None],
        sound.dense[None],
        # The bins are put back already, which soft masks need.
        jnp.zeros((1, *mask.shape), bool),
        estimate[None],
        mask_key(0, task.clip.name)[None],
        False,
    )
    errors, _, sounds = jax.device_get(made)
    heard = sound.signal, sounds["all"][0]
    moved = tuple(np.concatenate([_SILENCE, each]) for each in heard)

    def submit(metric: Metric, pair: tuple[Any, ...]) -> Any:
        return pool.submit(metric, reference=pair[0], estimate=pair[1], sample_rate=SAMPLE_RATE)

    pair = {"reference": heard[0][None], "estimate": heard[1][None], "sample_rate": SAMPLE_RATE}
    row: Row = {"mse": float(errors[0])} | {metric: submit(metric, heard) for metric in SCORES}
    row |= {f"moved_{metric}": submit(metric, moved) for metric in MOVED}
    return row | {
        name: float(pesq_surrogate(**pair, band=band)[0]) for name, band in SURROGATES.items()
    }


@functools.lru_cache
def _complete(decoder: Decoder) -> Callable:
    return jax.jit(functools.partial(reconstruct_spectrogram, decoder, keep_observed=True))


def _finished(row: Row) -> Row:
    return {
        name: value.result().value if hasattr(value, "result") else value
        for name, value in row.items()
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs from the command line; returns the exit code of `run_command`."""

    def work() -> str:
        settings = parse_settings(Settings, "eval.searches", __doc__, argv)
        summary = run(settings)
        return json.dumps(summary, indent=1) if settings.json else searches_report.table(summary)

    return run_command("eval.searches", work)


if __name__ == "__main__":
    sys.exit(main())
