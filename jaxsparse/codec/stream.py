"""Audio to the bytes of a ``.jsac`` file and back, on either grid."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Float32

from jaxsparse.codec import mdct_container, mdct_stream, stft_stream
from jaxsparse.codec.mdct_settings import MDCTSettings
from jaxsparse.codec.stft_stream import STFTSettings
from jaxsparse.codec.weights import MDCTCodec
from jaxsparse.errors import JaxsparseError
from jaxsparse.pretrained import Pretrained
from jaxsparse.types import Progress

GRIDS = {"mdct": MDCTSettings, "stft": STFTSettings}
"""Grids by name, and what `compress` may be told about each."""

_DEFAULT = MDCTSettings()


def compress(
    samples: Float[np.ndarray, "N C"],
    sample_rate: int,
    settings: MDCTSettings | STFTSettings = _DEFAULT,
    *,
    mask: Bool[np.ndarray, "*C F T"] | None = None,
    decoder: Pretrained | None = None,
    codec: MDCTCodec | None = None,
    progress: Progress | None = None,
) -> bytes:
    """Compresses audio on the grid of the settings.

    Args:
        samples: Within about -1 to 1; any number of channels, coded one by one.
        sample_rate: Hz; the clip is resampled to 16 kHz.
        settings: `MDCTSettings`, or `STFTSettings` for the thesis' grid.
        mask: Coefficients of that grid that are kept, of all channels or of each one, as a search
            found them or `jaxsparse.mask_files.load_mask` reads them.
        decoder: On the STFT grid, what fills in the rest, instead of what the settings name.
        codec: On the MDCT grid, networks and context models, instead of those.
        progress: Called with the number of steps done, from 0, and of all.

    Returns:
        A ``.jsac`` file.

    Raises:
        AudioError: If there are no samples, or some that are not usable.
        JaxsparseError: If a network is not there or of the other grid, a sparsity keeps not a
            single bin, or the mask doesn't fit the clip.
    """
    grid = "MDCT" if isinstance(settings, MDCTSettings) else "STFT"
    if (decoder if grid == "MDCT" else codec) is not None:
        raise JaxsparseError(f"the {grid} grid takes no such network")
    if isinstance(settings, MDCTSettings):
        return mdct_stream.compress(
            samples, sample_rate, settings, mask=mask, codec=codec, progress=progress
        )
    return stft_stream.compress(
        samples, sample_rate, settings, mask=mask, decoder=decoder, progress=progress
    )


def decompress(
    data: bytes,
    *,
    start: float = 0.0,
    duration: float | None = None,
    conceal: bool = False,
    on_damage: Callable[[str], object] = lambda damage: None,
    decoder: Pretrained | None = None,
    codec: MDCTCodec | None = None,
    progress: Progress | None = None,
) -> tuple[Float32[np.ndarray, "N C"], int]:
    """Decompresses a file of any version, or a part of it.

    Args:
        data: A ``.jsac`` file.
        start: Seconds that are left out.
        duration: Seconds to decode at most; None decodes all to the end.
        conceal: Whether a damaged segment of an MDCT file is silence instead of an error.
        on_damage: Called with a line on each segment that was concealed.
        decoder: Network for STFT files; by default the one of a file's name that is installed.
        codec: Networks for MDCT files, which use no `decoder`; by default those of a file's name
            that are installed.
        progress: Called with the number of segments done, from 0, and in all.

    Returns:
        Samples and sample rate, of the original's length, channels and rate. Machines agree to
        one step of 16 bits.

    Raises:
        ContainerError: If the bytes are not a whole, unaltered file; before memory is allocated
            where they promise more than a file can hold.
        JaxsparseError: If the network is not there or has other weights than the file's, if nothing
            lies within `start` and `duration`, or if an STFT file is to be concealed.
    """
    if mdct_container.is_mdct(data):
        return mdct_stream.decompress(
            data,
            start=start,
            duration=duration,
            conceal=conceal,
            on_damage=on_damage,
            codec=codec,
            progress=progress,
        )
    if conceal:
        raise JaxsparseError("damage can be concealed in files of the MDCT grid alone")
    samples, sample_rate = stft_stream.decompress(data, decoder=decoder, progress=progress)
    span = mdct_stream.span_of(len(samples), sample_rate, start, duration)
    return samples[span], sample_rate
