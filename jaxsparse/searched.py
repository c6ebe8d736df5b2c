"""Searches for one clip, after a one-shot mask: a better mask, and better values of what it keeps.

By default they minimise `quality`, which knows both bands' surrogates of PESQ and STOI. The codec
and scripts call them.
"""

import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from jaxsparse.contracts import Decoder, Params
from jaxsparse.errors import JaxsparseError
from jaxsparse.objectives import mixture_objective
from jaxsparse.pretrained import Pretrained
from jaxsparse.reconstruct import to_waveform
from jaxsparse.search.contract import Objective, Search
from jaxsparse.search.lagrangian import lagrangian
from jaxsparse.search.relaxations import Relaxation, exact_sum, narrow_start, straight_through
from jaxsparse.search.run import run
from jaxsparse.search.swaps import swaps
from jaxsparse.terms import Terms, evaluate, hears, parse_loss, weighted_sum
from jaxsparse.transforms.stft import STFTConfig
from jaxsparse.types import HardMask, PRNGKey, Spectrogram

Make: TypeAlias = Callable[[Any, tuple[int, int], Any, HardMask], Search]

_scores_optimizer = optax.adam(0.1)
_STEEPNESS = 8.0
UPDATES_PER_STEP = 4
"""Updates of the scores in `relaxed` between two roundings that are scored."""


def relaxed(
    objective: Objective,
    shape: tuple[int, int],
    count: int | Int[Array, ""],
    start: HardMask,
    relaxation: Relaxation | None = None,
) -> Search:
    """Makes a search by gradient in few updates, which begins at a mask.

    Args:
        objective: To be minimised, with a derivative.
        shape: F and T.
        count: Ones of the mask.
        start: A mask of that count to begin at.
        relaxation: From scores to masks; by default hard ones with the derivative of the shifted
            sigmoid, which no rounding makes worse.
    """
    chosen = straight_through(exact_sum(_STEEPNESS)) if relaxation is None else relaxation
    return lagrangian(
        objective,
        shape,
        count,
        # Near to where relaxations have a derivative, and where few updates move a bin across.
        relaxation=chosen._replace(to_scores=narrow_start),
        optimizer=_scores_optimizer,
        start=start,
        updates_per_step=UPDATES_PER_STEP,
    )


SEARCHES: dict[str, Make] = {
    "relaxed": relaxed,
    "swaps": lambda objective, shape, count, start: swaps(objective, shape, count, start=start),
}
"""Searches by name, from an objective, a shape, a count and a mask to begin at."""
SEARCHED = (*SEARCHES, "values")
"""What can be searched for, by name: masks, and the values that are kept."""
_CONFIG = STFTConfig()
# Steps that a value may move by at most, and how fast it does so.
_MOST_STEPS = 3.0
_optimizer = optax.adam(0.05)
# No search ends by steps, unless it is told to.
_MAX_STEPS = 1_000_000


def improve(
    key: PRNGKey,
    mask: HardMask,
    spectrogram: Spectrogram,
    phase: Float[Array, "F T"],
    network: Pretrained,
    *,
    search: str = "relaxed",
    seconds: float | None = 60.0,
    evaluations: int | None = None,
    loss: str = "quality",
    keep_observed: bool = True,
) -> HardMask:
    """Searches for a better mask of the same count.

    Args:
        key: Of the search.
        mask: To begin at.
        spectrogram: The clip in dB, F by T.
        phase: Radians, F by T.
        network: What fills in the rest.
        search: A name in `SEARCHES`.
        seconds: How long to search, without compilation; what has begun is finished. None: until
            `evaluations` end it.
        evaluations: No step is begun that would evaluate more masks than these.
        loss: What is minimised: terms, or the name of a mixture, as of `mixture_objective`.
        keep_observed: Whether the kept bins are put back.

    Raises:
        JaxsparseError: If the decoder runs on the host, so that it has no gradient, the search is
            unknown, or `seconds` is not positive and finite.
        ValueError: If `loss` can't be read.
    """
    if search not in SEARCHES:
        raise JaxsparseError(f"no search for a mask is named {search!r}")
    check(search, seconds)
    _check_gradient(network)
    objective = mixture_objective(
        network.decoder,
        network.params,
        spectrogram,
        phase,
        _sound(spectrogram, phase),
        loss=loss,
        keep_observed=keep_observed,
        config=_CONFIG,
        derivative="put-back",
    )
    n_bins, n_frames = spectrogram.shape
    made = SEARCHES[search](objective, (n_bins, n_frames), jnp.sum(mask, dtype=jnp.int32), mask)
    result = run(
        made,
        key,
        steps=_MAX_STEPS,
        minutes=None if seconds is None else seconds / 60,
        evaluations=evaluations,
        progress=False,
    )
    return result.mask((n_bins, n_frames))


class _Clip(NamedTuple):
    """What values are refined for, and the quantizer's step in dB."""

    params: Params
    spectrogram: Array
    phase: Array
    sound: Array
    mask: Array
    step: Array

    @property
    def rounded(self) -> Array:
        """The spectrogram in whole steps."""
        return self.step * jnp.round(self.spectrogram / self.step)


def refine(
    mask: HardMask,
    spectrogram: Spectrogram,
    phase: Float[Array, "F T"],
    network: Pretrained,
    *,
    step_db: float = 0.5,
    seconds: float = 60.0,
    updates: int | None = None,
    loss: str = "quality",
    keep_observed: bool = True,
) -> Spectrogram:
    """Searches for better values of the kept bins, among those that a quantizer can code.

    They move by whole steps, three at most, by Adam on the derivative of what they are rounded
    from. What is given back has the lowest loss of all that was tried, the rounded values first.

    Args:
        mask: Kept bins.
        spectrogram: The clip in dB, F by T.
        phase: Radians, F by T.
        network: What fills in the rest.
        step_db: Of the quantizer.
        seconds: How long to search, without compilation; what has begun is finished.
        updates: How many updates there are at most.
        loss: What is minimised: terms, or the name of a mixture.
        keep_observed: Whether the kept bins are put back.

    Returns:
        The spectrogram, with kept bins in whole steps.

    Raises:
        JaxsparseError: See `improve`.
        ValueError: If `loss` can't be read.
    """
    check("values", seconds)
    _check_gradient(network)
    sound = _sound(spectrogram, phase)
    clip = _Clip(network.params, spectrogram, phase, sound, mask, jnp.float32(step_db))
    update = functools.partial(_update, network.decoder, parse_loss(loss), keep_observed)
    moved = jnp.zeros(spectrogram.shape)
    moments = _optimizer.init(moved)
    best, least, began = moved, math.inf, None
    for _ in range(_MAX_STEPS if updates is None else updates + 1):
        value, steps, moved, moments = update(clip, moved, moments)
        if float(value) < least:
            best, least = steps, float(value)
        # The first update compiles.
        began = began or time.perf_counter()
        if time.perf_counter() - began >= seconds:
            break
    return jnp.where(mask, clip.rounded + clip.step * best, spectrogram)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _update(
    decoder: Decoder,
    terms: Terms,
    keep_observed: bool,
    clip: _Clip,
    moved: Array,
    moments: Any,
) -> tuple[Array, Array, Array, Any]:
    """Returns the loss, the steps by which values are moved, and what comes after the update."""

    def loss_of(moved: Array) -> tuple[Array, Array]:
        soft = _MOST_STEPS * jnp.tanh(moved)
        steps = soft + lax.stop_gradient(jnp.round(soft) - soft)
        shown = jnp.where(clip.mask, clip.rounded + clip.step * steps, clip.spectrogram)
        estimate = decoder.apply(clip.params, shown, clip.mask)
        if keep_observed:
            estimate = jnp.where(clip.mask, shown, estimate)
        sound = None
        if hears(terms):
            sound = to_waveform(estimate, clip.phase, _CONFIG, length=len(clip.sound))[None]
        pair = clip.spectrogram[None], estimate[None]
        values = evaluate(terms, pair, (clip.sound[None], sound))
        return weighted_sum(terms, {name: value[0] for name, value in values.items()}), steps

    (value, steps), slope = jax.value_and_grad(loss_of, has_aux=True)(moved)
    slope = jnp.where(jnp.isfinite(slope), slope, 0)
    changes, moments = _optimizer.update(slope, moments)
    after: Any = optax.apply_updates(moved, changes)
    return value, steps, after, moments


def _sound(spectrogram: Spectrogram, phase: Float[Array, "F T"]) -> Float[Array, " N"]:
    """Makes the sound of a clip as this grid has it."""
    n_samples = max((spectrogram.shape[1] - 1) * _CONFIG.hop_length, 1)
    return to_waveform(spectrogram, phase, _CONFIG, length=n_samples)


def _check_gradient(network: Pretrained) -> None:
    if network.decoder.on_host:
        name = type(network.decoder.config).__name__
        raise JaxsparseError(f"a search needs gradients, and {name} runs on the host")


def check(search: str, seconds: float | None) -> None:
    """Refuses settings out of range.

    Raises:
        JaxsparseError: If the search is unknown, or `seconds` is not positive and finite.
    """
    if search not in SEARCHED:
        raise JaxsparseError(f"no search is named {search!r}; there are {', '.join(SEARCHED)}")
    if seconds is not None and not 0 < seconds < math.inf:
        raise JaxsparseError(f"a search takes a positive number of seconds, not {seconds}")
