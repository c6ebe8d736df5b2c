"""What an encoder may be told about the MDCT grid."""

from dataclasses import dataclass

from jaxsparse.codec.header import CODED_RATE
from jaxsparse.settings import SettingsError
from jaxsparse.transforms.grid import HOP_LENGTH

CODEC_NAMES = ("mdct",)
"""Codecs that ship with the package."""
DEFAULT_KBPS = 8.0
KBPS = (2.0, 64.0)
"""Rates that may be asked for."""
UPDATES = (0, 20, 60, 200)
"""Updates of the search at each effort."""


@dataclass(frozen=True)
class MDCTSettings:
    """What `compress` may be told about the MDCT grid.

    One of `kbps`, `pesq` and `sparsity` decides how fine the step is; 8 kbit/s by default, and the
    sparsity of the mask where one is given.

    Attributes:
        kbps: Bits of the file over the length of the clip, in thousands; a clip counts as a quarter
            of a second for each channel at least.
        pesq: PESQ in wide band that the decoded sound should have, by the surrogate's estimate.
        sparsity: Share of coefficients that are not kept, between 0 and 1.
        effort: How long to search for better values, 0 (not at all) to 3.
        bandwidth: Frequency in Hz above which nothing is coded; None codes up to 8 kHz.
        codec: Networks: a name of `CODEC_NAMES`, or the path of a ``.safetensors`` file.

    Raises:
        SettingsError: If a setting is out of its range, or more than one decides on the step.
    """

    kbps: float | None = None
    pesq: float | None = None
    sparsity: float | str | None = None
    effort: int = 0
    bandwidth: float | None = None
    codec: str = CODEC_NAMES[0]

    def __post_init__(self) -> None:
        given = [n for n in ("kbps", "pesq", "sparsity") if getattr(self, n) is not None]
        if len(given) > 1:
            raise SettingsError(f"{' and '.join(given)} can't be given together")
        ranges = {
            "kbps": KBPS,
            "pesq": (1.0, 4.6),
            "effort": (0, len(UPDATES) - 1),
            "bandwidth": (HOP_LENGTH, CODED_RATE / 2),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise SettingsError(f"{name} {value} is not from {low:g} to {high:g}")
        if self.sparsity is not None and not _is_share(self.sparsity):
            raise SettingsError(f"sparsity {self.sparsity} is not between 0 and 1")


def _is_share(sparsity: float | str) -> bool:
    try:
        return 0 < float(sparsity) < 1
    except ValueError:
        return False
