"""This project's codec and classical speech codecs, on the same clips.

``python -m benchmarks.codecs --data $JAXSPARSE_DATA/test --out RUN`` codes the first 77,276 samples
of each clip, all of a shorter one, with every codec, at every setting. Bytes are all those that a
decoder gets; decoded signals are cut so that they lie on the originals. PESQ in both bands, STOI
and extended STOI, and with --visqol ViSQOL, are reported as mean and standard error over the clips,
and times as multiples of those of Opus on the same clip in the same run. As `pesq` aligns some
clips wrongly, PESQ in wide band is given a second time, with silence before both sounds.

Codecs that this machine lacks are listed with the reason. The extra ``peers`` brings Opus, LC3 and
ViSQOL; Debian's packages libvo-amrwbenc0, libopencore-amrwb0, libcodec2-1.0 and libspeex1 bring
AMR-WB, Codec2 and Speex; Node and the npm package @wasm-audio-decoders/opus-ml, in node_modules or
$NODE_PATH, bring LACE and NoLACE. MP3 and FLAC come with the core.

RUN gets rows.csv, summary.json, table.md and plots. What is in rows.csv already is not computed
again, so that codecs, settings and clips can be added by a second command.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Float32
from tqdm import tqdm

from benchmarks.codecs import own, quality
from benchmarks.codecs.coding import UNIT, Coded, Task, code
from benchmarks.codecs.contract import MOVED, Codec
from benchmarks.codecs.peers import NAMES, PEERS, find
from benchmarks.codecs.plots import plot
from benchmarks.codecs.summary import TIMES, summarize
from benchmarks.codecs.table import table
from eval.command import parse_settings, run_command
from eval.report import SCORES
from eval.rows import Row, RowFile, parse_reasons
from jaxsparse.data.clips import Clip, find_clips
from jaxsparse.data.folder import CLIP_SAMPLES
from jaxsparse.errors import AudioError
from jaxsparse.files import atomic_write
from jaxsparse.metrics import Metric, Score, ScorePool
from jaxsparse.settings import SettingsError, check_least, check_ranges
from jaxsparse.types import SAMPLE_RATE

# Before both sounds, for `MOVED`.
_SILENCE = SAMPLE_RATE // 4


def _known(name: str) -> str:
    """Reads a codec's name from a cell, and raises `ValueError` if there is none of it."""
    find(name)
    return name


COLUMNS: dict[str, Callable[[str], Any]] = {
    "clip": str,
    "codec": _known,
    "setting": float,
    "samples": int,
    "bytes": int,
    "kbps": float,
    "delay": int,
    **dict.fromkeys(TIMES, float),
    **dict.fromkeys((*SCORES, MOVED, "visqol"), float),
    "reasons": parse_reasons,
}


@dataclass(frozen=True)
class Settings:
    """Settings of a comparison of codecs."""

    data: Path
    """Folder of speech, searched in depth, or a prepared data set."""
    out: Path
    """Folder for rows.csv, summary.json, table.md and plots; a run in it is resumed."""
    codecs: tuple[str, ...] = NAMES
    """What to compare."""
    kbps: tuple[float, ...] = own.KBPS
    """Bit rates of this project's codec."""
    efforts: tuple[int, ...] = (0, 3)
    """Efforts of this project's codec."""
    clips: int | None = None
    """Only the first clips."""
    per_speaker: int | None = None
    """Only the first clips of each speaker, whom a name begins with, up to a hyphen."""
    seconds: float = CLIP_SAMPLES / SAMPLE_RATE
    """Of each clip; shorter ones are taken whole."""
    visqol: bool = False
    """ViSQOL too."""
    workers: int | None = None
    """Processes that compute PESQ and STOI; one for each CPU by default."""


def run(settings: Settings) -> str:
    """Compares, writes what `settings.out` is for, and returns the table.

    Raises:
        AudioError: If a clip can't be read; it is named.
        BlockingIOError: If another process uses `settings.out`.
        CodecError: If a codec fails.
        FileExistsError: If `settings.out` holds a run with other settings.
        MissingExtraError: If a package that computes scores is not installed.
        OSError: If the data can't be found or the results can't be written.
        RowsError: If what is in `settings.out` is damaged.
        SettingsError: If a setting is out of range.
    """
    _check(settings)
    if settings.visqol:
        quality.check_visqol()
    n_samples = round(settings.seconds * SAMPLE_RATE)
    clips = choose_clips(settings)
    codecs = make_codecs(settings)
    missing = {name: why for name, codec in codecs.items() if (why := codec.available())}
    tasks = [
        Task(name, codec, setting)
        for name, codec in codecs.items()
        if name not in missing
        for setting in codec.settings
    ]
    identity = {"n_samples": n_samples, "visqol": settings.visqol}
    with RowFile(settings.out, COLUMNS, identity) as out, ScorePool(settings.workers) as pool:
        out.begin()
        done = {_key(row) for row in out.rows}
        left = {
            clip: [task for task in tasks if (clip.name, task.name, task.setting) not in done]
            for clip in clips
        }
        total, n_left = len(clips) * len(tasks), sum(map(len, left.values()))
        with tqdm(total=total, initial=total - n_left, unit="row", disable=None) as bar:
            for clip, its_tasks in left.items():
                if its_tasks:
                    signal = _read(clip, n_samples)
                    for row in evaluate(clip.name, signal, its_tasks, pool, settings.visqol):
                        out.add(row)
                        bar.update()
        out.rows.sort(key=_key)
        out.rewrite()
        # The file may hold those of other clips, too.
        rows = [row for row in out.rows if row["clip"] in {clip.name for clip in clips}]
        summary = summarize(rows, missing, settings.visqol)
        text = table(summary)
        atomic_write(settings.out / "summary.json", json.dumps(summary, indent=1).encode())
        atomic_write(settings.out / "table.md", text.encode())
        plot(summary, settings.out)
    return text


def _check(settings: Settings) -> None:
    check_least(settings, dict.fromkeys(("clips", "per_speaker", "workers"), 1))
    check_ranges(settings, {"seconds": (0.5, 3_600.0)})
    for name in ("codecs", "kbps", "efforts"):
        values = getattr(settings, name)
        if not 0 < len(values) == len(set(values)):
            raise SettingsError(f"{name} needs at least one value, each of them once")
    for name in settings.codecs:
        if name not in NAMES:
            raise SettingsError(f"no codec is named {name!r}; there are {', '.join(NAMES)}")


def choose_clips(settings: Settings) -> list[Clip]:
    """Lists the clips, with --per-speaker the first ones of each speaker."""
    chosen: list[Clip] = []
    counts: dict[str, int] = {}
    for clip in find_clips(settings.data):
        speaker = PurePosixPath(clip.name).stem.partition("-")[0]
        counts[speaker] = counts.get(speaker, 0) + 1
        if settings.per_speaker is None or counts[speaker] <= settings.per_speaker:
            chosen.append(clip)
    return chosen[: settings.clips]


def make_codecs(settings: Settings) -> dict[str, Codec]:
    """Returns the codecs that were asked for, by name; this project's once for each effort."""
    codecs: dict[str, Codec] = {}
    for name in settings.codecs:
        if name == own.NAME:
            for effort in settings.efforts:
                codecs[f"{name}-{effort}"] = own.make_codec(settings.kbps, effort)
        else:
            codecs[name] = PEERS[name]
    return codecs


def _read(clip: Clip, n_samples: int) -> Float32[np.ndarray, " N"]:
    try:
        # Given the length, it would fill up with zeros, which cost a variable rate nothing.
        return clip.read()[:n_samples]
    except AudioError as error:
        raise AudioError(f"{clip.name}: {error}") from error


def evaluate(
    clip: str,
    signal: Float32[np.ndarray, " N"],
    tasks: Sequence[Task],
    pool: ScorePool,
    with_visqol: bool,
) -> Iterator[Row]:
    """Codes a clip in every way, and then scores all of it.

    Coding comes first, since the scores would take its cores and it is timed.
    """
    unit = None if UNIT.codec.available() else code(UNIT, signal)
    coded = [code(task, signal) for task in tasks]
    scores = [_submit(signal, each, pool) for each in coded]
    for task, each, futures in zip(tasks, coded, scores, strict=True):
        extra = {"visqol": quality.visqol(signal, each.decoded)} if with_visqol else {}
        results = {metric: future.result() for metric, future in futures.items()} | extra
        yield {
            "clip": clip,
            "codec": task.name,
            "setting": task.setting,
            "samples": len(signal),
            "bytes": each.n_bytes,
            "kbps": 8 * each.n_bytes / (len(signal) / SAMPLE_RATE) / 1000,
            "delay": each.delay,
            "encode_seconds": each.encode_seconds,
            "decode_seconds": each.decode_seconds,
            "opus_encode_seconds": unit.encode_seconds if unit else math.nan,
            "opus_decode_seconds": unit.decode_seconds if unit else math.nan,
            "visqol": math.nan,
            **{name: score.value for name, score in results.items()},
            "reasons": {name: score.reason for name, score in results.items() if score.reason},
        }


def _submit(
    signal: Float32[np.ndarray, " N"], coded: Coded, pool: ScorePool
) -> dict[str, Future[Score]]:
    def submit(metric: Metric, silence: int) -> Future[Score]:
        x, y = (np.pad(sound, (silence, 0)) for sound in (signal, coded.decoded))
        return pool.submit(metric, reference=x, estimate=y, sample_rate=SAMPLE_RATE)

    scores = {str(metric): submit(metric, 0) for metric in SCORES}
    return scores | {MOVED: submit("pesq_wb", _SILENCE)}


def _key(row: Row) -> tuple[str, str, float]:
    return row["clip"], row["codec"], row["setting"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs from the command line; returns the exit code of `run_command`."""

    def work() -> str:
        return run(parse_settings(Settings, "benchmarks.codecs", __doc__, argv))

    return run_command("benchmarks.codecs", work)
