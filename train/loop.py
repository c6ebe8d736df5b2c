"""The training loop: one jitted step with donated buffers, fresh masks per sample and step."""

import contextlib
import csv
import dataclasses
import functools
import hashlib
import io
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key
from tqdm import tqdm

from jaxsparse import manifest, sharding
from jaxsparse.checkpoint import Checkpoint, CheckpointError, Checkpoints
from jaxsparse.contracts import Decoder, DecoderConfig, Params, Policy
from jaxsparse.data.clips import Clip, FileClip, PreparedClip, find_clips
from jaxsparse.data.loader import Loader, make_loader
from jaxsparse.decoders import DECODERS, SAMPLERS, name_of
from jaxsparse.errors import AudioError, needs_extra
from jaxsparse.files import atomic_write, portable_path
from jaxsparse.masks import count_observed
from jaxsparse.nn.network import n_parameters
from jaxsparse.nn.sampler import SamplerConfig
from jaxsparse.plots import draw_spectrogram
from jaxsparse.policies import POLICIES, ScoredPolicy, depends_on_content
from jaxsparse.pretrained import load_weights, save_weights, saved_config
from jaxsparse.search.relaxations import RELAXATIONS, geometric
from jaxsparse.settings import SettingsError
from jaxsparse.spectrogram import log_power
from jaxsparse.terms import format_loss, make_loss, parse_loss
from jaxsparse.transforms.stft import stft
from jaxsparse.types import HardMask, Mask, PRNGKey, SoftMask, Spectrogram, Waveform
from train.settings import RECIPES, STFT, Settings, start_config

SAMPLER = SamplerConfig()
# How hard its masks are in training: the projection's steepness at the first and at the last step.
SAMPLER_STEEPNESS = (4.0, 16.0)
# Settings that a resumed run may change: they don't decide what is trained.
NOT_IDENTITY = (
    "data",
    "data_note",
    "workdir",
    "resume",
    "log_every",
    "checkpoint_every",
    "picture_every",
    "snapshot_every",
    "save_dtype",
    "tensorboard",
    "mesh",
)
_log = logging.getLogger(__name__)


class TrainState(NamedTuple):
    """What a step carries on."""

    params: Params
    optimizer: optax.OptState
    step: Int[Array, ""]


class Example(NamedTuple):
    """What the network is trained on."""

    spectrogram: Spectrogram
    mask: Mask


class Stopped(Exception):
    """The run was asked to stop; what it has done is saved."""


class Task(NamedTuple):
    """What a run trains.

    Attributes:
        identity: Settings that decide what is trained, as JSON values.
        init: Makes the state before the first step.
        like: Makes one of the same shapes, without reading a file.
        step: From a state and audio [B, N] to the next state and the losses, by name.
        save: Writes the networks of parameters to a path, from the log's lines and the loader.
        draw: Saves a picture of parameters, a batch and a step.
    """

    identity: dict[str, Any]
    init: Callable[[], TrainState]
    like: Callable[[], TrainState]
    step: Any
    save: Callable[[Params, Path, list[dict[str, Any]], Loader], None]
    draw: Callable[[Params, np.ndarray, int], None]


def train(
    settings: Settings, *, recipe: str = "thesis", stop: Callable[[], bool] = lambda: False
) -> Path:
    """Trains a network and writes it to ``workdir/network.safetensors`` with its card.

    Args:
        settings: The run's settings.
        recipe: Name of the recipe that they came from, for the card.
        stop: As `run_task` takes it.

    Returns:
        The path of the trained network.

    Raises:
        Stopped: As `run_task` does, and all else that it raises.
        SettingsError: If the network to start from has another architecture, or the sampler's
            clips can't be split over the devices.
    """
    decoder = settings.decoder.build()
    if settings.n_sampled % sharding.n_devices():
        raise SettingsError(
            f"the sampler's {settings.n_sampled} clips of each batch can't be split over "
            f"{sharding.n_devices()} devices"
        )
    optimizer = make_optimizer(settings)
    started = _started_from(settings)

    def save(params: Params, path: Path, history: list[dict[str, Any]], loader: Loader) -> None:
        _save_networks(settings, path, params, _card(settings, recipe, history, loader, started))

    def draw(params: Params, audio: np.ndarray, step: int) -> None:
        _draw(settings, decoder, _decoder_params(settings, params), audio, step)

    # A run that goes on needs no network to start from.
    fresh = dataclasses.replace(settings, init_from=None, sampler_from=None)
    task = Task(
        _identity(settings),
        lambda: init_state(settings, decoder, optimizer),
        lambda: init_state(fresh, decoder, optimizer),
        make_step(settings, decoder, optimizer),
        save,
        draw,
    )
    return run_task(settings, task, stop=stop)


def run_task(settings: Any, task: Task, *, stop: Callable[[], bool] = lambda: False) -> Path:
    """Trains what a task says, with checkpoints, a log and pictures.

    Args:
        settings: `Settings`, or others that have what these say about a run.
        task: What is trained.
        stop: Asked at the start and before every step whether to save and end.

    Returns:
        The path of the trained network.

    Raises:
        Stopped: If `stop` said so; a resumed run ends as if it had never been stopped.
        FileExistsError: If `workdir` has checkpoints and `resume` is not set, or the run to resume
            had other settings or other data.
        CheckpointError: If none of the run to resume is good, or it is of another network.
        AudioError: If there is no usable audio.
        FloatingPointError: If a loss or a parameter is no longer finite; the last checkpoint stays.
        OSError: If something can't be read or written; the last checkpoint stays.
        ShardingError: If a batch can't be split over the devices of the mesh in force.
    """
    # Refused before anything is read.
    sharding.order_of_rows(settings.batch_size)
    clips = find_clips(settings.data, settings.split)
    with closing(Checkpoints(settings.workdir / "checkpoints")) as checkpoints:
        found = _find_run(checkpoints, settings, task.identity)
        loader = _make_loader(settings, clips)
        identity = {"settings": task.identity, "clips": fingerprint(loader.clips)}
        sharding.check_same(json.dumps(identity), "settings or clips")
        sharding.check_same(str(found and found.step), "newest checkpoints")
        if found:
            now = {"clips": identity["clips"]}
            manifest.check_same(settings.workdir, {"clips": found.settings["clips"]}, now)
            _log.info("resuming at step %d", found.step)
        elif settings.resume:
            _log.info("%s holds no run: starting anew", settings.workdir)
        if sharding.is_main():
            settings.workdir.mkdir(parents=True, exist_ok=True)
        state = task.init() if found is None else restore_state(found, task.like)
        state = sharding.place_whole(state)
        # Processes that read ahead are started next, and they must be ended with the run.
        if sharding.any_process(stop()):
            raise Stopped("stopped before the first step")
        with closing(iter(loader)) as batches, Log(settings, found) as log:
            if found:
                _set_state(batches, found)

            def save(state: TrainState, position: Any) -> None:
                _check_finite(state, log.step)
                data = {"loader": position, "log": log.state()}
                if sharding.is_main():
                    checkpoints.save(log.step, tuple(state), data, identity)

            def keep(state: TrainState, path: Path) -> None:
                if sharding.is_main():
                    path.parent.mkdir(exist_ok=True)
                    params = jax.device_get(state.params)
                    task.save(params, path, log.history, loader)

            def draw(params: Params, audio: np.ndarray, step: int) -> None:
                if sharding.is_main():
                    task.draw(jax.device_get(params), audio, step)

            state = _run_steps(
                settings,
                state,
                task.step,
                batches,
                log,
                save=save,
                keep=keep,
                draw=draw,
                stop=stop,
            )
            path = settings.workdir / "network.safetensors"
            keep(state, path)
    return path


def _save_networks(settings: Settings, path: Path, params: Params, card: dict[str, Any]) -> None:
    """Saves the decoder and, where there is one, the sampler in a file beside it."""

    def save(path: Path, params: Params, config: DecoderConfig, masks: Sequence[str]) -> None:
        saved = jax.tree.map(lambda p: p.astype(settings.save_dtype), params)
        about = {**card, "parameters": n_parameters(params)}
        masks = tuple(dict.fromkeys(masks))
        save_weights(path, saved, config, about, masks=masks, sparsity=settings.sparsity)

    if not settings.n_sampled:
        save(path, params, settings.decoder, settings.masks)
        return
    drawn = settings.masks if settings.n_sampled < settings.batch_size else ()
    # The policy that starts there is the one that ships.
    learned = ("learned",) if settings.sampler_start == "densification" else ()
    save(path, params["decoder"], settings.decoder, (*drawn, *learned))
    start = (settings.sampler_start,)
    save(path.with_name(f"{path.stem}-sampler.safetensors"), params["sampler"], SAMPLER, start)


def _run_steps(
    settings: Settings,
    state: TrainState,
    step: Any,
    batches: Any,
    log: "Log",
    *,
    save: Callable[[TrainState, Any], None],
    keep: Callable[[TrainState, Path], None],
    draw: Callable[[Params, np.ndarray, int], None],
    stop: Callable[[], bool],
) -> TrainState:
    saved = log.step
    try:
        while log.step < settings.steps:
            position = batches.get_state()
            if sharding.any_process(stop()):
                if log.step != saved:
                    save(state, position)
                raise Stopped(_stopped(settings, log.step))
            audio = _read_unless_stopped(batches, stop)
            # Of a cluster all have to stop, and those that have read go back to where they were.
            ended = sharding.any_process(audio is None)
            if ended or audio is None:
                if log.step != saved:
                    save(state, position)
                raise Stopped(_stopped(settings, log.step))
            state, losses = step(state, sharding.place_rows(audio))
            if sharding.n_devices() > 1 and jax.default_backend() == "cpu":
                # Devices that are threads of one processor starve each other otherwise.
                jax.block_until_ready(losses)
            log.add(losses)
            if log.step % settings.checkpoint_every == 0 or log.step == settings.steps:
                log.flush()
                save(state, batches.get_state())
                saved = log.step
            if settings.snapshot_every and log.step % settings.snapshot_every == 0:
                log.flush()
                keep(state, settings.workdir / "snapshots" / f"{log.step:06d}.safetensors")
            if settings.picture_every and log.step % settings.picture_every == 0:
                draw(state.params, audio, log.step)
    except FloatingPointError as error:
        kept = f"the checkpoint of step {saved} stays" if saved else "no checkpoint was made"
        raise FloatingPointError(f"{settings.workdir}: {error}; {kept}") from None
    return state


def _read_unless_stopped(batches: Any, stop: Callable[[], bool]) -> np.ndarray | None:
    """Reads the next batch; None where a signal has also ended the processes that read ahead."""
    try:
        return next(batches)["audio"]
    except RuntimeError:
        if stop():
            return None
        raise


def _stopped(settings: Any, step: int) -> str:
    return (
        f"stopped at step {step} of {settings.steps}, which is saved in {settings.workdir}; the "
        "same command with --resume goes on"
    )


def make_optimizer(settings: Any) -> optax.GradientTransformation:
    """AdamW with the settings' schedule, of gradients that are clipped where these say so."""
    adamw = optax.adamw(_schedule(settings), b2=settings.beta2, weight_decay=settings.weight_decay)
    if not settings.clip_norm:
        return adamw
    return optax.chain(optax.clip_by_global_norm(settings.clip_norm), adamw)


def init_state(
    settings: Settings, decoder: Decoder, optimizer: optax.GradientTransformation
) -> TrainState:
    """The state before the first step: random parameters, or those of a trained network."""
    params = _start(settings, decoder, settings.init_from, DECODERS)
    if settings.n_sampled:
        sampler = _start(settings, SAMPLER.build(), settings.sampler_from, SAMPLERS)
        params = {"decoder": params, "sampler": sampler}
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def _start(
    settings: Settings,
    decoder: Decoder,
    path: Path | None,
    kinds: Mapping[str, type[DecoderConfig]],
) -> Params:
    if path is None:
        return jax.jit(decoder.init)(jax.random.key(settings.seed))
    loaded = load_weights(path, kinds)
    if _architecture(loaded.decoder) != _architecture(decoder):
        raise SettingsError(f"{path} holds a network with other settings")
    return loaded.params


def _decoder_params(settings: Settings, params: Params) -> Params:
    return params["decoder"] if settings.n_sampled else params


def _architecture(decoder: Decoder) -> tuple[type, dict[str, Any]]:
    """All but how its gradient is computed."""
    return type(decoder.config), saved_config(decoder.config)


def restore_state(found: Checkpoint, like: Callable[[], TrainState]) -> TrainState:
    """Restores the state of a checkpoint, which has the shapes of `like`."""
    shapes = jax.eval_shape(lambda: tuple(like()))
    # Copied, since the step may overwrite its argument.
    return TrainState(*jax.tree.map(jnp.array, found.restore(shapes)))


def make_step(settings: Settings, decoder: Decoder, optimizer: optax.GradientTransformation) -> Any:
    """Builds the jitted step: audio [B, N] to spectrograms, masks, loss, gradient and update.

    Beside the next state it gives the loss and, where that has more than one, its terms, by name.
    """
    key = jax.random.key(settings.seed)
    names = settings.terms
    loss = make_loss(parse_loss(settings.loss), STFT)

    def loss_of(
        params: Params,
        share: Settings,
        examples: Example,
        audio: Float[Array, "B N"],
        step: Int[Array, ""],
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        if share.n_sampled:
            examples = _exchange(share, params["sampler"], examples, step)
        own = _decoder_params(share, params)
        estimate = jax.vmap(decoder.apply, (None, 0, 0))(own, *examples)
        return loss(reference=examples.spectrogram, estimate=estimate, audio=audio)

    def measure(
        params: Params, step: Int[Array, ""], keys: Key[Array, " B"], audio: Float[Array, "B N"]
    ) -> tuple[Any, Params]:
        """Loss and gradient of a device's share of the batch."""
        share = dataclasses.replace(settings, batch_size=audio.shape[0])
        audio, examples = make_batch(share, keys, audio)
        gradient_of = jax.value_and_grad(loss_of, has_aux=True)
        return gradient_of(params, share, examples, audio, step)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(
        state: TrainState, audio: Float[Array, "B N"]
    ) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
        keys = jax.random.split(jax.random.fold_in(key, state.step), audio.shape[0])
        keys = keys[sharding.order_of_rows(len(keys))]
        measured = sharding.mean_over_devices(measure, (state.params, state.step), (keys, audio))
        (value, terms), gradient = measured
        updates, moments = optimizer.update(gradient, state.optimizer, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        losses = {"loss": value, **{name: terms[name] for name in names}}
        return TrainState(params, moments, state.step + 1), losses

    return step


def _exchange(
    settings: Settings, params: Params, examples: Example, step: Int[Array, ""]
) -> Example:
    """Exchanges bins of the first examples' masks by the sampler, with a gradient.

    The masks keep their sums. Those of `projection` are soft but nearly hard, and get harder from
    step to step. Hard masks with the gradient of soft ones did not work: the gradient at a kept bin
    does not say what hiding it would cost.
    """
    n = settings.n_sampled * settings.crops_per_clip
    steepness = geometric(*SAMPLER_STEEPNESS, settings.steps)
    to_mask = RELAXATIONS[settings.sampler_relaxation](steepness).to_mask

    def exchange(spectrogram: Spectrogram, mask: HardMask) -> SoftMask:
        scores = SAMPLER.build().apply(params, spectrogram, mask)
        return to_mask(scores, mask.sum(dtype=jnp.int32), step)

    improved = jax.vmap(exchange)(examples.spectrogram[:n], examples.mask[:n])
    masks = jnp.concatenate([improved, examples.mask[n:].astype(improved.dtype)])
    return examples._replace(mask=masks)


def make_batch(
    settings: Settings, keys: Key[Array, " B"], audio: Float[Array, "B N"]
) -> tuple[Float[Array, "B N"], Example]:
    """Draws what a step is trained on.

    Args:
        settings: The run's settings.
        keys: One for each clip.
        audio: The clips.

    Returns:
        The clips with their gains, and `crops_per_clip` stacked examples of each; the first
        `n_sampled` clips' masks are those that the sampler starts from.
    """
    if n := settings.n_sampled:
        plain = dataclasses.replace(settings, sampler_share=0.0, sampler_from=None)
        start = dataclasses.replace(plain, masks=(settings.sampler_start,))
        parts = [make_batch(start, keys[:n], audio[:n])]
        if n < settings.batch_size:
            parts.append(make_batch(plain, keys[n:], audio[n:]))
        return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)

    def make(key: PRNGKey, audio: Waveform) -> tuple[Waveform, Example]:
        gain_key, key = jax.random.split(key)
        audio = audio * _draw_gain(settings, gain_key)
        return audio, make_examples(settings, key, audio)

    audio, examples = _for_each(settings, make)(keys, audio)
    return audio, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), examples)


def _for_each(settings: Settings, function: Callable[..., Any]) -> Callable[..., Any]:
    """Maps a function that draws masks over its arguments' first axis.

    Of several policies only the one that is drawn is computed where examples are made one after
    the other; a batch would compute them all.
    """
    if len(settings.masks) == 1:
        return jax.vmap(function)
    return lambda *arrays: jax.lax.map(lambda each: function(*each), arrays)


def _draw_gain(settings: Settings, key: PRNGKey) -> Float[Array, ""]:
    db = jax.random.uniform(key, (), minval=-settings.gain_db, maxval=settings.gain_db)
    return 10 ** (db / 20)


def make_examples(settings: Settings, key: PRNGKey, audio: Waveform) -> Example:
    """Cuts a clip's spectrogram and fresh masks into `crops_per_clip` stacked examples."""
    spectrogram = log_power(stft(audio, STFT))
    crop = settings.crop or spectrogram.shape

    def cut(key: PRNGKey) -> Example:
        mask_key, place_key = jax.random.split(key)
        room = jnp.asarray(spectrogram.shape) - jnp.asarray(crop)
        start = jax.random.randint(place_key, (2,), 0, room + 1)
        cropped = jax.lax.dynamic_slice(spectrogram, start, crop)
        if not any(depends_on_content(POLICIES[name]) for name in settings.masks):
            return Example(cropped, _draw_mask(settings, mask_key, cropped))
        # What is chosen by content is chosen in the whole clip, so the mask is made there.
        mask = _draw_mask(settings, mask_key, spectrogram)
        return Example(cropped, jax.lax.dynamic_slice(mask, start, crop))

    return _for_each(settings, cut)(jax.random.split(key, settings.crops_per_clip))


def _draw_mask(settings: Settings, key: PRNGKey, spectrogram: Spectrogram) -> HardMask:
    count_key, share_key, policy_key, mask_key = jax.random.split(key, 4)
    count = _draw_count(settings, count_key, spectrogram.shape)
    share = jax.random.uniform(share_key, ())
    if settings.share:
        share = min(settings.share) + share * (max(settings.share) - min(settings.share))

    def make(policy: Policy) -> Callable[[Array], HardMask]:
        def mask(count: Array) -> HardMask:
            if settings.share and isinstance(policy, ScoredPolicy) and 0 < policy.share < 1:
                n_chosen = (share * count).astype(jnp.int32)
                return policy.draw(mask_key, spectrogram, count, n_chosen)
            return policy(mask_key, spectrogram, count)

        return mask

    makers = [make(POLICIES[name]) for name in settings.masks]
    index = jax.random.randint(policy_key, (), 0, len(makers))
    return jax.lax.switch(index, makers, count)


def _draw_count(settings: Settings, key: PRNGKey, shape: tuple[int, ...]) -> Int[Array, ""]:
    counts = [max(count_observed(shape, s), 1) for s in settings.sparsity]
    low, high = min(counts), max(counts)
    if low == high:
        return jnp.asarray(low)
    drawn = jax.random.uniform(key, (), minval=math.log(low), maxval=math.log(high + 1))
    return jnp.clip(jnp.exp(drawn).astype(jnp.int32), low, high)


def _schedule(settings: Any) -> optax.Schedule:
    if settings.schedule == "constant":
        return optax.constant_schedule(settings.learning_rate)
    warmup = min(max(settings.steps // 20, 1), settings.steps - 1)
    return optax.warmup_cosine_decay_schedule(
        settings.learning_rate / 25, settings.learning_rate, warmup, settings.steps
    )


class Log:
    """Progress bar, ``log.csv`` and, where asked, TensorBoard events; losses in batches.

    Losses stay on the device until a line is due, so that steps are not waited for.
    """

    def __init__(self, settings: Any, found: Checkpoint | None = None) -> None:
        self.settings = settings
        self.step = found.step if found else 0
        # What is in the file belongs to a checkpoint as much as the parameters do.
        before = found.data["log"] if found else {"rows": [], "pending": []}
        self.history: list[dict[str, Any]] = before["rows"]
        self._names = ("loss", *settings.terms)
        self.fields = ("step", *self._names, "learning_rate", "samples_per_s", "seconds")
        self._pending: list[Any] = [
            {name: np.float32(losses[name]) for name in self._names} for losses in before["pending"]
        ]
        self._start = self._last = time.perf_counter()
        self._seconds = float(self.history[-1]["seconds"]) if self.history else 0.0
        self._schedule = _schedule(settings)

    def __enter__(self) -> "Log":
        main = sharding.is_main()
        self._path = self.settings.workdir / "log.csv" if main else Path(os.devnull)
        self._file: TextIO = self._path.open("w", newline="", encoding="utf-8")
        self._csv = csv.DictWriter(self._file, self.fields, lineterminator="\n")
        self._csv.writeheader()
        self._write(*self.history)
        self._bar = tqdm(
            total=self.settings.steps,
            initial=self.step,
            desc="training",
            unit="step",
            disable=None if main else True,
        )
        self._events = None
        if self.settings.tensorboard and main:
            with needs_extra("tensorboard"):
                from tensorboardX import SummaryWriter

            self._events = SummaryWriter(str(self.settings.workdir))
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        self._close_file()
        if self._events is not None:
            self._events.close()

    def state(self) -> dict[str, Any]:
        """The lines and the losses that wait for the next one, as JSON values."""
        pending = jax.tree.map(float, jax.device_get(self._pending))
        return {"rows": self.history, "pending": pending}

    def add(self, losses: dict[str, Array]) -> None:
        """Notes a step's loss and terms, still on the device."""
        self.step += 1
        self._pending.append(losses)
        self._bar.update()
        if len(self._pending) >= self.settings.log_every:
            self.flush()

    def flush(self) -> None:
        """Writes a line for the steps since the last one.

        Raises:
            FloatingPointError: If one of their losses is not finite.
            OSError: If the line can't be written.
        """
        if not self._pending:
            return
        pending = jax.device_get(self._pending)
        losses = {n: np.asarray([each[n] for each in pending], np.float32) for n in self._names}
        _check_losses(losses["loss"], self.step)
        means = {name: round(float(np.mean(values)), 4) for name, values in losses.items()}
        now = time.perf_counter()
        rate = len(self._pending) * self.settings.batch_size / (now - self._last)
        row = {
            "step": self.step,
            **means,
            "learning_rate": float(np.asarray(self._schedule(self.step - 1))),
            "samples_per_s": round(rate, 2),
            "seconds": round(self._seconds + now - self._start, 1),
        }
        self._last, self._pending = now, []
        self.history.append(row)
        self._write(row)
        self._bar.set_postfix(loss=f"{means['loss']:.2f}", samples_per_s=f"{rate:.1f}")
        if self._events is not None:
            for name in (*self._names, "learning_rate", "samples_per_s"):
                self._events.add_scalar(name, row[name], self.step)

    def _write(self, *rows: dict[str, Any]) -> None:
        try:
            self._csv.writerows(rows)
            self._file.flush()
        except OSError as error:
            error.filename = os.fspath(self._path)
            self._close_file()
            raise

    def _close_file(self) -> None:
        # What could not be written has been reported, and closing tries it once more.
        with contextlib.suppress(OSError):
            self._file.close()


def _check_losses(losses: Float[np.ndarray, " S"], last_step: int) -> None:
    bad = np.flatnonzero(~np.isfinite(losses))
    if bad.size:
        first = int(bad[0])
        step = last_step - len(losses) + 1 + first
        raise FloatingPointError(f"the loss is {losses[first]} at step {step}")


def _check_finite(state: TrainState, step: int) -> None:
    """A finite loss says nothing about the update that followed it."""
    if not all(np.isfinite(leaf).all() for leaf in jax.device_get(jax.tree.leaves(state))):
        raise FloatingPointError(f"the parameters are not finite after step {step}")


def _make_loader(settings: Any, clips: Iterable[Clip]) -> Loader:
    try:
        return make_loader(
            clips,
            batch_size=settings.batch_size,
            seed=settings.seed,
            n_samples=settings.n_samples,
            strict=settings.strict,
            workers=settings.workers,
            progress=sys.stderr.isatty(),
            process=(sharding.process_index(), sharding.n_processes()),
        )
    except AudioError as error:
        raise AudioError(f"{settings.data}: {error}") from error


def _find_run(
    checkpoints: Checkpoints, settings: Any, identity: dict[str, Any]
) -> Checkpoint | None:
    """The checkpoint to go on with."""
    if not settings.resume:
        if checkpoints.steps():
            raise FileExistsError(f"{settings.workdir} holds a run; --resume goes on with it")
        return None
    found = checkpoints.newest(functools.partial(_check_contents, settings, identity))
    if found is None:
        return None
    manifest.check_same(settings.workdir, found.settings["settings"], identity)
    return found


def _check_contents(settings: Any, identity: dict[str, Any], found: Checkpoint) -> None:
    """Raises anything where a checkpoint lacks what resuming reads beside the state."""
    for name in ("count", "sha256"):
        str(found.settings["clips"][name])
    if "loader" not in found.data:
        raise CheckpointError("it lacks the loader's state")
    # The log of another run has columns of its own, and that run is refused for its settings.
    if manifest.differences(found.settings["settings"], identity):
        return
    log = Log(settings, found)
    for row in log.history:
        if set(row) != set(log.fields):
            raise CheckpointError("a line of its log has other columns")
        for value in row.values():
            float(value)


def _set_state(batches: Any, found: Checkpoint) -> None:
    """Lets the loader go on where it was.

    Raises:
        CheckpointError: If what was saved is not its state.
    """
    try:
        batches.set_state(found.data["loader"])
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{found.path}: the loader can't go on from its state") from error


def fingerprint(clips: Iterable[Clip]) -> dict[str, Any]:
    """Tells one set of clips from another by names and sizes, without reading them.

    Args:
        clips: In order.

    Returns:
        ``count``, and ``sha256`` over the clips' names and the sizes of their files in bytes; of a
        prepared data set, those of all of its files.

    Raises:
        OSError: If a file is no longer there.
    """
    lines = []
    directories = set()
    for clip in clips:
        size = clip.path.stat().st_size if isinstance(clip, FileClip) else None
        lines.append([clip.name, size])
        if isinstance(clip, PreparedClip):
            directories.add(clip.directory)
    shards = [[p.name, p.stat().st_size] for d in sorted(directories) for p in sorted(d.iterdir())]
    digest = hashlib.sha256(json.dumps([lines, shards]).encode()).hexdigest()
    return {"count": len(lines), "sha256": digest}


def _identity(settings: Settings) -> dict[str, Any]:
    """The settings that decide what is trained, as JSON values."""
    values = dataclasses.asdict(settings)
    for name in NOT_IDENTITY:
        del values[name]
    # With every weight, since the default ones may change.
    values["loss"] = format_loss(parse_loss(settings.loss))
    values["decoder"] |= {"name": name_of(settings.decoder)}
    relaxation = values.pop("sampler_relaxation")
    if settings.n_sampled:
        values["sampler"] = saved_config(SAMPLER) | {"steepness": SAMPLER_STEEPNESS}
        # Of earlier runs it is not told.
        if relaxation != "projection":
            values["sampler"]["relaxation"] = relaxation
    return manifest.plain(values)


def _card(
    settings: Settings,
    recipe: str,
    history: list[dict[str, Any]],
    loader: Loader,
    started: dict[str, Any],
) -> dict[str, Any]:
    """What a user of the network should know about its making."""
    terms = parse_loss(settings.loss)
    about = run_card(settings, _identity(settings), _command(settings, recipe), history, loader)
    final = about["final_training_loss"]
    db2 = final["loss"] if terms == ((1.0, "mse"),) else final.get("mse")
    return {
        **about,
        **started,
        "recipe": recipe,
        "loss": format_loss(terms),
        **({} if db2 is None else {"final_training_loss_db2": db2}),
    }


def run_card(
    settings: Any,
    identity: dict[str, Any],
    command: str,
    history: list[dict[str, Any]],
    loader: Loader,
) -> dict[str, Any]:
    """Says of a run, of any task, what a user of the network should know.

    Args:
        settings: As `run_task` takes them.
        identity: Settings that decide what is trained.
        command: That trains such a network again.
        history: Lines of the log.
        loader: Of the clips.
    """
    tail = history[-max(1, 500 // settings.log_every) :]
    final = {
        name: round(float(np.mean([float(row[name]) for row in tail])), 3)
        for name in ("loss", *settings.terms)
    }
    return {
        "data": f"{len(loader.clips)} clips of {portable_path(settings.data)}; "
        f"{len(loader.skipped)} skipped",
        "data_note": settings.data_note,
        "command": command,
        "settings": identity,
        "final_training_loss": final,
        "training_seconds": float(history[-1]["seconds"]),
        "device": f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores",
        "jax": jax.__version__,
    }


def _started_from(settings: Settings) -> dict[str, Any]:
    """What is known of the making of the networks that a run started from."""
    known = ("data", "command", "started_from", "training_seconds", "final_training_loss", "device")
    found = {}
    for name, path, kinds in (
        ("started_from", settings.init_from, DECODERS),
        ("sampler_started_from", settings.sampler_from, SAMPLERS),
    ):
        if path is not None:
            about = load_weights(path, kinds).card.about
            found[name] = {key: about[key] for key in known if key in about}
    return found


def _command(settings: Settings, recipe: str) -> str:
    """The command that trains such a network again."""
    defaults = Settings(settings.data, settings.workdir, **RECIPES[recipe])
    words = ["python -m train.main --recipe", recipe, "--data", portable_path(settings.data)]
    words += ["--workdir", "RUN"]
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name == "decoder":
            words += _decoder_flags(recipe, value)
        elif field.name not in NOT_IDENTITY and value != getattr(defaults, field.name):
            words += flag(field.name, value)
    return " ".join(words)


def _decoder_flags(recipe: str, config: DecoderConfig) -> list[str]:
    name = name_of(config)
    default = start_config(recipe, name)
    words = [] if start_config(recipe) == default else ["--decoder", name]
    for field, value in vars(config).items():
        if value != getattr(default, field):
            words += flag(f"decoder.{field}", value)
    return words


def flag(name: str, value: Any) -> list[str]:
    """Returns the words of a flag on the command line."""
    values = [portable_path(v) if isinstance(v, Path) else str(v) for v in np.atleast_1d(value)]
    return ["--" + name.replace("_", "-"), *values]


def _draw(
    settings: Settings, decoder: Decoder, params: Params, audio: np.ndarray, step: int
) -> None:
    """Saves a picture of input, mask, output and target of the batch's first clip."""
    import matplotlib.figure

    key = jax.random.key(settings.seed)
    target = log_power(stft(jnp.asarray(audio[0]), STFT))
    mask = _draw_mask(settings, key, target)
    output = jax.jit(decoder.apply)(params, target, mask)
    hidden = np.where(mask, target, np.nan)
    figure = matplotlib.figure.Figure((12, 8), layout="constrained")
    panels = {"input": hidden, "mask": np.asarray(mask), "output": output, "target": target}
    low, high = float(target.min()), float(target.max())
    for axes, (title, values) in zip(figure.subplots(2, 2).ravel(), panels.items(), strict=True):
        limits = (0, 1) if title == "mask" else (low, high)
        image = draw_spectrogram(
            axes,
            np.asarray(values, np.float32),
            n_fft=STFT.n_fft,
            hop_length=STFT.hop_length,
            cmap="viridis",
            vmin=limits[0],
            vmax=limits[1],
        )
        axes.set_title(title)
        figure.colorbar(image, ax=axes, label="" if title == "mask" else "dB")
    directory = settings.workdir / "pictures"
    directory.mkdir(parents=True, exist_ok=True)
    with io.BytesIO() as buffer:
        figure.savefig(buffer, format="png", dpi=80)
        atomic_write(directory / f"step-{step:06d}.png", buffer.getvalue())
