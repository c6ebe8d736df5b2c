"""Rows of an evaluation in a CSV file that grows while it runs, so that it can be resumed."""

import contextlib
import csv
import errno
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO, TypeAlias

from jaxsparse.audio import atomic_write
from jaxsparse.errors import JaxsparseError

Row: TypeAlias = dict[str, Any]


class RowsError(JaxsparseError):
    """Rows or settings of a run that can't be read."""


class RowFile:
    """``rows.csv`` and ``settings.json`` of a run's folder; a context.

    A line that was cut off in the middle of its writing is dropped when the run is resumed.
    """

    def __init__(
        self,
        out: Path,
        columns: Mapping[str, Callable[[str], Any]],
        settings: Mapping[str, Any],
    ) -> None:
        """Opens a run's folder.

        Args:
            out: The folder.
            columns: Names of the columns, and what turns a cell's text into its value.
            settings: What decides on the rows' values, as JSON.

        Raises:
            FileExistsError: If the folder holds a run with other settings.
            OSError: If the folder can't be read.
            RowsError: If what is in it is damaged.
        """
        self.columns = columns
        if out.exists() and not out.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(out))
        self.settings = json.loads(json.dumps(settings))
        self.path = out / "rows.csv"
        check_settings(out / "settings.json", self.settings)
        self.rows = self._read()
        self._file: TextIO | None = None

    def __enter__(self) -> "RowFile":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            # Each row was flushed; what could not be written has been reported.
            with contextlib.suppress(OSError):
                self._file.close()

    def add(self, *rows: Row) -> None:
        """Appends rows in one piece; with the first ones the folder is made.

        Raises:
            OSError: If it can't be written; the file is named.
        """
        try:
            file = self._file or self._open()
            file.write(self._lines(rows))
            file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self.rows.extend(rows)

    def _open(self) -> TextIO:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        settings = json.dumps(self.settings, indent=1)
        atomic_write(self.path.with_name("settings.json"), settings.encode())
        self.rewrite()
        # A clip's name may hold bytes that are no UTF-8.
        self._file = self.path.open("a", newline="", encoding="utf-8", errors="surrogateescape")
        return self._file

    def rewrite(self) -> None:
        """Writes the file anew, with the rows as they are and in their order."""
        text = ",".join(self.columns) + "\n" + self._lines(self.rows)
        atomic_write(self.path, text.encode(errors="surrogateescape"))

    def _read(self) -> list[Row]:
        if not self.path.exists():
            return []
        text = self.path.read_text("utf-8", "surrogateescape")
        whole = text[: text.rfind("\n") + 1]
        lines = csv.DictReader(io.StringIO(whole, newline=""))
        try:
            return [
                {name: read(line[name]) for name, read in self.columns.items()} for line in lines
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise RowsError(f"{self.path} is damaged: line {lines.line_num}") from error

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


def check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Refuses to go on with a run of other settings, as JSON; none is fine.

    Raises:
        FileExistsError: If they are others, or the folder has rows without settings.
        RowsError: If the file is damaged.
    """
    if not path.exists():
        if path.with_name("rows.csv").exists():
            raise FileExistsError(
                f"{path.parent} holds rows of another program: take another folder"
            )
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RowsError(f"{path} is damaged") from error
    changed = [
        f"{name} ({before.get(name)}, now {settings.get(name)})"
        for name in settings | before
        if settings.get(name) != before.get(name)
    ]
    if changed:
        raise FileExistsError(
            f"{path.parent} holds a run with another {', '.join(changed)}: take another folder"
        )
