"""Trained networks: the ones that ship with the package, and files of one's own.

A network is a ``.safetensors`` file, whose metadata hold the architecture, beside a ``.json``
card: data, licence, command, time, losses, and the SHA-256 of the weights.
"""

import dataclasses
import hashlib
import json
import os
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from jaxsparse.audio import atomic_write
from jaxsparse.errors import JaxsparseError
from jaxsparse.nn.network import Apply, Params, SparseCNNConfig, sparse_cnn

NAMES = ("random-80", "random-85", "random-90", "random-95", "mixed")


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
        WeightsError: If they are damaged, or don't belong together.
    """
    path = Path(path)
    data = path.read_bytes()
    try:
        card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if hashlib.sha256(data).hexdigest() != card["sha256"]:
            raise WeightsError(f"{path.name} is not the file that its card describes (SHA-256)")
        with safetensors.safe_open(path, framework="numpy") as file:
            settings = json.loads(file.metadata()["config"])
            names = file.keys()
            flat = {name: file.get_tensor(name) for name in names}
        settings["kernel_sizes"] = tuple(settings["kernel_sizes"])
        network = sparse_cnn(SparseCNNConfig(**settings))
    except WeightsError:
        raise
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path.name} or its card is damaged: {error}") from error
    extra = {"halo": network.halo, "network": settings}
    return Pretrained(network.apply, _unflatten(flat), {**card, **extra})


def save_weights(
    path: str | os.PathLike[str], params: Params, config: SparseCNNConfig, card: dict[str, Any]
) -> str:
    """Writes parameters to a ``.safetensors`` file and the card to a ``.json`` beside it.

    Returns:
        The SHA-256 of the weights' file.
    """
    path = Path(path)
    settings = dataclasses.asdict(config)
    del settings["kernel_gradient"]  # how a gradient is computed is no part of the network
    data = safetensors.numpy.save(_flatten(params), {"config": json.dumps(settings)})
    digest = hashlib.sha256(data).hexdigest()
    atomic_write(path, data)
    text = json.dumps({**card, "sha256": digest}, indent=2) + "\n"
    atomic_write(path.with_suffix(".json"), text.encode())
    return digest


def _flatten(params: Params) -> dict[str, np.ndarray]:
    flat = traverse_util.flatten_dict(params)
    return {".".join(map(str, path)): np.asarray(value) for path, value in flat.items()}


def _unflatten(flat: dict[str, np.ndarray]) -> Params:
    paths = {name: tuple(int(n) if n.isdigit() else n for n in name.split(".")) for name in flat}
    return traverse_util.unflatten_dict({paths[n]: jnp.asarray(v) for n, v in flat.items()})
