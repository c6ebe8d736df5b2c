"""Trains the context models of the MDCT codec: ``python -m train.context --data DIR --out FILE``.

Crops of DIR's clips are quantized with random steps, and two small networks, one for magnitudes and
one for levels, learn to choose tables of probabilities for what comes next. They are trained in
floating point and saved in whole numbers. With 200 clips the default takes ten minutes on two
cores.
"""

import functools
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from eval.command import parse_settings, run_command
from jaxsparse.codec import context
from jaxsparse.codec.context import LAYOUTS, ContextModel, Layout
from jaxsparse.codec.weights import MDCTCodec, load_codec, save_codec
from jaxsparse.contracts import Params
from jaxsparse.data.clips import find_clips
from jaxsparse.errors import AudioError
from jaxsparse.files import portable_path
from jaxsparse.quantizer import Coded, active_level, quantize, relative_step
from jaxsparse.settings import SettingsError, check_least
from jaxsparse.transforms.grid import N_LEVELS
from jaxsparse.transforms.mdct import MDCTConfig, mdct
from jaxsparse.types import SAMPLE_RATE

# Rates of the training, steps of 0.14 to 2.8 active levels.
RATES = (9, 44)
ROUNDINGS = (0.3, 0.42)
# An input of this size is 1 to the network in training.
_SCALE = 16.0


@dataclass(frozen=True)
class Settings:
    """Settings of a training."""

    data: Path
    """Folder of clips, searched in depth."""
    out: Path
    """File of the models to write (.safetensors); its card is written beside it."""
    data_note: str = ""
    """What the data are and under which licence, for the card."""
    codec: Path | None = None
    """A codec (.safetensors) whose encoder chooses the values of most crops, instead of plain
    quantization."""
    codec_out: Path | None = None
    """File for that codec with the new models in place of its own; its card is written beside."""
    steps: int = 2_000
    """Optimizer steps."""
    batch_size: int = 6
    """Crops in a step."""
    frames: int = 96
    """Frames of a crop."""
    hidden: tuple[int, int] = (32, 16)
    """Units of both hidden layers."""
    tables: int = 48
    """Tables of each model."""
    learning_rate: float = 3e-3
    """Peak of AdamW's, after a warm-up and before a cosine."""
    seed: int = 0
    """Of parameters and crops."""
    log_every: int = 100
    """Steps between lines of the log."""


class Batch(NamedTuple):
    """Inputs and symbols of one group of each crop."""

    inputs: Float[Array | np.ndarray, "N M I"]
    symbols: Int[Array | np.ndarray, "N M"]


def init(key: Array, name: str, settings: Settings) -> Params:
    """Draws the parameters of one model."""
    keys = jax.random.split(key, 3)
    layout, (h, j) = LAYOUTS[name], settings.hidden
    n_groups = len(layout.order)
    logits = _first_tables(name, settings.tables)

    def draw(key: Array, *shape: int) -> Array:
        return jax.random.normal(key, shape) * math.sqrt(2 / shape[-2])

    return {
        "first": draw(keys[0], n_groups, layout.n_inputs, h),
        "first_bias": jnp.zeros((n_groups, layout.n_places, h)),
        "second": draw(keys[1], h, j),
        "second_bias": jnp.zeros(j),
        "third": draw(keys[2], j, 1)[:, 0],
        "third_bias": jnp.zeros(()),
        "tables": jnp.asarray(logits, jnp.float32),
    }


def _first_tables(name: str, n_tables: int) -> Float[np.ndarray, "K S"]:
    """Makes the logits of tables from low to high symbols."""
    place = np.linspace(0, 1, n_tables)[:, None]
    if name == "magnitudes":
        # From zeros alone to any.
        return -np.arange(context.N_MAGNITUDES)[None] * np.exp(2 - 3.5 * place)
    return -np.abs(np.arange(N_LEVELS)[None] - (N_LEVELS - 1) * place)


def code_length(params: Params, layout: Layout, batches: Sequence[Batch]) -> Float[Array, ""]:
    """Returns the bits of all groups' symbols; tables in between are mixed of both neighbours."""
    total = jnp.zeros(())
    for group, (inputs, symbols) in enumerate(batches):
        bias = params["first_bias"][group][layout.places[group]]
        x = jax.nn.relu(inputs / _SCALE @ params["first"][group] + bias[None])
        x = jax.nn.relu(x @ params["second"] + params["second_bias"][None, None])
        place = (0.25 * (x @ params["third"] + params["third_bias"]) + 0.5) * len(params["tables"])
        place = jnp.clip(place, 0, len(params["tables"]) - 1.001)
        lower = jnp.floor(place).astype(jnp.int32)
        share = (place - lower)[..., None]
        tables = params["tables"]
        logits = (1 - share) * tables[lower] + share * tables[lower + 1]
        logs = jax.nn.log_softmax(logits)
        total -= jnp.take_along_axis(logs, symbols[..., None], axis=-1).sum() / math.log(2)
    return total


def to_integers(params: Params) -> ContextModel:
    """Rounds a model to whole numbers; `place` becomes the number of a table."""
    p = {name: np.asarray(value, np.float64) for name, value in params.items()}
    weight, activation = 2.0**context.WEIGHT_BITS, 2.0**context.ACTIVATION_BITS
    n_tables, n_symbols = p["tables"].shape
    logits = p["tables"] - p["tables"].max(axis=1, keepdims=True)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    tables = np.floor(shares * (context.TOTAL - n_symbols))
    tables[np.arange(n_tables), tables.argmax(axis=1)] += (
        context.TOTAL - n_symbols - tables.sum(axis=1)
    )
    third = p["third"] * 0.25 * n_tables
    third_bias = (p["third_bias"] * 0.25 + 0.5) * n_tables + 0.5
    return ContextModel(
        first=np.rint(p["first"] / _SCALE * weight),
        first_bias=np.rint(p["first_bias"] * weight),
        second=np.rint(p["second"] * weight),
        second_bias=np.rint(p["second_bias"] * weight * activation),
        third=np.rint(third * weight),
        third_bias=np.rint(third_bias * weight * activation),
        tables=tables,
    )


class Clips(NamedTuple):
    """Coefficients of all clips, over their active levels."""

    names: tuple[str, ...]
    coefficients: list[Float[np.ndarray, "F T"]]


def read_clips(settings: Settings) -> Clips:
    """Reads and transforms all clips that are at least one crop long.

    Raises:
        AudioError: If a clip can't be read or none is long enough; a clip is named.
        OSError: If there are none.
    """
    names, coefficients = [], []
    for clip in tqdm(find_clips(settings.data, None), "clips", unit="clip", disable=None):
        try:
            signal = clip.read()
        except AudioError as error:
            raise AudioError(f"{clip.name}: {error}") from error
        # Padded to whole seconds, so that few lengths are compiled.
        padded = np.pad(signal, (0, -len(signal) % SAMPLE_RATE))
        transformed = mdct(jnp.asarray(padded))[:, : MDCTConfig().n_frames(len(signal))]
        level = float(active_level(transformed))
        if transformed.shape[1] >= settings.frames and level > 0:
            names.append(clip.name)
            coefficients.append(np.asarray(transformed) / np.float32(level))
    if not names:
        raise AudioError(
            f"{settings.data}: no clip has {settings.frames} frames that are not silent"
        )
    return Clips(tuple(names), coefficients)


# Share of the crops that are quantized plainly though there is an encoder.
_PLAIN_SHARE = 0.25


Quantizer: TypeAlias = Callable[..., Coded]


def make_quantizer(codec: MDCTCodec | None) -> Quantizer:
    """Builds the quantizer of a batch: of crops, rates, roundings, and which ones are plain."""

    def one(crop: Array, rate: Array, rounding: Array, plain: Array) -> Coded:
        scaled = crop / relative_step(rate)
        plainly = quantize(scaled, rounding)
        if codec is None:
            return plainly
        relaxed = codec.networks.encode(codec.params, scaled, rate.astype(jnp.float32), None)
        chosen = Coded(*(jnp.round(each).astype(jnp.int32) for each in relaxed))
        return jax.tree.map(lambda a, b: jnp.where(plain, a, b), plainly, chosen)

    return jax.jit(jax.vmap(one))


def draw_batches(
    rng: np.random.Generator, clips: Clips, settings: Settings, quantizer: Quantizer
) -> dict[str, list[Batch]]:
    """Draws crops and steps, and gathers what both models see of them."""
    lengths = np.array([each.shape[1] for each in clips.coefficients])
    chosen = rng.choice(len(lengths), settings.batch_size, p=lengths / lengths.sum())
    crops = []
    for clip in chosen:
        start = rng.integers(0, lengths[clip] - settings.frames + 1)
        crops.append(clips.coefficients[clip][:, start : start + settings.frames])
    rates = rng.integers(RATES[0], RATES[1] + 1, settings.batch_size)
    roundings = rng.uniform(*ROUNDINGS, settings.batch_size).astype(np.float32)
    plain = rng.random(settings.batch_size) < _PLAIN_SHARE
    coded = jax.device_get(quantizer(np.stack(crops), rates, roundings, plain))
    gathered: dict[str, list[list[Batch]]] = {name: [] for name in LAYOUTS}
    for values, levels, rate in zip(*coded, rates, strict=True):
        for name, batches in gather(values, levels, int(rate)).items():
            gathered[name].append(batches)
    return {
        name: [
            jax.tree.map(lambda *arrays: np.concatenate(arrays), *group)
            for group in zip(*each, strict=True)
        ]
        for name, each in gathered.items()
    }


def gather(
    values: Int[np.ndarray, "F T"], levels: Int[np.ndarray, "B U"], rate: int
) -> dict[str, list[Batch]]:
    """Gathers what both models see of a segment, and what they should have expected."""
    magnitudes = np.abs(values.T)
    symbols = {
        "magnitudes": np.minimum(magnitudes, context.N_MAGNITUDES - 1),
        "levels": levels.T,
    }
    planes = {
        "magnitudes": context.magnitude_planes(magnitudes),
        "levels": context.level_planes(levels.T, magnitudes),
    }
    batches = {}
    for name, layout in LAYOUTS.items():
        inputs = context.all_inputs(layout, *planes[name], rate)
        batches[name] = [
            Batch(np.asarray(each, np.float32), symbols[name][:, layout.groups[group]])
            for group, each in enumerate(inputs)
        ]
    return batches


def train(settings: Settings) -> dict[str, Any]:
    """Trains both models, and writes them and their card.

    Returns:
        The card.

    Raises:
        AudioError: As `read_clips` does.
        OSError: If something can't be read or written.
        SettingsError: If a setting is out of range.
    """
    if settings.codec_out is not None and settings.codec is None:
        raise SettingsError("codec_out needs a codec")
    check_least(settings, {"steps": 2, "batch_size": 1, "frames": 2, "tables": 2, "log_every": 1})
    codec = None if settings.codec is None else load_codec(settings.codec)
    quantizer = make_quantizer(codec)
    clips = read_clips(settings)
    keys = jax.random.split(jax.random.key(settings.seed), len(LAYOUTS))
    params = {name: init(key, name, settings) for key, name in zip(keys, LAYOUTS, strict=True)}
    schedule = optax.warmup_cosine_decay_schedule(
        settings.learning_rate / 25,
        settings.learning_rate,
        max(settings.steps // 20, 1),
        settings.steps,
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98))

    def loss_of(params: Params, batches: dict[str, list[Batch]]) -> tuple[Array, dict[str, Array]]:
        bits = {name: code_length(params[name], LAYOUTS[name], batches[name]) for name in LAYOUTS}
        n_symbols = sum(batch.symbols.size for batch in batches["magnitudes"])
        return sum(bits.values(), jnp.zeros(())) / n_symbols, bits

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, batches: Any) -> tuple[Any, Any, dict[str, Array]]:
        (_, bits), gradient = jax.value_and_grad(loss_of, has_aux=True)(params, batches)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, bits

    state = optimizer.init(params)
    rng = np.random.default_rng(settings.seed)
    seconds = settings.batch_size * settings.frames * MDCTConfig().hop_length / SAMPLE_RATE
    rates: dict[str, list[float]] = {name: [] for name in LAYOUTS}
    history = []
    with tqdm(total=settings.steps, desc="training", unit="step", disable=None) as bar:
        for number in range(1, settings.steps + 1):
            params, state, bits = step(params, state, draw_batches(rng, clips, settings, quantizer))
            for name in rates:
                rates[name].append(float(bits[name]) / seconds / 1000)
            bar.update()
            if number % settings.log_every == 0 or number == settings.steps:
                means = {
                    name: round(float(np.mean(r[-settings.log_every :])), 3)
                    for name, r in rates.items()
                }
                history.append({"step": number, **means})
                bar.set_postfix(means)
                if not sys.stderr.isatty():
                    print(json.dumps(history[-1]), flush=True)
    models = {name: to_integers(jax.device_get(value)) for name, value in params.items()}
    card = {
        "data": f"{len(clips.names)} clips of {portable_path(settings.data)}",
        "data_note": settings.data_note,
        **({} if codec is None else {"encoder_sha256": codec.card.sha256}),
        "kbit_per_s": history[-1],
    }
    context.save_models(settings.out, models, card)
    if codec is not None and settings.codec_out is not None:
        exchange_models(codec, Path(settings.codec or ""), models, card, settings.codec_out)
    return card


def exchange_models(
    codec: MDCTCodec,
    path: Path,
    models: Mapping[str, ContextModel],
    card: Mapping[str, Any],
    out: Path,
) -> None:
    """Writes a codec with other context models, and its card with theirs.

    Args:
        codec: The codec.
        path: Its file, whose card is taken over.
        models: The new models.
        card: What is known of them.
        out: File to write (.safetensors).

    Raises:
        OSError: If the card can't be read or the codec can't be written.
    """
    about = json.loads(path.with_suffix(".json").read_bytes()) | {"context_models": card}
    halved = jax.tree.map(lambda p: p.astype(jnp.bfloat16), codec.params)
    # As it was stored.
    lossless = all(
        jnp.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(codec.params), jax.tree.leaves(halved), strict=True)
    )
    save_codec(out, halved if lossless else codec.params, codec.networks.config, models, about)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs from the command line; returns the exit code of `run_command`."""

    def work() -> str:
        return json.dumps(train(parse_settings(Settings, "train.context", __doc__, argv)), indent=1)

    return run_command("train.context", work)


if __name__ == "__main__":
    sys.exit(main())
