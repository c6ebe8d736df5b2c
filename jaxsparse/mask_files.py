"""Masks in ``.npz`` files, as searches leave them and `compress` takes them."""

import io
import os
import zipfile
from typing import Any

import numpy as np
from jaxtyping import Bool

from jaxsparse.errors import JaxsparseError
from jaxsparse.files import atomic_write

MAX_ENTRIES = 2**29
"""Of the largest mask that is read: two hours of the thesis' grid."""
# Of a soft mask in float64.
_MAX_BYTES = 8 * MAX_ENTRIES


def save_mask(path: str | os.PathLike[str], mask: Bool[np.ndarray, "*shape"]) -> None:
    """Writes a mask as ``bits``, eight to a byte in row-major order, and its ``shape``.

    Raises:
        OSError: If it can't be written.
    """
    buffer = io.BytesIO()
    np.savez_compressed(buffer, bits=np.packbits(mask), shape=np.array(mask.shape))
    atomic_write(path, buffer.getvalue())


def load_mask(path: str | os.PathLike[str]) -> Bool[np.ndarray, "..."]:
    """Reads a mask: what `save_mask` wrote, or an array ``mask`` of booleans, zeros and ones.

    Raises:
        OSError: If it can't be read.
        JaxsparseError: If it holds no mask; the message doesn't name the file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _MAX_BYTES:
                raise JaxsparseError(f"holds more than a mask of {MAX_ENTRIES} entries")
        with np.load(path, allow_pickle=False) as file:
            return _unpack(file)
    except JaxsparseError:
        raise
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise JaxsparseError("is no .npz file, or a damaged one") from error


def _unpack(file: Any) -> Bool[np.ndarray, "..."]:
    if "bits" in file and "shape" in file:
        shape = tuple(int(n) for n in file["shape"].ravel())
        size = int(np.prod(shape, dtype=object))
        bits = file["bits"]
        if min(shape, default=0) < 1 or size > MAX_ENTRIES or bits.dtype != np.uint8:
            raise JaxsparseError(f"holds no mask of the shape {shape}")
        if bits.size != -(-size // 8):
            raise JaxsparseError(f"holds {bits.size} bytes for a mask of the shape {shape}")
        return np.unpackbits(bits, count=size).astype(bool).reshape(shape)
    if "mask" not in file:
        raise JaxsparseError("holds neither an array 'mask' nor 'bits' and 'shape'")
    mask = file["mask"]
    if not (mask.dtype == bool or np.isin(mask, (0, 1)).all()):
        raise JaxsparseError("holds a relaxed mask: round it to zeros and ones first")
    return mask.astype(bool)


def fit_mask(
    mask: Bool[np.ndarray, "..."], n_channels: int, shape: tuple[int, int]
) -> Bool[np.ndarray, "C F T"]:
    """Gives each channel its mask.

    Args:
        mask: Of one channel, which all others share then, or of each.
        n_channels: C.
        shape: F and T of a channel's coefficients.

    Raises:
        JaxsparseError: If the mask is of another shape, or keeps nothing.
    """
    if mask.shape not in (shape, (n_channels, *shape)):
        raise JaxsparseError(
            f"the mask is of the shape {mask.shape}, and the clip has {shape[0]} coefficients in "
            f"each of {shape[1]} frames"
        )
    if not mask.any():
        raise JaxsparseError("the mask keeps nothing")
    return np.broadcast_to(mask, (n_channels, *shape))
