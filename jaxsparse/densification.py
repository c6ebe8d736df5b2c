"""Densification: masks that grow by the bins that a decoder misses most.

Greedy rounds, as inpainting chooses its data: M. Hoeltgen, S. Setzer and J. Weickert (2013), "An
optimal control approach to find sparse data for Laplace interpolation", and, by adding instead of
taking away, M. Mainberger et al. (2011), "Optimising spatial and tonal data for homogeneous
diffusion inpainting".
"""

import functools
import os
from dataclasses import dataclass, field
from fractions import Fraction
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxsparse.blue_noise import blue_noise_mask
from jaxsparse.contracts import Decoder, Params, Policy
from jaxsparse.masks import check_count, project_to_count, share_of
from jaxsparse.pretrained import load_decoder, load_once
from jaxsparse.spectrogram import db_to_power
from jaxsparse.types import HardMask, PRNGKey, Spectrogram


def _evenly(key: PRNGKey, spectrogram: Spectrogram, count: int | Int[Array, ""]) -> HardMask:
    n_bins, n_frames = spectrogram.shape
    return blue_noise_mask(key, (n_bins, n_frames), count)


@dataclass(frozen=True, eq=False)
class Densification:
    """Keeps bins by another policy at first, then those that a decoder misses most, in rounds.

    The defaults are for the pyramid fill, found on two to four clips of the valid split. A policy
    is equal to itself alone: it closes over arrays, which can't be compared.

    Raises:
        ValueError: If a setting is out of range, the decoder runs on the host, or there are
            parameters beside a name.
    """

    decoder: Decoder | str | os.PathLike[str]
    """What fills in the bins that are hidden so far; or its name or path, as `load_decoder` takes
    it, by which decoder and parameters are loaded when the first mask is made."""
    params: Params = field(default_factory=dict)
    """Of a decoder that is given itself."""
    first: Policy = _evenly
    """Makes the mask that it starts from: by default blue noise."""
    first_share: Fraction = Fraction(1, 4)
    """Of the bins kept, those of the first mask; rounded down to whole bins."""
    rounds: int = 8
    """Times that the decoder is asked."""
    window: int = 5
    """Bins and frames, an odd number, in which a round takes one bin alone while it can."""
    exponent: float = 0.1
    """Errors are those of powers raised to it, which weighs what is loud; at 0 they are in dB."""
    chosen: str = "those that a decoder misses most, in rounds"
    """What the bins are, for people."""
    takes_padding: ClassVar[bool] = True
    """See `jaxsparse.contracts.Policy`."""

    def __post_init__(self) -> None:
        if isinstance(self.decoder, Decoder):
            _check_traceable(self.decoder)
        elif self.params:
            raise ValueError("a decoder that is named brings its own params")
        if self.rounds < 1 or not 0 <= self.first_share <= 1:
            raise ValueError("rounds must be 1 or more and first_share from 0 to 1")
        if self.window < 1 or self.window % 2 == 0:
            raise ValueError(f"window {self.window} is not odd and positive")
        if not 0 <= self.exponent <= 1:
            raise ValueError("exponent must be from 0 to 1")

    def __call__(
        self, key: PRNGKey, spectrogram: Spectrogram, count: int | Int[Array, ""]
    ) -> HardMask:
        """Makes a mask; see `Policy`.

        Raises:
            JaxsparseError: If there is no decoder of that name, or its file is damaged.
            OSError: If its file can't be read.
            ValueError: If it runs on the host.
        """
        check_count(count, spectrogram.size)
        decoder, params = self.decoder, self.params
        if not isinstance(decoder, Decoder):
            decoder, params, _ = load_once(load_decoder, decoder)
            _check_traceable(decoder)
        return _densify(self, decoder, params, key, spectrogram, jnp.asarray(count, jnp.int32))


def _check_traceable(decoder: Decoder) -> None:
    if decoder.on_host:
        raise ValueError(f"{decoder.config} runs on the host and can't be traced")


@functools.partial(jax.jit, static_argnums=(0, 1))
def _densify(
    policy: Densification,
    decoder: Decoder,
    params: Params,
    key: PRNGKey,
    spectrogram: Spectrogram,
    count: Int[Array, ""],
) -> HardMask:
    n_first = share_of(policy.first_share, count)
    valid = spectrogram > -jnp.inf

    def add(i: Int[Array, ""], mask: HardMask) -> HardMask:
        completed = decoder.apply(params, spectrogram, mask, valid)
        errors = jnp.abs(_loudness(spectrogram, policy) - _loudness(completed, policy))
        errors = jnp.where(valid, errors, -jnp.inf)
        # In parts, since the product may leave 32 bits.
        whole, rest = jnp.divmod(count - n_first, policy.rounds)
        n_kept = n_first + whole * (i + 1) + rest * (i + 1) // policy.rounds
        return project_to_count(_spread(errors, mask, policy.window), n_kept)

    # What of the first mask lies beyond the clip is made up for in the first round.
    first = policy.first(key, spectrogram, n_first) & valid
    return lax.fori_loop(0, policy.rounds, add, first)


def _loudness(spectrogram: Spectrogram, policy: Densification) -> Spectrogram:
    if not policy.exponent:
        return spectrogram
    return db_to_power(policy.exponent * spectrogram)


def _spread(errors: Float[Array, "F T"], mask: HardMask, window: int) -> Float[Array, "F T"]:
    """Ranks what is kept first, then the errors' peaks, then all other errors."""
    errors = jnp.where(mask, 0, errors)
    peaks = errors
    # One axis after the other takes less time.
    for shape in ((window, 1), (1, window)):
        peaks = lax.reduce_window(peaks, 0.0, lax.max, shape, (1, 1), "SAME")
    order = jnp.where(errors >= peaks, errors, -1 / (1 + errors))
    return jnp.where(mask, jnp.inf, jnp.where(errors < 0, -jnp.inf, order))
