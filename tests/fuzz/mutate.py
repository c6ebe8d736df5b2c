"""Changes of a file of any version, in the pieces that it is made of."""

import random

from jaxsparse.codec.mdct_container import is_mdct
from tests.fuzz import mdct_file, stft_file
from tests.fuzz.changes import Change, change_bytes


def mutate(data: bytes, rng: random.Random, change: Change | None = None) -> bytes:
    """Changes a file in one to four places, most often with checksums that fit.

    Args:
        data: A file, or anything else.
        rng: Makes all decisions.
        change: Changes the bytes of one part; by default `change_bytes`.
    """
    change = change or (lambda part: change_bytes(part, rng))
    return (mdct_file if is_mdct(data) else stft_file).mutate(data, rng, change)
