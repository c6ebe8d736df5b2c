import json
from pathlib import Path

import pytest

from jaxsparse import manifest
from jaxsparse.manifest import ManifestError
from jaxsparse.settings import SettingsError, check_least

BEFORE = {"seed": 0, "decoder": {"features": 16, "sizes": [3, 1]}, "clips": "a" * 64}


def test_equal_manifests_are_the_same_run():
    now = BEFORE | {"decoder": {"sizes": (3, 1), "features": 16}}
    assert manifest.differences(BEFORE, now) == []
    manifest.check_same("run", BEFORE, now)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, ["seed (0, now 1)"]),
        ({"decoder": {"features": 8, "sizes": [3, 1]}}, ["decoder.features (16, now 8)"]),
        ({"decoder": {"features": 16, "sizes": [3]}}, ["decoder.sizes ([3, 1], now [3])"]),
        ({"clips": "b" * 64}, ["clips (aaaaaaaaaaaa..., now bbbbbbbbbbbb...)"]),
        ({"new": True}, ["new (None, now True)"]),
        ({"decoder": {"features": 16}}, ["decoder.sizes ([3, 1], now None)"]),
        ({"seed": 1, "clips": "c"}, ["seed (0, now 1)", "clips (aaaaaaaaaaaa..., now c)"]),
    ],
)
def test_what_differs_is_named_with_both_values(changes, named):
    assert manifest.differences(BEFORE, BEFORE | changes) == named
    with pytest.raises(FileExistsError) as error:
        manifest.check_same("runs/a", BEFORE, BEFORE | changes)
    message = f"runs/a holds a run with another {', '.join(named)}: take another folder"
    assert str(error.value) == message


def test_a_file_keeps_a_manifest(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSPARSE_DATA", "/speech")
    path = tmp_path / "settings.json"
    manifest.check_file(path, tmp_path, BEFORE)
    manifest.write_file(path, BEFORE | {"data": Path("/speech/test")})
    assert json.loads(path.read_text())["data"] == "$JAXSPARSE_DATA/test"
    manifest.check_file(path, tmp_path, BEFORE | {"data": Path("/speech/test")})
    with pytest.raises(FileExistsError, match="another data"):
        manifest.check_file(path, tmp_path, BEFORE | {"data": Path("/speech/train")})


def test_defaults_stand_for_what_a_file_lacks(tmp_path):
    path = tmp_path / "settings.json"
    manifest.write_file(path, BEFORE)
    manifest.check_file(path, tmp_path, BEFORE | {"kind": "a"}, {"kind": "a"})
    with pytest.raises(FileExistsError, match=r"another kind \(b, now a\)"):
        manifest.check_file(path, tmp_path, BEFORE | {"kind": "a"}, {"kind": "b"})


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "settings.json"
    path.write_text("{")
    with pytest.raises(ManifestError, match=f"^{path} is damaged: "):
        manifest.check_file(path, tmp_path, BEFORE)


@pytest.mark.parametrize("value", [0, float("nan")])
def test_settings_below_their_lowest_value_are_refused(value):
    class Settings:
        steps = value
        workers = None

    check_least(Settings(), {"workers": 1})
    with pytest.raises(SettingsError, match="steps must be at least 1"):
        check_least(Settings(), {"workers": 1, "steps": 1})
