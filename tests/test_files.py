"""Folders that appear whole."""

import pytest

from jaxsparse.files import whole_folder


def fill(folder):
    (folder / "index.html").write_text("new")
    (folder / "sound.wav").write_text("new")


def test_a_folder_appears_whole(tmp_path):
    with whole_folder(tmp_path / "out") as folder:
        fill(folder)
        assert not (tmp_path / "out").exists()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"index.html", "sound.wav"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_nothing_stays_of_one_that_fails(tmp_path):
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "out") as folder:
        fill(folder)
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_a_full_folder_is_refused_or_its_files_replaced(tmp_path):
    (tmp_path / "sound.wav").write_text("old")
    (tmp_path / "other").write_text("old")
    with pytest.raises(FileExistsError, match="is not empty"), whole_folder(tmp_path):
        pass
    with whole_folder(tmp_path, force=True) as folder:
        fill(folder)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "index.html": "new",
        "sound.wav": "new",
        "other": "old",
    }


def test_a_folder_in_a_files_place_is_named_before_anything_is_replaced(tmp_path):
    (tmp_path / "sound.wav").mkdir()
    (tmp_path / "index.html").write_text("old")
    with (
        pytest.raises(IsADirectoryError, match="Is a directory") as error,
        whole_folder(tmp_path, force=True) as folder,
    ):
        fill(folder)
    assert error.value.filename == str(tmp_path / "sound.wav")
    assert (tmp_path / "index.html").read_text() == "old"
