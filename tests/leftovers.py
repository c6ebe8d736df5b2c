"""A plugin of pytest that fails a run which leaves something behind.

The temporary folder and the home directory are empty ones of the run, removed at its end; what the
tests leave there, or in the checkout, is listed.
"""

import os
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# What tools keep from run to run, as .gitignore lists it.
CACHES = {".git", ".hypothesis", ".pytest_cache", ".ruff_cache", "__pycache__"}


class Leftovers:
    """The run's folders, and what it left."""

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="jaxsparse-tests-")
        self._temporary, self._home = (Path(self._folder.name, name) for name in ("tmp", "home"))
        self._temporary.mkdir()
        self._home.mkdir()
        self._before = files_of_the_checkout()
        self.found = []
        # Matplotlib looks for fonts for seconds where it has no cache.
        os.environ.setdefault("MPLCONFIGDIR", str(ROOT / ".pytest_cache" / "matplotlib"))
        os.environ |= {"TMPDIR": str(self._temporary), "HOME": str(self._home)}
        tempfile.tempdir = None

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session):
        self.found = [
            *(p for p in self._temporary.iterdir() if not p.name.startswith("pytest-of-")),
            *self._home.iterdir(),
            *sorted(files_of_the_checkout() - self._before),
        ]
        if self.found and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        self._folder.cleanup()

    def pytest_terminal_summary(self, terminalreporter):
        for path in self.found:
            terminalreporter.write_line(f"the tests left {path}", red=True)


def files_of_the_checkout():
    found = set()
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [f for f in folders if f not in CACHES and not f.startswith(".venv")]
        found |= {Path(folder, name) for name in folders + files}
    return found


def pytest_configure(config):
    # Workers share the folders of the process that started them.
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Leftovers())
