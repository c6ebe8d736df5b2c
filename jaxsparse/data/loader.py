"""Clips as shuffled batches of a fixed length, with what is known about the unusable ones."""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from jaxsparse.audio import open_audio, read_audio
from jaxsparse.data.clips import Clip, FileClip, as_clips
from jaxsparse.data.folder import CLIP_SAMPLES
from jaxsparse.errors import AudioError, needs_extra

if TYPE_CHECKING:
    import grain

# Files of this size in all are decoded in seconds; of more of them only the headers are read.
FULL_CHECK_BYTES = 1 << 29

_log = logging.getLogger(__name__)


def check_clips(
    clips: Iterable[Clip | str | os.PathLike[str]],
    *,
    full: bool | None = None,
    strict: bool = False,
    progress: bool = False,
) -> tuple[list[Clip], dict[str, str]]:
    """Sorts out the clips that aren't usable audio.

    Args:
      clips: clips, or paths of audio files.
      full: decode every file to its end (True) or read the headers only (False). By default small
        corpora are decoded, large ones aren't. Clips of a prepared data set are always decoded.
      strict: raise for the first unusable clip; otherwise each is named in a warning in the log.
      progress: show a progress bar.

    Returns:
      The usable clips in the order given, and what is wrong with the others, by name.

    Raises:
      AudioError: ``strict``, and a clip is unusable (named in the message); or none is usable.
    """
    given = as_clips(clips)
    if full is None:
        full = _total_bytes(given) <= FULL_CHECK_BYTES

    def problem(clip: Clip) -> str | None:
        return _problem(clip, full=full)

    usable: list[Clip] = []
    skipped: dict[str, str] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            reasons = zip(given, pool.map(problem, given), strict=True)
            for clip, reason in tqdm(
                reasons, "checking audio", len(given), disable=not progress, leave=False
            ):
                if reason is None:
                    usable.append(clip)
                elif strict:
                    raise AudioError(f"{clip.name}: {reason}")
                else:
                    skipped[clip.name] = reason
                    _log.warning("skipping %s: %s", clip.name, reason)
        finally:
            # Neither an error nor Ctrl-C waits for the rest of the corpus.
            pool.shutdown(cancel_futures=True)
    if not usable:
        raise AudioError(f"none of {len(given)} clips is usable audio")
    return usable, skipped


def _total_bytes(clips: Sequence[Clip]) -> int:
    total = 0
    for clip in clips:
        try:
            total += clip.path.stat().st_size if isinstance(clip, FileClip) else 0
        except OSError:
            continue
    return total


def _problem(clip: Clip, *, full: bool) -> str | None:
    try:
        if not isinstance(clip, FileClip):
            clip.read()
        elif full:
            read_audio(clip.path)
        else:
            with open_audio(clip.path):
                pass
    except AudioError as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)
    return None


@dataclass(frozen=True)
class _ReadClip:
    """Turns an index into a clip's audio; where a clip fails, takes the next one that doesn't.

    What an index gives depends on the clips' contents only, so runs stay reproducible.
    """

    clips: tuple[Clip, ...]
    n_samples: int
    random_offset: bool
    strict: bool

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        for candidate in range(index, index + len(self.clips)):
            candidate %= len(self.clips)
            clip = self.clips[candidate]
            try:
                audio = clip.read(self.n_samples, rng if self.random_offset else None)
            except (AudioError, OSError) as error:
                if self.strict:
                    raise AudioError(f"{clip.name}: {error}") from error
                continue
            return {
                "audio": audio,
                "index": np.int32(candidate),
                "wanted": np.int32(index),
            }
        raise AudioError(f"none of {len(self.clips)} clips can be read any more")


@dataclass(frozen=True)
class Loader:
    """Batches of clips, and what is known about them.

    Attributes:
      clips: those in use; ``clips[i]`` is the one behind a batch's ``index`` i.
      skipped: names of the unusable ones with the reason; those found while reading are added then.
      dataset: grain's dataset; its iterators have ``get_state``, ``set_state`` and ``close``; those
        with workers must be closed before the process ends.
    """

    clips: tuple[Clip, ...]
    skipped: dict[str, str] = field(repr=False)
    dataset: "grain.IterDataset[dict[str, np.ndarray]]" = field(repr=False)

    def __iter__(self) -> "grain.DatasetIterator[dict[str, np.ndarray]]":
        return self.dataset.__iter__()


def make_loader(
    clips: Iterable[Clip | str | os.PathLike[str]],
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
    process: tuple[int, int] = (0, 1),
) -> Loader:
    """Builds the loader of a training or an evaluation.

    A batch is ``{"audio": float32 [B, N], "index": int32 [B]}``. Each epoch has an order and
    offsets of its own, from ``seed``; batches run on across the end of an epoch. The order doesn't
    depend on ``workers``, ``threads`` or ``prefetch``; an iterator's state does on ``workers``.

    Args:
      clips: such as those of ``find_clips``, or paths of audio files.
      batch_size: clips in a batch.
      seed: of the order and the offsets, 0 to 2^32 - 1.
      n_samples: length of each part, in samples at 16 kHz.
      num_epochs: passes over the clips; None goes on for ever.
      shuffle: a new order every epoch, or the clips' own.
      random_offset: parts start anywhere in a clip, or at its start.
      drop_remainder: leave out a last batch that isn't full.
      strict: an unusable clip is an error; otherwise it is named, counted and skipped.
      full_check: see ``check_clips``.
      workers: processes that read ahead; 0 reads in threads of this process.
      threads: threads that read batches, in each process.
      prefetch: batches that wait in memory, in each process.
      progress: show a progress bar while the clips are checked.
      process: index of this process and number of processes that share each batch; that of index p
        of P gets the clips p, p + P, p + 2 P and so on of it, and reads no others.

    Returns:
      The loader; iterate over it.

    Raises:
      AudioError: no clip is usable, or one isn't and ``strict`` is set.
      MissingExtraError: grain is not installed.
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
    index, n_processes = process
    if not 0 <= index < n_processes or batch_size % n_processes:
        raise ValueError(f"a batch of {batch_size} has no equal part {index} of {n_processes}")
    with needs_extra("train"):
        import grain

    usable, skipped = check_clips(clips, full=full_check, strict=strict, progress=progress)
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

    indices = grain.MapDataset.range(len(usable)).seed(seed)
    if shuffle:
        indices = indices.shuffle()
    parts = indices.random_map(read_clip).repeat(num_epochs)
    if n_processes > 1:
        parts = parts[index::n_processes]
    own_size = batch_size // n_processes
    batches = parts.batch(own_size, drop_remainder=drop_remainder).to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(prefetch, threads))
    )
    if workers:
        _allow_workers()
        batches = batches.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)
        )
    # In this process, after the workers: the clips that they had to skip are known here.
    return Loader(tuple(usable), skipped, batches.map(note_skipped))


def _cyclic_range(start: int, stop: int, length: int) -> Iterator[int]:
    return (i % length for i in range(start, stop if stop >= start else stop + length))


def _note(skipped: dict[str, str], clip: Clip) -> None:
    if clip.name not in skipped:
        skipped[clip.name] = _problem(clip, full=True) or "could not be read"
        _log.warning("skipping %s: %s", clip.name, skipped[clip.name])


def _allow_workers() -> None:
    # grain hands absl's flags to its workers, and they are only readable once parsed.
    with needs_extra("train"):
        from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
