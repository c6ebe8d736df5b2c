"""A mask that a search improves for one clip: what the codec and a script call.

The search knows both bands' surrogates of PESQ and STOI, and begins at a one-shot mask.
"""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsparse.errors import JaxsparseError
from jaxsparse.objectives import mixture_objective
from jaxsparse.pretrained import Pretrained
from jaxsparse.reconstruct import to_waveform
from jaxsparse.search.contract import Search
from jaxsparse.search.run import run
from jaxsparse.search.swaps import swaps
from jaxsparse.transforms.stft import STFTConfig
from jaxsparse.types import HardMask, PRNGKey, Spectrogram

Make: TypeAlias = Callable[[Any, tuple[int, int], Any, HardMask], Search]

SEARCHES: dict[str, Make] = {
    "swaps": lambda objective, shape, count, start: swaps(objective, shape, count, start=start),
}
"""Searches by name, from an objective, a shape, a count and a mask to begin at."""
# No search ends by steps, unless it is told to.
_MAX_STEPS = 1_000_000


def improve(
    key: PRNGKey,
    mask: HardMask,
    spectrogram: Spectrogram,
    phase: Float[Array, "F T"],
    network: Pretrained,
    *,
    search: str = "swaps",
    seconds: float = 60.0,
    evaluations: int | None = None,
    loss: str = "quality",
    keep_observed: bool = True,
    progress: bool | None = False,
) -> HardMask:
    """Searches for a better mask of the same count.

    Args:
        key: Of the search.
        mask: To begin at.
        spectrogram: The clip in dB, F by T.
        phase: Radians, F by T.
        network: What fills in the rest.
        search: A name in `SEARCHES`.
        seconds: How long to search, without compilation; what has begun is finished.
        evaluations: No step is begun that would evaluate more masks than these.
        loss: What is minimised: terms, or the name of a mixture, as of `mixture_objective`.
        keep_observed: Whether the kept bins are put back.
        progress: See `jaxsparse.search.run.run`.

    Raises:
        JaxsparseError: If the decoder runs on the host, so that it has no gradient, the search is
            unknown, or `seconds` is not positive and finite.
        ValueError: If `loss` can't be read.
    """
    check(search, seconds)
    if network.decoder.on_host:
        name = type(network.decoder.config).__name__
        raise JaxsparseError(f"a search needs gradients, and {name} runs on the host")
    config = STFTConfig()
    n_samples = max((spectrogram.shape[1] - 1) * config.hop_length, 1)
    sound = to_waveform(spectrogram, phase, config, length=n_samples)
    objective = mixture_objective(
        network.decoder,
        network.params,
        spectrogram,
        phase,
        sound,
        loss=loss,
        keep_observed=keep_observed,
        config=config,
        derivative="put-back",
    )
    n_bins, n_frames = spectrogram.shape
    made = SEARCHES[search](objective, (n_bins, n_frames), jnp.sum(mask, dtype=jnp.int32), mask)
    result = run(
        made,
        key,
        steps=_MAX_STEPS,
        minutes=seconds / 60,
        evaluations=evaluations,
        progress=progress,
        label=search,
    )
    return result.mask((n_bins, n_frames))


def check(search: str, seconds: float) -> None:
    """Refuses settings out of range.

    Raises:
        JaxsparseError: If the search is unknown, or `seconds` is not positive and finite.
    """
    if search not in SEARCHES:
        raise JaxsparseError(f"no search is named {search!r}; there are {', '.join(SEARCHES)}")
    if not 0 < seconds < math.inf:
        raise JaxsparseError(f"a search takes a positive number of seconds, not {seconds}")
