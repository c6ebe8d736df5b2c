import csv
import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.audio import write_wav
from jaxsparse.masks import count_observed, project_to_count
from jaxsparse.nn.sampler import SamplerConfig
from jaxsparse.nn.sparse_cnn import SparseCNNConfig, sparse_cnn
from jaxsparse.pretrained import load_sampler, load_weights
from jaxsparse.settings import SettingsError
from jaxsparse.spectrogram import log_power
from jaxsparse.transforms.stft import STFTConfig, stft
from train import loop, rebuild_splits
from train.main import main
from train.settings import RECIPES, Settings

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    directory = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for i in range(5):
        time = np.arange(9_000) / 16_000
        tone = 0.3 * np.sin(2 * np.pi * (200 + 150 * i) * time) * (time % 0.2 < 0.1)
        samples = tone + 0.01 * rng.standard_normal(time.size)
        write_wav(directory / f"{i}.wav", samples[:, None].astype(np.float32), 16_000)
    return directory


@pytest.fixture
def settings(corpus, tmp_path):
    return Settings(
        corpus,
        tmp_path / "run",
        steps=6,
        batch_size=2,
        n_samples=8_000,
        crop=(40, 24),
        learning_rate=3e-3,
        log_every=2,
        checkpoint_every=2,
        picture_every=0,
        decoder=SparseCNNConfig(kernel_gradient="native"),
    )


def flags(settings, *more):
    return [
        *("--data", str(settings.data), "--workdir", str(settings.workdir), "--steps", "2"),
        *("--batch-size", "2", "--n-samples", "8000", "--crop", "40", "24", *more),
        *("--picture-every", "0", "--log-every", "1", "--decoder.kernel-gradient", "native"),
    ]


def log_rows(workdir):
    with (workdir / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_thesis_recipe_has_the_thesis_numbers(tmp_path):
    recipe = Settings(tmp_path, tmp_path, **RECIPES["thesis"])
    assert recipe.learning_rate == 1e-4
    assert recipe.weight_decay == 5e-4
    assert recipe.batch_size == 16
    assert recipe.steps == 20 * 9_000 // 16
    assert recipe.crop is None
    assert recipe.n_samples == 77_276
    assert recipe.loss == "mse"


def test_training_learns_and_compiles_once(settings):
    settings = dataclasses.replace(settings, learning_rate=1e-2)
    decoder = settings.decoder.build()
    optimizer = loop.make_optimizer(settings)
    state = loop.init_state(settings, decoder, optimizer)
    step = loop.make_step(settings, decoder, optimizer)
    rng = np.random.default_rng(0)
    audio = rng.standard_normal((2, 8_000)).astype(np.float32)
    losses = []
    for _ in range(25):
        state, values = step(state, audio)
        losses.append(float(values["loss"]))
    assert np.mean(losses[-5:]) < 0.3 * losses[0]
    assert step._cache_size() == 1
    assert int(state.step) == 25


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    """A whole run by the command line."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXSPARSE_DATA", str(corpus.parent))
        code = main(
            [
                *("--recipe", "fast", "--data", str(corpus), "--workdir", str(workdir)),
                *("--data-note", "tones, public domain", "--batch-size", "1", "--steps", "2"),
                *("--n-samples", "8000", "--crop", "40", "24", "--log-every", "1"),
                *("--picture-every", "2", "--sparsity", "0.8", "0.9"),
            ]
        )
    assert code == 0
    return workdir


@pytest.mark.slow
def test_initialised_from_a_trained_network(run, settings):
    network = run / "network.safetensors"
    again = dataclasses.replace(settings, init_from=network)
    state = loop.init_state(again, SparseCNNConfig().build(), loop.make_optimizer(again))
    expected = load_weights(network).params
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("masks", [("random",), ("mixed",)])
def test_masks_are_fresh_and_of_the_range(settings, masks, key):
    settings = dataclasses.replace(
        settings, masks=masks, sparsity=(0.8, 0.95), crop=None, crops_per_clip=3
    )
    audio = jax.random.normal(key, (8_000,))
    examples = jax.jit(lambda *args: loop.make_examples(settings, *args))(key, audio)
    counts = np.asarray(examples.mask.sum((1, 2)))
    shape = examples.spectrogram.shape[1:]
    assert shape == (1025, 32)
    assert (counts >= count_observed(shape, 0.95)).all()
    assert (counts <= count_observed(shape, 0.8)).all()
    assert len(set(counts.tolist())) == 3
    if masks == ("mixed",):
        for spectrogram, mask, count in zip(*examples, counts, strict=True):
            assert bool(jnp.all(mask | ~project_to_count(spectrogram, int(count) // 2)))


def test_crops_are_parts_of_the_clip(settings, key):
    audio = jax.random.normal(key, (8_000,))
    settings = dataclasses.replace(settings, masks=("mixed",), crops_per_clip=2)
    examples = jax.jit(lambda *args: loop.make_examples(settings, *args))(key, audio)
    whole = np.asarray(log_power(stft(audio, STFTConfig())))
    windows = np.lib.stride_tricks.sliding_window_view(whole, (40, 24))
    for crop in np.asarray(examples.spectrogram):
        first = np.argwhere(np.isclose(windows[:, :, 0, 0], crop[0, 0], atol=1e-3))
        assert any(np.allclose(windows[i, j], crop, atol=1e-3) for i, j in first)


@pytest.mark.slow
def test_policies_shares_and_gains_are_drawn_for_each_clip(settings, key):
    """Of four clips alike, each has its own."""
    kinds = ("random", "mixed")
    settings = dataclasses.replace(
        settings, masks=kinds, share=(0.2, 1.0), sparsity=(0.8, 0.98), gain_db=10.0, crop=None
    )
    clip = jax.random.normal(key, (8_000,))
    keys = jax.random.split(key, 12)
    made = jax.jit(lambda *args: loop.make_batch(settings, *args))
    audio, examples = made(keys, jnp.broadcast_to(clip, (12, 8_000)))
    gains = 20 * np.log10(np.abs(np.asarray(audio)).max(1) / np.abs(np.asarray(clip)).max())
    assert np.abs(gains).max() <= 10.001 and np.ptp(gains) > 8
    found = np.asarray(log_power(stft(audio[3], STFTConfig())))
    np.testing.assert_allclose(examples.spectrogram[3], found, atol=1e-3)
    size = found.size
    kept = np.asarray(examples.mask.sum((1, 2)))
    assert kept.min() >= count_observed((size,), 0.98) and kept.max() <= count_observed(
        (size,), 0.8
    )
    # As many below their geometric mean as above it: the logarithm is uniform.
    assert 2 <= (kept < size * np.sqrt(0.02 * 0.2)).sum() <= 10
    shares = []
    for spectrogram, mask, count in zip(*examples, kept, strict=True):
        loudest = project_to_count(spectrogram, int(count))
        shares.append(float((mask & loudest).sum() / count))
    random = [share for share in shares if share < 0.25]
    assert 2 <= len(random) <= 10 and max(shares) - min(set(shares) - set(random)) > 0.2


def test_a_policy_that_is_drawn_alone_keeps_its_share(settings, key):
    settings = dataclasses.replace(settings, masks=("loudest",), share=(0.2, 0.3), crop=None)
    audio = jax.random.normal(key, (8_000,))
    made = jax.jit(lambda *args: loop.make_examples(settings, *args))
    (spectrogram,), (mask,) = made(key, audio)
    np.testing.assert_array_equal(mask, project_to_count(spectrogram, int(mask.sum())))


@pytest.mark.slow
def test_snapshots_and_what_a_network_started_from(run, settings, corpus):
    """In bfloat16, of which the next run starts in float32."""
    settings = dataclasses.replace(
        settings,
        steps=2,
        snapshot_every=1,
        save_dtype="bfloat16",
        masks=("random", "mixed", "random"),
        clip_norm=1e-9,
        weight_decay=0.0,
        init_from=run / "network.safetensors",
    )
    network = load_weights(loop.train(settings))
    assert network.card.masks == ("random", "mixed")
    started = network.card.about["started_from"]
    assert started["command"] == load_weights(run / "network.safetensors").card.about["command"]
    assert started["training_seconds"] > 0
    snapshots = sorted((settings.workdir / "snapshots").glob("*.safetensors"))
    assert [path.stem for path in snapshots] == ["000001", "000002"]
    assert snapshots[0].stat().st_size < 0.6 * (run / "network.safetensors").stat().st_size
    # Gradients of no size still move Adam by a learning rate a step, and rounding by 2^-9.
    before, after = (
        load_weights(path).params for path in (run / "network.safetensors", snapshots[1])
    )
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert b.dtype == jnp.float32
        np.testing.assert_allclose(b, a, rtol=2**-8, atol=2 * settings.learning_rate)


@pytest.fixture
def with_sampler(settings, monkeypatch):
    monkeypatch.setattr(loop, "SAMPLER", SamplerConfig(features=(2,)))
    return dataclasses.replace(
        settings, steps=4, crop=None, sampler_share=0.5, sampler_start="mixed", sparsity=(0.9,)
    )


@pytest.mark.slow
def test_a_sampler_is_trained_beside_the_decoder(with_sampler, tmp_path):
    """Both learn and are saved, alike by a run that is stopped and goes on."""
    few = SparseCNNConfig(kernel_sizes=(5, 3), features=3, kernel_gradient="native")
    with_sampler = dataclasses.replace(with_sampler, n_samples=4_000, decoder=few)
    whole = loop.train(dataclasses.replace(with_sampler, workdir=tmp_path / "whole"))
    stops = iter([False] * 3 + [True])
    with pytest.raises(loop.Stopped):
        loop.train(with_sampler, stop=lambda: next(stops))
    path = loop.train(dataclasses.replace(with_sampler, resume=True))
    beside = path.with_name("network-sampler.safetensors")
    decoder, sampler = load_weights(path), load_sampler(beside)
    for name in ("network", "network-sampler"):
        files = [each.with_name(f"{name}.safetensors").read_bytes() for each in (whole, path)]
        assert files[0] == files[1]
    # "learned" is what starts from densification.
    assert decoder.card.masks == ("random",) and sampler.card.masks == ("mixed",)
    assert sampler.decoder.config == loop.SAMPLER
    # They start at zero.
    assert jnp.abs(sampler.params["output"]["kernel"]).max() > 0
    again = dataclasses.replace(with_sampler, sampler_from=beside)
    state = loop.init_state(again, again.decoder.build(), loop.make_optimizer(again))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, state.params["sampler"], sampler.params))


@pytest.mark.slow
def test_masks_that_the_sampler_makes_have_the_count_and_get_harder(with_sampler, key):
    """They are those of the first clips, with all of their crops."""
    settings = dataclasses.replace(with_sampler, crops_per_clip=2, crop=(1025, 16))
    made = jax.jit(lambda *args: loop.make_batch(settings, *args))
    _, examples = made(jax.random.split(key), jax.random.normal(key, (2, 8000)))
    params = jax.jit(loop.SAMPLER.build().init)(key)
    exchange = jax.jit(lambda i: loop._exchange(settings, params, examples, i).mask)
    rounded = {}
    for step in (0, settings.steps):
        masks = np.asarray(exchange(step))
        np.testing.assert_array_equal(masks[2:], examples.mask[2:].astype(np.float32))
        improved = masks[:2]
        before = np.asarray(examples.mask)
        assert all((a != b).any() for a, b in zip(improved, before, strict=False))
        np.testing.assert_allclose(improved.sum((1, 2)), examples.mask[:2].sum((1, 2)), rtol=1e-3)
        rounded[step] = float(np.minimum(improved, 1 - improved).sum())
    assert rounded[settings.steps] < 0.6 * rounded[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["exact-sum", "lapsum", "entropic", "straight-through-entropic"])
def test_a_sampler_takes_other_relaxations(with_sampler, key, name):
    """Of the same count, in another way, and with a gradient."""
    settings = dataclasses.replace(with_sampler, sampler_relaxation=name)
    _, examples = loop.make_batch(
        settings, jax.random.split(key), jax.random.normal(key, (2, 8000))
    )
    params = loop.SAMPLER.build().init(key)

    def masks_of(settings, params):
        return loop._exchange(settings, params, examples, jnp.int32(0)).mask[:1]

    made = masks_of(settings, params)
    np.testing.assert_allclose(made.sum((1, 2)), examples.mask[:1].sum((1, 2)), rtol=1e-3)
    assert (made != masks_of(with_sampler, params)).any()
    values = np.asarray(made).ravel()
    assert (set(values.tolist()) == {0, 1}) == name.startswith("straight-through")
    # Weights that tell bins apart, since the sum is settled.
    weights = jax.random.normal(key, made.shape)
    slope = jax.grad(lambda p: jnp.sum(weights * masks_of(settings, p)))(params)
    assert jnp.abs(slope["output"]["kernel"]).max() > 0


@pytest.mark.parametrize(
    "setting",
    [
        {"sampler_share": 1.5},
        {"sampler_start": "best"},
        {"sampler_from": Path("a")},
        {"sampler_relaxation": "logistic"},
    ],
)
def test_settings_of_a_sampler_out_of_range_are_refused(settings, setting):
    refused = r"sampler_share|no policy is named 'best'|sampler_relaxation must be one of exact-sum"
    with pytest.raises(SettingsError, match=refused):
        dataclasses.replace(settings, **setting)


def test_gradients_are_clipped_as_the_settings_say(settings):
    """Adam doesn't see their size, but how much of the mean of squares the last one is."""
    gradients = [{"w": jnp.array([3.0, 4.0])}, {"w": jnp.array([300.0, 400.0])}]
    updates = {}
    for clip_norm in (0.0, 5.0):
        optimizer = loop.make_optimizer(
            dataclasses.replace(settings, clip_norm=clip_norm, weight_decay=0.0)
        )
        params = {"w": jnp.zeros(2)}
        state = optimizer.init(params)
        _, state = optimizer.update(gradients[0], state, params)
        found: Any = optimizer.update(gradients[1], state, params)[0]
        updates[clip_norm] = np.asarray(found["w"])
    np.testing.assert_allclose(updates[5.0], [-3e-3, -3e-3], rtol=1e-4)
    assert np.abs(updates[0.0]).max() < 0.9 * 3e-3


@pytest.mark.parametrize("name", ["pyramid", "pyramid-sound", "pyramid-sampler"])
def test_recipes_of_the_pyramid(name, tmp_path):
    recipe = Settings(tmp_path, tmp_path, **RECIPES[name])
    assert STFTConfig().n_frames(recipe.n_samples) == 96
    assert (recipe.sparsity, recipe.share) == ((0.8, 0.98), (0.1, 0.9))


def test_a_single_step_has_a_schedule(settings):
    loop.make_optimizer(dataclasses.replace(settings, schedule="cosine", steps=1))


def test_card_says_how_it_was_made(run):
    card = load_weights(run / "network.safetensors").card.about
    assert card["data"] == "5 clips of $JAXSPARSE_DATA/corpus0; 0 skipped"
    assert card["data_note"] == "tones, public domain"
    assert card["command"] == (
        "python -m train.main --recipe fast --data $JAXSPARSE_DATA/corpus0 --workdir RUN"
        " --sparsity 0.8 0.9 --steps 2 --batch-size 1 --n-samples 8000 --crop 40 24"
    )
    assert card["parameters"] == 30_849
    assert str(run.parent) not in json.dumps(card)
    rows = log_rows(run)
    mean = np.mean([float(row["loss"]) for row in rows])
    assert card["final_training_loss_db2"] == pytest.approx(mean, abs=1e-3)


def test_pictures_are_drawn(run):
    picture = run / "pictures" / "step-000002.png"
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_a_workdir_with_a_run_is_not_overwritten(run, corpus, capsys):
    argv = ["--data", str(corpus), "--workdir", str(run)]
    before = (run / "log.csv").read_text()
    assert main(argv) == 2
    assert "--resume goes on with it" in capsys.readouterr().err
    assert main([*argv, "--resume", "--seed", "4"]) == 2
    error = capsys.readouterr().err
    assert "holds a run with another" in error
    assert "seed" in error
    assert (run / "log.csv").read_text() == before


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--sparsitty", "0.9"], "sparsitty"),
        (["--sparsity", "1.5"], "sparsity"),
        (["--masks", "loud"], "no policy is named 'loud'"),
        (["--share", "0.5"], "share takes the two ends"),
        (["--gain-db", "61"], "gain_db must be from 0 to 60"),
        (["--beta2", "1"], "beta2 must be between"),
        (["--clip-norm", "-1"], "clip_norm"),
        (["--recipe", "slow"], "recipe"),
        (["--checkpoint-every", "0"], "checkpoint_every"),
        (["--workers", "-1"], "workers"),
        (["--seed", "-1"], "seed"),
        (["--split", "train"], "split"),
        (["--crop", "2000", "96"], "does not fit"),
        (["--data", "/nonexistent"], "/nonexistent"),
    ],
)
def test_wrong_flags_fail_at_start(settings, capsys, wrong, said):
    try:
        code = main([*flags(settings), *wrong])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    captured = capsys.readouterr()
    assert said in captured.err + captured.out
    assert not settings.workdir.exists()


def test_network_settings_do_not_matter_for_its_parameters(key):
    a = sparse_cnn(SparseCNNConfig(kernel_gradient="native")).init(key)
    b = sparse_cnn(SparseCNNConfig(kernel_gradient="auto")).init(key)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_the_splits_are_laid_out_from_librispeech(tmp_path, capsys):
    lists = {path.stem: path.read_text().split() for path in rebuild_splits.SPLITS.glob("*.txt")}
    assert {name: len(ids) for name, ids in lists.items()} == {
        "train": 200,
        "valid": 26,
        "test": 50,
    }
    speakers = [{i.split("-")[0] for i in ids} for ids in lists.values()]
    assert sum(map(len, speakers)) == len(set().union(*speakers))
    for utterance in itertools.chain.from_iterable(lists.values()):
        speaker, chapter, _ = utterance.split("-")
        folder = tmp_path / "LibriSpeech" / "subset" / speaker / chapter
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{utterance}.flac").write_text(utterance)
    argv = [str(tmp_path / "LibriSpeech"), "--data", str(tmp_path / "data")]
    assert rebuild_splits.main(argv) == 0
    linked = sorted((tmp_path / "data" / "test").iterdir())
    assert [path.read_text() for path in linked] == sorted(lists["test"])
    missing = lists["valid"][0]
    next(tmp_path.glob(f"LibriSpeech/*/*/*/{missing}.flac")).unlink()
    argv[-1] = str(tmp_path / "other")
    assert rebuild_splits.main(argv) == 2
    assert f"{missing}.flac" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
