import csv
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse import terms as losses
from jaxsparse.audio import write_wav
from jaxsparse.nn.sparse_cnn import SparseCNNConfig
from jaxsparse.pretrained import load_weights
from jaxsparse.settings import SettingsError
from jaxsparse.spectrogram import log_power
from jaxsparse.transforms.stft import stft
from train import loop
from train.settings import RECIPES, STFT, Settings

# Compiling takes seconds, and the others are of the same make as one of these.
NAMES = ("mse", "mfcc", "si-sdr", "stoi", "surrogate")
SOUNDS = [name for name in NAMES if losses.TERMS[name].of_sound]


def speech(n_samples, seed=0):
    """A voice whose harmonics come and go in syllables, over faint noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(n_samples) / 16_000
    pitch = 120 + 20 * seed
    voice = sum(np.sin(2 * np.pi * pitch * k * time + k) / k for k in range(1, 25))
    # STOI leaves out what is 40 dB down, and half a second must not lose any.
    syllables = 0.1 + np.clip(np.sin(2 * np.pi * 4 * time), 0, None)
    return (0.1 * voice * syllables + 1e-3 * rng.standard_normal(n_samples)).astype(np.float32)


@jax.jit
@jax.vmap
def spectrograms(audio):
    return log_power(stft(audio, STFT))


pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    directory = tmp_path_factory.mktemp("voices")
    for i in range(3):
        write_wav(directory / f"{i}.wav", speech(4_000, i)[:, None], 16_000)
    return directory


@pytest.fixture
def settings(corpus, tmp_path):
    return Settings(
        corpus,
        tmp_path / "run",
        loss="mse+0.5*mfcc",
        steps=5,
        batch_size=1,
        n_samples=2_000,
        learning_rate=1e-3,
        log_every=2,
        checkpoint_every=5,
        picture_every=0,
        decoder=SparseCNNConfig(kernel_gradient="native"),
    )


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("mse", ((1.0, "mse"),)),
        ("0.5*mfcc", ((0.5, "mfcc"),)),
        ("quality", ((1.0, "surrogate"), (1.0, "surrogate-nb"), (10.0, "stoi"))),
        (" mse + 2e-1 * si-sdr ", ((1.0, "mse"), (0.2, "si-sdr"))),
        (
            "3*mse+surrogate-nb",
            ((3.0, "mse"), (losses.TERMS["surrogate-nb"].weight, "surrogate-nb")),
        ),
    ],
)
def test_losses_are_sums_of_weighted_terms(text, terms):
    assert losses.parse_loss(text) == terms
    assert losses.parse_loss(losses.format_loss(terms)) == terms


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mfc", "no term 'mfc'; there are mse, audible-mse, mel, mfcc, stft"),
        ("", "no term ''"),
        ("mse+", "no term ''"),
        ("mse-mfcc", "no term 'mse-mfcc'"),
        ("0*mse", "weighs mse by a positive number, not '0'"),
        ("-1*mse", "not '-1'"),
        ("nan*mse", "not 'nan'"),
        ("inf*mse", "not 'inf'"),
        ("*mse", "not ''"),
        ("2*3*mse", r"not '2\*3'"),
        ("mse+mel+2*mse", "the term mse twice"),
    ],
)
def test_wrong_losses_are_named(settings, text, said):
    with pytest.raises(SettingsError, match=said):
        dataclasses.replace(settings, loss=text)


def test_audible_errors_count_and_masked_ones_do_not():
    """A tone masks its neighbours 40 dB below it, and not what is far away."""
    reference = jnp.full((1, 513, 4), -80.0).at[:, 100].set(40.0).at[:, 102].set(0.0)
    reference = reference.at[:, 400].set(20.0)

    def score(bin_, error=3.0):
        estimate = reference.at[:, bin_].add(error)
        return float(losses.audible_mse(reference=reference, estimate=estimate)[0])

    assert score(100) == pytest.approx(score(400), rel=1e-3)
    assert score(102) < 1e-3 * score(100)
    # Two bins are heard, and nearly no other.
    assert score(100) == pytest.approx(9 / 2, rel=0.2)
    assert score(100, 6.0) == pytest.approx(4 * score(100), rel=1e-5)


@pytest.mark.parametrize("changes", [{"crop": (40, 4)}, {"crops_per_clip": 2}])
def test_sound_needs_whole_spectrograms(settings, changes):
    with pytest.raises(SettingsError, match="it takes no crop and one of crops_per_clip"):
        dataclasses.replace(settings, **changes)
    dataclasses.replace(settings, loss="2*mse", **changes)


@pytest.mark.parametrize("name", ["stoi", "estoi"])
def test_intelligibility_needs_clips_that_have_a_gradient(settings, name):
    settings = dataclasses.replace(settings, loss="mse", n_samples=6_554)
    dataclasses.replace(settings, loss=f"mse+{name}")
    with pytest.raises(SettingsError, match=f"loss {name} needs n_samples of 6554 at least"):
        dataclasses.replace(settings, loss=f"mse+{name}", n_samples=6_553)


def test_shorter_clips_have_no_intelligibility():
    rng = np.random.default_rng(0)
    for n_samples, told in ((6_553, False), (6_554, True)):
        x, y = rng.standard_normal((2, 1, n_samples)).astype(np.float32)
        score = losses.TERMS["stoi"].score(reference=x, estimate=x + y, sample_rate=16_000)
        assert (abs(float(score[0]) - 1) > 1e-3) == told


def test_the_sum_is_of_both_representations():
    audio = np.stack([speech(4_000), speech(4_000, 1)])
    reference = np.asarray(spectrograms(audio))
    # 6.02 dB more everywhere are twice the amplitude.
    estimate = reference + np.float32(20 * np.log10(2))
    loss = losses.make_loss(losses.parse_loss("3*mse+0.5*lsd"), STFT)
    total, terms = jax.jit(loss)(reference=reference, estimate=estimate, audio=audio)
    assert float(terms["mse"]) == pytest.approx(36.25, abs=0.01)
    # The floor of 80 dB below the maximum alone makes 0.2 dB of this.
    assert float(terms["lsd"]) == pytest.approx(6.02, abs=0.3)
    assert float(total) == pytest.approx(3 * float(terms["mse"]) + 0.5 * float(terms["lsd"]))


def test_the_sound_is_the_clip_where_the_spectrogram_is():
    audio = jnp.asarray(speech(4_000))
    whole = log_power(stft(audio, STFT), top_db=None)
    sound = losses.resynthesize(whole, audio, config=STFT)
    # Levels of 40 dB have float32 steps of 4e-6 dB, amplitudes then of 5e-7.
    np.testing.assert_allclose(sound, audio, atol=2e-6)


@functools.cache
def value_and_gradient(name):
    loss = losses.make_loss(((1.0, name),), STFT)

    @jax.jit
    def evaluate(audio, reference, estimate):
        def value(estimate):
            return loss(reference=reference, estimate=estimate, audio=audio)[0]

        return jax.value_and_grad(value)(estimate)

    return evaluate


@pytest.mark.parametrize("name", NAMES)
def test_down_its_gradient_a_term_falls(name):
    audio = np.stack([speech(8_000), speech(8_000, 1)])
    reference = np.asarray(spectrograms(audio))
    noise = np.random.default_rng(0).standard_normal(reference.shape).astype(np.float32)
    estimate = reference + 6 * noise
    before, gradient = value_and_gradient(name)(audio, reference, estimate)
    # As Adam goes, which zeros of the sound's spectrum, where log distances are steep, don't rule.
    # So short a way that the term falls by most of what the gradient promises.
    step = np.float32(0.01) * np.sign(gradient)
    after, _ = value_and_gradient(name)(audio, reference, estimate - step)
    promised = float(np.sum(step * gradient))
    assert promised > 0
    assert 0.8 * promised < float(before - after) < 1.2 * promised


@pytest.mark.parametrize("name", SOUNDS)
def test_gradients_are_finite(name):
    audio = np.stack([speech(8_000), np.zeros(8_000, np.float32)])
    reference = np.asarray(spectrograms(audio))
    rng = np.random.default_rng(0)
    noise = 30 * rng.standard_normal(reference.shape).astype(np.float32)
    # An amplitude of 1e4 dB is beyond float32, and one of -1e4 dB is 0.
    extreme = np.where(rng.random(reference.shape) < 0.5, 1e4, -1e4).astype(np.float32)
    for estimate in (reference, reference + noise, extreme, np.full_like(reference, -1e4)):
        value, gradient = value_and_gradient(name)(audio, reference, estimate)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


@pytest.mark.slow
def test_training_lowers_the_term(settings):
    changes = {"init_from": RECIPES["perceptual"]["init_from"], "n_samples": 4_000}
    settings = dataclasses.replace(settings, loss="surrogate", **changes)
    decoder = settings.decoder.build()
    optimizer = loop.make_optimizer(settings)
    state = loop.init_state(settings, decoder, optimizer)
    step = loop.make_step(settings, decoder, optimizer)
    history = []
    for _ in range(8):
        # The same masks every time, whose draw is far more than a step's gain.
        state, values = step(state._replace(step=jnp.zeros_like(state.step)), speech(4_000)[None])
        assert list(values) == ["loss"]
        history.append(float(values["loss"]))
    assert history[-1] < 0.85 * history[0]
    assert step._cache_size() == 1


def log_rows(workdir):
    with (workdir / "log.csv").open(newline="") as file:
        return [
            {name: row[name] for name in row if name not in ("samples_per_s", "seconds")}
            for row in csv.DictReader(file)
        ]


def stop_after(steps):
    asked = iter(range(steps + 2))
    return lambda: next(asked) > steps


@pytest.mark.slow
def test_terms_are_logged_and_resumed(settings, tmp_path):
    network = loop.train(settings)
    rows = log_rows(settings.workdir)
    assert [row["step"] for row in rows] == ["2", "4", "5"]
    assert list(rows[0]) == ["step", "loss", "mse", "mfcc", "learning_rate"]
    for row in rows:
        total = float(row["mse"]) + 0.5 * float(row["mfcc"])
        # Means of two float32, each rounded once.
        assert float(row["loss"]) == pytest.approx(total, rel=2.5e-7)
    card = load_weights(network).card.about
    assert card["loss"] == "1*mse+0.5*mfcc"
    assert "--loss mse+0.5*mfcc" in card["command"]
    means = np.mean([[float(row[name]) for name in ("loss", "mse", "mfcc")] for row in rows], 0)
    assert list(card["final_training_loss"]) == ["loss", "mse", "mfcc"]
    assert list(card["final_training_loss"].values()) == pytest.approx(means.tolist(), abs=1e-3)
    assert card["final_training_loss_db2"] == card["final_training_loss"]["mse"]

    again = dataclasses.replace(settings, workdir=tmp_path / "again")
    with pytest.raises(loop.Stopped):
        loop.train(again, stop=stop_after(3))
    assert loop.train(dataclasses.replace(again, resume=True)).read_bytes() == network.read_bytes()
    assert log_rows(again.workdir) == rows
