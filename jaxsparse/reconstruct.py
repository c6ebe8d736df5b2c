"""From a masked spectrogram back to sound, and the evaluation of many masks on one clip."""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from jaxsparse import losses
from jaxsparse.contracts import Decoder, Params
from jaxsparse.spectrogram import db_to_amplitude
from jaxsparse.transforms.stft import STFTConfig, istft
from jaxsparse.types import ComplexSpectrogram, HardMask, Mask, Spectrogram, Waveform

# What `evaluate_masks` may take beside the masks themselves.
CHUNK_BYTES = 1 << 30


Finish: TypeAlias = Callable[..., Any]


class HostDecoderError(TypeError):
    """A decoder that runs on the host, where a function has to be traced."""


def reconstruct_spectrogram(
    decoder: Decoder,
    params: Params,
    spectrogram: Spectrogram,
    mask: Mask,
    *,
    keep_observed: bool = True,
) -> Spectrogram:
    """Completes a masked spectrogram.

    Args:
        decoder: What fills in the hidden bins.
        params: Its parameters.
        spectrogram: dB, F by T; only its observed bins are used.
        mask: Observed bins, hard or soft.
        keep_observed: Puts the observed bins back, as a decoder does, which has their values. The
            thesis' figures are without.

    Returns:
        dB, F by T.

    Raises:
        HostDecoderError: If the decoder runs on the host and this is traced.
    """
    completed = complete(decoder, params, spectrogram, mask)
    return put_back(completed, spectrogram, mask) if keep_observed else completed


def complete(
    decoder: Decoder,
    params: Params,
    spectrogram: Spectrogram,
    mask: Mask,
    valid: HardMask | None = None,
) -> Spectrogram:
    """Applies a decoder, wherever it runs; see `jaxsparse.contracts.Apply`.

    Raises:
        HostDecoderError: If it runs on the host and this is traced.
    """
    if not decoder.on_host:
        return decoder.apply(params, spectrogram, mask, valid)
    given = [array for array in (spectrogram, mask, valid) if array is not None]
    if any(isinstance(array, Tracer) for array in given):
        raise HostDecoderError(
            f"{decoder.config} runs on the host: it has no gradient and can't be traced"
        )
    return decoder.apply(params, *map(jnp.asarray, given))


def put_back(completed: Spectrogram, spectrogram: Spectrogram, mask: Mask) -> Spectrogram:
    """Puts observed bins back: ``mask * spectrogram + (1 - mask) * completed``."""
    if mask.dtype == jnp.bool_:
        return jnp.where(mask, spectrogram, completed)
    return mask * spectrogram + (1 - mask) * completed


def then(decoder: Decoder, finish: Finish) -> Callable[..., Any]:
    """Compiles a decoder together with what is done with its output.

    A decoder on the host runs before a compiled `finish`. Each call compiles anew: cache by
    decoder.

    Args:
        decoder: What fills in the hidden bins.
        finish: ``(completed, spectrogram, mask, valid, *rest) -> anything``, traceable.

    Returns:
        ``run(params, spectrogram, mask, valid, *rest)``.
    """
    if decoder.on_host:
        finish = jax.jit(finish)

        def run(params: Params, spectrogram: Any, mask: Any, valid: Any, *rest: Any) -> Any:
            given = jax.tree.map(jnp.asarray, (spectrogram, mask, valid))
            return finish(complete(decoder, params, *given), *given, *rest)

        return run

    @jax.jit
    def compiled(params: Params, spectrogram: Any, mask: Any, valid: Any, *rest: Any) -> Any:
        completed = decoder.apply(params, spectrogram, mask, valid)
        return finish(completed, spectrogram, mask, valid, *rest)

    return compiled


@functools.lru_cache
def batched(decoder: Decoder) -> Callable[[Params, Array, Array], Array]:
    """Builds ``complete_batch(params, spectrograms, masks)``, all [B, F, T], wherever it runs."""
    if not decoder.on_host:
        return jax.jit(jax.vmap(decoder.apply, (None, 0, 0)))

    def complete_batch(params: Params, spectrograms: Array, masks: Array) -> Array:
        clips = zip(jnp.asarray(spectrograms), jnp.asarray(masks), strict=True)
        return jnp.stack([complete(decoder, params, *clip) for clip in clips])

    return complete_batch


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
    return istft(to_spectrum(spectrogram, phase), config, length=length)


def to_spectrum(spectrogram: Spectrogram, phase: Float[Array, "F T"]) -> ComplexSpectrogram:
    """Joins levels in dB and phases in radians."""
    return db_to_amplitude(spectrogram) * jnp.exp(1j * phase)


def evaluate_masks(
    decoder: Decoder,
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
        decoder: What fills in the hidden bins; one on the host takes one mask after the other.
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
    score = score or _mse
    if decoder.on_host:
        return _evaluate_on_host(decoder, params, spectrogram, masks, keep_observed, score)
    evaluate = _evaluation(decoder, keep_observed, score)
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


def _evaluate_on_host(
    decoder: Decoder,
    params: Params,
    spectrogram: Spectrogram,
    masks: Array,
    keep_observed: bool,
    score: Callable,
) -> Any:
    scores = [
        score(
            spectrogram,
            reconstruct_spectrogram(
                decoder, params, spectrogram, mask, keep_observed=keep_observed
            ),
        )
        for mask in masks
    ]
    return jax.tree.map(lambda *each: jnp.stack(each), *scores) if scores else jnp.zeros(0)


@functools.lru_cache
def _evaluation(decoder: Decoder, keep_observed: bool, score: Callable) -> Callable[..., Any]:
    @functools.partial(jax.jit, static_argnums=3)
    def evaluate(params: Params, spectrogram: Array, masks: Array, chunk: int) -> Any:
        def one(mask: Array) -> Any:
            estimate = reconstruct_spectrogram(
                decoder, params, spectrogram, mask, keep_observed=keep_observed
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
