"""Files of the MDCT grid for tests: headers, segments that sound like speech, and small codecs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.codec.mdct_container import MDCTHeader
from jaxsparse.codec.mdct_segment import QuantizedSegment, encode_segment
from jaxsparse.codec.weights import load_codec
from jaxsparse.quantizer import quantize
from jaxsparse.transforms.grid import HOP_LENGTH


def make_header(**changes):
    """A header of one second in one channel, but for `changes`."""
    codec = load_codec()
    defaults = {
        "sample_rate": 16_000,
        "channels": 1,
        "n_samples": 16_000,
        "codec": codec.name,
        "codec_sha256": codec.card.sha256[:16],
    }
    return MDCTHeader(**(defaults | changes))


def make_segment(n_frames=40, *, rate=24, loudness=1.0, seed=0):
    """A segment whose coefficients fall off with frequency and come and go with time."""
    rng = np.random.default_rng(seed)
    slope = np.exp(-np.arange(HOP_LENGTH) / 40)[:, None]
    time = 0.05 + np.sin(np.arange(n_frames) / 7)[None] ** 2
    scaled = loudness * 6 * slope * time * rng.normal(size=(HOP_LENGTH, n_frames))
    values, levels = jax.device_get(jax.jit(quantize)(jnp.asarray(scaled, jnp.float32)))
    return QuantizedSegment(values.astype(np.int64), levels.astype(np.int64), rate)


def encode(segment):
    """Codes a segment by the models that ship."""
    return encode_segment(segment, load_codec().models)


@functools.cache
def speech(n_samples=16_000, seed=0):
    """A clip [N] with a pitch that glides, formants and pauses."""
    rng = np.random.default_rng(seed)
    time = np.arange(n_samples) / 16_000
    pitch = np.cumsum(120 + 30 * np.sin(2 * np.pi * time)) / 16_000
    harmonics = sum(np.sin(2 * np.pi * k * pitch) / k for k in range(1, 25))
    syllables = np.clip(np.sin(2 * np.pi * 3 * time), 0, None)
    hiss = 0.05 * rng.normal(size=n_samples) * np.clip(np.sin(2 * np.pi * 2 * time), 0, None)
    return (0.1 * (syllables * harmonics + hiss)).astype(np.float32)
