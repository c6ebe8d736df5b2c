"""How much searching for a clip's mask gains: the thesis' section 4.4.

``python -m eval.masks --clip FILE --sparsity 0.8 0.85 0.9 0.95 --out RUN`` takes a clip as it is,
up to 77,276 samples, and at each sparsity the network that was trained for random masks of it. The
masks: a random one, that of `eval.reconstruction`, as baseline; the constant soft mask, which hides
nothing; those of genetic searches, and of their controls without reproduction; and that of the
Lagrangian relaxation as it is (soft), rounded (binary), and the best of its roundings on the way
(best). Kept bins are not put back, as in the thesis, unless --keep-observed is given. Each mask is
scored with all the original phases, and with those of bins at most 60 dB below the loudest one.

--fitness says what is searched for, one search for each: the lowest MSE (mse), the highest PESQ
(pesq), the highest differentiable surrogate of PESQ (surrogate), or a sum of both bands' surrogates
and STOI (quality), which is harder to game; the last two stay on the device. The relaxation needs a
gradient, so it leaves PESQ out. Surrogates only guide a search: the tables' PESQ is that of `pesq`
for its masks too, and a section of its own says how far the surrogate is from it.

RUN gets tables 4.1 to 4.3 beside the thesis' values (tables.md, tables.json, table-*.csv) and
figures 4.11 to 4.13; rows.csv, one line for each mask and choice of phases; masks, as bits;
history, the searches' course; and searches, their checkpoints. A search that was stopped, or that
--budget cut short, goes on where it was when the same command is given again. More clips,
sparsities, methods, fitnesses, generations and minutes may be asked of a run that is there.
"""

import csv
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np

from eval import masks_report
from eval.command import parse_settings, run_command
from eval.masks_report import DEFAULTS, MEASURES, RELAXATION_SEARCHES, relaxed
from eval.reconstruction import CONFIG, make_synthesis, mask_key
from eval.report import SCORES, Phases
from eval.rows import Row, RowFile, one_of, parse_reasons
from jaxsparse import manifest, pretrained, sharding
from jaxsparse.contracts import Decoder
from jaxsparse.data.clips import FileClip
from jaxsparse.data.folder import CLIP_SAMPLES
from jaxsparse.errors import AudioError
from jaxsparse.files import atomic_write, portable_path
from jaxsparse.masks import count_observed, pack_mask, random_mask
from jaxsparse.metrics import ScorePool
from jaxsparse.nn.sparse_cnn import SparseCNNConfig
from jaxsparse.objectives import (
    mixture_objective,
    mse_objective,
    pesq_objective,
    surrogate_objective,
)
from jaxsparse.pretrained import Pretrained
from jaxsparse.reconstruct import reconstruct_spectrogram
from jaxsparse.search.contract import HostObjective, Objective, Search
from jaxsparse.search.genetic import THESIS, WITHOUT_REPRODUCTION, genetic
from jaxsparse.search.lagrangian import (
    LagrangianSettings,
    constant_mask,
    hard_mask,
    kkt_residual,
    lagrangian,
    soft_mask,
)
from jaxsparse.search.relaxations import RELAXATIONS
from jaxsparse.search.run import Result
from jaxsparse.search.run import run as run_search
from jaxsparse.settings import SettingsError, check_least
from jaxsparse.sharding import LocalDevices
from jaxsparse.spectrogram import log_power
from jaxsparse.transforms.stft import stft
from jaxsparse.types import SAMPLE_RATE

Method: TypeAlias = Literal["random", "constant", "relaxation", "genetic", "control"]
METHODS: tuple[Method, ...] = get_args(Method)
Fitness: TypeAlias = Literal["mse", "pesq", "surrogate", "quality"]
# Methods and fitnesses by the names of their files, in the order of rows.csv. There is no
# relaxation for PESQ, which has no gradient.
NAMES: dict[str, tuple[Method, Fitness | None]] = {
    "random": ("random", None),
    "constant": ("constant", None),
    "relaxation": ("relaxation", "mse"),
    "genetic-mse": ("genetic", "mse"),
    "control-mse": ("control", "mse"),
    "genetic-pesq": ("genetic", "pesq"),
    "control-pesq": ("control", "pesq"),
    "relaxation-surrogate": ("relaxation", "surrogate"),
    "genetic-surrogate": ("genetic", "surrogate"),
    "control-surrogate": ("control", "surrogate"),
    "relaxation-quality": ("relaxation", "quality"),
    "genetic-quality": ("genetic", "quality"),
    "control-quality": ("control", "quality"),
}
PHASES: tuple[Phases, ...] = ("all", "60")
# Folded into a clip's key: never change them, runs are resumed by them.
_KEYS = {
    "genetic-mse": 1,
    "genetic-pesq": 2,
    "control-mse": 3,
    "control-pesq": 4,
    "relaxation": 5,
    # As for PESQ, so that they begin with the same population and differ in fitness alone.
    "genetic-surrogate": 2,
    "control-surrogate": 6,
    "relaxation-surrogate": 7,
    "genetic-quality": 2,
    "control-quality": 8,
    "relaxation-quality": 9,
}


def row_methods(name: str) -> tuple[str, ...]:
    """Names in the rows of the masks that one of `NAMES` gives."""
    return relaxed(name) if name in RELAXATION_SEARCHES else (name,)


_ROW_METHODS = [method for name in NAMES for method in row_methods(name)]
COLUMNS: dict[str, Callable[[str], Any]] = {
    "clip": str,
    "sparsity": float,
    "method": one_of(_ROW_METHODS),
    "phases": one_of(PHASES),
    "done": int,
    "asked": int,
    "evaluations": int,
    "seconds": float,
    "loss": float,
    "mse": float,
    **dict.fromkeys(SCORES, float),
    **dict.fromkeys(MEASURES, float),
    "reasons": parse_reasons,
}
# What not every method has.
OPTIONAL = ("loss", *MEASURES)
# Updates between two entries of a relaxation's history.
_UPDATES_PER_STEP = 100
_DEFAULTS = LagrangianSettings()


@dataclass(frozen=True)
class Settings:
    """Settings of a comparison of mask searches."""

    clip: tuple[Path, ...]
    """Audio files."""
    out: Path
    """Folder for all results; a run in it is resumed."""
    sparsity: tuple[float, ...] = (0.8, 0.85, 0.9, 0.95)
    """Shares of bins that are hidden; of these, networks are shipped for random masks."""
    decoder: str | None = None
    """A decoder to use at every sparsity, by name or path (.safetensors); by default the shipped
    network for random masks of that sparsity. An interpolation has no relaxation."""
    methods: tuple[Method, ...] = METHODS
    """What masks come from."""
    fitness: tuple[Fitness, ...] = ("mse", "pesq")
    """What is searched for, each by a search of its own; the relaxation leaves out PESQ."""
    controls: Literal["sparsest", "all", "none"] = "sparsest"
    """Sparsities of the controls without reproduction; the thesis has them at 95 % only."""
    generations: int = 500
    """Of the genetic searches, the first population among them."""
    population: int = 50
    """Individuals in a generation."""
    fitness_band: Literal["nb", "wb"] = "nb"
    """Band of the PESQ or surrogate that is searched for; the thesis' seems to be narrow, which can
    be gamed."""
    steps: int = 10_000
    """Updates of the relaxation, in whole hundreds if there are as many."""
    learning_rate: float = float(_DEFAULTS.learning_rate)
    """Of the relaxation's AdamW on the scores."""
    multiplier_rate: float = float(_DEFAULTS.multiplier_rate)
    """Of the ascent of the relaxation's multiplier."""
    relaxation: str = "logistic"
    """Map from scores to soft masks, by its name; for an unknown one the names are listed."""
    steepness: float = 1.0
    """Of that map."""
    penalty: float = float(_DEFAULTS.penalty)
    """Weight of half the squared violation of the relaxation's constraint."""
    one_call: bool = False
    """Compute a search that stays on the device in one call, without progress or checkpoints."""
    budget: float | None = None
    """Minutes for each search and run of this command, unless it is done before."""
    keep_observed: bool = False
    """Put the kept bins back into the network's output, in searches and scores."""
    n_samples: int | None = None
    """Cut or pad clips to so many samples at 16 kHz; by default as they are, up to 77,276."""
    seed: int = 0
    """Of masks and searches, with the clip's name."""
    workers: int | None = None
    """Processes that compute scores; one for each CPU by default."""
    mesh: LocalDevices = None
    """Devices that share each population: so many, or all; none takes the first one."""
    json: bool = False
    """Print the JSON summary instead of the tables."""


class Sound(NamedTuple):
    """A clip [N], its spectrum [F, T] and that in dB; its file's name, and that without ending."""

    file: str
    name: str
    signal: np.ndarray
    spectrum: jax.Array
    dense: jax.Array


class Task(NamedTuple):
    """One method and fitness on one clip at one sparsity."""

    sound: Sound
    sparsity: float
    network: Pretrained
    search: str
    """One of `NAMES`."""
    asked: int
    """Generations or updates; 0 where nothing is searched for."""

    @property
    def method(self) -> Method:
        """What its masks come from."""
        return NAMES[self.search][0]

    @property
    def name(self) -> str:
        """Of its files and folders."""
        return self.file_name(self.search)

    def file_name(self, method: str) -> str:
        """Of what belongs to one of its masks."""
        return f"{self.sound.name}-{100 * self.sparsity:g}-{method}"

    @property
    def shape(self) -> tuple[int, int]:
        """F and T."""
        n_bins, n_frames = self.sound.dense.shape
        return n_bins, n_frames

    @property
    def n_ones(self) -> int:
        """Of the mask."""
        return count_observed(self.shape, self.sparsity)


class Found(NamedTuple):
    """What a method found: masks by the name of their rows, and what is told of them."""

    masks: dict[str, jax.Array]
    facts: dict[str, dict[str, Any]]
    history: dict[str, np.ndarray]


def run(settings: Settings) -> dict[str, Any]:
    """Searches, scores, writes what was found, and returns the summary.

    Raises:
        AudioError: If a clip can't be read or has no PESQ.
        CheckpointError: If what a search saved is damaged.
        BlockingIOError: If another process uses `settings.out`.
        FileExistsError: If `settings.out` holds a run with other settings.
        OSError: If a clip can't be found or the results can't be written.
        RowsError: If what is in `settings.out` is damaged.
        SettingsError: If a setting is out of range.
        ShardingError: If there are fewer devices.
        WeightsError: If a network's file is damaged.
    """
    _check(settings)
    with sharding.use(settings.mesh):
        return _run(settings)


def _run(settings: Settings) -> dict[str, Any]:
    out = RowFile(settings.out, COLUMNS, _identity(settings), DEFAULTS)
    with out, jax.default_matmul_precision("highest"), ScorePool(settings.workers) as pool:
        tasks = list(make_tasks(settings, pool))
        # All are checked before anything is written.
        manifests = [_manifest(settings, task) for task in tasks]
        out.begin()
        for path, content in manifests:
            path.parent.mkdir(parents=True, exist_ok=True)
            manifest.write_file(path, content)
        rows = {_key(row): row for row in out.rows}
        for task in tasks:
            done = _done(task, rows)
            if done is None or done < task.asked:
                for row in _solve(settings, task, pool, done):
                    # Appended, though it may be there: the later one counts.
                    out.add(row)
                    rows[_key(row)] = row
                _report(settings, rows)
            for row in _rows_of(task, rows):
                row["asked"] = max(task.asked, row["done"])
        out.rows[:] = sorted(rows.values(), key=_place)
        out.rewrite()
        return _report(settings, rows)


def _report(settings: Settings, rows: dict[tuple, Row]) -> dict[str, Any]:
    """Writes tables and figures, and returns the summary."""
    about = _identity(settings) | {
        "decoder": settings.decoder and portable_path(Path(settings.decoder)),
        "backend": jax.default_backend(),
    }
    summary = masks_report.summarize(sorted(rows.values(), key=_place), about)
    masks_report.write(summary, settings.out)
    return summary


def _place(row: Row) -> tuple:
    """Of a row in rows.csv."""
    places = _ROW_METHODS.index(row["method"]), PHASES.index(row["phases"])
    return (row["clip"], row["sparsity"], *places)


def _check(settings: Settings) -> None:
    for name in ("clip", "sparsity", "methods", "fitness"):
        values = getattr(settings, name)
        if len(set(values)) < len(values) or not values:
            raise SettingsError(f"{name} needs at least one value, each of them once")
    if not _chosen(settings):
        raise SettingsError("the relaxation needs a fitness that has a gradient, not pesq")
    for sparsity in settings.sparsity:
        if not 0 < sparsity < 1:
            raise SettingsError(f"sparsity {sparsity} is not between 0 and 1")
    # Children need two different parents.
    least = {"generations": 1, "population": 4, "steps": 1, "n_samples": 1, "workers": 1}
    check_least(settings, least)
    for name in ("learning_rate", "multiplier_rate", "penalty"):
        if not 0 <= getattr(settings, name) < math.inf:
            raise SettingsError(f"{name} can't be negative, infinite or NaN")
    if settings.relaxation not in RELAXATIONS:
        names = ", ".join(RELAXATIONS)
        raise SettingsError(f"relaxation must be one of {names}, not {settings.relaxation!r}")
    if not 0 < settings.steepness < math.inf:
        raise SettingsError("steepness must be more than 0 and finite")
    if settings.budget is not None and not settings.budget > 0:
        raise SettingsError("budget must be more than 0 minutes")
    if len({f"{100 * sparsity:g}" for sparsity in settings.sparsity}) < len(settings.sparsity):
        raise SettingsError("sparsities need different names, since files are named by them")
    stems = [path.stem for path in settings.clip]
    if len(set(stems)) < len(stems):
        raise SettingsError("clips need different names, since files are named by them")


def make_tasks(settings: Settings, pool: ScorePool) -> Iterator[Task]:
    """All that is asked for, clip by clip.

    Raises:
        AudioError: If a clip can't be read or has no PESQ; it is named.
        OSError: If a clip or a network can't be found.
        SettingsError: If a decoder can't do what is asked.
        WeightsError: If a network's file is damaged.
    """
    networks = {sparsity: _network(settings, sparsity) for sparsity in settings.sparsity}
    soft = {"constant", "relaxation"} & set(settings.methods)
    if soft and any(network.decoder.on_host for network in networks.values()):
        raise SettingsError(
            f"the decoder {settings.decoder} runs on the host and takes no soft masks: leave out "
            f"the methods {' and '.join(sorted(soft))}"
        )
    updates = settings.steps // _updates_per_step(settings) * _updates_per_step(settings)
    asked = {
        "genetic": settings.generations,
        "control": settings.generations,
        "relaxation": updates,
    }
    chosen = _chosen(settings)
    with_controls = {
        "all": settings.sparsity,
        "sparsest": (max(settings.sparsity),),
        "none": (),
    }[settings.controls]
    for sound in [read_clip(path, settings, pool) for path in settings.clip]:
        for sparsity, name in itertools.product(settings.sparsity, chosen):
            method = NAMES[name][0]
            if method != "control" or sparsity in with_controls:
                yield Task(sound, sparsity, networks[sparsity], name, asked.get(method, 0))


def _chosen(settings: Settings) -> list[str]:
    """Of `NAMES`."""
    return [
        name
        for name, (method, fitness) in NAMES.items()
        if method in settings.methods and (fitness is None or fitness in settings.fitness)
    ]


def _updates_per_step(settings: Settings) -> int:
    return min(_UPDATES_PER_STEP, settings.steps)


def _network(settings: Settings, sparsity: float) -> Pretrained:
    if settings.decoder:
        return pretrained.load_decoder(settings.decoder)
    name, fits = pretrained.choose_pretrained("random", sparsity)
    if not fits:
        raise SettingsError(f"no network ships for random masks of {sparsity}: give --decoder")
    return pretrained.load_pretrained(name)


def read_clip(path: Path, settings: Settings, pool: ScorePool) -> Sound:
    """Reads a clip at 16 kHz, mono, and transforms it.

    Raises:
        AudioError: If it can't be read or has no PESQ; it is named.
        OSError: If it can't be found.
    """
    try:
        signal = FileClip(path, path.name).read(settings.n_samples)
        signal = signal if settings.n_samples else signal[:CLIP_SAMPLES]
        reason = pool.submit(
            "pesq_nb", reference=signal, estimate=signal, sample_rate=SAMPLE_RATE
        ).result()[1]
        if reason:
            raise AudioError(reason)
    except AudioError as error:
        raise AudioError(f"{path}: {error}") from error
    spectrum = _transform(jnp.asarray(signal))
    return Sound(path.name, path.stem, signal, spectrum, log_power(spectrum))


@jax.jit
def _transform(signal: jax.Array) -> jax.Array:
    return stft(signal, CONFIG)


def _identity(settings: Settings) -> dict[str, Any]:
    """What decides on the values of all rows, as JSON; `_manifest` has what decides on one's."""
    names = (
        *("seed", "keep_observed", "population", "fitness_band", "n_samples"),
        *("learning_rate", "multiplier_rate", "relaxation", "steepness", "penalty"),
    )
    return {name: getattr(settings, name) for name in names} | {
        "updates_per_step": _updates_per_step(settings)
    }


def _manifest(settings: Settings, task: Task) -> tuple[Path, dict[str, str]]:
    """What determines a task's rows beside the run's settings, and its file.

    Raises:
        FileExistsError: If they were made of something else.
        ManifestError: If the file is damaged.
    """
    now = {
        "clip": hashlib.sha256(task.sound.signal.tobytes()).hexdigest(),
        "network": task.network.card.sha256,
        "decoder": repr(task.network.decoder.config),
    }
    path = settings.out / "searches" / f"{task.name}.json"
    manifest.check_file(path, settings.out / task.name, now, {"decoder": repr(SparseCNNConfig())})
    return path, now


def _key(row: Row) -> tuple:
    return (row["clip"], row["sparsity"], row["method"], row["phases"])


def _done(task: Task, rows: dict[tuple, Row]) -> int | None:
    """Generations or updates that all rows of a task stand for, or None if one is missing."""
    found = _rows_of(task, rows)
    if len(found) < len(row_methods(task.search)) * len(PHASES):
        return None
    return min(row["done"] for row in found)


def _rows_of(task: Task, rows: dict[tuple, Row]) -> list[Row]:
    names = itertools.product(row_methods(task.search), PHASES)
    keys = [(task.sound.name, task.sparsity, *name) for name in names]
    return [rows[key] for key in keys if key in rows]


def _solve(settings: Settings, task: Task, pool: ScorePool, before: int | None) -> Iterator[Row]:
    """Searches, writes mask and history, and yields the rows, unless they are there already."""
    found = _FINDERS[task.method](settings, task, pool)
    if before is not None and all(facts["done"] <= before for facts in found.facts.values()):
        return
    for method, mask in found.masks.items():
        _write_mask(settings.out, task, method, mask)
    if found.history:
        _write_history(settings.out, task, found.history)
    yield from score(settings, task, found, pool)


def _random(settings: Settings, task: Task, pool: ScorePool) -> Found:
    key = mask_key(settings.seed, task.sound.file)
    mask = random_mask(key, task.shape, task.n_ones)
    return _unsearched(task, mask)


def _constant(settings: Settings, task: Task, pool: ScorePool) -> Found:
    return _unsearched(task, constant_mask(task.shape, task.n_ones))


def _unsearched(task: Task, mask: jax.Array) -> Found:
    facts = {"done": 0, "evaluations": 0, "seconds": 0.0}
    return Found({task.search: mask}, {task.search: facts}, {})


def _genetic(settings: Settings, task: Task, pool: ScorePool) -> Found:
    config = THESIS if task.method == "genetic" else WITHOUT_REPRODUCTION
    config = dataclasses.replace(config, population_size=settings.population)
    if NAMES[task.search][1] == "pesq":
        sound, network = task.sound, task.network
        objective = pesq_objective(
            network.decoder,
            network.params,
            sound.dense,
            jnp.angle(sound.spectrum),
            sound.signal,
            pool,
            band=settings.fitness_band,
            keep_observed=settings.keep_observed,
            config=CONFIG,
        )
    else:
        objective = _by_gradient(settings, task)
    search = genetic(objective, task.shape, task.n_ones, config)
    # The first population is a generation too.
    result = _search(settings, task, search, settings.generations - 1)
    facts = {
        "done": result.steps + 1,
        "evaluations": result.evaluations,
        "seconds": result.seconds,
        "loss": float(result.best.loss),
    }
    history = {"generation": np.arange(result.steps + 1) + 1, "best": np.array([result.first])}
    for name, values in result.history.items():
        # Of the first population there is only the best.
        history[name] = np.append(history.get(name, [math.nan]), values)
    mask = result.mask(task.shape)
    return Found({task.search: mask}, {task.search: facts}, history)


def _by_gradient(settings: Settings, task: Task) -> Objective | HostObjective:
    """An objective that has a gradient where the decoder has."""
    sound, network = task.sound, task.network
    fitness = NAMES[task.search][1]
    if fitness == "mse":
        return mse_objective(
            network.decoder, network.params, sound.dense, keep_observed=settings.keep_observed
        )
    if fitness == "quality":
        make = mixture_objective
    else:
        make = functools.partial(surrogate_objective, band=settings.fitness_band)
    return make(
        network.decoder,
        network.params,
        sound.dense,
        jnp.angle(sound.spectrum),
        sound.signal,
        keep_observed=settings.keep_observed,
        config=CONFIG,
    )


def _relaxation(settings: Settings, task: Task, pool: ScorePool) -> Found:
    updates_per_step = _updates_per_step(settings)
    objective = _by_gradient(settings, task)
    relaxation = RELAXATIONS[settings.relaxation](steepness=settings.steepness)
    rates = LagrangianSettings(
        learning_rate=settings.learning_rate,
        multiplier_rate=settings.multiplier_rate,
        penalty=settings.penalty,
    )
    search = lagrangian(
        objective,
        task.shape,
        task.n_ones,
        rates,
        relaxation=relaxation,
        updates_per_step=updates_per_step,
    )
    result = _search(settings, task, search, task.asked // updates_per_step)
    last = {name: float(values[-1]) for name, values in result.history.items()}
    kkt = kkt_residual(objective, relaxation, result.state, task.n_ones)
    facts = {
        "done": result.steps * updates_per_step,
        "evaluations": result.evaluations,
        "seconds": result.seconds,
    }
    facts |= {name: last[name] for name in OPTIONAL if name in last}
    facts |= {name: float(value) for name, value in kkt._asdict().items() if name in OPTIONAL}
    masks = (
        soft_mask(relaxation, result.state, task.n_ones),
        hard_mask(result.state, task.n_ones),
        result.mask(task.shape),
    )
    losses = (last["loss"], last["hard_loss"], last["best"])
    names = relaxed(task.search)
    updates = {"update": updates_per_step * (np.arange(result.steps) + 1)}
    return Found(
        dict(zip(names, masks, strict=True)),
        {name: facts | {"loss": loss} for name, loss in zip(names, losses, strict=True)},
        updates | result.history,
    )


def _search(settings: Settings, task: Task, search: Search, steps: int) -> Result:
    return run_search(
        search,
        jax.random.fold_in(mask_key(settings.seed, task.sound.file), _KEYS[task.search]),
        steps=steps,
        minutes=settings.budget,
        one_call=settings.one_call,
        folder=settings.out / "searches" / task.name,
        label=task.name,
    )


_FINDERS: dict[Method, Callable[[Settings, Task, ScorePool], Found]] = {
    "random": _random,
    "constant": _constant,
    "relaxation": _relaxation,
    "genetic": _genetic,
    "control": _genetic,
}


def score(settings: Settings, task: Task, found: Found, pool: ScorePool) -> list[Row]:
    """Rows of a task's masks, for each choice of phases."""
    sound = task.sound
    complete = _completion(task.network.decoder, settings.keep_observed)
    synthesize = make_synthesis(PHASES, len(sound.signal), 1)
    # The bins were put back before, if at all, which soft masks need.
    kept = jnp.zeros((1, *sound.dense.shape), bool)
    keys = mask_key(settings.seed, sound.file)[None]
    rows = []
    for method, mask in found.masks.items():
        estimate = complete(task.network.params, sound.dense, mask)[None]
        made = synthesize(sound.spectrum[None], sound.dense[None], kept, estimate, keys, False)
        errors, _, sounds = jax.device_get(made)
        scores = {
            (phases, metric): pool.submit(
                metric,
                reference=sound.signal,
                estimate=sounds[phases][0],
                sample_rate=SAMPLE_RATE,
            )
            for phases in PHASES
            for metric in SCORES
        }
        for phases in PHASES:
            results = {metric: scores[phases, metric].result() for metric in SCORES}
            row = {
                "clip": sound.name,
                "sparsity": task.sparsity,
                "method": method,
                "phases": phases,
                "asked": task.asked,
                "mse": float(errors[0]),
            }
            row |= dict.fromkeys(OPTIONAL, math.nan) | found.facts[method]
            row |= {metric: result.value for metric, result in results.items()}
            reasons = {metric: result.reason for metric, result in results.items()}
            row["reasons"] = {metric: reason for metric, reason in reasons.items() if reason}
            rows.append(row)
    return rows


@functools.lru_cache
def _completion(decoder: Decoder, keep_observed: bool) -> Callable:
    complete = functools.partial(reconstruct_spectrogram, decoder, keep_observed=keep_observed)
    return complete if decoder.on_host else jax.jit(complete)


def _write_mask(out: Path, task: Task, method: str, mask: jax.Array) -> None:
    """A hard mask as bits, a soft one as floats, with its shape and the count of ones."""
    content: dict[str, Any] = {"shape": mask.shape, "count": task.n_ones}
    if mask.dtype == jnp.bool_:
        content["bits"] = pack_mask(mask)
    else:
        content["mask"] = mask
    with io.BytesIO() as buffer:
        np.savez_compressed(buffer, **jax.device_get(content))
        _write(out / "masks" / f"{task.file_name(method)}.npz", buffer.getvalue())


def _write_history(out: Path, task: Task, history: dict[str, np.ndarray]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(history)
    writer.writerows(zip(*(values.tolist() for values in history.values()), strict=True))
    _write(out / "history" / f"{task.name}.csv", text.getvalue().encode())


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, data)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs from the command line; returns the exit code of `run_command`."""

    def work() -> str:
        settings = parse_settings(Settings, "eval.masks", __doc__, argv)
        summary = run(settings)
        return json.dumps(summary, indent=1) if settings.json else masks_report.tables(summary)

    return run_command("eval.masks", work)


if __name__ == "__main__":
    sys.exit(main())
