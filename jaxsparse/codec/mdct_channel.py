"""A channel on the MDCT grid as its encoder sees it: segments, and what is chosen of each."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32

from jaxsparse.codec.header import CODED_RATE
from jaxsparse.codec.mdct_container import (
    FRAMES_PER_SEGMENT,
    MAX_STEP,
    STEP_ONE,
    STEPS_PER_OCTAVE,
    step_size,
)
from jaxsparse.codec.rate import choose_tables, total_bits
from jaxsparse.codec.rdo import Problem, round_coded
from jaxsparse.codec.weights import MDCTCodec
from jaxsparse.quantizer import Coded
from jaxsparse.transforms.grid import BAND_FRAMES, HOP_LENGTH, N_RATES
from jaxsparse.transforms.mdct import MDCTConfig, mdct

CONFIG = MDCTConfig(HOP_LENGTH)
# Frames of the arrays that clips of one short segment are coded in.
_SHORT_SEGMENTS = (32, 128)
# A segment's level counts as at least so much of the loudest one's: pauses get no finer step.
_QUIETEST = 0.1


class Geometry(NamedTuple):
    """How the frames of a channel are cut into arrays of one size.

    Attributes:
        n_frames: Frames of the channel.
        size: Frames of a segment's array.
        context: Frames on each side that networks see beside a segment's own.
    """

    n_frames: int
    size: int
    context: int

    @property
    def window(self) -> int:
        """Frames that networks see."""
        return self.size + 2 * self.context

    def first(self, index: int) -> int:
        """Returns the first frame that networks see of a segment."""
        return index * FRAMES_PER_SEGMENT - self.context

    def valid(self, index: int) -> Bool[np.ndarray, "1 W"]:
        """Returns which frames are the channel's."""
        frames = self.first(index) + np.arange(self.window)
        return ((frames >= 0) & (frames < self.n_frames))[None]

    def own(self, index: int) -> int:
        """Returns the frames that a segment has."""
        return min(FRAMES_PER_SEGMENT, self.n_frames - index * FRAMES_PER_SEGMENT)


def make_geometry(codec: MDCTCodec, n_frames: int) -> Geometry:
    """Says how a channel of so many frames is cut."""
    if n_frames > FRAMES_PER_SEGMENT:
        step = math.lcm(codec.networks.alignment, BAND_FRAMES)
        return Geometry(n_frames, FRAMES_PER_SEGMENT, -(-codec.networks.halo // step) * step)
    sizes = (size for size in _SHORT_SEGMENTS if n_frames <= size)
    return Geometry(n_frames, next(sizes, FRAMES_PER_SEGMENT), 0)


class Channel(NamedTuple):
    """A channel at 16 kHz.

    Attributes:
        signal: Samples.
        geometry: Its segments.
        levels: Active level of each segment, and at least `_QUIETEST` of the highest one.
        coded: Coefficients of a frame below the bandwidth.
        mask: Coefficients of all T frames that are kept; None keeps what the networks choose.
    """

    signal: Float32[np.ndarray, " N"]
    geometry: Geometry
    levels: list[float]
    coded: Bool[np.ndarray, "F 1"]
    mask: Bool[np.ndarray, "F T"] | None = None

    def coefficients(self, index: int) -> Float[Array, "F W"]:
        """Transforms what networks see of a segment."""
        start = (self.geometry.first(index) - 1) * HOP_LENGTH
        length = (self.geometry.window + 1) * HOP_LENGTH
        before = max(-start, 0)
        part = self.signal[max(start, 0) : max(start + length, 0)]
        padded = np.pad(part, (before, length - before - len(part)))
        return _transform(padded) * self.coded

    def window_mask(self, index: int) -> Bool[Array, "F W"] | None:
        """Returns the mask of what networks see of a segment."""
        if self.mask is None:
            return None
        window = np.zeros((HOP_LENGTH, self.geometry.window), bool)
        place_columns(window, self.mask, -self.geometry.first(index))
        return jnp.asarray(window)

    def step(self, index: int, rate: float) -> int:
        """Returns the code of a segment's step."""
        octaves = math.log2(max(self.levels[index], 2.0**-99)) + rate / 8 - 4
        return min(max(STEP_ONE + round(STEPS_PER_OCTAVE * octaves), 0), MAX_STEP)


@jax.jit
def _transform(padded: Float[Array, " N"]) -> Float[Array, "F W"]:
    """Transforms the frames that lie within a signal."""
    return mdct(padded, CONFIG)[:, 1:-1]


def read_channel(
    signal: Float32[np.ndarray, " N"],
    codec: MDCTCodec,
    bandwidth: float | None = None,
    mask: Bool[np.ndarray, "F T"] | None = None,
) -> Channel:
    """Cuts a channel and measures the level of each segment.

    Args:
        signal: Samples at 16 kHz.
        codec: Networks, which say how much they see.
        bandwidth: Hz; None for all.
        mask: See `Channel`.
    """
    geometry = make_geometry(codec, CONFIG.n_frames(len(signal)))
    top = CODED_RATE / 2 if bandwidth is None else bandwidth
    coded = (np.arange(HOP_LENGTH) < round(top / (CODED_RATE / 2) * HOP_LENGTH))[:, None]
    channel = Channel(signal, geometry, [], coded, mask)
    n_segments = -(-geometry.n_frames // FRAMES_PER_SEGMENT)
    for index in range(n_segments):
        own = slice(geometry.context, geometry.context + geometry.own(index))
        # Cut on the host: on the device each number of frames would compile.
        seen = np.asarray(channel.coefficients(index))
        power = np.sort(np.mean(np.square(seen[:, own]), axis=0))
        channel.levels.append(float(np.sqrt(np.mean(power[len(power) // 2 :]))))
    loudest = max(channel.levels)
    channel.levels[:] = [max(level, _QUIETEST * loudest) for level in channel.levels]
    return channel


def place_columns(target: np.ndarray, source: np.ndarray, position: int) -> None:
    """Writes those columns that lie within the target; the first one's place is `position`."""
    start, stop = max(position, 0), min(position + source.shape[1], target.shape[1])
    if start < stop:
        target[:, start:stop] = source[:, start - position : stop - position]


def whole_rate(rate: float) -> int:
    """Rounds a rate to what a file holds."""
    return min(max(round(rate), 0), N_RATES - 1)


def make_problem(codec: MDCTCodec, channel: Channel, index: int, rate: float) -> Problem:
    """Returns what networks see of a segment."""
    geometry = channel.geometry
    return Problem(
        codec.params,
        channel.coefficients(index) / np.float32(step_size(channel.step(index, rate))),
        jnp.asarray(np.broadcast_to(geometry.valid(index), (HOP_LENGTH, geometry.window))),
        jnp.asarray(channel.coded),
        jnp.float32(whole_rate(rate)),
        jnp.int32(geometry.first(index)),
        channel.window_mask(index),
    )


def segment_alone(codec: MDCTCodec, channel: Channel, index: int, rate: float) -> Problem:
    """Returns a segment without what networks see beside its own frames."""
    problem, geometry = make_problem(codec, channel, index, rate), channel.geometry
    own = slice(geometry.context, geometry.context + geometry.size)
    return problem._replace(
        scaled=problem.scaled[:, own] * problem.valid[:, own],
        valid=problem.valid[:, own],
        first_frame=problem.first_frame + geometry.context,
        mask=None if problem.mask is None else problem.mask[:, own],
    )


def choose(
    codec: MDCTCodec, channel: Channel, index: int, rate: float
) -> tuple[Coded, Float[Array, ""]]:
    """Chooses a segment's values by the encoder network; returns them and their bits."""
    problem = make_problem(codec, channel, index, rate)
    return _chooser(codec, channel.geometry.size, channel.geometry.context)(problem)


@functools.lru_cache(maxsize=16)
def _chooser(
    codec: MDCTCodec, size: int, context: int
) -> Callable[[Problem], tuple[Coded, Float[Array, ""]]]:
    @jax.jit
    def choose(problem: Problem) -> tuple[Coded, Float[Array, ""]]:
        relaxed = codec.networks.encode(problem.params, problem.scaled, problem.rate, problem.valid)
        coded = round_coded(relaxed, problem)
        rows = slice(context // BAND_FRAMES, (context + size) // BAND_FRAMES)
        own = Coded(coded.values[:, context : context + size], coded.levels[:, rows])
        valid = problem.valid[:, context : context + size]
        tables = choose_tables(codec.models, own, problem.rate)
        return own, total_bits(codec.models, own, tables, valid)

    return choose
