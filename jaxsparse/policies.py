"""Mask policies: which bins to keep, chosen at once and not searched for."""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxsparse.contracts import Policy
from jaxsparse.masks import check_count, project_to_count, random_mask
from jaxsparse.types import HardMask, PRNGKey, Spectrogram

# Bins around in frequency, and the share of their mean that is taken off.
_NEIGHBOURHOOD, _DAMPING = 65, 0.6
_STANDING_OUT = "those that stand out most from the bins around"


@dataclass(frozen=True)
class ScoredPolicy:
    """Keeps the bins of highest score, and draws the others from the rest, uniformly.

    What is kept for its score carries what is heard; what is drawn tells the decoder where the
    floor is, and costs a file no positions.

    Raises:
        ValueError: If `share` is not from 0 to 1, in thousandths.
    """

    score: Callable[[Spectrogram], Spectrogram]
    """From dB to scores, F by T; equal scores go to the lower index."""
    share: Fraction
    """Of the bins kept, those chosen by score; rounded down to whole bins."""
    chosen: str
    """What the bins of highest score are, for people."""

    def __post_init__(self) -> None:
        # As a file stores it.
        if not 0 <= self.share <= 1 or (1000 * self.share).denominator != 1:
            raise ValueError(f"share {self.share} is not from 0 to 1, in thousandths")

    def __call__(
        self, key: PRNGKey, spectrogram: Spectrogram, count: int | Int[Array, ""]
    ) -> HardMask:
        """Makes a mask; see `Policy`."""
        check_count(count, spectrogram.size)
        if not self.share:
            return random_mask(key, spectrogram.shape, count)
        if self.share == 1:
            return self.choose(spectrogram, count)
        return self.draw(key, spectrogram, count, self.n_chosen(count))

    def draw(
        self,
        key: PRNGKey,
        spectrogram: Spectrogram,
        count: int | Int[Array, ""],
        n_chosen: int | Int[Array, ""],
    ) -> HardMask:
        """Makes a mask of which `n_chosen` bins, whatever the share, are chosen by score."""
        chosen = self.choose(spectrogram, n_chosen)
        return chosen | random_mask(key, spectrogram.shape, count - n_chosen, within=~chosen)

    def n_chosen(self, count: int | Int[Array, ""]) -> int | Int[Array, ""]:
        """How many of `count` bins are chosen by score."""
        whole, rest = count // self.share.denominator, count % self.share.denominator
        # In parts, since the product may leave 32 bits.
        numerator = self.share.numerator
        return whole * numerator + rest * numerator // self.share.denominator

    def choose(self, spectrogram: Spectrogram, n_chosen: int | Int[Array, ""]) -> HardMask:
        """Keeps the bins of highest score alone; frames of -inf come last."""
        return project_to_count(self.score(spectrogram), n_chosen)


def level(spectrogram: Spectrogram) -> Spectrogram:
    """Scores bins by their level alone."""
    return spectrogram


def contrast(spectrogram: Spectrogram) -> Float[Array, "F T"]:
    """Scores bins by how far they stand out: their level minus 0.6 of the mean level around.

    The mean is over the 65 bins around in frequency; beyond the edges the outermost bin repeats.
    """
    half = _NEIGHBOURHOOD // 2
    padded = jnp.pad(spectrogram, ((half, half), (0, 0)), mode="edge")
    sums = lax.reduce_window(padded, 0.0, lax.add, (_NEIGHBOURHOOD, 1), (1, 1), "VALID")
    return spectrogram - _DAMPING * sums / _NEIGHBOURHOOD


random = ScoredPolicy(level, Fraction(0), "none")
"""All bins drawn uniformly: the thesis' masks."""
mixed = ScoredPolicy(level, Fraction(1, 2), "the loudest ones")
"""Half of them the loudest ones."""
loudest = ScoredPolicy(level, Fraction(1), "the loudest ones")
"""The loudest ones alone."""

POLICIES: dict[str, Policy] = {
    "random": random,
    "mixed": mixed,
    "loudest": loudest,
    "contrast": ScoredPolicy(contrast, Fraction(1, 2), _STANDING_OUT),
    "contrast-70": ScoredPolicy(contrast, Fraction(7, 10), _STANDING_OUT),
}
"""Policies by the names that settings, files of results and command lines use."""


def depends_on_content(policy: Policy) -> bool:
    """Whether a mask depends on the spectrogram and not on its shape alone."""
    return not isinstance(policy, ScoredPolicy) or policy.share > 0


def describe(name: str) -> str:
    """Says in a sentence which bins a policy of `POLICIES` keeps."""
    policy = POLICIES[name]
    if not isinstance(policy, ScoredPolicy):
        return f"The bins kept are those of the policy {name}."
    if not policy.share:
        return "The bins kept are drawn at random, whatever the clip sounds like."
    if policy.share == 1:
        return f"The bins kept are {policy.chosen}."
    return (
        f"{float(policy.share):.0%} of the bins kept are {policy.chosen}, the others are drawn "
        "at random."
    )
