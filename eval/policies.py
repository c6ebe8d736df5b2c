"""Which bins to keep: policies and their settings, compared with one decoder.

``python -m eval.policies --data $JAXSPARSE_DATA/valid --decoder pyramid --clips 10`` makes masks of
the first 77,276 samples of each clip, fills in what they hide, puts the kept bins back and makes
sound with the original phases. It reports MSE, PESQ in both bands, STOI and the seconds that a mask
takes, as mean and standard error over the clips.

--share replaces the shares of policies that choose a part of the bins by score, --window and
--damping the settings of those that score by contrast; several values of each make a grid. Settings
that a table of results is to be made with are found so on clips of the valid split, never of test.
"""

import itertools
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from eval import report
from eval.command import parse_settings, run_command
from eval.reconstruction import CONFIG, Fill, fill, make_synthesis, mask_key
from eval.report import TITLES, Phases
from eval.rows import Row
from jaxsparse import pretrained
from jaxsparse.contracts import Policy
from jaxsparse.data.clips import Clip, find_clips
from jaxsparse.data.folder import CLIP_SAMPLES
from jaxsparse.errors import AudioError
from jaxsparse.masks import count_observed
from jaxsparse.metrics import Metric, ScorePool
from jaxsparse.policies import POLICIES, Contrast, ScoredPolicy
from jaxsparse.settings import SettingsError, check_least
from jaxsparse.spectrogram import log_power
from jaxsparse.transforms.stft import stft
from jaxsparse.types import SAMPLE_RATE

SCORES: tuple[Metric, ...] = ("pesq_nb", "pesq_wb", "stoi")
METRICS = ("mse", *SCORES, "seconds")


@dataclass(frozen=True)
class Settings:
    """Settings of a comparison of policies."""

    data: Path
    """Folder of clips, searched in depth, or a prepared data set."""
    split: str | None = None
    """Split of a prepared data set, by default train."""
    decoder: str = "pyramid"
    """What fills in: a name, or the path of a .safetensors file."""
    policies: tuple[str, ...] = tuple(POLICIES)
    """Policies by name."""
    window: tuple[int, ...] = ()
    """Bins over which contrast is measured, odd numbers; by default those of each policy."""
    damping: tuple[float, ...] = ()
    """Shares of the mean around that contrast takes off; by default those of each policy."""
    share: tuple[float, ...] = ()
    """Shares of bins chosen by score, in thousandths; by default those of each policy."""
    sparsity: tuple[float, ...] = (0.9, 0.95)
    """Shares of bins that are hidden."""
    clips: int | None = None
    """Only the first clips."""
    phase_threshold: Literal["75", "70", "65", "60"] | None = None
    """Phases of bins more than so many dB below the loudest one are 0; by default none are."""
    n_samples: int = CLIP_SAMPLES
    """Length of a clip in samples at 16 kHz; longer ones are cut, shorter ones padded."""
    seed: int = 0
    """Of the masks, with the clip's name."""
    workers: int | None = None
    """Processes that compute PESQ and STOI; one for each CPU by default."""
    json: bool = False
    """Print the JSON summary instead of the table."""


def run(settings: Settings) -> dict[str, Any]:
    """Compares the policies and returns the summary.

    Raises:
        AudioError: If a clip can't be read; it is named.
        JaxsparseError: If there is no such decoder.
        OSError: If the data can't be found.
        SettingsError: If a setting is out of range.
    """
    check_least(settings, dict.fromkeys(("clips", "workers"), 1))
    # What `pesq` takes at least.
    check_least(settings, {"n_samples": SAMPLE_RATE // 4})
    sparsities = settings.sparsity
    if not all(0 < s < 1 for s in sparsities) or not 0 < len(sparsities) == len(set(sparsities)):
        raise SettingsError("sparsity needs numbers between 0 and 1, each of them once")
    for name in ("share", "damping"):
        if not all(map(math.isfinite, getattr(settings, name))):
            raise SettingsError(f"{name} must be a number")
    policies = candidates(settings)
    clips = find_clips(settings.data, settings.split)[: settings.clips]
    groups: dict[tuple[str, float], list[Row]] = {}
    total = len(clips) * len(policies) * len(settings.sparsity)
    with ScorePool(settings.workers) as pool, tqdm(total=total, unit="mask", disable=None) as bar:
        for row in evaluate(settings, policies, clips, pool):
            groups.setdefault((row["policy"], row["sparsity"]), []).append(row)
            bar.update()
    return {
        "decoder": settings.decoder,
        "phase_threshold": settings.phase_threshold,
        "clips": len(clips),
        "groups": [
            {"policy": policy, "sparsity": sparsity}
            | {m: report.statistics([[row[m]] for row in rows]) for m in METRICS}
            for (policy, sparsity), rows in sorted(groups.items(), key=lambda group: group[0][1])
        ],
    }


def candidates(settings: Settings) -> dict[str, Policy]:
    """Policies with all settings that the grid has for them, by what tells them apart.

    Raises:
        SettingsError: If a policy is not there, or a setting is out of range.
    """
    found: dict[str, Policy] = {}
    for name in settings.policies:
        if name not in POLICIES:
            raise SettingsError(f"no policy is named {name!r}; there are {', '.join(POLICIES)}")
        try:
            found |= dict(_grid(settings, name, POLICIES[name]))
        except ValueError as error:
            raise SettingsError(str(error)) from error
    return found


def _grid(settings: Settings, name: str, policy: Policy) -> Iterator[tuple[str, Policy]]:
    if not isinstance(policy, ScoredPolicy) or not policy.share:
        yield name, policy
        return
    scores: list[Any] = [policy.score]
    if isinstance(policy.score, Contrast):
        windows = settings.window or (policy.score.window,)
        dampings = settings.damping or (policy.score.damping,)
        scores = [Contrast(*each) for each in itertools.product(windows, dampings)]
    shares = [Fraction(str(share)) for share in settings.share] or [policy.share]
    for score, share in itertools.product(scores, shares):
        told = {"share": f"{float(share):g}"} if settings.share else {}
        if isinstance(score, Contrast) and (settings.window or settings.damping):
            told |= {"window": str(score.window), "damping": f"{score.damping:g}"}
        label = ", ".join([name, *(" ".join(pair) for pair in told.items())])
        yield label, replace(policy, score=score, share=share)


def evaluate(
    settings: Settings, policies: dict[str, Policy], clips: Sequence[Clip], pool: ScorePool
) -> Iterator[Row]:
    """Rows of all clips, sparsities and policies; a clip is scored while the next one is made."""
    complete = fill(pretrained.load_decoder(settings.decoder))
    make = {label: jax.jit(policy) for label, policy in policies.items()}
    waiting: list[Row] = []
    for clip in clips:
        made = list(_process(settings, make, complete, clip, pool))
        yield from map(_finished, waiting)
        waiting = made
    yield from map(_finished, waiting)


def _process(
    settings: Settings, make: dict[str, Any], complete: Fill, clip: Clip, pool: ScorePool
) -> Iterator[Row]:
    """A clip's rows, with futures in the place of scores."""
    try:
        signal = clip.read(settings.n_samples)
    except AudioError as error:
        raise AudioError(f"{clip.name}: {error}") from error
    phases: Phases = settings.phase_threshold or "all"
    synthesize = make_synthesis((phases,), settings.n_samples, 0)
    spectra = stft(jnp.asarray(signal), CONFIG)[None]
    dense = log_power(spectra[0])[None]
    keys = mask_key(settings.seed, clip.name)[None]
    for sparsity, (label, policy) in itertools.product(settings.sparsity, make.items()):
        given = keys[0], dense[0], count_observed(dense.shape[1:], sparsity)
        # Compiles what isn't yet, so that it isn't timed.
        jax.block_until_ready(policy(*given))
        start = time.perf_counter()
        masks = jax.block_until_ready(policy(*given))[None]
        row = {"policy": label, "sparsity": sparsity, "seconds": time.perf_counter() - start}
        errors, _, sounds = synthesize(spectra, dense, masks, complete(dense, masks), keys, True)
        sound = np.asarray(sounds[phases][0])
        scores = {
            metric: pool.submit(metric, reference=signal, estimate=sound, sample_rate=SAMPLE_RATE)
            for metric in SCORES
        }
        yield row | {"mse": float(errors[0])} | scores


def _finished(row: Row) -> Row:
    return row | {metric: row[metric].result().value for metric in SCORES}


def table(summary: dict[str, Any]) -> str:
    """The summary as Markdown."""
    header = ["policy", "sparsity", *(TITLES.get(m, "seconds a mask") for m in METRICS)]
    lines = [
        [group["policy"], f"{group['sparsity']:g}"]
        + [report.cell(group[metric], report.DIGITS.get(metric, 3)) for metric in METRICS]
        for group in summary["groups"]
    ]
    within = summary["phase_threshold"]
    return report.grid(header, lines) + (
        f"\nClips: {summary['clips']}; decoder: {summary['decoder']}; phases: "
        f"{f'within {within} dB' if within else 'all'}; kept bins put back; mean ± standard error "
        "over clips.\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs from the command line; returns the exit code of `run_command`."""

    def work() -> str:
        settings = parse_settings(Settings, "eval.policies", __doc__, argv)
        summary = run(settings)
        return json.dumps(summary, indent=1) if settings.json else table(summary)

    return run_command("eval.policies", work, stopped="nothing of it is kept")


if __name__ == "__main__":
    sys.exit(main())
