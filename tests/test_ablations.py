"""The comparison of the pyramid U-Net with its variants, from training to table."""

import dataclasses
import json

import pytest
import soundfile
from test_eval import voice

from jaxsparse.nn.pyramid_unet import PyramidUNetConfig
from jaxsparse.pretrained import load_decoder
from train import ablations


@pytest.fixture
def small(monkeypatch):
    base = PyramidUNetConfig(features=(2, 2))
    monkeypatch.setattr(ablations, "BASE", base)
    for name, changes in ablations.VARIANTS.items():
        config = changes.get("decoder", base)
        features = (2,) if name == "one-level" else base.features
        small = dataclasses.replace(config, features=features)
        monkeypatch.setitem(ablations.VARIANTS, name, {**changes, "decoder": small})


@pytest.mark.slow
def test_variants_are_trained_and_compared(tmp_path, small, capsys):
    for split in ("train", "valid"):
        (tmp_path / split).mkdir()
        soundfile.write(tmp_path / split / "a.wav", voice(1, 0.3), 16_000)
    argv = ["--data", str(tmp_path), "--out", str(tmp_path / "run"), "--steps", "1"]
    argv += ["--batch-size", "1", "--n-samples", "8000", "--variants", "no-fill"]
    argv += ["--mask", "random", "--sparsity", "0.9", "--json"]
    assert ablations.main(argv) == 0
    groups = json.loads(capsys.readouterr().out)["groups"]
    assert [group["method"] for group in groups] == ["ceiling", "network"]
    network = load_decoder(tmp_path / "run" / "no-fill" / "network.safetensors")
    assert network.decoder.config == PyramidUNetConfig(features=(2, 2), start_from_fill=False)
    assert ablations.main(argv) == 0
    assert json.loads(capsys.readouterr().out)["groups"] == groups


def test_unknown_variants_are_refused(tmp_path, capsys):
    argv = ["--data", str(tmp_path), "--out", str(tmp_path / "run"), "--variants", "wide"]
    assert ablations.main(argv) == 2
    assert "no variant is named 'wide'; there are whole, no-fill" in capsys.readouterr().err
