"""Samples as 16-bit integers, and in frames, as codecs take them."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float32, Int16, UInt8

_SCALE = 1 << 15


def to_pcm(signal: Float32[np.ndarray, " N"]) -> Int16[np.ndarray, " N"]:
    """Rounds a signal to 16 bits, as `jaxsparse.audio.write_wav` does."""
    return np.clip(np.rint(signal * _SCALE), -_SCALE, _SCALE - 1).astype(np.int16)


def from_pcm(samples: Int16[np.ndarray, " N"]) -> Float32[np.ndarray, " N"]:
    """Scales 16-bit samples to [-1, 1)."""
    return samples.astype(np.float32) / np.float32(_SCALE)


def to_frames(signal: Float32[np.ndarray, " N"], size: int) -> Int16[np.ndarray, "T S"]:
    """Cuts a signal into frames of 16-bit samples; the last one is filled up with zeros."""
    samples = to_pcm(signal)
    return np.pad(samples, (0, -len(samples) % size)).reshape(-1, size)


def from_frames(frames: Iterable[Int16[np.ndarray, " S"]]) -> Float32[np.ndarray, " N"]:
    """Joins frames of 16-bit samples to a signal."""
    return from_pcm(np.concatenate(list(frames)))


def join_bits(frames: Iterable[bytes], n_bits: int) -> bytes:
    """Joins the first bits of each frame without gaps; only the end is filled up to a byte."""
    bits = np.unpackbits(np.array([list(frame) for frame in frames], np.uint8), axis=1)
    return np.packbits(bits[:, :n_bits]).tobytes()


def split_bits(data: bytes, n_bits: int) -> UInt8[np.ndarray, "T B"]:
    """Gives each frame whole bytes again; undoes `join_bits`."""
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    frames = bits[: len(bits) // n_bits * n_bits].reshape(-1, n_bits)
    return np.packbits(frames, axis=1)
