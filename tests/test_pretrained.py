import hashlib
import json
import shutil
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save

from jaxsparse import pretrained
from jaxsparse.decoders import DECODERS
from jaxsparse.errors import JaxsparseError
from jaxsparse.nn.network import n_parameters
from jaxsparse.nn.pyramid_unet import PyramidUNetConfig
from jaxsparse.nn.sparse_cnn import SparseCNNConfig, sparse_cnn
from jaxsparse.pretrained import (
    NAMES,
    THESIS_NAMES,
    Card,
    WeightsError,
    choose_pretrained,
    load_decoder,
    load_pretrained,
    load_weights,
    save_weights,
)

CONFIG = SparseCNNConfig((3, 1), 2, "weight", 1e-6, -30.0, 12.0)
NAN, INF = float("nan"), float("inf")
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
    assert loaded.decoder is sparse_cnn(CONFIG)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.card == Card(digest, about=CARD)


def test_round_trip_of_odd_values_and_dtypes(tmp_path, params):
    odd = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    odd["output"]["bias"] = jnp.array([-0.0], jnp.float32)
    odd["hidden"][0]["bias"] = jnp.finfo(jnp.float32).max * jnp.array([1.0, -1.0])
    digest = save_weights(tmp_path / "odd.safetensors", odd, CONFIG, {})
    # As the decoder makes them.
    expected = jax.tree.map(lambda p: p.astype(jnp.float32), odd)
    assert_identical(load_weights(tmp_path / "odd.safetensors").params, expected)
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


@pytest.mark.parametrize(
    "card",
    ["", "[]", "null", "{}", '{"sha256": 1}', '{"sha256": null}', '"text"', "\0", "[" * 9999],
)
def test_a_card_of_something_else_is_refused(path, card):
    path.with_suffix(".json").write_text(card)
    with pytest.raises(WeightsError, match=f"{path.name}: its card is damaged"):
        load_weights(path)


def test_a_card_that_is_no_utf8_is_refused(path):
    path.with_suffix(".json").write_bytes('{"sha256": "ü"}'.encode("latin-1"))
    with pytest.raises(WeightsError, match="card is damaged: 'utf-8' codec"):
        load_weights(path)


SETTINGS = {
    "kernel_sizes": [3, 1],
    "features": 2,
    "normalization": "weight",
    "eps": 1e-6,
    "input_offset": -30.0,
    "input_scale": 12.0,
}
TENSORS = {
    "hidden.0.kernel": np.ones((3, 3, 1, 2), np.float32),
    "hidden.0.bias": np.ones(2, np.float32),
    "hidden.1.kernel": np.ones((1, 1, 2, 2), np.float32),
    "hidden.1.bias": np.ones(2, np.float32),
    "output.kernel": np.ones((1, 1, 2, 1), np.float32),
    "output.bias": np.ones(1, np.float32),
}


def write_weights(path, tensors=TENSORS, metadata=None):
    """A file whose card describes it, whatever is in it."""
    data = save(tensors, metadata or {"config": json.dumps(SETTINGS)})
    path.write_bytes(data)
    card = {"sha256": hashlib.sha256(data).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(card))


def assert_refused(path, fault):
    """One line names the file and the fault."""
    with pytest.raises(WeightsError) as error:
        load_weights(path)
    text = str(error.value)
    assert text.startswith(f"{path} is damaged: ") and text.isprintable()
    assert fault in text and len(text) < len(str(path)) + 400


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        ("{", "Expecting property name"),
        ("[]", "no object"),
        ("[" * 9999, "nested too deeply"),
        ('{"eps": ' + "[" * 200 + "]" * 200 + "}", "nested too deeply"),
        ("{}", "lack 'eps', 'features', 'input_offset'"),
        ({"depth\n": 3}, r"unknown fields: 'depth\n'"),
        ({"kernel_gradient": "auto"}, "unknown fields: 'kernel_gradient'"),
        *(
            ({"kernel_sizes": sizes}, "kernel_sizes must be 1 to 64 odd numbers of at most 99")
            for sizes in ([], [2], [-1], [101], [3] * 65)
        ),
        *(
            ({"kernel_sizes": sizes}, "$.kernel_sizes")
            for sizes in (3, "3", None, [3.5], [True], ["3"], [[3]])
        ),
        *(
            ({"features": width}, "features must be a whole number from 1 to 1024")
            for width in (0, -1, 1025, 10**30)
        ),
        *(({"features": width}, "$.features") for width in (2.5, True, "2", None)),
        *(({"normalization": x}, "$.normalization") for x in ("", "sum", None, ["count"])),
        *(({"eps": x}, "eps must be a number from 1e-30") for x in (0, -1.0, NAN, INF)),
        *(({"eps": x}, "$.eps") for x in (True, "1")),
        *(({"input_offset": x}, "input_offset must be a") for x in (NAN, -INF)),
        *(({"input_offset": x}, "$.input_offset") for x in (10**400, None, [])),
        *(({"input_scale": x}, "input_scale must be a") for x in (0.0, -15.0, NAN, INF)),
        ({"input_scale": False}, "$.input_scale"),
    ],
)
def test_settings_of_no_network_are_refused_before_it_is_built(
    tmp_path, monkeypatch, config, fault
):
    monkeypatch.setattr(SparseCNNConfig, "build", None)
    text = config if isinstance(config, str) else json.dumps(SETTINGS | config)
    write_weights(tmp_path / "a.safetensors", metadata={"config": text})
    assert_refused(tmp_path / "a.safetensors", fault)


def test_a_million_layers_are_refused_before_they_are_built(tmp_path, monkeypatch):
    monkeypatch.setattr(SparseCNNConfig, "build", None)
    text = json.dumps(SETTINGS | {"kernel_sizes": [3] * 10**6})
    write_weights(tmp_path / "a.safetensors", metadata={"config": text})
    assert_refused(tmp_path / "a.safetensors", "kernel_sizes must be 1 to 64")


def test_whole_numbers_are_numbers(tmp_path):
    config = SETTINGS | {"input_offset": -30, "input_scale": 12}
    write_weights(tmp_path / "a.safetensors", metadata={"config": json.dumps(config)})
    assert load_weights(tmp_path / "a.safetensors").decoder is sparse_cnn(CONFIG)


def test_weights_without_settings_are_refused(tmp_path):
    write_weights(tmp_path / "a.safetensors", metadata={"other": ""})
    assert_refused(tmp_path / "a.safetensors", "no settings of a network")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"hidden.0.bias": np.array([1, np.nan], np.float32)}, "hidden.0.bias holds values that"),
        ({"output.kernel": np.full((1, 1, 2, 1), -INF, np.float32)}, "output.kernel holds values"),
        ({"hidden.1.bias": np.ones(1, np.float32)}, "hidden.1.bias has the shape (1,), not (2,)"),
        ({"output.bias": np.ones((), np.float32)}, "output.bias has the shape (), not (1,)"),
        ({"hidden.0.kernel": np.ones((3, 3, 2, 1), np.float32)}, "not (3, 3, 1, 2)"),
        ({"output.bias": np.ones(1, np.int32)}, "output.bias is of I32, not F32 or BF16"),
        ({"output.bias": np.ones(1, np.float64)}, "output.bias is of F64"),
        ({"output.bias": np.ones(1, bool)}, "output.bias is of BOOL"),
        ({"output.bias": None}, "it lacks the tensors 'output.bias'"),
        ({"hidden.2.bias": np.ones(2, np.float32)}, "has no tensors 'hidden.2.bias'"),
        ({"hidden.00.bias": np.ones(2, np.float32)}, "has no tensors 'hidden.00.bias'"),
        ({"zz": np.ones(1), "zz.b": np.ones(1)}, "has no tensors 'zz', 'zz.b'"),
        ({"zz.²": np.ones(1)}, "has no tensors 'zz.²'"),
        ({"a\nb" + "c" * 999: np.ones(1)}, r"has no tensors 'a\nbccc"),
        ({"": np.ones(1)}, "has no tensors ''"),
    ],
)
def test_tensors_of_another_network_are_refused(tmp_path, change, fault):
    tensors = {name: value for name, value in (TENSORS | change).items() if value is not None}
    write_weights(tmp_path / "a.safetensors", tensors)
    assert_refused(tmp_path / "a.safetensors", fault)


def test_a_half_that_is_infinite_is_refused(tmp_path):
    tensors = TENSORS | {"output.bias": np.array([INF], jnp.bfloat16)}
    write_weights(tmp_path / "a.safetensors", tensors)
    assert_refused(tmp_path / "a.safetensors", "output.bias holds values")


def test_the_file_is_read_once(path, params, monkeypatch):
    """What is loaded is what was checked, though the file changes meanwhile."""
    read = Path.read_bytes

    def read_and_change(self):
        data = read(self)
        if self == path:
            path.write_bytes(data[::-1])
        return data

    monkeypatch.setattr(Path, "read_bytes", read_and_change)
    assert_identical(load_weights(path).params, params)


def test_a_decoder_of_no_known_name_is_refused(tmp_path):
    config = json.dumps(SETTINGS | {"decoder": "unheard\nof"})
    write_weights(tmp_path / "a.safetensors", metadata={"config": config})
    assert_refused(tmp_path / "a.safetensors", r"kind 'unheard\nof'; there are sparse-cnn")


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
    with pytest.raises(ValueError, match="unet, unet-small, random-80"):
        load_pretrained(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_network_loads_and_says_what_it_is(name):
    decoder, params, card = load_pretrained(name)
    configs = {"unet": PyramidUNetConfig(), "unet-small": PyramidUNetConfig((14, 28, 42))}
    expected = configs[name].build() if name in configs else sparse_cnn()
    assert decoder is expected and n_parameters(params) == card.about["parameters"]
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert len(card.sha256) == 64
    settings = card.about["settings"]
    # The thesis' networks were trained when a setting was one name.
    masks = np.unique(np.atleast_1d(settings["masks"])).tolist()
    # The others are for any mask.
    assert sorted(card.masks) == (masks if name in THESIS_NAMES else [])
    assert card.sparsity == tuple(settings["sparsity"])
    for field in ("recipe", "command", "data", "training_seconds", "final_training_loss_db2"):
        assert card.about.get(field), f"the card of {name} does not say its {field}"
    assert "CC BY 4.0" in json.dumps(card.about), "the licence of what it was trained on"


def test_shipped_networks_are_different_and_small():
    assert len({load_pretrained(name).card.sha256 for name in NAMES}) == len(NAMES)
    folder = Path(pretrained.__file__).parent / "weights"
    assert all((folder / f"{name}.safetensors").stat().st_size <= 2 * 2**20 for name in NAMES)


@pytest.mark.parametrize(
    ("field", "value"),
    [("masks", "mixed"), ("masks", [1]), ("sparsity", 0.9), ("sparsity", ["a"]), ("masks", None)],
)
def test_a_card_whose_purpose_is_not_readable_is_refused(path, field, value):
    card = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(card | {field: value}))
    with pytest.raises(WeightsError, match=rf"its card is damaged: .*\$\.{field}"):
        load_weights(path)


def test_what_a_network_is_for_is_saved(tmp_path, params):
    path = tmp_path / "a.safetensors"
    save_weights(path, params, CONFIG, {}, masks=("mixed", "contrast"), sparsity=(0.8, 0.98))
    card = load_weights(path).card
    assert (card.masks, card.sparsity) == (("mixed", "contrast"), (0.8, 0.98))
    assert card.is_for("contrast") and not card.is_for("random")
    assert [card.distance(s) for s in ("0.7", 0.8, "0.95", 0.98, "0.99")] == [
        *(Fraction(1, 10), 0, 0, 0, Fraction(1, 100))
    ]


@pytest.mark.parametrize(
    ("mask", "sparsity", "expected"),
    [
        ("mixed", "0.95", ("unet", True)),
        ("mixed", "0.799", ("unet", False)),
        ("random", 0.85, ("unet", True)),
        ("random", "0.79", ("unet", False)),
        ("contrast", "0.9", ("unet", True)),
        ("unheard of", "0.9", ("unet", True)),
    ],
)
def test_the_network_whose_card_fits_best_is_chosen(mask, sparsity, expected):
    assert choose_pretrained(mask, sparsity) == expected


@pytest.mark.parametrize("name", ["nearest", "linear", "clough-tocher"])
def test_an_interpolation_needs_no_weights(name):
    loaded = load_decoder(name)
    assert loaded.decoder is DECODERS[name]().build() and loaded.decoder.on_host
    assert loaded.params == {} and loaded.card == Card("0" * 64)


def test_decoders_are_loaded_by_name_and_by_path(path, params):
    assert load_decoder("random-80").decoder is sparse_cnn()
    assert_identical(load_decoder(path).params, params)
    with pytest.raises(JaxsparseError, match="has to be trained"):
        load_decoder("sparse-cnn")
