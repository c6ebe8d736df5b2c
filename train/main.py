"""Trains a network: ``python -m train.main --data DIR --workdir RUN``.

With ``--recipe perceptual --loss mse+0.5*mfcc`` it fine-tunes a trained one, from the checkout's
root, for its sound too; ``--init-from`` names another.

SIGTERM and Ctrl-C end a run after the step it is at; what it has done is saved, and the same
command with ``--resume`` goes on to the same network, bit for bit. A second one ends at once, and
what the last checkpoint holds remains.

Exit codes: 0 trained; 2 a fault, which one line on stderr names; 75 stopped by SIGTERM
(``EX_TEMPFAIL``: run it again); 130 stopped by Ctrl-C.
"""

import argparse
import logging
import os
import signal
import sys
from types import FrameType
from typing import Any

from jaxsparse.errors import JaxsparseError, MissingExtraError, describe, needs_extra

EXIT_CODES = {signal.SIGTERM: getattr(os, "EX_TEMPFAIL", 75), signal.SIGINT: 130}


def main(argv: list[str] | None = None) -> int:
    """Parses the flags and trains; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    with StopSignals() as signals:
        try:
            return _train(argv, signals)
        except (JaxsparseError, MissingExtraError, OSError, FloatingPointError) as error:
            print(f"train: {describe(error)}", file=sys.stderr, flush=True)
            _leave_cluster()
            return 2


def _leave_cluster() -> None:
    # JAX takes a second to import, and most errors come before.
    if "jax" in sys.modules:
        from jaxsparse import sharding

        sharding.end_if_others_wait(2)


class StopSignals:
    """Turns the first SIGTERM or SIGINT into a request that the training loop asks for.

    Until it has asked for the first time, a signal ends the process: nothing is lost then. The
    second signal always does.
    """

    def __init__(self) -> None:
        # Until one comes: another process of the cluster was stopped then.
        self._received: int = signal.SIGTERM
        self._requested = self._asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        for number in EXIT_CODES:
            # A shell's background jobs and nohup ignore some, and that should stay so.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def exit_code(self) -> int:
        """What to leave with, by the signal that came."""
        return EXIT_CODES[signal.Signals(self._received)]

    def requested(self) -> bool:
        """Whether the run should save and end; from the first call on, signals only set this."""
        self._asked = True
        return self._requested

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received, self._requested = number, True
        if not self._asked:
            # An exception would get lost, or become another, within an import of a C extension.
            os.write(2, b"train: stopped before the first step\n")
            os._exit(self.exit_code)
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)


def _train(argv: list[str], signals: StopSignals) -> int:
    # First, since some of the imports give the root logger a handler where there is none.
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for library in ("absl", "jax"):
        logging.getLogger(library).setLevel(logging.WARNING)
    # Imported here: they take seconds, in which a signal should already be heeded.
    with needs_extra("train"):
        import tyro

    from train.settings import RECIPES, Settings, start_config, trainable

    # What decides on the other flags and their defaults.
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe", choices=sorted(RECIPES), default="thesis")
    first.add_argument("--decoder")
    chosen, rest = first.parse_known_args(argv)
    defaults: dict[str, Any] = {
        **RECIPES[chosen.recipe],
        "decoder": start_config(chosen.recipe, chosen.decoder),
    }
    settings = tyro.cli(
        Settings,
        default=Settings(tyro.MISSING, tyro.MISSING, **defaults),
        prog="python -m train.main",
        description=f"Trains a network. --recipe {{{','.join(sorted(RECIPES))}}} chooses the "
        f"defaults; these are those of '{chosen.recipe}'. --decoder {{{','.join(trainable())}}} "
        "chooses the decoder, whose own settings are listed last. SIGTERM or Ctrl-C saves the step "
        "that was reached and ends with exit code 75 or 130, and --resume goes on from there; a "
        "second one ends at once. A fault is named in one line, with exit code 2. Example: "
        "--recipe perceptual --loss mse+0.5*mfcc fine-tunes a trained network for its sound too.",
        args=rest,
    )
    from jaxsparse import sharding
    from jaxsparse.compilation import use_cache
    from train.loop import Stopped, train

    use_cache()
    try:
        with sharding.use(settings.mesh):
            train(settings, recipe=chosen.recipe, stop=signals.requested)
    except Stopped as stopped:
        print(f"train: {stopped}", file=sys.stderr)
        return signals.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
