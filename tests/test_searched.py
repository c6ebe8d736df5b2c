"""Masks that a search improves, in Python and in a file."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_eval import voice

from jaxsparse import cli, codec, policies, searched
from jaxsparse.codec import container
from jaxsparse.codec.segment import decode_segment
from jaxsparse.errors import JaxsparseError
from jaxsparse.metrics.surrogate import pesq_surrogate
from jaxsparse.objectives import mixture_objective
from jaxsparse.pretrained import load_decoder
from jaxsparse.reconstruct import to_waveform
from jaxsparse.search.run import run
from jaxsparse.spectrogram import log_power
from jaxsparse.transforms.stft import stft

N_SAMPLES = 31 * 256
COUNT = 1_500


@pytest.fixture(scope="module")
def clip():
    signal = voice(0, 0.5)[:N_SAMPLES].astype(np.float32)
    spectrum = stft(jnp.asarray(signal))
    return signal, log_power(spectrum), jnp.angle(spectrum)


@pytest.mark.slow
@pytest.mark.parametrize("search", searched.SEARCHES)
@pytest.mark.parametrize("loss", ["mse", "surrogate"])
def test_a_search_lowers_the_loss_and_keeps_the_count(search, loss, clip, key):
    signal, dense, phase = clip
    network = load_decoder("pyramid")
    start = policies.POLICIES["contrast"](key, dense, COUNT)
    found = searched.improve(
        key, start, dense, phase, network, search=search, loss=loss, evaluations=31
    )
    assert found.dtype == bool and int(found.sum()) == COUNT
    objective = mixture_objective(network.decoder, network.params, dense, phase, signal, loss=loss)
    before, after = (float(objective(mask)[0]) for mask in (start, found))
    assert after < 0.98 * before


@pytest.mark.slow
def test_a_budget_of_seconds_leaves_compilation_out(clip, key, monkeypatch):
    _, dense, phase = clip
    start = policies.POLICIES["contrast"](key, dense, COUNT)
    steps = []

    def noted(*args, **options):
        result = run(*args, **options)
        steps.append(result.steps)
        return result

    monkeypatch.setattr(searched, "run", noted)
    network = load_decoder("pyramid")
    # Another count of frames than that of the other tests, so that it is compiled here.
    start, dense, phase = start[:, :-1], dense[:, :-1], phase[:, :-1]
    for _ in range(2):
        searched.improve(key, start, dense, phase, network, seconds=1.0, loss="mse")
    # Tens of steps in a second, also where one took many seconds at first.
    assert min(steps) > 10 and max(steps) < 20 * min(steps)


@pytest.mark.parametrize(
    ("decoder", "options", "words"),
    [
        ("pyramid", {"search": "guess"}, "no search for a mask is named 'guess'"),
        ("pyramid", {"search": "values"}, "no search for a mask is named 'values'"),
        ("pyramid", {"seconds": 0.0}, "a positive number of seconds, not 0.0"),
        ("linear", {}, "a search needs gradients, and Linear runs on the host"),
    ],
)
def test_what_can_not_be_searched_is_refused(decoder, options, words, clip, key):
    _, dense, phase = clip
    with pytest.raises(JaxsparseError, match=words):
        searched.improve(key, dense > -20, dense, phase, load_decoder(decoder), **options)


def test_the_command_line_has_all_searches():
    alone = {name: (name,) for name in searched.SEARCHED}
    assert alone | {"both": ("relaxed", "values")} == cli._SEARCHED


@pytest.mark.slow
@pytest.mark.parametrize("found", [("swaps",), ("relaxed", "values")])
def test_a_file_has_the_mask_that_was_found(found, clip):
    signal, _, _ = clip
    masks = {}
    for search in ((), found):
        settings = codec.STFTSettings(
            sparsity="0.95", mask="contrast", decoder="pyramid", search=search, budget=0.5
        )
        data = codec.compress(signal[:, None], 16_000, settings)
        header, (parts,) = container.unpack(data)
        masks[search] = decode_segment(header, 0, 0, parts).mask
        decoded, _ = codec.decompress(data)
        assert decoded.shape == (N_SAMPLES, 1)
    assert masks[()].sum() == masks[found].sum()
    assert (masks[()] != masks[found]).any()


@pytest.mark.slow
def test_a_mask_of_ones_own_is_improved(clip):
    signal, dense, _ = clip
    mask = np.asarray(policies.POLICIES["loudest"](jax.random.key(0), dense, COUNT))
    settings = codec.STFTSettings(decoder="pyramid", search=("swaps",), budget=0.5)
    data = codec.compress(signal[:, None], 16_000, settings, mask=mask)
    header, (parts,) = container.unpack(data)
    found = decode_segment(header, 0, 0, parts).mask
    assert found.sum() == COUNT and (found != mask).any()


@pytest.mark.parametrize(
    "settings", [{"search": ("guess",)}, {"search": ("swaps",), "budget": -1.0}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(JaxsparseError, match="search"):
        codec.STFTSettings(**settings)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["mse", "surrogate"])
def test_values_are_refined_in_whole_steps(loss, clip, key):
    signal, dense, phase = clip
    network = load_decoder("pyramid")
    mask = policies.POLICIES["contrast"](key, dense, COUNT)
    found = searched.refine(mask, dense, phase, network, step_db=2.0, loss=loss, updates=30)
    moved = np.asarray(found / 2 - jnp.round(dense / 2))[np.asarray(mask)]
    np.testing.assert_allclose(moved, np.rint(moved), atol=1e-4)
    assert 0 < np.abs(moved).max() <= 3.001
    np.testing.assert_array_equal(found[~mask], dense[~mask])

    def loss_of(values):
        """With the values in the place of those of the clip, and the clip as the reference."""
        estimate = jnp.where(mask, values, network.decoder.apply(network.params, values, mask))
        if loss == "mse":
            return float(jnp.mean(jnp.square(estimate - dense)))
        sound = to_waveform(estimate, phase, length=len(signal))
        scores = pesq_surrogate(
            reference=signal[None], estimate=sound[None], sample_rate=16_000, band="wb"
        )
        return -float(scores[0])

    assert loss_of(found) < loss_of(2 * jnp.round(dense / 2)) - 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("mask", ["contrast", "mixed"])
def test_a_file_with_refined_values_is_no_larger(mask, clip):
    """Also where the header bounds drawn bins by the loudest ones, and in stereo."""
    signal, _, _ = clip
    stereo = np.stack([signal, 0.1 * signal[::-1]], axis=1)
    sizes, levels = {}, {}
    for search in ((), ("values",), ("swaps", "values")):
        settings = codec.STFTSettings(
            sparsity="0.95", mask=mask, decoder="pyramid", search=search, budget=4.0
        )
        data = codec.compress(stereo, 16_000, settings)
        sizes[search] = len(data)
        header, parts = container.unpack(data)
        levels[search] = decode_segment(header, 0, 0, parts[0]).levels
        assert codec.decompress(data)[0].shape == (N_SAMPLES, 2)
    assert sizes["values",] < 1.01 * sizes[()]
    assert (levels["values",] != levels[()]).any()


def moved_by(monkeypatch, steps):
    """Has the search give back the values that it gets, all of them moved by so many steps."""

    def moved(mask, spectrogram, phase, network, *, step_db, **_):
        values = np.asarray(spectrogram) / step_db
        odd = np.arange(values.size).reshape(values.shape) % 2 * 2 - 1
        return jnp.asarray((np.rint(values) + steps * odd) * step_db)

    monkeypatch.setattr(searched, "refine", moved)


@pytest.mark.parametrize("mask", ["mixed", "loudest", "random", "contrast"])
@pytest.mark.parametrize("step", [0.5, 10.0])
def test_moved_values_stay_within_what_a_file_can_hold(mask, step, clip, monkeypatch):
    signal, _, _ = clip
    moved_by(monkeypatch, 3)
    settings = codec.STFTSettings(
        "0.5", mask, decoder="pyramid", search=("values",), value_step_db=step
    )
    data = codec.compress(signal[:, None], 16_000, settings)
    header, (parts,) = container.unpack(data)
    assert decode_segment(header, 0, 0, parts).mask.sum() == header.count(0)


@pytest.mark.slow
@pytest.mark.parametrize("n_samples", [1, 5_000])
def test_silence_and_a_single_sample_can_be_searched(n_samples):
    settings = codec.STFTSettings(decoder="pyramid", search=("values",), budget=0.1)
    data = codec.compress(np.zeros((n_samples, 1), np.float32), 16_000, settings)
    decoded, _ = codec.decompress(data)
    assert decoded.shape == (n_samples, 1) and np.abs(decoded).max() < 1e-4
