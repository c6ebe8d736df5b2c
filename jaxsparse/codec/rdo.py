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
"""Updates after which the bits are counted, and tables and price are renewed."""
LEARNING_RATES = (0.23, 0.015)
"""At the first and at the last update, to be divided by the root of the number of updates."""
TEMPERATURES = (0.2, 0.1)
"""Of the draws, at the first and at the last update."""
PRICE, PRICE_POWER = 6.2, 0.7
"""What a kbit/s is worth at a step of one active level, and how that grows with the step."""
TERMS = {"surrogate": 20.0, "surrogate-nb": 10.0, "stoi": 150.0, "mel": 5.0}
"""Weights of points of PESQ in wide and narrow band, of STOI, and of dB of the mel spectrum."""
MAX_DELAY = 2_560
"""Samples after which the metrics' frames, and PESQ's intervals of 20 frames, lie alike again."""
_BEST = 4.64
# In units of the training's price, the first one of a search.
_FIRST_PRICE = 0.65
# How quickly the price follows the bits.
_PRICE_RATE = 2.0
# Fractions from which on magnitudes may be rounded up so that the bits meet the target, and trials
# until they do. Where a mask leaves no choice, the target may be missed by this share.
_THRESHOLDS, _ROUNDINGS, _TOLERANCE = (0.2, 0.8), 9, 0.01
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


def delay(sound: Waveform, samples: Int[Array, ""] | int) -> Float[Array, " M"]:
    """Puts silence around a sound, so much before it and `MAX_DELAY` samples in all.

    Frames of the MDCT are as long as those of PESQ: where these always lie alike, networks and
    searches learn to put what they leave out where a metric doesn't look, which is worth 0.3 of a
    point that is lost as soon as the sound is moved.
    """
    return jnp.roll(jnp.pad(sound, (0, MAX_DELAY)), samples)


def draw_delay(key: PRNGKey) -> Int[Array, ""]:
    """Draws how much silence is before a sound."""
    return jax.random.randint(key, (), 0, MAX_DELAY)


def distortion(
    reference: Waveform, estimate: Waveform, samples: Int[Array, ""] | int = 0
) -> Float[Array, ""]:
    """Returns the weighted sum of what `measure` says of one sound behind so much silence."""
    terms = measure(delay(reference, samples)[None], delay(estimate, samples)[None])
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


def round_coded(
    relaxed: Coded, problem: Problem, threshold: Float[Array, ""] | float = 0.5
) -> Coded:
    """Rounds to what a file can hold.

    Args:
        relaxed: Values and levels.
        problem: Says which may be other than zero.
        threshold: Fraction of a magnitude from which on it is rounded up.
    """
    magnitudes = jnp.floor(jnp.abs(relaxed.values) + 1 - threshold)
    values = jnp.copysign(magnitudes, relaxed.values)
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
    search = _compiled(codec)
    state, tables, first = search.begin(problem)
    for number in range(n_updates):
        state = search.update(problem, state, tables, number, n_updates)
        if (number + 1) % CHUNK == 0:
            state, tables = search.renew(problem, state, target)
            progress(number + 1)
    last = search.judge(problem, state.relaxed, _fit(search, problem, state.relaxed, target))
    within = last.bits <= target * (1 + _TOLERANCE)
    return last.coded if within and last.distortion < first.distortion else first.coded


def _fit(search: "_Search", problem: Problem, relaxed: Coded, target: float) -> float:
    """Finds the lowest threshold of rounding with which the bits are within the target."""
    low, high = _THRESHOLDS
    for _ in range(_ROUNDINGS):
        middle = (low + high) / 2
        if search.count(problem, relaxed, middle) > target:
            low = middle
        else:
            high = middle
    return high


class _Search(NamedTuple):
    """The parts of a search, each one compiled call.

    Attributes:
        begin: Starts from what the encoder network chooses, and judges that.
        update: Follows the gradient once.
        renew: Renews price and tables.
        count: Counts the bits of rounded values.
        judge: Rounds, counts and listens.
    """

    begin: Callable[..., Any]
    update: Callable[..., Any]
    renew: Callable[..., Any]
    count: Callable[..., Any]
    judge: Callable[..., Any]


@functools.lru_cache(maxsize=4)
def _compiled(codec: MDCTCodec) -> _Search:
    networks, models = codec.networks, codec.models
    optimizer = optax.scale_by_adam()

    def heard(
        problem: Problem, coded: Coded, samples: Int[Array, ""] | int = 0
    ) -> Float[Array, ""]:
        original = _synthesise(problem.scaled, problem.rate)
        return distortion(original, _decode(codec, problem, coded), samples)

    def tables_and_bits(problem: Problem, coded: Coded) -> tuple[Any, Float[Array, ""]]:
        tables = choose_tables(models, coded, problem.rate)
        return tables, total_bits(models, coded, tables, problem.valid)

    @jax.jit
    def count(
        problem: Problem, relaxed: Coded, threshold: Float[Array, ""] | float
    ) -> Float[Array, ""]:
        return tables_and_bits(problem, round_coded(relaxed, problem, threshold))[1]

    @jax.jit
    def judge(problem: Problem, relaxed: Coded, threshold: Float[Array, ""] | float) -> Trial:
        coded = round_coded(relaxed, problem, threshold)
        return Trial(coded, tables_and_bits(problem, coded)[1], heard(problem, coded))

    @jax.jit
    def begin(problem: Problem) -> tuple[State, Any, Trial]:
        relaxed = networks.encode(problem.params, problem.scaled, problem.rate, problem.valid)
        coded = round_coded(relaxed, problem)
        tables, n_bits = tables_and_bits(problem, coded)
        price = _FIRST_PRICE * price_of_rate(problem.rate)
        state = State(relaxed, optimizer.init(relaxed), price)
        return state, tables, Trial(coded, n_bits, heard(problem, coded))

    def lagrangian(
        relaxed: Coded,
        problem: Problem,
        key: PRNGKey,
        temperature: Float[Array, ""],
        tables: Any,
        price: Float[Array, ""],
    ) -> Float[Array, ""]:
        keys = jax.random.split(key, 3)
        values = jnp.where(problem.within, draw(keys[0], relaxed.values, temperature), 0)
        levels = draw(keys[1], jnp.clip(relaxed.levels, 0, N_LEVELS - 1 - _EDGE), temperature)
        coded = Coded(values, levels)
        milliseconds = jnp.sum(problem.valid[0]) * (1000 * HOP_LENGTH / SAMPLE_RATE)
        kbps = total_bits(models, coded, tables, problem.valid) / milliseconds
        return heard(problem, coded, draw_delay(keys[2])) + price * kbps

    @functools.partial(jax.jit, donate_argnums=1)
    def update(
        problem: Problem,
        state: State,
        tables: Any,
        number: Int[Array, ""],
        n_updates: Int[Array, ""],
    ) -> State:
        share = number / n_updates
        high, low = TEMPERATURES
        temperature = high * (low / high) ** share
        first, last = LEARNING_RATES
        rate = last + (first - last) * (1 + jnp.cos(jnp.pi * share)) / 2
        key = jax.random.fold_in(jax.random.key(0), number)
        arguments = (problem, key, temperature, tables, state.price)
        gradient = jax.grad(lagrangian)(state.relaxed, *arguments)
        direction, moments = optimizer.update(gradient, state.moments)
        step = -rate / jnp.sqrt(n_updates)
        relaxed: Any = jax.tree.map(lambda x, d: x + step * d, state.relaxed, direction)
        return state._replace(relaxed=relaxed, moments=moments)

    @jax.jit
    def renew(problem: Problem, state: State, target: Float[Array, ""]) -> tuple[State, Any]:
        tables, n_bits = tables_and_bits(problem, round_coded(state.relaxed, problem))
        return state._replace(price=state.price * (n_bits / target) ** _PRICE_RATE), tables

    return _Search(begin, update, renew, count, judge)


def _synthesise(scaled: Coefficients, rate: Float[Array, ""]) -> Waveform:
    """Makes the sound of a segment alone, at the loudness of the training's clips."""
    length = (scaled.shape[1] - 1) * HOP_LENGTH
    level = LOUDNESS * relative_step(rate)
    return imdct(level * scaled, MDCTConfig(HOP_LENGTH), length=length)
