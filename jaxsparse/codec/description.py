"""What is in a ``.jsac`` file of either grid, and where its bits go, told without JAX."""

import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from jaxsparse.codec import container, mdct_container
from jaxsparse.codec.context import load_models
from jaxsparse.codec.mdct_segment import Cost, Models, cost, decode_segment
from jaxsparse.codec.mdct_settings import CODEC_NAMES
from jaxsparse.errors import JaxsparseError
from jaxsparse.transforms.grid import HOP_LENGTH

MAX_DECODED = 6
"""Segments that are decoded, evenly spread; those of a longer file are judged by them."""


def describe(data: bytes, *, models: Models | None = None) -> dict[str, Any]:
    """Says what is in a file of any version and where its bits go.

    Args:
        data: The file.
        models: Context models of a file of the MDCT grid, which tell where the bits of its
            coefficients go; nothing is decoded without them.

    Returns:
        JSON-ready: ``grid``, and what `mdct_container.describe` and `split_bits`, or
        `container.describe`, return.

    Raises:
        ContainerError: If the bytes are not a whole, unaltered file.
    """
    if not mdct_container.is_mdct(data):
        return {"grid": "stft", **container.describe(data)}
    parts = {} if models is None else split_bits(data, models)
    return mdct_container.describe(data) | parts


def find_models(data: bytes, codec: str | os.PathLike[str] | None = None) -> Models | None:
    """Reads the context models that a file was coded with.

    Args:
        data: A file.
        codec: The ``.safetensors`` file of its codec; by default the installed one of its name.

    Returns:
        None for a file of the STFT grid, and where the codec is not installed or has other weights.

    Raises:
        ContainerError: If the bytes are not a whole, unaltered file.
        OSError: If the codec that is named can't be read.
        JaxsparseError: If it is damaged, or has other weights than the file's.
    """
    if not mdct_container.is_mdct(data):
        return None
    header = mdct_container.unpack(data).header
    if codec is None and header.codec not in CODEC_NAMES:
        return None
    shipped = Path(str(resources.files("jaxsparse"))) / "weights" / f"{header.codec}.safetensors"
    path = shipped if codec is None else Path(codec)
    try:
        card = json.loads(path.with_suffix(".json").read_bytes())
        if str(card["sha256"]).startswith(header.codec_sha256):
            return load_models(path)
    except (ValueError, KeyError, TypeError) as error:
        raise JaxsparseError(f"{path} is no codec: {error}") from error
    if codec is not None:
        raise JaxsparseError(f"{path} has other weights than the file's codec")
    return None


def split_bits(data: bytes, models: Models) -> dict[str, Any]:
    """Splits the bits of a file's coefficients.

    Args:
        data: A whole file.
        models: Context models that it was coded with.

    Returns:
        ``part_bits``, whose sum is the file's: of the fields of `Cost`, ``filling`` (what rounding
        to words leaves) and ``overhead``; ``kept``, the coefficients that are not zero; and
        ``segments_decoded``: where that is less than all, parts and ``kept`` are estimates.

    Raises:
        ContainerError: If the bytes are not a whole, unaltered file.
    """
    header, segments = mdct_container.unpack(data)
    heard = [number for number, segment in enumerate(segments) if len(segment.data)]
    sample = heard[:: -(-len(heard) // MAX_DECODED) or 1]
    costs, size = np.zeros(len(Cost._fields)), 0
    for number in sample:
        segment, index = segments[number], number % header.n_segments
        n_frames = header.segment_frames(index)
        decoded = decode_segment(segment.data, n_frames, segment.rate, models)
        costs += cost(decoded, models)
        size += len(segment.data)
    total = sum(len(segment.data) for segment in segments)
    costs *= total / max(size, 1)
    whole = np.rint(costs).astype(int).tolist()
    parts = dict(zip(Cost._fields, whole, strict=True))
    overhead = 8 * (len(data) - total)
    filling = 8 * total - sum(parts.values())
    return {
        "part_bits": {**parts, "filling": filling, "overhead": overhead},
        "kept": parts["signs"],
        "sparsity": 1 - parts["signs"] / (header.channels * header.n_frames * HOP_LENGTH),
        "segments_decoded": len(sample) + len(segments) - len(heard),
    }
