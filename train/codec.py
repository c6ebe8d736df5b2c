"""Trains the networks of the MDCT codec: ``python -m train.codec --data DIR --workdir RUN``.

Encoder and decoder are trained together: crops of DIR's clips, at random steps, are quantized with
draws that harden from step to step, decoded and compared with the original by surrogates of PESQ in
both bands, STOI and the mel spectrum; what the context models of ``--context`` say that it costs is
added at a price. ``workdir/network.safetensors`` holds networks and context models, as `compress`
takes them by ``--codec``.

Signals, ``--resume``, checkpoints and exit codes are those of ``train.main``.
"""

import dataclasses
import functools
import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from eval.command import parse_settings
from jaxsparse import manifest, sharding
from jaxsparse.codec import context, rdo
from jaxsparse.codec.rate import bits, choose_tables
from jaxsparse.codec.weights import load_codec, save_codec
from jaxsparse.compilation import use_cache
from jaxsparse.contracts import Params
from jaxsparse.data.loader import Loader
from jaxsparse.errors import JaxsparseError, MissingExtraError, describe
from jaxsparse.files import portable_path
from jaxsparse.nn.mdct_unet import MDCTUNetConfig
from jaxsparse.nn.network import n_parameters
from jaxsparse.quantizer import Coded, active_level, noise_signs, relative_step
from jaxsparse.settings import SettingsError, check_least, check_ranges
from jaxsparse.sharding import Devices
from jaxsparse.terms import INTELLIGIBLE
from jaxsparse.transforms.grid import N_LEVELS, N_RATES
from jaxsparse.transforms.mdct import imdct, mdct
from jaxsparse.types import SAMPLE_RATE, PRNGKey, Waveform
from train.loop import (
    NOT_IDENTITY,
    Stopped,
    Task,
    TrainState,
    flag,
    make_optimizer,
    run_card,
    run_task,
)
from train.main import StopSignals

LEAST = {
    **{name: 1 for name in ("steps", "batch_size", "log_every", "checkpoint_every")},
    **{name: 0 for name in ("workers", "snapshot_every", "learning_rate", "weight_decay")},
    "clip_norm": 0,
}
RANGES = {
    **{name: (0.0, 1.0) for name in ("noise_share", "beta2", "rounded_share")},
    "price": (0.0, 1e3),
}
# Signal to noise in dB, and how much of the last sample the noise keeps: white to rumbling.
_SNR, _COLOUR = (5.0, 35.0), (-0.2, 0.97)
# Frames of a channel that a crop may be part of: they decide on the noise's signs.
_MAX_FRAME = 100_000
_SILENCE = 1e-8


@dataclass(frozen=True)
class Settings:
    """Settings of a training run.

    Raises:
        SettingsError: If one is out of range.
    """

    data: Path
    """Folder tree of audio files to train on."""
    workdir: Path
    """Where checkpoints, log.csv and the trained networks go."""
    context: Path
    """Context models that `train.context` wrote, or a codec whose models are taken."""
    split: str | None = None
    """Split of a prepared data set; by default `train`."""
    data_note: str = ""
    """What the data are and under which licence, for the card."""
    rates: tuple[float, float] = (10.0, 42.0)
    """Ends of the range of steps: 2^(rate / 8 - 4) active levels."""
    temperatures: tuple[float, float] = (0.3, 0.1)
    """Of the draws, at the first and at the last step."""
    rounded_share: float = 0.0
    """Share of the examples that are rounded instead of drawn, with the gradient of the draw."""
    price: float = rdo.PRICE
    """What a kbit/s is worth at a step of one active level."""
    noise_share: float = 0.2
    """Share of the clips that noise is added to, 5 to 35 dB below them."""
    steps: int = 2_000
    """Optimizer steps."""
    batch_size: int = 8
    """Clips in a step."""
    n_samples: int = 77_276
    """Samples of a clip at 16 kHz, whose active level counts."""
    crop: int = 24_320
    """Samples of the part of a clip that is coded."""
    learning_rate: float = 1e-3
    """AdamW's learning rate; with the cosine schedule its peak."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """constant, or a short warm-up and a cosine down to zero."""
    weight_decay: float = 1e-4
    """AdamW's decoupled weight decay."""
    beta2: float = 0.98
    """Decay of AdamW's average of squared gradients."""
    clip_norm: float = 10.0
    """Largest norm of a step's gradient; larger ones are scaled down."""
    networks: MDCTUNetConfig = field(default_factory=MDCTUNetConfig)
    """Architecture."""
    init_from: Path | None = None
    """A trained codec (.safetensors) to start from instead of random parameters."""
    seed: int = 0
    """Of parameters, draws, crops and the order of clips."""
    resume: bool = False
    """Goes on from the newest good checkpoint in workdir; data must hold the same files."""
    strict: bool = False
    """Makes an unusable audio file an error instead of skipping it."""
    workers: int = 0
    """Processes that read audio ahead; 0 reads in threads."""
    log_every: int = 20
    """Steps between lines of the log."""
    checkpoint_every: int = 250
    """Steps between checkpoints."""
    snapshot_every: int = 0
    """Steps between networks that are kept in workdir/snapshots; 0 keeps none but the last."""
    save_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of the numbers in the trained networks' file."""
    tensorboard: bool = False
    """Writes TensorBoard events too (needs the extra `tensorboard`)."""
    mesh: Devices = None
    """Devices that share each batch: so many of this process, all, or those of all processes of a
    cluster (docs/devices.md); none trains on the first one."""
    picture_every: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        check_least(self, LEAST)
        check_ranges(self, RANGES)
        if not 0 <= self.seed < 2**32:
            raise SettingsError("seed must be from 0 to 2^32 - 1")
        if not 0 <= self.rates[0] <= self.rates[1] <= N_RATES - 1:
            raise SettingsError(f"rates must be the ends of a range from 0 to {N_RATES - 1}")
        if not all(0.01 <= t <= 10 for t in self.temperatures):
            raise SettingsError("temperatures must be from 0.01 to 10")
        if not INTELLIGIBLE <= self.crop <= self.n_samples:
            raise SettingsError(f"crop must be from {INTELLIGIBLE} to n_samples")

    @property
    def terms(self) -> tuple[str, ...]:
        """Terms that the log tells apart."""
        return (*rdo.TERMS, "kbit_per_s")


def train(settings: Settings, *, stop: Any = lambda: False) -> Path:
    """Trains the networks and writes them to ``workdir/network.safetensors`` with their card.

    Args:
        settings: The run's settings.
        stop: As `train.loop.run_task` takes it.

    Returns:
        The path of the trained codec.

    Raises:
        Stopped: As `run_task` does, and all else that it raises.
        SettingsError: If the codec to start from has another architecture.
        OSError: If it or the context models can't be read.
    """
    models = _load_models(settings.context)
    networks = settings.networks.build()
    optimizer = make_optimizer(settings)
    started = {} if settings.init_from is None else _about(settings.init_from)

    def init(path: Path | None) -> TrainState:
        if path is None:
            params = jax.jit(networks.init)(jax.random.key(settings.seed))
        else:
            loaded = load_codec(path)
            if loaded.networks.config != settings.networks:
                raise SettingsError(f"{path} holds networks with other settings")
            params = jax.tree.map(jnp.array, loaded.params)
        return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))

    def save(params: Params, path: Path, history: list[dict[str, Any]], loader: Loader) -> None:
        saved = jax.tree.map(lambda p: p.astype(settings.save_dtype), params)
        about = run_card(settings, _identity(settings), _command(settings), history, loader)
        save_codec(path, saved, settings.networks, models, {**about, **started, **_sizes(params)})

    task = Task(
        _identity(settings),
        functools.partial(init, settings.init_from),
        functools.partial(init, None),
        make_step(settings, models, optimizer),
        save,
        lambda *_: None,
    )
    return run_task(settings, task, stop=stop)


def make_step(settings: Settings, models: Any, optimizer: optax.GradientTransformation) -> Any:
    """Builds the jitted step: audio [B, N] to crops, draws, sound, loss, gradient and update."""
    networks = settings.networks.build()
    key = jax.random.key(settings.seed)

    def code(
        params: Params, crop: Waveform, rate: Array, key: PRNGKey, temperature: Array
    ) -> tuple[Waveform, Float[Array, ""]]:
        keys = jax.random.split(key, 4)
        step = relative_step(rate)
        scaled = mdct(crop) / step
        relaxed = networks.encode(params, scaled, rate, None)
        coded = Coded(
            rdo.draw(keys[0], relaxed.values, temperature),
            rdo.draw(keys[1], jnp.minimum(relaxed.levels, N_LEVELS - 1.001), temperature),
        )
        rounded = jax.random.uniform(keys[2]) < settings.rounded_share
        coded = jax.tree.map(lambda d, r: jnp.where(rounded, _rounded(r, d), d), coded, relaxed)
        whole = jax.lax.stop_gradient(jax.tree.map(jnp.round, coded))
        tables = choose_tables(models, whole, rate)
        n_bits = sum(jnp.sum(each) for each in bits(models, coded, tables))
        first = jax.random.randint(keys[3], (), 0, _MAX_FRAME)
        noise = noise_signs(scaled.shape[0], scaled.shape[1], first)
        decoded = networks.decode(params, coded, rate, noise, None) * step
        kbps = n_bits / (crop.shape[0] / SAMPLE_RATE * 1000)
        return imdct(decoded, length=crop.shape[0]), jnp.asarray(kbps)

    def loss_of(
        params: Params,
        crops: Array,
        rates: Array,
        keys: tuple[Array, Array],
        temperature: Array,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        coded = jax.vmap(code, (None, 0, 0, 0, None))
        sound, kbps = coded(params, crops, rates, keys[0], temperature)
        delays = jax.vmap(rdo.draw_delay)(keys[1])
        reference, estimate = (jax.vmap(rdo.delay)(each, delays) for each in (crops, sound))
        terms = rdo.measure(rdo.LOUDNESS * reference, rdo.LOUDNESS * estimate)
        price = settings.price / rdo.PRICE * jax.vmap(rdo.price_of_rate)(rates)
        heard = sum(rdo.TERMS[name] * value.mean() for name, value in terms.items())
        means = {name: value.mean() for name, value in terms.items()}
        return heard + jnp.mean(price * kbps), {**means, "kbit_per_s": kbps.mean()}

    def measure(
        params: Params, temperature: Array, keys: Array, audio: Float[Array, "B N"]
    ) -> tuple[Any, Params]:
        """Loss and gradient of a device's share of the batch."""
        crops, rates = jax.vmap(functools.partial(make_crop, settings))(keys[:, 0], audio)
        gradient_of = jax.value_and_grad(loss_of, has_aux=True)
        return gradient_of(params, crops, rates, (keys[:, 1], keys[:, 2]), temperature)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(
        state: TrainState, audio: Float[Array, "B N"]
    ) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
        keys = jax.random.split(jax.random.fold_in(key, state.step), (3, audio.shape[0]))
        keys = keys.T[sharding.order_of_rows(audio.shape[0])]
        first, last = settings.temperatures
        temperature = first * (last / first) ** (state.step / settings.steps)
        measured = sharding.mean_over_devices(measure, (state.params, temperature), (keys, audio))
        (loss, terms), gradient = measured
        updates, moments = optimizer.update(gradient, state.optimizer, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        return TrainState(params, moments, state.step + 1), {"loss": loss, **terms}

    return step


def _rounded(relaxed: Array, drawn: Array) -> Array:
    """Rounds with the gradient of a draw."""
    return drawn + jax.lax.stop_gradient(jnp.round(relaxed) - drawn)


def make_crop(
    settings: Settings, key: PRNGKey, audio: Waveform
) -> tuple[Waveform, Float[Array, ""]]:
    """Draws a part of a clip over its active level, with or without noise, and a rate."""
    keys = jax.random.split(key, 6)
    power = jnp.mean(jnp.square(audio)) + _SILENCE
    noise = _coloured(keys[0], audio.shape[0])
    snr = jax.random.uniform(keys[1], (), minval=_SNR[0], maxval=_SNR[1])
    loudness = jnp.sqrt(power / jnp.mean(jnp.square(noise))) * 10 ** (-snr / 20)
    noisy = jax.random.uniform(keys[2]) < settings.noise_share
    audio = audio + jnp.where(noisy, loudness, 0) * noise
    start = jax.random.randint(keys[3], (), 0, audio.shape[0] - settings.crop + 1)
    crop = jax.lax.dynamic_slice(audio, (start,), (settings.crop,))
    level = jnp.maximum(active_level(mdct(audio)), jnp.sqrt(_SILENCE))
    low, high = settings.rates
    return crop / level, jax.random.uniform(keys[4], (), minval=low, maxval=high)


def _coloured(key: PRNGKey, n_samples: int) -> Waveform:
    """Draws noise through a filter of one pole."""
    keys = jax.random.split(key)
    pole = jax.random.uniform(keys[1], (), minval=_COLOUR[0], maxval=_COLOUR[1])
    spectrum = jnp.fft.rfft(jax.random.normal(keys[0], (n_samples,)))
    angle = jnp.linspace(0, jnp.pi, spectrum.shape[0])
    return jnp.fft.irfft(spectrum / (1 - pole * jnp.exp(-1j * angle)), n_samples)


def _load_models(path: Path) -> Any:
    """Reads context models alone, or those of a codec."""
    try:
        return context.load_models(path)
    except ValueError as error:
        raise SettingsError(f"{path}: {error}") from error


def _identity(settings: Settings) -> dict[str, Any]:
    """The settings that decide what is trained, as JSON values."""
    values = dataclasses.asdict(settings)
    for name in NOT_IDENTITY:
        values.pop(name, None)
    return manifest.plain(values)


def _about(path: Path) -> dict[str, Any]:
    """What is known of the making of the codec that a run starts from."""
    known = ("data", "command", "started_from", "training_seconds", "final_training_loss", "device")
    about = load_codec(path).card.about
    return {"started_from": {key: about[key] for key in known if key in about}}


def _sizes(params: Params) -> dict[str, Any]:
    return {"parameters": {name: n_parameters(value) for name, value in params.items()}}


def _command(settings: Settings) -> str:
    """The command that trains such networks again."""
    defaults = Settings(settings.data, settings.workdir, settings.context)
    words = ["python -m train.codec --data", portable_path(settings.data), "--workdir RUN"]
    words += ["--context", portable_path(settings.context)]
    for each in dataclasses.fields(settings):
        value = getattr(settings, each.name)
        known = each.name in (*NOT_IDENTITY, "context") or value == getattr(defaults, each.name)
        if each.name == "networks":
            for name, setting in vars(value).items():
                if setting != getattr(defaults.networks, name):
                    words += flag(f"networks.{name}", setting)
        elif not known:
            words += flag(each.name, value)
    return " ".join(words)


def main(argv: list[str] | None = None) -> int:
    """Parses the flags and trains; returns the exit code."""
    with StopSignals() as signals:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        try:
            settings = parse_settings(Settings, "train.codec", __doc__, argv)
            use_cache()
            with sharding.use(settings.mesh):
                train(settings, stop=signals.requested)
        except Stopped as stopped:
            print(f"train.codec: {stopped}", file=sys.stderr)
            return signals.exit_code
        except (JaxsparseError, MissingExtraError, OSError, FloatingPointError) as error:
            print(f"train.codec: {describe(error)}", file=sys.stderr, flush=True)
            sharding.end_if_others_wait(2)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
