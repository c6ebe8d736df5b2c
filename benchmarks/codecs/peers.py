"""All codecs of the comparison, by name, and published figures of others."""

from typing import NamedTuple

from benchmarks.codecs import own
from benchmarks.codecs.amr_wb import AMR_WB
from benchmarks.codecs.codec2 import CODEC2
from benchmarks.codecs.contract import Codec
from benchmarks.codecs.files import FLAC, MP3
from benchmarks.codecs.lace import LACE, NOLACE
from benchmarks.codecs.low_complexity import LC3
from benchmarks.codecs.opus import OPUS
from benchmarks.codecs.speex import SPEEX

PEERS: dict[str, Codec] = {
    "opus": OPUS,
    "opus-lace": LACE,
    "opus-nolace": NOLACE,
    "amr-wb": AMR_WB,
    "lc3": LC3,
    "codec2": CODEC2,
    "speex": SPEEX,
    "mp3": MP3,
    "flac": FLAC,
}
NAMES = (own.NAME, *PEERS)


def find(name: str) -> Codec:
    """Returns the codec of a name, which is one of `PEERS` or ``jaxsparse-EFFORT``.

    Raises:
        ValueError: If there is none.
    """
    if name in PEERS:
        return PEERS[name]
    return own.make_codec(own.KBPS, int(name.removeprefix(f"{own.NAME}-")))


class Published(NamedTuple):
    """What others report of a neural codec, on their own data."""

    name: str
    kbps: float
    pesq_wb: float


PUBLISHED = (
    Published("ESC-Large", 3.0, 3.42),
    Published("ESC-Large", 6.0, 3.99),
    Published("ESC-Large", 9.0, 4.19),
    Published("DAC, 16 kHz", 6.0, 3.88),
    Published("MOSS", 3.0, 3.61),
    Published("EnCodec", 6.0, 2.82),
)
