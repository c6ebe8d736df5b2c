"""Rows of an evaluation in a CSV file that grows while it runs, so that it can be resumed."""

import contextlib
import csv
import errno
import fcntl
import io
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO, TypeAlias

from jaxsparse import manifest
from jaxsparse.errors import JaxsparseError
from jaxsparse.files import atomic_write
from jaxsparse.strict_json import parse_object

Row: TypeAlias = dict[str, Any]


class RowsError(JaxsparseError):
    """Rows of a run that can't be read."""


class RowFile:
    """``rows.csv`` and ``settings.json`` of a run's folder; a context.

    Within the context the folder is this run's alone; outside it the rows can be read. A line that
    was cut off in the middle of its writing is dropped when the run is resumed.
    """

    def __init__(
        self,
        out: Path,
        columns: Mapping[str, Callable[[str], Any]],
        settings: Mapping[str, Any],
        defaults: Mapping[str, Any] = {},
    ) -> None:
        """Reads a run's folder.

        Args:
            out: The folder.
            columns: Names of the columns, and what turns a cell's text into its value, or raises
                `ValueError`.
            settings: What decides on the rows' values, as JSON.
            defaults: Settings of runs that were made before these were settings.

        Raises:
            FileExistsError: If the folder holds a run with other settings.
            OSError: If the folder can't be read.
            ManifestError: If the settings in it are damaged.
            RowsError: If the rows are.
        """
        self.columns = columns
        if out.exists() and not out.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(out))
        self.settings = settings
        self._defaults = defaults
        self.path = out / "rows.csv"
        self._manifest = out / "settings.json"
        self.rows: list[Row] = []
        self._read()
        self._file: TextIO | None = None
        self._lock: int | None = None

    def __enter__(self) -> "RowFile":
        """Takes the folder, if it is there yet, and reads anew what it holds.

        Raises:
            BlockingIOError: If another process has taken it.
            FileExistsError: If the folder holds a run with other settings by now.
            OSError: If the folder can't be read.
            ManifestError: If the settings in it are damaged.
            RowsError: If the rows are.
        """
        if self.path.parent.exists():
            self._lock = lock_folder(self.path.parent)
            try:
                self._read()
            except BaseException:
                self.__exit__()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            # Each row was flushed; what could not be written has been reported.
            with contextlib.suppress(OSError):
                self._file.close()
        if self._lock is not None:
            os.close(self._lock)
        self._file = self._lock = None

    def begin(self) -> None:
        """Makes the folder, if it isn't there, and writes the settings; `add` sees to it too.

        Raises:
            BlockingIOError: If another process has made the folder meanwhile.
            OSError: If it can't be written.
        """
        folder = self.path.parent
        if self._lock is None:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = lock_folder(folder)
            # There was none to be read when the context began.
            if any(folder.iterdir()):
                raise BlockingIOError(
                    f"{folder} was made by another process meanwhile: run the same command again"
                )
        manifest.write_file(self._manifest, self.settings)

    def add(self, *rows: Row) -> None:
        """Appends rows in one piece; with the first ones the folder is made.

        Raises:
            BlockingIOError: If another process has made the folder meanwhile.
            OSError: If it can't be written; the file is named.
        """
        try:
            file = self._file or self._open()
            file.write(self._lines(rows))
            file.flush()
        except BlockingIOError:
            raise
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self.rows.extend(rows)

    def _open(self) -> TextIO:
        self.begin()
        self.rewrite()
        # A clip's name may hold bytes that are no UTF-8.
        self._file = self.path.open("a", newline="", encoding="utf-8", errors="surrogateescape")
        return self._file

    def rewrite(self) -> None:
        """Writes the file anew, with the rows as they are and in their order."""
        text = ",".join(self.columns) + "\n" + self._lines(self.rows)
        atomic_write(self.path, text.encode(errors="surrogateescape"))

    def _read(self) -> None:
        # Asked first: settings are written before rows, perhaps by another process right now.
        has_rows = self.path.exists()
        if has_rows and not self._manifest.exists():
            raise FileExistsError(
                f"{self.path.parent} holds rows of another program: take another folder"
            )
        manifest.check_file(self._manifest, self.path.parent, self.settings, self._defaults)
        self.rows[:] = self._parse() if self.path.exists() else []

    def _parse(self) -> Iterator[Row]:
        text = self.path.read_text("utf-8", "surrogateescape")
        whole = text[: text.rfind("\n") + 1]
        lines = csv.DictReader(io.StringIO(whole, newline=""), strict=True)
        if missing := [name for name in self.columns if name not in (lines.fieldnames or ())]:
            raise RowsError(
                f"{self.path} is damaged: no column {', '.join(missing)}; if another version made"
                " it, take another folder"
            )
        try:
            for line in lines:
                # A line that is too long has a cell without a name, one too short a None.
                if None in line or None in line.values():
                    raise ValueError("another number of cells")
                # A file system may leave zeros of what a loss of power cut off.
                if "\0" in "".join(line.values()):
                    raise ValueError("a zero byte")
                yield {name: read(line[name]) for name, read in self.columns.items()}
        except (csv.Error, KeyError, ValueError) as error:
            raise RowsError(f"{self.path} is damaged: line {lines.reader.line_num}") from error

    def _lines(self, rows: Iterable[Row]) -> str:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        for row in rows:
            writer.writerow(
                {
                    name: json.dumps(value) if isinstance(value, dict) else value
                    for name, value in row.items()
                }
            )
        return text.getvalue()


def lock_folder(folder: Path) -> int:
    """Takes a folder for this process alone, without writing to it.

    Returns:
        A file descriptor, whose closing gives the folder back; so does the end of the process,
        however it ends. Programs that it starts don't inherit it.

    Raises:
        BlockingIOError: If another process has taken the folder.
        OSError: If it can't be read.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise BlockingIOError(
                f"{folder} is used by another process: wait for its end, or take another folder"
            ) from None
        error.filename = str(folder)
        raise
    return descriptor


def one_of(values: Collection[str]) -> Callable[[str], str]:
    """Reads a cell that has one of these texts, and else raises `ValueError`."""

    def read(text: str) -> str:
        if text not in values:
            raise ValueError(f"none of {', '.join(values)}")
        return text

    return read


def parse_reasons(text: str) -> dict[str, str]:
    """The cell that says why values are missing, by their names.

    Raises:
        ValueError: If it holds anything else.
    """
    reasons = parse_object(text)
    if not all(isinstance(reason, str) for reason in reasons.values()):
        raise ValueError("a reason is no text")
    return reasons
