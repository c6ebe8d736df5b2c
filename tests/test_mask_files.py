"""Masks in files: written, read, refused, and given to channels."""

import io

import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.errors import JaxsparseError
from jaxsparse.mask_files import fit_mask, load_mask, save_mask
from jaxsparse.masks import pack_mask

MASK = np.random.default_rng(0).random((13, 7)) < 0.3


@pytest.mark.parametrize("mask", [MASK, MASK[None].repeat(2, 0), MASK.ravel()])
def test_what_is_written_is_read(tmp_path, mask):
    path = tmp_path / "mask.npz"
    save_mask(path, mask)
    read = load_mask(path)
    assert read.dtype == bool and np.array_equal(read, mask)


@pytest.mark.parametrize(
    "content",
    [
        {"mask": MASK},
        {"mask": MASK.astype(np.float32)},
        {
            "bits": np.asarray(pack_mask(jnp.asarray(MASK))),
            "shape": np.array(MASK.shape),
            "count": 3,
        },
    ],
)
def test_arrays_of_several_kinds_are_read(tmp_path, content):
    np.savez(tmp_path / "mask.npz", **content)
    assert np.array_equal(load_mask(tmp_path / "mask.npz"), MASK)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"mask": 0.5 * MASK}, "relaxed"),
        ({"mask": np.full((2, 2), np.nan)}, "relaxed"),
        ({"other": MASK}, "neither"),
        ({"bits": np.zeros(3, np.uint8), "shape": np.array([13, 7])}, "3 bytes"),
        (
            {"bits": np.zeros(3, np.uint8), "shape": np.array([2**40, 2**40])},
            "no mask of the shape",
        ),
        ({"bits": np.zeros(3, np.uint8), "shape": np.array([-3, 7])}, "no mask of the shape"),
        ({"mask": np.array([{}], object)}, "no .npz file, or a damaged one"),
    ],
)
def test_what_is_no_mask_is_refused(tmp_path, content, message):
    np.savez(tmp_path / "mask.npz", **content)
    with pytest.raises(JaxsparseError, match=message):
        load_mask(tmp_path / "mask.npz")


def test_what_is_no_file_of_arrays_is_refused(tmp_path):
    path = tmp_path / "mask.npz"
    with pytest.raises(FileNotFoundError):
        load_mask(path)
    save_mask(path, MASK)
    whole = path.read_bytes()
    array = io.BytesIO()
    np.save(array, MASK)
    for data in (b"", b"RIFF", whole[: len(whole) // 2], array.getvalue()):
        path.write_bytes(data)
        with pytest.raises(JaxsparseError, match="is no"):
            load_mask(path)


def test_channels_share_a_mask_or_have_their_own():
    assert (fit_mask(MASK, 2, MASK.shape) == MASK).all()
    each = np.stack([MASK, ~MASK])
    assert (fit_mask(each, 2, MASK.shape) == each).all()
    for mask in (each, MASK.T, MASK[0]):
        with pytest.raises(JaxsparseError, match="shape"):
            fit_mask(mask, 1, MASK.shape)
    with pytest.raises(JaxsparseError, match="keeps nothing"):
        fit_mask(MASK & False, 1, MASK.shape)
