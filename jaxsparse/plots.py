"""Spectrograms with axes, on matplotlib's."""

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from jaxsparse.types import SAMPLE_RATE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh


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
    bins = pooled * np.arange(n_rows) + (pooled - 1) / 2
    drawn: Any = librosa.display.specshow(
        levels,
        x_coords=np.arange(n_frames) * hop_length / sample_rate,
        y_coords=bins * sample_rate / n_fft,
        x_axis="s",
        y_axis="linear",
        sr=sample_rate,
        ax=axes,
        **colours,
    )
    return drawn
