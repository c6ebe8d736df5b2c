"""Audio files in and out, the sample rate and the channels.

Arrays are float32 in [-1, 1), shaped [N, C]: samples by channels.
"""

import contextlib
import itertools
import os
import stat
import struct
import tempfile
from collections.abc import Iterator
from io import BufferedIOBase
from typing import TypeAlias

import numpy as np
import soundfile
import soxr
from jaxtyping import Float, Float32

from jaxsparse.errors import AudioError, JaxsparseError
from jaxsparse.files import atomic_write_parts

# A file's name, or a file that is open; what a pipe brings goes to a temporary file first.
Source: TypeAlias = str | os.PathLike[str] | BufferedIOBase

MIN_SAMPLE_RATE = 1_000
MAX_SAMPLE_RATE = 768_000
# Float files may hold samples beyond 1, scaled like 32-bit integers at the most; more overflows.
MAX_AMPLITUDE = 2.0**31
_BLOCK_SAMPLES = 1 << 20
_PCM_SCALE = 1 << 15
# A 16-bit WAV file ends at 4 GiB.
MAX_WAV_SAMPLES = (1 << 31) - 512
# A pipe need not end: no more is read from it than a WAV file holds.
MAX_PIPE_BYTES = 1 << 32
_PIPE_BLOCK_BYTES = 1 << 20
# Writers to a pipe can't know the length; they leave 0 or a number near 2^31 or 2^32.
_UNKNOWN_SIZE = 0x7FFFF000
_MAX_CHUNKS = 1000
_MAX_OGG_PAGE_BYTES = 65_307
# libsndfile's "no such file" and "internal error": what it says of some damaged headers.
_MISLEADING_CODES = (7, 29)


@contextlib.contextmanager
def open_audio(source: Source) -> Iterator[soundfile.SoundFile]:
    """Opens a file for reading and checks what can be known from its headers.

    Args:
      source: a file in any format that libsndfile recognises; its name doesn't matter.

    Yields:
      The open ``soundfile.SoundFile``.

    Raises:
      OSError: the file is missing, a directory, or not permitted.
      AudioError: it is empty, not audio, cut short, of unknown length, or of an impossible rate;
        or `source` is the name of a pipe or a device.
      JaxsparseError: a pipe brings more than ``MAX_PIPE_BYTES``.
    """
    with _seekable(source) as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise AudioError("the file is empty")
        _check_not_truncated(file)
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        try:
            audio = soundfile.SoundFile(file.fileno(), closefd=False)
        except soundfile.LibsndfileError as error:
            raise AudioError(f"not readable as audio: {_reason(error)}") from error
        with audio:
            if not MIN_SAMPLE_RATE <= audio.samplerate <= MAX_SAMPLE_RATE:
                raise AudioError(f"a sample rate of {audio.samplerate} Hz is out of range")
            if audio.frames <= 0:
                raise AudioError("the file holds no samples")
            if audio.frames == np.iinfo(np.int64).max:
                raise AudioError("the header doesn't say how long the audio is")
            yield audio


@contextlib.contextmanager
def _seekable(source: Source) -> Iterator[BufferedIOBase]:
    """A file that begins where the audio does, and has a descriptor.

    libsndfile's way to read from memory answers damaged headers by tracebacks on standard error.
    """
    if isinstance(source, str | os.PathLike):
        if not stat.S_ISREG(os.stat(source).st_mode) and not os.path.isdir(source):
            raise AudioError("not a regular file")
        with open(source, "rb") as file:
            yield file
    elif source.seekable() and source.tell() == 0:
        yield source
    else:
        with tempfile.TemporaryFile() as file:
            file.writelines(read_pipe(source))
            file.flush()
            with open(file.fileno(), "rb", closefd=False) as copy:
                yield copy


def read_pipe(pipe: BufferedIOBase) -> Iterator[bytes]:
    """Reads all that comes from a pipe, block by block.

    Raises:
      JaxsparseError: it is more than ``MAX_PIPE_BYTES``.
    """
    size = 0
    while block := pipe.read(_PIPE_BLOCK_BYTES):
        size += len(block)
        if size > MAX_PIPE_BYTES:
            raise JaxsparseError(f"a pipe brought more than {MAX_PIPE_BYTES >> 20:,} MiB")
        yield block


def _reason(error: soundfile.LibsndfileError) -> str:
    if error.code in _MISLEADING_CODES:
        return "the header is damaged"
    text = error.error_string.strip().removeprefix("Error : ").removesuffix(".")
    return text[:1].lower() + text[1:]


def _check_not_truncated(file: BufferedIOBase) -> None:
    """Refuses WAV, AIFF, AU and Ogg files that end early; libsndfile shortens them silently.

    Raises:
      AudioError: bytes that the headers promise are missing.
    """
    file.seek(0)
    magic = file.read(4)
    if magic in (b"RIFF", b"RIFX", b"FORM"):
        missing = _missing_from_chunks(file, "<" if magic == b"RIFF" else ">")
    elif magic == b".snd":
        missing = _missing_from_au(file)
    elif magic == b"OggS":
        missing = _missing_from_ogg(file)
    else:
        return
    if missing > 0:
        raise AudioError(f"the file is truncated: at least {missing} bytes are missing")


def _missing_from_chunks(file: BufferedIOBase, byte_order: str) -> int:
    file_size = os.fstat(file.fileno()).st_size
    position = 12
    for _ in range(_MAX_CHUNKS):
        file.seek(position)
        header = file.read(8)
        if len(header) < 8:
            break
        name, size = struct.unpack(f"{byte_order}4sI", header)
        position += 8
        if name in (b"data", b"SSND"):
            return position + size - file_size if size < _UNKNOWN_SIZE else 0
        position += size + size % 2
    return 0


def _missing_from_au(file: BufferedIOBase) -> int:
    header = file.read(8)
    if len(header) < 8:
        return 0
    offset, size = struct.unpack(">II", header)
    return offset + size - os.fstat(file.fileno()).st_size if size < _UNKNOWN_SIZE else 0


def _missing_from_ogg(file: BufferedIOBase) -> int:
    """RFC 3533: the last page is marked, and lists the lengths of its segments."""
    file.seek(max(0, os.fstat(file.fileno()).st_size - _MAX_OGG_PAGE_BYTES))
    tail = file.read()
    page = tail[max(0, tail.rfind(b"OggS")) :]
    if len(page) < 27:
        return 27 - len(page)
    n_segments = page[26]
    end = 27 + n_segments + sum(page[27 : 27 + n_segments])
    is_last = bool(page[5] & 4)
    return max(end - len(page), 0 if is_last else 1)


def read_frames(audio: soundfile.SoundFile, count: int) -> Float32[np.ndarray, "N C"]:
    """Reads up to ``count`` frames from the current position, without trusting the header.

    Memory grows with what the file holds, not with what it promises.

    Args:
      audio: an open file.
      count: frames wanted; fewer come back where the file ends.

    Returns:
      float32 [N, C], N at most ``count``.

    Raises:
      AudioError: the decoder fails, or a sample is NaN, infinite or beyond
        ``MAX_AMPLITUDE``.
    """
    # Grows in place by an eighth at a time, where a list of blocks would be joined in a copy.
    buffer = bytearray()
    done = 0
    block_frames = _block_length(audio.channels)
    while done < count:
        try:
            block = audio.read(min(block_frames, count - done), dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise AudioError(f"the file is damaged or cut short: {_reason(error)}") from error
        if len(block) == 0:
            break
        buffer += block.data
        done += len(block)
    samples = np.frombuffer(buffer, np.float32).reshape(-1, audio.channels)
    check_usable(samples)
    return samples


def check_usable(samples: Float[np.ndarray, "N C"]) -> None:
    """Refuses samples that no audio has.

    Args:
      samples: [N, C].

    Raises:
      AudioError: one is NaN, infinite or beyond ``MAX_AMPLITUDE``.
    """
    bad, first = 0, -1
    for start, block in _blocks(samples):
        # False for NaN too.
        usable = np.abs(block) <= MAX_AMPLITUDE
        if not usable.all():
            bad += usable.size - int(usable.sum())
            first = start + int(np.argmin(usable.all(axis=1))) if first < 0 else first
    if bad:
        raise AudioError(
            f"{bad} of {samples.size} samples are NaN, infinite or too large, the first at {first}"
        )


def _blocks(
    samples: Float[np.ndarray, "N C"], growth: int = 1
) -> Iterator[tuple[int, Float[np.ndarray, "M C"]]]:
    """Yields pieces and the index of their first sample: copies of these are small.

    So are those that are `growth` times as long.
    """
    length = _block_length(samples.shape[1] * growth)
    for start in range(0, len(samples), length):
        yield start, samples[start : start + length]


def _block_length(channels: int) -> int:
    return max(1, _BLOCK_SAMPLES // max(1, channels))


def read_audio(source: Source) -> tuple[Float32[np.ndarray, "N C"], int]:
    """Reads a whole audio file.

    Args:
      source: a file in any format that libsndfile recognises.

    Returns:
      The samples, float32 [N, C] with N at least 1, and the sample rate in Hz.

    Raises:
      OSError: the file is missing, a directory, or not permitted.
      AudioError: it is empty, truncated, not audio, or has samples that are NaN, infinite or
        beyond ``MAX_AMPLITUDE``; or `source` is the name of a pipe or a device.
      JaxsparseError: a pipe brings more than ``MAX_PIPE_BYTES``.
    """
    with open_audio(source) as audio:
        expected = audio.frames
        samples = read_frames(audio, expected)
        if len(samples) < expected:
            raise AudioError(f"the file is truncated: {len(samples)} of {expected} samples")
        return samples, audio.samplerate


def to_mono(samples: Float[np.ndarray, "N C"]) -> Float[np.ndarray, " N"]:
    """Averages the channels.

    Args:
      samples: [N, C].

    Returns:
      [N], of the same dtype.
    """
    return samples.mean(axis=1)


def resampled_length(n_samples: int, from_rate: int, to_rate: int) -> int:
    """Number of samples after resampling: ``ceil(n_samples * to_rate / from_rate)``, exactly."""
    return -(-n_samples * to_rate // from_rate)


def resample(
    samples: Float32[np.ndarray, "N C"], from_rate: int, to_rate: int
) -> Float32[np.ndarray, "M C"]:
    """Changes the sample rate with soxr's high quality, each channel on its own.

    Args:
      samples: float32 [N, C].
      from_rate: rate of ``samples`` in Hz.
      to_rate: rate wanted in Hz.

    Returns:
      float32 [M, C] with ``M = ceil(N * to_rate / from_rate)``; ``samples`` itself where the rates
      are equal.

    Raises:
      ValueError: a rate isn't positive.
    """
    if from_rate <= 0 or to_rate <= 0:
        raise ValueError(f"sample rates must be positive, not {from_rate} and {to_rate}")
    if from_rate == to_rate:
        return samples
    # soxr itself: librosa.resample calls it, but takes seconds to import and all samples at once.
    shape = resampled_length(len(samples), from_rate, to_rate), samples.shape[1]
    resampled = np.empty(shape, np.float32)
    stream = soxr.ResampleStream(from_rate, to_rate, shape[1], dtype="float32", quality="HQ")
    # soxr rounds the length; one more sample of the output makes it at least the one wanted.
    end = np.zeros((-(-from_rate // to_rate), shape[1]), np.float32)
    done = 0
    pieces = _blocks(samples, growth=-(-to_rate // from_rate))
    for block in itertools.chain((block for _, block in pieces), (end,)):
        piece = stream.resample_chunk(np.ascontiguousarray(block), last=block is end)
        resampled[done : done + len(piece)] = piece[: len(resampled) - done]
        done += len(piece)
    return resampled


def write_wav(
    path: str | os.PathLike[str] | int, samples: Float[np.ndarray, "N C"], sample_rate: int
) -> None:
    """Writes a 16-bit PCM WAV file, whole or not at all.

    A sample x is stored as ``round(32768 x)``, halves to even, clipped to 16 bits, so that samples
    read from a 16-bit file are written back bit for bit.

    Args:
      path: the target; see `jaxsparse.files.atomic_write`.
      samples: [N, C], nominally in [-1, 1).
      sample_rate: in Hz.

    Raises:
      AudioError: a sample is NaN, infinite or beyond ``MAX_AMPLITUDE``, or there are more than a
        WAV file holds (4 GiB).
      OSError: the file can't be written; nothing is left of it.
    """
    check_usable(samples)
    if samples.size > MAX_WAV_SAMPLES:
        raise AudioError(f"{len(samples)} samples are too many for a WAV file")
    atomic_write_parts(path, _wav_bytes(samples, sample_rate))


def _wav_bytes(samples: Float[np.ndarray, "N C"], sample_rate: int) -> Iterator[bytes]:
    """The header of "Multimedia Programming Interface and Data Specifications 1.0", and blocks."""
    channels = samples.shape[1]
    frame, size = 2 * channels, 2 * samples.size
    layout = (1, channels, sample_rate, frame * sample_rate, frame, 16)
    form = struct.pack("<4s4sIHHIIHH", b"WAVE", b"fmt ", 16, *layout)
    yield struct.pack("<4sI", b"RIFF", len(form) + 8 + size) + form
    yield struct.pack("<4sI", b"data", size)
    for _, block in _blocks(samples):
        scaled = np.clip(np.rint(block * _PCM_SCALE), -_PCM_SCALE, _PCM_SCALE - 1)
        yield scaled.astype("<i2").tobytes()
