"""Trained networks: the ones that ship with the package, and files of one's own.

A network is a ``.safetensors`` file, whose metadata hold the architecture, beside a ``.json``
card: data, licence, command, time, losses, and the SHA-256 of the weights.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from jaxsparse.audio import atomic_write
from jaxsparse.errors import JaxsparseError, one_line
from jaxsparse.nn.network import Apply, Params, SparseCNNConfig, sparse_cnn
from jaxsparse.nn.sparse_conv import Normalization
from jaxsparse.strict_json import parse_object

NAMES = ("random-80", "random-85", "random-90", "random-95", "mixed")

# How a gradient is computed is no part of the network.
_SETTINGS = tuple(
    field.name for field in dataclasses.fields(SparseCNNConfig) if field.name != "kernel_gradient"
)
# Far beyond any network that runs: what a file asks for is built only within these.
_MAX_LAYERS, _MAX_KERNEL, _MAX_FEATURES = 64, 99, 1024
_RANGES = {
    "eps": (1e-30, 1e6),
    "input_offset": (-1e6, 1e6),
    "input_scale": (1e-6, 1e6),
}
_DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(jnp.bfloat16)}


class WeightsError(JaxsparseError):
    """A file of weights that is damaged or not one of ours."""


class Pretrained(NamedTuple):
    """A trained network: `apply`, its parameters and its card.

    The card is what was saved with it, with ``sha256``, ``halo`` and ``network``, its settings.
    """

    apply: Apply
    params: Params
    card: dict[str, Any]


def load_pretrained(name: str) -> Pretrained:
    """Loads a network that ships with the package.

    Args:
        name: One of `NAMES`: trained for random masks of 80 to 95 % sparsity, or for mixed masks
            of any sparsity in that range.

    Raises:
        JaxsparseError: If there is no such network.
        WeightsError: If its file is not the one that its card describes.
    """
    if name not in NAMES:
        raise JaxsparseError(f"no network is named {name!r}; there are {', '.join(NAMES)}")
    with resources.as_file(resources.files("jaxsparse") / "weights") as directory:
        return load_weights(directory / f"{name}.safetensors")


def load_weights(path: str | os.PathLike[str]) -> Pretrained:
    """Loads a network from a file that `save_weights` wrote.

    Raises:
        OSError: If the file or its card can't be read.
        WeightsError: If they are damaged, or don't belong together; if the settings are none of a
            network of ours; or if the tensors are not those of the settings, all finite.
    """
    path = Path(path)
    data = path.read_bytes()
    try:
        card = parse_object(path.with_suffix(".json").read_bytes())
        if not isinstance(card.get("sha256"), str):
            raise ValueError("it holds no SHA-256 of the weights")
    except ValueError as error:
        raise WeightsError(f"{path}: its card is damaged: {one_line(str(error))}") from error
    if hashlib.sha256(data).hexdigest() != card["sha256"]:
        raise WeightsError(f"{path} is not the file that its card describes (SHA-256)")
    try:
        tensors = dict(safetensors.deserialize(data))
        settings = _parse_settings(data)
        network = sparse_cnn(SparseCNNConfig(**settings))
        params = _check_tensors(tensors, jax.eval_shape(network.init, jax.random.key(0)))
    except (safetensors.SafetensorError, ValueError) as error:
        raise WeightsError(f"{path} is damaged: {one_line(str(error))}") from error
    return Pretrained(network.apply, params, {**card, "halo": network.halo, "network": settings})


def save_weights(
    path: str | os.PathLike[str], params: Params, config: SparseCNNConfig, card: dict[str, Any]
) -> str:
    """Writes parameters to a ``.safetensors`` file and the card to a ``.json`` beside it.

    Returns:
        The SHA-256 of the weights' file.
    """
    path = Path(path)
    settings = {name: getattr(config, name) for name in _SETTINGS}
    data = safetensors.numpy.save(_flatten(params), {"config": json.dumps(settings)})
    digest = hashlib.sha256(data).hexdigest()
    atomic_write(path, data)
    text = json.dumps({**card, "sha256": digest}, indent=2) + "\n"
    atomic_write(path.with_suffix(".json"), text.encode())
    return digest


def _flatten(params: Params) -> dict[str, np.ndarray]:
    flat = traverse_util.flatten_dict(params)
    return {_name(path): np.asarray(value) for path, value in flat.items()}


def _name(path: tuple[str | int, ...]) -> str:
    """Of a parameter's tensor, by its place in the tree."""
    return ".".join(map(str, path))


def _parse_settings(data: bytes) -> dict[str, Any]:
    """The settings in the header of a file that safetensors has accepted.

    Raises:
        ValueError: If they are missing, or one is unknown, of a wrong type or out of range.
    """
    size = int.from_bytes(data[:8], "little")
    metadata = parse_object(data[8 : 8 + size]).get("__metadata__") or {}
    if "config" not in metadata:
        raise ValueError("it holds no settings of a network")
    settings = parse_object(metadata["config"])
    if missing := set(_SETTINGS) - settings.keys():
        raise ValueError(f"its settings lack {_some(missing)}")
    if unknown := settings.keys() - set(_SETTINGS):
        raise ValueError(f"its settings have unknown fields: {_some(unknown)}")
    _check_settings(settings)
    settings["kernel_sizes"] = tuple(settings["kernel_sizes"])
    return settings | {name: float(settings[name]) for name in _RANGES}


def _check_settings(settings: dict[str, Any]) -> None:
    """Checks types and ranges, before anything is built of these sizes.

    Raises:
        ValueError: If one is of a wrong type or out of range.
    """
    sizes = settings["kernel_sizes"]
    if not (
        isinstance(sizes, list)
        and 1 <= len(sizes) <= _MAX_LAYERS
        and all(type(size) is int and size % 2 and 1 <= size <= _MAX_KERNEL for size in sizes)
    ):
        raise ValueError(
            f"kernel_sizes must be 1 to {_MAX_LAYERS} odd numbers of at most {_MAX_KERNEL}"
        )
    width = settings["features"]
    if type(width) is not int or not 1 <= width <= _MAX_FEATURES:
        raise ValueError(f"features must be a whole number from 1 to {_MAX_FEATURES}")
    if settings["normalization"] not in get_args(Normalization):
        raise ValueError(f"normalization must be {' or '.join(get_args(Normalization))}")
    for name, (low, high) in _RANGES.items():
        # A bool is an int too, and NaN is in no range.
        if type(settings[name]) not in (int, float) or not low <= settings[name] <= high:
            raise ValueError(f"{name} must be a number from {low:g} to {high:g}")


def _check_tensors(tensors: dict[str, dict[str, Any]], expected: Params) -> Params:
    """Makes parameters of a file's tensors.

    Args:
        tensors: By name, ``dtype``, ``shape`` and ``data``.
        expected: The shapes of the network's parameters.

    Raises:
        ValueError: If one is missing, too many, of another shape or dtype, or not finite.
    """
    flat: dict[Any, Any] = traverse_util.flatten_dict(expected)
    shapes = {_name(path): value.shape for path, value in flat.items()}
    if missing := shapes.keys() - tensors.keys():
        raise ValueError(f"it lacks the tensors {_some(missing)} of its settings' network")
    if extra := tensors.keys() - shapes.keys():
        raise ValueError(f"its settings' network has no tensors {_some(extra)}")
    arrays = {}
    for name, shape in shapes.items():
        found, dtype = tuple(tensors[name]["shape"]), tensors[name]["dtype"]
        if found != shape:
            raise ValueError(f"{name} has the shape {str(found)[:80]}, not {shape}")
        if dtype not in _DTYPES:
            raise ValueError(f"{name} is of {dtype}, not {' or '.join(_DTYPES)}")
        arrays[name] = np.frombuffer(tensors[name]["data"], _DTYPES[dtype]).reshape(shape)
        if not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name} holds values that are NaN or infinite")
    return traverse_util.unflatten_dict({path: jnp.asarray(arrays[_name(path)]) for path in flat})


def _some(names: Iterable[str]) -> str:
    return ", ".join(repr(name[:80]) for name in sorted(names)[:3])
