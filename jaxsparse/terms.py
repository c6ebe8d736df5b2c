"""What training and searches minimise: sums of named terms, of the spectrogram and of its sound.

The sound is made with the phases of the original clip, and compared with the clip by the
differentiable metrics of `jaxsparse.metrics`. Training puts no kept bins back.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsparse.losses import mse
from jaxsparse.metrics.distances import (
    log_spectral_distance,
    mel_distance,
    mfcc_distance,
    multi_resolution_stft,
    si_sdr,
)
from jaxsparse.metrics.intelligibility import estoi, stoi
from jaxsparse.metrics.surrogate import pesq_surrogate
from jaxsparse.policies import audibility
from jaxsparse.reconstruct import to_waveform
from jaxsparse.transforms.stft import STFTConfig, stft
from jaxsparse.types import SAMPLE_RATE

# Samples within [-1, 1] reach 60 dB, and a network of random parameters puts out far more, of
# which float32 holds no amplitude. With this ceiling the gradients are finite from there, too.
# Louder bins have no gradient in terms of sound: it takes the MSE to bring them down.
LOUDEST_DB = 80.0

# 31 frames of 25.6 ms, half a frame apart: shorter clips get a constant.
INTELLIGIBLE = 6_554

Score: TypeAlias = Callable[..., Float[Array, " B"]]
Terms: TypeAlias = tuple[tuple[float, str], ...]


class Term(NamedTuple):
    """One term of a loss.

    Attributes:
        weight: What it is multiplied by where no weight is given.
        score: ``(*, reference, estimate) -> [B]``, the lower the better; of sound it takes
            `sample_rate` too.
        of_sound: Whether it compares waveforms instead of spectrograms.
        shortest: Samples at 16 kHz that a clip needs for the term to have a gradient.
    """

    weight: float
    score: Score
    of_sound: bool = True
    shortest: int = 1


@runtime_checkable
class Loss(Protocol):
    """A loss of a batch."""

    def __call__(
        self,
        *,
        reference: Float[Array, "B F T"],
        estimate: Float[Array, "B F T"],
        audio: Float[Array, "C N"],
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Sums the terms.

        Args:
            reference: The clips' spectrograms in dB.
            estimate: The network's output in dB.
            audio: The clips, B of them for terms of sound, which alone look at them.

        Returns:
            The weighted sum, and each term's mean over the batch without its weight.
        """
        ...


def _below(best: float, metric: Score) -> Score:
    """How far a metric of which more is better stays below its best value."""

    def score(**clips: object) -> Float[Array, " B"]:
        return best - metric(**clips)

    return score


def audible_mse(
    *, reference: Float[Array, "B F T"], estimate: Float[Array, "B F T"]
) -> Float[Array, " B"]:
    """Computes the mean squared error in dB^2, weighted by how far bins are from being masked.

    The weight rises from 0 for a bin 10 dB below the threshold of `jaxsparse.policies.Audibility`
    to 1 for one 10 dB above it.
    """
    weights = jnp.clip(0.5 + jax.vmap(audibility)(reference) / 20, 0, 1)
    errors = jnp.sum(weights * jnp.square(estimate - reference), axis=(1, 2))
    return errors / jnp.maximum(jnp.sum(weights, axis=(1, 2)), 1)


# Default weights make the terms as large as the MSE where a fine-tuning of random-95 starts: what
#   python -m train.main --recipe perceptual --data $JAXSPARSE_DATA/valid --workdir RUN \
#     --loss mse+mel+mfcc+stft+lsd+si-sdr+stoi+estoi+surrogate+surrogate-nb --sparsity 0.95 \
#     --learning-rate 0 --weight-decay 0 --steps 5 --log-every 5
# logs is an MSE of 38 dB^2 (of whole clips it is 31), mel 3.7, mfcc 2.4, stft 1.6, lsd 5.6, stoi
# 0.18, estoi 0.28, surrogate 2.9 and surrogate-nb 2.0. The scale of si-sdr has no zero: its 9 makes
# a tenth less distortion (0.46 dB) worth a tenth of the MSE.
TERMS = {
    "mse": Term(1.0, mse, of_sound=False),
    "audible-mse": Term(1.0, audible_mse, of_sound=False),
    "mel": Term(10.0, mel_distance),
    "mfcc": Term(15.0, mfcc_distance),
    "stft": Term(25.0, multi_resolution_stft),
    "lsd": Term(7.0, log_spectral_distance),
    "si-sdr": Term(9.0, _below(0.0, si_sdr)),
    "stoi": Term(200.0, _below(1.0, stoi), shortest=INTELLIGIBLE),
    "estoi": Term(150.0, _below(1.0, estoi), shortest=INTELLIGIBLE),
    "surrogate": Term(15.0, _below(4.64, functools.partial(pesq_surrogate, band="wb"))),
    "surrogate-nb": Term(20.0, _below(4.64, functools.partial(pesq_surrogate, band="nb"))),
}

MIXTURES: dict[str, Terms] = {
    # A point of PESQ in either band weighs as much as a tenth of STOI, so that none is gamed.
    "quality": ((1.0, "surrogate"), (1.0, "surrogate-nb"), (10.0, "stoi")),
}
"""Sums of terms that have a name of their own."""


def parse_loss(text: str) -> Terms:
    """Reads terms joined by ``+``, each with or without a weight: ``mse+0.5*mfcc``.

    Args:
        text: Those, or a name in `MIXTURES`.

    Returns:
        The weight and the name of each term.

    Raises:
        ValueError: If a term is unknown or named twice, or a weight is no positive number.
    """
    if text in MIXTURES:
        return MIXTURES[text]
    terms = []
    for part in text.split("+"):
        before, star, name = (word.strip() for word in part.rpartition("*"))
        if name not in TERMS:
            raise ValueError(
                f"loss has no term {name!r}; there are {', '.join(TERMS)}, and alone "
                f"{', '.join(MIXTURES)}"
            )
        weight = _positive(before, name) if star else TERMS[name].weight
        terms.append((weight, name))
    names = [name for _, name in terms]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"loss has the term {name} twice")
    return tuple(terms)


def _positive(text: str, name: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise ValueError(f"loss weighs {name} by a positive number, not {text!r}")
    return weight


def format_loss(terms: Terms) -> str:
    """The loss with every weight, as `parse_loss` reads it."""
    return "+".join(f"{weight:g}*{name}" for weight, name in terms)


def hears(terms: Terms) -> bool:
    """Whether any term is of the sound."""
    return any(TERMS[name].of_sound for _, name in terms)


def make_loss(terms: Terms, config: STFTConfig) -> Loss:
    """Builds the loss that is the sum of the terms; without one of sound, no sound is made.

    Args:
        terms: What `parse_loss` gave.
        config: Of the transform behind the spectrograms.
    """

    def loss(
        *,
        reference: Float[Array, "B F T"],
        estimate: Float[Array, "B F T"],
        audio: Float[Array, "C N"],
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        sound = None
        if hears(terms):
            sound = jax.vmap(functools.partial(resynthesize, config=config))(estimate, audio)
        values = evaluate(terms, (reference, estimate), (audio, sound))
        means = {name: value.mean() for name, value in values.items()}
        return weighted_sum(terms, means), means

    return loss


def evaluate(
    terms: Terms,
    spectrograms: tuple[Float[Array, "B F T"], Float[Array, "B F T"]],
    sounds: tuple[Float[Array, "C N"] | None, Float[Array, "B N"] | None],
) -> dict[str, Float[Array, " B"]]:
    """Computes each term without its weight.

    Args:
        terms: What `parse_loss` gave.
        spectrograms: The clips' and the estimates', in dB.
        sounds: The clips and the estimates, at 16 kHz; no term of sound looks at None.
    """
    seen = dict(zip(("reference", "estimate"), spectrograms, strict=True))
    heard = dict(zip(("reference", "estimate"), sounds, strict=True), sample_rate=SAMPLE_RATE)
    found = {name: TERMS[name] for _, name in terms}
    return {name: term.score(**(heard if term.of_sound else seen)) for name, term in found.items()}


def weighted_sum(terms: Terms, values: dict[str, Array]) -> Array:
    """Sums terms with their weights."""
    return jnp.asarray(sum(weight * values[name] for weight, name in terms))


def resynthesize(
    spectrogram: Float[Array, "F T"], audio: Float[Array, " N"], *, config: STFTConfig
) -> Float[Array, " N"]:
    """The sound of a spectrogram with a clip's phases.

    Args:
        spectrogram: dB; what is louder than `LOUDEST_DB` counts as that.
        audio: The clip.
        config: Of the transform.
    """
    phase = jnp.angle(stft(audio, config))
    loudest = jnp.minimum(spectrogram, LOUDEST_DB)
    return to_waveform(loudest, phase, config, length=audio.shape[0])
