"""Lays our splits of LibriSpeech out: ``python -m train.rebuild_splits LIBRISPEECH``.

Links the utterances that ``train/splits/*.txt`` name from an unpacked LibriSpeech (the subsets
train-clean-100 and test-other) into ``$JAXSPARSE_DATA/train``, ``valid`` and ``test``.
"""

import argparse
import os
import sys
from pathlib import Path

from jaxsparse.errors import describe

SPLITS = Path(__file__).parent / "splits"


def rebuild(librispeech: Path, target: Path) -> int:
    """Links every utterance of the lists; returns how many there are.

    Raises:
        FileNotFoundError: If `librispeech` lacks one; nothing is linked then.
    """
    links = {}
    for split in sorted(SPLITS.glob("*.txt")):
        for utterance in split.read_text().split():
            speaker, chapter, _ = utterance.split("-")
            name = f"{utterance}.flac"
            found = next(librispeech.glob(f"*/{speaker}/{chapter}/{name}"), None)
            if found is None:
                raise FileNotFoundError(f"{librispeech} holds no {speaker}/{chapter}/{name}")
            links[target / split.stem / name] = found.resolve()
    for link, source in links.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        # Also one that leads nowhere, as to a LibriSpeech that has moved.
        if link.is_symlink():
            link.unlink()
        if not link.exists():
            link.symlink_to(source)
    return len(links)


def main(argv: list[str] | None = None) -> int:
    """Parses the flags; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m train.rebuild_splits", description=(__doc__ or "").split("\n\n")[1]
    )
    parser.add_argument("librispeech", type=Path, help="the folder that holds the subsets")
    data = os.environ.get("JAXSPARSE_DATA")
    parser.add_argument(
        "--data",
        type=Path,
        default=data,
        required=data is None,
        help="where the links go (default: $JAXSPARSE_DATA)",
    )
    arguments = parser.parse_args(argv)
    try:
        count = rebuild(arguments.librispeech, arguments.data)
    except OSError as error:
        print(f"rebuild_splits: {describe(error)}", file=sys.stderr)
        return 2
    print(f"{count} utterances below {arguments.data}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
