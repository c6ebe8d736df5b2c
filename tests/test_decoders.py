"""One table of contract tests for `DECODERS`, and a network of one's own from training to file."""

import dataclasses
import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import soundfile
from flax import nnx
from test_eval import voice

from eval import masks as eval_masks
from eval import reconstruction
from jaxsparse import cli, codec
from jaxsparse.codec import container
from jaxsparse.codec.segment import decode_segment
from jaxsparse.contracts import Decoder, DecoderConfig
from jaxsparse.decoders import DECODERS, name_of
from jaxsparse.errors import JaxsparseError
from jaxsparse.masks import count_observed, random_mask
from jaxsparse.metrics import ScorePool
from jaxsparse.nn.network import from_module
from jaxsparse.nn.pyramid import fill
from jaxsparse.nn.pyramid_unet import PyramidUNetConfig
from jaxsparse.objectives import mse_objective, pesq_objective, surrogate_objective
from jaxsparse.policies import POLICIES
from jaxsparse.pretrained import WeightsError, load_decoder, save_weights
from jaxsparse.reconstruct import (
    HostDecoderError,
    batched,
    evaluate_masks,
    reconstruct_spectrogram,
)
from jaxsparse.search.contract import HostObjective
from jaxsparse.search.genetic import GeneticConfig, genetic
from jaxsparse.search.lagrangian import lagrangian
from jaxsparse.search.run import run
from jaxsparse.spectrogram import log_power
from jaxsparse.transforms.stft import stft
from train.main import main as train

SHAPE = (40, 24)
COUNT = 200
# Convolutions take seconds to compile, and have tests of their own.
each = pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, id=name, marks=[pytest.mark.slow] * (name == "pyramid-unet"))
        for name, kind in DECODERS.items()
    ],
)


# What compiles in less time, and is of the same kind.
NARROW: dict[type, DecoderConfig] = {PyramidUNetConfig: PyramidUNetConfig(features=(4, 6))}


@functools.cache
def built(kind):
    """A decoder and its parameters."""
    config = NARROW[kind] if kind in NARROW else kind()
    decoder = config.build()
    return decoder, jax.jit(decoder.init)(jax.random.key(0))


def applied(decoder):
    """Its function, compiled where it can be."""
    return decoder.apply if decoder.on_host else jax.jit(decoder.apply)


def reconstruct(decoder, *arguments, **options):
    """`reconstruct_spectrogram`, compiled where it can be."""
    names = ("decoder", "keep_observed")
    call = reconstruct_spectrogram
    if not decoder.on_host:
        call = jax.jit(reconstruct_spectrogram, static_argnames=names)
    return call(decoder, *arguments, **options)


def example(seed=0, shape=SHAPE):
    levels = -30 + 10 * jax.random.normal(jax.random.key(seed), shape)
    return levels, random_mask(jax.random.key(seed + 1), shape, shape[0] * shape[1] // 5)


@each
def test_a_decoder_is_what_its_config_says(kind):
    decoder = kind().build()
    assert isinstance(decoder, Decoder) and isinstance(decoder.config, DecoderConfig)
    assert decoder.config == kind() and kind().build() is decoder and hash(decoder) is not None
    assert DECODERS[name_of(decoder.config)] is kind
    # What checkpoints know it by says nothing of a process.
    assert "0x" not in repr(decoder.config)


@each
def test_what_a_mask_hides_does_not_matter(kind):
    decoder, params = built(kind)
    apply = applied(decoder)
    levels, mask = example()
    completed = apply(params, levels, mask)
    assert completed.shape == SHAPE and jnp.isfinite(completed).all()
    hidden = apply(params, jnp.where(mask, levels, jnp.nan), mask)
    np.testing.assert_array_equal(hidden, completed)
    assert jnp.isfinite(apply(params, levels, jnp.zeros(SHAPE, bool))).all()


@each
def test_padding_is_never_observed(kind):
    """Frames behind the end hold anything, and what is valid comes out as without them."""
    decoder, params = built(kind)
    apply = applied(decoder)
    levels, mask = example()
    pads = ((0, 0), (0, 8))
    padded = jnp.pad(levels, pads, constant_values=99.0), jnp.pad(mask, pads, constant_values=True)
    valid = jnp.pad(jnp.ones(SHAPE, bool), pads)
    completed = apply(params, *padded, valid)[:, : SHAPE[1]]
    np.testing.assert_allclose(completed, apply(params, levels, mask), atol=1e-3)


@each
def test_a_batch_is_a_loop(kind):
    decoder, params = built(kind)
    apply = applied(decoder)
    levels, masks = (jnp.stack(each) for each in zip(example(0), example(5), strict=True))
    found = batched(decoder)(params, levels, masks)
    for i in range(2):
        expected = reconstruct(decoder, params, levels[i], masks[i], keep_observed=False)
        np.testing.assert_allclose(found[i], expected, atol=1e-3)
    scores = evaluate_masks(decoder, params, levels[0], masks)
    errors = [
        jnp.square(levels[0] - jnp.where(m, levels[0], apply(params, levels[0], m))) for m in masks
    ]
    np.testing.assert_allclose(scores, [error.mean() for error in errors], rtol=1e-4)


@pytest.mark.parametrize(
    "name", [pytest.param("pyramid-unet", marks=pytest.mark.slow), "linear"]
)  # on the device and on the host
def test_a_search_takes_it(name, tmp_path):
    kind = DECODERS[name]
    decoder, params = built(kind)
    levels, _ = example()
    objective = mse_objective(decoder, params, levels)
    assert isinstance(objective, HostObjective) == decoder.on_host
    search = genetic(objective, SHAPE, COUNT, GeneticConfig(6))
    found = run(search, jax.random.key(2), steps=2, folder=tmp_path)
    assert int(found.mask(SHAPE).sum()) == COUNT
    error = evaluate_masks(decoder, params, levels, found.mask(SHAPE)[None])[0]
    np.testing.assert_allclose(found.best.loss, error, rtol=1e-5)
    assert found.best.loss < found.history["mean"][0]
    again = run(search, jax.random.key(2), steps=3, folder=tmp_path)
    assert again.steps == 3


@pytest.mark.slow
def test_no_search_makes_the_network_explode():
    """A mask that was found for the loudest output stays within the limits."""
    decoder, params, _ = load_decoder("unet")
    levels, _ = example()
    limits = decoder.config
    assert isinstance(limits, PyramidUNetConfig)

    def loudest(mask):
        return -jnp.max(decoder.apply(params, levels, mask)), None

    search = genetic(loudest, SHAPE, 60, GeneticConfig(6))
    mask = run(search, jax.random.key(0), steps=5).mask(SHAPE)
    completed, filled = jax.jit(decoder.apply)(params, levels, mask), jax.jit(fill)(levels, mask)
    assert jnp.all(completed <= filled + limits.most_above + 1e-3)
    assert jnp.all(completed >= filled - limits.most_below - 1e-3)
    assert completed.max() <= levels[mask].max() + limits.most_above


def test_what_runs_on_the_host_can_not_be_traced():
    decoder, params = built(DECODERS["linear"])
    levels, mask = example()
    with pytest.raises(HostDecoderError, match=r"Linear\(\) runs on the host"):
        jax.jit(lambda mask: reconstruct_spectrogram(decoder, params, levels, mask))(mask)
    with pytest.raises(TypeError, match="hard mask"):
        reconstruct_spectrogram(decoder, params, levels, jnp.full(SHAPE, 0.5))
    with pytest.raises(TypeError, match="device"):
        lagrangian(mse_objective(decoder, params, levels), SHAPE, COUNT)


@pytest.mark.slow
def test_objectives_of_sound_take_a_decoder_on_the_host():
    """They say the same as for one on the device that does the same."""
    signal = voice(0, 0.3)[:6_000].astype(np.float32)
    spectrum = stft(jnp.asarray(signal))
    dense, phase = log_power(spectrum), jnp.angle(spectrum)
    masks = [random_mask(jax.random.key(i), dense.shape, 5_000) for i in range(2)]

    def apply(params, spectrogram, mask, valid=None):
        return jnp.where(mask, spectrogram, -40.0)

    device, host = (reference.decoder(apply, on_host=on_host) for on_host in (False, True))
    for make in (
        lambda decoder: mse_objective(decoder, {}, dense),
        lambda decoder: surrogate_objective(decoder, {}, dense, phase, signal),
    ):
        there, here = make(device), make(host)
        for mask in masks:
            np.testing.assert_allclose(here(mask)[0], there(mask)[0], rtol=1e-4)

    with ScorePool(1) as pool:
        sounds = [pesq_objective(d, {}, dense, phase, signal, pool) for d in (device, host)]
        for mask in masks:
            (there, error), (here, own) = (objective(mask) for objective in sounds)
            np.testing.assert_allclose(here, there, rtol=1e-3)
            np.testing.assert_allclose(own["mse"], error["mse"], rtol=1e-5)


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """A network with strides, which sees everything, and of which nothing else knows."""

    width: int = 4
    depth: int = 2

    def build(self):
        return _unet(self)


@functools.lru_cache
def _unet(config):
    return from_module(lambda rngs: UNet(config, rngs=rngs), config, None)


class UNet(nnx.Module):
    def __init__(self, config, *, rngs):
        widths = [2] + [config.width] * config.depth
        self.down = nnx.List(
            nnx.Conv(a, b, (3, 3), strides=2, rngs=rngs) for a, b in itertools.pairwise(widths)
        )
        self.output = nnx.Conv(config.width + 2, 1, (3, 3), rngs=rngs)

    def __call__(self, spectrogram, mask, valid=None):
        weight = mask.astype(spectrogram.dtype)
        if valid is not None:
            weight = weight * valid
        kept = jnp.where(weight > 0, spectrogram, 0) * weight
        inputs = jnp.stack([kept / 15, weight], axis=-1)
        x = inputs[None]
        for layer in self.down:
            x = jax.nn.relu(layer(x))
        x = jax.image.resize(x, (1, *mask.shape, x.shape[-1]), "nearest")
        return 15 * self.output(jnp.concatenate([x, inputs[None]], axis=-1))[0, ..., 0] - 25


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for i in range(2):
        soundfile.write(folder / f"{i}.wav", voice(i, 0.3)[:8_000], 16_000)
    return folder


@pytest.fixture(scope="module")
def unet(clips, tmp_path_factory):
    """A U-Net that was trained by its name, with settings of its own."""
    out = tmp_path_factory.mktemp("unet") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DECODERS, "unet", UNetConfig)
        argv = ["--decoder", "unet", "--decoder.width", "3", "--masks", "contrast"]
        argv += ["--data", str(clips), "--workdir", str(out), "--sparsity", "0.8", "0.9"]
        argv += ["--steps", "2", "--batch-size", "1", "--n-samples", "8000"]
        argv += ["--picture-every", "2", "--log-every", "1"]
        assert train(argv) == 0
        assert train([*argv, "--resume"]) == 0
        yield out / "network.safetensors"


@pytest.mark.slow
def test_training_takes_a_network_of_ones_own(unet, clips, capsys):
    decoder, _, card = load_decoder(unet)
    assert decoder == UNetConfig(width=3).build() and decoder.halo is None
    assert (card.masks, card.sparsity) == (("contrast",), (0.8, 0.9))
    assert "--decoder unet --decoder.width 3" in card.about["command"]
    argv = ["--decoder", "unet", "--data", str(clips), "--workdir", str(unet.parent)]
    assert train([*argv, "--resume"]) == 2
    assert "decoder.width (3, now 4)" in capsys.readouterr().err


@pytest.mark.slow
def test_evaluation_takes_a_network_of_ones_own(unet, clips, tmp_path):
    summary = reconstruction.run(
        reconstruction.Settings(
            data=clips,
            out=tmp_path / "run",
            decoders=(str(unet), "linear"),
            phases=("all",),
            seeds=(0,),
            n_samples=8_000,
            scores=False,
            keep_observed="yes",
        )
    )
    rows = [(g["method"], g["mask"], g["sparsity"]) for g in summary["groups"]]
    # For the masks that its card says, and the interpolation for the same.
    assert rows[1:] == [("network", "contrast", 0.9), ("linear", "contrast", 0.9)]
    assert "| linear | contrast, 90% | yes |" in (tmp_path / "run" / "table.md").read_text()


@pytest.mark.slow
def test_searches_take_a_network_of_ones_own(unet, clips, tmp_path):
    argv = ["--clip", str(clips / "0.wav"), "--out", str(tmp_path), "--sparsity", "0.9"]
    argv += ["--decoder", str(unet), "--methods", "random", "genetic", "relaxation"]
    argv += ["--fitness", "mse", "--generations", "2", "--population", "4", "--steps", "2"]
    assert eval_masks.main([*argv, "--workers", "1", "--json"]) == 0


@pytest.mark.parametrize("methods", [("relaxation",), ("constant", "random")])
def test_soft_masks_of_an_interpolation_are_refused(clips, tmp_path, capsys, methods):
    argv = ["--clip", str(clips / "0.wav"), "--out", str(tmp_path), "--decoder", "linear"]
    assert eval_masks.main([*argv, "--methods", *methods]) == 2
    assert f"takes no soft masks: leave out the methods {methods[0]}" in capsys.readouterr().err


@pytest.mark.slow
def test_a_search_through_an_interpolation(clips, tmp_path):
    argv = ["--clip", str(clips / "0.wav"), "--out", str(tmp_path), "--sparsity", "0.9"]
    argv += ["--decoder", "nearest", "--methods", "random", "genetic", "--fitness", "mse"]
    assert eval_masks.main([*argv, "--generations", "2", "--population", "4"]) == 0
    summary = json.loads((tmp_path / "tables.json").read_text())
    assert summary


@pytest.mark.slow
def test_the_codec_takes_a_network_of_ones_own_by_its_path(unet, clips, tmp_path, capsys):
    source, file, back = clips / "0.wav", tmp_path / "a.jsac", tmp_path / "a.wav"
    options = ["--grid", "stft", "--network", str(unet), "--mask", "contrast"]
    assert cli.main(["compress", str(source), str(file), *options]) == 0
    assert cli.main(["decompress", str(file), str(back)]) == 2
    assert "'network' is not installed: give its .safetensors file" in capsys.readouterr().err
    assert cli.main(["decompress", str(file), str(back), "--network", str(unet)]) == 0
    decoded, _ = soundfile.read(back)
    expected, _ = codec.decompress(file.read_bytes(), decoder=load_decoder(unet))
    np.testing.assert_allclose(decoded, expected[:, 0], atol=1e-4)
    other = save_weights(tmp_path / "network.safetensors", {}, UNetConfig(), {}) and cli.main(
        ["decompress", str(file), str(back), "--force", "--network", "unet"]
    )
    assert other == 2 and "needs the network" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_line_names_the_file_of_a_decoder_that_is_at_fault(clips, tmp_path, capsys):
    missing, folder = tmp_path / "no.safetensors", tmp_path / "folder.safetensors"
    folder.mkdir()
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"")
    damaged.with_suffix(".json").write_text('{"sha256": ""}')
    file = tmp_path / "a.jsac"
    source = str(clips / "0.wav")
    thesis = ["compress", "--grid", "stft", source]
    assert cli.main([*thesis, str(file), "--decoder", "nearest"]) == 0
    for path in (missing, folder, damaged):
        for argv in (thesis, ["decompress", str(file)]):
            out = str(tmp_path / "out")
            assert cli.main([*argv, out, "--decoder", str(path)]) == 2
            (line,) = capsys.readouterr().err.splitlines()[-1:]
            assert line.startswith(f"jaxsparse: {path}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mask", ["random", "mixed", "contrast-70"])
def test_a_file_that_decodes_by_interpolation(clips, tmp_path, mask):
    file, back = tmp_path / "a.jsac", tmp_path / "a.wav"
    options = ["--grid", "stft", "--decoder", "linear", "--mask", mask, "--sparsity", "0.8"]
    assert cli.main(["compress", str(clips / "0.wav"), str(file), *options]) == 0
    assert cli.main(["decompress", str(file), str(back)]) == 0
    decoded, _ = soundfile.read(back)
    original, _ = soundfile.read(clips / "0.wav")
    error = np.square(decoded - original).sum() / np.square(original).sum()
    assert len(decoded) == len(original) and error < 0.5


@pytest.mark.slow
def test_interpolations_are_told_by_their_names(clips):
    samples, rate = soundfile.read(clips / "0.wav", dtype="float32", always_2d=True)
    nearest = load_decoder("nearest")
    data = codec.compress(samples, rate, codec.STFTSettings(), decoder=nearest)
    with pytest.raises(JaxsparseError, match="the MDCT grid takes no such network"):
        codec.compress(samples, rate, decoder=nearest)
    with pytest.raises(JaxsparseError, match="needs the decoder nearest, not linear"):
        codec.decompress(data, decoder=load_decoder("linear"))
    decoded, _ = codec.decompress(data)
    np.testing.assert_array_equal(
        decoded, codec.decompress(data, decoder=load_decoder("nearest"))[0]
    )


@pytest.mark.slow
def test_a_search_through_another_decoder_is_another_run(clips, tmp_path, capsys):
    argv = ["--clip", str(clips / "0.wav"), "--out", str(tmp_path), "--sparsity", "0.9"]
    argv += ["--methods", "random", "--workers", "1", "--decoder"]
    assert eval_masks.main([*argv, "nearest"]) == 0
    assert eval_masks.main([*argv, "linear"]) == 2
    assert "another decoder (Nearest(), now Linear())" in capsys.readouterr().err


def test_a_card_for_an_unknown_policy_is_refused_in_one_line(clips, tmp_path, capsys):
    decoder, params = built(DECODERS["sparse-cnn"])
    path = tmp_path / "a.safetensors"
    save_weights(path, params, decoder.config, {}, masks=("sieve",), sparsity=(0.95, 0.8))
    assert reconstruction.main(["--data", str(clips), "--decoders", str(path)]) == 2
    assert "a network is for masks of 'sieve'" in capsys.readouterr().err
    save_weights(path, params, decoder.config, {}, masks=("mixed",), sparsity=(0.95, 0.8))
    settings = reconstruction.Settings(data=clips, decoders=(str(path),))
    assert reconstruction.masks_of(settings, load_decoder(path)) == [("mixed", 0.95)]
    for sparsity in ((1.5,), (1.0,), (0.1, 0.2, 0.3)):
        save_weights(path, params, decoder.config, {}, sparsity=sparsity)
        with pytest.raises(WeightsError, match="sparsity is not one or two numbers"):
            load_decoder(path)


def test_a_plain_policy_that_keeps_too_many_is_refused(clips, monkeypatch):
    monkeypatch.setitem(POLICIES, "all", lambda key, levels, count: jnp.ones(levels.shape, bool))
    samples, rate = soundfile.read(clips / "0.wav", dtype="float32", always_2d=True)
    settings = codec.STFTSettings(mask="all", decoder="nearest")
    with pytest.raises(JaxsparseError, match="doesn't keep exactly"):
        codec.compress(samples, rate, settings)


def test_counts_of_a_policy_that_is_a_plain_function(clips, tmp_path, monkeypatch):
    """All of its positions are stored."""

    def lowest(key, spectrogram, count):
        return (jnp.arange(spectrogram.size) < count).reshape(spectrogram.shape)

    monkeypatch.setitem(POLICIES, "lowest", lowest)
    samples, rate = soundfile.read(clips / "0.wav", dtype="float32", always_2d=True)
    settings = codec.STFTSettings(mask="lowest", decoder="nearest", sparsity="0.9")
    data = codec.compress(samples, rate, settings)
    header, parts = container.unpack(data)
    assert (header.coded_share, header.loudest) == ("1", False)
    mask = decode_segment(header, 0, 0, parts[0]).mask
    count = count_observed(mask.shape, "0.9")
    np.testing.assert_array_equal(np.flatnonzero(mask), np.arange(count))
    assert codec.decompress(data)[0].shape == samples.shape
