"""Calibrates the surrogate of PESQ: ``python -m train.surrogate --data DIR --out RUN``.

The first clips of DIR are made worse in the ways of `eval.degradations`, coded with and without a
search, and go through masks that a search found; `pesq` scores them, with as many processes as
there are CPUs; then the constants of `jaxsparse.metrics.surrogate` are moved, from the published
values on, so that the surrogate says the same. RUN gets the pairs, from which a run that was
stopped goes on, and surrogate.json, which belongs into `jaxsparse/metrics`. A tenth of the clips
is held out and tells how well that went, beside the calibration that is there; so do kinds of
degradation that are left out of the calibration. Most of its time goes to the searches.
"""

import functools
import hashlib
import itertools
import json
import math
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from tqdm import tqdm

from eval.command import parse_settings, run_command
from eval.degradations import KINDS, UNSEEN_KINDS, coded, degrade, searched_masks, unseen
from jaxsparse import manifest
from jaxsparse._scoring import PESQ
from jaxsparse.data.clips import Clip, find_clips
from jaxsparse.data.folder import CLIP_SAMPLES
from jaxsparse.errors import AudioError
from jaxsparse.files import atomic_write, portable_path
from jaxsparse.metrics import ScorePool
from jaxsparse.metrics.surrogate import (
    Band,
    Calibration,
    analyze,
    calibrated,
    fingerprint,
    published,
    score,
)
from jaxsparse.settings import SettingsError, check_least
from jaxsparse.types import SAMPLE_RATE

BANDS: tuple[Band, ...] = get_args(Band)
# What is moved as it is, in tens of its unit; the others are positive and moved by factors.
_DECIBELS = ("level", "gain", "threshold")
_CURVES = ("gain", "threshold", "width")
# Where `pesq` misjudges the alignment it is wrong by more than this, and should not pull as much.
_HUBER = 0.1
# Keeps curves smooth, and what the pairs don't tell where it was.
_ROUGHNESS, _DISTANCE = 1e-3, 1e-4


@dataclass(frozen=True)
class Settings:
    """Settings of a calibration."""

    data: Path
    """Folder of clips, searched in depth; not what is reported on."""
    out: Path
    """Folder for pairs and result; a run in it goes on."""
    clips: int = 100
    """How many of the clips to use."""
    n_samples: int = CLIP_SAMPLES
    """Length of a clip in samples at 16 kHz; longer ones are cut, shorter ones padded."""
    epochs: int = 40
    """Passes over all pairs."""
    batch: int = 64
    """Pairs in a step."""
    learning_rate: float = 0.02
    """Peak of Adam's."""
    coded: int = 3
    """Files of each clip by the codec of the MDCT grid, at rates from 2.4 to 20 kbit/s."""
    searched: int = 1
    """Such files by a search, which takes as long as all else."""
    masks: int = 1
    """Masks of each clip that a search by the surrogate found."""
    workers: int | None = None
    """Processes that run `pesq`; one for each CPU by default."""


class Pairs(NamedTuple):
    """What `analyze` gives of P degraded clips and their originals, and what `pesq` says."""

    original: Float[np.ndarray, "P T 49"]
    degraded: Float[np.ndarray, "P T 49"]
    speech: Float[np.ndarray, "P T"]
    pesq: Float[np.ndarray, " P"]


def run(settings: Settings) -> dict[str, Any]:
    """Makes the pairs, calibrates both bands, writes and returns the result.

    Raises:
        AudioError: If a clip can't be read, or `pesq` can score none of them.
        FileExistsError: If `settings.out` holds pairs of other clips.
        OSError: If the clips can't be found or the results can't be written.
        ManifestError: If what is in `settings.out` is damaged.
        SettingsError: If a setting is out of range.
    """
    # `pesq` takes a quarter of a second at least.
    least = {
        "coded": 0,
        "searched": 0,
        "masks": 0,
        "clips": 2,
        "n_samples": SAMPLE_RATE // 4,
        "epochs": 1,
        "batch": 1,
        "workers": 1,
    }
    check_least(settings, least)
    if not 0 < settings.learning_rate < math.inf:
        raise SettingsError("learning_rate must be more than 0 and finite")
    found = find_clips(settings.data, None)
    clips = found[: settings.clips]
    if len(clips) < 2:
        raise SettingsError(f"{settings.data} has one clip, and another has to be held out")
    folder = settings.out / "pairs"
    # Of all, so that a run may be given more of them.
    names = "\n".join(clip.name for clip in found)
    identity = {
        "n_samples": settings.n_samples,
        "clips": hashlib.sha256(os.fsencode(names)).hexdigest(),
        "coded": settings.coded,
        "searched": settings.searched,
        "masks": settings.masks,
        "kinds": [*KINDS, *UNSEEN_KINDS],
        # What searches climbed.
        "calibration": fingerprint(),
    }
    manifest.check_file(settings.out / "settings.json", settings.out, identity)
    folder.mkdir(parents=True, exist_ok=True)
    manifest.write_file(settings.out / "settings.json", identity)
    with ScorePool(settings.workers) as pool:
        files = [
            make_pairs(clip, settings, folder / f"{i:04}.npz", pool)
            for i, clip in enumerate(tqdm(clips, "pairs", unit="clip", disable=None))
        ]
    held_out = max(len(files) // 10, 1)
    result: dict[str, Any] = {"data": f"{len(files)} clips of {portable_path(settings.data)}"}
    for band in BANDS:
        (known, kinds), (unknown, unknown_kinds) = (
            (load_pairs(part, band), load_kinds(part, band))
            for part in (files[:-held_out], files[-held_out:])
        )
        seen = ~np.isin(kinds, UNSEEN_KINDS)
        known = Pairs(*(values[seen] for values in known))
        calibration = fit(known, band, settings)
        result[band] = {
            "calibration": jax.tree.map(_rounded, calibration._asdict()),
            "pairs": len(known.pesq),
            "held_out": judge(unknown, unknown_kinds, calibration, band, settings.batch),
            "before": judge(unknown, unknown_kinds, calibrated(band), band, settings.batch),
        }
    atomic_write(settings.out / "surrogate.json", (json.dumps(result, indent=1) + "\n").encode())
    return result


def make_pairs(clip: Clip, settings: Settings, path: Path, pool: ScorePool) -> Path:
    """Writes a clip's pairs for both bands, unless they are there.

    Raises:
        AudioError: If it can't be read; it is named.
    """
    if path.exists():
        return path
    try:
        signal = clip.read(settings.n_samples)
    except AudioError as error:
        raise AudioError(f"{clip.name}: {error}") from error
    pairs = [
        *degrade(clip.name, signal),
        *coded(clip.name, signal, settings.coded, settings.searched),
        *searched_masks(clip.name, signal, settings.masks),
        *unseen(clip.name, signal),
    ]
    estimates = [degraded.signal for degraded in pairs]
    content: dict[str, np.ndarray] = {"kind": np.array([degraded.kind for degraded in pairs])}
    futures = {
        band: [
            pool.submit(PESQ[band], reference=signal, estimate=y, sample_rate=SAMPLE_RATE)
            for y in estimates
        ]
        for band in BANDS
    }
    reference = np.broadcast_to(signal, (len(estimates), signal.size))
    for band in BANDS:
        original, degraded, speech = jax.device_get(_analysis(band)(reference, np.stack(estimates)))
        content[f"{band}-original"], content[f"{band}-speech"] = original[:1], speech[:1]
        content[f"{band}-degraded"] = degraded
        content[f"{band}-pesq"] = np.array([future.result().value for future in futures[band]])
    # Under another name till it is whole.
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, allow_pickle=False, **content)
    partial.rename(path)
    return path


@functools.cache
def _analysis(band: Band) -> Any:
    return jax.jit(jax.vmap(lambda x, y: analyze(x, y, SAMPLE_RATE, band)))


def load_pairs(files: Iterable[Path], band: Band) -> Pairs:
    """The pairs of some clips that `pesq` could score.

    Raises:
        AudioError: If there is none.
    """
    parts = []
    for path in files:
        with np.load(path) as file:
            values = file[f"{band}-pesq"]
            good = _good(file, band)
            n = int(good.sum())
            parts.append(
                Pairs(
                    np.repeat(file[f"{band}-original"], n, axis=0),
                    file[f"{band}-degraded"][good],
                    np.repeat(file[f"{band}-speech"], n, axis=0),
                    values[good].astype(np.float32),
                )
            )
    pairs = Pairs(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    if not len(pairs.pesq):
        raise AudioError(f"pesq scores none of the clips in {band}")
    return pairs


def load_kinds(files: Iterable[Path], band: Band) -> np.ndarray:
    """Returns how each of the pairs that `load_pairs` gives was made worse."""
    kinds = []
    for path in files:
        with np.load(path) as file:
            kinds.append(file["kind"][_good(file, band)])
    return np.concatenate(kinds)


def _good(file: Any, band: Band) -> np.ndarray:
    """Says which pairs have a score."""
    degraded = file[f"{band}-degraded"]
    return np.isfinite(file[f"{band}-pesq"]) & np.isfinite(degraded).all(axis=(1, 2))


def judge(
    pairs: Pairs, kinds: np.ndarray, calibration: Calibration, band: Band, size: int
) -> dict[str, Any]:
    """Compares a calibration with `pesq`: the kinds it was made for, the others, and one by one."""
    differences = predict(pairs, calibration, band, size) - pairs.pesq
    is_unseen = np.isin(kinds, UNSEEN_KINDS)
    groups = {"all": ~is_unseen, "not calibrated on": is_unseen}
    groups |= {kind: kinds == kind for kind in np.unique(kinds).tolist()}
    return {
        kind: {
            "pairs": int(np.sum(group)),
            "mean_difference": round(float(np.mean(differences[group])), 4),
            "median_error": round(float(np.median(np.abs(differences[group]))), 4),
            "error_95": round(float(np.quantile(np.abs(differences[group]), 0.95)), 4),
        }
        for kind, group in groups.items()
        if group.any()
    }


def fit(pairs: Pairs, band: Band, settings: Settings) -> Calibration:
    """Moves the published constants by Adam until the surrogate says what `pesq` says.

    What is lowered is Huber's loss of the difference in MOS, and how rough the curves are.
    """
    start = _free(published())
    steps = settings.epochs * -(-len(pairs.pesq) // settings.batch)
    warmup = max(steps // 20, 1)
    schedule = optax.warmup_cosine_decay_schedule(
        settings.learning_rate / 20, settings.learning_rate, warmup, max(steps, warmup + 1)
    )
    optimizer = optax.adam(schedule)

    def loss_of(free: Calibration, batch: Pairs) -> Float[Array, ""]:
        said = _said(batch, _bound(free), band)
        errors = optax.losses.huber_loss(said, batch.pesq, delta=_HUBER)
        curves = jnp.stack([getattr(free, name) for name in _CURVES])
        roughness = jnp.sum(jnp.mean(jnp.square(jnp.diff(curves, 2)), axis=1))
        moved = jax.tree.map(lambda a, b: jnp.mean(jnp.square(a - b)), free, start)
        distance = sum(jax.tree.leaves(moved), start=jnp.zeros(()))
        return jnp.mean(errors) + _ROUGHNESS * roughness + _DISTANCE * distance

    @jax.jit
    def step(free: Any, state: Any, batch: Pairs) -> tuple[Any, Any, Array]:
        loss, gradient = jax.value_and_grad(loss_of)(free, batch)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(free, updates), state, loss

    free, state = start, optimizer.init(start)
    rng = np.random.default_rng(0)
    with tqdm(total=steps, desc=f"calibrating {band}", unit="step", disable=None) as bar:
        for batch in itertools.islice(_batches(pairs, settings.batch, rng), steps):
            free, state, loss = step(free, state, batch)
            bar.update()
            if bar.n % 20 == 0:
                bar.set_postfix(loss=f"{float(loss):.4f}")
    return _bound(free)


def _batches(pairs: Pairs, size: int, rng: np.random.Generator) -> Iterable[Pairs]:
    """Endless passes in random order; the last batch of one is filled up from the next."""
    order: list[int] = []
    while True:
        while len(order) < size:
            order.extend(rng.permutation(len(pairs.pesq)).tolist())
        chosen, order = order[:size], order[size:]
        yield Pairs(*(array[chosen] for array in pairs))


def predict(pairs: Pairs, calibration: Calibration, band: Band, size: int) -> np.ndarray:
    """What the surrogate says of pairs, MOS-LQO [P], so many at a time."""
    said = jax.jit(lambda batch: _said(batch, calibration, band))
    starts = range(0, len(pairs.pesq), size)
    return np.concatenate([said(Pairs(*(a[s : s + size] for a in pairs))) for s in starts])


def _said(batch: Pairs, calibration: Calibration, band: Band) -> Float[Array, " P"]:
    return jax.vmap(lambda x, y, speech: score(x, y, speech, calibration, band))(
        jnp.asarray(batch.original), jnp.asarray(batch.degraded), jnp.asarray(batch.speech)
    )


def _free(calibration: Calibration) -> Any:
    """Numbers without bounds, all of the order of one."""
    values = {
        name: jnp.asarray(value) / 10
        if name in _DECIBELS
        else jnp.asarray(value)
        if name in _CURVES
        else jnp.log(jnp.asarray(value))
        for name, value in calibration._asdict().items()
    }
    return Calibration(**values)


def _bound(free: Any) -> Calibration:
    """The inverse of `_free`."""
    values = {
        name: value * 10 if name in _DECIBELS else value if name in _CURVES else jnp.exp(value)
        for name, value in free._asdict().items()
    }
    return Calibration(**values)


def _rounded(value: Array) -> Any:
    """To five digits, as JSON."""
    return json.loads(json.dumps(np.asarray(value, np.float64).tolist()), parse_float=_five_digits)


def _five_digits(text: str) -> float:
    return float(f"{float(text):.5g}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs from the command line; returns the exit code of `run_command`."""

    def work() -> str:
        result = run(parse_settings(Settings, "train.surrogate", __doc__, argv))
        return json.dumps({band: result[band]["held_out"] for band in BANDS}, indent=1)

    return run_command("train.surrogate", work)


if __name__ == "__main__":
    sys.exit(main())
