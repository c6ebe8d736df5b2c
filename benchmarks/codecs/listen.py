"""A page on which to hear this project's codec beside classical ones, on the same clips.

``python -m benchmarks.codecs.listen --data $JAXSPARSE_DATA/test --out listen`` codes a few clips,
spread over the folder, at 3, 6 and 12 kbit/s, and with Opus, Opus decoded with LACE, and AMR-WB at
the nearest rates that these have. OUT gets index.html, which switches between all versions while
they play, their sounds (WAV) and spectrograms (PNG), and scores.json: bytes, kbit/s, PESQ in both
bands and STOI. The page loads nothing from elsewhere, so OUT can be opened as it is or put on any
server. Codecs that this machine lacks are named on the page; ``python -m benchmarks.codecs --help``
says what brings them.

Three clips of ten seconds take a minute on two cores.
"""

import json
import math
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32
from tqdm import tqdm

import jaxsparse
from benchmarks.codecs import own
from benchmarks.codecs.coding import Coded, Task, code
from benchmarks.codecs.peers import PEERS
from eval.command import parse_settings, run_command
from jaxsparse import audio
from jaxsparse.codec import MDCTSettings
from jaxsparse.data.clips import Clip, find_clips
from jaxsparse.demo_page import METRICS, Player, Source, format_score, make_environment, make_figure
from jaxsparse.errors import AudioError, one_line
from jaxsparse.files import whole_folder
from jaxsparse.metrics import Metric, Score, ScorePool, check_installed
from jaxsparse.plots import draw_levels
from jaxsparse.settings import SettingsError, check_least, check_ranges
from jaxsparse.spectrogram import log_power
from jaxsparse.transforms.stft import STFTConfig, stft
from jaxsparse.types import SAMPLE_RATE

Peer = Literal["opus", "opus-lace", "opus-nolace", "amr-wb"]

SETTINGS: dict[Peer, tuple[float, ...]] = {
    "opus": (6.0, 8.5, 12.0),
    "opus-lace": (6.0, 8.5, 12.0),
    "opus-nolace": (6.0, 8.5, 12.0),
    "amr-wb": (6.60, 8.85, 12.65),
}
"""Codecs to hear beside this project's, and what kbit/s they are asked for."""
CONFIG = STFTConfig()
TEMPLATE = "listen.html.jinja"


@dataclass(frozen=True)
class Settings:
    """Settings of a page to listen to."""

    data: Path
    """Folder of speech, searched in depth, or a prepared data set."""
    out: Path = Path("listen")
    """Folder for the page."""
    clips: int = 3
    """How many clips to take, spread evenly over all, in the order of their names."""
    seconds: float = 10.0
    """Of each clip; shorter ones are taken whole."""
    kbps: tuple[float, ...] = (3.0, 6.0, 12.0)
    """Bit rates of this project's codec."""
    effort: int = 0
    """Of this project's codec, 0 to 3."""
    codecs: tuple[Peer, ...] = ("opus", "opus-lace", "amr-wb")
    """What to hear beside it."""
    workers: int | None = None
    """Processes that compute PESQ and STOI; one for each CPU by default."""
    force: bool = False
    """Write into a folder that isn't empty; what has the same names is overwritten."""


class Version(NamedTuple):
    """A clip coded in one way, its scores still in the making.

    `sound` and `picture` are names of files.
    """

    task: Task
    n_bytes: int
    scores: dict[Metric, Future[Score]]
    sound: str
    picture: str


class Shown(NamedTuple):
    """A clip on the page: its samples as its file holds them, their levels, and its versions."""

    name: str
    samples: Float32[np.ndarray, " N"]
    levels: Float[np.ndarray, "F T"]
    sound: str
    picture: str
    versions: list[Version]

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return len(self.samples) / SAMPLE_RATE


def run(settings: Settings) -> Path:
    """Makes the page and returns its path.

    Raises:
        AudioError: If a clip can't be read; it is named.
        CodecError: If a codec fails; it is named.
        MissingExtraError: If a package that computes scores is not installed.
        OSError: If the data can't be found, or the folder isn't empty or can't be written.
        SettingsError: If a setting is out of range.
    """
    _check(settings)
    for metric in METRICS:
        check_installed(metric)
    chosen = choose_clips(find_clips(settings.data), settings.clips)
    tasks, missing = make_tasks(settings)
    with (
        whole_folder(settings.out, force=settings.force) as folder,
        ScorePool(settings.workers) as pool,
        tqdm(total=len(chosen) * len(tasks), unit="version", disable=None) as bar,
    ):
        clips = []
        for number, clip in enumerate(chosen, 1):
            shown = _start(clip, number, settings.seconds, folder)
            for version in _versions(shown, number, tasks, folder, pool):
                shown.versions.append(version)
                bar.update()
            clips.append(shown)
        figures = {"missing": missing, "clips": [_figures(clip) for clip in clips]}
        (folder / "scores.json").write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
        (folder / "index.html").write_text(render_page(clips, tasks, figures), "utf-8")
    return settings.out / "index.html"


def _check(settings: Settings) -> None:
    out = settings.out
    # Before anything is loaded, and with the flag's name.
    if out.is_dir() and any(out.iterdir()) and not settings.force:
        raise FileExistsError(f"{out} is not empty (--force overwrites what has the same names)")
    check_least(settings, {"clips": 1, "workers": 1})
    check_ranges(settings, {"seconds": (0.5, 60.0)})
    if not 0 < len(settings.kbps) == len(set(settings.kbps)):
        raise SettingsError("kbps needs at least one value, each of them once")
    if len(settings.codecs) != len(set(settings.codecs)):
        raise SettingsError("codecs needs each of its values once")
    for kbps in settings.kbps:
        MDCTSettings(kbps=kbps, effort=settings.effort)


def choose_clips(clips: Sequence[Clip], n: int) -> list[Clip]:
    """Chooses so many clips, spread evenly over all of them, or all where there are fewer."""
    n = min(n, len(clips))
    return [clips[i * len(clips) // n] for i in range(n)]


def make_tasks(settings: Settings) -> tuple[list[Task], dict[str, str]]:
    """Lists what to code with, this project's codec first.

    Returns:
        The tasks, and why codecs that were asked for can't be used, by their titles.
    """
    mine = own.make_codec(settings.kbps, settings.effort)
    tasks = [Task(own.NAME, mine, kbps) for kbps in settings.kbps]
    missing = {}
    for name in settings.codecs:
        peer = PEERS[name]
        reason = peer.available()
        if reason is not None:
            missing[peer.title] = reason
        else:
            tasks += [Task(name, peer, setting) for setting in SETTINGS[name]]
    return tasks, missing


def _start(clip: Clip, number: int, seconds: float, folder: Path) -> Shown:
    """Writes a clip's own files; its versions are still to come."""
    # Not FLAC: there are places in such files that Chromium fails to seek to.
    sound, picture = f"{number}-original.wav", f"{number}-original.png"
    try:
        # Given the length, it would fill up with zeros, which cost a variable rate nothing.
        samples = clip.read()[: round(seconds * SAMPLE_RATE)]
        audio.write_wav(folder / sound, samples[:, None], SAMPLE_RATE)
    except AudioError as error:
        raise AudioError(f"{clip.name}: {error}") from error
    # What is coded is what is heard, rounding included.
    samples = audio.read_audio(folder / sound)[0][:, 0]
    levels = _levels(samples)
    (folder / picture).write_bytes(draw_levels(levels, float(levels.max())))
    return Shown(clip.name, samples, levels, sound, picture, [])


def _levels(samples: Float32[np.ndarray, " N"]) -> Float[np.ndarray, "F T"]:
    return np.asarray(log_power(stft(jnp.asarray(samples), CONFIG)))


def _versions(
    clip: Shown, number: int, tasks: Sequence[Task], folder: Path, pool: ScorePool
) -> Iterator[Version]:
    """Codes a clip in all ways, writes the files and has the sounds scored."""
    peak = float(clip.levels.max())
    for task in tasks:
        coded = code(task, clip.samples)
        stem = f"{number}-{task.name}-{task.setting:g}"
        sound, picture = f"{stem}.wav", f"{stem}.png"
        audio.write_wav(folder / sound, coded.decoded[:, None], SAMPLE_RATE)
        (folder / picture).write_bytes(draw_levels(_levels(coded.decoded), peak))
        yield Version(task, coded.n_bytes, _submit(clip, coded, pool), sound, picture)


def _submit(clip: Shown, coded: Coded, pool: ScorePool) -> dict[Metric, Future[Score]]:
    pair = {"reference": clip.samples, "estimate": coded.decoded, "sample_rate": SAMPLE_RATE}
    return {metric: pool.submit(metric, **pair) for metric in METRICS}


def _figures(clip: Shown) -> dict[str, Any]:
    """Gives what the page says of a clip, for machines; null where there is no score."""
    return {
        "clip": clip.name,
        "seconds": clip.seconds,
        "sound": clip.sound,
        "versions": [_scored(clip, version) for version in clip.versions],
    }


def _scored(clip: Shown, version: Version) -> dict[str, Any]:
    scores = {metric: score.result() for metric, score in version.scores.items()}
    return {
        "codec": version.task.codec.title,
        "setting": version.task.setting,
        "bytes": version.n_bytes,
        "kbps": 8 * version.n_bytes / clip.seconds / 1000,
        **{m: None if math.isnan(score.value) else score.value for m, score in scores.items()},
        "reasons": {metric: score.reason for metric, score in scores.items() if score.reason},
        "sound": version.sound,
    }


def render_page(clips: Sequence[Shown], tasks: Sequence[Task], figures: dict[str, Any]) -> str:
    """Renders the page.

    Args:
        clips: With all of their versions.
        tasks: What they were coded with.
        figures: What ``scores.json`` holds.
    """
    template = make_environment(Path(__file__).parent).get_template(TEMPLATE)
    return template.render(
        version=jaxsparse.__version__,
        clips=[_block(*each) for each in zip(clips, figures["clips"], strict=True)],
        titles=[title for title, _ in METRICS.values()],
        counted={task.codec.title: task.codec.counted for task in tasks},
        missing=figures["missing"],
    )


def _block(clip: Shown, figures: dict[str, Any]) -> dict[str, Any]:
    """Describes a clip to the template: its player, and a row of figures for each version."""
    n_frames = clip.levels.shape[1]

    def source(title: str, detail: str, sound: str, picture: str) -> Source:
        heard = (picture, "Spectrogram.", "What you hear.")
        figure = make_figure(*heard, clip.seconds, n_frames, CONFIG.hop_length)
        return Source(title, detail, sound, [figure])

    groups = {"": [source("Original", "16-bit samples", clip.sound, clip.picture)]}
    for version, scored in zip(clip.versions, figures["versions"], strict=True):
        pesq, stoi = (format_score(metric, scored[metric]) for metric in ("pesq_wb", "stoi"))
        detail = f"PESQ {pesq}, STOI {stoi}"
        shown = source(f"{scored['kbps']:.1f} kbit/s", detail, version.sound, version.picture)
        groups.setdefault(scored["codec"], []).append(shown)
    rate = SAMPLE_RATE / CONFIG.hop_length
    return {
        "player": Player(clip.name, clip.seconds, n_frames, rate, groups),
        "rows": [
            {**scored, "scores": [format_score(metric, scored[metric]) for metric in METRICS]}
            for scored in figures["versions"]
        ],
        "reasons": [
            f"{scored['codec']}, {scored['kbps']:.1f} kbit/s, {METRICS[metric][0]}: {reason}"
            for scored in figures["versions"]
            for metric, reason in scored["reasons"].items()
        ],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs from the command line; returns the exit code of `run_command`."""
    name = "benchmarks.codecs.listen"

    def work() -> str:
        return one_line(str(run(parse_settings(Settings, name, __doc__, argv))))

    return run_command(name, work, stopped="nothing of it is kept")


if __name__ == "__main__":
    sys.exit(main())
