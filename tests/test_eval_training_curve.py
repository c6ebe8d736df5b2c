"""Quality against training time, from snapshots to the plot."""

import json

import jax
import pytest
import soundfile
from test_eval import voice

from eval import training_curve
from jaxsparse.nn.pyramid_unet import PyramidUNetConfig
from jaxsparse.nn.sampler import SamplerConfig
from jaxsparse.pretrained import save_weights

CONFIG, SAMPLER = PyramidUNetConfig(features=(2,)), SamplerConfig(features=(2,))


def make_run(folder, seconds, **about):
    params = CONFIG.build().init(jax.random.key(0))
    for step, own in seconds.items():
        (folder / "snapshots").mkdir(parents=True, exist_ok=True)
        path = folder / "snapshots" / f"{step:06d}.safetensors"
        save_weights(path, params, CONFIG, {"training_seconds": own, **about})
        # As a run with a sampler leaves one beside each.
        sampler = path.with_name(f"{step:06d}-sampler.safetensors")
        save_weights(sampler, SAMPLER.build().init(jax.random.key(0)), SAMPLER, {})


@pytest.mark.slow
def test_hours_are_those_of_all_stages(tmp_path, capsys):
    make_run(tmp_path / "first", {1: 360.0, 2: 720.0})
    make_run(tmp_path / "second", {5: 36.0}, started_from={"training_seconds": 720.0})
    (tmp_path / "clips").mkdir()
    soundfile.write(tmp_path / "clips" / "a.wav", voice(1, 0.3), 16_000)
    argv = ["--data", str(tmp_path / "clips"), "--out", str(tmp_path / "out"), "--json"]
    argv += ["--runs", str(tmp_path / "first"), str(tmp_path / "second"), "--mask", "random"]
    assert training_curve.main(argv) == 0
    points = json.loads(capsys.readouterr().out)
    assert [(p["run"], p["mask"]) for p in points] == [
        ("first", "random"),
        ("first", "random"),
        ("second", "random"),
    ]
    assert [p["hours"] for p in points] == pytest.approx([0.1, 0.2, 0.21])
    # The same network three times.
    assert points[0]["pesq_wb"] == points[2]["pesq_wb"] > 1
    assert (tmp_path / "out" / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "out" / "curve.json").read_text()) == points


def test_a_run_without_snapshots_is_refused(tmp_path, capsys):
    argv = ["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--runs", str(tmp_path)]
    assert training_curve.main(argv) == 2
    assert f"{tmp_path} has no snapshots" in capsys.readouterr().err
