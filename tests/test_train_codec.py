"""Training of the MDCT codec: context models, networks, stopping and going on."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse import audio, codec, pretrained
from jaxsparse.codec import context
from jaxsparse.codec.weights import load_codec
from jaxsparse.nn.mdct_unet import MDCTUNetConfig
from jaxsparse.settings import SettingsError
from tests.mdct_files import speech
from train import codec as train_codec
from train import context as train_context
from train.loop import Stopped

pytestmark = pytest.mark.usefixtures("compiled_once")

N_SAMPLES = 9_000


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for seed in range(3):
        audio.write_wav(folder / f"{seed}.wav", speech(N_SAMPLES, seed)[:, None], 16_000)
    return folder


@pytest.fixture(scope="module")
def models(clips, tmp_path_factory):
    path = tmp_path_factory.mktemp("context") / "context.safetensors"
    settings = train_context.Settings(
        clips, path, steps=12, batch_size=2, frames=16, hidden=(8, 6), tables=12, log_every=3
    )
    return path, train_context.train(settings)


def settings(clips, models, workdir, **changes):
    defaults = {
        "steps": 4,
        "batch_size": 2,
        "n_samples": N_SAMPLES,
        "crop": 7_000,
        "networks": MDCTUNetConfig(features=(4,), encoder_features=(4,)),
        "log_every": 2,
        "checkpoint_every": 2,
    }
    return train_codec.Settings(clips, workdir, models[0], **(defaults | changes))


def test_context_models_learn(models):
    path, card = models
    saved = json.loads(path.with_suffix(".json").read_text())
    assert len(saved.pop("sha256")) == 64 and saved == card
    loaded = context.load_models(path)
    assert loaded["levels"].tables.shape == (12, 12)
    first = train_context._first_tables("magnitudes", 12)
    assert loaded["magnitudes"].tables.shape == first.shape


def test_a_codec_gets_other_models(models, tmp_path):
    path, card = models
    shipped, out = pretrained.shipped("mdct"), tmp_path / "other.safetensors"
    loaded = context.load_models(path)
    train_context.exchange_models(load_codec(), shipped, loaded, card, out)
    other = load_codec(out)
    for name, model in loaded.items():
        assert all(np.array_equal(a, b) for a, b in zip(model, other.models[name], strict=True))
    same = jax.tree.map(np.array_equal, load_codec().params, other.params)
    assert all(jax.tree.leaves(same))
    # In the type that it was stored in.
    assert out.stat().st_size < 1.1 * shipped.stat().st_size
    assert json.loads(out.with_suffix(".json").read_text())["context_models"] == card


@pytest.mark.slow
def test_rounding_to_whole_numbers_costs_hardly_a_bit():
    """Tables in between are what training knows; the coder knows the nearest ones alone."""
    settings = train_context.Settings(Path(), Path(), hidden=(8, 6), tables=24)
    params = train_context.init(jax.random.key(0), "levels", settings)
    model = train_context.to_integers(jax.device_get(params))
    rng = np.random.default_rng(0)
    layout = context.LEVELS
    inputs = rng.integers(0, 56, (200, 5, layout.n_inputs)).astype(np.float64)
    symbols = rng.integers(0, 12, (200, 5))
    batch = train_context.Batch(inputs.astype(np.float32), symbols)
    expected = float(train_context.code_length(params, layout, [batch]))
    tables = model.choose(0, inputs, layout.places[0])
    assert model.bits[tables, symbols].sum() == pytest.approx(expected, rel=0.02)


@pytest.fixture(scope="module")
def trained(clips, models, tmp_path_factory):
    return train_codec.train(settings(clips, models, tmp_path_factory.mktemp("run") / "whole"))


def test_networks_are_trained(trained):
    log = trained.with_name("log.csv").read_text().splitlines()
    assert log[0].startswith("step,loss,surrogate,surrogate-nb,stoi,mel,kbit_per_s")
    loaded = load_codec(trained)
    assert loaded.card.about["parameters"].keys() == {"encoder", "decoder"}
    assert "python -m train.codec --data" in loaded.card.about["command"]
    samples = speech(8_000)[:, None]
    data = codec.compress(samples, 16_000, codec=loaded)
    decoded, _ = codec.decompress(data, codec=loaded)
    assert decoded.shape == samples.shape


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_networks(trained, clips, models, tmp_path):
    stops = iter([False] * 3 + [True] * 9)
    parted = settings(clips, models, tmp_path / "parted")
    with pytest.raises(Stopped):
        train_codec.train(parted, stop=lambda: next(stops))
    path = train_codec.train(dataclasses.replace(parted, resume=True))
    assert path.read_bytes() == trained.read_bytes()


@pytest.mark.slow
def test_training_starts_from_trained_networks(trained, clips, models, tmp_path):
    again = settings(clips, models, tmp_path / "again", init_from=trained, steps=1)
    assert load_codec(train_codec.train(again)).card.about["started_from"]["final_training_loss"]
    other = MDCTUNetConfig(features=(6,), encoder_features=(4,))
    with pytest.raises(SettingsError, match="other settings"):
        train_codec.train(dataclasses.replace(again, networks=other, workdir=tmp_path / "other"))


@pytest.mark.slow
def test_crops_are_at_the_active_level_with_and_without_noise(clips, models, tmp_path):
    for share in (0.0, 1.0):
        chosen = settings(clips, models, tmp_path, noise_share=share)
        signals = jnp.asarray(np.tile(speech(N_SAMPLES), (8, 1)))
        keys = jax.random.split(jax.random.key(0), 8)
        make = functools.partial(train_codec.make_crop, chosen)
        crops, rates = jax.vmap(make)(keys, signals)
        assert crops.shape == (8, 7_000)
        assert rates.min() >= 10 and rates.max() <= 42
        # One coefficient of a frame is about one.
        assert 0.2 < float(np.sqrt(np.mean(np.square(crops)))) < 2


@pytest.mark.parametrize(
    "changes",
    [
        {"rates": (30.0, 20.0)},
        {"rates": (0.0, 70.0)},
        {"temperatures": (0.3, 0.0)},
        {"crop": 1_000},
        {"crop": 10_000},
        {"noise_share": 2.0},
        {"seed": -1},
        {"steps": 0},
    ],
)
def test_settings_out_of_range_are_refused(changes, clips, models, tmp_path):
    with pytest.raises(SettingsError):
        settings(clips, models, tmp_path, **changes)


def test_faults_are_one_line(clips, tmp_path, capsys):
    missing = tmp_path / "no.safetensors"
    argv = ["--data", str(clips), "--workdir", str(tmp_path / "run"), "--context", str(missing)]
    assert train_codec.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train.codec: ") and str(missing) in line
    missing.write_bytes(b"no tensors")
    assert train_codec.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"train.codec: {missing}: it is no file of tensors")
