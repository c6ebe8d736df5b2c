"""A folder tree of audio files, and clips of a fixed length from them."""

import math
import os
from collections.abc import Collection
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from jaxsparse.audio import open_audio, read_frames, resample, resampled_length, to_mono
from jaxsparse.errors import AudioError
from jaxsparse.types import SAMPLE_RATE

# Samples of a clip of the thesis: 302 frames of 256, and what the first and last one need.
CLIP_SAMPLES = 77_276
# fmt: off
EXTENSIONS = frozenset({
    ".aif", ".aifc", ".aiff", ".au", ".caf", ".flac", ".mp3", ".nist", ".oga", ".ogg", ".opus",
    ".rf64", ".snd", ".sph", ".voc", ".w64", ".wav", ".wave",
})
# fmt: on


def find_audio(root: str | os.PathLike[str]) -> list[Path]:
    """Lists the audio files below a directory, in an order that is the same on every machine.

    Args:
      root: a directory; links to directories inside it aren't followed.

    Returns:
      The files whose extension is one of ``EXTENSIONS`` (in any case), hidden ones left out, sorted
      by their path relative to ``root``.

    Raises:
      FileNotFoundError: there is no such directory.
      NotADirectoryError: it is a file.
      PermissionError: it, or a directory below it, can't be read.
      AudioError: there is no audio file below it.
    """
    found = find_files(root, EXTENSIONS)
    if not found:
        raise AudioError(f"{root}: no audio files below this directory")
    return found


def find_files(
    root: str | os.PathLike[str],
    extensions: Collection[str],
    *,
    without: str | os.PathLike[str] | None = None,
) -> list[Path]:
    """Lists the files of some extensions below a directory, as `find_audio` does those of audio.

    Args:
      root: a directory; links to directories inside it aren't followed.
      extensions: in small letters, with the dot.
      without: a directory below ``root`` that isn't looked into.

    Raises:
      FileNotFoundError: there is no such directory.
      NotADirectoryError: it is a file.
      PermissionError: it, or a directory below it, can't be read.
    """
    root = Path(root)
    if not root.exists():
        raise FileNotFoundError(2, os.strerror(2), os.fspath(root))
    if not root.is_dir():
        raise NotADirectoryError(20, os.strerror(20), os.fspath(root))
    left_out = None if without is None else os.path.realpath(without)
    found = []
    for directory, subdirectories, names in os.walk(root, onerror=_raise):
        subdirectories[:] = [
            name
            for name in subdirectories
            if not name.startswith(".")
            and os.path.realpath(os.path.join(directory, name)) != left_out
        ]
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in extensions:
                found.append(Path(directory, name))
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _raise(error: OSError) -> None:
    raise error


def read_segment(
    path: str | os.PathLike[str], n_samples: int, rng: np.random.Generator | None = None
) -> Float32[np.ndarray, " N"]:
    """Reads a clip of a fixed length at 16 kHz, mono, decoding no more of the file than it needs.

    Args:
      path: an audio file of any rate and number of channels.
      n_samples: length wanted, in samples at 16 kHz.
      rng: draws the offset uniformly from those at which the clip fits; without it the clip starts
        at the file's start.

    Returns:
      float32 [n_samples]; a shorter file is padded with zeros at the end.

    Raises:
      OSError: the file can't be opened.
      AudioError: the file is unusable, or the part that was read is.
    """
    with open_audio(path) as audio:
        rate = audio.samplerate
        length = resampled_length(audio.frames, rate, SAMPLE_RATE)
        start = int(rng.integers(max(0, length - n_samples) + 1)) if rng is not None else 0
        # At multiples of `source` frames both rates have a sample at the same instant. The margin
        # around the clip is longer than soxr's filter, so that the cut can't be heard.
        divisor = math.gcd(rate, SAMPLE_RATE)
        source, target = rate // divisor, SAMPLE_RATE // divisor
        margin = 0 if rate == SAMPLE_RATE else math.ceil(max(rate, SAMPLE_RATE) / 50 / source)
        first = max(0, start // target - margin)
        last = -(-(start + n_samples) // target) + margin
        count = min(audio.frames, last * source) - first * source
        try:
            audio.seek(first * source)
        except RuntimeError as error:
            raise AudioError(f"cannot be decoded at sample {first * source}") from error
        samples = read_frames(audio, count)
    if len(samples) < count:
        raise AudioError(f"the file is truncated: {len(samples)} of {count} samples were read")
    clip = resample(to_mono(samples)[:, None], rate, SAMPLE_RATE)[:, 0]
    clip = clip[start - first * target :][:n_samples]
    return np.pad(clip, (0, n_samples - len(clip)))
