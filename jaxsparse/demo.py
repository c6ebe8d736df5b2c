"""The demo: one clip, coded with masks of several policies, to be heard and seen."""

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32

from jaxsparse import audio, codec, demo_page, files
from jaxsparse.codec import container
from jaxsparse.codec.segment import decode_segment
from jaxsparse.demo_page import Clip, Coded
from jaxsparse.errors import AudioError, MissingExtraError
from jaxsparse.metrics import Metric, ScorePool, check_installed, mse
from jaxsparse.policies import describe
from jaxsparse.spectrogram import log_power
from jaxsparse.transforms.stft import STFTConfig, stft
from jaxsparse.types import SAMPLE_RATE

MASKS = ("random", "learned")
"""Policies that are compared."""
MAX_SECONDS = 20
"""The rest of a longer file is left out: the page is to be listened to."""

_METRICS: tuple[Metric, ...] = ("pesq_wb", "pesq_nb", "stoi")
_SENTENCE = "A woman rock climber scales a cliff far above pastures"


def run_demo(
    path: Path | None,
    out: Path,
    *,
    force: bool = False,
    sparsity: str = "0.95",
    masks: Sequence[str] = MASKS,
    version: str = "",
    report: Callable[[str], None] = lambda step: None,
) -> Path:
    """Codes a clip with masks of each policy, scores it, and writes a page about it.

    The directory gets ``index.html``, ``original.wav``, ``scores.json``, ``overview.png``, and for
    each mask the ``.jsac`` file, its decoded sound and pictures. It appears whole or not at all; in
    an existing one the files are replaced one by one, the page last.

    Args:
        path: An audio file, mixed down to one channel at 16 kHz and cut to `MAX_SECONDS`; by
            default a sentence that comes with the package.
        out: The directory.
        force: Whether to write into a directory that isn't empty.
        sparsity: Share of bins that are not stored.
        masks: Policies to compare, names of `jaxsparse.policies.POLICIES`.
        version: The package's, for the page.
        report: Called with each step before it is taken.

    Returns:
        The path of the page.

    Raises:
        AudioError: The file is not usable audio.
        JaxsparseError: There is no such policy.
        OSError: The directory isn't empty and not forced, or can't be written.
    """
    started = time.monotonic()
    for name in masks:
        codec.STFTSettings(sparsity=sparsity, mask=name)
    with files.whole_folder(out, force=force) as folder:
        report("reading the clip")
        clip, samples = _clip(path, folder)
        metrics, note = _installed_metrics()
        if note:
            report(note)
        versions = []
        for name in masks:
            report(f"compressing and decompressing with a {name} mask")
            versions.append(_code(name, samples, clip, sparsity, folder, metrics))
        report("drawing and writing the page")
        pictures = demo_page.draw_pictures(clip, versions)
        for name, picture in pictures.items():
            (folder / f"{name}.png").write_bytes(picture)
        (folder / "scores.json").write_text(
            json.dumps(_figures(clip, versions), indent=2, ensure_ascii=False) + "\n", "utf-8"
        )
        page = demo_page.render_page(
            clip,
            versions,
            pictures,
            sparsity=sparsity,
            n_fft=STFTConfig().n_fft,
            seconds=time.monotonic() - started,
            version=version,
            note=note,
        )
        (folder / "index.html").write_text(page, "utf-8")
    return out / "index.html"


class Excerpt(NamedTuple):
    """A clip as pages take it, and what was done to a file to get it."""

    name: str
    """For people."""
    samples: Float32[np.ndarray, " N"]
    """One channel at ``SAMPLE_RATE``."""
    changes: list[str]
    transcript: str | None


def read_excerpt(path: Path | None) -> Excerpt:
    """Reads a clip, mixed down to one channel at 16 kHz and cut to `MAX_SECONDS`.

    Args:
        path: An audio file; None stands for the sentence that comes with the package.

    Raises:
        AudioError: The file is not usable audio; it is not named.
        OSError: It can't be opened.
    """
    if path is None:
        with resources.as_file(resources.files("jaxsparse") / "assets" / "sentence.flac") as asset:
            samples, sample_rate = audio.read_audio(asset)
            n_samples = len(samples)
    else:
        samples, sample_rate, n_samples = _start(path)
    changes = []
    if n_samples > len(samples):
        changes.append(f"the first {MAX_SECONDS} of {n_samples / sample_rate:.0f} seconds")
    if samples.shape[1] > 1:
        changes.append(f"{samples.shape[1]} channels mixed down to one")
        samples = audio.to_mono(samples)[:, None]
    if sample_rate != SAMPLE_RATE:
        changes.append(f"resampled from {sample_rate:,} to {SAMPLE_RATE:,} Hz")
        samples = audio.resample(samples, sample_rate, SAMPLE_RATE)
    if path is None:
        return Excerpt("the bundled sentence", samples[:, 0], changes, _SENTENCE)
    # A name may be any bytes, pages are UTF-8.
    name = os.fsencode(path.name).decode(errors="replace")
    return Excerpt(name, samples[:, 0], changes, None)


def _clip(path: Path | None, folder: Path) -> tuple[Clip, Float32[np.ndarray, " N"]]:
    excerpt = read_excerpt(path)
    audio.write_wav(folder / "original.wav", excerpt.samples[:, None], SAMPLE_RATE)
    # What the codec gets is what the file holds, rounding included.
    samples, _ = audio.read_audio(folder / "original.wav")
    clip = Clip(
        name=excerpt.name,
        wav=(folder / "original.wav").read_bytes(),
        n_samples=len(samples),
        spectrogram=_spectrogram(samples[:, 0]),
        hop_length=STFTConfig().hop_length,
        transcript=excerpt.transcript,
        changes=excerpt.changes,
    )
    return clip, samples[:, 0]


def _start(path: Path) -> tuple[Float32[np.ndarray, "N C"], int, int]:
    """Samples of the first `MAX_SECONDS` of a file, its rate, and how many it has in all."""
    with audio.open_audio(path) as file:
        wanted = min(file.frames, MAX_SECONDS * file.samplerate)
        samples = audio.read_frames(file, wanted)
        if len(samples) < wanted:
            raise AudioError(f"the file is truncated: {len(samples)} of {wanted} samples")
        return samples, file.samplerate, file.frames


def _installed_metrics() -> tuple[tuple[Metric, ...], str]:
    """The metrics whose packages are there, and a line that says how to get the others."""
    missing: dict[Metric, str] = {}
    for metric in _METRICS:
        try:
            check_installed(metric)
        except MissingExtraError as error:
            missing[metric] = str(error.name)
    packages = " and ".join(dict.fromkeys(missing.values()))
    note = f"without the figures of {packages}, which pip install 'jaxsparse[eval]' brings"
    return tuple(m for m in _METRICS if m not in missing), note if missing else ""


def _code(
    name: str,
    samples: Float32[np.ndarray, " N"],
    clip: Clip,
    sparsity: str,
    folder: Path,
    metrics: Sequence[Metric],
) -> Coded:
    settings = codec.STFTSettings(sparsity=sparsity, mask=name)
    data = codec.compress(samples[:, None], SAMPLE_RATE, settings)
    decoded, _ = codec.decompress(data)
    files.atomic_write(folder / f"{name}.jsac", data)
    audio.write_wav(folder / f"{name}.wav", decoded, SAMPLE_RATE)
    spectrogram = _spectrogram(decoded[:, 0])
    scores, reasons = _scores(samples, decoded[:, 0], metrics)
    error = mse(
        reference=jnp.asarray(clip.spectrogram)[None], estimate=jnp.asarray(spectrogram)[None]
    )
    description: dict[str, Any] = container.describe(data)
    mask, stored = _stored(data)
    return Coded(
        name=name,
        data=data,
        wav=(folder / f"{name}.wav").read_bytes(),
        mask=mask,
        stored=stored,
        spectrogram=spectrogram,
        scores={**scores, "mse": float(error[0])},
        reasons=reasons,
        parts=description["part_bits"],
        network=description["network"],
        description=describe(name),
    )


def _stored(
    data: bytes,
) -> tuple[Bool[np.ndarray, "F T"], Float32[np.ndarray, "F T"]]:
    """The mask of a one-channel file, and the levels in dB that it holds."""
    header, parts = container.unpack(data)
    segments = [decode_segment(header, 0, i, part) for i, part in enumerate(parts)]
    levels = np.concatenate([segment.levels for segment in segments], axis=1)
    mask = np.concatenate([segment.mask for segment in segments], axis=1)
    return mask, levels.astype(np.float32) * np.float32(header.value_step_mdb / 1000)


def _scores(
    reference: Float32[np.ndarray, " N"],
    estimate: Float32[np.ndarray, " N"],
    metrics: Sequence[Metric],
) -> tuple[dict[str, float], dict[str, str]]:
    with ScorePool() as pool:
        jobs = {
            metric: pool.submit(
                metric, reference=reference, estimate=estimate, sample_rate=SAMPLE_RATE
            )
            for metric in metrics
        }
    scores = {metric: job.result() for metric, job in jobs.items()}
    return (
        {metric: score.value for metric, score in scores.items()},
        {metric: score.reason for metric, score in scores.items() if score.reason is not None},
    )


def _spectrogram(samples: Float32[np.ndarray, " N"]) -> Float32[np.ndarray, "F T"]:
    return np.asarray(log_power(stft(jnp.asarray(samples))))


def _figures(clip: Clip, versions: Sequence[Coded]) -> dict[str, Any]:
    """The page's figures for machines; null where there is no score."""
    return {
        "clip": clip.name,
        "seconds": clip.seconds,
        "changes": list(clip.changes),
        "pcm_bits": clip.pcm_bits,
        "masks": {
            version.name: {
                "scores": {k: None if math.isnan(v) else v for k, v in version.scores.items()},
                "reasons": dict(version.reasons),
                "bits": 8 * len(version.data),
                "kbit_per_s": 8 * len(version.data) / clip.seconds / 1000,
                "parts": dict(version.parts),
                "network": version.network,
            }
            for version in versions
        },
    }
