"""Trains a network: ``python -m train.main --data DIR --workdir RUN``."""

import argparse
import functools
import logging
import sys

import tyro

from jaxsparse.errors import JaxsparseError
from train.settings import RECIPES, Settings


def main(argv: list[str] | None = None) -> int:
    """Parses the flags and trains; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    recipe_flag = argparse.ArgumentParser(add_help=False)
    recipe_flag.add_argument("--recipe", choices=sorted(RECIPES), default="thesis")
    chosen, rest = recipe_flag.parse_known_args(argv)
    try:
        settings = tyro.cli(
            functools.partial(Settings, **RECIPES[chosen.recipe]),
            prog="python -m train.main",
            description=f"Trains a network. --recipe {{{','.join(sorted(RECIPES))}}} chooses the "
            f"defaults; these are those of '{chosen.recipe}'.",
            args=rest,
        )
        from train.loop import train

        logging.basicConfig(level=logging.INFO, format="%(message)s")
        train(settings, recipe=chosen.recipe)
    except (JaxsparseError, OSError, ValueError, FloatingPointError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
