"""What the programs have in common on the command line."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from jaxsparse.compilation import use_cache
from jaxsparse.errors import JaxsparseError, MissingExtraError, describe, needs_extra

Settings = TypeVar("Settings")


def parse_settings(
    kind: type[Settings], name: str, description: str | None, argv: Sequence[str] | None
) -> Settings:
    """Makes settings of a command line's flags.

    Args:
        kind: A dataclass with a docstring for each field.
        name: Of the module that is run as the program.
        description: What ``--help`` begins with.
        argv: Arguments without the program's name; those of the process by default.

    Raises:
        MissingExtraError: If tyro is not installed.
        SystemExit: After ``--help``, and for arguments that can't be parsed.
    """
    with needs_extra("eval"):
        import tyro

    return tyro.cli(kind, prog=f"python -m {name}", description=description, args=argv)


def run_command(
    name: str, work: Callable[[], str], *, stopped: str = "the same command goes on"
) -> int:
    """Prints what `work` returns, or one line on what went wrong; keeps what is compiled.

    Args:
        name: Of the program, which begins that line.
        work: The program.
        stopped: What to say after Ctrl-C.

    Returns:
        0, 1 if the reader of the output has left, 2 where something was refused or an extra is
        missing, 130 after Ctrl-C.
    """
    use_cache()
    try:
        print(work(), flush=True)
    except BrokenPipeError:
        # The reader of our output has left; the interpreter's own flush mustn't complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (JaxsparseError, MissingExtraError, OSError) as error:
        print(f"{name}: {describe(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: stopped; {stopped}", file=sys.stderr)
        return 130
    return 0
