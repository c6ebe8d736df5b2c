"""Audio to the bytes of a ``.jsac`` file on the MDCT grid, and back.

Segments are coded one after the other, in arrays of a few sizes, so that what is in memory beside
the samples doesn't grow with the length and hardly anything is compiled for another length.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int

from jaxsparse import audio
from jaxsparse.codec import mdct_container, rdo
from jaxsparse.codec.header import CODED_RATE, check_clip
from jaxsparse.codec.mdct_container import (
    FRAMES_PER_SEGMENT,
    MAX_STEP,
    STEP_ONE,
    STEPS_PER_OCTAVE,
    CodedSegment,
    MDCTHeader,
    step_size,
)
from jaxsparse.codec.mdct_segment import (
    QuantizedSegment,
    decode_segment,
    encode_segment,
    is_silent,
    silence,
)
from jaxsparse.codec.rate import choose_tables, total_bits
from jaxsparse.codec.rdo import Problem, round_coded
from jaxsparse.codec.weights import CODEC_NAMES, MDCTCodec, load_codec
from jaxsparse.errors import ContainerError, JaxsparseError
from jaxsparse.quantizer import Coded, noise_signs
from jaxsparse.settings import SettingsError
from jaxsparse.transforms.grid import (
    BAND_FRAMES,
    HOP_LENGTH,
    LEVEL_DB,
    N_BANDS,
    N_LEVELS,
    N_RATES,
)
from jaxsparse.transforms.mdct import MDCTConfig, imdct, mdct

Progress: TypeAlias = Callable[[int, int], None]

DEFAULT_KBPS = 8.0
KBPS = (2.0, 64.0)
"""Rates that may be asked for."""
CONFIG = MDCTConfig(HOP_LENGTH)
# Frames of the arrays that clips of one short segment are coded in.
_SHORT_SEGMENTS = (32, 128)
# A segment's level counts as at least so much of the loudest one's: pauses get no finer step.
_QUIETEST = 0.1
# The rate is met within this share, or as near as so many trials come.
_RATE_TOLERANCE, _MAX_TRIALS = 0.005, 8
# Of a long file so many segments decide on the step.
_MAX_SAMPLED = 24
# Seconds of a channel: shorter clips get as many bits, which hardly count.
_SHORTEST = 0.25
# Where the search for a step begins, and octaves of bits for one of steps.
_FIRST_RATE, _SLOPE = 28.0, -0.85


@dataclass(frozen=True)
class MDCTSettings:
    """What `compress` may be told about the MDCT grid.

    One of `kbps`, `pesq` and `sparsity` decides how fine the step is; 8 kbit/s by default.

    Attributes:
        kbps: Bits of the file over the length of the clip, in thousands; a clip counts as a quarter
            of a second for each channel at least.
        pesq: PESQ in wide band that the decoded sound should have, by the surrogate's estimate.
        sparsity: Share of coefficients that are not kept, between 0 and 1.
        effort: How long to search for better values, 0 (not at all) to 3.
        bandwidth: Frequency in Hz above which nothing is coded; None codes up to 8 kHz.
        codec: Networks: a name of `CODEC_NAMES`, or the path of a ``.safetensors`` file.

    Raises:
        SettingsError: If a setting is out of its range, or more than one decides on the step.
    """

    kbps: float | None = None
    pesq: float | None = None
    sparsity: float | str | None = None
    effort: int = 0
    bandwidth: float | None = None
    codec: str = CODEC_NAMES[0]

    def __post_init__(self) -> None:
        given = [n for n in ("kbps", "pesq", "sparsity") if getattr(self, n) is not None]
        if len(given) > 1:
            raise SettingsError(f"{' and '.join(given)} can't be given together")
        ranges = {
            "kbps": KBPS,
            "pesq": (1.0, 4.6),
            "effort": (0, len(rdo.UPDATES) - 1),
            "bandwidth": (HOP_LENGTH, CODED_RATE / 2),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise SettingsError(f"{name} {value} is not from {low:g} to {high:g}")
        if self.sparsity is not None and not _is_share(self.sparsity):
            raise SettingsError(f"sparsity {self.sparsity} is not between 0 and 1")


def _is_share(sparsity: float | str) -> bool:
    try:
        return 0 < float(sparsity) < 1
    except ValueError:
        return False


class _Geometry(NamedTuple):
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


def _geometry(codec: MDCTCodec, n_frames: int) -> _Geometry:
    if n_frames > FRAMES_PER_SEGMENT:
        step = math.lcm(codec.networks.alignment, BAND_FRAMES)
        return _Geometry(n_frames, FRAMES_PER_SEGMENT, -(-codec.networks.halo // step) * step)
    sizes = (size for size in _SHORT_SEGMENTS if n_frames <= size)
    return _Geometry(n_frames, next(sizes, FRAMES_PER_SEGMENT), 0)


class _Channel(NamedTuple):
    """A channel at 16 kHz.

    Attributes:
        signal: Samples.
        geometry: Its segments.
        levels: Active level of each segment, and at least `_QUIETEST` of the highest one.
        coded: Coefficients of a frame below the bandwidth.
    """

    signal: Float32[np.ndarray, " N"]
    geometry: _Geometry
    levels: list[float]
    coded: Bool[np.ndarray, "F 1"]

    def coefficients(self, index: int) -> Float[Array, "F W"]:
        """Transforms what networks see of a segment."""
        start = (self.geometry.first(index) - 1) * HOP_LENGTH
        length = (self.geometry.window + 1) * HOP_LENGTH
        before = max(-start, 0)
        part = self.signal[max(start, 0) : max(start + length, 0)]
        padded = np.pad(part, (before, length - before - len(part)))
        return _transform(padded) * self.coded

    def step(self, index: int, rate: float) -> int:
        """Returns the code of a segment's step."""
        octaves = math.log2(max(self.levels[index], 2.0**-99)) + rate / 8 - 4
        return min(max(STEP_ONE + round(STEPS_PER_OCTAVE * octaves), 0), MAX_STEP)


@jax.jit
def _transform(padded: Float[Array, " N"]) -> Float[Array, "F W"]:
    """Transforms the frames that lie within a signal."""
    return mdct(padded, CONFIG)[:, 1:-1]


def _read_channel(
    signal: Float32[np.ndarray, " N"], codec: MDCTCodec, bandwidth: float | None
) -> _Channel:
    geometry = _geometry(codec, CONFIG.n_frames(len(signal)))
    top = CODED_RATE / 2 if bandwidth is None else bandwidth
    coded = (np.arange(HOP_LENGTH) < round(top / (CODED_RATE / 2) * HOP_LENGTH))[:, None]
    channel = _Channel(signal, geometry, [], coded)
    n_segments = -(-geometry.n_frames // FRAMES_PER_SEGMENT)
    for index in range(n_segments):
        own = slice(geometry.context, geometry.context + geometry.own(index))
        power = np.sort(np.mean(np.square(channel.coefficients(index)[:, own]), axis=0))
        channel.levels.append(float(np.sqrt(np.mean(power[len(power) // 2 :]))))
    loudest = max(channel.levels)
    channel.levels[:] = [max(level, _QUIETEST * loudest) for level in channel.levels]
    return channel


def compress(
    samples: Float[np.ndarray, "N C"],
    sample_rate: int,
    settings: MDCTSettings = MDCTSettings(),
    *,
    codec: MDCTCodec | None = None,
    progress: Progress | None = None,
) -> bytes:
    """Compresses audio on the MDCT grid.

    Args:
        samples: Within about -1 to 1; any number of channels, coded one by one.
        sample_rate: Hz.
        settings: Rate or quality, and effort.
        codec: Networks, instead of those that the settings name.
        progress: Called with the number of steps done, from 0, and of all.

    Returns:
        A ``.jsac`` file of version 3.

    Raises:
        AudioError: If there are no samples, or some that are not usable.
        JaxsparseError: If the codec is not there.
    """
    check_clip(samples, sample_rate)
    codec = codec or load_codec(settings.codec)
    n_samples, n_channels = samples.shape
    channels = []
    for index in range(n_channels):
        signal = samples[:, index : index + 1].astype(np.float32, copy=False)
        signal = audio.resample(signal, sample_rate, CODED_RATE)[:, 0]
        channels.append(_read_channel(signal, codec, settings.bandwidth))
    header = MDCTHeader(sample_rate, n_channels, n_samples, codec.name, codec.card.sha256[:16])
    rate = _choose_rate(codec, channels, settings, header)
    segments = []
    steps_each = max(rdo.UPDATES[settings.effort], 1)
    total = steps_each * n_channels * header.n_segments

    def report(done: int) -> None:
        if progress is not None:
            progress(len(segments) * steps_each + done, total)

    report(0)
    for channel in channels:
        for index in range(header.n_segments):
            segments.append(_code(codec, channel, index, rate, settings.effort, report))
            report(0)
    return mdct_container.pack(header, segments)


def _code(
    codec: MDCTCodec,
    channel: _Channel,
    index: int,
    rate: float,
    effort: int,
    report: Callable[[int], None],
) -> CodedSegment:
    """Chooses a segment's values and codes them."""
    coded, n_bits = _choose(codec, channel, index, rate)
    geometry = channel.geometry
    if effort and channel.levels[index]:
        alone = _alone(_problem(codec, channel, index, rate), geometry)
        target = rdo.GROWTH * float(n_bits)
        coded = rdo.optimise(codec, alone, rdo.UPDATES[effort], target, report)
    n_frames = geometry.own(index)
    whole = QuantizedSegment(
        np.asarray(coded.values, np.int64)[:, :n_frames],
        np.asarray(coded.levels, np.int64)[:, : -(-n_frames // BAND_FRAMES)],
        _whole_rate(rate),
    )
    data = encode_segment(whole, codec.models)
    if not data:
        return CodedSegment(0, 0, data)
    return CodedSegment(channel.step(index, rate), whole.rate, data)


def _whole_rate(rate: float) -> int:
    return min(max(round(rate), 0), N_RATES - 1)


def _problem(codec: MDCTCodec, channel: _Channel, index: int, rate: float) -> Problem:
    """Returns what networks see of a segment."""
    geometry = channel.geometry
    return Problem(
        codec.params,
        channel.coefficients(index) / np.float32(step_size(channel.step(index, rate))),
        jnp.asarray(np.broadcast_to(geometry.valid(index), (HOP_LENGTH, geometry.window))),
        jnp.asarray(channel.coded),
        jnp.float32(_whole_rate(rate)),
        jnp.int32(geometry.first(index)),
    )


def _alone(problem: Problem, geometry: _Geometry) -> Problem:
    """Takes away what networks see beside a segment's own frames."""
    own = slice(geometry.context, geometry.context + geometry.size)
    return problem._replace(
        scaled=problem.scaled[:, own] * problem.valid[:, own],
        valid=problem.valid[:, own],
        first_frame=problem.first_frame + geometry.context,
    )


def _choose(
    codec: MDCTCodec, channel: _Channel, index: int, rate: float
) -> tuple[Coded, Float[Array, ""]]:
    """Chooses a segment's values by the encoder network; returns them and their bits."""
    problem = _problem(codec, channel, index, rate)
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


def _choose_rate(
    codec: MDCTCodec, channels: Sequence[_Channel], settings: MDCTSettings, header: MDCTHeader
) -> float:
    """Finds the step over the active level that gives what the settings ask for."""
    places = [(c, i) for c in channels for i in range(header.n_segments) if c.levels[i]]
    if not places:
        return _FIRST_RATE
    # Of a long file some segments tell enough.
    sample = places[:: -(-len(places) // _MAX_SAMPLED)]
    if settings.pesq is not None:
        target = settings.pesq

        def quality(rate: float) -> float:
            return float(np.mean([_estimate(codec, *place, rate) for place in sample]))

        return _bisect(lambda rate: quality(rate) < target, 8)
    if settings.sparsity is not None:
        share = float(settings.sparsity)

        def zeros(rate: float) -> float:
            chosen = [_choose(codec, *place, rate)[0].values for place in sample]
            valid = [c.geometry.own(i) * HOP_LENGTH for c, i in sample]
            return 1 - sum(int(jnp.count_nonzero(v)) for v in chosen) / sum(valid)

        return _bisect(lambda rate: zeros(rate) > share, 9)
    kbps = DEFAULT_KBPS if settings.kbps is None else settings.kbps
    seconds = max(header.n_samples / header.sample_rate, _SHORTEST * header.channels)
    budget = 1000 * kbps * seconds
    # Words of 32 bits are filled by half on average.
    budget -= mdct_container.overhead_bits(header) + 16 * header.channels * header.n_segments
    target_bits = budget * len(sample) / len(places)
    if settings.effort:
        target_bits /= rdo.GROWTH

    def measure(rate: float) -> float:
        return sum(float(_choose(codec, *place, rate)[1]) for place in sample)

    return _meet(measure, max(target_bits, 1.0))


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
    low, high = 0.0, N_RATES - 1.0
    for _ in range(n_trials):
        middle = (low + high) / 2
        low, high = (low, middle) if too_coarse(middle) else (middle, high)
    return low


def _estimate(codec: MDCTCodec, channel: _Channel, index: int, rate: float) -> float:
    """Returns the surrogate of PESQ in wide band of a segment alone, as the encoder codes it."""
    coded, _ = _choose(codec, channel, index, rate)
    alone = _alone(_problem(codec, channel, index, rate), channel.geometry)
    return float(rdo.estimate_pesq(codec, alone, coded))


def decompress(
    data: bytes,
    *,
    start: float = 0.0,
    duration: float | None = None,
    conceal: bool = False,
    codec: MDCTCodec | None = None,
    progress: Progress | None = None,
) -> tuple[Float32[np.ndarray, "N C"], int]:
    """Decompresses a file of version 3, or a part of it.

    Args:
        data: The file.
        start: Seconds that are left out; only what is needed is decoded.
        duration: Seconds to decode at most; None decodes all to the end.
        conceal: Whether a damaged segment is silence instead of an error.
        codec: Networks of the file; by default those of its name that are installed.
        progress: Called with the number of segments done, from 0, and in all.

    Returns:
        Samples and sample rate, of the original's length, channels and rate. Machines agree to
        one step of 16 bits.

    Raises:
        ContainerError: If the bytes are not a whole, unaltered file.
        JaxsparseError: If the codec is not there, or has other weights than the file's; or if
            nothing lies within `start` and `duration`.
    """
    header, segments = mdct_container.unpack(data, conceal=conceal)
    codec = codec or _installed(header.codec)
    if codec.card.sha256[:16] != header.codec_sha256:
        raise JaxsparseError(
            f"the file needs the codec {header.codec} with the weights {header.codec_sha256}..., "
            f"not {codec.card.sha256[:16]}..."
        )
    span = _Span.of(header, start, duration)
    samples = np.empty((span.stop - span.start, header.channels), np.float32)
    total = header.channels * len(span.segments)
    if progress is not None:
        progress(0, total)
    for channel in range(header.channels):
        own = segments[channel * header.n_segments :][: header.n_segments]
        signal = np.zeros(span.coded_stop - span.coded_start, np.float32)
        windows = _windows(codec, header, own, span.segments, conceal)
        for number, (position, chunk) in enumerate(windows, 1):
            _add(signal, position - span.coded_start, chunk)
            if progress is not None:
                progress(channel * len(span.segments) + number, total)
        resampled = audio.resample(signal[:, None], CODED_RATE, header.sample_rate)[:, 0]
        samples[:, channel] = resampled[span.start - span.resampled_start :][: len(samples)]
    return samples, header.sample_rate


def span_of(n_samples: int, sample_rate: int, start: float, duration: float | None) -> slice:
    """Returns the samples within `start` and `duration`, one at least.

    Raises:
        JaxsparseError: If there are none.
    """
    if not 0 <= start < math.inf or (duration is not None and not 0 < duration < math.inf):
        raise JaxsparseError(f"start {start} or duration {duration} is not a time in seconds")
    first, last = round(Fraction(start) * sample_rate), n_samples
    if duration is not None:
        last = min(last, first + max(round(Fraction(duration) * sample_rate), 1))
    if first >= n_samples:
        raise JaxsparseError(f"the clip ends after {n_samples / sample_rate:.2f} s")
    return slice(first, last)


class _Span(NamedTuple):
    """A part of a clip, in samples of the original and at 16 kHz.

    Attributes:
        start: First sample.
        stop: The one behind the last.
        coded_start: First sample at 16 kHz that is decoded.
        coded_stop: The one behind the last.
        resampled_start: Where the first decoded sample lies in the original.
        segments: That are needed.
    """

    start: int
    stop: int
    coded_start: int
    coded_stop: int
    resampled_start: int
    segments: range

    @classmethod
    def of(cls, header: MDCTHeader, start: float, duration: float | None) -> "_Span":
        """Finds what has to be decoded; both clocks tick together at its first sample."""
        rate = header.sample_rate
        wanted = span_of(header.n_samples, rate, start, duration)
        first, last = wanted.start, wanted.stop
        beat = math.gcd(rate, CODED_RATE)
        coded_beat, beat = CODED_RATE // beat, rate // beat
        beats = max(first - rate, 0) // beat
        coded_stop = min(-(-(last + rate) * CODED_RATE // rate), header.n_coded_samples)
        coded_start = beats * coded_beat
        begin = coded_start // HOP_LENGTH // FRAMES_PER_SEGMENT
        end = (coded_stop - 1) // HOP_LENGTH + 1
        segments = range(begin, min(end // FRAMES_PER_SEGMENT + 1, header.n_segments))
        return cls(first, last, coded_start, coded_stop, beats * beat, segments)


def _installed(name: str) -> MDCTCodec:
    """The codec that a file names; never a path."""
    if name not in CODEC_NAMES:
        raise JaxsparseError(f"the codec {name!r} is not installed: give its .safetensors file")
    return load_codec(name)


def _windows(
    codec: MDCTCodec,
    header: MDCTHeader,
    segments: Sequence[CodedSegment],
    wanted: range,
    conceal: bool,
) -> Iterator[tuple[int, Float32[np.ndarray, " M"]]]:
    """Yields the sound that each wanted segment adds, and its first sample's number."""
    geometry = _geometry(codec, header.n_frames)
    decode = _decoder(codec, geometry.size, geometry.context)
    decoded: dict[int, QuantizedSegment] = {}
    for index in wanted:
        around = range(max(index - 1, 0), min(index + 2, header.n_segments))
        decoded = {
            i: decoded[i] if i in decoded else _decode(codec, header, segments, i, conceal)
            for i in around
        }
        own = segments[index]
        position = (index * FRAMES_PER_SEGMENT - 1) * HOP_LENGTH
        if is_silent(decoded[index]):
            yield position, np.zeros((geometry.size + 1) * HOP_LENGTH, np.float32)
            continue
        coded = _join(geometry, index, decoded, segments)
        valid = np.broadcast_to(geometry.valid(index), (HOP_LENGTH, geometry.window))
        rate = np.float32(own.rate)
        first = np.int32(geometry.first(index))
        with jax.default_matmul_precision("highest"):
            step = np.float32(step_size(own.step))
            chunk = decode(codec.params, coded, rate, valid, first, step)
        yield position, np.asarray(chunk)


def _decode(
    codec: MDCTCodec,
    header: MDCTHeader,
    segments: Sequence[CodedSegment],
    index: int,
    conceal: bool,
) -> QuantizedSegment:
    """Decodes a segment's numbers."""
    segment, n_frames = segments[index], header.segment_frames(index)
    try:
        return decode_segment(segment.data, n_frames, segment.rate, codec.models)
    except ContainerError:
        if not conceal:
            raise
        return silence(n_frames)


def _join(
    geometry: _Geometry,
    index: int,
    decoded: dict[int, QuantizedSegment],
    segments: Sequence[CodedSegment],
) -> Coded:
    """Puts what networks see of a segment together, in steps of that segment."""
    first = geometry.first(index)
    values = np.zeros((HOP_LENGTH, geometry.window), np.float32)
    levels = np.zeros((N_BANDS, -(-geometry.window // BAND_FRAMES)), np.float32)
    own = segments[index]
    for i, numbers in decoded.items():
        other = segments[i]
        if is_silent(numbers):
            continue
        # At other steps, in units of this one's.
        octaves = (other.step - own.step) / STEPS_PER_OCTAVE
        louder = 20 * math.log10(2) * octaves / LEVEL_DB
        _place(values, numbers.values * np.float32(2.0**octaves), i * FRAMES_PER_SEGMENT - first)
        moved = np.where(numbers.levels > 0, np.clip(numbers.levels + louder, 0, N_LEVELS), 0)
        _place(levels, moved, (i * FRAMES_PER_SEGMENT - first) // BAND_FRAMES)
    return Coded(values, levels)  # pyright: ignore[reportArgumentType]


def _place(target: np.ndarray, source: np.ndarray, position: int) -> None:
    """Writes what of some columns lies within the target."""
    start, stop = max(position, 0), min(position + source.shape[1], target.shape[1])
    if start < stop:
        target[:, start:stop] = source[:, start - position : stop - position]


@functools.lru_cache(maxsize=16)
def _decoder(codec: MDCTCodec, size: int, context: int) -> Callable[..., Float[Array, " M"]]:
    """Builds the device's part of decoding: numbers to the samples that a segment adds."""

    @jax.jit
    def decode(
        params: Any,
        coded: Coded,
        rate: Float[Array, ""],
        valid: Bool[Array, "F W"],
        first: Int[Array, ""],
        step: Float[Array, ""],
    ) -> Float[Array, " M"]:
        noise = noise_signs(HOP_LENGTH, valid.shape[1], first)
        scaled = codec.networks.decode(params, coded, rate, noise, valid)
        own = slice(context, context + size)
        scaled = jnp.where(valid[:, own], scaled[:, own], 0) * step
        # A silent frame on each side: what the first and the last one add is whole.
        return imdct(jnp.pad(scaled, ((0, 0), (1, 1))), CONFIG, length=(size + 1) * HOP_LENGTH)

    return decode


def _add(
    signal: Float32[np.ndarray, " N"], position: int, chunk: Float32[np.ndarray, " M"]
) -> None:
    """Adds what of a chunk lies within the signal."""
    start, stop = max(position, 0), min(position + len(chunk), len(signal))
    if start < stop:
        signal[start:stop] += chunk[start - position : stop - position]
