import matplotlib.figure
import numpy as np
import pytest

from jaxsparse.plots import draw_spectrogram


@pytest.mark.parametrize(("pooled", "frequency"), [(1, 24 * 7.8125), (4, (4 * 24 + 1.5) * 7.8125)])
def test_bins_lie_at_their_frequency_and_frames_at_their_time(pooled, frequency):
    levels = np.full((1024 // pooled, 40), -np.inf)
    levels[24, 10] = 0.0
    axes = matplotlib.figure.Figure().subplots()
    mesh = draw_spectrogram(axes, levels, n_fft=2048, hop_length=256, pooled=pooled, vmin=-80)
    assert axes.get_xlabel() == "Time (seconds)"
    assert axes.get_ylabel() == "Hz"
    shown = mesh.get_array()
    assert isinstance(shown, np.ma.MaskedArray)
    assert np.argwhere(~np.ma.getmaskarray(shown)).tolist() == [[24, 10]]
    # The corners of the cell, as (s, Hz): 256 samples and 7.8125 Hz from bin to bin at 16 kHz.
    corners = np.asarray(mesh.get_coordinates())[24:26, 10:12]
    np.testing.assert_allclose(corners.mean(axis=(0, 1)), [10 * 0.016, frequency])
    np.testing.assert_allclose(corners[1, 1] - corners[0, 0], [0.016, pooled * 7.8125])
