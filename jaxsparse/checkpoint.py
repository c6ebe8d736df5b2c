"""Checkpoints of a training run: the only file that knows orbax.

Orbax writes a checkpoint whole or not at all, but reads a changed byte without noticing it and
never goes back to an older checkpoint. So each one holds a list of the SHA-256 of its files,
``SHA256SUMS``, which ``sha256sum -c`` reads too, and the newest whose files still agree is taken.
"""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxsparse.errors import JaxsparseError, describe, one_line

# What a write fails of where the disk or the account is at fault, and not the program.
_DISK_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EROFS,
    errno.EACCES,
)
SUMS = "SHA256SUMS"
_UNFINISHED = ".unfinished"
# Of lists and metadata beside the arrays.
_OVERHEAD = 1 << 17
_BLOCK = 1 << 20

_log = logging.getLogger(__name__)


class CheckpointError(JaxsparseError):
    """Checkpoints of which none is whole and unaltered, or one of another network."""


class Checkpoint(NamedTuple):
    """What a checkpoint held.

    Attributes:
        path: Its directory.
        step: Steps done.
        state: The arrays by their path in the tree.
        data: What the loop carries on beside the arrays, as JSON values.
        settings: What decides the run, as JSON values.
    """

    path: Path
    step: int
    state: dict[str, np.ndarray]
    data: dict[str, Any]
    settings: dict[str, Any]

    def restore(self, like: Any) -> Any:
        """Gives the arrays the structure of a tree.

        Args:
            like: A tree of arrays, or of their shapes and dtypes.

        Raises:
            CheckpointError: If the tree has other leaves, shapes or dtypes.
        """
        leaves, structure = jax.tree.flatten(like)
        expected = dict(zip(_names(like), leaves, strict=True))
        if {k: (v.shape, v.dtype) for k, v in expected.items()} != {
            k: (v.shape, v.dtype) for k, v in self.state.items()
        }:
            raise CheckpointError(f"{self.path}: the state has other arrays than this network's")
        return jax.tree.unflatten(structure, [self.state[name] for name in expected])


class Checkpoints:
    """The checkpoints of one run, a directory each, named after the step."""

    def __init__(self, directory: str | os.PathLike[str], *, keep: int = 2) -> None:
        """Of a directory, which the first `save` creates; the newest `keep` ones stay in it."""
        self._directory = Path(directory).absolute()
        self._keep = keep
        self._damaged: list[Path] = []
        self._checkpointer = _make_checkpointer()

    def steps(self) -> list[int]:
        """The steps at which there is a checkpoint, good or damaged, in ascending order.

        Raises:
            OSError: If the directory can't be read.
        """
        try:
            names = [path.name for path in self._directory.iterdir() if path.is_dir()]
        except FileNotFoundError:
            return []
        return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))

    def newest(
        self, check: Callable[[Checkpoint], object] = lambda found: None
    ) -> Checkpoint | None:
        """Reads the newest checkpoint that is whole and unaltered.

        Damaged ones that are newer are named in a warning each. They keep their place until the
        next `save`, which renames them to ``damaged-STEP``.

        Args:
            check: Looks at what a checkpoint holds; whatever it raises means damage.

        Returns:
            The checkpoint; None if there is none at all.

        Raises:
            CheckpointError: If there are some, and every one is damaged.
            MemoryError: If there is no room for one.
        """
        self._damaged = []
        for step in reversed(self.steps()):
            path = self._directory / str(step)
            try:
                found = self._read(step)
                check(found)
                return found
            except MemoryError:
                raise
            # Files whose list of checksums fits may hold anything still, and orbax raise anything.
            except Exception as error:
                self._damaged.append(path)
                _log.warning("%s is damaged and passed over: %s", path, _reason(error))
        if self._damaged:
            raise CheckpointError(f"{self._directory}: no checkpoint is whole and unaltered")
        return None

    def save(self, step: int, state: Any, data: dict[str, Any], settings: dict[str, Any]) -> None:
        """Writes a checkpoint; when this returns it is complete.

        Args:
            step: Steps done.
            state: A tree of arrays.
            data: What is to be carried on beside them, as JSON values.
            settings: What decides the run, as JSON values.

        Raises:
            OSError: If it can't be written, such as on a full disk. The older ones stay.
        """
        leaves = jax.device_get(jax.tree.leaves(state))
        arrays = dict(zip(_names(state), map(np.asarray, leaves), strict=True))
        path = self._directory / str(step)
        unfinished = path.with_name(path.name + _UNFINISHED)
        about = {"step": step, "data": data, "settings": settings}
        size = sum(array.nbytes for array in arrays.values()) + len(json.dumps(about))
        self._directory.mkdir(parents=True, exist_ok=True)
        try:
            self._make_way()
            _check_room(unfinished, size)
            self._checkpointer.save(
                unfinished,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(arrays),
                    about=ocp.args.JsonSave(about),
                ),
            )
            with open(unfinished / SUMS, "xb") as file:
                file.write(_sums(unfinished))
                os.fsync(file.fileno())
            unfinished.rename(path)
        except Exception as error:
            self._remove_unfinished()
            code = _disk_error(error)
            if code is None:
                raise
            raise OSError(code, os.strerror(code), os.fspath(path)) from error
        for old in self.steps()[: -self._keep]:
            shutil.rmtree(self._directory / str(old))

    def close(self) -> None:
        """Ends orbax's threads."""
        self._checkpointer.close()

    def _read(self, step: int) -> Checkpoint:
        path = self._directory / str(step)
        _check(path)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(), about=ocp.args.JsonRestore())
        found = self._checkpointer.restore(path, args=items)
        return _checkpoint(path, step, found["state"], found["about"])

    def _make_way(self) -> None:
        """Sets damaged ones aside: their steps come again, and they don't count as kept."""
        self._remove_unfinished()
        for path in self._damaged:
            target = path.with_name(f"damaged-{path.name}")
            if target.exists():
                shutil.rmtree(target)
            path.rename(target)
        self._damaged = []

    def _remove_unfinished(self) -> None:
        for path in self._directory.glob(f"*{_UNFINISHED}*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _make_checkpointer() -> ocp.Checkpointer:
    """Makes one that waits for no other process: one of a cluster writes, and each reads."""
    index = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process-{index}"
    )
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone)
    )
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _check_room(path: Path, size: int) -> None:
    """Writes and removes a file as large as the checkpoint will be.

    On a full disk orbax fails too, but its threads print tracebacks beside the error.

    Raises:
        OSError: If there is no room, or no permission.
    """
    try:
        with path.open("xb") as file:
            for start in range(0, size + _OVERHEAD, _BLOCK):
                file.write(bytes(min(_BLOCK, size + _OVERHEAD - start)))
    finally:
        path.unlink(missing_ok=True)


def _check(path: Path) -> None:
    """Compares a checkpoint's files with its list.

    Raises:
        CheckpointError: If the list is missing, or a file does not agree with it.
        OSError: If a file can't be read.
    """
    if not (path / SUMS).is_file():
        raise CheckpointError(f"it has no {SUMS}")
    expected, found = (path / SUMS).read_bytes(), _sums(path)
    if found == expected:
        return
    listed = set(expected.splitlines())
    changed = [os.fsdecode(line[66:]) for line in found.splitlines() if line not in listed]
    if not changed:
        raise CheckpointError(f"a file that {SUMS} lists is missing")
    raise CheckpointError(f"{one_line(', '.join(changed[:3]))}: not the SHA-256 that {SUMS} lists")


def _checkpoint(path: Path, step: int, state: Any, about: Any) -> Checkpoint:
    """Makes a checkpoint of what orbax has read.

    Raises:
        CheckpointError: If a part is missing or of a wrong type, or it is that of another step.
    """
    arrays = {name: np.asarray(value) for name, value in state.items()}
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise CheckpointError(f"{one_line(name)} is no array of numbers")
    if not isinstance(about, dict):
        raise CheckpointError("what stands beside the arrays is no JSON object")
    for name, kind in {"step": int, "data": dict, "settings": dict}.items():
        if type(about.get(name)) is not kind:
            raise CheckpointError(f"its {name} is missing or of a wrong type")
    if about["step"] != step:
        raise CheckpointError(f"it is that of step {about['step']}")
    return Checkpoint(path, step, arrays, about["data"], about["settings"])


def _reason(error: Exception) -> str:
    """What is wrong with a checkpoint, in one line."""
    if isinstance(error, CheckpointError | OSError):
        return describe(error)
    # Those of orbax and of a missing key say little without their kind, or too much.
    return f"{type(error).__name__}: {one_line(str(error))[:300]}"


def _sums(directory: Path) -> bytes:
    """A line for every file below a directory, as ``sha256sum`` writes it."""
    lines = []
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_file() and name != SUMS:
            with path.open("rb") as file:
                lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n")
    return os.fsencode("".join(lines))


def _names(tree: Any) -> list[str]:
    return [
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _disk_error(error: BaseException) -> int | None:
    """The errno behind an error of orbax; its storage layer only names it in the text."""
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return error.errno
    return next((code for code in _DISK_ERRORS if os.strerror(code) in str(error)), None)
