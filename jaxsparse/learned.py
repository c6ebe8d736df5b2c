"""A policy that exchanges bins by a learned sampler."""

import functools
import os
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped

from jaxsparse.contracts import Params, Policy, Sampler
from jaxsparse.densification import Densification
from jaxsparse.masks import check_count, project_to_count
from jaxsparse.pretrained import load_once, load_sampler
from jaxsparse.types import HardMask, PRNGKey, Spectrogram

BLOCK = 32
"""Frames within which bins are exchanged: half a second at a hop of 256 samples."""


@dataclass(frozen=True)
class Learned:
    """Exchanges bins of another policy's mask for those that a sampler scores higher.

    In each `BLOCK` of frames the bins of highest score take the places of those kept, as many as
    before.

    Raises:
        ValueError: If `passes` is not positive.
    """

    first: Policy
    """Makes the mask that it starts from."""
    sampler: str | os.PathLike[str] = "sampler"
    """Name or path of the sampler, which is loaded when the first mask is made."""
    passes: int = 1
    """Times that bins are exchanged."""
    chosen: str = "those that a learned sampler scores highest"
    """What the bins are, for people."""

    @property
    def takes_padding(self) -> bool:
        """See `jaxsparse.contracts.Policy`: what is drawn uniformly is drawn in padding too."""
        return isinstance(self.first, Densification | Learned) and self.first.takes_padding

    def __post_init__(self) -> None:
        if self.passes < 1:
            raise ValueError(f"passes must be 1 or more, not {self.passes}")

    def __call__(
        self, key: PRNGKey, spectrogram: Spectrogram, count: int | Int[Array, ""]
    ) -> HardMask:
        """Makes a mask; see `Policy`.

        Raises:
            OSError: If the sampler can't be read.
            WeightsError: If its file is damaged.
        """
        check_count(count, spectrogram.size)
        sampler, params, _ = load_once(load_sampler, self.sampler)
        mask = self.first(key, spectrogram, count)
        for _ in range(self.passes):
            mask = exchange(sampler, params, spectrogram, mask)
        return mask


@functools.partial(jax.jit, static_argnums=0)
def exchange(
    sampler: Sampler, params: Params, spectrogram: Spectrogram, mask: HardMask
) -> HardMask:
    """Keeps the bins that a sampler scores highest, as many in each `BLOCK` of frames as before.

    Scores are compared within half a second alone: a sampler learns on clips of a second or two,
    which say nothing about how to share bins between words and pauses.

    Args:
        sampler: As `jaxsparse.pretrained.load_sampler` gives it.
        params: Of the sampler.
        spectrogram: dB, F by T; none of the bins that are -inf is kept while its block has others.
        mask: Bins kept so far.
    """
    scores = sampler.apply(params, spectrogram, mask, spectrogram > -jnp.inf)
    n_frames = mask.shape[1]
    pads = ((0, 0), (0, -n_frames % BLOCK))
    blocks = (
        _split(jnp.pad(scores, pads, constant_values=-jnp.inf)),
        _split(jnp.pad(mask, pads)).sum((1, 2), dtype=jnp.int32),
    )
    return jnp.concatenate(jax.vmap(project_to_count)(*blocks), axis=1)[:, :n_frames]


def _split(x: Shaped[Array, "F T"]) -> Shaped[Array, "M F K"]:
    """Cuts frames into blocks."""
    return jnp.stack(jnp.split(x, x.shape[1] // BLOCK, axis=1))
