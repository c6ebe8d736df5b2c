"""Masks that a search improves, in Python and in a file."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_eval import voice

from jaxsparse import codec, policies, searched
from jaxsparse.codec import container
from jaxsparse.codec.segment import decode_segment
from jaxsparse.decoders import DECODERS
from jaxsparse.errors import JaxsparseError
from jaxsparse.objectives import mixture_objective
from jaxsparse.pretrained import load_decoder
from jaxsparse.spectrogram import log_power
from jaxsparse.transforms.stft import stft

N_SAMPLES = 31 * 256
COUNT = 1_500


@pytest.fixture(scope="module")
def clip():
    signal = voice(0, 0.5)[:N_SAMPLES].astype(np.float32)
    spectrum = stft(jnp.asarray(signal))
    return signal, log_power(spectrum), jnp.angle(spectrum)


@pytest.mark.parametrize("loss", ["mse", pytest.param("surrogate", marks=pytest.mark.slow)])
def test_a_search_lowers_the_loss_and_keeps_the_count(loss, clip, key):
    signal, dense, phase = clip
    network = load_decoder("pyramid")
    start = policies.POLICIES["contrast"](key, dense, COUNT)
    found = searched.improve(key, start, dense, phase, network, loss=loss, evaluations=31)
    assert found.dtype == bool and int(found.sum()) == COUNT
    objective = mixture_objective(network.decoder, network.params, dense, phase, signal, loss=loss)
    before, after = (float(objective(mask)[0]) for mask in (start, found))
    assert after < 0.98 * before


def test_a_budget_of_seconds_ends_it(clip, key):
    _, dense, phase = clip
    start = policies.POLICIES["contrast"](key, dense, COUNT)
    found = searched.improve(
        key, start, dense, phase, load_decoder("pyramid"), seconds=0.01, loss="mse"
    )
    assert int(found.sum()) == COUNT


@pytest.mark.parametrize(
    ("decoder", "options", "words"),
    [
        ("pyramid", {"search": "guess"}, "no search is named 'guess'; there are swaps"),
        ("pyramid", {"seconds": 0.0}, "a positive number of seconds, not 0.0"),
        ("linear", {}, "a search needs gradients, and Linear runs on the host"),
    ],
)
def test_what_can_not_be_searched_is_refused(decoder, options, words, clip, key):
    _, dense, phase = clip
    with pytest.raises(JaxsparseError, match=words):
        searched.improve(key, dense > -20, dense, phase, load_decoder(decoder), **options)
    assert "linear" in DECODERS


@pytest.mark.slow
def test_a_file_has_the_mask_that_was_found(clip):
    signal, _, _ = clip
    masks = {}
    for search in (None, "swaps"):
        settings = codec.STFTSettings(
            sparsity="0.95", mask="contrast", decoder="pyramid", search=search, budget=0.5
        )
        data = codec.compress(signal[:, None], 16_000, settings)
        header, (parts,) = container.unpack(data)
        masks[search] = decode_segment(header, 0, 0, parts).mask
        decoded, _ = codec.decompress(data)
        assert decoded.shape == (N_SAMPLES, 1)
    assert masks[None].sum() == masks["swaps"].sum()
    assert (masks[None] != masks["swaps"]).any()


def test_a_mask_of_ones_own_is_improved(clip):
    signal, dense, _ = clip
    mask = np.asarray(policies.POLICIES["loudest"](jax.random.key(0), dense, COUNT))
    settings = codec.STFTSettings(decoder="pyramid", search="swaps", budget=0.5)
    data = codec.compress(signal[:, None], 16_000, settings, mask=mask)
    header, (parts,) = container.unpack(data)
    found = decode_segment(header, 0, 0, parts).mask
    assert found.sum() == COUNT and (found != mask).any()


@pytest.mark.parametrize("settings", [{"search": "guess"}, {"search": "swaps", "budget": -1.0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(JaxsparseError, match="search"):
        codec.STFTSettings(**settings)
