import hashlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.nn.network import SparseCNNConfig, n_parameters, sparse_cnn
from jaxsparse.pretrained import NAMES, WeightsError, load_pretrained, load_weights, save_weights

CONFIG = SparseCNNConfig((3, 1), 2, "weight", 1e-6, -30.0, 12.0)
CARD = {"recipe": "none", "note": "für nichts gut"}


@pytest.fixture(scope="module")
def params():
    return jax.jit(sparse_cnn(CONFIG).init)(jax.random.key(0))


@pytest.fixture
def path(tmp_path, params):
    path = tmp_path / "small.v1.safetensors"
    save_weights(path, params, CONFIG, CARD)
    return path


def assert_identical(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert left.dtype == right.dtype
        assert np.asarray(left).tobytes() == np.asarray(right).tobytes()


def test_round_trip_is_bit_for_bit(path, params):
    loaded = load_weights(path)
    assert_identical(loaded.params, params)
    assert loaded.apply is sparse_cnn(CONFIG).apply
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    network = loaded.card.pop("network")
    assert loaded.card == {**CARD, "sha256": digest, "halo": 1}
    assert SparseCNNConfig(**network) == CONFIG


def test_round_trip_of_odd_values_and_dtypes(tmp_path, params):
    odd = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    odd["output"]["bias"] = jnp.array([-0.0], jnp.float32)
    odd["hidden"][0]["bias"] = jnp.array([jnp.nan, -jnp.inf])
    digest = save_weights(tmp_path / "odd.safetensors", odd, CONFIG, {})
    assert_identical(load_weights(tmp_path / "odd.safetensors").params, odd)
    assert digest == hashlib.sha256((tmp_path / "odd.safetensors").read_bytes()).hexdigest()


def test_more_than_nine_layers_keep_their_order(tmp_path):
    config = SparseCNNConfig((3,) * 12, 1)
    params = jax.jit(sparse_cnn(config).init)(jax.random.key(0))
    save_weights(tmp_path / "deep.safetensors", params, config, {})
    assert_identical(load_weights(tmp_path / "deep.safetensors").params, params)


def test_every_altered_byte_of_the_weights_is_noticed(path):
    data = path.read_bytes()
    for position in range(len(data)):
        for flip in (0x01, 0xFF):
            altered = bytearray(data)
            altered[position] ^= flip
            path.write_bytes(altered)
            with pytest.raises(WeightsError, match="small"):
                load_weights(path)


@pytest.mark.parametrize(
    "change", [lambda d: b"", lambda d: d[:-1], lambda d: d[:7], lambda d: d + b"\0"]
)
def test_weights_of_another_length_are_noticed(path, change):
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(WeightsError, match="SHA-256"):
        load_weights(path)


def test_an_altered_card_is_read_or_refused_and_never_more(path, params):
    card = path.with_suffix(".json")
    data = card.read_bytes()
    refused = 0
    for position in range(len(data)):
        for flip in (0x01, 0xFF):
            altered = bytearray(data)
            altered[position] ^= flip
            card.write_bytes(altered)
            try:
                assert_identical(load_weights(path).params, params)
            except WeightsError:
                refused += 1
    # All that is not text, and all that is not the digest.
    assert refused > len(data) + 64


@pytest.mark.parametrize("card", ["", "[]", "null", "{}", '{"sha256": 1}', '"text"', "\0"])
def test_a_card_of_something_else_is_refused(path, card):
    path.with_suffix(".json").write_text(card)
    with pytest.raises(WeightsError, match=path.name):
        load_weights(path)


@pytest.mark.parametrize(
    "config",
    [{}, {"kernel_sizes": [2]}, {"kernel_sizes": [3], "depth": 3}, [], {"kernel_sizes": 3}],
)
def test_settings_of_an_unknown_network_are_refused(tmp_path, config):
    from safetensors.numpy import save

    path = tmp_path / "foreign.safetensors"
    for metadata in ({"config": json.dumps(config)}, {"config": "{"}, {"other": ""}, None):
        data = save({"a": np.zeros(3, np.float32)}, metadata)
        path.write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        path.with_suffix(".json").write_text(json.dumps({"sha256": digest}))
        with pytest.raises(WeightsError, match="damaged"):
            load_weights(path)


def test_missing_files_are_missing_files(path):
    with pytest.raises(FileNotFoundError, match="absent"):
        load_weights(path.with_name("absent.safetensors"))
    path.with_suffix(".json").unlink()
    with pytest.raises(FileNotFoundError, match="json"):
        load_weights(path)


def test_the_card_of_another_network_is_refused(path, tmp_path, params):
    other = tmp_path / "other.safetensors"
    save_weights(other, jax.tree.map(lambda p: p + 1, params), CONFIG, CARD)
    shutil.copy(other.with_suffix(".json"), path.with_suffix(".json"))
    with pytest.raises(WeightsError, match="SHA-256"):
        load_weights(path)


@pytest.mark.parametrize("name", ["random-99", "", "../random-95", "random-95.safetensors"])
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(ValueError, match="random-95, mixed"):
        load_pretrained(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_network_loads_and_says_what_it_is(name):
    apply, params, card = load_pretrained(name)
    assert n_parameters(params) == 30_849
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert apply is sparse_cnn(SparseCNNConfig()).apply
    assert card["halo"] == 12
    assert len(card["sha256"]) == 64
    for field in ("recipe", "command", "data", "training_seconds", "final_training_loss_db2"):
        assert card.get(field), f"the card of {name} does not say its {field}"
    assert "CC BY 4.0" in json.dumps(card), "the licence of what it was trained on"


def test_shipped_networks_are_five_different_ones():
    assert len({load_pretrained(name).card["sha256"] for name in NAMES}) == 5
