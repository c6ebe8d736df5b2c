"""The demo: one clip, coded at several rates and on the thesis' grid, to be heard and seen."""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32

from jaxsparse import audio, codec, demo_page, files
from jaxsparse.codec import container, mdct_container, mdct_segment, segment
from jaxsparse.demo_page import METRICS, Clip, Coded
from jaxsparse.errors import AudioError, MissingExtraError
from jaxsparse.metrics import Metric, Score, ScorePool, check_installed
from jaxsparse.settings import SettingsError
from jaxsparse.spectrogram import log_power
from jaxsparse.transforms.mdct import mdct
from jaxsparse.transforms.stft import STFTConfig, stft
from jaxsparse.types import SAMPLE_RATE

KBPS = (3.0, 6.0, 12.0)
"""Rates on the MDCT grid."""
MASKS = ("learned",)
"""Policies on the STFT grid."""
MAX_SECONDS = 20
"""The rest of a longer file is left out: the page is to be listened to."""

_SENTENCE = "A woman rock climber scales a cliff far above pastures"
# Magnitudes below it are drawn as it, full scale being 1.
_QUIETEST = 1e-6


def run_demo(
    path: Path | None,
    out: Path,
    *,
    force: bool = False,
    kbps: Sequence[float] = KBPS,
    masks: Sequence[str] = MASKS,
    version: str = "",
    report: Callable[[str], None] = lambda step: None,
) -> Path:
    """Codes a clip at each rate and with a mask of each policy, scores it, and writes a page.

    The directory gets ``index.html``, ``original.wav``, ``scores.json``, ``overview.png``, and for
    each rate (``mdct-KBPS``) and policy the ``.jsac`` file, its decoded sound and pictures. It
    appears whole or not at all; in an existing one the files are replaced one by one, the page
    last.

    Args:
        path: An audio file, mixed down to one channel at 16 kHz and cut to `MAX_SECONDS`; by
            default a sentence that comes with the package.
        out: The directory.
        force: Whether to write into a directory that isn't empty.
        kbps: Rates on the MDCT grid, kbit/s.
        masks: Policies on the STFT grid, names of `jaxsparse.policies.POLICIES`.
        version: The package's, for the page.
        report: Called with each step before it is taken.

    Returns:
        The path of the page.

    Raises:
        AudioError: The file is not usable audio.
        JaxsparseError: There is no such policy, or a rate is out of range.
        OSError: The directory isn't empty and not forced, or can't be written.
    """
    ways = _ways(kbps, masks)
    with files.whole_folder(out, force=force) as folder:
        report("reading the clip")
        clip, samples = _clip(path, folder)
        metrics, note = _installed_metrics()
        if note:
            report(note)
        versions = _code_all(ways, samples, clip, folder, metrics, report)
        report("drawing and writing the page")
        pictures = demo_page.draw_pictures(clip, versions)
        for name, picture in pictures.items():
            (folder / f"{name}.png").write_bytes(picture)
        figures = json.dumps(_figures(clip, versions), indent=2, ensure_ascii=False)
        (folder / "scores.json").write_text(figures + "\n", "utf-8")
        page = demo_page.render_page(clip, versions, pictures, version=version, note=note)
        (folder / "index.html").write_text(page, "utf-8")
    return out / "index.html"


class _Way(NamedTuple):
    """A way to code the clip; `name` is that of its files, `title` the one for people."""

    name: str
    title: str
    settings: codec.MDCTSettings | codec.STFTSettings


def _ways(kbps: Sequence[float], masks: Sequence[str]) -> list[_Way]:
    """Lists the ways to code, each of them once."""
    rates = [
        _Way(f"mdct-{rate:g}", f"{rate:g} kbit/s", codec.MDCTSettings(kbps=rate)) for rate in kbps
    ]
    policies = [_Way(mask, f"STFT, {mask}", codec.STFTSettings(mask=mask)) for mask in masks]
    ways = {way.name: way for way in [*rates, *policies]}
    if not ways:
        raise SettingsError("there is neither a rate nor a mask to code with")
    return list(ways.values())


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
        coefficients=_decibels(np.asarray(mdct(jnp.asarray(samples[:, 0])))),
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
    for metric in METRICS:
        try:
            check_installed(metric)
        except MissingExtraError as error:
            missing[metric] = str(error.name)
    packages = " and ".join(dict.fromkeys(missing.values()))
    note = f"without the figures of {packages}, which pip install 'jaxsparse[eval]' brings"
    return tuple(m for m in METRICS if m not in missing), note if missing else ""


def _code_all(
    ways: Sequence[_Way],
    samples: Float32[np.ndarray, " N"],
    clip: Clip,
    folder: Path,
    metrics: Sequence[Metric],
    report: Callable[[str], None],
) -> list[Coded]:
    """Codes the clip in all ways; what is coded is scored while the next one is."""
    with ScorePool() as pool:
        jobs = []
        for way in ways:
            report(f"compressing and decompressing: {way.title}")
            coded, decoded = _code(way, samples, clip, folder)
            pair = {"reference": samples, "estimate": decoded, "sample_rate": SAMPLE_RATE}
            jobs.append((coded, {metric: pool.submit(metric, **pair) for metric in metrics}))
        return [_scored(coded, scores) for coded, scores in jobs]


def _code(
    way: _Way, samples: Float32[np.ndarray, " N"], clip: Clip, folder: Path
) -> tuple[Coded, Float32[np.ndarray, " N"]]:
    """Codes and decodes the clip, writes both files, and returns the decoded samples too."""
    data = codec.compress(samples[:, None], SAMPLE_RATE, way.settings)
    decoded, _ = codec.decompress(data)
    files.atomic_write(folder / f"{way.name}.jsac", data)
    audio.write_wav(folder / f"{way.name}.wav", decoded, SAMPLE_RATE)
    spectrogram = _spectrogram(decoded[:, 0])
    description: dict[str, Any] = codec.describe(data)
    grid = description["grid"]
    mask, levels = _kept_coefficients(data) if grid == "mdct" else _kept_bins(data)
    coded = Coded(
        name=way.name,
        title=way.title,
        grid=grid,
        data=data,
        wav=(folder / f"{way.name}.wav").read_bytes(),
        mask=mask,
        levels=levels,
        spectrogram=spectrogram,
        parts=description["part_bits"],
        network=description["codec" if grid == "mdct" else "network"],
        mse=float(np.mean(np.square(clip.spectrogram - spectrogram))),
        scores={},
        reasons={},
    )
    return coded, decoded[:, 0]


def _kept_coefficients(
    data: bytes,
) -> tuple[Bool[np.ndarray, "F T"], Float32[np.ndarray, "F T"]]:
    """Reads which coefficients of a one-channel file are not zero, and their magnitudes in dB."""
    header, parts = mdct_container.unpack(data)
    models = codec.load_codec(header.codec).models
    coefficients = []
    for index, part in enumerate(parts):
        n_frames = header.segment_frames(index)
        values = mdct_segment.decode_segment(part.data, n_frames, part.rate, models).values
        coefficients.append(values * np.float32(mdct_container.step_size(part.step)))
    joined = np.concatenate(coefficients, axis=1).astype(np.float32)
    return joined != 0, _decibels(joined)


def _kept_bins(data: bytes) -> tuple[Bool[np.ndarray, "F T"], Float32[np.ndarray, "F T"]]:
    """Reads the mask of a one-channel file, and the levels in dB that it holds."""
    header, parts = container.unpack(data)
    segments = [segment.decode_segment(header, 0, i, part) for i, part in enumerate(parts)]
    levels = np.concatenate([each.levels for each in segments], axis=1)
    mask = np.concatenate([each.mask for each in segments], axis=1)
    return mask, levels.astype(np.float32) * np.float32(header.value_step_mdb / 1000)


def _scored(coded: Coded, futures: Mapping[Metric, Future[Score]]) -> Coded:
    scores = {metric: future.result() for metric, future in futures.items()}
    return replace(
        coded,
        scores={metric: score.value for metric, score in scores.items()},
        reasons={metric: score.reason for metric, score in scores.items() if score.reason},
    )


def _spectrogram(samples: Float32[np.ndarray, " N"]) -> Float32[np.ndarray, "F T"]:
    return np.asarray(log_power(stft(jnp.asarray(samples))))


def _decibels(coefficients: Float32[np.ndarray, "F T"]) -> Float32[np.ndarray, "F T"]:
    return 20 * np.log10(np.maximum(np.abs(coefficients), np.float32(_QUIETEST)))


def _figures(clip: Clip, versions: Sequence[Coded]) -> dict[str, Any]:
    """Gives the page's figures for machines, and the MSE; null where there is no score."""
    return {
        "clip": clip.name,
        "seconds": clip.seconds,
        "changes": list(clip.changes),
        "pcm_bits": clip.pcm_bits,
        "rates": {
            version.name.removeprefix("mdct-"): _entry(clip, version)
            for version in versions
            if version.grid == "mdct"
        },
        "masks": {
            version.name: _entry(clip, version) for version in versions if version.grid == "stft"
        },
    }


def _entry(clip: Clip, version: Coded) -> dict[str, Any]:
    scores = {k: None if math.isnan(v) else v for k, v in version.scores.items()}
    return {
        "scores": {**scores, "mse": version.mse},
        "reasons": dict(version.reasons),
        "bits": version.bits,
        "kbit_per_s": version.bits / clip.seconds / 1000,
        "kept": version.kept,
        "parts": dict(version.parts),
        "network": version.network,
    }
