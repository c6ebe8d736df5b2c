"""Spectrograms: with axes, on matplotlib's, and without, as PNG."""

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from jaxsparse.spectrogram import TOP_DB
from jaxsparse.types import SAMPLE_RATE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh

COLORMAP = "magma"
# Rows of a picture, and of one with holes, whose dots have to be seen.
_ROWS, _KEPT_ROWS = 512, 256


def draw_spectrogram(
    axes: "Axes",
    levels: Float[np.ndarray, "F T"],
    *,
    sample_rate: int = SAMPLE_RATE,
    n_fft: int,
    hop_length: int,
    pooled: int = 1,
    **colours: Any,
) -> "QuadMesh":
    """Draws a spectrogram with ``librosa.display.specshow``, time in s and frequency in Hz.

    Args:
        axes: What to draw on.
        levels: By bin and frame; what is not finite shows the axes' background.
        sample_rate: In Hz.
        n_fft: Samples of the Fourier transform.
        hop_length: Samples between frames.
        pooled: Bins of the transform in a row of `levels`.
        **colours: ``vmin``, ``vmax``, ``cmap`` and the like, for matplotlib's ``pcolormesh``.

    Returns:
        What a colour bar is made for.
    """
    # Its import takes a second.
    import librosa.display

    n_rows, n_frames = levels.shape
    # Of no finite level at all librosa can't tell which colours suit.
    shown = levels if np.isfinite(levels).any() else np.zeros_like(levels)
    bins = pooled * np.arange(n_rows) + (pooled - 1) / 2
    drawn: Any = librosa.display.specshow(
        shown,
        x_coords=np.arange(n_frames) * hop_length / sample_rate,
        y_coords=bins * sample_rate / n_fft,
        x_axis="s",
        y_axis="linear",
        sr=sample_rate,
        ax=axes,
        **colours,
    )
    drawn.set_array(np.ma.masked_invalid(levels))
    return drawn


def draw_levels(
    levels: Float[np.ndarray, "F T"], peak: float, mask: Bool[np.ndarray, "F T"] | None = None
) -> bytes:
    """Draws a whole clip's levels as PNG, without axes, low frequencies at the bottom.

    Args:
        levels: dB.
        peak: What the brightest colour stands for, dB.
        mask: Bins to show, the others being transparent; by default all. Where there are more than
            a picture has rows, the loudest of neighbours above each other is shown then, so that
            none that stands alone is lost.
    """
    if mask is None:
        return _spectrogram_png(pool_bins(levels, len(levels) // _ROWS, np.mean), peak)
    factor = len(levels) // _KEPT_ROWS
    shown = pool_bins(np.where(mask, levels, -np.inf), factor, np.max)
    return _spectrogram_png(shown, peak, pool_bins(mask, factor, np.max))


def pool_bins(levels: np.ndarray, factor: int, reduce: Callable[..., np.ndarray]) -> np.ndarray:
    """Reduces groups of bins along frequency; the rest at the top (Nyquist) is left out.

    Args:
        levels: By bin and frame.
        factor: Bins of a group; less than one is one, and more than there are is all.
        reduce: Such as ``np.max``.
    """
    factor = min(max(factor, 1), len(levels))
    n_groups = len(levels) // factor
    return reduce(levels[: n_groups * factor].reshape(n_groups, factor, -1), axis=1)


def color_stops() -> str:
    """Lists the colours from the quietest to the loudest, as CSS takes them in a gradient."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return ", ".join(to_hex(colormaps[COLORMAP](x)) for x in np.linspace(0.0, 1.0, 9))


def _spectrogram_png(
    levels: Float[np.ndarray, "F T"], peak: float, mask: Bool[np.ndarray, "F T"] | None = None
) -> bytes:
    """Levels in dB by colour, low frequencies at the bottom, bins outside `mask` transparent."""
    from matplotlib import colormaps
    from matplotlib.image import imsave

    # 64 steps of 1.25 dB can't be told apart and halve the file.
    scaled = np.round(np.clip((levels - peak) / TOP_DB + 1.0, 0.0, 1.0) * 63) / 63
    pixels = colormaps[COLORMAP](scaled, bytes=True)
    if mask is not None:
        pixels[~mask] = 0
    buffer = io.BytesIO()
    imsave(buffer, pixels[::-1], format="png")
    return buffer.getvalue()
