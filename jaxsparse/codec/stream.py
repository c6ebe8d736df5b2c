"""Audio to the bytes of a ``.jsac`` file and back.

Segments are coded one after the other, in arrays of three shapes in all, so that memory does not
grow with the length, a short clip takes a fraction of the time of a long one, and hardly anything
is compiled for another length.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int

from jaxsparse import audio
from jaxsparse.codec import container
from jaxsparse.codec.header import MAX_CHANNELS, Header
from jaxsparse.codec.segment import (
    Parts,
    Segment,
    complete_mask,
    decode_segment,
    encode_segment,
)
from jaxsparse.errors import AudioError, ContainerError, JaxsparseError
from jaxsparse.nn.network import Apply, Params
from jaxsparse.plausible import bound_levels, match_drawn
from jaxsparse.pretrained import Pretrained, load_pretrained
from jaxsparse.spectrogram import db_to_amplitude, log_power
from jaxsparse.stft import STFTConfig, overlap_add, stft, window_sum, windowed_frames
from jaxsparse.types import SAMPLE_RATE

Progress: TypeAlias = Callable[[int, int], None]
Load: TypeAlias = Callable[[str], Pretrained]
# Spectrogram in dB [F, T] and count -> mask with exactly that many ones.
FindMask: TypeAlias = Callable[[np.ndarray, int], np.ndarray]

# The sparsities that networks for random masks are trained at, and the range of the mixed one.
_RANDOM_NETWORKS = {Fraction(percent, 100): f"random-{percent}" for percent in (80, 85, 90, 95)}
_MIXED_RANGE = (Fraction(80, 100), Fraction(95, 100))
# Of the kept bins, the share whose positions are stored, and whether these are the loudest bins.
_MASKS = {"mixed": ("0.5", True), "random": ("0", False)}
_STORED_MASK = ("1", False)
# Frames of the arrays that clips of one short segment are coded in.
_SHORT_SEGMENTS = (32, 128)


@dataclass(frozen=True)
class CodecSettings:
    """What `compress` may be told.

    Attributes:
        sparsity: Share of bins that are not kept, between 0 and 1; an exact decimal.
        mask: The loudest bins and as many drawn by the seed, or all drawn.
        phase_threshold: Phases of bins more than so many dB below the maximum of their segment
            are not stored (the thesis: 60, 65, 70 or 75); None stores all.
        seed: Of the drawn positions, from 0 to 2^64 - 1.
        value_step_db: Step of the quantizer of kept values, 0.05 to 10 dB in thousandths.
        phase_bits: Bits of a stored phase, 1 to 12.
        keep_observed: Whether the decoder puts the kept values back.
        network: Name of the network; by default `choose_network` takes one.

    Raises:
        JaxsparseError: If a setting is out of its range.
    """

    sparsity: str | float = "0.95"
    mask: Literal["mixed", "random"] = "mixed"
    phase_threshold: int | None = None
    seed: int = 0
    value_step_db: float | int = 0.5
    phase_bits: int = 4
    keep_observed: bool = True
    network: str | None = None

    def __post_init__(self) -> None:
        _make_header(self, "0" * 64, 1, 1, SAMPLE_RATE)


def choose_network(settings: CodecSettings) -> tuple[str, bool]:
    """Chooses the network that a file will name.

    Returns:
        The name, and whether that network was trained for such masks: False where the nearest
        one had to do. A network that the settings name is taken as it is.
    """
    if settings.network is not None:
        return settings.network, True
    sparsity = Fraction(_decimal(settings.sparsity))
    if settings.mask == "mixed":
        return "mixed", _MIXED_RANGE[0] <= sparsity <= _MIXED_RANGE[1]
    nearest = min(_RANDOM_NETWORKS, key=lambda trained: abs(trained - sparsity))
    return _RANDOM_NETWORKS[nearest], nearest == sparsity


def _decimal(sparsity: str | float) -> str:
    """The exact decimal number, written out."""
    try:
        number = Decimal(str(sparsity))
        if 0 < number < 1 and number.adjusted() >= -18:
            return f"{number.normalize():f}"
    except InvalidOperation:
        pass
    raise JaxsparseError(f"sparsity {sparsity} is not between 0 and 1")


def _make_header(
    settings: CodecSettings,
    sha256: str,
    n_samples: int,
    channels: int,
    sample_rate: int,
    positions: bool = False,
) -> Header:
    step = settings.value_step_db
    if not 0.05 <= step <= 10 or round(step * 1000) != round(step * 1000, 6):
        raise JaxsparseError(f"value_step_db {step} is not from 0.05 to 10, in thousandths")
    config = STFTConfig()
    if settings.mask not in _MASKS:
        raise JaxsparseError(f"mask {settings.mask!r} is not one of {tuple(_MASKS)}")
    coded_share, loudest = _STORED_MASK if positions else _MASKS[settings.mask]
    try:
        return Header(
            sample_rate=sample_rate,
            channels=channels,
            n_samples=n_samples,
            sparsity=_decimal(settings.sparsity),
            coded_share=coded_share,
            loudest=loudest,
            seed=settings.seed,
            network=choose_network(settings)[0],
            network_sha256=sha256,
            value_step_mdb=round(step * 1000),
            phase_bits=settings.phase_bits,
            phase_threshold=settings.phase_threshold,
            keep_observed=settings.keep_observed,
            n_fft=config.n_fft,
            win_length=config.win_length,
            hop_length=config.hop_length,
            window=config.window,
            center=config.center,
            pad_mode=config.pad_mode,
        )
    except ContainerError as error:
        raise JaxsparseError(str(error)) from error


def compress(
    samples: Float[np.ndarray, "N C"],
    sample_rate: int,
    settings: CodecSettings = CodecSettings(),
    *,
    progress: Progress | None = None,
    load: Load = load_pretrained,
    find_mask: FindMask | None = None,
) -> bytes:
    """Compresses a clip.

    Args:
        samples: Nominally in [-1, 1].
        sample_rate: In Hz, 1,000 to 768,000; coded at 16 kHz.
        settings: What is kept, and how finely.
        progress: Called with the numbers of segments done, from 0, and in all.
        load: Gives a network by its name.
        find_mask: Chooses all positions of a segment, which the file then stores; replaces
            `CodecSettings.mask`.

    Returns:
        A ``.jsac`` file; `decompress` gives what its decoder will hear.

    Raises:
        AudioError: If there are no samples, or some that are NaN, infinite or beyond
            `audio.MAX_AMPLITUDE`, or the channels or the rate are out of range.
        JaxsparseError: If the network is not there, or the sparsity keeps not a single bin.
    """
    _check_audio(samples, sample_rate)
    name, _ = choose_network(settings)
    sha256 = _load(name, load).card["sha256"]
    n_samples, channels = samples.shape
    header = _make_header(
        settings, sha256, n_samples, channels, sample_rate, positions=find_mask is not None
    )
    if header.count(0) == 0:
        raise JaxsparseError(f"sparsity {settings.sparsity} keeps not a single bin of this clip")
    parts = []
    if progress is not None:
        progress(0, header.channels * header.n_segments)
    for channel in range(header.channels):
        signal = samples[:, channel : channel + 1].astype(np.float32, copy=False)
        signal = audio.resample(signal, sample_rate, header.coded_rate)[:, 0]
        for index, (db, phase) in enumerate(_analyse(signal, header)):
            segment = _quantize(header, channel, index, db, phase, find_mask)
            parts.append(encode_segment(header, channel, index, segment))
            if progress is not None:
                progress(len(parts), header.channels * header.n_segments)
    return container.pack(header, parts)


def decompress(
    data: bytes, *, progress: Progress | None = None, load: Load = load_pretrained
) -> tuple[Float32[np.ndarray, "N C"], int]:
    """Decompresses a file: a pure function of its bytes.

    Args:
        data: A ``.jsac`` file.
        progress: Called with the numbers of segments done, from 0, and in all.
        load: Gives a network by its name.

    Returns:
        Samples and sample rate, of the original's length, channels and rate. Machines agree to
        one step of 16 bits.

    Raises:
        ContainerError: If the bytes are not a whole, unaltered file; before memory is allocated
            where they promise more than `container.MAX_FRAMES_PER_BYTE` allows.
        JaxsparseError: If the network is not there, or has other weights than the file's.
    """
    header, parts = container.unpack(data)
    network = _load(header.network, load)
    if network.card["sha256"] != header.network_sha256:
        raise JaxsparseError(
            f"the file needs the network {header.network} with the weights "
            f"{header.network_sha256}, but the installed ones are {network.card['sha256']}"
        )
    samples = np.empty((header.n_samples, header.channels), np.float32)
    if progress is not None:
        progress(0, header.channels * header.n_segments)
    for channel in range(header.channels):
        start = channel * header.n_segments

        def report(done: int, before: int = start) -> None:
            if progress is not None:
                progress(before + done, header.channels * header.n_segments)

        own = parts[start : start + header.n_segments]
        signal = _synthesise(header, network, _windows(header, channel, own, network), report)
        signal = audio.resample(signal[:, None], header.coded_rate, header.sample_rate)
        samples[:, channel] = signal[: header.n_samples, 0]
    return samples, header.sample_rate


def _check_audio(samples: Float[np.ndarray, "N C"], sample_rate: int) -> None:
    low, high = audio.MIN_SAMPLE_RATE, audio.MAX_SAMPLE_RATE
    if not low <= sample_rate <= high:
        raise AudioError(f"a sample rate of {sample_rate} Hz is not from {low} to {high}")
    if not 1 <= samples.shape[1] <= MAX_CHANNELS:
        raise AudioError(f"{samples.shape[1]} channels are not from 1 to {MAX_CHANNELS}")
    if len(samples) == 0:
        raise AudioError("there are no samples")
    audio.check_usable(samples)


def _load(name: str, load: Load) -> Pretrained:
    try:
        return load(name)
    except JaxsparseError:
        raise
    except (ValueError, FileNotFoundError) as error:
        raise JaxsparseError(f"the network {name!r} is not installed") from error


def _frames_config(header: Header) -> STFTConfig:
    """The transform of samples that are padded already."""
    return STFTConfig(
        header.n_fft, header.win_length, header.hop_length, header.window, center=False
    )


def _segment_frames(header: Header) -> int:
    """Frames of the arrays that segments are coded in: one of few sizes, that are compiled."""
    n_frames = min(header.n_frames, header.frames_per_segment)
    sizes = (size for size in _SHORT_SEGMENTS if n_frames <= size)
    return min(next(sizes, header.frames_per_segment), header.frames_per_segment)


def _chunk_length(header: Header) -> int:
    """Samples that the frames of a segment span."""
    return (_segment_frames(header) - 1) * header.hop_length + header.n_fft


def _analyse(
    signal: Float32[np.ndarray, " N"], header: Header
) -> Iterator[tuple[Float32[np.ndarray, "F T"], Float32[np.ndarray, "F T"]]]:
    """Yields dB and phase of each segment of the centred transform of the whole signal."""
    half = header.n_fft // 2
    if len(signal) <= half:
        signal = np.pad(signal, (0, half + 1 - len(signal)))
    config = _frames_config(header)
    for index in range(header.n_segments):
        start = index * header.frames_per_segment * header.hop_length - half
        chunk = _mirrored(signal, start, _chunk_length(header), half)
        n_frames = header.segment_shape(index)[1]
        db, phase = _transform(chunk, n_frames, config)
        yield np.asarray(db)[:, :n_frames], np.asarray(phase)[:, :n_frames]


def _mirrored(
    signal: Float32[np.ndarray, " N"], start: int, length: int, margin: int
) -> Float32[np.ndarray, " M"]:
    """A part of a signal that is mirrored at its ends as far as `margin`, with zeros after that."""
    last = len(signal) - 1
    places = np.arange(start, start + length)
    within = places <= last + margin
    places = np.abs(places[within])
    part = np.zeros(length, np.float32)
    part[within] = signal[np.minimum(places, 2 * last - places)]
    return part


@functools.partial(jax.jit, static_argnames="config")
def _transform(
    chunk: Float[Array, " N"], n_frames: Int[Array, ""], config: STFTConfig
) -> tuple[Float[Array, "F T"], Float[Array, "F T"]]:
    """dB, floored 80 dB below the maximum of the first `n_frames`, and phase."""
    spectrum = stft(chunk, config)
    own = jnp.arange(spectrum.shape[1]) < n_frames
    spectrum = jnp.where(own[None, :], spectrum, 0)
    return log_power(spectrum), jnp.angle(spectrum)


def _quantize(
    header: Header,
    channel: int,
    index: int,
    db: Float32[np.ndarray, "F T"],
    phase: Float32[np.ndarray, "F T"],
    find_mask: FindMask | None,
) -> Segment:
    count = header.coded_count(index)
    if find_mask is not None:
        chosen = np.asarray(find_mask(db, count), bool)
    else:
        chosen = np.zeros(db.shape, bool)
        chosen.reshape(-1)[np.argsort(-db, axis=None, kind="stable")[:count]] = True
    mask = complete_mask(header, channel, index, chosen)
    levels = np.rint(db * (1000.0 / header.value_step_mdb)).astype(np.int64)
    stored = np.ones(db.shape, bool)
    if header.phase_threshold is not None:
        stored = db >= db.max() - header.phase_threshold
    turns = 2**header.phase_bits
    phases = np.rint(phase * (turns / (2 * math.pi))).astype(np.int64) % turns
    return Segment(chosen, mask, levels * mask, stored, phases * stored)


class _Window(NamedTuple):
    """A segment as the decoder's network sees it, with `halo` frames (W in all) around it.

    Attributes:
        spectrogram: Kept values in dB, 0 elsewhere.
        mask: Kept bins.
        valid: Frames that are the clip's.
        loud: Kept bins that no other one is louder than, without the halo.
        drawn: Kept bins that the seed drew, without the halo.
        phase: Radians, without the halo.
    """

    spectrogram: Float32[np.ndarray, "F W"]
    mask: Bool[np.ndarray, "F W"]
    valid: Bool[np.ndarray, " W"]
    loud: Bool[np.ndarray, "F T"]
    drawn: Bool[np.ndarray, "F T"]
    phase: Float32[np.ndarray, "F T"]


def _windows(
    header: Header, channel: int, parts: Sequence[Parts], network: Pretrained
) -> Iterator[_Window]:
    """Yields the segments of a channel; holds no more of them than a window reaches into."""
    halo, size = network.card["halo"], _segment_frames(header)
    decoded: dict[int, Segment] = {}
    for index in range(header.n_segments):
        first, end = index * size - halo, (index + 1) * size + halo
        needed = range(max(first // size, 0), min(-(-end // size), header.n_segments))
        decoded = {
            i: decoded.get(i) or decode_segment(header, channel, i, parts[i]) for i in needed
        }
        frames = np.arange(first, end)
        levels = np.zeros((header.n_bins, len(frames)), np.float32)
        mask = np.zeros(levels.shape, bool)
        for i, segment in decoded.items():
            inside = (frames >= i * size) & (frames < i * size + segment.mask.shape[1])
            columns = frames[inside] - i * size
            levels[:, inside] = segment.levels[:, columns]
            mask[:, inside] = segment.mask[:, columns]
        phase = np.zeros((header.n_bins, size), np.float32)
        loud = np.zeros(phase.shape, bool)
        own = decoded[index]
        phase[:, : own.phases.shape[1]] = own.phases * (2 * math.pi / 2**header.phase_bits)
        drawn = np.zeros(phase.shape, bool)
        drawn[:, : own.mask.shape[1]] = own.mask & ~own.chosen
        if header.loudest:
            loud[:, : own.chosen.shape[1]] = own.chosen
        yield _Window(
            levels * np.float32(header.value_step_mdb / 1000),
            mask,
            (frames >= 0) & (frames < header.n_frames),
            loud,
            drawn,
            phase,
        )


def _synthesise(
    header: Header,
    network: Pretrained,
    windows: Iterator[_Window],
    report: Callable[[int], None],
) -> Float32[np.ndarray, " N"]:
    """Completes and inverts the segments of a channel and adds them where they overlap."""
    config = _frames_config(header)
    # Networks see crops of 96 frames or more in training; of few frames they make too much.
    match = header.n_frames <= _SHORT_SEGMENTS[0] and header.coded_share != "1"
    run = _completion(network.apply, network.card["halo"], config, header.keep_observed, match)
    size = _segment_frames(header) * header.hop_length
    overlap = header.n_fft - header.hop_length
    signal = np.zeros(header.n_coded_samples, np.float32)
    # What the frames so far add to samples that later frames reach too: signal and window sum.
    carried = np.zeros((2, overlap), np.float32)
    position = -(header.n_fft // 2)
    for index, window in enumerate(windows):
        chunk = np.zeros((2, size + overlap), np.float32)
        with jax.default_matmul_precision("highest"):
            chunk[0] = run(network.params, *window)
        if not np.isfinite(chunk[0]).all():
            raise ContainerError("the file holds levels that no audio has")
        sums = window_sum(config, header.segment_shape(index)[1])
        chunk[1, : len(sums)] = sums
        chunk[:, :overlap] += carried
        carried = chunk[:, size:]
        _put(signal, position, chunk[:, :size])
        position += size
        report(index + 1)
    _put(signal, position, carried)
    return signal


def _put(
    signal: Float32[np.ndarray, " N"], position: int, chunk: Float32[np.ndarray, "2 M"]
) -> None:
    """Writes what of a chunk, divided by its window sum, lies within the signal."""
    chunk = chunk[:, max(-position, 0) : max(len(signal) - position, 0)]
    total, sums = chunk
    reached = sums > np.finfo(np.float32).tiny
    start = max(position, 0)
    signal[start : start + len(total)] = np.divide(
        total, sums, out=np.zeros_like(total), where=reached
    )


@functools.lru_cache(maxsize=16)
def _completion(
    apply: Apply, halo: int, config: STFTConfig, keep_observed: bool, match: bool
) -> Callable[..., Float[Array, " N"]]:
    """The device's part of decoding: a window to the samples that its segment adds.

    With `match`, what is filled in has the levels of the bins that were drawn at random.
    """

    @jax.jit
    def run(
        params: Params,
        spectrogram: Float[Array, "F W"],
        mask: Bool[Array, "F W"],
        valid: Bool[Array, " W"],
        loud: Bool[Array, "F T"],
        drawn: Bool[Array, "F T"],
        phase: Float[Array, "F T"],
    ) -> Float[Array, " N"]:
        valid = jnp.broadcast_to(valid, mask.shape)
        completed = apply(params, spectrogram, mask, valid)
        loudest = jnp.max(spectrogram, where=mask, initial=-jnp.inf)
        inner = slice(halo, halo + phase.shape[1])
        completed, kept, mask, valid = (
            array[:, inner] for array in (completed, spectrogram, mask, valid)
        )
        completed = bound_levels(completed, kept, loud, loudest)
        if match:
            completed = match_drawn(completed, kept, drawn, valid & ~mask)
            completed = bound_levels(completed, kept, loud, loudest)
        if keep_observed:
            completed = jnp.where(mask, kept, completed)
        spectrum = db_to_amplitude(completed) * jnp.exp(1j * phase)
        spectrum = jnp.where(valid, spectrum, 0)
        return overlap_add(windowed_frames(spectrum, config), config.hop_length)

    return run
