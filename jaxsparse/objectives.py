"""What searches minimize: how well a clip comes back from a mask."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxsparse import losses
from jaxsparse._scoring import PESQ
from jaxsparse.contracts import Decoder, Params
from jaxsparse.masks import unpack_mask
from jaxsparse.metrics import ScorePool
from jaxsparse.metrics.surrogate import fingerprint, pesq_surrogate
from jaxsparse.reconstruct import put_back, then, to_waveform
from jaxsparse.search.contract import HostObjective
from jaxsparse.search.population import chunk_size
from jaxsparse.terms import Terms, evaluate, hears, parse_loss, weighted_sum
from jaxsparse.transforms.stft import STFTConfig
from jaxsparse.types import SAMPLE_RATE, Mask, Spectrogram

# Sounds that wait for their scores, and masks that the device takes together at most: more of them
# leave the pool idle at both ends of a population.
MAX_PENDING = 64
_MAX_CHUNK = 16


class Problem(NamedTuple):
    """A clip and a decoder's parameters; without its sound where only the spectrogram counts."""

    params: Params
    spectrogram: Spectrogram
    phase: Float[Array, "F T"] | None = None
    waveform: Float[Array, " N"] | None = None


@runtime_checkable
class Measure(Protocol):
    """A loss of what comes back."""

    @property
    def keep_observed(self) -> bool:
        """Whether kept bins are put back."""
        ...

    def __call__(self, completed: Spectrogram, mask: Mask, problem: Problem, /) -> tuple[Any, Any]:
        """Returns the loss, or what stands for it, and the auxiliary output."""
        ...


Derivative: TypeAlias = Literal["whole", "put-back"]
"""Which derivative by the mask an objective has: that of all it computes ("whole"), or that of
putting a bin back ("put-back"), as if the decoder took no notice of the bin. What a bin is worth to
a search is told better by the latter, which knows the error at the bin: a decoder that divides by
the sum of the mask has, for a bin far from all others, a derivative as large as that sum is small.
"""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DeviceObjective:
    """An objective ``mask -> (loss, aux)`` that can be traced; its arrays are leaves of a tree."""

    problem: Problem
    decoder: Decoder = field(metadata={"static": True})
    measure: Measure = field(metadata={"static": True})
    """From the completed spectrogram, the mask and the problem to loss and aux."""
    derivative: Derivative = field(default="whole", metadata={"static": True})

    def __call__(self, mask: Mask) -> tuple[Array, Any]:
        """Evaluates a mask [F, T], hard or soft."""
        reference = self.problem.spectrogram
        shown = mask if self.derivative == "whole" else lax.stop_gradient(mask)
        completed = self.decoder.apply(self.problem.params, reference, shown)
        if self.derivative == "put-back" and mask.dtype != bool and not self.measure.keep_observed:
            # What is added is zero, and has the derivative of putting back.
            completed += (mask - shown) * (reference - lax.stop_gradient(completed))
        return self.measure(completed, mask, self.problem)

    @property
    def identity(self) -> str:
        """What a search's checkpoints know it by."""
        derivative = "" if self.derivative == "whole" else f" {self.derivative}"
        return f"{self.measure} {self.decoder.config}{derivative}"


@dataclass(frozen=True)
class _MSE:
    keep_observed: bool

    def __call__(self, completed: Spectrogram, mask: Mask, problem: Problem) -> tuple[Array, None]:
        return _error(completed, mask, problem, self.keep_observed)[0], None


@dataclass(frozen=True)
class _Surrogate:
    band: Literal["wb", "nb"]
    keep_observed: bool
    config: STFTConfig
    calibration: str = field(default_factory=fingerprint)

    def __call__(
        self, completed: Spectrogram, mask: Mask, problem: Problem
    ) -> tuple[Array, dict[str, Array]]:
        error, sound = _Sound(self.keep_observed, self.config)(completed, mask, problem)
        assert problem.waveform is not None
        scores = pesq_surrogate(
            reference=problem.waveform[None],
            estimate=sound[None],
            sample_rate=SAMPLE_RATE,
            band=self.band,
        )
        return -scores[0], {"mse": error}


@dataclass(frozen=True)
class _Mixture:
    terms: Terms
    keep_observed: bool
    config: STFTConfig
    calibration: str = field(default_factory=fingerprint)

    def __call__(
        self, completed: Spectrogram, mask: Mask, problem: Problem
    ) -> tuple[Array, dict[str, Array]]:
        sounds: tuple[Any, Any] = (None, None)
        error, estimate = _error(completed, mask, problem, self.keep_observed)
        if hears(self.terms):
            assert problem.phase is not None and problem.waveform is not None
            n_samples = problem.waveform.shape[0]
            sound = to_waveform(estimate, problem.phase, self.config, length=n_samples)
            sounds = problem.waveform[None], sound[None]
        values = evaluate(self.terms, (problem.spectrogram[None], estimate[None]), sounds)
        alone = {name: value[0] for name, value in values.items()}
        return weighted_sum(self.terms, alone), {"mse": error} | alone


@dataclass(frozen=True)
class _Sound:
    """MSE and sound."""

    keep_observed: bool
    config: STFTConfig

    def __call__(self, completed: Spectrogram, mask: Mask, problem: Problem) -> tuple[Array, Array]:
        error, estimate = _error(completed, mask, problem, self.keep_observed)
        assert problem.phase is not None and problem.waveform is not None
        n_samples = problem.waveform.shape[0]
        return error, to_waveform(estimate, problem.phase, self.config, length=n_samples)


def _error(
    completed: Spectrogram, mask: Mask, problem: Problem, keep_observed: bool
) -> tuple[Array, Spectrogram]:
    """MSE, and the spectrogram that it is of."""
    reference = problem.spectrogram
    estimate = put_back(completed, reference, mask) if keep_observed else completed
    return losses.mse(reference=reference[None], estimate=estimate[None])[0], estimate


def mse_objective(
    decoder: Decoder,
    params: Params,
    spectrogram: Spectrogram,
    *,
    keep_observed: bool = True,
    derivative: Derivative = "whole",
) -> DeviceObjective | HostObjective:
    """Mean squared error of the completed spectrogram in dB^2 (thesis, eq. 3.5).

    Args:
        decoder: What fills in the hidden bins.
        params: Its parameters.
        spectrogram: The clip in dB, F by T.
        keep_observed: See `reconstruct_spectrogram`; the thesis searches without.
        derivative: See `Derivative`.

    Returns:
        ``mask -> (loss, None)`` for masks [F, T], hard or soft; a `HostObjective` where the
        decoder runs on the host.
    """
    return _make(decoder, _MSE(keep_observed), Problem(params, spectrogram), derivative)


def surrogate_objective(
    decoder: Decoder,
    params: Params,
    spectrogram: Spectrogram,
    phase: Float[Array, "F T"],
    waveform: Float[Array | np.ndarray, " N"],
    *,
    band: Literal["wb", "nb"] = "wb",
    keep_observed: bool = True,
    config: STFTConfig = STFTConfig(),
    derivative: Derivative = "whole",
) -> DeviceObjective | HostObjective:
    """Negative surrogate of PESQ of the sound that comes back, on the device.

    Unlike `pesq_objective` it can be traced, so that a search is one compiled call, and has a
    gradient in soft masks. Its values are not PESQ: a mask that it finds is scored by `pesq`.

    Args:
        decoder: What fills in the hidden bins.
        params: Its parameters.
        spectrogram: The clip in dB, F by T.
        phase: Radians, F by T.
        waveform: The clip at 16 kHz.
        band: Wide or narrow band.
        keep_observed: See `reconstruct_spectrogram`; the thesis searches without.
        config: Settings of the inverse transform.
        derivative: See `Derivative`.

    Returns:
        ``mask -> (loss, {"mse": dB^2})`` for masks [F, T], hard or soft; a `HostObjective` where
        the decoder runs on the host. The loss is NaN where the sound is not finite.
    """
    problem = Problem(params, spectrogram, phase, jnp.asarray(waveform, jnp.float32))
    return _make(decoder, _Surrogate(band, keep_observed, config), problem, derivative)


def mixture_objective(
    decoder: Decoder,
    params: Params,
    spectrogram: Spectrogram,
    phase: Float[Array, "F T"],
    waveform: Float[Array | np.ndarray, " N"],
    *,
    loss: str = "quality",
    keep_observed: bool = True,
    config: STFTConfig = STFTConfig(),
    derivative: Derivative = "whole",
) -> DeviceObjective | HostObjective:
    """A sum of terms, of the spectrogram and of the sound that comes back, on the device.

    A search games what it is given: one that knows both bands' surrogates and STOI, as "quality"
    does, has to mislead three at once.

    Args:
        decoder: What fills in the hidden bins.
        params: Its parameters.
        spectrogram: The clip in dB, F by T.
        phase: Radians, F by T.
        waveform: The clip at 16 kHz.
        loss: Terms and their weights, or the name of a mixture; see `jaxsparse.terms.parse_loss`.
        keep_observed: See `reconstruct_spectrogram`; the thesis searches without.
        config: Settings of the inverse transform.
        derivative: See `Derivative`.

    Returns:
        ``mask -> (loss, {"mse": dB^2, term: value, ...})`` for masks [F, T], hard or soft; a
        `HostObjective` where the decoder runs on the host.

    Raises:
        ValueError: If `loss` can't be read.
    """
    problem = Problem(params, spectrogram, phase, jnp.asarray(waveform, jnp.float32))
    return _make(decoder, _Mixture(parse_loss(loss), keep_observed, config), problem, derivative)


def _make(
    decoder: Decoder, measure: Measure, problem: Problem, derivative: Derivative
) -> DeviceObjective | HostObjective:
    if not decoder.on_host:
        return DeviceObjective(problem, decoder, measure, derivative)

    def score(bits: Any) -> tuple[np.ndarray, Any]:
        scored = [_run(decoder, measure)(problem, packed) for packed in np.asarray(bits)]
        loss, aux = jax.tree.map(lambda *each: np.stack(each), *jax.device_get(scored))
        return loss, aux

    return HostObjective(score, (f"{measure} {decoder.config}", problem))


@functools.lru_cache
def _run(decoder: Decoder, measure: Measure) -> Callable[[Problem, Any], tuple[Any, Any]]:
    """Measures what a decoder makes of a packed mask."""

    def finish(completed: Array, dense: Array, mask: Array, valid: None, problem: Problem) -> Any:
        return measure(completed, mask, problem)

    complete = then(decoder, finish)

    def run(problem: Problem, bits: Any) -> tuple[Any, Any]:
        mask = unpack_mask(jnp.asarray(bits), problem.spectrogram.shape)
        return complete(problem.params, problem.spectrogram, mask, None, problem)

    return run


def pesq_objective(
    decoder: Decoder,
    params: Params,
    spectrogram: Spectrogram,
    phase: Float[Array, "F T"],
    waveform: Float[np.ndarray, " N"],
    pool: ScorePool,
    *,
    band: Literal["wb", "nb"] = "wb",
    keep_observed: bool = True,
    config: STFTConfig = STFTConfig(),
    chunk_bytes: int | None = None,
) -> HostObjective:
    """Negative PESQ of the sound that comes back, by `pesq` (thesis, section 4.4.2).

    While the pool scores one chunk of the population, the device makes the sound of the next.

    Args:
        decoder: What fills in the hidden bins.
        params: Its parameters.
        spectrogram: The clip in dB, F by T.
        phase: Radians, F by T.
        waveform: The clip at 16 kHz.
        pool: Processes that score.
        band: Wide or narrow band.
        keep_observed: See `reconstruct_spectrogram`; the thesis searches without.
        config: Settings of the inverse transform.
        chunk_bytes: What masks that the device takes together may take; see
            `jaxsparse.search.population.chunk_size`.

    Returns:
        An objective with the losses and, as aux, ``{"mse": dB^2}``. Where PESQ has no score, the
        loss is NaN.
    """
    reference, metric = np.asarray(waveform), PESQ[band]
    problem = Problem(params, spectrogram, phase, jnp.asarray(reference, jnp.float32))
    synthesize = _synthesis(decoder, _Sound(keep_observed, config))
    chunk = _chunk(decoder, problem, keep_observed, chunk_bytes)

    def score(bits: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        # Padded, so that the last chunk compiles nothing anew.
        n = len(bits)
        padded = np.pad(np.asarray(bits), ((0, -n % chunk), (0, 0)))
        made = [
            synthesize(problem, padded[start : start + chunk])
            for start in range(0, min(chunk, n), chunk)
        ]
        errors, futures = [], []
        for start in range(0, n, chunk):
            error, sounds = made.pop()
            if (following := start + chunk) < n:
                made.append(synthesize(problem, padded[following : following + chunk]))
            errors.append(np.asarray(error))
            futures += [
                pool.submit(metric, reference=reference, estimate=sound, sample_rate=SAMPLE_RATE)
                for sound in np.asarray(sounds)[: n - start]
            ]
            if len(futures) > MAX_PENDING:
                futures[-MAX_PENDING].result()
        scores = np.array([future.result().value for future in futures])
        return -scores, {"mse": np.concatenate(errors)[:n]}

    about = f"{metric}, keep_observed={keep_observed}, {config} {decoder.config}"
    return HostObjective(score, (about, params, spectrogram, phase, reference))


def _chunk(decoder: Decoder, problem: Problem, keep_observed: bool, chunk_bytes: int | None) -> int:
    """How many masks are made sound of together."""
    if decoder.on_host:
        return 1
    completion = DeviceObjective(problem, decoder, _MSE(keep_observed))
    # Sound takes about as much as the spectrogram that it is made of.
    fitting = chunk_size(completion, problem.spectrogram.shape, chunk_bytes) // 2
    return min(max(fitting, 1), _MAX_CHUNK)


@functools.lru_cache
def _synthesis(decoder: Decoder, sound: _Sound) -> Callable[[Problem, Any], tuple[Any, Any]]:
    """MSE and sound of a chunk of packed masks."""
    run = _run(decoder, sound)
    if not decoder.on_host:
        return jax.jit(jax.vmap(run, (None, 0)))

    def synthesize(problem: Problem, chunk: Any) -> tuple[Any, Any]:
        made = [run(problem, packed) for packed in chunk]
        error, sounds = jax.tree.map(lambda *each: np.stack(each), *jax.device_get(made))
        return error, sounds

    return synthesize
