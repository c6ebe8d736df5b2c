"""A folder tree of audio files as batches of clips of a fixed length."""

import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32
from tqdm import tqdm

from jaxsparse.audio import (
    open_audio,
    read_audio,
    read_frames,
    resample,
    resampled_length,
    to_mono,
)
from jaxsparse.errors import AudioError
from jaxsparse.types import SAMPLE_RATE

if TYPE_CHECKING:
    import grain

# Samples of a clip of the thesis: 302 frames of 256, and what the first and last one need.
CLIP_SAMPLES = 77_276
# fmt: off
EXTENSIONS = frozenset({
    ".aif", ".aifc", ".aiff", ".au", ".caf", ".flac", ".mp3", ".nist", ".oga", ".ogg", ".opus",
    ".rf64", ".snd", ".sph", ".voc", ".w64", ".wav", ".wave",
})
# fmt: on
# A whole corpus of this size is decoded in seconds; of a larger one only the headers are read.
FULL_CHECK_BYTES = 1 << 29

_log = logging.getLogger(__name__)


def find_audio(root: str | os.PathLike[str]) -> list[Path]:
    """Lists the audio files below a directory, in an order that is the same on every machine.

    Args:
      root: a directory; links to directories inside it aren't followed.

    Returns:
      The files whose extension is one of ``EXTENSIONS`` (in any case), hidden ones left out, sorted
      by their path relative to ``root``.

    Raises:
      FileNotFoundError: there is no such directory.
      NotADirectoryError: it is a file.
      PermissionError: it, or a directory below it, can't be read.
      AudioError: there is no audio file below it.
    """
    root = Path(root)
    if not root.exists():
        raise FileNotFoundError(2, os.strerror(2), os.fspath(root))
    if not root.is_dir():
        raise NotADirectoryError(20, os.strerror(20), os.fspath(root))
    found = []
    for directory, subdirectories, names in os.walk(root, onerror=_raise):
        subdirectories[:] = [name for name in subdirectories if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS:
                found.append(Path(directory, name))
    if not found:
        raise AudioError("no audio files below this directory")
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def portable_path(path: Path) -> str:
    """Writes a path without what is particular to this machine, for cards and tables.

    Args:
      path: below the directory ``$JAXSPARSE_DATA``, relative, or any other.

    Returns:
      The path from ``$JAXSPARSE_DATA``; a relative one as it is; of any other only the name.
    """
    root = os.environ.get("JAXSPARSE_DATA")
    if root and path.is_relative_to(root):
        return str(Path("$JAXSPARSE_DATA") / path.relative_to(root))
    return path.name if path.is_absolute() else str(path)


def _raise(error: OSError) -> None:
    raise error


def read_segment(
    path: str | os.PathLike[str], n_samples: int, rng: np.random.Generator | None = None
) -> Float32[np.ndarray, " N"]:
    """Reads a clip of a fixed length at 16 kHz, mono, decoding no more of the file than it needs.

    Args:
      path: an audio file of any rate and number of channels.
      n_samples: length wanted, in samples at 16 kHz.
      rng: draws the offset uniformly from those at which the clip fits; without it the clip starts
        at the file's start.

    Returns:
      float32 [n_samples]; a shorter file is padded with zeros at the end.

    Raises:
      OSError: the file can't be opened.
      AudioError: the file is unusable, or the part that was read is.
    """
    with open_audio(path) as audio:
        rate = audio.samplerate
        length = resampled_length(audio.frames, rate, SAMPLE_RATE)
        start = int(rng.integers(max(0, length - n_samples) + 1)) if rng is not None else 0
        # At multiples of `source` frames both rates have a sample at the same instant. The margin
        # around the clip is longer than soxr's filter, so that the cut can't be heard.
        divisor = math.gcd(rate, SAMPLE_RATE)
        source, target = rate // divisor, SAMPLE_RATE // divisor
        margin = 0 if rate == SAMPLE_RATE else math.ceil(max(rate, SAMPLE_RATE) / 50 / source)
        first = max(0, start // target - margin)
        last = -(-(start + n_samples) // target) + margin
        count = min(audio.frames, last * source) - first * source
        try:
            audio.seek(first * source)
        except RuntimeError as error:
            raise AudioError(f"cannot be decoded at sample {first * source}") from error
        samples = read_frames(audio, count)
    if len(samples) < count:
        raise AudioError(f"the file is truncated: {len(samples)} of {count} samples were read")
    clip = resample(to_mono(samples)[:, None], rate, SAMPLE_RATE)[:, 0]
    clip = clip[start - first * target :][:n_samples]
    return np.pad(clip, (0, n_samples - len(clip)))


def check_files(
    files: Iterable[str | os.PathLike[str]],
    *,
    full: bool | None = None,
    strict: bool = False,
    progress: bool = False,
) -> tuple[list[Path], dict[Path, str]]:
    """Sorts out the files that aren't usable audio.

    Args:
      files: paths.
      full: decode every file to its end (True) or read the headers only (False). By default small
        corpora are decoded, large ones aren't.
      strict: raise for the first unusable file; otherwise each is named in a warning in the log.
      progress: show a progress bar.

    Returns:
      The usable files in the order given, and the others with what is wrong with each.

    Raises:
      AudioError: ``strict``, and a file is unusable (named in the message); or none is usable.
    """
    paths = [Path(path) for path in files]
    if full is None:
        full = _total_bytes(paths) <= FULL_CHECK_BYTES

    def problem(path: Path) -> str | None:
        return _problem(path, full=full)

    usable: list[Path] = []
    skipped: dict[Path, str] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reasons = zip(paths, pool.map(problem, paths), strict=True)
        for path, reason in tqdm(
            reasons, "checking audio", len(paths), disable=not progress, leave=False
        ):
            if reason is None:
                usable.append(path)
            elif strict:
                pool.shutdown(cancel_futures=True)
                raise AudioError(f"{path}: {reason}")
            else:
                skipped[path] = reason
                _log.warning("skipping %s: %s", path, reason)
    if not usable:
        raise AudioError(f"none of {len(paths)} files is usable audio")
    return usable, skipped


def _total_bytes(paths: Sequence[Path]) -> int:
    total = 0
    for path in paths:
        try:
            total += path.stat().st_size
        except OSError:
            continue
    return total


def _problem(path: Path, *, full: bool) -> str | None:
    try:
        if full:
            read_audio(path)
        else:
            with open_audio(path):
                pass
    except AudioError as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)
    return None


@dataclass(frozen=True)
class _ReadClip:
    """Turns an index into a clip; where the file fails, takes the next one that doesn't.

    What an index gives depends on the files' contents only, so runs stay reproducible.
    """

    files: tuple[Path, ...]
    n_samples: int
    random_offset: bool
    strict: bool

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        for candidate in range(index, index + len(self.files)):
            candidate %= len(self.files)
            path = self.files[candidate]
            try:
                audio = read_segment(path, self.n_samples, rng if self.random_offset else None)
            except (AudioError, OSError) as error:
                if self.strict:
                    raise AudioError(f"{path}: {error}") from error
                continue
            return {
                "audio": audio,
                "index": np.int32(candidate),
                "wanted": np.int32(index),
            }
        raise AudioError(f"none of {len(self.files)} files can be read any more")


@dataclass(frozen=True)
class Loader:
    """Batches of clips, and what is known about their files.

    Attributes:
      files: the files in use; ``files[i]`` is the one behind a batch's ``index`` i.
      skipped: the unusable ones with the reason; those found while reading are added then.
      dataset: grain's dataset; its iterators have ``get_state``, ``set_state`` and ``close``; those
        with workers must be closed before the process ends.
    """

    files: tuple[Path, ...]
    skipped: dict[Path, str] = field(repr=False)
    dataset: "grain.IterDataset[dict[str, np.ndarray]]" = field(repr=False)

    def __iter__(self) -> "grain.DatasetIterator[dict[str, np.ndarray]]":
        return self.dataset.__iter__()


def make_loader(
    files: Iterable[str | os.PathLike[str]],
    *,
    batch_size: int,
    seed: int,
    n_samples: int = CLIP_SAMPLES,
    num_epochs: int | None = None,
    shuffle: bool = True,
    random_offset: bool = True,
    drop_remainder: bool = True,
    strict: bool = False,
    full_check: bool | None = None,
    workers: int = 0,
    threads: int = 1,
    prefetch: int = 2,
    progress: bool = False,
) -> Loader:
    """Builds the loader of a training or an evaluation.

    A batch is ``{"audio": float32 [B, N], "index": int32 [B]}``. Each epoch has an order and
    offsets of its own, from ``seed``; batches run on across the end of an epoch. The order doesn't
    depend on ``workers``, ``threads`` or ``prefetch``; an iterator's state does on ``workers``.

    Args:
      files: paths, such as those of ``find_audio``.
      batch_size: clips in a batch.
      seed: of the order and the offsets, 0 to 2^32 - 1.
      n_samples: length of a clip, in samples at 16 kHz.
      num_epochs: passes over the files; None goes on for ever.
      shuffle: a new order every epoch, or the files' own.
      random_offset: clips start anywhere in a file, or at its start.
      drop_remainder: leave out a last batch that isn't full.
      strict: an unusable file is an error; otherwise it is named, counted and skipped.
      full_check: see ``check_files``.
      workers: processes that read ahead; 0 reads in threads of this process.
      threads: threads that read batches, in each process.
      prefetch: batches that wait in memory, in each process.
      progress: show a progress bar while the files are checked.

    Returns:
      The loader; iterate over it.

    Raises:
      AudioError: no file is usable, or one isn't and ``strict`` is set.
      ValueError: a setting is out of range, or there are fewer clips than a single batch needs.
    """
    counts = {"batch_size": batch_size, "n_samples": n_samples, "threads": threads}
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    if workers < 0:
        raise ValueError(f"workers must be at least 0, not {workers}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be from 0 to 2^32 - 1, not {seed}")
    import grain

    usable, skipped = check_files(files, full=full_check, strict=strict, progress=progress)
    if drop_remainder and num_epochs is not None and len(usable) * num_epochs < batch_size:
        raise ValueError(
            f"{len(usable)} clips in {num_epochs} epochs don't fill a batch of {batch_size}"
        )
    read_clip = _ReadClip(tuple(usable), n_samples, random_offset, strict)

    def note_skipped(batch: dict[str, Any]) -> dict[str, Any]:
        for index, wanted in zip(batch["index"], batch.pop("wanted"), strict=True):
            for bad in _cyclic_range(int(wanted), int(index), len(usable)):
                _note(skipped, usable[bad])
        # Workers' arrays lie in shared memory that must be given back before the process ends.
        return {name: np.array(value) for name, value in batch.items()} if workers else batch

    clips = grain.MapDataset.range(len(usable)).seed(seed)
    if shuffle:
        clips = clips.shuffle()
    clips = clips.random_map(read_clip).repeat(num_epochs)
    batches = clips.batch(batch_size, drop_remainder=drop_remainder).to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(prefetch, threads))
    )
    if workers:
        _allow_workers()
        batches = batches.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)
        )
    # In this process, after the workers: the files that they had to skip are known here.
    return Loader(tuple(usable), skipped, batches.map(note_skipped))


def _cyclic_range(start: int, stop: int, length: int) -> Iterator[int]:
    return (i % length for i in range(start, stop if stop >= start else stop + length))


def _note(skipped: dict[Path, str], path: Path) -> None:
    if path not in skipped:
        skipped[path] = _problem(path, full=True) or "could not be read"
        _log.warning("skipping %s: %s", path, skipped[path])


def _allow_workers() -> None:
    # grain hands absl's flags to its workers, and they are only readable once parsed.
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
