"""Speech made worse in the ways that metrics are compared on, drawn from (seed, clip's name)."""

import functools
import zlib
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
import scipy.signal

from jaxsparse import codec, pretrained
from jaxsparse.contracts import Decoder
from jaxsparse.masks import count_observed, project_to_count
from jaxsparse.policies import mixed, random
from jaxsparse.reconstruct import put_back, then, to_waveform
from jaxsparse.searched import improve
from jaxsparse.spectrogram import log_power
from jaxsparse.transforms.stft import stft
from jaxsparse.types import SAMPLE_RATE

MaskKind: TypeAlias = Literal["random mask", "clustered mask", "mixed mask"]
UncodedKind: TypeAlias = Literal[MaskKind, "noise", "clipping", "low-pass", "one sparsity"]
Kind: TypeAlias = Literal[UncodedKind, "codec", "searched codec", "searched mask"]
KINDS: tuple[UncodedKind, ...] = get_args(UncodedKind)
MASK_KINDS: tuple[MaskKind, ...] = get_args(MaskKind)
SPARSITIES = (0.8, 0.85, 0.9, 0.95)
# Bins and frames over which the scores of clustered masks are smoothed.
_CLUSTER = (3.0, 1.5)
# Draws of each degradation that is none of a mask.
_DRAWS = 2
# Rates that clips are coded at in kbit/s, and effort of the search.
_KBPS = (2.4, 20.0)
_EFFORT = 2
# Evaluations of a search for a mask, and the sparsities that are drawn.
_EVALUATIONS = 61
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
        noise = rng.normal(size=signal.size) * np.sqrt(np.mean(signal**2) / 10 ** (ratio / 10))
        yield Degraded("noise", ratio, (signal + noise).astype(np.float32))
        share = 10 ** rng.uniform(-3, -0.5)
        limit = np.quantile(np.abs(signal), 1 - share)
        yield Degraded("clipping", share, np.clip(signal, -limit, limit))
        cutoff = rng.uniform(800, 7000)
        sections = scipy.signal.butter(8, cutoff, fs=SAMPLE_RATE, output="sos")
        filtered = scipy.signal.sosfiltfilt(sections, signal)
        yield Degraded("low-pass", cutoff, filtered.astype(np.float32))


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
    """Yields a clip through masks that a search by the surrogate found, at sparsities drawn.

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
        mask = mixed(key, dense, count_observed(dense.shape, sparsity))
        found = improve(key, mask, dense, phase, network, seconds=None, evaluations=_EVALUATIONS)
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
