"""The numbers of `tests/same_numbers.py` as another Python and other libraries once gave them."""

import json

import numpy as np
import pytest

from tests import same_numbers

pytestmark = pytest.mark.optimised

GOLDEN = json.loads(same_numbers.NUMBERS.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def found():
    return same_numbers.measure()


def test_the_file_says_what_made_it():
    assert sorted(GOLDEN["versions"]) == sorted(same_numbers.versions())
    assert all(GOLDEN["versions"].values())


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDEN["exact"])
def test_masks_are_equal_bit_for_bit(name, found):
    assert found["exact"][name] == GOLDEN["exact"][name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ours", "librosa"])
def test_levels(name, found):
    """A transform errs by a few float32 roundings (6e-8) of the loudest bin, then a logarithm."""
    levels, golden = (
        {"librosa": n["librosa dB"], "ours": n["dB"]["ours"]} for n in (found, GOLDEN)
    )
    loudest = 10 ** (GOLDEN["dB"]["max"] / 20)
    np.testing.assert_allclose(
        10 ** (np.array(levels[name]) / 20),
        10 ** (np.array(golden[name]) / 20),
        rtol=3e-6,
        atol=6e-7 * loudest,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mean", "max", "min"])
def test_statistics_of_levels(name, found):
    # A float32 of 40 dB has steps of 4e-6; quiet bins err more, but not all to one side.
    assert found["dB"][name] == pytest.approx(GOLDEN["dB"][name], abs=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDEN["MSE"])
def test_networks(name, found):
    """Seven layers add up to 784 products each, in an order of their own: 1e-6 for a bin."""
    assert found["MSE"][name] == pytest.approx(GOLDEN["MSE"][name], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDEN["PESQ"])
def test_scores(name, found):
    # Sound that differs by float32 roundings, through packages that compute in float32 (pesq).
    assert found["PESQ"][name] == pytest.approx(GOLDEN["PESQ"][name], abs=1e-4)
    assert found["STOI"][name] == pytest.approx(GOLDEN["STOI"][name], abs=1e-5)


@pytest.mark.slow
def test_size_of_the_file(found):
    # A level that lies between two steps may be rounded to either: a word of 4 bytes more or less.
    assert abs(found["bytes"] - GOLDEN["bytes"]) <= 4


def test_a_file_from_elsewhere_decodes_to_one_step_of_16_bits():
    samples = same_numbers.decode(same_numbers.COMPRESSED.read_bytes())
    golden = np.array(GOLDEN["samples"])
    assert len(golden) > 500 and np.abs(golden).max() > 1000
    assert np.abs(samples - golden).max() <= 1
