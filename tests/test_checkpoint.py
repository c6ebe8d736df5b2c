import json
import logging
import os
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse import checkpoint
from jaxsparse.checkpoint import SUMS, CheckpointError, Checkpoints

SETTINGS = {"seed": 0, "crop": [40, 24]}


def make_state(step):
    rng = np.random.default_rng(step)
    return (
        {
            "kernel": rng.standard_normal((3, 4)).astype(np.float32),
            "bias": jnp.arange(step, step + 5),
        },
        (jnp.float32(step), jnp.asarray(rng.standard_normal(2), jnp.bfloat16)),
    )


def assert_is_of_step(found, step):
    """The checkpoint holds what was saved at this step, bit for bit."""
    assert found.step == step
    assert found.data == {"next": [step, None]}
    assert found.settings == SETTINGS
    state = make_state(step)
    restored = found.restore(state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        b = np.asarray(b)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def save(checkpoints, *steps):
    for step in steps:
        checkpoints.save(step, make_state(step), {"next": [step, None]}, SETTINGS)


@pytest.fixture
def checkpoints(tmp_path):
    opened = Checkpoints(tmp_path / "checkpoints")
    yield opened
    opened.close()


@pytest.fixture
def directory(checkpoints, tmp_path):
    """With the checkpoints 2 and 4."""
    save(checkpoints, 2, 4)
    return tmp_path / "checkpoints"


def files_of(path):
    return sorted(file for file in path.rglob("*") if file.is_file())


def test_nothing_is_written_before_the_first_one(checkpoints, tmp_path):
    assert checkpoints.steps() == []
    assert checkpoints.newest() is None
    assert not (tmp_path / "checkpoints").exists()


def test_the_newest_comes_back_bit_for_bit(checkpoints, caplog):
    save(checkpoints, 0, 10)
    assert_is_of_step(checkpoints.newest(), 10)
    save(checkpoints, 9)
    assert_is_of_step(checkpoints.newest(), 10)
    assert not caplog.records


def test_as_many_as_asked_are_kept(checkpoints, directory):
    save(checkpoints, 6, 8)
    assert checkpoints.steps() == [6, 8]
    assert sorted(path.name for path in directory.iterdir()) == ["6", "8"]


def test_another_network_is_refused(checkpoints, directory):
    found = checkpoints.newest()
    wrong_shape = jax.tree.map(lambda x: jnp.zeros((7,), x.dtype), make_state(4))
    wrong_dtype = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.int8), make_state(4))
    for other in (wrong_shape, wrong_dtype, make_state(4)[0]):
        with pytest.raises(CheckpointError, match="4: the state has other arrays"):
            found.restore(other)


def flip(rng, content):
    changed = bytearray(content)
    changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(changed)


@pytest.mark.slow
def test_a_change_in_any_file_is_named_and_the_one_before_taken(checkpoints, directory, caplog):
    rng = random.Random(0)
    newest = directory / "4"
    files = files_of(newest)
    assert len(files) > 10
    for file in files:
        content = file.read_bytes()
        changes = [flip(rng, content) for _ in range(8)]
        changes += [b"", content[:1], content[: len(content) // 2], content[:-1], content + b"\0"]
        for changed in changes:
            file.write_bytes(changed)
            caplog.clear()
            assert_is_of_step(checkpoints.newest(), 2)
            (record,) = caplog.records
            line = record.getMessage()
            assert line.startswith(f"{newest} is damaged and passed over: ")
            assert "\n" not in line
            # A list that is damaged itself can name any of the files.
            assert file.name == SUMS or str(file.relative_to(newest)) in line
        file.write_bytes(content)
        assert_is_of_step(checkpoints.newest(), 4)


def relist(path):
    """Makes the list of checksums anew, as whoever changed the files on purpose would."""
    (path / SUMS).write_bytes(checkpoint._sums(path))


def about(**changes):
    whole = {"step": 4, "data": {"next": [4, None]}, "settings": SETTINGS} | changes
    return json.dumps({k: v for k, v in whole.items() if v is not None}).encode()


DEEP = b'{"a": ' + b"[" * 99_999


def assert_passed_over(checkpoints, newest, caplog):
    """The one before is taken, with one line on the newest."""
    caplog.clear()
    assert_is_of_step(checkpoints.newest(), 2)
    (line,) = [r.getMessage() for r in caplog.records if r.name == "jaxsparse.checkpoint"]
    assert line.startswith(f"{newest} is damaged and passed over: ")
    assert line.isprintable() and len(line) < len(str(newest)) + 400
    return line


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("about/metadata", about(step=None), "its step is missing"),
        ("about/metadata", about(step=4.0), "its step is missing or of a wrong type"),
        ("about/metadata", about(step="4"), "its step is missing or of a wrong type"),
        ("about/metadata", about(step=2), "it is that of step 2"),
        ("about/metadata", about(data=None), "its data is missing"),
        ("about/metadata", about(data=[]), "its data is missing or of a wrong type"),
        ("about/metadata", about(settings=3), "its settings is missing or of a wrong type"),
        ("about/metadata", b"[]", "no JSON object"),
        ("about/metadata", b"null", "no JSON object"),
        ("about/metadata", b"", "JSONDecodeError"),
        ("about/metadata", b"\xff" * 9, "UnicodeDecodeError"),
        ("about/metadata", DEEP, "RecursionError"),
        ("about/metadata", None, "about/metadata"),
        ("about", None, "about"),
        ("state", None, "state"),
        ("state/_METADATA", b"{}", "KeyError"),
        ("state/_METADATA", b"null", ""),
        ("state/_METADATA", b'{"tree_metadata": {}}', ""),
        ("state/_METADATA", b"\xff" * 9, "UnicodeDecodeError"),
        ("state/_METADATA", DEEP, "RecursionError"),
        ("state/_METADATA", None, ""),
    ],
)
def test_changed_contents_with_a_fitting_list_are_passed_over(
    checkpoints, directory, caplog, name, content, fault
):
    newest = directory / "4"
    path = newest / name
    if content is not None:
        path.write_bytes(content)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    relist(newest)
    assert fault in assert_passed_over(checkpoints, newest, caplog)
    # It makes way for its step, as any damaged one.
    save(checkpoints, 4)
    assert (directory / "damaged-4").is_dir()


@pytest.mark.parametrize("name", ["manifest.ocdbt", "d"])
@pytest.mark.parametrize("kept", [None, 0, 0.5])
def test_changed_storage_with_a_fitting_list_is_passed_over(checkpoints, tmp_path, name, kept):
    # Of several arrays, those that fail after the first would leave messages on standard error.
    for step in (2, 4):
        checkpoints.save(step, {"kernel": np.ones(50, np.float32)}, {}, {})
    newest = tmp_path / "checkpoints" / "4"
    path = newest / "state" / name
    for file in files_of(path) if path.is_dir() else [path]:
        content = file.read_bytes()
        file.unlink()
        if kept is not None:
            file.write_bytes(content[: int(kept * len(content))])
    relist(newest)
    assert checkpoints.newest().step == 2


def test_where_all_contents_are_changed_none_is_taken(checkpoints, directory):
    for step in (2, 4):
        (directory / str(step) / "about" / "metadata").write_bytes(b"{}")
        relist(directory / str(step))
    with pytest.raises(CheckpointError, match="no checkpoint is whole and unaltered"):
        checkpoints.newest()


def test_a_name_that_is_no_utf8_is_passed_over(checkpoints, directory, caplog):
    newest = directory / "4"
    (newest / os.fsdecode(b"\xff\nmore")).touch()
    assert "udcff" in assert_passed_over(checkpoints, newest, caplog)


def test_what_a_caller_misses_is_damage(checkpoints, directory, caplog):
    def check(found):
        if found.step == 4:
            return found.data["more"]

    assert_is_of_step(checkpoints.newest(check), 2)
    assert [record.getMessage() for record in caplog.records] == [
        f"{directory / '4'} is damaged and passed over: KeyError: 'more'"
    ]


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_what_is_no_damage_comes_through(checkpoints, directory, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(checkpoints._checkpointer, "restore", fail)
    with pytest.raises(error):
        checkpoints.newest()
    monkeypatch.undo()
    assert_is_of_step(checkpoints.newest(), 4)


def test_a_folder_that_only_looks_like_a_step_is_none(checkpoints, directory):
    for name in ("04", "٤", "-4", "4.0", ""):
        (directory / name).mkdir(exist_ok=True)
    assert checkpoints.steps() == [2, 4]


def test_a_missing_file_or_folder_is_noticed(checkpoints, directory, tmp_path, caplog):
    newest = directory / "4"
    for path in sorted(newest.rglob("*")):
        path.rename(tmp_path / "away")
        caplog.clear()
        assert_is_of_step(checkpoints.newest(), 2)
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        if path.is_file() and path.name != "away":
            path.mkdir()
            assert_is_of_step(checkpoints.newest(), 2)
            path.rmdir()
        (tmp_path / "away").rename(path)
    assert_is_of_step(checkpoints.newest(), 4)


def test_a_file_too_many_or_another_step_is_noticed(checkpoints, directory):
    (directory / "4").rename(directory / "7")
    assert_is_of_step(checkpoints.newest(), 2)
    (directory / "7").rename(directory / "4")
    (directory / "4" / "state" / "more").touch()
    assert_is_of_step(checkpoints.newest(), 2)


def test_without_a_list_of_checksums_none_is_taken(checkpoints, directory, caplog):
    for step in (2, 4):
        (directory / str(step) / SUMS).unlink()
    with pytest.raises(CheckpointError) as error:
        checkpoints.newest()
    assert str(error.value) == f"{directory}: no checkpoint is whole and unaltered"
    assert [record.getMessage() for record in caplog.records] == [
        f"{directory / step} is damaged and passed over: it has no {SUMS}" for step in ("4", "2")
    ]


def test_a_damaged_one_does_not_block_its_step(checkpoints, directory):
    save(checkpoints, 6)
    damaged = b""
    for _ in range(2):
        file = files_of(directory / "6")[0]
        damaged = flip(random.Random(1), file.read_bytes())
        file.write_bytes(damaged)
        assert_is_of_step(checkpoints.newest(), 4)
        # Reading changes nothing.
        assert checkpoints.steps() == [4, 6]
        save(checkpoints, 6)
        assert_is_of_step(checkpoints.newest(), 6)
        assert checkpoints.steps() == [4, 6]
        aside = directory / "damaged-6"
        assert files_of(aside)[0].read_bytes() == damaged


def test_what_a_killed_process_left_is_no_checkpoint(checkpoints, directory):
    for name in ("6.unfinished", "6.unfinished.orbax-checkpoint-tmp"):
        shutil.copytree(directory / "4", directory / name)
    assert checkpoints.steps() == [2, 4]
    assert_is_of_step(checkpoints.newest(), 4)
    save(checkpoints, 6)
    assert sorted(path.name for path in directory.iterdir()) == ["4", "6"]


def test_a_half_deleted_old_one_is_passed_over(checkpoints, directory, caplog):
    shutil.rmtree(directory / "2" / "state" / "d")
    assert_is_of_step(checkpoints.newest(), 4)
    assert not caplog.records
    files_of(directory / "4")[0].unlink()
    with pytest.raises(CheckpointError):
        checkpoints.newest()
    assert len(caplog.records) == 2


def test_a_program_error_stays_one(checkpoints, directory):
    with pytest.raises(TypeError):
        checkpoints.save(6, make_state(6), {"next": object()}, SETTINGS)
    assert sorted(path.name for path in directory.iterdir()) == ["2", "4"]
    assert_is_of_step(checkpoints.newest(), 4)
