"""The description of the format: its tables and numbers are those of the code."""

import json
import re
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from jaxsparse.codec import container
from jaxsparse.codec.header import FIELDS, VERSIONS, Choice, Flag, Integer, Thousandths
from jaxsparse.codec.segment import decode_segment
from jaxsparse.nn.pyramid import PyramidConfig
from jaxsparse.nn.pyramid_unet import PyramidUNetConfig
from jaxsparse.pretrained import save_weights
from tests import plain_decoder, plain_networks
from tests.jsac_files import PREFIX, offsets
from tests.same_numbers import COMPRESSED, FOLDER

TEXT = (Path(__file__).parent.parent / "docs" / "format.md").read_text(encoding="utf-8")
VALID = FOLDER / "fuzz" / "corpus" / "valid"
DATA = COMPRESSED.read_bytes()
TYPES = {"B": "u8", "H": "u16", "I": "u32", "Q": "u64", "4s": "4 bytes", "32s": "32 bytes"}


def rows(title):
    """The cells of the first table under a title, without its head."""
    section = TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]
    tables = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)
    lines = tables[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def limits(field):
    """The numbers that the code takes, as they stand in the file."""
    if isinstance(field, Integer):
        return (0 if field.optional else field.low), field.high
    if isinstance(field, Choice):
        return 0, len(field.choices) - 1
    if isinstance(field, Flag | Thousandths):
        return 0, 1 if isinstance(field, Flag) else 1000
    return None


def test_table_of_the_header_is_that_of_the_code():
    table = {row[0].strip("`"): row[1:] for row in rows("Header")}
    assert list(table) == [*PREFIX, *(field.name for field in FIELDS)]
    for field in FIELDS:
        kind, *_, values, _ = table[field.name]
        assert kind == TYPES.get(field.code, "text")
        expected = limits(field)
        assert expected is None or values == f"{expected[0]:,} to {expected[1]:,}"
    for name, code in PREFIX.items():
        assert table[name][0] == TYPES[code]
    for column, version in enumerate(VERSIONS, 1):
        places = {name: offset for name, (offset, _) in offsets(version).items()}
        found = {n: row[column] for n, row in table.items() if row[0] != "text"}
        assert {n: int(text) for n, text in found.items() if text != "-"} == places
        after = max(places.values()) + 32
        assert int(table["sparsity"][column]) == after


def test_masks_of_version_1():
    (mask,) = [field for field in FIELDS if field.name == "mask"]
    assert isinstance(mask, Choice)
    words = [
        f"{index}: share {share}, {'the loudest' if loudest else 'not the loudest'}"
        for index, (share, loudest) in enumerate(mask.choices)
    ]
    assert "; ".join(words) in TEXT


@pytest.mark.parametrize("row", rows("A worked example"), ids=lambda row: row[2])
def test_worked_example(row):
    offset, stored, name, value = row
    stored = bytes.fromhex(stored)
    assert DATA[int(offset) :].startswith(stored)
    name = name.strip("`")
    if name in offsets(1) and value:
        place, code = offsets(1)[name]
        assert place == int(offset) and struct.calcsize(code) == len(stored)
        (number,) = struct.unpack(code, stored)
        assert value == (number.decode() if isinstance(number, bytes) else str(number))
    elif name in {"sparsity", "network"}:
        assert stored == bytes([len(value)]) + value.encode()
        assert value == getattr(container.unpack(DATA).header, name)
    elif value:
        assert int(value, 0) == int.from_bytes(stored, "little")


def test_worked_example_leaves_no_byte_out():
    sizes = [(int(row[0]), len(bytes.fromhex(row[1]))) for row in rows("A worked example")]
    starts = [start for start, _ in sizes]
    assert starts == [0, *(start + size for start, size in sizes)][:-1]


def test_numbers_of_the_worked_example():
    header, ((_, values, *_),) = container.unpack(DATA)
    n_bins, n_frames = header.segment_shape(0)
    count, coded = header.count(0), header.coded_count(0)
    p = (0 + 8 * (16 * coded / (n_bins * n_frames)) / 16) / 8
    split = int((1 - p) * ((2**24 - 2) / ((1 - p) + p))) + 1
    point = int.from_bytes(DATA[124:128], "little") << 32 | int.from_bytes(DATA[128:132], "little")
    quantile = point // ((2**64 - 1) >> 24)
    assert quantile < split
    numbers = bytes(values[:6])
    start = DATA.index(numbers) - 8
    base, span, threshold = struct.unpack("<hHH", numbers)
    for phrase in (
        f"⌊{header.n_samples} / 256⌋ = {n_frames} frames, so one segment of {n_bins} · {n_frames}",
        f"K = {count} are kept",
        f"P = {coded}, the loudest",
        f"(16 · {coded} / {n_bins * n_frames}) / 16) / 8 = {p}",
        f"interval [0, {split})",
        f"point is {point:#018x}",
        f"q = {quantile}, so",
        f"offset {start} + 8 with `{numbers.hex(' ')}`: base {base}, span {span} and threshold",
        f"threshold {threshold}.",
        f"from {base} to {base + span} dB, and none of the stored bins is below {base + threshold}",
    ):
        assert phrase in " ".join(TEXT.split()), phrase


def test_first_words_of_the_keys():
    words = np.random.Philox(key=np.array([7, 2**32 + 2], np.uint64)).random_raw(5)
    assert all(f"0x{int(word):016X}" in TEXT for word in words)


@pytest.mark.parametrize("link", re.findall(r"\]\(#([^)]*)\)", TEXT))
def test_links_lead_to_titles(link):
    titles = re.findall(r"^##+ (.*)$", TEXT, re.MULTILINE)
    assert link in {title.lower().replace(":", "").replace(" ", "-") for title in titles}


def places(array):
    return {(f, t) for f, t in np.argwhere(array).tolist()}


@pytest.mark.parametrize("path", sorted(VALID.iterdir()), ids=lambda path: path.stem)
def test_a_decoder_of_this_text_alone_decodes_the_same(path):
    header, parts = container.unpack(path.read_bytes())
    for number, own in enumerate(parts):
        channel, index = divmod(number, header.n_segments)
        chosen, mask, stored, levels, phases = plain_decoder.decode(header, channel, index, own)
        segment = decode_segment(header, channel, index, own)
        assert chosen == places(segment.chosen) and mask == places(segment.mask)
        assert stored == places(segment.phase_mask) == set(phases) and mask == set(levels)
        assert all(segment.levels[place] == level for place, level in levels.items())
        assert all(segment.phases[place] == phase for place, phase in phases.items())


@pytest.mark.parametrize(
    "config",
    [
        PyramidConfig(),
        pytest.param(PyramidUNetConfig((3, 4, 2)), marks=pytest.mark.slow),
        PyramidUNetConfig((5,), (3, 4), start_from_fill=False, prior=-10.0),
    ],
)
def test_pyramids_are_as_described(config, tmp_path):
    """From the file of weights, for a window that reaches beyond the channel."""
    rng = np.random.default_rng(0)
    db = rng.normal(-30, 15, (45, 40)).astype(np.float32)
    kept, exists = rng.random(db.shape) < 0.1, np.zeros(db.shape, bool)
    exists[:, 5:33] = True
    decoder = config.build()
    leaves, tree = jax.tree.flatten(decoder.init(jax.random.key(0)))
    leaves = [jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32) for leaf in leaves]
    params = jax.tree.unflatten(tree, leaves)
    planes = (jnp.asarray(plane) for plane in (db, kept, exists))
    found = np.asarray(jax.jit(decoder.apply)(params, *planes))
    if isinstance(config, PyramidConfig):
        expected = plain_networks.pyramid(db.astype(float), kept, exists)
    else:
        path = tmp_path / "a.safetensors"
        save_weights(path, params, config, {})
        with safetensors.safe_open(path, "np") as file:
            settings = json.loads(file.metadata()["config"])
        tensors = safetensors.numpy.load_file(path)
        expected = plain_networks.pyramid_unet(db.astype(float), kept, exists, settings, tensors)
    np.testing.assert_allclose(found[exists], expected[exists], atol=2e-3)


def test_halos_are_as_described():
    assert "halo is 32, its alignment 16" in TEXT
    assert (PyramidConfig().halo, PyramidConfig().alignment) == (32, 16)
    assert "these are\n103 and 16" in TEXT
    assert (PyramidUNetConfig().halo, PyramidUNetConfig().alignment) == (103, 16)
