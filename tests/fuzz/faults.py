"""Files that a decoder must refuse."""

from typing import NamedTuple


class Fault(NamedTuple):
    """A file that a decoder must refuse.

    Attributes:
        name: Of the file, without its suffix.
        fault: What is wrong.
        message: That the command must give behind the file's name.
        data: The file.
        decoded: Whether the fault shows only when the file is decoded.
    """

    name: str
    fault: str
    message: str
    data: bytes
    decoded: bool = False


def flip(data: bytes, place: int) -> bytes:
    """Flips the lowest bit of a byte."""
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
