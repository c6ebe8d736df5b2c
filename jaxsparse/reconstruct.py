"""From a masked spectrogram back to sound, and the evaluation of many masks on one clip."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxsparse import losses
from jaxsparse.nn.network import Apply, Params
from jaxsparse.spectrogram import db_to_amplitude
from jaxsparse.stft import STFTConfig, istft
from jaxsparse.types import Mask, Spectrogram, Waveform

# What `evaluate_masks` may take beside the masks themselves.
CHUNK_BYTES = 1 << 30


def reconstruct_spectrogram(
    apply: Apply,
    params: Params,
    spectrogram: Spectrogram,
    mask: Mask,
    *,
    keep_observed: bool = True,
) -> Spectrogram:
    """Completes a masked spectrogram.

    Args:
        apply: The network.
        params: Its parameters.
        spectrogram: dB, F by T; only its observed bins are used.
        mask: Observed bins, hard or soft.
        keep_observed: Puts the observed bins back, as a decoder does, which has their values:
            ``mask * x + (1 - mask) * y``. The thesis' figures are without.

    Returns:
        dB, F by T.
    """
    completed = apply(params, spectrogram, mask)
    if not keep_observed:
        return completed
    if mask.dtype == jnp.bool_:
        return jnp.where(mask, spectrogram, completed)
    return mask * spectrogram + (1 - mask) * completed


def to_waveform(
    spectrogram: Spectrogram,
    phase: Float[Array, "F T"],
    config: STFTConfig = STFTConfig(),
    *,
    length: int,
) -> Waveform:
    """Turns magnitudes in dB and phases into sound.

    Args:
        spectrogram: dB, F by T.
        phase: Radians, F by T; 0 where it is not known.
        config: Settings of the transform.
        length: Samples of the result.
    """
    return istft(db_to_amplitude(spectrogram) * jnp.exp(1j * phase), config, length=length)


def evaluate_masks(
    apply: Apply,
    params: Params,
    spectrogram: Spectrogram,
    masks: Bool[Array, "P F T"] | Float[Array, "P F T"],
    *,
    chunk_bytes: int = CHUNK_BYTES,
    keep_observed: bool = True,
    score: Callable[[Spectrogram, Spectrogram], Any] | None = None,
) -> Any:
    """Scores many masks of one clip in one compiled call, in bounded memory.

    Args:
        apply: The network; the same function object, so that nothing is compiled twice.
        params: Its parameters.
        spectrogram: The clip in dB, F by T.
        masks: The population.
        chunk_bytes: Memory that masks evaluated at the same time may take together; at least one
            mask is evaluated at a time, whatever it takes. The rest of the population waits as
            bits and takes nothing more.
        keep_observed: See `reconstruct_spectrogram`.
        score: ``(reference, estimate) -> value`` of one spectrogram, or a tree of values; the
            mean squared error in dB^2 by default. The same object again compiles nothing anew.

    Returns:
        What `score` gives, stacked: [P] for the default.

    Raises:
        ValueError: If `chunk_bytes` is not positive.
    """
    if chunk_bytes < 1:
        raise ValueError(f"chunk_bytes must be positive, not {chunk_bytes}")
    evaluate = _evaluation(apply, keep_observed, score or _mse)
    per_mask = _bytes_per_mask(
        evaluate,
        jax.tree.structure(params),
        tuple((leaf.shape, jnp.dtype(leaf.dtype)) for leaf in jax.tree.leaves(params)),
        (spectrogram.shape, spectrogram.dtype),
        masks.dtype,
    )
    chunk = min(max(chunk_bytes // per_mask, 1), max(masks.shape[0], 1))
    return evaluate(params, spectrogram, masks, chunk)


def _mse(reference: Spectrogram, estimate: Spectrogram) -> Float[Array, ""]:
    return losses.mse(reference=reference[None], estimate=estimate[None])[0]


@functools.lru_cache
def _evaluation(apply: Apply, keep_observed: bool, score: Callable) -> Callable[..., Any]:
    @functools.partial(jax.jit, static_argnums=3)
    def evaluate(params: Params, spectrogram: Array, masks: Array, chunk: int) -> Any:
        def one(mask: Array) -> Any:
            estimate = reconstruct_spectrogram(
                apply, params, spectrogram, mask, keep_observed=keep_observed
            )
            return score(spectrogram, estimate)

        return lax.map(one, masks, batch_size=chunk)

    return evaluate


@functools.lru_cache
def _bytes_per_mask(evaluate: Any, structure: Any, leaves: Any, clip: Any, mask_dtype: Any) -> int:
    """What the compiler says that one mask takes."""
    params = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*leaf) for leaf in leaves])
    shape, dtype = clip
    compiled = evaluate.lower(
        params,
        jax.ShapeDtypeStruct(shape, dtype),
        jax.ShapeDtypeStruct((1, *shape), mask_dtype),
        1,
    ).compile()
    memory = compiled.memory_analysis()
    return max(memory.temp_size_in_bytes + memory.output_size_in_bytes, 1)
