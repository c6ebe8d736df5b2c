"""JSON that comes from outside: an object of sane depth, or one kind of error."""

import json
from typing import Any

# What is read must also be compared and printed, which recurses in Python's own stack.
_MAX_DEPTH = 100


def parse_object(text: str | bytes) -> dict[str, Any]:
    """Parses JSON that must be an object.

    Args:
        text: The JSON; bytes are UTF-8.

    Raises:
        ValueError: If it is no UTF-8, no JSON, no object or nested too deeply; says which in one
            line, without the file.
    """
    try:
        value = json.loads(text if isinstance(text, str) else text.decode())
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("its JSON is no object")
    if _is_deeper(value, _MAX_DEPTH):
        raise ValueError("its JSON is nested too deeply")
    return value


def _is_deeper(value: Any, depth: int) -> bool:
    """Whether lists and objects nest deeper; without recursion."""
    level = [value]
    for _ in range(depth):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return bool(level)
