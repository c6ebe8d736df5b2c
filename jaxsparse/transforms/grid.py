"""What an MDCT file's numbers stand for; needs no JAX, so that files can be described without."""

HOP_LENGTH = 256
"""Coefficients of a frame, and samples from frame to frame."""
BAND_EDGES = (0, 12, 24, 40, 56, 76, 100, 128, 160, 200, 256)
"""First coefficients of the bands, and their end."""
N_BANDS = len(BAND_EDGES) - 1
BAND_FRAMES = 2
"""Frames that share a level of each band."""
N_LEVELS = 12
"""Levels of a band's zeros: silence, and steps of `LEVEL_DB` up to `HIGHEST_LEVEL_DB`."""
LEVEL_DB = 5.0
HIGHEST_LEVEL_DB = -9.0
"""RMS over the step, about that of coefficients spread evenly over what is rounded to zero."""
N_RATES = 64
"""Rates that a file tells its decoder: the step over the active level is 2^(rate / 8 - 4)."""
