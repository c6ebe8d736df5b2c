"""Many files, one after the other: the next is read and the last written while one is coded.

What codes is imported where it is needed, so that a plan is refused before that is loaded.
"""

import errno
import os
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from jaxsparse import audio
from jaxsparse.data.folder import EXTENSIONS, find_files
from jaxsparse.errors import AudioError, ContainerError, JaxsparseError
from jaxsparse.files import atomic_write

JSAC, WAV = ".jsac", ".wav"
# Endings, in small letters, of a folder's files that the ones with an ending are made of.
_SOURCES: dict[str, Collection[str]] = {JSAC: EXTENSIONS, WAV: {JSAC}}
# Errors of writing that are about one file's name; all others, as a full disk, meet the next too.
_OF_THE_NAME = frozenset(
    {
        *(errno.EEXIST, errno.EILSEQ, errno.EINVAL, errno.EISDIR),
        *(errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR),
    }
)
_NO_FILE = "not a regular file"

_T = TypeVar("_T")
_R = TypeVar("_R")


class Job(NamedTuple):
    """A file to read, and the one to make of it."""

    source: Path
    target: Path


class Coded(NamedTuple):
    """What one file became.

    Attributes:
        content: What is to be written.
        seconds: Of the audio.
        coded_bytes: Of the ``.jsac`` file that holds those seconds; None if it holds more.
        damages: A line on each part that was concealed.
    """

    content: Any
    seconds: float
    coded_bytes: int | None
    damages: tuple[str, ...] = ()


class Work(NamedTuple):
    """How one file is made of another one.

    Attributes:
        read: Reads a source; called in a thread of its own.
        code: Makes what is to be written of what was read.
        write: Writes that, whole or not at all; called in a thread of its own.
        is_whole: Whether a target that exists is a whole file, and needn't be made again; called
            in the thread that reads.
    """

    read: Callable[[Path], Any]
    code: Callable[[Any], Coded]
    write: Callable[[Path, Any], None]
    is_whole: Callable[[Path], bool]


class Failure(NamedTuple):
    """A file that could not be read, coded or written, and what is wrong."""

    path: Path
    reason: str


class AlreadyThere(NamedTuple):
    """A target that was whole before."""

    target: Path


class Done(NamedTuple):
    """What is counted of a file that was made, and said of it."""

    seconds: float
    bytes_in: int
    bytes_out: int
    coded_bytes: int | None
    notes: tuple[str, ...] = ()


Outcome = Done | AlreadyThere | Failure


@dataclass
class Summary:
    """What became of all files.

    Attributes:
        done: Files that were made.
        already_there: Files that were whole before.
        failures: The other ones.
        seconds: Of audio in the files that were made.
        bytes_in: Of what they were made of.
        bytes_out: Of them.
        coded_bytes: Of the ``.jsac`` files among the two; None if they hold more than `seconds`.
        elapsed: Seconds that all took.
    """

    done: int = 0
    already_there: int = 0
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0
    coded_bytes: int | None = 0
    elapsed: float = 0.0

    def add(self, outcome: Outcome) -> None:
        """Counts what became of one file."""
        if isinstance(outcome, Failure):
            self.failures.append(outcome)
        elif isinstance(outcome, AlreadyThere):
            self.already_there += 1
        else:
            self.done += 1
            self.seconds += outcome.seconds
            self.bytes_in += outcome.bytes_in
            self.bytes_out += outcome.bytes_out
            if outcome.coded_bytes is None or self.coded_bytes is None:
                self.coded_bytes = None
            else:
                self.coded_bytes += outcome.coded_bytes

    def as_dict(self) -> dict[str, Any]:
        """Returns all that is worth telling, JSON-ready; rates are None where nothing was made."""
        made = self.seconds > 0
        rated = made and self.coded_bytes is not None
        return {
            "files": self.done + self.already_there + len(self.failures),
            "done": self.done,
            "already_there": self.already_there,
            "failed": len(self.failures),
            "seconds": self.seconds,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "kbit_per_s": 8 * (self.coded_bytes or 0) / self.seconds / 1000 if rated else None,
            "elapsed_seconds": self.elapsed,
            "times_real_time": self.seconds / self.elapsed if made and self.elapsed else None,
            "failures": [{"path": str(path), "reason": reason} for path, reason in self.failures],
        }


def plan(inputs: Sequence[Path], out: Path, suffix: str) -> list[Job]:
    """Says which file is made of which.

    Args:
        inputs: Files, and folders of which all are meant that end as an audio file, or a ``.jsac``
            file, does.
        out: The folder of what is made: of a folder's file at the same relative path, of any other
            one by its name. Where it lies within a folder of the inputs, it is no input itself.
        suffix: Ending of what is made, `JSAC` or `WAV`.

    Raises:
        OSError: If a folder can't be read.
        JaxsparseError: If a folder holds no such file, two files would have the same target, or a
            target is one of the inputs.
    """
    jobs = []
    for path in inputs:
        if not os.path.isdir(path):
            jobs.append(Job(path, (out / path.name).with_suffix(suffix)))
            continue
        found = find_files(path, _SOURCES[suffix], without=out)
        if not found:
            kind = "audio" if suffix == JSAC else JSAC
            raise JaxsparseError(f"{path}: no {kind} files below this directory")
        jobs += [Job(each, out / each.relative_to(path).with_suffix(suffix)) for each in found]
    _check_targets(jobs)
    return jobs


def _check_targets(jobs: Iterable[Job]) -> None:
    """Refuses jobs of which one would overwrite what is another one's."""
    sources: dict[Path, Path] = {}
    for source, target in jobs:
        if target in sources:
            raise JaxsparseError(f"{sources[target]} and {source} would both become {target}")
        sources[target] = source
    inputs = {_identity(source) for source in sources.values()} - {None}
    for target in sources:
        if _identity(target) in inputs:
            raise JaxsparseError(f"{target}: is one of the inputs")


def _identity(path: Path) -> tuple[int, int] | None:
    """Returns what all names of a file have in common; None where there is no file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def code_files(
    jobs: Iterable[Job],
    work: Work,
    *,
    force: bool = False,
    on_outcome: Callable[[Outcome], object] = lambda outcome: None,
) -> Summary:
    """Makes one file of each, but for those that are there; what fails doesn't stop the others.

    At any time one file is read, one coded and one written, so that memory doesn't grow with their
    number.

    Args:
        jobs: As `plan` gives them.
        work: What is done.
        force: Whether to make files again that are there.
        on_outcome: Called with what became of each file, in their order.

    Raises:
        OSError: If a file can't be written, and the next one couldn't either: a full disk, or a
            folder that mustn't be written to. What is written by then is whole.
    """
    summary = Summary()
    started = time.perf_counter()
    with _thread() as reader, _thread() as writer:
        read = _ahead(reader, partial(_read, work, force), jobs)
        # Not a generator: that would hold a clip until it has got the next one.
        coded = map(partial(_code, work), read)
        for outcome in _ahead(writer, partial(_write, work), coded):
            summary.add(outcome)
            on_outcome(outcome)
    summary.elapsed = time.perf_counter() - started
    return summary


@contextmanager
def _thread() -> Iterator[ThreadPoolExecutor]:
    """Starts a thread, and lets it finish what it has begun, but nothing else."""
    executor = ThreadPoolExecutor(1)
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


def _ahead(
    executor: ThreadPoolExecutor, function: Callable[[_T], _R], items: Iterable[_T]
) -> Iterator[_R]:
    """Yields what a function makes of items; that of the next one is begun before."""
    waiting: Future[_R] | None = None
    for item in items:
        following = executor.submit(function, item)
        if waiting is not None:
            yield waiting.result()
        waiting = following
    if waiting is not None:
        yield waiting.result()


class _Loaded(NamedTuple):
    """A file that was read: its job, its bytes and what it holds."""

    job: Job
    size: int
    content: Any


class _Made(NamedTuple):
    """A file that is to be written: its job, the bytes that were read and what they became."""

    job: Job
    size: int
    coded: Coded


def _read(work: Work, force: bool, job: Job) -> _Loaded | AlreadyThere | Failure:
    """Reads what is to be coded."""
    there = _attempt(job.target, lambda: _is_there(work, force, job.target))
    if there:
        return there if isinstance(there, Failure) else AlreadyThere(job.target)
    return _attempt(
        job.source, lambda: _Loaded(job, os.stat(job.source).st_size, work.read(job.source))
    )


def _is_there(work: Work, force: bool, target: Path) -> bool:
    """Says whether a target can stay as it is.

    Raises:
        JaxsparseError: If it can't be replaced either.
        OSError: If it can't be read.
    """
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(mode):
        raise JaxsparseError(_NO_FILE)
    return not force and work.is_whole(target)


def _code(work: Work, loaded: _Loaded | AlreadyThere | Failure) -> _Made | AlreadyThere | Failure:
    """Codes what was read."""
    if not isinstance(loaded, _Loaded):
        return loaded
    job, size, content = loaded
    return _attempt(job.source, lambda: _Made(job, size, work.code(content)))


def _write(work: Work, made: _Made | AlreadyThere | Failure) -> Outcome:
    """Writes what was coded."""
    if not isinstance(made, _Made):
        return made
    target, coded = made.job.target, made.coded

    def write() -> Done:
        # Folders appear with their first file.
        target.parent.mkdir(parents=True, exist_ok=True)
        work.write(target, coded.content)
        notes = tuple(f"{made.job.source}: {damage}" for damage in coded.damages)
        return Done(coded.seconds, made.size, os.stat(target).st_size, coded.coded_bytes, notes)

    return _attempt(target, write, lambda error: error.errno in _OF_THE_NAME)


def _attempt(
    path: Path,
    function: Callable[[], _R],
    is_of_the_file: Callable[[OSError], bool] = lambda error: True,
) -> _R | Failure:
    """Calls a function; what the user can do something about is a failure of a file."""
    try:
        return function()
    except JaxsparseError as error:
        return Failure(path, str(error))
    except MemoryError:
        return Failure(path, "does not fit into memory")
    except OSError as error:
        if not is_of_the_file(error):
            raise
        return Failure(path, error.strerror or str(error))


def compression(settings: Any, **networks: Any) -> Work:
    """Makes ``.jsac`` files of audio files; see `stream.compress` for what it is told."""
    from jaxsparse.codec import stream

    def code(clip: tuple[Any, int]) -> Coded:
        samples, sample_rate = clip
        data = stream.compress(samples, sample_rate, settings, **networks)
        return Coded(data, len(samples) / sample_rate, len(data))

    return Work(audio.read_audio, code, atomic_write, _is_whole_jsac)


def decompression(
    *, start: float = 0.0, duration: float | None = None, conceal: bool = False, **networks: Any
) -> Work:
    """Makes WAV files of ``.jsac`` files; see `stream.decompress` for what it is told.

    Files of the STFT grid, in which nothing can be concealed, are decoded all the same.
    """
    from jaxsparse.codec import mdct_container, stream

    is_part = start > 0 or duration is not None

    def code(data: bytes) -> Coded:
        damages: list[str] = []
        samples, sample_rate = stream.decompress(
            data,
            start=start,
            duration=duration,
            conceal=conceal and mdct_container.is_mdct(data),
            on_damage=damages.append,
            **networks,
        )
        seconds, coded_bytes = len(samples) / sample_rate, None if is_part else len(data)
        return Coded((samples, sample_rate), seconds, coded_bytes, tuple(damages))

    def write(target: Path, clip: tuple[Any, int]) -> None:
        audio.write_wav(target, *clip)

    return Work(_read_jsac, code, write, _is_whole_wav)


def _read_jsac(path: Path) -> bytes:
    from jaxsparse.codec import container

    if not stat.S_ISREG(os.stat(path).st_mode):
        raise JaxsparseError(_NO_FILE)
    with open(path, "rb") as file:
        return container.read(file)


def _is_whole_jsac(path: Path) -> bool:
    from jaxsparse.codec.description import describe

    try:
        describe(_read_jsac(path))
    except ContainerError:
        return False
    return True


def _is_whole_wav(path: Path) -> bool:
    """Says so of any audio file, and refuses others: they may be recordings, not made by us."""
    try:
        with audio.open_audio(path):
            return True
    except AudioError as error:
        message = f"exists already, but {error} (--force overwrites it)"
        raise AudioError(message) from error
