"""Mask policies: which bins to keep, chosen at once and not searched for."""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxsparse.blue_noise import blue_noise_mask
from jaxsparse.contracts import Policy
from jaxsparse.densification import Densification
from jaxsparse.hearing import quiet_levels, spreading
from jaxsparse.learned import Learned
from jaxsparse.masks import check_count, project_to_count, random_mask, share_of
from jaxsparse.nn.pyramid import PyramidConfig
from jaxsparse.spectrogram import db_to_power
from jaxsparse.types import HardMask, PRNGKey, Spectrogram

_STANDING_OUT = "those that stand out most from the bins around"
_AUDIBLE = "those that are heard best beside all others"


@dataclass(frozen=True)
class DrawnPolicy:
    """Draws the bins, of the spectrogram's shape alone, whatever its levels are."""

    draw: Callable[[PRNGKey, tuple[int, int], int | Int[Array, ""]], HardMask]
    """From key, shape and count to a mask; refuses a count out of range."""
    chosen: str
    """What the bins are, for people."""

    def __call__(
        self, key: PRNGKey, spectrogram: Spectrogram, count: int | Int[Array, ""]
    ) -> HardMask:
        """Makes a mask; see `Policy`."""
        n_bins, n_frames = spectrogram.shape
        return self.draw(key, (n_bins, n_frames), count)


@dataclass(frozen=True)
class ScoredPolicy:
    """Keeps the bins of highest score, and draws the others from the rest, uniformly.

    What is kept for its score carries what is heard; what is drawn tells the decoder where the
    floor is, and costs a file no positions.

    Raises:
        ValueError: If `share` is not from 0 to 1, in thousandths.
    """

    takes_padding: ClassVar[bool] = True
    """See `jaxsparse.contracts.Policy`."""
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
        return share_of(self.share, count)

    def choose(self, spectrogram: Spectrogram, n_chosen: int | Int[Array, ""]) -> HardMask:
        """Keeps the bins of highest score alone; frames of -inf come last."""
        return project_to_count(self.score(spectrogram), n_chosen)


def level(spectrogram: Spectrogram) -> Spectrogram:
    """Scores bins by their level alone."""
    return spectrogram


@dataclass(frozen=True)
class Contrast:
    """Scores bins by how far they stand out: their level minus a share of the mean level around.

    The mean is over the bins around in frequency; beyond the edges the outermost bin repeats.

    Raises:
        ValueError: If `window` is not odd and positive.
    """

    window: int = 65
    """Bins that the mean is over, an odd number."""
    damping: float = 0.6
    """Share of it that is taken off: at 0 the level alone counts, at 1 the distance from it."""

    def __post_init__(self) -> None:
        if self.window < 1 or self.window % 2 == 0:
            raise ValueError(f"window {self.window} is not odd and positive")

    def __call__(self, spectrogram: Spectrogram) -> Float[Array, "F T"]:
        """Scores bins in dB."""
        half = self.window // 2
        padded = jnp.pad(spectrogram, ((half, half), (0, 0)), mode="edge")
        sums = lax.reduce_window(padded, 0.0, lax.add, (self.window, 1), (1, 1), "VALID")
        return spectrogram - self.damping * sums / self.window


@dataclass(frozen=True)
class Audibility:
    """Scores bins by their level above what the listener doesn't hear beside all others.

    The threshold is, in power, the sum of the threshold in quiet and of the excitation by the frame
    itself, less an offset (Johnston 1988). There is no masking from frame to frame, as frames
    overlap. The sample rate counts as 16 kHz, and the window as a Hann window.
    """

    offset: float = 6.0
    """dB of the excitation over the threshold that it makes: Johnston's of noise that masks."""
    full_scale: float = 96.0
    """Level in dB SPL at which a sine of full scale is played."""

    def __call__(self, spectrogram: Spectrogram) -> Float[Array, "F T"]:
        """Scores bins in dB."""
        n_bins = spectrogram.shape[0]
        # TF32 would leave three digits of powers that are 80 dB apart.
        excitation = jnp.matmul(spreading(n_bins), db_to_power(spectrogram), precision="highest")
        quiet = db_to_power(jnp.asarray(quiet_levels(n_bins, self.full_scale))[:, None])
        return spectrogram - 10 * jnp.log10(excitation * 10 ** (-self.offset / 10) + quiet)


contrast = Contrast()
"""The level minus 0.6 of the mean level of the 65 bins around."""
audibility = Audibility()
"""The level above the threshold in quiet and 6 dB below what the frame excites there."""
random = ScoredPolicy(level, Fraction(0), "none")
"""All bins drawn uniformly: the thesis' masks."""
mixed = ScoredPolicy(level, Fraction(1, 2), "the loudest ones")
"""Half of them the loudest ones."""
loudest = ScoredPolicy(level, Fraction(1), "the loudest ones")
"""The loudest ones alone."""

densification = Densification(
    PyramidConfig().build(),
    chosen="a quarter spread evenly, and those that averages of the kept ones miss most",
)
"""Rounds of the pyramid fill's largest errors."""

POLICIES: dict[str, Policy] = {
    "random": random,
    "mixed": mixed,
    "loudest": loudest,
    "contrast": ScoredPolicy(contrast, Fraction(1, 2), _STANDING_OUT),
    "contrast-70": ScoredPolicy(contrast, Fraction(7, 10), _STANDING_OUT),
    "masking": ScoredPolicy(audibility, Fraction(1), _AUDIBLE),
    "masking-50": ScoredPolicy(audibility, Fraction(1, 2), _AUDIBLE),
    "blue-noise": DrawnPolicy(blue_noise_mask, "drawn at random, but evenly spread"),
    "densification": densification,
    "densification-unet": Densification(
        "unet",
        rounds=4,
        chosen="a quarter spread evenly, and those that the network misses most",
    ),
    "learned": Learned(densification),
}
"""Policies by the names that settings, files of results and command lines use."""


def depends_on_content(policy: Policy) -> bool:
    """Whether a mask depends on the spectrogram and not on its shape alone."""
    if isinstance(policy, ScoredPolicy):
        return policy.share > 0
    return not isinstance(policy, DrawnPolicy)


def describe(name: str) -> str:
    """Says in a sentence which bins a policy of `POLICIES` keeps."""
    policy = POLICIES[name]
    if not isinstance(policy, ScoredPolicy):
        return f"The bins kept are {getattr(policy, 'chosen', f'those of the policy {name}')}."
    if not policy.share:
        return "The bins kept are drawn at random, whatever the clip sounds like."
    if policy.share == 1:
        return f"The bins kept are {policy.chosen}."
    return (
        f"{float(policy.share):.0%} of the bins kept are {policy.chosen}, the others are drawn "
        "at random."
    )
