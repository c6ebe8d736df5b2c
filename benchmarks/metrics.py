"""Milliseconds per clip of the metrics on the device, and of `pesq` and `pystoi` on the host.

``python -m benchmarks.metrics --json`` scores 16 clips of 77,276 samples: the bundled sentence,
repeated, with noise of 16 levels. The device takes the batch in one call, the host's packages take
it through a pool of two processes; both in turns in one process, on the same two cores. It also
gives the time of a value with its gradient. It takes about a minute.
"""

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from benchmarks.command import main

# JAX is imported in functions: it counts the cores when it starts.

N_SAMPLES, SAMPLE_RATE = 77_276, 16_000


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    batch: int = 16
    """Clips."""
    repeats: int = 5
    """Timed rounds, of which the median is reported."""
    threads: int = 2
    """Cores that the process may use, and processes of the host's pool."""
    json: bool = False
    """Print one line of JSON."""


def make_pairs(batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Originals and noisy copies [B, N]."""
    from jaxsparse.audio import read_audio

    with resources.as_file(resources.files("jaxsparse") / "assets" / "sentence.flac") as path:
        sentence = read_audio(path)[0][:, 0]
    reference = np.tile(np.resize(sentence, N_SAMPLES), (batch, 1)).astype(np.float32)
    noise = np.random.default_rng(0).normal(size=reference.shape)
    level = 0.03 * np.std(sentence) * np.arange(1, batch + 1)[:, None]
    return reference, (reference + level * noise).astype(np.float32)


def device_metrics() -> dict[str, Callable[..., Any]]:
    """All of them, ``(reference, estimate) -> [B]``, by name."""
    from jaxsparse import metrics

    functions = {
        "surrogate_wb": functools.partial(metrics.pesq_surrogate, band="wb"),
        "surrogate_nb": functools.partial(metrics.pesq_surrogate, band="nb"),
        "stoi": metrics.stoi,
        "estoi": metrics.estoi,
        "mel_distance": metrics.mel_distance,
        "mfcc_distance": metrics.mfcc_distance,
        "multi_resolution_stft": metrics.multi_resolution_stft,
        "log_spectral_distance": metrics.log_spectral_distance,
        "si_sdr": metrics.si_sdr,
    }
    return {
        name: lambda x, y, f=f: f(reference=x, estimate=y, sample_rate=SAMPLE_RATE)
        for name, f in functions.items()
    }


def run(settings: Settings) -> dict[str, Any]:
    """Times all of it in turns."""
    import jax

    from jaxsparse.metrics import ScorePool, reference_pesq, reference_stoi

    reference, estimate = make_pairs(settings.batch)
    pair = {"reference": reference, "estimate": estimate, "sample_rate": SAMPLE_RATE}
    variants: dict[str, Callable[[], Any]] = {}
    for name, metric in device_metrics().items():
        value = jax.jit(metric)
        gradient = jax.jit(jax.grad(lambda x, y, m=metric: m(x, y).sum(), argnums=1))
        variants[name] = lambda f=value: f(reference, estimate).block_until_ready()
        variants[f"{name}_gradient"] = lambda f=gradient: f(reference, estimate).block_until_ready()
    times: dict[str, list[float]] = {}
    with ScorePool(settings.threads) as pool:
        variants |= {
            "pesq_wb_pool": lambda: reference_pesq(**pair, band="wb", pool=pool),
            "pesq_nb_pool": lambda: reference_pesq(**pair, band="nb", pool=pool),
            "stoi_pool": lambda: reference_stoi(**pair, pool=pool),
            "estoi_pool": lambda: reference_stoi(**pair, extended=True, pool=pool),
        }
        for _ in range(settings.repeats + 1):
            for name, advance in variants.items():
                start = time.perf_counter()
                advance()
                times.setdefault(name, []).append(time.perf_counter() - start)
    # The first round warms up.
    ms = {name: 1e3 * statistics.median(t[1:]) / settings.batch for name, t in times.items()}
    return {
        "ms_per_clip": ms,
        "times_as_fast": {
            "pesq_wb": ms["pesq_wb_pool"] / ms["surrogate_wb"],
            "pesq_nb": ms["pesq_nb_pool"] / ms["surrogate_nb"],
            "stoi": ms["stoi_pool"] / ms["stoi"],
            "estoi": ms["estoi_pool"] / ms["estoi"],
            "pesq_wb and stoi": (ms["pesq_wb_pool"] + ms["stoi_pool"])
            / (ms["surrogate_wb"] + ms["stoi"]),
        },
        "batch": settings.batch,
        "samples": N_SAMPLES,
        "threads": settings.threads,
        "repeats": settings.repeats,
        "backend": jax.default_backend(),
    }


if __name__ == "__main__":
    main(Settings, run, __doc__)
