"""How well masked spectrograms are filled in, over a set of clips.

``python -m eval.reconstruction --data $JAXSPARSE_DATA/test --out RUN`` takes the first 77,276
samples of each clip (zero-padded at the end), draws masks from (seed, file name), the same ones
whatever the method, and fills in what they hide: with the networks, each for the masks that it was
trained for unless --mask and --sparsity say otherwise, and with SciPy's interpolation between the
kept bins for all of these masks. The sound is made with the original phases (all), with those of
bins at most 60 to 75 dB below the loudest one (the others are 0), and
by Griffin-Lim, which finds phases anew: with those of the kept bins given (kept) or none at all
(none). The row "ceiling" is the dense dB spectrogram itself, with its 80 dB floor.

MSE over all bins, PESQ in both bands, STOI and extended STOI are reported as mean and standard
error over the clips, a clip's seeds averaged first. What can't be scored is listed with its reason.

RUN gets rows.csv, summary.json, table.md and plots. A run that was stopped goes on where it was
when the same command is given again. A clip takes some forty seconds on two cores.
"""

import functools
import hashlib
import itertools
import json
import math
import os
import sys
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from eval import report
from eval.command import parse_settings, run_command
from eval.report import GROUP, PHASES, SCORES, Phases
from eval.rows import Row, RowFile, RowsError, parse_reasons
from jaxsparse import pretrained, sharding
from jaxsparse.data.clips import Clip, find_clips
from jaxsparse.data.folder import CLIP_SAMPLES
from jaxsparse.decoders import DECODERS
from jaxsparse.errors import AudioError
from jaxsparse.files import atomic_write, portable_path
from jaxsparse.masks import count_observed
from jaxsparse.metrics import Metric, Score, ScorePool, mse
from jaxsparse.policies import POLICIES
from jaxsparse.pretrained import Pretrained
from jaxsparse.reconstruct import batched, put_back, to_spectrum, to_waveform
from jaxsparse.settings import SettingsError, check_least
from jaxsparse.sharding import LocalDevices
from jaxsparse.spectrogram import db_to_amplitude, log_power, phase_mask
from jaxsparse.transforms.stft import STFTConfig, griffin_lim, stft
from jaxsparse.types import SAMPLE_RATE

CONFIG = STFTConfig()
COLUMNS: dict[str, Callable[[str], Any]] = {
    "clip": str,
    "seed": int,
    "method": str,
    "mask": str,
    "sparsity": float,
    "keep_observed": lambda text: text == "True",
    "phases": str,
    "segments": int,
    "phases_saved": float,
    "mse": float,
    **dict.fromkeys(SCORES, float),
    "reasons": parse_reasons,
}
# Settings that a resumed run may change: they don't decide on any value.
NOT_IDENTITY = ("data", "out", "workers", "batch", "mesh", "json")
# Bounds the waveforms in memory while the scores are slower than the device.
MAX_PENDING = 64

# Masks where nothing says what they should be.
DEFAULT_MASKS = ("random", 0.95)
ALL_PHASES: tuple[Phases, ...] = ("all",)
Fill: TypeAlias = Callable[[jax.Array, jax.Array], Any]


@dataclass(frozen=True)
class Settings:
    """Settings of a reconstruction evaluation."""

    data: Path
    """Folder of clips, searched in depth, or a prepared data set."""
    out: Path | None = None
    """Folder for rows.csv, summary.json, table.md and plots; a run in it is resumed."""
    split: str | None = None
    """Split of a prepared data set, by default train."""
    decoders: tuple[str, ...] = (*pretrained.NAMES, "nearest", "linear", "clough-tocher")
    """What to evaluate: shipped networks, interpolations (with all phases alone), and paths of
    .safetensors files; where several have the same name, that of their folder stands for them."""
    mask: tuple[str, ...] = ()
    """Policies that the masks are made by, such as random, mixed and contrast; by default those
    that each network was trained for."""
    sparsity: tuple[float, ...] = ()
    """Shares of bins that are hidden; by default the highest that each network was trained for."""
    keep_observed: Literal["yes", "no", "both"] = "both"
    """Put the kept bins back into a network's output; an interpolation has them anyway."""
    phases: tuple[Phases, ...] = PHASES
    """Where the phases come from."""
    griffin_lim_iterations: int = 32
    """Rounds of Griffin-Lim."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the masks."""
    n_samples: int = CLIP_SAMPLES
    """Length of a clip in samples at 16 kHz."""
    whole: bool = False
    """Score clips to their end, in segments of --n-samples, and average over these."""
    limit: int | None = None
    """Only the first clips."""
    batch: int = 2
    """Clips in one call on the device, or on all of the mesh."""
    mesh: LocalDevices = None
    """Devices that share each batch: so many, or all; none takes the first one."""
    scores: bool = True
    """PESQ and STOI too, not only the MSE."""
    workers: int | None = None
    """Processes that compute them; one for each CPU by default."""
    json: bool = False
    """Print the JSON summary instead of the table."""


class Method(NamedTuple):
    """What fills in spectrograms: the dense ones [B, F, T] and masks [B, F, T] to estimates.

    `weights` is the SHA-256 of a network's.
    """

    name: str
    mask: str | None
    sparsity: float
    keep_observed: tuple[bool, ...]
    phases: tuple[Phases, ...]
    seeds: tuple[int, ...]
    fill: Fill
    weights: str = ""


class Segment(NamedTuple):
    """A piece of a clip, [N]: one of `total`."""

    clip: Clip
    total: int
    signal: np.ndarray


class Pending(NamedTuple):
    """A segment's part of a row, its scores still in the making."""

    row: Row
    scores: dict[Metric, Future[Score]]


def run(settings: Settings) -> dict[str, Any]:
    """Evaluates, writes what `settings.out` asks for, and returns the summary.

    Raises:
        AudioError: If no clip can be read.
        BlockingIOError: If another process uses `settings.out`.
        FileExistsError: If `settings.out` holds a run with other settings.
        OSError: If the data can't be found or the results can't be written.
        RowsError: If what is in `settings.out` is damaged.
        SettingsError: If a setting is out of range.
        ShardingError: If a batch can't be split over the devices.
    """
    _check(settings)
    with sharding.use(settings.mesh):
        return _run(settings)


def _run(settings: Settings) -> dict[str, Any]:
    # Refused before anything is read.
    sharding.order_of_rows(settings.batch)
    clips = find_clips(settings.data, settings.split)[: settings.limit]
    methods = make_methods(settings)
    wanted = (_key(row) for clip in clips for method in methods for row in _empty(method, clip))
    order = {key: place for place, key in enumerate(wanted)}
    out = settings.out and RowFile(settings.out, COLUMNS, _identity(settings, clips, methods))
    with (
        out or nullcontext(),
        jax.default_matmul_precision("highest"),
        ScorePool(settings.workers) as pool,
    ):
        rows = out.rows if out else []
        done = {_key(row) for row in rows}
        if out and not done <= order.keys():
            raise RowsError(f"{out.path} is damaged: it holds rows that the run doesn't have")
        with tqdm(total=len(order), initial=len(rows), unit="row", disable=None) as bar:
            for row in evaluate(settings, clips, methods, pool, done):
                out.add(row) if out else rows.append(row)
                bar.update()
        rows.sort(key=lambda row: order[_key(row)])
        summary = {
            "settings": _jsonable(
                asdict(settings) | {"decoders": tuple(map(Path, settings.decoders))}
            ),
            "clips": len(clips),
            "backend": jax.default_backend(),
            "groups": report.summarize(rows, ("phases_saved", "mse", *_scores(settings))),
            "unscored": report.unscored(rows),
        }
        if out and settings.out:
            out.rewrite()
            atomic_write(settings.out / "summary.json", json.dumps(summary, indent=1).encode())
            atomic_write(settings.out / "table.md", report.table(summary).encode())
            report.plot(summary, settings.out)
    return summary


def _check(settings: Settings) -> None:
    # Not in the dataclass: the parser would make ten lines of the one.
    for sparsity in settings.sparsity:
        if not 0 < sparsity < 1:
            raise SettingsError(f"sparsity {sparsity} is not between 0 and 1")
    positive = ("limit", "batch", "n_samples", "workers", "griffin_lim_iterations")
    check_least(settings, dict.fromkeys(positive, 1))
    for name in ("seeds", "phases", "decoders", "mask", "sparsity"):
        values = getattr(settings, name)
        if len(set(values)) < len(values) or not (values or name in ("mask", "sparsity")):
            raise SettingsError(f"{name} needs at least one value, each of them once")
    for name in settings.mask:
        if name not in POLICIES:
            raise SettingsError(f"no policy is named {name!r}; there are {', '.join(POLICIES)}")
    if len(set(names := decoder_names(settings.decoders))) < len(names):
        raise SettingsError("decoders need different names, or folders with different names")


def make_methods(settings: Settings) -> list[Method]:
    """The ceiling, each network with the masks that it is for, and what to compare with.

    Raises:
        JaxsparseError: If there is no such decoder.
        OSError: If a file of weights can't be found.
        WeightsError: If one is damaged.
    """
    no_mask: tuple[Phases, ...] = tuple(phases for phases in settings.phases if phases != "kept")
    methods = [Method("ceiling", None, 0.0, (False,), no_mask, (0,), lambda dense, _: dense)]
    keep = {"yes": (True,), "no": (False,), "both": (False, True)}[settings.keep_observed]
    names = decoder_names(settings.decoders)
    loaded = dict(zip(names, map(pretrained.load_decoder, settings.decoders), strict=True))
    # In the order of their first use, each once.
    masks: dict[tuple[str, float], None] = {}
    for name, network in loaded.items():
        if network.decoder.on_host:
            continue
        for pair in masks_of(settings, network):
            masks[pair] = None
            more = (keep, settings.phases, settings.seeds, fill(network), network.card.sha256)
            methods.append(Method(name, *pair, *more))
    # An interpolation has the kept bins anyway.
    for pair in masks or _asked(settings):
        for name, network in loaded.items():
            if network.decoder.on_host:
                more = ((True,), ALL_PHASES, settings.seeds, fill(network))
                methods.append(Method(name, *pair, *more))
    return methods


def decoder_names(decoders: Sequence[str]) -> list[str]:
    """Names, and of paths the files' names without ending, or those of their folders."""
    names = [Path(name).stem if name not in DECODERS else name for name in decoders]
    if len(set(names)) < len(names):
        paths = [(name, Path(name)) for name in decoders]
        names = [path.absolute().parent.name if path.suffix else name for name, path in paths]
    return names


def masks_of(settings: Settings, network: Pretrained) -> list[tuple[str, float]]:
    """Policies and sparsities that a network is evaluated with."""
    card = network.card
    masks = settings.mask or card.masks or DEFAULT_MASKS[:1]
    for name in masks:
        if name not in POLICIES:
            raise SettingsError(f"a network is for masks of {name!r}, and no policy is named so")
    sparsest = (max(card.sparsity),) if card.sparsity else DEFAULT_MASKS[1:]
    sparsities = settings.sparsity or sparsest
    return list(itertools.product(masks, sparsities))


def _asked(settings: Settings) -> list[tuple[str, float]]:
    masks = settings.mask or DEFAULT_MASKS[:1]
    return list(itertools.product(masks, settings.sparsity or DEFAULT_MASKS[1:]))


def fill(network: Pretrained) -> Fill:
    """A decoder as a function of a batch."""
    return functools.partial(batched(network.decoder), network.params)


def mask_key(seed: int, clip: str) -> jax.Array:
    """Key of a clip's mask, so that methods are compared on the same masks.

    It is that of the file's name without folders and extension, and of all of a clip's segments.
    """
    name = PurePosixPath(clip).stem
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(os.fsencode(name)))


def evaluate(
    settings: Settings,
    clips: Sequence[Clip],
    methods: Sequence[Method],
    pool: ScorePool,
    done: set[tuple],
) -> Iterator[Row]:
    """Rows that are not `done` yet, while the pool scores and the device goes on."""
    parts: dict[tuple, list[Row]] = {}
    failed: list[Row] = []
    queue: deque[Pending] = deque()

    def finish(pending: Pending) -> Iterator[Row]:
        rows = parts.setdefault(_key(pending.row), [])
        rows.append(_finished(pending))
        if len(rows) == pending.row["segments"]:
            yield join(parts.pop(_key(pending.row)))

    def segments() -> Iterator[Segment]:
        for clip in clips:
            missing = [row for m in methods for row in _empty(m, clip) if _key(row) not in done]
            try:
                if missing:
                    yield from _read(settings, clip)
            except (AudioError, OSError) as error:
                why = getattr(error, "strerror", None) or str(error)
                failed.extend(row | {"reasons": {"clip": why}} for row in missing)

    left = segments()
    while batch := list(itertools.islice(left, settings.batch)):
        for pending in _process(settings, batch, methods, pool, done):
            queue.append(pending)
            while len(queue) > MAX_PENDING:
                yield from finish(queue.popleft())
    while queue:
        yield from finish(queue.popleft())
    if len({row["clip"] for row in failed}) == len(clips):
        raise AudioError(f"{settings.data}: no clip can be read: {failed[0]['reasons']['clip']}")
    yield from failed


def _read(settings: Settings, clip: Clip) -> list[Segment]:
    signal = clip.read(None if settings.whole else settings.n_samples)
    starts = range(0, max(len(signal), 1), settings.n_samples)
    pieces = [signal[start : start + settings.n_samples] for start in starts]
    return [
        Segment(clip, len(pieces), np.pad(piece, (0, settings.n_samples - len(piece))))
        for piece in pieces
    ]


def _process(
    settings: Settings,
    batch: Sequence[Segment],
    methods: Sequence[Method],
    pool: ScorePool,
    done: set[tuple],
) -> Iterator[Pending]:
    """Reconstructs a batch in every way and hands the waveforms to the pool."""
    # The last batch is filled up, so that nothing is compiled anew.
    filled = (list(batch) * settings.batch)[: settings.batch]
    signals = sharding.place_batch(np.stack([segment.signal for segment in filled]))
    spectra, dense = _analyze(signals)
    for method, seed in ((m, seed) for m in methods for seed in m.seeds):
        rows = [[r for r in _empty(method, x.clip, seed) if _key(r) not in done] for x in batch]
        if not any(rows):
            continue
        keys = jnp.stack([mask_key(seed, segment.clip.name) for segment in filled])
        keys = sharding.place_batch(keys)
        observed = draw(method.mask, method.sparsity, dense, keys)
        estimates = method.fill(dense, observed)
        synthesize = make_synthesis(
            method.phases, settings.n_samples, settings.griffin_lim_iterations
        )
        for keep in method.keep_observed:
            made = synthesize(spectra, dense, observed, estimates, keys, keep)
            errors, saved, sounds = jax.device_get(made)
            for i, segment in enumerate(batch):
                for row in rows[i]:
                    if row["keep_observed"] == keep:
                        phases = row["phases"]
                        values = {"mse": float(errors[i]), "phases_saved": float(saved[phases][i])}
                        row |= {"segments": segment.total, **values}
                        yield _submit(settings, segment, row, sounds[phases][i], pool)


@jax.jit
def _analyze(signals: jax.Array) -> tuple[jax.Array, jax.Array]:
    spectra = jax.vmap(lambda signal: stft(signal, CONFIG))(signals)
    return spectra, jax.vmap(log_power)(spectra)


def draw(mask: str | None, sparsity: float, dense: jax.Array, keys: jax.Array) -> jax.Array:
    """Masks [B, F, T] of the exact count for spectrograms [B, F, T] and keys [B]."""
    if mask is None:
        return jnp.ones(dense.shape, bool)
    return _draw(mask, dense, keys, count_observed(dense.shape[1:], sparsity))


@jax.jit(static_argnums=0)
def _draw(mask: str, dense: jax.Array, keys: jax.Array, count: jax.Array) -> jax.Array:
    return jax.vmap(lambda key, x: POLICIES[mask](key, x, count))(keys, dense)


@functools.lru_cache
def make_synthesis(phases: tuple[Phases, ...], n_samples: int, n_iterations: int) -> Callable:
    """Builds what turns estimates [B, F, T] into MSE [B], phases saved [B] and sound [B, N]."""

    def sound(kind: Phases, estimate, angle, given, key):
        if kind not in ("kept", "none"):
            return to_waveform(estimate, jnp.where(given, angle, 0), CONFIG, length=n_samples)
        return griffin_lim(
            db_to_amplitude(estimate),
            CONFIG,
            length=n_samples,
            n_iterations=n_iterations,
            key=key,
            known=to_spectrum(estimate, angle),
            known_mask=given,
        )

    def one(spectrum, dense, observed, estimate, key, keep):
        estimate = put_back(estimate, dense, observed & keep)
        error = mse(reference=dense[None], estimate=estimate[None])[0]
        angle, key = jnp.angle(spectrum), jax.random.fold_in(key, 1)
        given = {kind: _given(kind, dense, observed) for kind in phases}
        saved = {kind: 1 - given[kind].mean() for kind in phases}
        return error, saved, {k: sound(k, estimate, angle, given[k], key) for k in phases}

    return jax.jit(jax.vmap(one, in_axes=(0, 0, 0, 0, 0, None)))


def _given(phases: Phases, dense: jax.Array, observed: jax.Array) -> jax.Array:
    """Bins whose phases the decoder has."""
    if phases == "none":
        return jnp.zeros(dense.shape, bool)
    if phases == "kept":
        return observed
    return phase_mask(dense, None if phases == "all" else float(phases))


def _submit(
    settings: Settings, segment: Segment, row: Row, sound: np.ndarray, pool: ScorePool
) -> Pending:
    scores: dict[Metric, Future[Score]] = {
        metric: pool.submit(
            metric, reference=segment.signal, estimate=sound, sample_rate=SAMPLE_RATE
        )
        for metric in _scores(settings)
    }
    return Pending(row, scores)


def _finished(pending: Pending) -> Row:
    row, scores = pending
    results = {metric: future.result() for metric, future in scores.items()}
    reasons = {metric: result.reason for metric, result in results.items() if result.reason}
    if not math.isfinite(row["mse"]):
        reasons["mse"] = "not finite"
    values = {metric: result.value for metric, result in results.items()}
    return row | values | {"reasons": reasons}


def join(segments: Sequence[Row]) -> Row:
    """A clip's row: the mean over its segments.

    Segments whose reference has no score, as pauses have none, are left out of it; what is missing
    for any other reason makes the clip's NaN.
    """
    if len(segments) == 1:
        return segments[0]
    row = dict(segments[0], reasons={})
    for metric in ("phases_saved", "mse", *SCORES):
        faults = [s["reasons"][metric] for s in segments if metric in s["reasons"]]
        lost = [fault for fault in faults if not fault.startswith("reference")]
        values = [s[metric] for s in segments if math.isfinite(s[metric])]
        row[metric] = float(np.mean(values)) if values and not lost else math.nan
        if faults:
            why = (lost or faults)[0]
            row["reasons"][metric] = f"{why} ({len(lost or faults)} of {len(segments)} segments)"
    return row


def _scores(settings: Settings) -> tuple[Metric, ...]:
    return SCORES if settings.scores else ()


def _key(row: Row) -> tuple:
    return (row["clip"], row["seed"], *(row[name] for name in GROUP))


def _empty(method: Method, clip: Clip, seed: int | None = None) -> list[Row]:
    """A clip's rows, of one seed or of all, before anything is known about it."""
    seeds = method.seeds if seed is None else (seed,)
    return [
        {
            "clip": clip.name,
            "seed": seed,
            "method": method.name,
            "mask": method.mask or "",
            "sparsity": method.sparsity,
            "keep_observed": keep,
            "phases": phases,
            "segments": 0,
            **dict.fromkeys(("phases_saved", "mse", *SCORES), math.nan),
        }
        for seed, keep, phases in itertools.product(seeds, method.keep_observed, method.phases)
        if seed in method.seeds
    ]


def _identity(
    settings: Settings, clips: Sequence[Clip], methods: Sequence[Method]
) -> dict[str, Any]:
    """What decides on the rows' values, as JSON."""
    names = "\n".join(clip.name for clip in clips)
    values = {k: v for k, v in asdict(settings).items() if k not in NOT_IDENTITY}
    values["decoders"] = tuple(map(Path, settings.decoders))
    return _jsonable(values) | {
        "clips": hashlib.sha256(os.fsencode(names)).hexdigest(),
        "weights": {method.name: method.weights for method in methods if method.weights},
    }


def _jsonable(settings: Mapping[str, Any]) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(each) for each in value]
        return portable_path(value) if isinstance(value, Path) else value

    return {name: plain(value) for name, value in settings.items()}


def run_text(settings: Settings) -> str:
    """Evaluates, and returns the table, or the summary as JSON; see `run`."""
    summary = run(settings)
    return json.dumps(summary, indent=1) if settings.json else report.table(summary)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs from the command line; returns the exit code of `run_command`."""

    def work() -> str:
        return run_text(parse_settings(Settings, "eval.reconstruction", __doc__, argv))

    stopped = "with --out, the same command goes on"
    return run_command("eval.reconstruction", work, stopped=stopped)


if __name__ == "__main__":
    sys.exit(main())
