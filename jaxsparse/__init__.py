"""Audio compression in the time-frequency domain with sparse CNNs, in JAX and Flax.

Names are imported when they are first used, so that the command line starts at once.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
