"""Fuzzes the decoder of ``.jsac`` files, guided by coverage.

What the decoder makes of any bytes must be its own error, or a file whose every segment holds
what the header says, and comes out the same when it is coded again.
"""

import argparse
import importlib.util
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).parent / "corpus"
GRIDS = {"stft": CORPUS, "mdct": CORPUS / "mdct"}
"""Where the files of each grid are."""
MAX_BYTES = 4096
# The interpreter with NumPy takes 100 MB.
RSS_LIMIT_MB = 400
# Of the processor's time, since a machine may be busy; the slowest inputs take less than one. What
# hangs is stopped by the clock on the wall.
SECONDS_PER_INPUT = 10
SECONDS_TO_HANG = 360
# The instrumentation of atheris 3.0.0 leaks what comparisons of arrays give, 3 kB for an input.
RUNS_PER_PROCESS = 20_000

_EXAMPLES = """\
examples:
  python -m tests.fuzz.run --minutes 60 --out fuzz
  python -m tests.fuzz.run --grid mdct           version 3 alone
  python -m tests.fuzz.run fuzz/crash-0123...      run this one input again

DIR/corpus keeps what reached new code, also for the next run; DIR/crash-*, timeout-* and oom-*
are findings. The exit status is 0 where nothing was found. Needs atheris (Linux on x86_64).
"""


def main(argv: list[str] | None = None) -> int:
    """Runs the fuzzer, or the decoder on single inputs."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz.run",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=1.0, help="how long (default: 1)")
    parser.add_argument(
        "--grid", choices=GRIDS, action="append", help="files of this one alone (default: of both)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the mutations (default: 1)")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="for what is found (default: a temporary one)"
    )
    parser.add_argument("inputs", nargs="*", type=Path, help="run these files, and no fuzzing")
    arguments = parser.parse_args(argv)
    try:
        if arguments.inputs:
            return _run(arguments.inputs)
        if importlib.util.find_spec("atheris") is None:
            parser.error("needs the package atheris, which exists for Linux on x86_64 alone")
        out = arguments.out or Path(tempfile.mkdtemp(prefix="jaxsparse-fuzz-"))
        grids = arguments.grid or [*GRIDS]
        return _fuzz(out, grids, arguments.minutes, arguments.seed)
    except OSError as error:
        parser.error(str(error))


def _run(paths: list[Path]) -> int:
    from tests.fuzz.check import check

    for path in paths:
        print(f"{path}: {check(path.read_bytes())} segments accepted")
    return 0


def _fuzz(out: Path, grids: list[str], minutes: float, seed: int) -> int:
    """Fuzzes in one process after the other; returns the exit status of the last one."""
    (out / "corpus").mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    counts = context.RawArray("Q", 3)
    start, status, left = time.monotonic(), 0, 60 * minutes
    while left >= 1 and status == 0:
        options = {
            "max_total_time": round(left),
            "runs": RUNS_PER_PROCESS,
            "seed": seed,
            "max_len": MAX_BYTES,
            "timeout": SECONDS_TO_HANG,
            "rss_limit_mb": RSS_LIMIT_MB,
            "artifact_prefix": f"{out}/",
            "print_final_stats": 1,
        }
        process = context.Process(target=_fuzz_once, args=(out, grids, options, counts))
        process.start()
        process.join()
        status, seed = process.exitcode or 0, seed + 1
        left = 60 * minutes - (time.monotonic() - start)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    took = (time.monotonic() - start) / 60
    print(
        f"{counts[0]:,} inputs in {took:.1f} minutes, {counts[1]:,} accepted at least in part, "
        f"with {counts[2]:,} segments; peak memory {peak:.0f} MB; "
        + (f"found something, see {out}" if status else "nothing found")
    )
    return status


def _fuzz_once(out: Path, grids: list[str], options: dict[str, Any], counts: Any) -> None:
    import atheris  # pyright: ignore[reportMissingImports]

    # Coverage is of what is imported from here on, hence no import of the package above.
    with atheris.instrument_imports(  # pyright: ignore[reportAttributeAccessIssue]
        include=["jaxsparse"]
    ):
        from jaxsparse.codec.mdct_container import is_mdct
        from tests.fuzz.check import check
        from tests.fuzz.mutate import mutate as change

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        return change(data, rng, lambda part: atheris.Mutate(part, len(part) + 16))[:max_size]

    def test(data: bytes) -> None:
        # Reaching nothing, what became a file of the other grid is not kept.
        if ("mdct" if is_mdct(data) else "stft") not in grids:
            return
        counts[0] += 1
        start = time.process_time()
        segments = check(data)
        assert time.process_time() - start < SECONDS_PER_INPUT, "it takes too long"
        counts[1] += segments > 0
        counts[2] += segments

    made = (GRIDS[grid] / name for grid in grids for name in ("faulty", "found", "valid"))
    folders = [out / "corpus", *(folder for folder in made if folder.is_dir())]
    flags = [f"-{name}={value}" for name, value in options.items()]
    atheris.Setup([sys.argv[0], *flags, *map(str, folders)], test, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
