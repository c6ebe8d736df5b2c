"""Changes of bytes that know nothing of the format."""

import random
from collections.abc import Callable

Change = Callable[[bytes], bytes]


def change_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flips, overwrites, inserts, deletes, doubles or cuts bytes."""
    place = rng.randint(0, len(data))
    length = rng.randint(1, 8)
    end = min(place + length, len(data))
    before, middle, after = data[:place], data[place:end], data[end:]
    kind = rng.randrange(6)
    if kind == 0:
        middle = bytes(byte ^ 1 << rng.randrange(8) for byte in middle)
    elif kind == 1:
        middle = rng.randbytes(len(middle))
    elif kind == 2:
        middle = rng.randbytes(length) + middle
    elif kind == 3:
        middle = b""
    elif kind == 4:
        middle += middle
    else:
        after = b""
    return before + middle + after
