"""Prepares the Flickr 8k Audio Caption Corpus: ``python -m jaxsparse.data.flickr8k``.

It needs the extra ``train``, as `jaxsparse.data.flickr8k_builder`, which does the work, does.
"""

import argparse
import logging
import signal
import sys
from pathlib import Path

from jaxsparse.errors import JaxsparseError, MissingExtraError, describe


def main(argv: list[str] | None = None) -> int:
    """Parses the flags and prepares the data set; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxsparse.data.flickr8k",
        description="Prepares the Flickr 8k Audio Caption Corpus.",
    )
    parser.add_argument(
        "--manual-dir", type=Path, required=True, help="holds flickr_audio.tar.gz, or its folder"
    )
    parser.add_argument("--data-dir", type=Path, required=True, help="where the data set goes")
    parser.add_argument("--by-speaker", action="store_true", help="no speaker is in two splits")
    parser.add_argument("--seed", type=int, default=0, help="of the draw, by default 0")
    parser.add_argument(
        "--allow-fewer", action="store_true", help="scale the splits down where clips are missing"
    )
    arguments = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s")
    try:
        from jaxsparse.data import flickr8k_builder as builder

        # It only says which settings were asked for.
        logging.getLogger("absl").setLevel(logging.ERROR)
        config = builder.SplitConfig(
            by_speaker=arguments.by_speaker, seed=arguments.seed, allow_fewer=arguments.allow_fewer
        )
        folder = builder.prepare(arguments.manual_dir, arguments.data_dir, config)
        print(builder.summary(folder))
    except (JaxsparseError, MissingExtraError, OSError, ValueError) as error:
        print(f"jaxsparse.data.flickr8k: {describe(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    # As after Ctrl-C, nothing stays behind; 128 + 15 is what a shell says of it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
