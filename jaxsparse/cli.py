"""The command line: ``jaxsparse compress``, ``decompress``, ``info`` and ``demo``.

Nothing heavy is imported before a command needs it, so that help and refusals come at once.
"""

import argparse
import importlib
import json
import os
import re
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from decimal import Decimal, InvalidOperation
from io import BufferedReader
from pathlib import Path
from typing import Any, NoReturn

import jaxsparse
from jaxsparse.errors import JaxsparseError, MissingExtraError, describe, one_line

REFUSED = 2
INTERRUPTED = 130
# What ``-`` stands for.
_STDIN, _STDOUT = Path("/dev/stdin"), Path("/dev/stdout")


class _RefusedError(Exception):
    """Something that a command can't use; the message is all that the user sees."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        The exit status: 0, 2 where something was refused or one of several files failed, 1 where
        nobody reads the output any more, 130 after Ctrl-C.

    Raises:
        SystemExit: After ``--help`` and ``--version``, and for arguments that can't be parsed.
    """
    arguments = _parser().parse_args(argv)
    try:
        return arguments.command(arguments) or 0
    except (_RefusedError, MissingExtraError) as error:
        print(f"jaxsparse: {one_line(str(error))}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return 1


def _compress(arguments: argparse.Namespace) -> int | None:
    if arguments.out is not None:
        return _compress_files(arguments)
    output = _one_output(arguments, ".jsac")
    _check_input(arguments.input)
    _check_output(output, arguments.force, source=arguments.input)
    with _blaming(arguments.input), _opened(arguments.input) as file:
        from jaxsparse import audio, files

        samples, sample_rate = audio.read_audio(file)
    with _blaming():
        with _importing():
            from jaxsparse.codec import stream
            from jaxsparse.compilation import use_cache

        use_cache()
        settings = _settings(arguments)
        given = _networks(settings) | _given_mask(arguments)
    with _blaming(arguments.input), _progress("compressing") as progress:
        data = stream.compress(samples, sample_rate, settings, progress=progress, **given)
    with _blaming(output):
        files.atomic_write(_place(output), data)
    models = _find_models(data, arguments.codec) if arguments.json else None
    description = _describe(data, models)
    say = _report if _place(output) == _place(_STDOUT) else _say
    say(json.dumps(description, indent=2) if arguments.json else _summary(description))
    return None


def _given_mask(arguments: argparse.Namespace) -> dict[str, Any]:
    """Reads the mask that a search found; the errors name its file."""
    if not _is_mask_file(arguments.mask):
        return {}
    from jaxsparse.mask_files import load_mask

    with _blaming(Path(arguments.mask)):
        return {"mask": load_mask(arguments.mask)}


def _is_mask_file(mask: str | None) -> bool:
    return mask is not None and mask.endswith(".npz")


def _compress_files(arguments: argparse.Namespace) -> int:
    from jaxsparse import batch

    if _is_mask_file(arguments.mask):
        raise _RefusedError(f"--mask {arguments.mask}: is of one clip, and --out DIR is for many")

    jobs = _jobs(arguments, batch.JSAC)
    with _blaming():
        _load_codec_modules()
        settings = _settings(arguments)
        work = batch.compression(settings, **_networks(settings))
    return _code_files(arguments, jobs, work, "compressing")


def _settings(arguments: argparse.Namespace) -> Any:
    """Makes the settings of the grid; a flag of the other grid is refused."""
    from jaxsparse.codec import MDCTSettings, STFTSettings

    has_mask_file = _is_mask_file(arguments.mask)
    if has_mask_file and arguments.sparsity is not None:
        raise _RefusedError("--sparsity: the mask has a sparsity of its own")
    if arguments.grid == "mdct":
        if arguments.mask is not None and not has_mask_file:
            raise _RefusedError(
                "--mask: policies belong to --grid stft; a mask of --grid mdct is a .npz file"
            )
        _refuse_flags(arguments, "mdct", _STFT_FLAGS)
        return MDCTSettings(
            kbps=arguments.kbps,
            pesq=arguments.pesq,
            sparsity=arguments.sparsity,
            effort=arguments.effort or 0,
            bandwidth=arguments.bandwidth,
            codec=arguments.codec or "mdct",
        )
    _refuse_flags(arguments, "stft", _MDCT_FLAGS)
    given = {
        "sparsity": arguments.sparsity,
        "mask": None if has_mask_file else arguments.mask,
        "seed": arguments.seed,
        "value_step_db": arguments.value_step,
        "phase_bits": arguments.phase_bits,
        "decoder": arguments.decoder,
        "search": _SEARCHED.get(arguments.search),
        "budget": arguments.budget,
    }
    if arguments.budget is not None and arguments.search is None:
        raise _RefusedError("--budget: there is no --search that would take it")
    given = {name: value for name, value in given.items() if value is not None}
    if arguments.phases is not None:
        given["phase_threshold"] = None if arguments.phases == "all" else int(arguments.phases)
    return STFTSettings(**given)


def _refuse_flags(arguments: argparse.Namespace, grid: str, flags: Sequence[str]) -> None:
    for flag in flags:
        if getattr(arguments, flag.replace("-", "_")) is not None:
            other = "stft" if grid == "mdct" else "mdct"
            raise _RefusedError(f"--{flag} belongs to --grid {other}, not to {grid}")


def _networks(settings: Any) -> dict[str, Any]:
    """Loads what codes; the errors name its file."""
    from jaxsparse.codec import MDCTSettings, choose_decoder, load_codec

    if isinstance(settings, MDCTSettings):
        with _refusing():
            return {"codec": load_codec(settings.codec)}
    decoder, fits = choose_decoder(settings)
    if not fits:
        _step(
            f"no network was trained for {settings.mask} masks of sparsity {settings.sparsity}, "
            f"taking the nearest one, {decoder}"
        )
    return {"decoder": _decoder(decoder)}


def _decompress(arguments: argparse.Namespace) -> int | None:
    if arguments.out is not None:
        return _decompress_files(arguments)
    if arguments.json:
        raise _RefusedError("--json belongs to --out DIR")
    output = _one_output(arguments, ".wav")
    _check_input(arguments.input)
    _check_output(output, arguments.force, source=arguments.input)
    with _blaming(arguments.input):
        from jaxsparse.codec import container, mdct_container

        with _opened(arguments.input) as file:
            data = container.read(file)
        mdct = mdct_container.is_mdct(data)
        if mdct and arguments.decoder is not None:
            raise JaxsparseError("is of the MDCT grid, whose networks --codec names, not --decoder")
        if not (mdct and arguments.conceal):
            _describe(data)
        with _importing():
            from jaxsparse import audio
            from jaxsparse.codec import stream
            from jaxsparse.compilation import use_cache

        use_cache()

        networks: dict[str, Any] = {}
        if mdct and arguments.codec is not None:
            from jaxsparse.codec import load_codec

            with _refusing():
                networks = {"codec": load_codec(arguments.codec)}
        elif arguments.decoder is not None:
            networks = {"decoder": _decoder(arguments.decoder)}
        with _progress("decompressing") as progress:
            samples, sample_rate = stream.decompress(
                data,
                start=arguments.start,
                duration=arguments.duration,
                conceal=arguments.conceal,
                on_damage=lambda damage: _step(f"{_name(arguments.input)}: {damage}"),
                progress=progress,
                **networks,
            )
    with _blaming(output):
        audio.write_wav(_place(output), samples, sample_rate)
    return None


def _decompress_files(arguments: argparse.Namespace) -> int:
    from jaxsparse import batch

    jobs = _jobs(arguments, batch.WAV)
    _load_codec_modules()
    networks: dict[str, Any] = {}
    with _refusing():
        if arguments.codec is not None:
            from jaxsparse.codec import load_codec

            networks["codec"] = load_codec(arguments.codec)
        if arguments.decoder is not None:
            networks["decoder"] = _decoder(arguments.decoder)
    work = batch.decompression(
        start=arguments.start,
        duration=arguments.duration,
        conceal=arguments.conceal,
        **networks,
    )
    return _code_files(arguments, jobs, work, "decompressing")


def _load_codec_modules() -> None:
    """Imports what codes, in the main thread, and keeps what it compiles."""
    with _importing():
        importlib.import_module("jaxsparse.codec.stream")
        from jaxsparse.compilation import use_cache

    use_cache()


def _one_output(arguments: argparse.Namespace, suffix: str) -> Path:
    """Returns where the one input goes; several, and folders, are refused."""
    if arguments.part:
        raise _RefusedError("--part is for many files and needs --out DIR")
    place = _place(arguments.input)
    if isinstance(place, Path) and os.path.isdir(place):
        raise _RefusedError(f"{place}: is a directory; --out DIR says where its files go")
    if len(arguments.more) > 1:
        raise _RefusedError(
            "several inputs need --out DIR, the folder that they go to (see --help)"
        )
    return _output(arguments.more[0]) if arguments.more else _renamed(arguments.input, suffix)


def _jobs(arguments: argparse.Namespace, suffix: str) -> list[Any]:
    """Plans what goes where in the folder ``--out``."""
    from jaxsparse import batch

    inputs = [arguments.input, *map(_input, arguments.more)]
    if _STDIN in inputs:
        raise _RefusedError("standard input has no name, so --out DIR can't tell its file's")
    _check_folder(arguments.out)
    with _refusing():
        jobs = batch.plan(inputs, arguments.out, suffix)
    first, step = arguments.part or (1, 1)
    return jobs[first - 1 :: step]


def _code_files(
    arguments: argparse.Namespace, jobs: Sequence[Any], work: Any, description: str
) -> int:
    """Makes all files, and tells what became of them."""
    from tqdm import tqdm

    from jaxsparse import batch

    bar = tqdm(desc=description, total=len(jobs), unit="file", disable=None, leave=False)

    def tell(outcome: Any) -> None:
        if isinstance(outcome, batch.Failure):
            line = one_line(f"{outcome.path}: {outcome.reason}")
            tqdm.write(f"jaxsparse: {line}", file=sys.stderr)
        elif isinstance(outcome, batch.Done):
            for note in outcome.notes:
                tqdm.write(f"jaxsparse: {one_line(note)}", file=sys.stderr)
        bar.update()

    with _refusing(), bar:
        summary = batch.code_files(jobs, work, force=arguments.force, on_outcome=tell).as_dict()
    _say(json.dumps(summary, indent=2) if arguments.json else _totals(summary))
    return REFUSED if summary["failed"] else 0


def _info(arguments: argparse.Namespace) -> None:
    _check_input(arguments.input)
    with _blaming(arguments.input), _opened(arguments.input) as file:
        from jaxsparse.codec import container

        data = container.read(file)
        models = _find_models(data, arguments.codec)
        description = _describe(data, models)
    _say(json.dumps(description, indent=2) if arguments.json else _table(description))


def _describe(data: bytes, models: Any = None) -> dict[str, Any]:
    """Describes a file of either grid; JAX is not needed for that."""
    from jaxsparse.codec.description import describe as describe_file

    return describe_file(data, models=models)


def _find_models(data: bytes, codec: str | None) -> Any:
    """Reads what tells where the bits of a file's coefficients go."""
    from jaxsparse.codec.description import find_models
    from jaxsparse.codec.mdct_settings import CODEC_NAMES

    return find_models(data, None if codec in CODEC_NAMES else codec)


def _renamed(path: Path, suffix: str) -> Path:
    """Names the output after the input, in the same place."""
    if isinstance(_place(path), int):
        return _STDOUT
    if path.suffix == suffix:
        raise _RefusedError(f"{path}: ends in {suffix} already, so the output needs a name")
    return path.with_suffix(suffix)


def _demo(arguments: argparse.Namespace) -> None:
    if arguments.input is not None:
        _check_input(arguments.input, pipes=False)
    _check_directory(arguments.out, arguments.force)
    with _blaming(arguments.input, target=arguments.out):
        from jaxsparse import audio

        if arguments.input is not None:
            with audio.open_audio(arguments.input):
                pass
        with _importing():
            from jaxsparse import demo
            from jaxsparse.compilation import use_cache

        use_cache()

        page = demo.run_demo(
            arguments.input,
            arguments.out,
            force=arguments.force,
            version=jaxsparse.__version__,
            kbps=arguments.kbps,
            masks=arguments.mask,
            report=_step,
        )
    _say(one_line(f"{page}: the page to open in a browser"))


def _decoder(name: str) -> Any:
    """Loads a decoder; the errors name its file, not the one to be read."""
    from jaxsparse.pretrained import load_decoder

    with _refusing():
        return load_decoder(name)


@contextmanager
def _refusing() -> Iterator[None]:
    """Says what is wrong with a file of weights."""
    try:
        yield
    except (JaxsparseError, OSError) as error:
        raise _RefusedError(describe(error)) from error


def _place(path: Path) -> Path | int:
    """What a path stands for: where that is open already, its descriptor.

    It is never opened by its name: the link behind it leads to a pipe that has none, or to a file
    that is written in part.
    """
    standard = {_STDIN: 0, _STDOUT: 1, Path("/dev/stderr"): 2}
    numbered = re.fullmatch(r"/(?:dev|proc/self)/fd/([0-9]{1,9})", os.fspath(path))
    return int(numbered[1]) if numbered else standard.get(path, path)


def _name(path: Path) -> str:
    return {_STDIN: "standard input", _STDOUT: "standard output"}.get(path, str(path))


def _opened(path: Path) -> BufferedReader:
    place = _place(path)
    return open(place, "rb", closefd=not isinstance(place, int))


def _check_input(path: Path, *, pipes: bool = True) -> None:
    """Refuses what can't be a file of ours without reading it; from a pipe nothing is taken."""
    with _blaming(path):
        place = _place(path)
        mode = os.stat(place).st_mode
        if stat.S_ISDIR(mode):
            raise _RefusedError(f"{_name(path)}: is a directory")
        if pipes and (stat.S_ISFIFO(mode) or (stat.S_ISSOCK(mode) and isinstance(place, int))):
            return
        if isinstance(place, int) and os.isatty(place):
            raise _RefusedError(f"{_name(path)}: is a terminal")
        if not stat.S_ISREG(mode):
            raise _RefusedError(f"{_name(path)}: is not a regular file")
        with _opened(path) as file:
            if not os.pread(file.fileno(), 1, file.tell()):
                raise _RefusedError(f"{_name(path)}: is empty")


def _check_output(path: Path, force: bool, *, source: Path) -> None:
    """Refuses a target that couldn't or mustn't be written, before any work is done.

    What is open already is not overwritten, so there is nothing to force.
    """
    with _blaming(path):
        place = _place(path)
        status = _status(place)
        if isinstance(place, int) and os.isatty(place):
            raise _RefusedError(f"{_name(path)}: is a terminal")
        if status is not None and stat.S_ISDIR(status.st_mode):
            raise _RefusedError(f"{_name(path)}: is a directory")
        if status is not None and _same_file(status, os.stat(_place(source))):
            raise _RefusedError(f"{_name(path)}: is the input itself")
        if isinstance(place, int):
            return
        if status is not None and not force:
            raise _RefusedError(f"{path}: exists already (--force overwrites it)")
    _check_parent(path)


def _same_file(left: os.stat_result, right: os.stat_result) -> bool:
    """Whether both are one file; the two ends of a connection may be one socket."""
    return os.path.samestat(left, right) and not stat.S_ISSOCK(left.st_mode)


def _check_folder(path: Path) -> None:
    """Refuses a folder that couldn't be made or written to; it is made with its first file."""
    with _blaming(path):
        status = _status(path)
    if status is not None and not stat.S_ISDIR(status.st_mode):
        raise _RefusedError(f"{path}: is not a directory")
    target = Path(os.path.realpath(path))
    existing = next(parent for parent in (target, *target.parents) if parent.is_dir())
    if not os.access(existing, os.W_OK | os.X_OK):
        raise _RefusedError(f"{path}: no permission to write in {existing}")


def _check_directory(path: Path, force: bool) -> None:
    """Refuses a directory that the demo couldn't or mustn't fill."""
    with _blaming(path):
        status = _status(path)
        if status is not None and not stat.S_ISDIR(status.st_mode):
            raise _RefusedError(f"{path}: is not a directory")
        if status is not None and any(path.iterdir()) and not force:
            raise _RefusedError(f"{path}: is not empty (--force overwrites the demo's files in it)")
    _check_parent(path)


def _status(place: Path | int) -> os.stat_result | None:
    try:
        return os.stat(place)
    except FileNotFoundError:
        return None


def _check_parent(path: Path) -> None:
    parent = Path(os.path.realpath(path)).parent
    if not parent.is_dir():
        raise _RefusedError(f"{path}: there is no directory {parent}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise _RefusedError(f"{path}: no permission to write in {parent}")


@contextmanager
def _blaming(source: Path | None = None, *, target: Path | None = None) -> Iterator[None]:
    """Turns errors that the user can do something about into one line that names the file.

    Where there is a `target`, the system's errors are about it and the package's about `source`.
    """
    prefix = "" if source is None else f"{_name(source)}: "
    try:
        yield
    except BrokenPipeError:
        raise
    except JaxsparseError as error:
        raise _RefusedError(f"{prefix}{error}") from error
    except OSError as error:
        prefix = prefix if target is None else f"{target}: "
        raise _RefusedError(f"{prefix}{error.strerror or error}") from error
    except MemoryError as error:
        raise _RefusedError(f"{prefix}does not fit into memory") from error


@contextmanager
def _importing() -> Iterator[None]:
    """Lets Ctrl-C end the process at once: there is nothing to clean up yet.

    Raised in the middle of a large import, an interrupt can get lost or crash the interpreter.
    """
    handler = signal.getsignal(signal.SIGINT)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if handler is not signal.default_int_handler or not in_main_thread:
        yield
        return
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(INTERRUPTED))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


@contextmanager
def _progress(description: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal where there are several segments, and nothing elsewhere."""
    from tqdm import tqdm

    with ExitStack() as stack:
        bar = None

        def advance(done: int, total: int) -> None:
            nonlocal bar
            if bar is None and total > 1:
                bar = stack.enter_context(
                    tqdm(desc=description, total=total, unit="segment", disable=None, leave=False)
                )
            if bar is not None:
                bar.update(done - bar.n)

        yield advance


def _say(text: str) -> None:
    try:
        print(text, flush=True)
    except OSError as error:
        # What is left in the buffer can't be written either: the flush at exit mustn't complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        raise _RefusedError(f"standard output: {error.strerror}") from error


def _report(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _step(text: str) -> None:
    _report(f"jaxsparse: {text}")


_EXAMPLES = """\
examples:
  jaxsparse demo                                     hear and see it, in half a minute
  jaxsparse compress speech.wav speech.jsac
  jaxsparse info speech.jsac
  jaxsparse decompress speech.jsac decoded.wav
  jaxsparse compress recordings --out coded          whole folders
  cat speech.wav | jaxsparse compress - - | jaxsparse decompress - - > decoded.wav
"""

_OR_STDIN, _OR_STDOUT = ", or - for standard input", ", or - for standard output"

_STFT_FLAGS = ("phases", "phase-bits", "value-step", "seed", "decoder", "search", "budget")
_MDCT_FLAGS = ("kbps", "pesq", "effort", "bandwidth", "codec")

# Names of `jaxsparse.searched.SEARCHED`, whose import would take seconds.
_SEARCHED = {name: (name,) for name in ("relaxed", "swaps", "values")} | {
    "both": ("relaxed", "values")
}

_FOLDERS = """\
With --out DIR there may be any number of inputs, and folders among them: each {kind} below a
folder goes to the same place below DIR, with the ending {suffix}. A file that is there and whole
stays as it is, whatever options it was made with, so that the same command goes on where it was
stopped; --force makes all again. What is wrong with a file is said in a line, and the others go on:
the exit status is 2 then. A line at the end, or --json, tells what became of all."""

_COMPRESS = """\
Store a clip as a few coefficients of its MDCT; a network makes the rest up.

On the grid of the thesis (--grid stft), a clip is stored as a few bins of its log-power
spectrogram, and the file is larger than the original's samples.

IN is any audio file that libsndfile reads (WAV, FLAC, OGG, MP3, AIFF, ...), of any sample rate,
length and number of channels. It is coded at 16 kHz, each channel on its own: what lies above
8 kHz is lost. The networks are trained on speech.

What comes from a pipe is read whole, at most 4 GiB of it. Where the file goes to standard output,
what is said of it goes to standard error.

""" + _FOLDERS.format(kind="audio file", suffix=".jsac")

_DECOMPRESS = """\
Make a 16-bit WAV file of a .jsac file, of the original sample rate, channels and length.

""" + _FOLDERS.format(kind=".jsac file", suffix=".wav")

_DEMO = """\
Compress a clip at several rates, and once in the way of the thesis, and decompress it again.

DIR gets index.html, a page that loads nothing from elsewhere: it switches between the original and
what was decoded while they play, and shows spectrograms, what each file keeps, its size, PESQ and
STOI. The .jsac and .wav files, the pictures and scores.json lie beside it.
"""

_DECOMPRESS_EXAMPLES = """\
examples:
  jaxsparse decompress speech.jsac                   to speech.wav
  jaxsparse decompress lecture.jsac part.wav --start 600 --duration 30
  jaxsparse decompress coded --out decoded           every .jsac file below coded
"""

_COMPRESS_EXAMPLES = """\
examples:
  jaxsparse compress speech.wav                      8 kbit/s, to speech.jsac
  jaxsparse compress speech.wav small.jsac --kbps 3.2 --effort 3
  jaxsparse compress speech.wav good.jsac --pesq 3.8
  jaxsparse compress speech.wav thesis.jsac --grid stft --mask random --sparsity 0.8
  jaxsparse compress recordings --out coded          every audio file below recordings
  jaxsparse compress a.wav b.flac --out coded --kbps 6
  ffmpeg -i film.mkv -f wav - | jaxsparse compress - - | ssh host 'cat > film.jsac'
"""


class _Parser(argparse.ArgumentParser):
    """Refuses in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(REFUSED, f"jaxsparse: {one_line(message)} (see {self.prog} --help)\n")


class _Version(argparse.Action):
    """Looks the version up when it is asked for: that takes as long as all the rest of --help."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        _say(f"jaxsparse {jaxsparse.__version__}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="jaxsparse",
        description="Store speech as a few of its coefficients; networks fill in the rest.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, help="show the version of the package and end"
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(
        name: str, run: Callable[[argparse.Namespace], int | None], summary: str, **texts: str
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=summary,
            description=texts.get("description", summary + "."),
            epilog=texts.get("epilog"),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(command=run)
        return added

    compress = command(
        "compress",
        _compress,
        "audio to .jsac",
        description=_COMPRESS,
        epilog=_COMPRESS_EXAMPLES,
    )
    _add_files(compress, "audio file to compress", ".jsac file to write", "OUT.jsac")
    compress.add_argument(
        "--grid",
        choices=("mdct", "stft"),
        default="mdct",
        help="what is stored a few numbers of: the MDCT, which compresses (default), or the "
        "log-power spectrogram of the thesis",
    )
    goal = compress.add_mutually_exclusive_group()
    goal.add_argument(
        "--kbps", type=float, metavar="KBPS", help="rate of the file in kbit/s (default: 8)"
    )
    goal.add_argument(
        "--pesq",
        type=float,
        metavar="MOS",
        help="quality instead of a rate: PESQ in wide band, as an estimate says, 1 to 4.6",
    )
    goal.add_argument(
        "--sparsity",
        type=_sparsity,
        metavar="S",
        help="share of coefficients, or of bins, that are not stored, between 0 and 1 (with "
        "--grid stft by default 0.95; its network is for 0.8 to 0.98)",
    )
    compress.add_argument(
        "--effort",
        type=int,
        choices=(0, 1, 2, 3),
        help="how long to search for values that sound better within the same bits: not at all "
        "(0, the default, faster than real time) to a minute or so for 5 s (3)",
    )
    compress.add_argument(
        "--bandwidth",
        type=float,
        metavar="HZ",
        help="frequency above which nothing is stored (default: 8000)",
    )
    compress.add_argument(
        "--codec",
        metavar="NAME|PATH",
        help="networks to code with: mdct (default), or the .safetensors file of one's own, which "
        "decompress needs too",
    )
    compress.add_argument(
        "--mask",
        metavar="POLICY|FILE.npz",
        help="a mask of one's own, as a search found it, on either grid: an array 'mask' of the "
        "coefficients that are stored, frequencies by frames (or channels first); the step is then "
        "that of the mask's sparsity, if no rate is given. With --grid stft, a policy instead: "
        "those bins that filling in misses most, found in rounds (densification), some of them "
        "exchanged by a small network (learned, the default); those that the decoder network "
        "misses most (densification-unet, slower); the loudest ones and as many at random "
        "(mixed); the loudest ones alone (loudest); those that stand out of their frame, half of "
        "the bins (contrast) or 70 %% (contrast-70), and the others at random; those heard best "
        "beside all others, alone (masking) or half of the bins (masking-50); all at random, but "
        "evenly spread (blue-noise); or all at random, of which a seed is all that the file needs "
        "(random)",
    )
    stft = compress.add_argument_group("with --grid stft")
    stft.add_argument(
        "--phases",
        choices=("all", "60", "65", "70", "75"),
        help="whose phases are stored: those of all bins (all), or of bins at most so many dB "
        "below the loudest one (default: 75); the others' are set to 0",
    )
    stft.add_argument("--phase-bits", type=int, metavar="BITS", help="bits of a phase (default: 4)")
    stft.add_argument(
        "--value-step",
        type=float,
        metavar="DB",
        help="step of the stored levels in dB (default: 0.5)",
    )
    stft.add_argument("--seed", type=int, metavar="N", help="of the random bins (default: 0)")
    stft.add_argument(
        "--decoder",
        "--network",
        metavar="NAME|PATH",
        help="what fills in the rest: a network that comes with the package, an interpolation "
        "(nearest, linear, clough-tocher), or the .safetensors file of one's own network, which "
        "decompress needs too (default: the network for the mask and the sparsity)",
    )
    stft.add_argument(
        "--search",
        choices=tuple(_SEARCHED),
        help="improve the mask, by the gradient of scores that choose its bins (relaxed) or by "
        "dropping bins and keeping the best of all in their places, over and over (swaps); the "
        "stored levels (values); or both: relaxed, then values",
    )
    stft.add_argument(
        "--budget",
        type=float,
        metavar="SECONDS",
        help="how long to search in each file (default: 60), compilation not counted",
    )
    _add_json(compress, "print what info prints, or with --out what became of all, as JSON")

    decompress = command(
        "decompress",
        _decompress,
        ".jsac to 16-bit WAV, of the original sample rate, channels and length",
        description=_DECOMPRESS,
        epilog=_DECOMPRESS_EXAMPLES,
    )
    _add_files(decompress, ".jsac file to read", "WAV file to write", "OUT.wav")
    decompress.add_argument(
        "--decoder",
        "--network",
        default=None,
        metavar="PATH",
        help=".safetensors file of the network that a file of the STFT grid was made for, where "
        "that is not one that comes with the package",
    )
    decompress.add_argument(
        "--codec",
        metavar="PATH",
        help=".safetensors file of the networks that a file of the MDCT grid was made with, where "
        "these are not those that come with the package",
    )
    decompress.add_argument(
        "--start",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="where to begin (default: 0); what is not needed is not decoded",
    )
    decompress.add_argument(
        "--duration", type=float, metavar="SECONDS", help="how much to decode (default: all)"
    )
    decompress.add_argument(
        "--conceal",
        action="store_true",
        help="let a damaged part of an MDCT file be silence instead of an error",
    )
    _add_json(decompress, "with --out, print what became of all as JSON")

    info = command("info", _info, "what is in a .jsac file, and where its bits go")
    info.add_argument(
        "input", type=_input, metavar="FILE.jsac", help=".jsac file to read" + _OR_STDIN
    )
    info.add_argument(
        "--codec",
        metavar="PATH",
        help=".safetensors file of the networks that a file of the MDCT grid was made with, where "
        "these are not those that come with the package",
    )
    _add_json(info, "print it as JSON")

    demo = command(
        "demo",
        _demo,
        "compress a clip at several rates, and write a page to hear and see what is left",
        description=_DEMO,
    )
    demo.add_argument(
        "--input",
        type=Path,
        metavar="FILE",
        help="audio file (default: a sentence that comes with the package). Its first 20 s are "
        "used, mixed down to one channel",
    )
    demo.add_argument(
        "--out",
        type=Path,
        default=Path("jaxsparse-demo"),
        metavar="DIR",
        help="directory to make (default: jaxsparse-demo)",
    )
    demo.add_argument(
        "--kbps",
        nargs="*",
        type=float,
        default=[3.0, 6.0, 12.0],
        metavar="KBPS",
        help="rates on the MDCT grid, in kbit/s (default: 3 6 12)",
    )
    demo.add_argument(
        "--mask",
        nargs="*",
        default=["learned"],
        metavar="POLICY",
        help="kinds of mask on the STFT grid of the thesis, as compress takes them (default: "
        "learned); without a value, that grid is left out",
    )
    _add_force(demo)
    return parser


def _add_files(parser: argparse.ArgumentParser, source: str, target: str, metavar: str) -> None:
    name = "IN.jsac" if metavar == "OUT.wav" else "IN"
    parser.usage = (
        f"{parser.prog} [options] {name} [{metavar}]\n"
        f"       {parser.prog} [options] {name} [{name} ...] --out DIR"
    )
    parser.add_argument(
        "input", type=_input, metavar=name, help=f"{source}{_OR_STDIN}; with --out, or a folder"
    )
    parser.add_argument(
        "more",
        nargs="*",
        default=[],
        metavar=metavar,
        help=f"{target}{_OR_STDOUT} (default: the input's name with another ending); with --out, "
        "more inputs",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder to write to, made where it is missing"
    )
    parser.add_argument(
        "--part",
        type=_part,
        metavar="I/N",
        help="with --out, only the files I, I + N, I + 2 N ...: N processes, on one machine or on "
        "many, share the files without knowing of each other",
    )
    _add_force(parser)


def _add_force(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="overwrite what is there")


def _add_json(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--json", action="store_true", help=what)


def _input(text: str) -> Path:
    return _STDIN if text == "-" else Path(text)


def _output(text: str) -> Path:
    return _STDOUT if text == "-" else Path(text)


def _part(text: str) -> tuple[int, int]:
    """Reads which part of the files is meant, and of how many."""
    found = re.fullmatch("([0-9]{1,9})/([0-9]{1,9})", text)
    if found and 1 <= int(found[1]) <= int(found[2]):
        return int(found[1]), int(found[2])
    raise argparse.ArgumentTypeError(f"{text!r} is not one of N parts, as 1/8 is, or 8/8")


def _sparsity(text: str) -> str:
    """Keeps a decimal number as text: the count of bins is exact."""
    try:
        value = Decimal(text)
        if 0 < value < 1:
            return format(value, "f")
    except InvalidOperation:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1, as 0.95 is")


def _totals(summary: Mapping[str, Any]) -> str:
    """Tells in a line what became of several files."""
    counts = ", ".join(
        f"{summary[name]:,} {words}"
        for name, words in (
            ("done", "done"),
            ("already_there", "already there"),
            ("failed", "failed"),
        )
    )
    line = f"{_count(summary['files'], 'file')}: {counts}"
    if not summary["done"]:
        return line
    rate = summary["kbit_per_s"]
    return (
        f"{line}; {summary['seconds']:.2f} s of audio, {summary['bytes_in']:,} bytes to "
        f"{summary['bytes_out']:,}{'' if rate is None else f', {rate:.1f} kbit/s'}, "
        f"{summary['times_real_time']:.1f} times real time"
    )


def _summary(description: Mapping[str, Any]) -> str:
    d = description
    return (
        f"{d['bytes']:,} bytes for {d['seconds']:.2f} s, {d['kbit_per_s']:.1f} kbit/s; "
        f"{_ratios(description)}"
    )


def _ratios(description: Mapping[str, Any]) -> str:
    """Compares with uncompressed samples, and says it where that comparison is lost."""
    rates = {
        description["sample_rate"]: description["size_ratio"],
        description["coded_rate"]: description["size_ratio_16khz"],
    }
    return ", ".join(
        f"{ratio:.3f} times the size of 16-bit samples at {rate:,} Hz"
        + " (larger, not smaller)" * (ratio > 1)
        for rate, ratio in rates.items()
    )


def _table(description: Mapping[str, Any]) -> str:
    d = description
    facts = {
        "audio": f"{d['seconds']:.2f} s, {d['sample_rate']:,} Hz, "
        f"{_count(d['channels'], 'channel')} of {_count(d['n_samples'], 'sample')}",
        **(_mdct_facts(d) if d["grid"] == "mdct" else _stft_facts(d)),
        "format": f"version {d['version']}",
    }
    lines = [f"{name:<10}{fact}" for name, fact in facts.items()]
    lines += ["", f"{'':<24}{'bits':>16}{'kbit/s':>10}{'share':>10}"]
    for name, bits in [*d["part_bits"].items(), ("whole file", d["bits"])]:
        label = _PARTS.get(name, name)
        share = f"{100 * bits / d['bits']:.1f} %"
        lines.append(f"{label:<24}{bits:>16,}{bits / d['seconds'] / 1000:>10.1f}{share:>10}")
    return "\n".join([*lines, "", _ratios(description)])


def _mdct_facts(d: Mapping[str, Any]) -> dict[str, str]:
    estimate = d["pesq_wb_estimate"]
    return {
        "coded": f"at {d['coded_rate']:,} Hz, {_count(d['segments'], 'segment')} per channel",
        "grid": f"MDCT, {_count(d['coefficients'], 'coefficient')}",
        **({"mask": _mdct_mask(d)} if "kept" in d else {}),
        "codec": f"{d['codec']}, SHA-256 {d['codec_sha256']}...",
        **({} if estimate is None else {"quality": f"PESQ of about {estimate:.1f} in wide band"}),
    }


def _mdct_mask(d: Mapping[str, Any]) -> str:
    known = d["segments_decoded"] == d["segments"] * d["channels"]
    return f"sparsity {d['sparsity']:.4f}, {d['kept']:,} coefficients kept" + (
        "" if known else f" (by {_count(d['segments_decoded'], 'segment')}, as are the parts)"
    )


def _stft_facts(d: Mapping[str, Any]) -> dict[str, str]:
    threshold = d["phase_threshold"]
    return {
        "coded": f"at {d['coded_rate']:,} Hz, {_count(d['segments'], 'segment')} per channel of at "
        f"most {d['frames_per_segment']} frames",
        "STFT": f"n_fft {d['n_fft']}, win_length {d['win_length']}, hop_length {d['hop_length']}, "
        f"{d['window']}",
        "mask": f"sparsity {d['sparsity']}, {d['kept_bins']:,} of {d['bins']:,} bins, "
        + _positions(d["coded_share"], d["loudest"], d["seed"]),
        "values": f"step {d['value_step_mdb'] / 1000:g} dB, "
        + ("put back by the decoder" if d["keep_observed"] else "not put back"),
        "phases": f"{_count(d['phase_bits'], 'bit')}, "
        + ("all" if threshold is None else f"down to {threshold} dB below the loudest bin"),
        "network": f"{d['network']}, SHA-256 {d['network_sha256']}",
    }


def _positions(coded_share: str, loudest: bool, seed: int) -> str:
    """Says where a decoder has the kept bins from."""
    if coded_share == "0":
        return f"all drawn by seed {seed}"
    stored = "all" if coded_share == "1" else f"{100 * float(coded_share):g} %"
    rest = "" if coded_share == "1" else f", the others drawn by seed {seed}"
    return f"{stored} stored{' (the loudest)' * loudest}{rest}"


_PARTS = {
    "phase_bitmap": "which phases",
    "escapes": "large magnitudes",
    "filling": "filling of words",
    "overhead": "header and checksums",
}


def _count(number: int, unit: str) -> str:
    return f"{number:,} {unit}{'s' * (number != 1)}"
