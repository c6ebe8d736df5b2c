"""Audio to the bytes of a ``.jsac`` file and back.

Segments are coded one after the other, in arrays of three shapes in all, so that memory does not
grow with the length, a short clip takes a fraction of the time of a long one, and hardly anything
is compiled for another length.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int

from jaxsparse import audio, searched
from jaxsparse.codec import container
from jaxsparse.codec.header import Header, check_clip
from jaxsparse.codec.segment import (
    Parts,
    Segment,
    complete_mask,
    decode_segment,
    encode_segment,
)
from jaxsparse.contracts import Decoder, Policy
from jaxsparse.decoders import DECODERS, name_of
from jaxsparse.errors import ContainerError, JaxsparseError
from jaxsparse.mask_files import fit_mask
from jaxsparse.plausible import bound_levels, match_drawn
from jaxsparse.policies import POLICIES, ScoredPolicy, level
from jaxsparse.pretrained import NAMES, NO_WEIGHTS, Pretrained, choose_pretrained, load_decoder
from jaxsparse.reconstruct import put_back, then, to_spectrum
from jaxsparse.spectrogram import log_power, phase_mask
from jaxsparse.transforms.stft import STFTConfig, overlap_add, stft, window_sum, windowed_frames
from jaxsparse.types import SAMPLE_RATE, HardMask, PRNGKey, Progress, Spectrogram

# Frames on each side of a segment for decoders that see everything.
_CONTEXT = 64
# Frames of the arrays that clips of one short segment are coded in.
_SHORT_SEGMENTS = (32, 128)


@dataclass(frozen=True)
class STFTSettings:
    """What `compress` may be told.

    Attributes:
        sparsity: Share of bins that are not kept, between 0 and 1; an exact decimal.
        mask: Policy that chooses the bins, a name of `jaxsparse.policies.POLICIES`. What it draws
            is drawn by the seed and costs no bits, unless another mask is searched for.
        phase_threshold: Phases of bins more than so many dB below the maximum of their segment
            are not stored (the thesis: 60, 65, 70 or 75), which are hardly heard; None stores all.
        seed: Of the drawn positions, from 0 to 2^64 - 1.
        value_step_db: Step of the quantizer of kept values, 0.05 to 10 dB in thousandths.
        phase_bits: Bits of a stored phase, 1 to 12.
        keep_observed: Whether the decoder puts the kept values back.
        decoder: What fills in the rest: a name or a path, as `load_decoder` takes it; by default
            the network that `choose_decoder` takes.
        search: What is searched for after the policy's mask, names of
            `jaxsparse.searched.SEARCHED`: a better one ("relaxed" or "swaps"), better "values" of
            what it keeps.
        budget: Seconds of all that for the whole clip, without compilation, in equal parts: what is
            found depends on the machine. Each number of frames in a segment is compiled for.

    Raises:
        JaxsparseError: If a setting is out of its range.
    """

    sparsity: str | float = "0.95"
    mask: str = "learned"
    phase_threshold: int | None = 75
    seed: int = 0
    value_step_db: float | int = 0.5
    phase_bits: int = 4
    keep_observed: bool = True
    decoder: str | None = None
    search: tuple[str, ...] = ()
    budget: float = 60.0

    def __post_init__(self) -> None:
        for search in self.search:
            searched.check(search, self.budget)
        _make_header(self, "0" * 64, 1, 1, SAMPLE_RATE)


def choose_decoder(settings: STFTSettings) -> tuple[str, bool]:
    """Chooses what fills in the rest.

    Returns:
        Its name or path, and whether it was trained for such masks: False where the nearest
        network had to do. What the settings name is taken as it is.
    """
    if settings.decoder is not None:
        return settings.decoder, True
    return choose_pretrained(settings.mask, _decimal(settings.sparsity))


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
    settings: STFTSettings,
    sha256: str,
    n_samples: int,
    channels: int,
    sample_rate: int,
) -> Header:
    if settings.mask not in POLICIES:
        known = ", ".join(POLICIES)
        raise JaxsparseError(f"no policy is named {settings.mask!r}; there are {known}")
    step = settings.value_step_db
    if not 0.05 <= step <= 10 or round(step * 1000) != round(step * 1000, 6):
        raise JaxsparseError(f"value_step_db {step} is not from 0.05 to 10, in thousandths")
    config = STFTConfig()
    coded_share, loudest = _coding(POLICIES[settings.mask])
    try:
        return Header(
            sample_rate=sample_rate,
            channels=channels,
            n_samples=n_samples,
            sparsity=_decimal(settings.sparsity),
            coded_share=coded_share,
            loudest=loudest,
            seed=settings.seed,
            network=Path(choose_decoder(settings)[0]).name.removesuffix(".safetensors"),
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


def _coding(policy: Policy) -> tuple[str, bool]:
    """Of the kept bins, the share whose positions are stored, and whether these are the loudest."""
    if not isinstance(policy, ScoredPolicy):
        return "1", False
    share = f"{float(policy.share):.3f}".rstrip("0").rstrip(".")
    return share, policy.share > 0 and policy.score is level


def compress(
    samples: Float[np.ndarray, "N C"],
    sample_rate: int,
    settings: STFTSettings = STFTSettings(),
    *,
    mask: Bool[np.ndarray, "*C F T"] | None = None,
    progress: Progress | None = None,
    decoder: Pretrained | None = None,
) -> bytes:
    """Compresses a clip.

    Args:
        samples: Nominally in [-1, 1].
        sample_rate: In Hz, 1,000 to 768,000; coded at 16 kHz.
        settings: What is kept, and how finely.
        mask: Bins that are kept, of all channels or of each one, instead of those that the
            settings' policy chooses; it must keep the same share of every segment.
        progress: Called with the numbers of segments done, from 0, and in all.
        decoder: What fills in the rest, where it is at hand: that which the settings name.

    Returns:
        A ``.jsac`` file; `decompress` gives what its decoder will hear.

    Raises:
        AudioError: If there are no samples, or some that are NaN, infinite or beyond
            `audio.MAX_AMPLITUDE`, or the channels or the rate are out of range.
        JaxsparseError: If the network is not there, the sparsity keeps not a single bin, or the
            mask doesn't fit the clip.
    """
    check_clip(samples, sample_rate)
    n_samples, channels = samples.shape
    if mask is not None:
        shape = _make_header(settings, NO_WEIGHTS, n_samples, channels, sample_rate)
        mask = fit_mask(mask, channels, (shape.n_bins, shape.n_frames))
        settings = replace(settings, sparsity=_sparsity_of(mask, shape))
    decoder = decoder or load_decoder(choose_decoder(settings)[0])
    if decoder.card.sha256 == NO_WEIGHTS:
        # Only its name tells it.
        settings = replace(settings, decoder=name_of(decoder.decoder.config))
    sha256 = decoder.card.sha256
    header = _make_header(settings, sha256, n_samples, channels, sample_rate)
    for_mask = [name for name in settings.search if name in searched.SEARCHES]
    if mask is not None or for_mask:
        header = replace(header, coded_share="1", loudest=False)
    if header.count(0) == 0:
        raise JaxsparseError(f"sparsity {settings.sparsity} keeps not a single bin of this clip")
    budget = settings.budget / (max(len(settings.search), 1) * header.channels * header.n_segments)
    parts = []
    if progress is not None:
        progress(0, header.channels * header.n_segments)
    for channel in range(header.channels):
        signal = samples[:, channel : channel + 1].astype(np.float32, copy=False)
        signal = audio.resample(signal, sample_rate, header.coded_rate)[:, 0]
        for index, (db, phase) in enumerate(_analyse(signal, header)):
            policy = POLICIES[settings.mask]
            if mask is not None:
                policy = _given(header, mask[channel], index)
            for search in for_mask:
                policy = _searching(settings, search, policy, decoder, phase, budget)
            segment = _quantize(header, channel, index, db, phase, policy)
            if "values" in settings.search and segment.mask.any():
                segment = _refined(settings, header, segment, db, phase, decoder, budget)
            parts.append(encode_segment(header, channel, index, segment))
            if progress is not None:
                progress(len(parts), header.channels * header.n_segments)
    return container.pack(header, parts)


def _sparsity_of(mask: Bool[np.ndarray, "C F T"], header: Header) -> str:
    """Finds the shortest sparsity that gives the counts of a mask.

    Raises:
        JaxsparseError: If there is none, since a file has one for all segments.
    """
    least, limit = Fraction(0), Fraction(1)
    for index in range(header.n_segments):
        parts = _segment_of(header, mask, index)
        size = parts[0].size
        for count in np.count_nonzero(parts, axis=(1, 2)).tolist():
            least, limit = max(least, Fraction(count, size)), min(limit, Fraction(count + 1, size))
    for digits in range(1, 19):
        share = Fraction(math.ceil(least * 10**digits), 10**digits)
        if 0 < share < min(limit, 1):
            return _decimal(str(Decimal(10**digits - int(share * 10**digits)).scaleb(-digits)))
    raise JaxsparseError(
        "the mask keeps all bins, or not the same share of every segment of "
        f"{header.frames_per_segment} frames"
    )


def _segment_of(
    header: Header, mask: Bool[np.ndarray, "*C F T"], index: int
) -> Bool[np.ndarray, "*C F S"]:
    start = index * header.frames_per_segment
    return mask[..., start : start + header.frames_per_segment]


def _given(header: Header, mask: Bool[np.ndarray, "F T"], index: int) -> Policy:
    """Makes a policy of a segment's mask."""
    own = _segment_of(header, mask, index)
    return lambda key, spectrogram, count: jnp.asarray(own)


def _searching(
    settings: STFTSettings,
    search: str,
    first: Policy,
    network: Pretrained,
    phase: Float32[np.ndarray, "F T"],
    seconds: float,
) -> Policy:
    """Makes a policy that begins with another one's mask and searches for a better one."""

    def policy(key: PRNGKey, spectrogram: Spectrogram, count: int | Int[Array, ""]) -> HardMask:
        return searched.improve(
            key,
            first(key, spectrogram, count),
            spectrogram,
            jnp.asarray(phase),
            network,
            search=search,
            seconds=seconds,
            keep_observed=settings.keep_observed,
        )

    return policy


def _refined(
    settings: STFTSettings,
    header: Header,
    segment: Segment,
    db: Float32[np.ndarray, "F T"],
    phase: Float32[np.ndarray, "F T"],
    network: Pretrained,
    seconds: float,
) -> Segment:
    """Gives a segment other levels of what it keeps."""
    step_db = header.value_step_mdb / 1000
    values = searched.refine(
        jnp.asarray(segment.mask),
        jnp.asarray(db),
        jnp.asarray(phase),
        network,
        step_db=step_db,
        seconds=seconds,
        keep_observed=settings.keep_observed,
    )
    levels = np.rint(np.asarray(values) / step_db).astype(np.int64)
    # Within what the header allows: the range of levels, and drawn bins below the loudest ones.
    kept = segment.levels[segment.mask]
    levels = np.clip(levels, kept.min(), kept.max())
    if header.loudest and segment.chosen.any():
        threshold = segment.levels[segment.chosen].min()
        levels = np.where(
            segment.chosen, np.maximum(levels, threshold), np.minimum(levels, threshold)
        )
    return segment._replace(levels=levels * segment.mask)


def decompress(
    data: bytes, *, progress: Progress | None = None, decoder: Pretrained | None = None
) -> tuple[Float32[np.ndarray, "N C"], int]:
    """Decompresses a file: a pure function of its bytes.

    Args:
        data: A ``.jsac`` file.
        progress: Called with the numbers of segments done, from 0, and in all.
        decoder: That of the file; by default the one of its name that is installed.

    Returns:
        Samples and sample rate, of the original's length, channels and rate. Machines agree to
        one step of 16 bits.

    Raises:
        ContainerError: If the bytes are not a whole, unaltered file; before memory is allocated
            where they promise more than `container.MAX_FRAMES_PER_BYTE` allows.
        JaxsparseError: If the network is not there, or has other weights than the file's.
    """
    header, parts = container.unpack(data)
    network = decoder or _installed(header.network)
    if network.card.sha256 != header.network_sha256:
        raise JaxsparseError(
            f"the file needs the network {header.network} with the weights "
            f"{header.network_sha256}, not {network.card.sha256}"
        )
    if header.network_sha256 == NO_WEIGHTS and name_of(network.decoder.config) != header.network:
        raise JaxsparseError(
            f"the file needs the decoder {header.network}, not {name_of(network.decoder.config)}"
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


def _installed(name: str) -> Pretrained:
    """The decoder that a file names; never a path."""
    if name not in NAMES and name not in DECODERS:
        raise JaxsparseError(f"the decoder {name!r} is not installed: give its .safetensors file")
    return load_decoder(name)


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
    policy: Policy,
) -> Segment:
    n_frames = db.shape[1]
    # Of one size, that is compiled.
    padding = ((0, 0), (0, _segment_frames(header) - n_frames))
    padded = np.pad(db, padding, constant_values=-np.inf)
    threshold = None if header.phase_threshold is None else float(header.phase_threshold)
    stored = np.asarray(_phase_mask(padded, threshold))[:, :n_frames]
    if isinstance(policy, ScoredPolicy):
        chosen = np.asarray(_choose(policy, padded, header.coded_count(index)))[:, :n_frames]
    else:
        key = jax.random.key(header.seed % 2**32)
        for place in (channel, index):
            key = jax.random.fold_in(key, place)
        count = header.coded_count(index)
        given = padded if getattr(policy, "takes_padding", False) else db
        chosen = np.asarray(policy(key, jnp.asarray(given), count))[:, :n_frames]
        if chosen.dtype != bool or np.count_nonzero(chosen) != count:
            raise JaxsparseError(f"the policy's mask doesn't keep exactly {count} bins")
    mask = complete_mask(header, channel, index, chosen)
    levels = np.rint(db * (1000.0 / header.value_step_mdb)).astype(np.int64)
    turns = 2**header.phase_bits
    phases = np.rint(phase * (turns / (2 * math.pi))).astype(np.int64) % turns
    return Segment(chosen, mask, levels * mask, stored, phases * stored)


_phase_mask = jax.jit(phase_mask, static_argnums=1)


@functools.partial(jax.jit, static_argnums=0)
def _choose(
    policy: ScoredPolicy, db: Float[Array, "F T"], n_chosen: Int[Array, ""]
) -> Bool[Array, "F T"]:
    return policy.choose(db, n_chosen)


class _Window(NamedTuple):
    """A segment (T frames) as its decoder sees it, with the frames around it (W in all).

    Attributes:
        spectrogram: Kept values in dB, 0 elsewhere.
        mask: Kept bins.
        valid: Frames that are the clip's.
        loud: Of the segment, kept bins that no other one is louder than.
        drawn: Of the segment, kept bins that the seed drew.
        phase: Radians.
        start: First frame of the segment in the window.
    """

    spectrogram: Float32[np.ndarray, "F W"]
    mask: Bool[np.ndarray, "F W"]
    valid: Bool[np.ndarray, "F W"]
    loud: Bool[np.ndarray, "F T"]
    drawn: Bool[np.ndarray, "F T"]
    phase: Float32[np.ndarray, "F T"]
    start: int


def _windows(
    header: Header, channel: int, parts: Sequence[Parts], network: Pretrained
) -> Iterator[_Window]:
    """Yields the segments of a channel; holds no more of them than a window reaches into."""
    size = _segment_frames(header)
    decoded: dict[int, Segment] = {}
    for index in range(header.n_segments):
        first, end = _window_frames(network.decoder, header, index)
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
            np.broadcast_to((frames >= 0) & (frames < header.n_frames), mask.shape),
            loud,
            drawn,
            phase,
            index * size - first,
        )


def _window_frames(decoder: Decoder, header: Header, index: int) -> tuple[int, int]:
    """Returns the first frame that a segment's decoder is shown, and that behind the last one.

    All windows of a clip are of one size, which is compiled, and start at the decoder's alignment.
    """
    size = _segment_frames(header)
    if header.n_segments == 1:
        return 0, size
    halo = _CONTEXT if decoder.halo is None else decoder.halo
    first = (index * size - halo) // decoder.alignment * decoder.alignment
    return first, first + size + 2 * halo + decoder.alignment - 1


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
    run = _completion(network.decoder, config, header.keep_observed, match)
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
    decoder: Decoder, config: STFTConfig, keep_observed: bool, match: bool
) -> Callable[..., Float[Array, " N"]]:
    """The device's part of decoding: a window to the samples that its segment adds.

    With `match`, what is filled in has the levels of the bins that were drawn at random.
    """

    def finish(
        completed: Float[Array, "F W"],
        spectrogram: Float[Array, "F W"],
        mask: Bool[Array, "F W"],
        valid: Bool[Array, "F W"],
        loud: Bool[Array, "F T"],
        drawn: Bool[Array, "F T"],
        phase: Float[Array, "F T"],
        start: Int[Array, ""],
    ) -> Float[Array, " N"]:
        loudest = jnp.max(spectrogram, where=mask, initial=-jnp.inf)
        completed, kept, mask, valid = (
            jax.lax.dynamic_slice_in_dim(array, start, phase.shape[1], 1)
            for array in (completed, spectrogram, mask, valid)
        )
        completed = bound_levels(completed, kept, loud, loudest)
        if match:
            completed = match_drawn(completed, kept, drawn, valid & ~mask)
            completed = bound_levels(completed, kept, loud, loudest)
        if keep_observed:
            completed = put_back(completed, kept, mask)
        spectrum = jnp.where(valid, to_spectrum(completed, phase), 0)
        return overlap_add(windowed_frames(spectrum, config), config.hop_length)

    return then(decoder, finish)
