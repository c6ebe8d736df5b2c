"""How fine the step must be for a rate, a quality or a sparsity that was asked for."""

import functools
import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from jaxsparse.codec import mdct_container, rdo
from jaxsparse.codec.mdct_channel import Channel, choose, segment_alone
from jaxsparse.codec.mdct_container import MDCTHeader
from jaxsparse.codec.mdct_settings import DEFAULT_KBPS, UPDATES, MDCTSettings
from jaxsparse.codec.weights import MDCTCodec
from jaxsparse.transforms.grid import HOP_LENGTH, N_RATES
from jaxsparse.types import Progress

# Where the search for a step begins.
_FIRST_RATE = 28.0
MAX_SAMPLED = 24
"""Of a long file so many segments decide on the step."""
# So many of them tell how much better a search makes them.
_MAX_SEARCHED = 2
# Octaves of bits for one of steps, about.
_SLOPE = -0.85
# The rate is met within this share, or as near as so many trials come.
_RATE_TOLERANCE, _MAX_TRIALS = 0.005, 8
# Trials of a bisection over all steps, by quality and by share.
_QUALITY_TRIALS, _SHARE_TRIALS = 8, 9
# Seconds of a channel: shorter clips get as many bits, which hardly count.
_SHORTEST = 0.25


def choose_rate(
    codec: MDCTCodec,
    channels: Sequence[Channel],
    settings: MDCTSettings,
    header: MDCTHeader,
    progress: Progress = lambda done, total: None,
) -> float:
    """Finds the step over the active level that gives what the settings ask for.

    Args:
        codec: Networks and context models.
        channels: The clip.
        settings: What is asked for.
        header: Of the file, whose length it takes up.
        progress: Called with the number of updates done, and of all; a quality that a search shall
            reach takes some.
    """
    places = [(c, i) for c in channels for i, level in enumerate(c.levels) if level]
    if not places:
        return _FIRST_RATE
    sample = places[:: -(-len(places) // MAX_SAMPLED)]
    share = _wanted_share(settings, channels)
    if settings.pesq is not None:
        return _reach(codec, sample, settings.pesq, UPDATES[settings.effort], progress)
    if share is not None:
        return _bisect(lambda rate: _zeros(codec, sample, rate) > share, _SHARE_TRIALS)
    target_bits = _budget(settings, header) * len(sample) / len(places)

    def measure(rate: float) -> float:
        return sum(float(choose(codec, *place, rate)[1]) for place in sample)

    return _meet(measure, max(target_bits, 1.0))


def _wanted_share(settings: MDCTSettings, channels: Sequence[Channel]) -> float | None:
    """Returns the share of zeros that is asked for, by a number or by a mask."""
    if settings.sparsity is not None:
        return float(settings.sparsity)
    masks = [channel.mask for channel in channels if channel.mask is not None]
    if not masks or settings.kbps is not None:
        return None
    return 1 - float(np.mean(masks))


def _budget(settings: MDCTSettings, header: MDCTHeader) -> float:
    """Returns the bits of all segments' values and levels."""
    kbps = DEFAULT_KBPS if settings.kbps is None else settings.kbps
    seconds = max(header.n_samples / header.sample_rate, _SHORTEST * header.channels)
    # Words of 32 bits are filled by half on average.
    filling = 16 * header.channels * header.n_segments
    return 1000 * kbps * seconds - mdct_container.overhead_bits(header) - filling


def _reach(
    codec: MDCTCodec,
    sample: Sequence[tuple[Channel, int]],
    quality: float,
    n_updates: int,
    progress: Progress,
) -> float:
    """Finds the step with which segments sound as good as is asked for, after a search if any."""

    def find(wanted: float) -> float:
        return _bisect(lambda rate: _quality(codec, sample, rate) < wanted, _QUALITY_TRIALS)

    rate = find(quality)
    if not n_updates:
        return rate
    searched = sample[:: -(-len(sample) // _MAX_SEARCHED)]
    gains = []
    for number, place in enumerate(searched):
        total = len(searched) * n_updates
        report = functools.partial(_report, progress, number * n_updates, total)
        coded, n_bits = choose(codec, *place, rate)
        alone = segment_alone(codec, *place, rate)
        found = rdo.optimise(codec, alone, n_updates, float(n_bits), report)
        before, after = (rdo.estimate_pesq(codec, alone, each) for each in (coded, found))
        gains.append(float(after - before))
    return find(quality - float(np.mean(gains)))


def _report(progress: Progress, before: int, total: int, done: int) -> None:
    progress(before + done, total)


def _quality(codec: MDCTCodec, sample: Sequence[tuple[Channel, int]], rate: float) -> float:
    """Returns the mean estimate of PESQ in wide band, as the encoder network codes segments."""
    estimates = []
    for place in sample:
        coded, _ = choose(codec, *place, rate)
        estimates.append(float(rdo.estimate_pesq(codec, segment_alone(codec, *place, rate), coded)))
    return float(np.mean(estimates))


def _zeros(codec: MDCTCodec, sample: Sequence[tuple[Channel, int]], rate: float) -> float:
    """Returns the share of zeros, as the encoder network codes segments without a mask."""
    kept = total = 0
    for channel, index in sample:
        coded, _ = choose(codec, channel._replace(mask=None), index, rate)
        kept += int(jnp.count_nonzero(coded.values))
        total += channel.geometry.own(index) * HOP_LENGTH
    return 1 - kept / total


def _meet(measure: Callable[[float], float], target: float) -> float:
    """Finds the rate at which the bits are the target's, by the secant of their logarithms."""
    rate, slope = _FIRST_RATE, _SLOPE / 8
    best, previous = (math.inf, rate), None
    for _ in range(_MAX_TRIALS):
        error = math.log2(max(measure(rate), 1.0) / target)
        best = min(best, (abs(error), rate))
        if abs(error) < _RATE_TOLERANCE:
            break
        if previous is not None and abs(rate - previous[0]) > 1e-3:
            measured = (error - previous[1]) / (rate - previous[0])
            slope = min(max(measured, -0.3), -0.03)
        previous = (rate, error)
        rate = min(max(rate - error / slope, 0.0), N_RATES - 1.0)
    return best[1]


def _bisect(too_coarse: Callable[[float], bool], n_trials: int) -> float:
    """Finds the coarsest step that is not too coarse."""
    low, high = 0.0, N_RATES - 1.0
    for _ in range(n_trials):
        middle = (low + high) / 2
        low, high = (low, middle) if too_coarse(middle) else (middle, high)
    return low
