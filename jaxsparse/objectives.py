"""What searches minimize: how well a clip comes back from a mask."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from jaxsparse import losses
from jaxsparse._scoring import PESQ
from jaxsparse.masks import unpack_mask
from jaxsparse.metrics import ScorePool
from jaxsparse.metrics.surrogate import fingerprint, pesq_surrogate
from jaxsparse.nn.network import Apply, Params
from jaxsparse.reconstruct import reconstruct_spectrogram, to_waveform
from jaxsparse.search.contract import HostObjective
from jaxsparse.search.population import chunk_size
from jaxsparse.stft import STFTConfig
from jaxsparse.types import SAMPLE_RATE, Mask, Spectrogram

# Sounds that wait for their scores, and masks that the device takes together at most: more of them
# leave the pool idle at both ends of a population.
MAX_PENDING = 64
_MAX_CHUNK = 16


def mse_objective(
    apply: Apply, params: Params, spectrogram: Spectrogram, *, keep_observed: bool = True
) -> Partial:
    """Mean squared error of the completed spectrogram in dB^2 (thesis, eq. 3.5).

    Args:
        apply: The network; the same function object, so that nothing is compiled twice.
        params: Its parameters.
        spectrogram: The clip in dB, F by T.
        keep_observed: See `reconstruct_spectrogram`; the thesis searches without.

    Returns:
        ``mask -> (loss, None)`` for masks [F, T], hard or soft.
    """
    return Partial(_mse(apply, keep_observed), params, spectrogram)


@functools.lru_cache
def _mse(apply: Apply, keep_observed: bool) -> Callable[..., tuple[Array, None]]:
    def objective(params: Params, spectrogram: Spectrogram, mask: Mask) -> tuple[Array, None]:
        estimate = reconstruct_spectrogram(
            apply, params, spectrogram, mask, keep_observed=keep_observed
        )
        return losses.mse(reference=spectrogram[None], estimate=estimate[None])[0], None

    # Its name tells checkpoints which of them it is.
    objective.__qualname__ = f"mse_objective(keep_observed={keep_observed})"
    return objective


def surrogate_objective(
    apply: Apply,
    params: Params,
    spectrogram: Spectrogram,
    phase: Float[Array, "F T"],
    waveform: Float[Array | np.ndarray, " N"],
    *,
    band: Literal["wb", "nb"] = "wb",
    keep_observed: bool = True,
    config: STFTConfig = STFTConfig(),
) -> Partial:
    """Negative surrogate of PESQ of the sound that comes back, on the device.

    Unlike `pesq_objective` it can be traced, so that a search is one compiled call, and has a
    gradient in soft masks. Its values are not PESQ: a mask that it finds is scored by `pesq`.

    Args:
        apply: The network; the same function object, so that nothing is compiled twice.
        params: Its parameters.
        spectrogram: The clip in dB, F by T.
        phase: Radians, F by T.
        waveform: The clip at 16 kHz.
        band: Wide or narrow band.
        keep_observed: See `reconstruct_spectrogram`; the thesis searches without.
        config: Settings of the inverse transform.

    Returns:
        ``mask -> (loss, {"mse": dB^2})`` for masks [F, T], hard or soft. The loss is NaN where
        the sound is not finite.
    """
    objective = _surrogate(apply, band, keep_observed, config)
    return Partial(objective, params, spectrogram, phase, jnp.asarray(waveform, jnp.float32))


@functools.lru_cache
def _surrogate(
    apply: Apply, band: Literal["wb", "nb"], keep_observed: bool, config: STFTConfig
) -> Callable[..., tuple[Array, dict[str, Array]]]:
    def objective(
        params: Params, spectrogram: Spectrogram, phase: Array, waveform: Array, mask: Mask
    ) -> tuple[Array, dict[str, Array]]:
        estimate = reconstruct_spectrogram(
            apply, params, spectrogram, mask, keep_observed=keep_observed
        )
        error = losses.mse(reference=spectrogram[None], estimate=estimate[None])[0]
        sound = to_waveform(estimate, phase, config, length=waveform.shape[0])
        scores = pesq_surrogate(
            reference=waveform[None], estimate=sound[None], sample_rate=SAMPLE_RATE, band=band
        )
        return -scores[0], {"mse": error}

    # Its name tells checkpoints which of them it is.
    about = f"{band} {fingerprint()}, keep_observed={keep_observed}, {config}"
    objective.__qualname__ = f"surrogate_objective({about})"
    return objective


def pesq_objective(
    apply: Apply,
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
        apply: The network; the same function object, so that nothing is compiled twice.
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
    reference = np.asarray(waveform)
    synthesize = _synthesis(apply, keep_observed, config, len(reference))
    metric = PESQ[band]
    completion = mse_objective(apply, params, spectrogram, keep_observed=keep_observed)
    # Sound takes about as much as the spectrogram that it is made of.
    chunk = min(max(chunk_size(completion, spectrogram.shape, chunk_bytes) // 2, 1), _MAX_CHUNK)

    def score(bits: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        # Padded, so that the last chunk compiles nothing anew.
        n = len(bits)
        padded = np.pad(np.asarray(bits), ((0, -n % chunk), (0, 0)))
        made = [
            synthesize(params, spectrogram, phase, padded[start : start + chunk])
            for start in range(0, min(chunk, n), chunk)
        ]
        errors, futures = [], []
        for start in range(0, n, chunk):
            error, sounds = made.pop()
            if (following := start + chunk) < n:
                rest = padded[following : following + chunk]
                made.append(synthesize(params, spectrogram, phase, rest))
            errors.append(np.asarray(error))
            futures += [
                pool.submit(metric, reference=reference, estimate=sound, sample_rate=SAMPLE_RATE)
                for sound in np.asarray(sounds)[: n - start]
            ]
            if len(futures) > MAX_PENDING:
                futures[-MAX_PENDING].result()
        scores = np.array([future.result().value for future in futures])
        return -scores, {"mse": np.concatenate(errors)[:n]}

    about = f"{metric}, keep_observed={keep_observed}, {config}"
    return HostObjective(score, (about, params, spectrogram, phase, reference))


@functools.lru_cache
def _synthesis(apply: Apply, keep_observed: bool, config: STFTConfig, length: int) -> Callable:
    """MSE and sound of packed masks."""

    @jax.jit
    def synthesize(
        params: Params, spectrogram: Array, phase: Array, bits: Array
    ) -> tuple[Array, Array]:
        def one(packed: Array) -> tuple[Array, Array]:
            mask = unpack_mask(packed, spectrogram.shape)
            estimate = reconstruct_spectrogram(
                apply, params, spectrogram, mask, keep_observed=keep_observed
            )
            error = losses.mse(reference=spectrogram[None], estimate=estimate[None])[0]
            return error, to_waveform(estimate, phase, config, length=length)

        return jax.vmap(one)(bits)

    return synthesize
