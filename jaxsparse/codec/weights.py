"""What the MDCT grid is coded with: networks and context models, in one file of weights."""

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from jaxsparse.codec.context import LAYOUTS, ContextModel, check_model
from jaxsparse.codec.mdct_settings import CODEC_NAMES
from jaxsparse.contracts import Params
from jaxsparse.errors import JaxsparseError
from jaxsparse.files import atomic_write
from jaxsparse.nn.mdct_unet import MDCTNetworks, MDCTUNetConfig
from jaxsparse.pretrained import (
    Card,
    WeightsError,
    check_tensors,
    flatten,
    make_config,
    naming_damage,
    read_weights,
    saved_config,
    shipped,
    some,
)

KIND = "mdct-unet"
"""What the file of weights says that it holds."""


@dataclass(frozen=True, eq=False)
class MDCTCodec:
    """All that codes on the MDCT grid; what is compiled for one is found by its identity.

    Attributes:
        name: What files call it.
        networks: Encoder and decoder.
        params: Their parameters.
        models: Context models of magnitudes and levels.
        card: What is known of their making.
    """

    name: str
    networks: MDCTNetworks
    params: Params
    models: Mapping[str, ContextModel]
    card: Card


@functools.lru_cache
def load_codec(name: str | os.PathLike[str] = CODEC_NAMES[0]) -> MDCTCodec:
    """Loads a codec by name or path; within a process it is read once.

    Args:
        name: One that ships with the package (of `CODEC_NAMES`), or the path of a
            ``.safetensors`` file.

    Raises:
        OSError: If the file or its card can't be read.
        JaxsparseError: If there is no such codec.
        WeightsError: If the file is damaged, or of another kind.
    """
    text = os.fspath(name)
    if text in CODEC_NAMES:
        return _load(shipped(text))
    if not text.endswith(".safetensors"):
        raise JaxsparseError(
            f"no codec is named {text!r}; there are {', '.join(CODEC_NAMES)}, and paths that end "
            "in .safetensors"
        )
    return _load(Path(text))


def _load(path: Path) -> MDCTCodec:
    kind, settings, tensors, card = read_weights(path)
    if kind != KIND:
        raise WeightsError(f"{path} holds a {some([kind])}, not a codec ({KIND})")
    with naming_damage(path):
        networks = make_config(settings, MDCTUNetConfig).build()
        models = {name: _take_model(tensors, name) for name in LAYOUTS}
        expected = jax.eval_shape(networks.init, jax.random.key(0))
        params = check_tensors(tensors, expected)
    return MDCTCodec(path.name.removesuffix(".safetensors"), networks, params, models, card)


def _take_model(tensors: dict[str, dict[str, Any]], name: str) -> ContextModel:
    """Takes a context model's tensors away from a file's.

    Raises:
        ValueError: If one is missing or not what a model is made of.
    """
    arrays = []
    for part in ContextModel._fields:
        found = tensors.pop(f"{name}.{part}", None)
        if found is None:
            raise ValueError(f"it lacks the tensor {name}.{part}")
        if found["dtype"] != "I32":
            raise ValueError(f"{name}.{part} is of {found['dtype']}, not I32")
        array = np.frombuffer(found["data"], "<i4").reshape(tuple(found["shape"]))
        arrays.append(array.astype(np.float64))
    model = ContextModel(*arrays)
    check_model(name, model)
    return model


def save_codec(
    path: str | os.PathLike[str],
    params: Params,
    config: MDCTUNetConfig,
    models: Mapping[str, ContextModel],
    about: Mapping[str, Any],
) -> str:
    """Writes networks and context models to a ``.safetensors`` file, and a card beside it.

    Returns:
        The SHA-256 of the weights' file.
    """
    path = Path(path)
    tensors = flatten(params)
    for name, model in models.items():
        for part, array in model._asdict().items():
            tensors[f"{name}.{part}"] = np.asarray(array, np.int32)
    settings = json.dumps({"decoder": KIND, **saved_config(config)})
    data = safetensors.numpy.save(tensors, {"config": settings})
    digest = hashlib.sha256(data).hexdigest()
    atomic_write(path, data)
    atomic_write(
        path.with_suffix(".json"),
        (json.dumps({**about, "sha256": digest}, indent=2) + "\n").encode(),
    )
    return digest
