"""What the programs have in common on the command line."""

import os
import sys
from collections.abc import Callable

from jaxsparse.errors import JaxsparseError, describe


def run_command(
    name: str, work: Callable[[], str], *, stopped: str = "the same command goes on"
) -> int:
    """Prints what `work` returns, or one line on what went wrong.

    Args:
        name: Of the program, which begins that line.
        work: The program.
        stopped: What to say after Ctrl-C.

    Returns:
        0, 1 if the reader of the output has left, 2 where something was refused, 130 after
        Ctrl-C.
    """
    try:
        print(work(), flush=True)
    except BrokenPipeError:
        # The reader of our output has left; the interpreter's own flush mustn't complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (JaxsparseError, OSError) as error:
        print(f"{name}: {describe(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: stopped; {stopped}", file=sys.stderr)
        return 130
    return 0
