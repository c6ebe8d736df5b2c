"""What each part of the pyramid U-Net is good for.

``python -m train.ablations --data $JAXSPARSE_DATA --out RUN`` trains the network and variants of it
for the same number of steps on ``DATA/train``, and compares them on ``DATA/valid``: without the
fill, without the levels below the finest, trained on random masks alone, and with half and twice
the channels. RUN gets a folder for each, and ``table.md`` beside ``rows.csv`` in ``evaluation``.

A run that was stopped goes on where it was when the same command is given again. 500 steps of one
variant take some ten minutes on two cores.
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval import reconstruction
from eval.command import parse_settings, run_command
from jaxsparse.nn.pyramid_unet import PyramidUNetConfig
from jaxsparse.settings import SettingsError, check_least
from train.loop import train
from train.settings import RECIPES
from train.settings import Settings as TrainSettings

RECIPE = "pyramid"
BASE = PyramidUNetConfig()


def _scaled(factor: float) -> PyramidUNetConfig:
    return dataclasses.replace(BASE, features=tuple(int(n * factor) for n in BASE.features))


VARIANTS: dict[str, dict[str, Any]] = {
    "whole": {},
    "no-fill": {"decoder": dataclasses.replace(BASE, start_from_fill=False)},
    "one-level": {"decoder": dataclasses.replace(BASE, features=BASE.features[:1])},
    "random-alone": {"masks": ("random",)},
    "half-width": {"decoder": _scaled(0.5)},
    "twice-the-width": {"decoder": _scaled(2)},
}
"""Settings of training that differ from the recipe's."""


@dataclass(frozen=True)
class Settings:
    """Settings of the ablations."""

    data: Path
    """Folder with the folders train and valid."""
    out: Path
    """Folder for the networks and the results; a run in it is resumed."""
    variants: tuple[str, ...] = tuple(VARIANTS)
    """What to train."""
    steps: int = 500
    """Training steps of each."""
    batch_size: int = RECIPES[RECIPE]["batch_size"]
    """Clips in a step."""
    n_samples: int = RECIPES[RECIPE]["n_samples"]
    """Samples of a clip in training."""
    mask: tuple[str, ...] = ("random", "mixed", "contrast-70")
    """Policies that the comparison's masks are made by."""
    sparsity: tuple[float, ...] = (0.9, 0.95)
    """Shares of bins that they hide."""
    limit: int | None = None
    """Only the first clips of valid."""
    json: bool = False
    """Print the JSON summary instead of the table."""


def train_variants(settings: Settings) -> reconstruction.Settings:
    """Trains what is not trained yet.

    Returns:
        The settings of the evaluation that compares the networks.

    Raises:
        SettingsError: If a setting is out of range.
    """
    check_least(settings, {"steps": 1, "batch_size": 1, "n_samples": 1, "limit": 1})
    for name in settings.variants:
        if name not in VARIANTS:
            raise SettingsError(f"no variant is named {name!r}; there are {', '.join(VARIANTS)}")
    networks = tuple(_train(settings, name) for name in settings.variants)
    return reconstruction.Settings(
        data=settings.data / "valid",
        out=settings.out / "evaluation",
        decoders=tuple(map(str, networks)),
        mask=settings.mask,
        sparsity=settings.sparsity,
        keep_observed="yes",
        phases=("all",),
        seeds=(0,),
        limit=settings.limit,
        json=settings.json,
    )


def _train(settings: Settings, name: str) -> Path:
    workdir = settings.out / name
    chosen = {
        **RECIPES[RECIPE],
        **VARIANTS[name],
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "n_samples": settings.n_samples,
    }
    # A run that is complete does no step and writes the same network again.
    return train(
        TrainSettings(settings.data / "train", workdir, resume=True, picture_every=0, **chosen),
        recipe=RECIPE,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; the exit codes are those of `run_command`."""

    def work() -> str:
        settings = parse_settings(Settings, "train.ablations", __doc__, argv)
        return reconstruction.run_text(train_variants(settings))

    return run_command("train.ablations", work)


if __name__ == "__main__":
    sys.exit(main())
