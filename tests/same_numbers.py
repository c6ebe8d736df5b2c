"""Numbers of the bundled sentence, to be the same with any version of Python and the libraries.

``python -m tests.same_numbers`` writes them to ``tests/same_numbers.json``, and the compressed
sentence to ``tests/same_numbers.jsac``. Only a change that is meant to change them makes them anew.
"""

import hashlib
import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import librosa
import numpy as np

from jaxsparse import audio, codec, masks, metrics, policies
from jaxsparse.codec import container
from jaxsparse.pretrained import load_decoder
from jaxsparse.reconstruct import reconstruct_spectrogram
from jaxsparse.spectrogram import log_power
from jaxsparse.transforms.stft import istft, stft

FOLDER = Path(__file__).resolve().parent
SENTENCE = FOLDER.parent / "jaxsparse" / "assets" / "sentence.flac"
NUMBERS = FOLDER / "same_numbers.json"
COMPRESSED = FOLDER / "same_numbers.jsac"
# Few phases, so that the file is small.
SETTINGS = codec.STFTSettings(
    phase_threshold=30, phase_bits=3, value_step_db=1, seed=7, mask="mixed", decoder="random-95"
)
SPARSITY = "0.95"
_VERSIONS = ("jax", "jaxlib", "flax", "numpy", "scipy", "librosa", "soxr", "constriction", "pesq")
# Every so many bins or samples are compared one by one.
_EVERY = 997


def read_sentence() -> np.ndarray:
    """The samples of the sentence, N."""
    return audio.read_audio(SENTENCE)[0][:, 0]


def measure() -> dict[str, Any]:
    """Everything but the decoded samples: by kind of comparison, then by name."""
    signal = read_sentence()
    spectrum = stft(jnp.asarray(signal))
    db = log_power(spectrum)
    count = masks.count_observed(db.shape, SPARSITY)
    key = jax.random.key(11)
    random = masks.random_mask(key, db.shape, count)
    mixed = policies.mixed(key, db, count)
    data = codec.compress(signal[:, None], 16_000, SETTINGS)
    restored = {
        f"{name} {kept}": _reconstruct(name, db, mask, kept == "put back")
        for name, mask in (("random-95", random), ("pyramid", mixed))
        for kept in ("put back", "not put back")
    }
    sounds = {
        name: np.asarray(istft(_spectrum(estimate, spectrum), length=len(signal)))
        for name, estimate in restored.items()
    }
    return {
        "versions": versions(),
        "exact": {
            "count": count,
            "random mask": _digest(random),
            "mixed mask": _digest(mixed),
            "mask of integers": _digest(policies.mixed(key, _integers(), 3000)),
            "mask part": _hash(b"".join(part[0] for part in container.unpack(data).parts)),
            "phase bitmap part": _hash(b"".join(part[2] for part in container.unpack(data).parts)),
        },
        "bytes": len(data),
        "dB": {
            "ours": np.asarray(db).ravel()[::_EVERY].tolist(),
            "mean": float(np.mean(np.asarray(db, np.float64))),
            "max": float(db.max()),
            "min": float(db.min()),
        },
        "librosa dB": librosa.power_to_db(
            np.abs(librosa.stft(signal, n_fft=2048, hop_length=256, pad_mode="reflect")) ** 2
        )
        .ravel()[::_EVERY]
        .tolist(),
        "MSE": {
            name: float(metrics.mse(reference=db[None], estimate=estimate[None])[0])
            for name, estimate in restored.items()
        },
        **_scores(signal, sounds),
    }


def versions() -> dict[str, str]:
    """Of what makes the numbers."""
    found = {name: metadata.version(name) for name in _VERSIONS}
    return {"python": platform.python_version(), "machine": platform.machine(), **found}


def decode(data: bytes) -> np.ndarray:
    """Some of the samples of a compressed sentence, in steps of 16 bits, not rounded."""
    samples, _ = codec.decompress(data)
    return samples[:: _EVERY // 10, 0].astype(np.float64) * 32768


def _integers() -> jax.Array:
    return jnp.asarray((np.arange(20_000) ** 2 % 9973).reshape(200, 100), jnp.float32)


def _reconstruct(name: str, db: jax.Array, mask: jax.Array, keep_observed: bool) -> jax.Array:
    network = load_decoder(name)
    with jax.default_matmul_precision("highest"):
        return jax.jit(reconstruct_spectrogram, static_argnums=0, static_argnames="keep_observed")(
            network.decoder, network.params, db, mask, keep_observed=keep_observed
        )


def _spectrum(db: jax.Array, spectrum: jax.Array) -> jax.Array:
    return 10 ** (db / 20) * jnp.exp(1j * jnp.angle(spectrum))


def _scores(reference: np.ndarray, estimates: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    pair: dict[str, Any] = {
        "reference": np.stack([reference] * len(estimates)),
        "estimate": np.stack(list(estimates.values())),
        "sample_rate": 16_000,
    }
    with metrics.ScorePool(1) as pool:
        found = {
            "PESQ": metrics.reference_pesq(**pair, pool=pool).values,
            "STOI": metrics.reference_stoi(**pair, pool=pool).values,
        }
    return {
        name: dict(zip(estimates, map(float, values), strict=True))
        for name, values in found.items()
    }


def _digest(mask: jax.Array) -> str:
    return _hash(np.packbits(np.asarray(mask)).tobytes())


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def main() -> None:
    """Writes the two files."""
    COMPRESSED.write_bytes(codec.compress(read_sentence()[:, None], 16_000, SETTINGS))
    numbers = {**measure(), "samples": np.rint(decode(COMPRESSED.read_bytes())).tolist()}
    lines = ",\n".join(
        f"{json.dumps(name)}: {json.dumps(value)}" for name, value in numbers.items()
    )
    NUMBERS.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
