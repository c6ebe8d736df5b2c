import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from eval.command import run_command
from eval.rows import RowFile, RowsError, one_of, parse_reasons
from jaxsparse.manifest import ManifestError

COLUMNS = {"a": int, "b": str, "c": parse_reasons}
SETTINGS = {"seed": 0}
ROOT = Path(__file__).resolve().parent.parent
DEEP = '{"a": ' + "[" * 99_999


def row(number):
    return {"a": number, "b": f"ü {number}", "c": {"stoi": "silent"}}


@pytest.fixture
def out(tmp_path):
    """A run with three rows."""
    with RowFile(tmp_path / "run", COLUMNS, SETTINGS) as rows:
        rows.add(row(0), row(1))
        rows.add(row(2))
    return tmp_path / "run"


def contents(folder):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def test_a_run_is_read_without_writing(out):
    before = contents(out)
    assert set(before) == {"rows.csv", "settings.json"}
    out.chmod(0o555)
    try:
        with RowFile(out, COLUMNS, SETTINGS) as rows:
            assert rows.rows == [row(0), row(1), row(2)]
        assert RowFile(out, COLUMNS, SETTINGS).rows == [row(0), row(1), row(2)]
    finally:
        out.chmod(0o755)
    assert contents(out) == before


def test_nothing_is_made_before_the_first_row(tmp_path):
    with RowFile(tmp_path / "a" / "run", COLUMNS, SETTINGS) as rows:
        assert list(tmp_path.iterdir()) == []
        rows.add(row(0))
    assert RowFile(tmp_path / "a" / "run", COLUMNS, SETTINGS).rows == [row(0)]


def test_defaults_stand_for_what_an_older_run_lacks(out):
    newer = SETTINGS | {"kind": "a"}
    assert len(RowFile(out, COLUMNS, newer, {"kind": "a"}).rows) == 3
    for defaults, before in (({"kind": "b"}, "b"), ({}, "None")):
        with pytest.raises(FileExistsError, match=rf"another kind \({before}, now a\)"):
            RowFile(out, COLUMNS, newer, defaults)
    with pytest.raises(FileExistsError, match="another seed"):
        RowFile(out, COLUMNS, newer | {"seed": 1}, {"kind": "a", "seed": 1})


@pytest.mark.parametrize(
    "text", [b"[]", b"null", b"3", b'"text"', b"", b"{", b'{"seed": "\xff"}', DEEP.encode()]
)
def test_settings_that_are_no_object_are_one_error(out, text, capsys):
    (out / "settings.json").write_bytes(text)
    with pytest.raises(ManifestError, match=f"^{out / 'settings.json'} is damaged: "):
        RowFile(out, COLUMNS, SETTINGS)
    assert run_command("eval", lambda: str(RowFile(out, COLUMNS, {}))) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"eval: {out / 'settings.json'} is damaged: ")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (f"3,{'x' * 131_073},{{}}", csv.Error),
        (f"{'9' * 5000},x,{{}}", ValueError),
        ("3,x\0,{}", ValueError),
        ("3", ValueError),
        ("3,x", ValueError),
        ("3,x,{},more", ValueError),
        ("three,x,{}", ValueError),
        ("3,x,[]", ValueError),
        ("3,x,null", ValueError),
        ('3,x,"{""stoi"": 1}"', ValueError),
        (f'3,x,"{DEEP.replace(chr(34), chr(34) * 2)}"', ValueError),
        ('3,"x"x,{}', csv.Error),
    ],
)
def test_a_damaged_line_is_named(out, line, fault):
    with (out / "rows.csv").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(RowsError, match=f"^{out / 'rows.csv'} is damaged: line 5$") as error:
        RowFile(out, COLUMNS, SETTINGS)
    assert isinstance(error.value.__cause__, fault)


def test_another_header_is_damage_or_another_version(out):
    (out / "rows.csv").write_text("a,b\n1,2\n")
    with pytest.raises(RowsError, match=r"damaged: no column .*; if another version made it, take"):
        RowFile(out, COLUMNS, SETTINGS)


def test_what_was_cut_off_is_dropped(out):
    with (out / "rows.csv").open("a") as file:
        file.write("3,x\0")
    with RowFile(out, COLUMNS, SETTINGS) as rows:
        rows.add(row(3))
    assert RowFile(out, COLUMNS, SETTINGS).rows == [row(n) for n in range(4)]


def test_one_of():
    read = one_of(("all", "60"))
    assert read("60") == "60"
    with pytest.raises(ValueError, match="none of all, 60"):
        read("6")


def test_a_folder_that_was_made_meanwhile_is_left_alone(tmp_path):
    with RowFile(tmp_path / "run", COLUMNS, SETTINGS) as late:
        with RowFile(tmp_path / "run", COLUMNS, SETTINGS) as rows:
            rows.add(row(0))
        before = contents(tmp_path / "run")
        with pytest.raises(BlockingIOError, match="run was made by another process meanwhile"):
            late.add(row(1))
    assert contents(tmp_path / "run") == before


def test_rows_that_came_between_reading_and_the_lock_are_read(out):
    late = RowFile(out, COLUMNS, SETTINGS)
    with RowFile(out, COLUMNS, SETTINGS) as rows:
        rows.add(row(3))
    with late:
        late.add(row(4))
    assert RowFile(out, COLUMNS, SETTINGS).rows == [row(n) for n in range(5)]


def test_settings_that_came_between_are_read_too(tmp_path):
    late = RowFile(tmp_path / "run", COLUMNS, SETTINGS)
    with RowFile(tmp_path / "run", COLUMNS, {"seed": 1}) as rows:
        rows.add(row(0))
    with pytest.raises(FileExistsError, match=r"another seed \(1, now 0\)"), late:
        pass
    with RowFile(tmp_path / "run", COLUMNS, {"seed": 1}) as rows:
        assert rows.rows == [row(0)]


# Adds a row and says so, with a helper's process id; told to, adds another.
TWO_ROWS = """
import pathlib, subprocess, sys
from eval.command import run_command
from jaxsparse.manifest import ManifestError
from eval.rows import RowFile

def work():
    with RowFile(pathlib.Path(sys.argv[1]), {"a": int}, {}) as rows:
        rows.add({"a": len(rows.rows)})
        quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        print(subprocess.Popen(["sleep", "60"], **quiet).pid, flush=True)
        sys.stdin.readline()
        rows.add({"a": len(rows.rows)})
    return "done"

sys.exit(run_command("eval", work))
"""
# Adds rows, each in a context of its own; where the folder is taken, tries again.
MANY_ROWS = """
import pathlib, sys
from jaxsparse.manifest import ManifestError
from eval.rows import RowFile

added = 0
while added < 20:
    try:
        with RowFile(pathlib.Path(sys.argv[1]), {"a": int}, {}) as rows:
            rows.add({"a": len(rows.rows)})
            rows.rewrite()
        added += 1
    except BlockingIOError:
        pass
"""


def start(script, out):
    command = [sys.executable, "-c", script, str(out)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def helper_of(process):
    assert process.stdout
    return int(process.stdout.readline())


def test_a_second_process_is_refused_and_a_killed_one_blocks_nothing(tmp_path):
    out = tmp_path / "run"
    helpers = []
    try:
        first = start(TWO_ROWS, out)
        helpers.append(helper_of(first))
        before = contents(out)
        second = start(TWO_ROWS, out)
        said = second.communicate("\n")
        assert (second.returncode, *said) == (
            2,
            "",
            f"eval: {out} is used by another process: wait for its end, or take another folder\n",
        )
        assert contents(out) == before
        first.kill()
        first.communicate()
        assert first.returncode == -signal.SIGKILL
        # Its helper is still there, and doesn't hold the folder.
        os.kill(helpers[0], 0)
        third = start(TWO_ROWS, out)
        helpers.append(helper_of(third))
        assert third.communicate("\n") == ("done\n", "")
        assert RowFile(out, {"a": int}, {}).rows == [{"a": 0}, {"a": 1}, {"a": 2}]
        assert set(contents(out)) == {"rows.csv", "settings.json"}
    finally:
        for helper in helpers:
            os.kill(helper, signal.SIGKILL)


def test_processes_that_take_turns_lose_no_row(tmp_path):
    both = [start(MANY_ROWS, tmp_path / "run") for _ in range(2)]
    assert [process.communicate() for process in both] == [("", ""), ("", "")]
    assert RowFile(tmp_path / "run", {"a": int}, {}).rows == [{"a": n} for n in range(40)]
