"""The parts that can be exchanged: what a decoder and a mask policy must offer.

Each is listed by name in one dict, `jaxsparse.decoders.DECODERS` and `jaxsparse.policies.POLICIES`;
relaxations, which belong to searches, in `jaxsparse.search.relaxations.RELAXATIONS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

from jaxtyping import Array, Int

from jaxsparse.types import HardMask, Mask, PRNGKey, Spectrogram

Params: TypeAlias = dict[str, Any]


@runtime_checkable
class Apply(Protocol):
    """Completes a masked spectrogram: a pure function of one example."""

    def __call__(
        self,
        params: Params,
        spectrogram: Spectrogram,
        mask: Mask,
        valid: HardMask | None = None,
    ) -> Spectrogram:
        """Completes a spectrogram.

        Args:
            params: Parameters, as `Decoder.init` makes them.
            spectrogram: dB; where a hard mask hides, any value.
            mask: Which bins are observed.
            valid: False where the array only pads the spectrogram. Nothing there is observed, in
                any layer, so that what is valid comes out as without padding.

        Returns:
            dB, at every bin.
        """
        ...


@runtime_checkable
class DecoderConfig(Protocol):
    """Settings of a decoder: a frozen dataclass of numbers, strings and tuples, with defaults.

    Raises:
        ValueError: If one is out of range.
    """

    def build(self) -> "Decoder":
        """Builds the decoder; the same object for equal settings."""
        ...


@dataclass(frozen=True)
class Decoder:
    """What fills in the bins that a mask hides, as pure functions; the same for the same config."""

    config: DecoderConfig
    """Settings that it was built of; their ``repr`` tells it from any other decoder."""
    init: Callable[[PRNGKey], Params]
    """Draws parameters; empty where there are none to train."""
    apply: Apply
    """Completes a spectrogram."""
    halo: int | None
    """Frames on each side that an output depends on, at most; None: on all of them."""
    alignment: int = 1
    """Frames at whose multiples a spectrogram may be cut: at least `halo` frames behind such a cut,
    outputs are those for the whole spectrogram."""
    on_host: bool = False
    """Whether it runs on the host: it has no gradient then, and can't be traced."""


Sampler: TypeAlias = Decoder
"""A network that scores bins: of the same shape, but `apply` takes the dense spectrogram, and gives
scores in no unit, -inf where the array only pads the spectrogram."""


@runtime_checkable
class Policy(Protocol):
    """Chooses at once which bins to keep: a pure function of one spectrogram.

    A policy with a true attribute ``takes_padding`` accepts frames of -inf behind the clip and
    chooses none of their bins by score; the codec then pads clips, and compiles for fewer lengths.
    """

    def __call__(
        self, key: PRNGKey, spectrogram: Spectrogram, count: int | Int[Array, ""]
    ) -> HardMask:
        """Makes a mask.

        Args:
            key: Of what is drawn.
            spectrogram: dB, F by T.
            count: Number of ones, from 0 to F T.

        Returns:
            A mask, F by T, with exactly `count` ones.

        Raises:
            ValueError: If `count` is not in that range; a traced one is not checked.
        """
        ...
