"""The training loop: one jitted step with donated buffers, fresh masks per sample and step."""

import csv
import dataclasses
import functools
import json
import os
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from jaxsparse import losses
from jaxsparse.checkpoint import Checkpoints
from jaxsparse.data.folder import find_audio, make_loader, portable_path
from jaxsparse.masks import count_observed, mixed_mask, random_mask
from jaxsparse.nn.network import Params, SparseCNNConfig, n_parameters, sparse_cnn
from jaxsparse.pretrained import load_weights, save_weights
from jaxsparse.spectrogram import log_power
from jaxsparse.stft import stft
from jaxsparse.types import HardMask, PRNGKey, Spectrogram, Waveform
from train.settings import RECIPES, STFT, Settings

# Settings that a resumed run may change: they don't decide what is trained.
NOT_IDENTITY = (
    "data",
    "data_note",
    "workdir",
    "resume",
    "log_every",
    "checkpoint_every",
    "picture_every",
    "tensorboard",
)
FIELDS: tuple[str, ...] = ("step", "loss", "learning_rate", "samples_per_s", "seconds")


class TrainState(NamedTuple):
    """What a step carries on."""

    params: Params
    optimizer: optax.OptState
    step: Int[Array, ""]


class Example(NamedTuple):
    """What the network is trained on."""

    spectrogram: Spectrogram
    mask: HardMask


def train(settings: Settings, *, recipe: str = "thesis") -> Path:
    """Trains a network and writes it to ``workdir/network.safetensors`` with its card.

    Args:
        settings: The run's settings.
        recipe: Name of the recipe that they came from, for the card.

    Returns:
        The path of the trained network.

    Raises:
        FileExistsError: If `workdir` has checkpoints and `resume` is not set.
        ValueError: If the run to resume had other settings.
        FloatingPointError: If the loss is no longer finite; the last checkpoint stays.
    """
    files = find_audio(settings.data)
    checkpoints = Checkpoints(settings.workdir / "checkpoints")
    _check_workdir(checkpoints, settings)
    loader = make_loader(
        files,
        batch_size=settings.batch_size,
        seed=settings.seed,
        n_samples=settings.n_samples,
        strict=settings.strict,
        workers=settings.workers,
        progress=sys.stderr.isatty(),
    )
    config = SparseCNNConfig(kernel_gradient=settings.kernel_gradient)
    optimizer = make_optimizer(settings)
    state = init_state(settings, config, optimizer)
    step = make_step(settings, config, optimizer)
    with closing(iter(loader)) as batches, closing(checkpoints):
        if settings.resume and checkpoints.latest_step() is not None:
            restored = checkpoints.restore(tuple(state))
            state = TrainState(*restored.state)
            batches.set_state(restored.data)
        with Log(settings, first_step=int(state.step)) as log:
            while log.step < settings.steps:
                audio = next(batches)["audio"]
                state, loss = step(state, audio)
                log.add(loss)
                if log.step % settings.checkpoint_every == 0 or log.step == settings.steps:
                    log.flush()
                    checkpoints.save(
                        log.step, tuple(state), batches.get_state(), _identity(settings)
                    )
                if settings.picture_every and log.step % settings.picture_every == 0:
                    _draw(settings, config, state.params, audio, log.step)
    path = settings.workdir / "network.safetensors"
    card = _card(settings, recipe, log.history, clips=len(loader.files), skipped=loader.skipped)
    save_weights(path, state.params, config, {**card, "parameters": n_parameters(state.params)})
    return path


def make_optimizer(settings: Settings) -> optax.GradientTransformation:
    """AdamW with the settings' schedule."""
    return optax.adamw(_schedule(settings), weight_decay=settings.weight_decay)


def init_state(
    settings: Settings, config: SparseCNNConfig, optimizer: optax.GradientTransformation
) -> TrainState:
    """The state before the first step: random parameters, or those of a trained network."""
    if settings.init_from is None:
        params = jax.jit(sparse_cnn(config).init)(jax.random.key(settings.seed))
    else:
        loaded = load_weights(settings.init_from)
        same = SparseCNNConfig(**loaded.card["network"], kernel_gradient=config.kernel_gradient)
        if same != config:
            raise ValueError(f"{settings.init_from} holds a network with other settings")
        params = loaded.params
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def make_step(
    settings: Settings, config: SparseCNNConfig, optimizer: optax.GradientTransformation
) -> Any:
    """Builds the jitted step: audio [B, N] to spectrograms, masks, loss, gradient and update."""
    network = sparse_cnn(config)
    key = jax.random.key(settings.seed)

    def loss_of(params: Params, examples: Example) -> Float[Array, ""]:
        estimate = jax.vmap(network.apply, (None, 0, 0))(params, *examples)
        return losses.mse(reference=examples.spectrogram, estimate=estimate).mean()

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, audio: Float[Array, "B N"]) -> tuple[TrainState, Float[Array, ""]]:
        keys = jax.random.split(jax.random.fold_in(key, state.step), audio.shape[0])
        examples = jax.vmap(functools.partial(make_examples, settings))(keys, audio)
        examples = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), examples)
        loss, gradient = jax.value_and_grad(loss_of)(state.params, examples)
        updates, moments = optimizer.update(gradient, state.optimizer, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        return TrainState(params, moments, state.step + 1), loss

    return step


def make_examples(settings: Settings, key: PRNGKey, audio: Waveform) -> Example:
    """Cuts a clip's spectrogram and fresh masks into `crops_per_clip` stacked examples."""
    spectrogram = log_power(stft(audio, STFT))
    crop = settings.crop or spectrogram.shape

    def cut(key: PRNGKey) -> Example:
        mask_key, place_key = jax.random.split(key)
        room = jnp.asarray(spectrogram.shape) - jnp.asarray(crop)
        start = jax.random.randint(place_key, (2,), 0, room + 1)
        cropped = jax.lax.dynamic_slice(spectrogram, start, crop)
        if settings.masks == "random":
            return Example(cropped, _draw_mask(settings, mask_key, cropped))
        # The loudest bins are those of the whole clip, so the mask is drawn there.
        mask = _draw_mask(settings, mask_key, spectrogram)
        return Example(cropped, jax.lax.dynamic_slice(mask, start, crop))

    return jax.vmap(cut)(jax.random.split(key, settings.crops_per_clip))


def _draw_mask(settings: Settings, key: PRNGKey, spectrogram: Spectrogram) -> HardMask:
    count_key, mask_key = jax.random.split(key)
    counts = [count_observed(spectrogram.shape, s) for s in settings.sparsity]
    count = jax.random.randint(count_key, (), min(counts), max(counts) + 1)
    if settings.masks == "mixed":
        return mixed_mask(mask_key, spectrogram, count)
    return random_mask(mask_key, spectrogram.shape, count)


def _schedule(settings: Settings) -> optax.Schedule:
    if settings.schedule == "constant":
        return optax.constant_schedule(settings.learning_rate)
    warmup = max(settings.steps // 20, 1)
    return optax.warmup_cosine_decay_schedule(
        settings.learning_rate / 25, settings.learning_rate, warmup, settings.steps
    )


class Log:
    """Progress bar, ``log.csv`` and, where asked, TensorBoard events; losses in batches.

    Losses stay on the device until a line is due, so that steps are not waited for.
    """

    def __init__(self, settings: Settings, *, first_step: int) -> None:
        self.settings = settings
        self.step = first_step
        self.history: list[dict[str, Any]] = []
        self._pending: list[Array] = []
        self._start = self._last = time.perf_counter()
        self._schedule = _schedule(settings)

    def __enter__(self) -> "Log":
        path = self.settings.workdir / "log.csv"
        self.history = _rows_until(path, self.step)
        self._file: TextIO = path.open("w", newline="")
        self._csv = csv.DictWriter(self._file, FIELDS, lineterminator="\n")
        self._csv.writeheader()
        self._csv.writerows(self.history)
        self._seconds = float(self.history[-1]["seconds"]) if self.history else 0.0
        self._bar = tqdm(
            total=self.settings.steps, initial=self.step, desc="training", unit="step", disable=None
        )
        self._events = None
        if self.settings.tensorboard:
            try:
                from tensorboardX import SummaryWriter
            except ModuleNotFoundError:
                raise ValueError("--tensorboard needs jaxsparse[tensorboard]") from None

            self._events = SummaryWriter(str(self.settings.workdir))
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        self._file.close()
        if self._events is not None:
            self._events.close()

    def add(self, loss: Array) -> None:
        """Notes a step's loss, still on the device."""
        self.step += 1
        self._pending.append(loss)
        self._bar.update()
        if len(self._pending) >= self.settings.log_every:
            self.flush()

    def flush(self) -> None:
        """Writes a line for the steps since the last one.

        Raises:
            FloatingPointError: If their loss is not finite.
        """
        if not self._pending:
            return
        loss = float(np.mean(jax.device_get(self._pending)))
        now = time.perf_counter()
        rate = len(self._pending) * self.settings.batch_size / (now - self._last)
        row = {
            "step": self.step,
            "loss": round(loss, 4),
            "learning_rate": float(np.asarray(self._schedule(self.step - 1))),
            "samples_per_s": round(rate, 2),
            "seconds": round(self._seconds + now - self._start, 1),
        }
        self._last, self._pending = now, []
        if not np.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} at step {self.step}")
        self.history.append(row)
        self._csv.writerow(row)
        self._file.flush()
        self._bar.set_postfix(loss=f"{loss:.2f}", samples_per_s=f"{rate:.1f}")
        if self._events is not None:
            for name in ("loss", "learning_rate", "samples_per_s"):
                self._events.add_scalar(name, row[name], self.step)


def _rows_until(path: Path, step: int) -> list[dict[str, str]]:
    """The lines of an earlier part of the run; those after its last checkpoint are left out."""
    if not step or not path.exists():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if int(row["step"]) <= step]


def _check_workdir(checkpoints: Checkpoints, settings: Settings) -> None:
    if checkpoints.latest_step() is None:
        return
    if not settings.resume:
        raise FileExistsError(f"{settings.workdir} holds a run; --resume goes on with it")
    before, now = checkpoints.settings(), _identity(settings)
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        raise ValueError(f"{settings.workdir} holds a run with another {', '.join(changed)}")


def _identity(settings: Settings) -> dict[str, Any]:
    """The settings that decide what is trained, as JSON values."""
    values = dataclasses.asdict(settings)
    for name in NOT_IDENTITY:
        del values[name]
    return json.loads(json.dumps(values, default=portable_path))


def _card(
    settings: Settings,
    recipe: str,
    history: list[dict[str, Any]],
    *,
    clips: int,
    skipped: dict[Path, str],
) -> dict[str, Any]:
    """What a user of the network should know about its making."""
    tail = [float(row["loss"]) for row in history[-max(1, 500 // settings.log_every) :]]
    return {
        "data": f"{clips} files of {portable_path(settings.data)}; {len(skipped)} skipped",
        "data_note": settings.data_note,
        "command": _command(settings, recipe),
        "recipe": recipe,
        "settings": _identity(settings),
        "final_training_loss_db2": round(float(np.mean(tail)), 3),
        "training_seconds": float(history[-1]["seconds"]),
        "device": f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores",
        "jax": jax.__version__,
    }


def _command(settings: Settings, recipe: str) -> str:
    """The command that trains such a network again."""
    defaults = Settings(settings.data, settings.workdir, **RECIPES[recipe])
    words = ["python -m train.main --recipe", recipe, "--data", portable_path(settings.data)]
    words += ["--workdir", "RUN"]
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name in NOT_IDENTITY or value == getattr(defaults, field.name):
            continue
        words.append("--" + field.name.replace("_", "-"))
        words += [portable_path(v) if isinstance(v, Path) else str(v) for v in np.atleast_1d(value)]
    return " ".join(words)


def _draw(
    settings: Settings, config: SparseCNNConfig, params: Params, audio: np.ndarray, step: int
) -> None:
    """Saves a picture of input, mask, output and target of the batch's first clip."""
    import matplotlib.figure

    key = jax.random.key(settings.seed)
    target = log_power(stft(jnp.asarray(audio[0]), STFT))
    mask = _draw_mask(settings, key, target)
    output = jax.jit(sparse_cnn(config).apply)(params, target, mask)
    hidden = np.where(mask, target, np.nan)
    figure = matplotlib.figure.Figure((12, 8), layout="constrained")
    panels = {"input": hidden, "mask": np.asarray(mask), "output": output, "target": target}
    low, high = float(target.min()), float(target.max())
    for axes, (title, values) in zip(figure.subplots(2, 2).ravel(), panels.items(), strict=True):
        limits = (0, 1) if title == "mask" else (low, high)
        image = axes.imshow(values, origin="lower", aspect="auto", vmin=limits[0], vmax=limits[1])
        axes.set(title=title, xlabel="frame", ylabel="bin")
        figure.colorbar(image, ax=axes, label="" if title == "mask" else "dB")
    directory = settings.workdir / "pictures"
    directory.mkdir(parents=True, exist_ok=True)
    figure.savefig(directory / f"step-{step:06d}.png", dpi=80)
