"""The description of version 3 of the format: its tables are those of the code, and it suffices.

``tests/plain_mdct.py`` is a decoder that was written from the description alone.
"""

import re
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.audio import MAX_SAMPLE_RATE, MAX_WAV_SAMPLES, MIN_SAMPLE_RATE
from jaxsparse.codec import MDCTSettings, compress, decompress, load_codec, mdct_container
from jaxsparse.codec.context import LOOKS
from jaxsparse.codec.header import MAX_CHANNELS
from jaxsparse.codec.mdct_container import FRAMES_PER_SEGMENT, CodedSegment
from jaxsparse.codec.mdct_segment import MAX_ESCAPE_BITS, decode_segment
from jaxsparse.codec.weights import save_codec
from jaxsparse.nn.mdct_unet import MDCTUNetConfig
from jaxsparse.pretrained import shipped
from jaxsparse.transforms.grid import BAND_EDGES, HOP_LENGTH, N_LEVELS, N_RATES
from tests import plain_mdct
from tests.mdct_files import encode, make_header, make_segment, speech

PAGE = (Path(__file__).parent.parent / "docs" / "format.md").read_text(encoding="utf-8")
TEXT = PAGE.split("\n## Version 3: the MDCT\n")[1]
CODES = {"u8": "B", "u16": "H", "u32": "I", "4 bytes": "4s", "8 bytes": "8s"}
# Both compute in floats, one in those of 32 bits: some hundred roundings of 6e-8 each.
CLOSE = 1e-5


def table(begin):
    """The cells of the table whose head begins so, by the name of the row."""
    (found,) = re.findall(rf"^{re.escape(begin)}.*\n\|[-:| ]*\n((?:\|.*\n)+)", TEXT, re.MULTILINE)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in found.splitlines()]
    return {name.strip("`"): cells for name, *cells in rows}


def test_table_of_the_header_is_that_of_the_code():
    rows = table("| field | type | offset |")
    start, numbers = mdct_container._START.format, mdct_container._NUMBERS.format
    fixed = {name: cells for name, cells in rows.items() if cells[0] != "text"}
    assert "<" + "".join(CODES[kind] for kind, *_ in fixed.values()) == start + numbers[1:]
    offset = 0
    for kind, place, *_ in fixed.values():
        assert int(place) == offset
        offset += struct.calcsize("<" + CODES[kind])
    assert list(rows)[-1] == "codec" and int(rows["codec"][1]) == offset


def test_limits_of_the_header_are_those_of_the_code():
    rows = table("| field | type | offset |")
    expected = {
        "magic": "`JSAC`",
        "version": f"{mdct_container.VERSION}",
        "sample_rate": f"{MIN_SAMPLE_RATE:,} to {MAX_SAMPLE_RATE:,}",
        "channels": f"1 to {MAX_CHANNELS}",
        "n_samples": f"1 to {MAX_WAV_SAMPLES:,}",
        "quality": "0 to 255",
    }
    assert {name: rows[name][2] for name in expected} == expected
    assert f"times {mdct_container.QUALITY_STEPS};" in rows["quality"][3]


def test_table_of_a_segment_is_that_of_the_code():
    rows = table("| field | type | meaning |")
    codes = "".join(CODES[kind] for kind, _ in rows.values())
    assert f"<{codes}" == mdct_container._SEGMENT.format
    steps, one = mdct_container.STEPS_PER_OCTAVE, mdct_container.STEP_ONE
    assert f"2^((`step` - {one}) / {steps})" in rows["step"][1]
    assert rows["rate"][1].startswith(f"0 to {N_RATES - 1}:")


def test_numbers_of_the_text_are_those_of_the_code():
    text = " ".join(TEXT.split())
    *starts, last, end = BAND_EDGES
    for phrase in (
        f"at most {mdct_container.MAX_FRAMES_PER_BYTE} times the bytes of the file",
        f"frames of {HOP_LENGTH} coefficients. Segments have {FRAMES_PER_SEGMENT} frames",
        f"from {', '.join(map(str, starts))} and {last} up",
        f"up to {end - 1}. A level is a whole number from 0 to {N_LEVELS - 1},",
        f"which is {', '.join(map(str, LOOKS))}.",
        f"k is {MAX_ESCAPE_BITS} at most",
    ):
        assert phrase in text, phrase


@pytest.mark.parametrize(
    "config",
    [
        MDCTUNetConfig(),
        MDCTUNetConfig(features=(2,), encoder_features=(2,), cell=(8, 1)),
        MDCTUNetConfig(features=(2,), encoder_features=(2, 2, 2), cell=(4, 3)),
    ],
)
def test_halo_and_alignment_are_as_described(config):
    networks, settings = config.build(), vars(config)
    assert plain_mdct.alignment(settings) == networks.alignment
    assert 0 <= plain_mdct.halo(settings) - networks.halo < max(networks.alignment, 2)


@pytest.fixture(scope="module")
def weights():
    return plain_mdct.Weights(shipped("mdct").read_bytes())


def check(data, weights):
    """Compares the numbers and the sound of both decoders; gives those of the plain one."""
    header, segments = plain_mdct.read(data)
    numbers = plain_mdct.decode_numbers(header, segments, weights)
    frames = header.channels * header.segment_frames
    for (values, levels), segment, n_frames in zip(numbers, segments, frames, strict=True):
        models = load_codec().models
        expected = decode_segment(segment.words, n_frames, segment.rate, models)
        np.testing.assert_array_equal(values, expected.values)
        np.testing.assert_array_equal(levels, expected.levels)
    sound = plain_mdct.make_sound(header, segments, numbers, weights)
    np.testing.assert_allclose(sound, decompress(data)[0], rtol=0, atol=CLOSE)
    return numbers, sound


def make_file(segments, octaves, codec=None):
    """A channel of such segments, whose steps are 2 to these powers."""
    n_frames = sum(segment.values.shape[1] for segment in segments)
    changes = {"codec": codec.name, "codec_sha256": codec.card.sha256[:16]} if codec else {}
    return mdct_container.pack(
        make_header(n_samples=HOP_LENGTH * (n_frames - 1) - 100, **changes),
        [
            CodedSegment(8192 + 256 * power, segment.rate, encode(segment))
            for segment, power in zip(segments, octaves, strict=True)
        ],
    )


CLIPS = {
    "mono": (16_000, speech(5_300)[:, None]),
    "two channels": (16_000, np.stack([speech(4_000), speech(4_000, seed=1)], -1)),
    "44.1 kHz": (44_100, speech(7_000)[:, None]),
    "8 kHz": (8_000, speech(1_501)[:, None]),
    "silence": (16_000, np.zeros((1_000, 1), np.float32)),
    "one sample": (16_000, np.full((1, 1), 0.3, np.float32)),
}


@pytest.mark.parametrize("name", CLIPS)
def test_a_decoder_of_this_text_alone_decodes_the_same(name, weights):
    rate, samples = CLIPS[name]
    _, sound = check(compress(samples, rate, MDCTSettings(kbps=8.0)), weights)
    assert sound.shape == samples.shape


@pytest.mark.slow
def test_more_than_one_segment(weights):
    """The second one is short, and both see the other one's values in their own steps."""
    first = make_segment(FRAMES_PER_SEGMENT, rate=20)
    check(make_file([first, make_segment(5, rate=33, seed=1)], [-5, -3]), weights)


def test_loud_coefficients_and_an_odd_number_of_frames(weights):
    """Escapes of every size are among them, and all levels."""
    segment = make_segment(7, rate=5, loudness=30)
    segment.values[200 : 202 + MAX_ESCAPE_BITS, 3] = 2 ** np.arange(2 + MAX_ESCAPE_BITS)
    segment.values[201, 4] = -(15 + 2 ** (MAX_ESCAPE_BITS + 1))
    segment.levels[:] = np.arange(segment.levels.size).reshape(segment.levels.shape) % N_LEVELS
    ((values, levels),), _ = check(make_file([segment], [-20]), weights)
    np.testing.assert_array_equal(values, segment.values)
    np.testing.assert_array_equal(levels, segment.levels)


def test_a_segment_with_words_of_no_use_is_refused(weights):
    _, (segment,) = plain_mdct.read(make_file([make_segment(4)], [0]))
    segment.words += bytes(4)
    with pytest.raises(AssertionError):
        plain_mdct.decode_segment(segment, 4, weights)


@pytest.mark.slow
def test_other_settings_and_neighbours_on_both_sides(tmp_path):
    """Cells have two frames, the encoder sees further, and levels reach both of their limits."""
    config = MDCTUNetConfig((3, 4), (2, 3, 2), cell=(4, 2), reach=0.9, damping=0.7)
    rng = np.random.default_rng(1)
    leaves, tree = jax.tree.flatten(config.build().init(jax.random.key(0)))
    leaves = [jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32) for leaf in leaves]
    path = tmp_path / "random.safetensors"
    save_codec(path, jax.tree.unflatten(tree, leaves), config, load_codec().models, {})
    codec, weights = load_codec(path), plain_mdct.Weights(path.read_bytes())
    lengths = (FRAMES_PER_SEGMENT, FRAMES_PER_SEGMENT, 5)
    chosen = [make_segment(n, rate=9 * n_th, seed=n_th) for n_th, n in enumerate(lengths)]
    data = make_file(chosen, [-6, -4, -9], codec)
    # To decode the numbers takes too long.
    numbers = [(segment.values, segment.levels) for segment in chosen]
    sound = plain_mdct.make_sound(*plain_mdct.read(data), numbers, weights)
    expected, _ = decompress(data, codec=codec)
    np.testing.assert_allclose(sound, expected, rtol=0, atol=CLOSE)
