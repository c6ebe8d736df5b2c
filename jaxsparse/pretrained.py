"""Trained decoders: the networks that ship with the package, and files of one's own.

A network is a ``.safetensors`` file, whose metadata hold the decoder's name and config, beside a
``.json`` card: the masks that it is for, data, licence, command, time, losses, and the SHA-256 of
the weights.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from jaxsparse.contracts import Decoder, DecoderConfig, Params
from jaxsparse.decoders import DECODERS, SAMPLERS, has_parameters, name_of
from jaxsparse.errors import JaxsparseError, one_line
from jaxsparse.files import atomic_write
from jaxsparse.strict_json import parse_object

THESIS_NAMES = ("random-80", "random-85", "random-90", "random-95")
"""The thesis' networks, each for random masks of a sparsity."""
NAMES = ("unet", "unet-small", *THESIS_NAMES)
"""Networks that ship with the package; the first is the one for all masks, the second the same at a
quarter of the cost."""
SAMPLER_NAMES = ("sampler",)
"""Learned samplers that ship with the package."""

# Of files that name no decoder, from when there was but one.
_FIRST_DECODER = "sparse-cnn"
_DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(jnp.bfloat16)}
Config = TypeVar("Config")
# Of decoders that have none.
NO_WEIGHTS = "0" * 64


class WeightsError(JaxsparseError):
    """A file of weights that is damaged or not one of ours."""


@dataclasses.dataclass(frozen=True)
class Card:
    """What is known of a trained decoder.

    Attributes:
        sha256: Of the file of weights; zeros where a decoder has none.
        masks: Policies that it was trained for, names of `jaxsparse.policies.POLICIES`; empty
            where it is for any.
        sparsity: The sparsity that it was trained for, or both ends of a range; empty as above.
        about: All else that was saved: data, licence, command, time, losses.
    """

    sha256: str
    masks: tuple[str, ...] = ()
    sparsity: tuple[float, ...] = ()
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def is_for(self, mask: str) -> bool:
        """Whether it was trained for masks of a policy."""
        return not self.masks or mask in self.masks

    def distance(self, sparsity: str | float) -> Fraction:
        """Returns how far a sparsity is from the nearest one that it was trained for."""
        if not self.sparsity:
            return Fraction(0)
        wanted = Fraction(str(sparsity))
        low, high = (Fraction(str(end)) for end in (min(self.sparsity), max(self.sparsity)))
        return max(low - wanted, wanted - high, Fraction(0))


class Pretrained(NamedTuple):
    """A decoder or sampler with its parameters and what is known of it."""

    decoder: Decoder
    params: Params
    card: Card


def load_decoder(name: str | os.PathLike[str]) -> Pretrained:
    """Loads a decoder by name or path.

    Args:
        name: A network that ships with the package (one of `NAMES`), a decoder of `DECODERS` that
            has no parameters, such as ``linear``, or the path of a ``.safetensors`` file.

    Raises:
        OSError: If the file or its card can't be read.
        JaxsparseError: If there is no such decoder.
        WeightsError: If a file is damaged.
    """
    text = os.fspath(name)
    if text.endswith(".safetensors"):
        return load_weights(text)
    if text in NAMES:
        return load_pretrained(text)
    if text not in DECODERS:
        plain = (name for name, kind in DECODERS.items() if not has_parameters(kind().build()))
        raise JaxsparseError(
            f"no decoder is named {text!r}; there are {', '.join((*NAMES, *plain))}, and paths "
            "that end in .safetensors"
        )
    decoder = DECODERS[text]().build()
    if has_parameters(decoder):
        raise JaxsparseError(f"{text} has to be trained: give the .safetensors file of its weights")
    return Pretrained(decoder, {}, Card(NO_WEIGHTS))


@functools.lru_cache
def load_once(
    load: Callable[[str | os.PathLike[str]], Pretrained], name: str | os.PathLike[str]
) -> Pretrained:
    """Loads a network the first time that it is asked for.

    Within a process a name is read once: a file that is replaced later is not seen.

    Args:
        load: `load_decoder` or `load_sampler`, whose errors are raised.
        name: What it takes.
    """
    return load(name)


def choose_pretrained(mask: str, sparsity: str | float) -> tuple[str, bool]:
    """Chooses the shipped network for some masks.

    Args:
        mask: Name of a policy.
        sparsity: Share of bins that are hidden.

    Returns:
        Its name, and whether it was trained for such masks: False where the nearest one has to do.
        Of several that fit as well, that is the first of `NAMES`, as it is where none does.
    """
    cards = {name: _read_card(shipped(name)) for name in NAMES}
    fitting = [name for name in NAMES if cards[name].is_for(mask)]
    best = min(fitting or NAMES[:1], key=lambda name: cards[name].distance(sparsity))
    return best, bool(fitting) and not cards[best].distance(sparsity)


def load_pretrained(name: str) -> Pretrained:
    """Loads a network that ships with the package.

    Args:
        name: One of `NAMES`.

    Raises:
        JaxsparseError: If there is no such network.
        WeightsError: If its file is not the one that its card describes.
    """
    if name not in NAMES:
        raise JaxsparseError(f"no network is named {name!r}; there are {', '.join(NAMES)}")
    return load_weights(shipped(name))


def shipped(name: str) -> Path:
    """Returns where the weights lie that ship with the package."""
    # A wheel is installed as files.
    return Path(str(resources.files("jaxsparse"))) / "weights" / f"{name}.safetensors"


def load_sampler(name: str | os.PathLike[str]) -> Pretrained:
    """Loads a learned sampler by name or path.

    Args:
        name: One that ships with the package (of `SAMPLER_NAMES`), or the path of a
            ``.safetensors`` file.

    Returns:
        The sampler, whose `apply` gives scores in the place of levels; its parameters; its card.

    Raises:
        OSError: If the file or its card can't be read.
        JaxsparseError: If there is no such sampler.
        WeightsError: As `load_weights` does.
    """
    text = os.fspath(name)
    if text in SAMPLER_NAMES:
        return load_weights(shipped(text), SAMPLERS)
    if not text.endswith(".safetensors"):
        raise JaxsparseError(
            f"no sampler is named {text!r}; there are {', '.join(SAMPLER_NAMES)}, and paths that "
            "end in .safetensors"
        )
    return load_weights(text, SAMPLERS)


def load_weights(
    path: str | os.PathLike[str], kinds: Mapping[str, type[DecoderConfig]] = DECODERS
) -> Pretrained:
    """Loads a network from a file that `save_weights` wrote.

    Args:
        path: Of the weights.
        kinds: Kinds of networks that are accepted.

    Raises:
        OSError: If the file or its card can't be read.
        WeightsError: If they are damaged, or don't belong together; if the network is none of
            `kinds`; or if the tensors are not those of its settings, all finite.
    """
    path = Path(path)
    name, settings, tensors, card = read_weights(path)
    # A good file of another kind is not damaged.
    if name not in kinds and name in DECODERS | SAMPLERS:
        raise WeightsError(f"{path} holds a {name}, not one of {', '.join(kinds)}")
    with naming_damage(path):
        decoder = _build_decoder(name, settings, kinds)
        params = check_tensors(tensors, jax.eval_shape(decoder.init, jax.random.key(0)))
        return Pretrained(decoder, params, card)


def read_weights(
    path: Path,
) -> tuple[str, dict[str, Any], dict[str, dict[str, Any]], Card]:
    """Reads a file of weights that its card describes, whatever it is of.

    Returns:
        The kind of network, its settings, its tensors by name, and the card.

    Raises:
        OSError: If the file or its card can't be read.
        WeightsError: If they are damaged or don't belong together.
    """
    data = path.read_bytes()
    card = _read_card(path)
    if hashlib.sha256(data).hexdigest() != card.sha256:
        raise WeightsError(f"{path} is not the file that its card describes (SHA-256)")
    with naming_damage(path):
        tensors = dict(safetensors.deserialize(data))
        return *_read_config(data), tensors, card


@contextlib.contextmanager
def naming_damage(path: Path) -> Iterator[None]:
    """Says of which file it is that something is wrong with what it holds."""
    try:
        yield
    except (safetensors.SafetensorError, msgspec.ValidationError, ValueError) as error:
        raise WeightsError(f"{path} is damaged: {one_line(str(error))}") from error


def save_weights(
    path: str | os.PathLike[str],
    params: Params,
    config: DecoderConfig,
    about: Mapping[str, Any],
    *,
    masks: Sequence[str] = (),
    sparsity: Sequence[float] = (),
) -> str:
    """Writes parameters to a ``.safetensors`` file and the card to a ``.json`` beside it.

    Args:
        path: Of the weights.
        params: Parameters.
        config: Of the decoder or sampler, whose kind has a name in `DECODERS` or `SAMPLERS`.
        about: What else the card says, as JSON.
        masks: See `Card`.
        sparsity: See `Card`.

    Returns:
        The SHA-256 of the weights' file.
    """
    path = Path(path)
    # One entry, since safetensors writes several in any order.
    named = {"decoder": name_of(config), **saved_config(config)}
    data = safetensors.numpy.save(flatten(params), {"config": json.dumps(named)})
    digest = hashlib.sha256(data).hexdigest()
    atomic_write(path, data)
    known = {"masks": list(masks), "sparsity": list(sparsity), "sha256": digest}
    text = json.dumps({**about, **known}, indent=2) + "\n"
    atomic_write(path.with_suffix(".json"), text.encode())
    return digest


def _read_card(path: Path) -> Card:
    """The card of a file of weights.

    Raises:
        OSError: If it can't be read.
        WeightsError: If it is damaged.
    """
    try:
        about = parse_object(path.with_suffix(".json").read_bytes())
        if not isinstance(about.get("sha256"), str):
            raise ValueError("it holds no SHA-256 of the weights")
        known = {name: about.pop(name) for name in ("sha256", "masks", "sparsity") if name in about}
        card = msgspec.convert({**known, "about": about}, Card)
        if len(card.sparsity) > 2 or not all(0 < end < 1 for end in card.sparsity):
            raise ValueError("its sparsity is not one or two numbers between 0 and 1")
        return card
    except (ValueError, msgspec.ValidationError) as error:
        raise WeightsError(f"{path}: its card is damaged: {one_line(str(error))}") from error


def flatten(params: Params) -> dict[str, np.ndarray]:
    """Returns parameters as tensors by name."""
    flat = traverse_util.flatten_dict(params)
    return {_name(path): np.asarray(value) for path, value in flat.items()}


def _name(path: tuple[str | int, ...]) -> str:
    """Of a parameter's tensor, by its place in the tree."""
    return ".".join(map(str, path))


def _read_config(data: bytes) -> tuple[str, dict[str, Any]]:
    """Reads a network's kind and settings from a file that safetensors has accepted.

    Raises:
        ValueError: If it holds none.
    """
    size = int.from_bytes(data[:8], "little")
    metadata = parse_object(data[8 : 8 + size]).get("__metadata__") or {}
    if "config" not in metadata:
        raise ValueError("it holds no settings of a network")
    settings = parse_object(metadata["config"])
    return str(settings.pop("decoder", _FIRST_DECODER)), settings


def _build_decoder(
    name: str, settings: Mapping[str, Any], kinds: Mapping[str, type[DecoderConfig]]
) -> Decoder:
    """Builds the decoder or sampler of a kind.

    Raises:
        ValueError: If its name or a setting is missing, unknown, of a wrong type or out of range.
    """
    if name not in kinds:
        raise ValueError(f"it is of the kind {some([name])}; there are {', '.join(kinds)}")
    return make_config(settings, kinds[name]).build()


def make_config(settings: Mapping[str, Any], kind: type[Config]) -> Config:
    """Makes the settings of a network of those that a file holds.

    Raises:
        ValueError: If one is missing, unknown, of a wrong type or out of range.
    """
    known = set(saved_fields(kind))
    if missing := known - settings.keys():
        raise ValueError(f"its settings lack {some(missing)}")
    if unknown := settings.keys() - known:
        raise ValueError(f"its settings have unknown fields: {some(unknown)}")
    return msgspec.convert(settings, kind)


def saved_fields(kind: type[Any]) -> list[str]:
    """All settings but those that are no part of the network: how a gradient is computed."""
    fields: Any = dataclasses.fields(kind)  # pyright: ignore[reportArgumentType]
    return [field.name for field in fields if field.metadata.get("saved", True)]


def saved_config(config: Any) -> dict[str, Any]:
    """Returns the settings that a file of weights holds."""
    return {name: getattr(config, name) for name in saved_fields(type(config))}


def check_tensors(tensors: dict[str, dict[str, Any]], expected: Params) -> Params:
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
        raise ValueError(f"it lacks the tensors {some(missing)} of its settings' network")
    if extra := tensors.keys() - shapes.keys():
        raise ValueError(f"its settings' network has no tensors {some(extra)}")
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
    # As the decoder makes them, whatever they were stored as; on the host, where nothing compiles.
    # A first use may lie in something traced, of which nothing may be kept.
    with jax.ensure_compile_time_eval():
        params = {path: jnp.asarray(arrays[_name(path)].astype(flat[path].dtype)) for path in flat}
    return traverse_util.unflatten_dict(params)


def some(names: Iterable[str]) -> str:
    """Returns the first names, for a message."""
    return ", ".join(repr(name[:80]) for name in sorted(names)[:3])
