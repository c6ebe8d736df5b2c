"""Rate-distortion optimisation: the values of a segment that sound best for their bits.

Between two whole numbers each value is drawn with probabilities that harden from update to update
(stochastic Gumbel annealing: Y. Yang, R. Bamler, S. Mandt, 2020, "Improving inference for neural
image compression"); the gradient of quality and of the context models' cost goes through decoder
and draw. What the file looks like doesn't change.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxsparse.codec.rate import choose_tables, total_bits
from jaxsparse.codec.weights import MDCTCodec
from jaxsparse.contracts import Params
from jaxsparse.metrics.distances import mel_distance
from jaxsparse.metrics.intelligibility import stoi
from jaxsparse.metrics.surrogate import pesq_surrogate
from jaxsparse.quantizer import Coded, noise_signs, relative_step, sum_bands
from jaxsparse.transforms.grid import HOP_LENGTH, N_LEVELS
from jaxsparse.transforms.mdct import Coefficients, MDCTConfig, imdct
from jaxsparse.types import SAMPLE_RATE, PRNGKey, Waveform

CHUNK = 10
"""Updates after which what they came to is rounded and tried, and tables and price are renewed."""
LEARNING_RATE = 0.03
TEMPERATURES = (0.5, 0.05)
"""Of the draws, at the first and at the last update."""
PRICE, PRICE_POWER = 6.2, 0.7
"""What a kbit/s is worth at a step of one active level, and how that grows with the step."""
TERMS = {"surrogate": 20.0, "surrogate-nb": 10.0, "stoi": 150.0, "mel": 5.0}
"""Weights of points of PESQ in wide and narrow band, of STOI, and of dB of the mel spectrum."""
_BEST = 4.64
# In units of the training's price, the first one of a search.
_FIRST_PRICE = 1.0
# How quickly the price follows the bits, and by how much these may exceed the target.
_PRICE_RATE, _TOLERANCE = 4.0, 0.01
_EDGE = 1e-4
LOUDNESS = 0.05
"""Active level of what is compared: the mel spectrum has a floor."""


class Problem(NamedTuple):
    """A segment to be coded; arrays are padded to one of few sizes."""

    params: Params
    """Of the networks."""
    scaled: Coefficients
    """Coefficients over the step; zero where the frames only pad."""
    valid: Bool[Array, "F T"]
    """False there."""
    coded: Bool[Array, "F 1"]
    """Coefficients of a frame that lie below the bandwidth."""
    rate: Float[Array, ""]
    """Of the step over the active level."""
    first_frame: Int[Array, ""]
    """Number of the first frame in its channel."""
    mask: Bool[Array, "F T"] | None = None
    """Coefficients that must be kept, and no others; None where any may."""

    @property
    def within(self) -> Bool[Array, "F T"]:
        """Coefficients that may be other than zero."""
        within = self.valid & self.coded
        return within if self.mask is None else within & self.mask


class Trial(NamedTuple):
    """What was found.

    Attributes:
        coded: Whole numbers.
        bits: What they cost.
        distortion: See `distortion`.
    """

    coded: Coded
    bits: Float[Array, ""]
    distortion: Float[Array, ""]


class State(NamedTuple):
    """What the updates carry on."""

    relaxed: Coded
    moments: optax.OptState
    price: Float[Array, ""]
    best: Trial


def price_of_rate(rate: Float[Array, ""] | float) -> Float[Array, ""]:
    """Returns what a kbit/s is worth in units of `distortion`, at about equal slopes."""
    return PRICE * 2.0 ** (PRICE_POWER * (jnp.asarray(rate, jnp.float32) / 8 - 4))


def measure(
    reference: Float[Array, "B N"], estimate: Float[Array, "B N"]
) -> dict[str, Float[Array, " B"]]:
    """Measures how far sounds are from their originals, by `TERMS`."""
    pair: Any = {"reference": reference, "estimate": estimate, "sample_rate": SAMPLE_RATE}
    return {
        "surrogate": _BEST - pesq_surrogate(**pair, band="wb"),
        "surrogate-nb": _BEST - pesq_surrogate(**pair, band="nb"),
        "stoi": 1 - stoi(**pair),
        "mel": mel_distance(**pair),
    }


def distortion(reference: Waveform, estimate: Waveform) -> Float[Array, ""]:
    """Returns the weighted sum of what `measure` says of one sound."""
    terms = measure(reference[None], estimate[None])
    return sum((TERMS[name] * value[0] for name, value in terms.items()), jnp.zeros(()))


def draw(
    key: PRNGKey, relaxed: Float[Array, "R C"], temperature: Float[Array, ""] | float
) -> Float[Array, "R C"]:
    """Draws between the whole numbers around each value, nearly hard at low temperatures."""
    lower = lax.stop_gradient(jnp.floor(relaxed))
    share = jnp.clip(relaxed - lower, _EDGE, 1 - _EDGE)
    logit = (jnp.arctanh(1 - share) - jnp.arctanh(share)) / temperature
    below = jax.nn.sigmoid((logit + jax.random.logistic(key, share.shape)) / temperature)
    return lower + 1 - below


def round_coded(relaxed: Coded, problem: Problem) -> Coded:
    """Rounds to what a file can hold."""
    values = jnp.round(relaxed.values)
    if problem.mask is not None:
        least = jnp.where(relaxed.values < 0, -1, 1)
        values = jnp.where(values == 0, least, values)
    values = jnp.where(problem.within, values, 0).astype(jnp.int32)
    levels = jnp.clip(jnp.round(relaxed.levels), 0, N_LEVELS - 1).astype(jnp.int32)
    heard = sum_bands((problem.valid & problem.coded).astype(jnp.float32)) > 0
    return Coded(values, jnp.where(heard, levels, 0))


def estimate_pesq(codec: MDCTCodec, problem: Problem, coded: Coded) -> Float[Array, ""]:
    """Returns the surrogate of PESQ in wide band of a segment alone."""
    return _estimator(codec)(problem, coded)


@functools.lru_cache(maxsize=4)
def _estimator(codec: MDCTCodec) -> Callable[[Problem, Coded], Float[Array, ""]]:
    @jax.jit
    def estimate(problem: Problem, coded: Coded) -> Float[Array, ""]:
        reference = _synthesise(problem.scaled, problem.rate)[None]
        heard = _decode(codec, problem, coded)[None]
        return pesq_surrogate(
            reference=reference, estimate=heard, sample_rate=SAMPLE_RATE, band="wb"
        )[0]

    return estimate


def _decode(codec: MDCTCodec, problem: Problem, coded: Coded) -> Waveform:
    """Makes the sound of whole numbers, or of relaxed ones."""
    noise = noise_signs(HOP_LENGTH, problem.scaled.shape[1], problem.first_frame)
    arguments = (problem.params, coded, problem.rate, noise, problem.valid)
    decoded = jnp.where(problem.valid, codec.networks.decode(*arguments), 0)
    return _synthesise(decoded, problem.rate)


def optimise(
    codec: MDCTCodec,
    problem: Problem,
    n_updates: int,
    target: float,
    progress: Callable[[int], None] = lambda done: None,
) -> Coded:
    """Searches for the values that sound best within so many bits.

    Args:
        codec: Networks and context models.
        problem: The segment.
        n_updates: Updates, in whole chunks of `CHUNK`.
        target: Bits of values and levels.
        progress: Called with the number of updates done.

    Returns:
        Whole numbers; what the encoder network chooses where nothing better was found.
    """
    begin, update, judge = _compiled(codec)
    state, tables = begin(problem)
    for number in range(n_updates):
        state = update(problem, state, tables, number, n_updates)
        if (number + 1) % CHUNK == 0:
            state, tables = judge(problem, state, target)
            progress(number + 1)
    return state.best.coded


@functools.lru_cache(maxsize=4)
def _compiled(codec: MDCTCodec) -> tuple[Callable[..., Any], ...]:
    """Builds the start, an update, and the trial of what it came to, each one compiled call."""
    networks, models = codec.networks, codec.models
    optimizer = optax.adam(LEARNING_RATE)

    def heard(problem: Problem, coded: Coded) -> Float[Array, ""]:
        original = _synthesise(problem.scaled, problem.rate)
        return distortion(original, _decode(codec, problem, coded))

    def try_rounded(problem: Problem, relaxed: Coded) -> tuple[Trial, Any]:
        coded = round_coded(relaxed, problem)
        tables = choose_tables(models, coded, problem.rate)
        n_bits = total_bits(models, coded, tables, problem.valid)
        return Trial(coded, n_bits, heard(problem, coded)), tables

    @jax.jit
    def begin(problem: Problem) -> tuple[State, Any]:
        relaxed = networks.encode(problem.params, problem.scaled, problem.rate, problem.valid)
        trial, tables = try_rounded(problem, relaxed)
        price = _FIRST_PRICE * price_of_rate(problem.rate)
        return State(relaxed, optimizer.init(relaxed), price, trial), tables

    def lagrangian(
        relaxed: Coded,
        problem: Problem,
        key: PRNGKey,
        temperature: Float[Array, ""],
        tables: Any,
        price: Float[Array, ""],
    ) -> Float[Array, ""]:
        keys = jax.random.split(key)
        values = jnp.where(problem.within, draw(keys[0], relaxed.values, temperature), 0)
        levels = draw(keys[1], jnp.clip(relaxed.levels, 0, N_LEVELS - 1 - _EDGE), temperature)
        coded = Coded(values, levels)
        milliseconds = jnp.sum(problem.valid[0]) * (1000 * HOP_LENGTH / SAMPLE_RATE)
        kbps = total_bits(models, coded, tables, problem.valid) / milliseconds
        return heard(problem, coded) + price * kbps

    @functools.partial(jax.jit, donate_argnums=1)
    def update(
        problem: Problem,
        state: State,
        tables: Any,
        number: Int[Array, ""],
        n_updates: Int[Array, ""],
    ) -> State:
        high, low = TEMPERATURES
        temperature = high * (low / high) ** (number / n_updates)
        key = jax.random.fold_in(jax.random.key(0), number)
        arguments = (problem, key, temperature, tables, state.price)
        gradient = jax.grad(lagrangian)(state.relaxed, *arguments)
        changes, moments = optimizer.update(gradient, state.moments)
        relaxed: Any = optax.apply_updates(state.relaxed, changes)
        return state._replace(relaxed=relaxed, moments=moments)

    @jax.jit
    def judge(problem: Problem, state: State, target: Float[Array, ""]) -> tuple[State, Any]:
        trial, tables = try_rounded(problem, state.relaxed)
        price = state.price * (trial.bits / target) ** _PRICE_RATE
        return state._replace(price=price, best=_better(state.best, trial, target)), tables

    return begin, update, judge


def _better(best: Trial, trial: Trial, target: Float[Array, ""]) -> Trial:
    """Returns the trial that sounds better, of those within the target or else nearer to it."""
    within = jnp.stack([best.bits, trial.bits]) <= target * (1 + _TOLERANCE)
    better = jnp.where(
        within[0] == within[1],
        jnp.where(within[1], trial.distortion < best.distortion, trial.bits < best.bits),
        within[1],
    )
    return jax.tree.map(lambda new, old: jnp.where(better, new, old), trial, best)


def _synthesise(scaled: Coefficients, rate: Float[Array, ""]) -> Waveform:
    """Makes the sound of a segment alone, at the loudness of the training's clips."""
    length = (scaled.shape[1] - 1) * HOP_LENGTH
    level = LOUDNESS * relative_step(rate)
    return imdct(level * scaled, MDCTConfig(HOP_LENGTH), length=length)
