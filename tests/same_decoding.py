"""What files of version 3 decode to, to be the same on any machine.

``python -m tests.same_decoding`` writes a clip to ``tests/same_decoding.jsac``; and to
``tests/same_decoding.json`` the whole numbers of it and of the fuzzer's valid files, and its
sound. All are decoded by the small codec of the tests. With ``--show`` it writes the numbers to
standard output instead.
"""

import argparse
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import threadpoolctl

from jaxsparse import audio, codec
from jaxsparse.codec import mdct_container
from jaxsparse.codec.mdct_segment import decode_segment
from tests import small_codec
from tests.mdct_files import speech

FOLDER = Path(__file__).resolve().parent
NUMBERS = FOLDER / "same_decoding.json"
CLIP = FOLDER / "same_decoding.jsac"
CORPUS = FOLDER / "fuzz" / "corpus" / "mdct" / "valid"
# Not that of the codec: the clip is resampled too.
_RATE = 44_100
# Every so many samples are compared.
_EVERY = 199


def files() -> dict[str, bytes]:
    """Reads the files."""
    paths = {"clip": CLIP, **{path.stem: path for path in sorted(CORPUS.iterdir())}}
    return {name: path.read_bytes() for name, path in paths.items()}


def measure() -> dict[str, Any]:
    """Decodes all files."""
    found = files()
    return {
        "numbers": {name: digest(data) for name, data in found.items()},
        "samples": decode(found["clip"]),
    }


def digest(data: bytes) -> str:
    """Gives the SHA-256 of the whole numbers of all segments."""
    header, segments = mdct_container.unpack(data)
    seen = hashlib.sha256()
    for number, own in enumerate(segments):
        n_frames = header.segment_frames(number % header.n_segments)
        segment = decode_segment(own.data, n_frames, own.rate, small_codec.models())
        for array in (segment.values, segment.levels):
            seen.update(np.ascontiguousarray(array, "<i4").tobytes())
    return seen.hexdigest()


def decode(data: bytes) -> list[float]:
    """Gives some of the samples, in steps of 16 bits, not rounded."""
    samples, _ = codec.decompress(data, codec=codec.load_codec(small_codec.PATH))
    return (samples[::_EVERY, 0].astype(np.float64) * 32768).tolist()


def setting() -> dict[str, Any]:
    """Says what multiplies matrices for NumPy: kernels and threads."""
    blas = [each for each in threadpoolctl.threadpool_info() if each["user_api"] == "blas"]
    return {
        "blas": sorted({str(each.get("architecture")) for each in blas}),
        "threads": sorted({each["num_threads"] for each in blas}),
    }


def make_clip() -> bytes:
    """Compresses two segments, without the encoder network, which would only add noise."""
    small = codec.load_codec(small_codec.PATH)
    plain = jax.tree.map(jnp.zeros_like, small.params["encoder"])
    small = dataclasses.replace(small, params={**small.params, "encoder": plain})
    clip = audio.resample(speech(83_000)[:, None], 16_000, _RATE)
    return codec.compress(clip, _RATE, codec.MDCTSettings(kbps=8.0), codec=small)


def main() -> None:
    """Writes the files, or shows the numbers."""
    parser = argparse.ArgumentParser(prog="python -m tests.same_decoding", description=__doc__)
    parser.add_argument("--show", action="store_true", help="write no files")
    if parser.parse_args().show:
        print(json.dumps({**measure(), "setting": setting()}))
        return
    CLIP.write_bytes(make_clip())
    found = measure()
    found["samples"] = np.rint(found["samples"]).tolist()
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in found.items())
    NUMBERS.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
