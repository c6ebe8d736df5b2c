"""Audio to the bytes of a ``.jsac`` file on the MDCT grid, and back.

Segments are coded one after the other, in arrays of a few sizes, so that what is in memory beside
the samples doesn't grow with the length and hardly anything is compiled for another length.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int

from jaxsparse import audio
from jaxsparse.codec import mdct_container, rdo
from jaxsparse.codec.header import CODED_RATE, check_clip
from jaxsparse.codec.mdct_channel import (
    CONFIG,
    Channel,
    Geometry,
    choose,
    make_geometry,
    place_columns,
    read_channel,
    segment_alone,
    whole_rate,
)
from jaxsparse.codec.mdct_container import (
    FRAMES_PER_SEGMENT,
    QUALITY_STEPS,
    SILENCE,
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
from jaxsparse.codec.mdct_settings import CODEC_NAMES, UPDATES, MDCTSettings
from jaxsparse.codec.rate_control import MAX_SAMPLED, choose_rate
from jaxsparse.codec.weights import MDCTCodec, load_codec
from jaxsparse.errors import ContainerError, JaxsparseError
from jaxsparse.mask_files import fit_mask
from jaxsparse.quantizer import Coded, noise_signs
from jaxsparse.transforms.grid import BAND_FRAMES, HOP_LENGTH, LEVEL_DB, N_BANDS, N_LEVELS
from jaxsparse.transforms.mdct import imdct
from jaxsparse.types import Progress

_DEFAULT = MDCTSettings()


def compress(
    samples: Float[np.ndarray, "N C"],
    sample_rate: int,
    settings: MDCTSettings = _DEFAULT,
    *,
    mask: Bool[np.ndarray, "*C F T"] | None = None,
    codec: MDCTCodec | None = None,
    progress: Progress | None = None,
) -> bytes:
    """Compresses audio on the MDCT grid.

    Args:
        samples: Within about -1 to 1; any number of channels, coded one by one.
        sample_rate: Hz.
        settings: Rate or quality, and effort.
        mask: Coefficients that are kept, of all channels or of each one; all others are zero.
        codec: Networks, instead of those that the settings name.
        progress: Called with the number of steps done, from 0, and of all.

    Returns:
        A ``.jsac`` file of version 3.

    Raises:
        AudioError: If there are no samples, or some that are not usable.
        JaxsparseError: If the codec is not there, the mask doesn't fit the clip, or a sparsity is
            given beside it.
    """
    check_clip(samples, sample_rate)
    if mask is not None and settings.sparsity is not None:
        raise JaxsparseError("a mask has a sparsity of its own, so none can be given")
    codec = codec or load_codec(settings.codec)
    n_samples, n_channels = samples.shape
    header = MDCTHeader(sample_rate, n_channels, n_samples, codec.name, codec.card.sha256[:16])
    if mask is not None:
        mask = fit_mask(mask, n_channels, (HOP_LENGTH, header.n_frames))
    channels = []
    for index in range(n_channels):
        signal = samples[:, index : index + 1].astype(np.float32, copy=False)
        signal = audio.resample(signal, sample_rate, CODED_RATE)[:, 0]
        own = None if mask is None else mask[index]
        channels.append(read_channel(signal, codec, settings.bandwidth, own))
    encoder = _Encoder(codec, header, UPDATES[settings.effort], progress)
    rate = choose_rate(codec, channels, settings, header, encoder.report_before)
    return encoder.run(channels, rate)


class _Encoder:
    """Codes segment after segment at one rate, and estimates how they sound."""

    def __init__(
        self, codec: MDCTCodec, header: MDCTHeader, n_updates: int, progress: Progress | None
    ) -> None:
        self.codec, self.header, self.n_updates = codec, header, n_updates
        self.progress = progress
        self.n_before = 0
        self.segments: list[CodedSegment] = []
        self.estimates: list[float] = []

    def run(self, channels: Sequence[Channel], rate: float) -> bytes:
        """Codes all, and makes the file."""
        places = [(c, i) for c in channels for i in range(self.header.n_segments)]
        # Of a long file some segments tell how it sounds.
        every = -(-len(places) // MAX_SAMPLED)
        self._report(0, 0)
        for number, (channel, index) in enumerate(places):
            self._code(channel, index, rate, number % every == 0)
            self._report(number + 1, 0)
        known = [each for each in self.estimates if math.isfinite(each)]
        quality = min(max(round(QUALITY_STEPS * float(np.mean(known))), 1), 255) if known else None
        return mdct_container.pack(replace(self.header, quality=quality), self.segments)

    def report_before(self, done: int, total: int) -> None:
        """Reports updates that are made before any segment is coded, and remembers their number."""
        self.n_before = total
        self._report(0, done - total)

    def _report(self, number: int, updates: int) -> None:
        """Reports segments that are coded, and updates of the next one."""
        if self.progress is not None:
            steps = max(self.n_updates, 1)
            n_segments = self.header.channels * self.header.n_segments
            done = self.n_before + number * steps + updates
            self.progress(done, self.n_before + n_segments * steps)

    def _code(self, channel: Channel, index: int, rate: float, estimated: bool) -> None:
        """Chooses a segment's values and codes them."""
        if not channel.levels[index]:
            self.segments.append(SILENCE)
            return
        codec, number = self.codec, len(self.segments)
        coded, n_bits = choose(codec, channel, index, rate)
        alone = segment_alone(codec, channel, index, rate)
        if self.n_updates:
            progress = functools.partial(self._report, number)
            coded = rdo.optimise(codec, alone, self.n_updates, float(n_bits), progress)
        if estimated:
            self.estimates.append(float(rdo.estimate_pesq(codec, alone, coded)))
        n_frames = channel.geometry.own(index)
        whole = QuantizedSegment(
            np.asarray(coded.values, np.int64)[:, :n_frames],
            np.asarray(coded.levels, np.int64)[:, : -(-n_frames // BAND_FRAMES)],
            whole_rate(rate),
        )
        data = encode_segment(whole, codec.models)
        step = channel.step(index, rate)
        self.segments.append(CodedSegment(step, whole.rate, data) if data else SILENCE)


def decompress(
    data: bytes,
    *,
    start: float = 0.0,
    duration: float | None = None,
    conceal: bool = False,
    on_damage: Callable[[str], object] = lambda damage: None,
    codec: MDCTCodec | None = None,
    progress: Progress | None = None,
) -> tuple[Float32[np.ndarray, "N C"], int]:
    """Decompresses a file of version 3, or a part of it.

    Args:
        data: The file.
        start: Seconds that are left out; only what is needed is decoded.
        duration: Seconds to decode at most; None decodes all to the end.
        conceal: Whether a damaged segment is silence instead of an error.
        on_damage: Called with a line on each segment that was concealed.
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
    damaged: list[int] = []
    header, segments = mdct_container.unpack(data, conceal=conceal, on_damage=damaged.append)
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
        numbers = _Numbers(codec, header, channel, own, damaged.append if conceal else None)
        windows = _windows(codec, header, own, span.segments, numbers)
        for number, (position, chunk) in enumerate(windows, 1):
            _add(signal, position - span.coded_start, chunk)
            if progress is not None:
                progress(channel * len(span.segments) + number, total)
        resampled = audio.resample(signal[:, None], CODED_RATE, header.sample_rate)[:, 0]
        samples[:, channel] = resampled[span.start - span.resampled_start :][: len(samples)]
    for number in sorted(set(damaged)):
        channel, index = divmod(number, header.n_segments)
        if index in span.segments:
            on_damage(_describe_damage(header, channel, index))
    return samples, header.sample_rate


def _describe_damage(header: MDCTHeader, channel: int, index: int) -> str:
    """Says where there is silence instead of sound."""
    seconds = FRAMES_PER_SEGMENT * HOP_LENGTH / CODED_RATE
    end = min((index + 1) * seconds, header.n_samples / header.sample_rate)
    where = f" of channel {channel + 1}" if header.channels > 1 else ""
    return f"{index * seconds:.2f} to {end:.2f} s{where} are damaged, and silence instead"


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
    numbers: Callable[[int], QuantizedSegment],
) -> Iterator[tuple[int, Float32[np.ndarray, " M"]]]:
    """Yields the sound that each wanted segment adds, and its first sample's number."""
    geometry = make_geometry(codec, header.n_frames)
    decode = _decoder(codec, geometry.size, geometry.context)
    decoded: dict[int, QuantizedSegment] = {}
    for index in wanted:
        around = range(max(index - 1, 0), min(index + 2, header.n_segments))
        decoded = {i: decoded[i] if i in decoded else numbers(i) for i in around}
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


class _Numbers(NamedTuple):
    """The numbers of a channel's segments, decoded.

    Attributes:
        codec: Gives the context models.
        header: Of the file.
        channel: Number of the channel.
        segments: Of the channel.
        on_damage: Called with the number of a segment that can't be decoded, which is silence
            then; None makes it an error.
    """

    codec: MDCTCodec
    header: MDCTHeader
    channel: int
    segments: Sequence[CodedSegment]
    on_damage: Callable[[int], object] | None

    def __call__(self, index: int) -> QuantizedSegment:
        """Decodes a segment."""
        segment, n_frames = self.segments[index], self.header.segment_frames(index)
        try:
            return decode_segment(segment.data, n_frames, segment.rate, self.codec.models)
        except ContainerError:
            if self.on_damage is None:
                raise
            self.on_damage(self.channel * self.header.n_segments + index)
            return silence(n_frames)


def _join(
    geometry: Geometry,
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
        place_columns(
            values, numbers.values * np.float32(2.0**octaves), i * FRAMES_PER_SEGMENT - first
        )
        moved = np.where(numbers.levels > 0, np.clip(numbers.levels + louder, 0, N_LEVELS), 0)
        place_columns(levels, moved, (i * FRAMES_PER_SEGMENT - first) // BAND_FRAMES)
    return Coded(values, levels)  # pyright: ignore[reportArgumentType]


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
