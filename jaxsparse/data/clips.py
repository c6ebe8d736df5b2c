"""One interface over where clips come from: a folder of audio files, or a prepared data set."""

import functools
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int16

from jaxsparse.audio import read_audio, resample, to_mono
from jaxsparse.data.folder import find_audio, read_segment
from jaxsparse.errors import AudioError, needs_extra
from jaxsparse.types import SAMPLE_RATE

# What tensorflow-datasets writes last into a version's folder.
INFO_FILE = "dataset_info.json"
# DATA_DIR/NAME/CONFIG/VERSION is the deepest that it nests.
_MAX_DEPTH = 3
_PCM_SCALE = 1 << 15


@runtime_checkable
class Clip(Protocol):
    """A piece of mono audio at 16 kHz that is read when it is needed.

    Clips are hashable and can be pickled: the processes that read ahead get copies.
    """

    @property
    def name(self) -> str:
        """Tells the clip from all others of its source, alike on every machine."""
        ...

    def read(
        self, n_samples: int | None = None, rng: np.random.Generator | None = None
    ) -> Float32[np.ndarray, " N"]:
        """Reads the clip, or a part of it.

        Args:
          n_samples: length wanted, in samples at 16 kHz; None reads all of it.
          rng: draws the offset uniformly from those at which the part fits; without it the part is
            the clip's start.

        Returns:
          float32 [N]; a clip shorter than ``n_samples`` is padded with zeros at the end.

        Raises:
          OSError: the clip can't be opened.
          AudioError: it is unusable; the message doesn't name the clip.
        """
        ...


@dataclass(frozen=True)
class FileClip:
    """An audio file of any rate and number of channels.

    Attributes:
      path: where it lies.
      name: its path relative to the folder that was searched, with ``/``.
    """

    path: Path
    name: str

    def read(
        self, n_samples: int | None = None, rng: np.random.Generator | None = None
    ) -> Float32[np.ndarray, " N"]:
        """Reads the file, or a part of it: see ``Clip.read``."""
        if n_samples is not None:
            return read_segment(self.path, n_samples, rng)
        samples, rate = read_audio(self.path)
        return resample(to_mono(samples)[:, None], rate, SAMPLE_RATE)[:, 0]


@dataclass(frozen=True)
class PreparedClip:
    """An example of a prepared data set.

    Attributes:
      directory: the data set's folder, with its ``dataset_info.json``.
      split: of the data set.
      index: in the split.
      name: the example's feature ``file``; without one, its split and index.
    """

    directory: Path
    split: str
    index: int
    name: str

    def read(
        self, n_samples: int | None = None, rng: np.random.Generator | None = None
    ) -> Float32[np.ndarray, " N"]:
        """Reads the example's audio, or a part of it: see ``Clip.read``."""
        samples = _read_example(_open_split(self.directory, self.split), self.index)["audio"]
        if n_samples is not None:
            room = max(0, len(samples) - n_samples)
            start = int(rng.integers(room + 1)) if rng is not None else 0
            samples = samples[start : start + n_samples]
            samples = np.pad(samples, (0, n_samples - len(samples)))
        return _to_float(samples)


def _to_float(samples: Int16[np.ndarray, " N"]) -> Float32[np.ndarray, " N"]:
    return samples.astype(np.float32) / np.float32(_PCM_SCALE)


def find_clips(root: str | os.PathLike[str], split: str | None = None) -> tuple[Clip, ...]:
    """Lists the clips of a folder of audio files, or of one split of a prepared data set.

    Args:
      root: a directory. Where it, or exactly one folder up to three levels below it, holds a
        ``dataset_info.json``, it is a data set that tensorflow-datasets has prepared, such as that
        of ``jaxsparse.data.flickr8k``; otherwise all audio files below it are meant.
      split: of the prepared data set, by default ``train``; None for a folder of files.

    Returns:
      The clips, sorted by name.

    Raises:
      OSError: the directory is missing, no directory, or can't be read.
      AudioError: there is no audio; the data set is half-written, damaged, not of 16 kHz mono
        audio, or has no such split; or a folder of files is asked for a split. The message names
        the directory.
      MissingExtraError: it is a prepared data set, and tensorflow-datasets is not installed.
    """
    root = Path(root)
    prepared = _find_prepared(root)
    if prepared is not None:
        return _prepared_clips(prepared, split or "train")
    if split is not None:
        raise AudioError(f"{root}: not a prepared data set, so it has no split {split!r}")
    return tuple(FileClip(path, path.relative_to(root).as_posix()) for path in find_audio(root))


def as_clips(files: Iterable[Clip | str | os.PathLike[str]]) -> tuple[Clip, ...]:
    """Makes clips of paths, named by the path as it is given; clips stay as they are."""
    return tuple(
        item if isinstance(item, Clip) else FileClip(Path(item), os.fspath(item)) for item in files
    )


def _find_prepared(root: Path) -> Path | None:
    """The folder of the prepared data set at or below ``root``, if there is one.

    Raises:
      OSError: a directory is missing, no directory, or can't be read.
      AudioError: there are several, or a half-written one and no other.
    """
    found: list[Path] = []
    unfinished: list[Path] = []
    level = [root]
    for _ in range(_MAX_DEPTH + 1):
        below: list[Path] = []
        for directory in level:
            with os.scandir(directory) as entries:
                names = {
                    entry.name: entry.is_dir(follow_symlinks=False)
                    for entry in entries
                    if not entry.name.startswith(".")
                }
            if INFO_FILE in names:
                found.append(directory)
            elif any(".array_record-" in name for name in names):
                unfinished.append(directory)
            else:
                below += [directory / name for name, is_dir in sorted(names.items()) if is_dir]
        level = below
    finished = [path for path in found if not path.name.startswith("incomplete.")]
    if len(finished) > 1:
        names = ", ".join(path.relative_to(root).as_posix() for path in finished)
        raise AudioError(f"{root}: several prepared data sets, choose one of {names}")
    if not finished and (found or unfinished):
        raise AudioError(
            f"{(found + unfinished)[0]}: a half-written data set, it must be prepared anew"
        )
    return finished[0] if finished else None


def _prepared_clips(directory: Path, split: str) -> tuple[Clip, ...]:
    source = _open_split(directory, split)
    clips: list[PreparedClip] = []
    errors: list[AudioError] = []
    for index in range(len(source)):
        name = f"{split}/{index:06d}"
        try:
            name = _read_example(source, index).get("file", name)
        except AudioError as error:
            # One damaged record is a clip that can't be read, not a data set that can't.
            errors.append(error)
        clips.append(PreparedClip(directory, split, index, name))
    if len(errors) == len(clips):
        reason = errors[0] if errors else "it is empty"
        raise AudioError(f"{directory}: nothing of split {split!r} can be read: {reason}")
    if len({clip.name for clip in clips}) < len(clips):
        raise AudioError(f"{directory}: several clips of split {split!r} have the same name")
    return tuple(sorted(clips, key=lambda clip: clip.name))


@functools.lru_cache(maxsize=8)
def _open_split(directory: Path, split: str) -> Any:
    """Opens a split for random access, once in each process.

    Raises:
      AudioError: the data set is damaged, of another kind, or has no such split.
      MissingExtraError: tensorflow-datasets is not installed.
    """
    with needs_extra("train"):
        import tensorflow_datasets as tfds

    # Whatever a damaged file makes of it: JSON, protobuf, lookup and file errors.
    try:
        builder: Any = tfds.builder_from_directory(directory)
        features, splits = builder.info.features, builder.info.splits
        names = sorted(splits)
    except Exception as error:
        raise AudioError(f"{directory}: a damaged data set: {_first_line(error)}") from error
    if split not in names:
        raise AudioError(f"{directory}: no split {split!r}, there are {', '.join(names)}")
    audio = features["audio"] if features is not None and "audio" in features else None
    if getattr(audio, "shape", None) != (None,) or getattr(audio, "np_dtype", None) != np.int16:
        raise AudioError(f"{directory}: no data set of mono audio of 16 bits")
    rate = (builder.info.metadata or {}).get("sample_rate", "unknown")
    if rate != SAMPLE_RATE:
        raise AudioError(f"{directory}: the sample rate is {rate}, not {SAMPLE_RATE} Hz")
    try:
        source = builder.as_data_source(split)
        length = len(source)
    except Exception as error:
        raise AudioError(f"{directory}: a damaged data set: {_first_line(error)}") from error
    if length != splits[split].num_examples:
        raise AudioError(
            f"{directory}: a damaged data set: {length} of {splits[split].num_examples} "
            f"clips of {split}"
        )
    return source


def _read_example(source: Any, index: int) -> dict[str, Any]:
    """Reads one example, with ``audio`` int16 [N] and ``file``, if there is one, as text.

    Raises:
      AudioError: its bytes are damaged.
    """
    try:
        example = dict(source[index])
    except Exception as error:
        raise AudioError(f"the record is damaged: {_first_line(error)}") from error
    if not len(example["audio"]):
        raise AudioError("the clip holds no samples")
    if isinstance(example.get("file"), bytes):
        example["file"] = example["file"].decode()
    return example


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
