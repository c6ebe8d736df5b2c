"""The ``.jsac`` file: audio to its bytes and back.

Names are imported when they are first used: what is in a file can be said without JAX.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
