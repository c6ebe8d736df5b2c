"""Speech made worse in the ways that metrics are compared on, drawn from (seed, clip's name)."""

import functools
import io
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
import scipy.signal
import soundfile

from jaxsparse import codec, pretrained
from jaxsparse.contracts import Decoder
from jaxsparse.masks import count_observed, project_to_count
from jaxsparse.policies import POLICIES, mixed, random
from jaxsparse.reconstruct import put_back, then, to_waveform
from jaxsparse.searched import SEARCHES, improve
from jaxsparse.spectrogram import log_power
from jaxsparse.transforms.stft import stft
from jaxsparse.types import SAMPLE_RATE

MaskKind: TypeAlias = Literal["random mask", "clustered mask", "mixed mask"]
DegradedKind: TypeAlias = Literal[MaskKind, "noise", "clipping", "low-pass", "Opus", "lost packets"]
UnseenKind: TypeAlias = Literal["MP3", "Vorbis", "reverberation", "pink noise", "subtracted noise"]
Kind: TypeAlias = Literal[
    DegradedKind, UnseenKind, "one sparsity", "codec", "searched codec", "searched mask"
]
KINDS: tuple[DegradedKind, ...] = get_args(DegradedKind)
UNSEEN_KINDS: tuple[UnseenKind, ...] = get_args(UnseenKind)
"""What no metric is calibrated on."""
MASK_KINDS: tuple[MaskKind, ...] = get_args(MaskKind)
SPARSITIES = (0.8, 0.85, 0.9, 0.95)
# Bins and frames over which the scores of clustered masks are smoothed.
_CLUSTER = (3.0, 1.5)
# Draws of each degradation that is none of a mask.
_DRAWS = 2
# Seconds of a packet, and of the shortest and the longest reverberation until it is 60 dB down.
_PACKET = 0.02
_REVERBERATION = (0.2, 1.0)
# Lossy formats of libsndfile, and the compression levels that are drawn: on speech Opus takes about
# 30 to 7 kbit/s for them, MP3 40 to 20, Vorbis 50 to 30.
_FORMATS = {
    "Opus": ("OGG", "OPUS", 0.9, 1.0),
    "MP3": ("MP3", "MPEG_LAYER_III", 0.5, 0.99),
    "Vorbis": ("OGG", "VORBIS", 0.5, 1.0),
}
# Rates that clips are coded at in kbit/s, and effort of the search.
_KBPS = (2.4, 20.0)
_EFFORT = 2
# Evaluations of a search for a mask, policies that it begins with, and the sparsities; one each is
# drawn.
_EVALUATIONS = 61
_STARTS = ("mixed", "contrast-70", "learned")
_SEARCHED = (0.9, 0.98)


class Degraded(NamedTuple):
    """A clip made worse: how, how much, and its samples [N]."""

    kind: Kind
    level: float
    signal: np.ndarray


def degrade(name: str, signal: np.ndarray, seed: int = 0) -> Iterator[Degraded]:
    """Yields a clip's degradations, alike for the same name and seed.

    Random masks at 80 to 95 % go through the thesis' networks for them, mixed ones at 80 and 95 %
    through the one for all masks, with bins put back. No network is made for the holes of clustered
    masks, which the nearest bins fill. The phases are the original ones.

    Args:
        name: Of the clip.
        signal: At 16 kHz, [N].
        seed: Of all that is drawn.
    """
    rng = np.random.default_rng((seed, zlib.crc32(name.encode())))
    yield from _masked(rng, signal)
    for _ in range(_DRAWS):
        ratio = rng.uniform(0, 40)
        yield Degraded("noise", ratio, _add(signal, rng.normal(size=signal.size), ratio))
        share = 10 ** rng.uniform(-3, -0.5)
        limit = np.quantile(np.abs(signal), 1 - share)
        yield Degraded("clipping", share, np.clip(signal, -limit, limit))
        cutoff = rng.uniform(800, 7000)
        sections = scipy.signal.butter(8, cutoff, fs=SAMPLE_RATE, output="sos")
        filtered = scipy.signal.sosfiltfilt(sections, signal)
        yield Degraded("low-pass", cutoff, filtered.astype(np.float32))
    for _ in range(_DRAWS):
        yield _lossy("Opus", rng, signal)
        share = 10 ** rng.uniform(-2, -0.7)
        n = round(_PACKET * SAMPLE_RATE)
        arrives = rng.uniform(size=-(-signal.size // n)) >= share
        # At least one is lost, also of a short clip.
        arrives[rng.integers(arrives.size)] = False
        received = signal * np.repeat(arrives, n)[: signal.size]
        yield Degraded("lost packets", share, received.astype(np.float32))


def unseen(name: str, signal: np.ndarray, seed: int = 0) -> Iterator[Degraded]:
    """Yields a clip's degradations of kinds that no metric is calibrated on.

    Args:
        name: Of the clip.
        signal: At 16 kHz, [N].
        seed: Of all that is drawn.
    """
    rng = np.random.default_rng((seed, zlib.crc32(name.encode()), 4))
    yield _lossy("MP3", rng, signal)
    yield _lossy("Vorbis", rng, signal)
    seconds = rng.uniform(*_REVERBERATION)
    yield Degraded("reverberation", seconds, _reverberate(rng, signal, seconds))
    ratio = rng.uniform(0, 40)
    shape = 1 / np.sqrt(np.arange(1, signal.size // 2 + 2))
    noise = np.fft.irfft(shape * np.fft.rfft(rng.normal(size=signal.size)), signal.size)
    yield Degraded("pink noise", ratio, _add(signal, noise, ratio))
    ratio = rng.uniform(5, 30)
    noisy = _add(signal, rng.normal(size=signal.size), ratio)
    yield Degraded("subtracted noise", ratio, _subtract(noisy, noisy - signal))


def _add(signal: np.ndarray, noise: np.ndarray, ratio: float) -> np.ndarray:
    """Adds noise so many dB below the signal."""
    gain = np.sqrt(np.mean(signal**2) / np.mean(noise**2) / 10 ** (ratio / 10))
    return (signal + gain * noise).astype(np.float32)


def _lossy(kind: Literal["Opus", "MP3", "Vorbis"], rng: Any, signal: np.ndarray) -> Degraded:
    """Codes a clip; what comes back is neither moved nor longer."""
    container, subtype, *levels = _FORMATS[kind]
    level = rng.uniform(*levels)
    with io.BytesIO() as file:
        soundfile.write(
            file, signal, SAMPLE_RATE, subtype, format=container, compression_level=level
        )
        file.seek(0)
        decoded, _ = soundfile.read(file, dtype="float32")
    return Degraded(kind, level, np.resize(decoded, signal.size))


def _reverberate(rng: Any, signal: np.ndarray, seconds: float) -> np.ndarray:
    """Adds noise that decays by 60 dB in so many seconds to the response of a room."""
    n = round(seconds * SAMPLE_RATE)
    tail = rng.normal(size=n) * 10 ** (-3 * np.arange(n) / n)
    # As strong as the direct sound to 15 dB weaker.
    tail *= 10 ** (-rng.uniform(0, 15) / 20) / np.sqrt(np.sum(tail**2))
    reflected = scipy.signal.fftconvolve(signal, tail)[: signal.size]
    return (signal + reflected).astype(np.float32)


def _subtract(noisy: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Subtracts the noise's mean power spectrum from each frame's, down to -20 dB."""
    transform = functools.partial(scipy.signal.stft, nperseg=512)
    spectrum, power = transform(noisy)[2], np.mean(np.abs(transform(noise)[2]) ** 2, axis=1)
    gain = 1 - power[:, None] / np.maximum(np.abs(spectrum) ** 2, 1e-12)
    cleaned = scipy.signal.istft(np.sqrt(np.maximum(gain, 0.01)) * spectrum, nperseg=512)[1]
    return np.asarray(cleaned, np.float32)[: noisy.size]


def same_sparsity(name: str, signal: np.ndarray, n: int, seed: int = 0) -> Iterator[Degraded]:
    """Yields a clip through `n` random masks at 95 %, as in the first generation of a search."""
    rng = np.random.default_rng((seed, zlib.crc32(name.encode()), 1))
    sound, dense = _synthesis(signal)
    for _ in range(n):
        mask = random(_key(rng), dense, count_observed(dense.shape, SPARSITIES[-1]))
        yield Degraded("one sparsity", SPARSITIES[-1], sound("random-95", mask, False))


def coded(
    name: str, signal: np.ndarray, n: int, n_searched: int, seed: int = 0
) -> Iterator[Degraded]:
    """Yields a clip as the codec of the MDCT grid makes it, at rates that are drawn.

    What its search finds goes where the surrogate says that it sounds well: to where the surrogate
    is most in need of being right.

    Args:
        name: Of the clip.
        signal: At 16 kHz, [N].
        n: Files by the encoder network alone.
        n_searched: Files by a search.
        seed: Of all that is drawn.
    """
    rng = np.random.default_rng((seed, zlib.crc32(name.encode()), 2))
    for number in range(n + n_searched):
        kbps = float(np.exp(rng.uniform(*np.log(_KBPS))))
        searched = number >= n
        settings = codec.MDCTSettings(kbps=kbps, effort=_EFFORT if searched else 0)
        data = codec.compress(signal[:, None], SAMPLE_RATE, settings)
        decoded, _ = codec.decompress(data)
        yield Degraded("searched codec" if searched else "codec", kbps, decoded[:, 0])


def searched_masks(name: str, signal: np.ndarray, n: int, seed: int = 0) -> Iterator[Degraded]:
    """Yields a clip through masks that searches for quality found, at sparsities drawn.

    Args:
        name: Of the clip.
        signal: At 16 kHz, [N].
        n: Masks.
        seed: Of all that is drawn.
    """
    rng = np.random.default_rng((seed, zlib.crc32(name.encode()), 3))
    spectrum = stft(jnp.asarray(signal))
    dense, phase = log_power(spectrum), jnp.angle(spectrum)
    network = _load("unet")
    for _ in range(n):
        sparsity = round(rng.uniform(*_SEARCHED), 3)
        key = _key(rng)
        start, search = rng.choice(_STARTS), rng.choice(list(SEARCHES))
        mask = _policy(str(start))(key, dense, count_observed(dense.shape, sparsity))
        found = improve(
            key,
            mask,
            dense,
            phase,
            network,
            search=str(search),
            seconds=None,
            evaluations=_EVALUATIONS,
        )
        synthesize = _completion(network.decoder, True, signal.size)
        sound = synthesize(network.params, dense, found, None, phase)
        yield Degraded("searched mask", sparsity, np.asarray(sound))


def _masked(rng: np.random.Generator, signal: np.ndarray) -> Iterator[Degraded]:
    sound, dense = _synthesis(signal)
    for sparsity in SPARSITIES:
        count, network = count_observed(dense.shape, sparsity), f"random-{100 * sparsity:g}"
        mask = random(_key(rng), dense, count)
        yield Degraded("random mask", sparsity, sound(network, mask, False))
        scores = scipy.ndimage.gaussian_filter(rng.normal(size=dense.shape), _CLUSTER)
        mask = project_to_count(jnp.asarray(scores, jnp.float32), count)
        yield Degraded("clustered mask", sparsity, sound("nearest", mask, True))
    for sparsity in (SPARSITIES[0], SPARSITIES[-1]):
        mask = mixed(_key(rng), dense, count_observed(dense.shape, sparsity))
        yield Degraded("mixed mask", sparsity, sound("unet", mask, True))


def _synthesis(signal: np.ndarray) -> tuple[Callable[..., np.ndarray], jax.Array]:
    """What turns a decoder's name, a mask and whether to put bins back into sound; and the dB."""
    spectrum = stft(jnp.asarray(signal))
    dense, phase = log_power(spectrum), jnp.angle(spectrum)

    def sound(name: str, mask: jax.Array, keep: bool) -> np.ndarray:
        decoder, params, _ = _load(name)
        synthesize = _completion(decoder, keep, signal.size)
        return np.asarray(synthesize(params, dense, mask, None, phase))

    return sound, dense


@functools.lru_cache
def _policy(name: str) -> Callable[..., jax.Array]:
    return jax.jit(POLICIES[name])


def _key(rng: np.random.Generator) -> jax.Array:
    return jax.random.key(int(rng.integers(2**32)))


@functools.lru_cache
def _load(name: str) -> pretrained.Pretrained:
    return pretrained.load_decoder(name)


@functools.lru_cache
def _completion(decoder: Decoder, keep_observed: bool, length: int) -> Callable[..., jax.Array]:
    def finish(completed, dense, mask, valid, phase):
        estimate = put_back(completed, dense, mask) if keep_observed else completed
        return to_waveform(estimate, phase, length=length)

    return then(decoder, finish)
