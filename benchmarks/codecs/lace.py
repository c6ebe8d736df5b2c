"""Opus decoded with LACE and NoLACE, networks that enhance what SILK decodes (Opus 1.5).

They run in WebAssembly under Node, which finds the npm package @wasm-audio-decoders/opus-ml in
``node_modules`` of this folder or one above it, or in those that ``$NODE_PATH`` names.
"""

import atexit
import base64
import functools
import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32

from benchmarks.codecs import opus
from benchmarks.codecs.contract import Codec, CodecError

SCRIPT = Path(__file__).with_name("opus_ml.mjs")
PACKAGE = "@wasm-audio-decoders/opus-ml"


def available() -> str | None:
    """Says what is missing for it, or None."""
    return opus.available() or _decoder_missing()


@functools.cache
def _decoder_missing() -> str | None:
    if shutil.which("node") is None:
        return "node is not installed"
    tried = subprocess.run(["node", SCRIPT], stdin=subprocess.DEVNULL, capture_output=True)
    return f"node finds no npm package {PACKAGE}" if tried.returncode else None


@functools.cache
def _start() -> subprocess.Popen[str]:
    """Starts the decoder, once: its start takes longer than a clip."""
    process = subprocess.Popen(
        ["node", SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    # It ends with its input.
    atexit.register(process.communicate)
    return process


def _ask(question: dict[str, Any]) -> dict[str, Any]:
    """Exchanges a line of JSON for another one."""
    process = _start()
    assert process.stdin and process.stdout
    try:
        print(json.dumps(question), file=process.stdin, flush=True)
        return json.loads(process.stdout.readline())
    except (BrokenPipeError, json.JSONDecodeError) as error:
        raise CodecError("Node has ended: LACE can't be decoded") from error


def make_codec(title: str, enhancement: Literal["lace", "nolace"]) -> Codec:
    """Makes the codec that decodes the same packets as Opus, with an enhancement."""

    def decode(packets: Sequence[bytes], kbps: float) -> Float32[np.ndarray, " N"]:
        encoded = [base64.b64encode(packet).decode() for packet in packets]
        decoded = _ask({"enhancement": enhancement, "packets": encoded})
        if decoded["error"]:
            raise CodecError(decoded["error"])
        return np.frombuffer(base64.b64decode(decoded["samples"]), np.float32)

    return Codec(title, opus.COUNTED, opus.KBPS, available, opus.encode, decode)


LACE = make_codec("Opus, decoded with LACE", "lace")
NOLACE = make_codec("Opus, decoded with NoLACE", "nolace")
