import subprocess
import sys

import pytest
from leftovers import ROOT

TEST = """
import tempfile
from pathlib import Path

def test_it(tmp_path):
    (tmp_path / "own").touch()
    {}
"""


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("pass", None),
        pytest.param("tempfile.mkdtemp('abc')", "abc", marks=pytest.mark.slow),
        ("Path.home().joinpath('.trace').touch()", ".trace"),
    ],
)
def test_what_a_test_leaves_fails_the_run(body, left, tmp_path):
    (tmp_path / "test_it.py").write_text(TEST.format(body))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "leftovers", "-c", "/dev/null"]
    run = subprocess.run(
        [*command, "--rootdir", tmp_path, tmp_path],
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
    )
    assert run.returncode == (left is not None), run.stdout
    assert "1 passed" in run.stdout
    lines = [line for line in run.stdout.splitlines() if line.startswith("the tests left")]
    assert len(lines) == (left is not None)
    assert all(line.endswith(left) for line in lines)
