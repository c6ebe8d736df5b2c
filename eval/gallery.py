"""A page on which to hear and see what decoders make of masks.

``python -m eval.gallery`` takes the sentence that comes with the package, ``--clips A.wav B.flac``
others. Every mask is filled in by every decoder, the kept bins are put back, and sound is made with
the original's phases; nothing is quantized. Masks are drawn from (seed, file name), as they are by
eval.reconstruction. OUT gets index.html, which switches between all versions while they play,
their sounds (WAV) and pictures (PNG), and scores.json: MSE over all bins, PESQ in both bands and
STOI. The page loads nothing from elsewhere, so OUT can be opened as it is or put on any server.

The sentence takes less than a minute on two cores.
"""

import itertools
import json
import math
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Float32
from tqdm import tqdm

import jaxsparse
from eval.command import parse_settings, run_command
from eval.reconstruction import CONFIG, Fill, decoder_names, draw, fill, make_synthesis, mask_key
from eval.report import Phases
from jaxsparse import audio, policies
from jaxsparse.demo import Excerpt, read_excerpt
from jaxsparse.demo_page import make_environment, make_figure
from jaxsparse.errors import AudioError, one_line
from jaxsparse.files import whole_folder
from jaxsparse.metrics import Metric, Score, ScorePool
from jaxsparse.plots import draw_levels
from jaxsparse.policies import POLICIES
from jaxsparse.pretrained import load_decoder
from jaxsparse.settings import SettingsError, check_least
from jaxsparse.spectrogram import log_power
from jaxsparse.transforms.stft import stft
from jaxsparse.types import SAMPLE_RATE

SCORES: tuple[Metric, ...] = ("pesq_wb", "pesq_nb", "stoi")
KEPT = "What the decoder is given; a dot lights up if any of four neighbouring bins is kept."
SENTENCE = "sentence.flac"
"""Name that the bundled sentence's masks are drawn from."""
TEMPLATE = "gallery.html.jinja"


@dataclass(frozen=True)
class Settings:
    """Settings of a gallery."""

    clips: tuple[Path, ...] = ()
    """Audio files; by default the sentence that comes with the package. Of longer ones the first
    20 s are taken."""
    out: Path = Path("gallery")
    """Folder for the page."""
    decoders: tuple[str, ...] = ("unet", "linear")
    """What fills in: names, and paths of .safetensors files."""
    mask: tuple[str, ...] = ("random", "learned")
    """Policies that the masks are made by."""
    sparsity: tuple[float, ...] = (0.95, 0.98)
    """Shares of bins that are hidden."""
    phase_threshold: Literal["75", "70", "65", "60"] | None = "75"
    """Phases of bins more than so many dB below the loudest one are 0; with None none are."""
    seed: int = 0
    """Of the masks, with the clip's name."""
    workers: int | None = None
    """Processes that compute PESQ and STOI; one for each CPU by default."""
    force: bool = False
    """Write into a folder that isn't empty; what has the same names is overwritten."""


class Version(NamedTuple):
    """A clip whose hidden bins were filled in, its scores still in the making.

    `sound`, `picture` and `kept` are names of files: the sound, its levels, and the levels kept.
    """

    mask: str
    decoder: str
    sparsity: float
    mse: float
    scores: dict[Metric, Future[Score]]
    sound: str
    picture: str
    kept: str


class Shown(NamedTuple):
    """A clip on the page: its samples as its file holds them, its frames, and its versions."""

    excerpt: Excerpt
    samples: Float32[np.ndarray, " N"]
    n_frames: int
    sound: str
    picture: str
    versions: list[Version]


def run(settings: Settings) -> Path:
    """Makes the gallery and returns the path of its page.

    Raises:
        AudioError: If a clip can't be read; it is named.
        JaxsparseError: If there is no such decoder.
        OSError: If a file is missing, or the folder isn't empty or can't be written.
        SettingsError: If a setting is out of range.
    """
    _check(settings)
    names = [one_line(name) for name in decoder_names(settings.decoders)]
    loaded = map(load_decoder, settings.decoders)
    decoders = {name: fill(network) for name, network in zip(names, loaded, strict=True)}
    excerpts = [_read(path) for path in settings.clips or (None,)]
    combinations = len(settings.sparsity) * len(settings.mask) * len(decoders)
    with (
        whole_folder(settings.out, force=settings.force) as folder,
        ScorePool(settings.workers) as pool,
        tqdm(total=len(excerpts) * combinations, unit="version", disable=None) as bar,
        jax.default_matmul_precision("highest"),
    ):
        clips = []
        for number, excerpt in enumerate(excerpts, 1):
            clip = _start(excerpt, number, folder)
            for version in _versions(settings, clip, number, decoders, folder, pool):
                clip.versions.append(version)
                bar.update()
            clips.append(clip)
        figures = _figures(settings, clips)
        (folder / "scores.json").write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
        (folder / "index.html").write_text(render_page(settings, clips, figures), "utf-8")
    return settings.out / "index.html"


def _check(settings: Settings) -> None:
    out = settings.out
    # Before anything is loaded, and with the flag's name.
    if out.is_dir() and any(out.iterdir()) and not settings.force:
        raise FileExistsError(f"{out} is not empty (--force overwrites what has the same names)")
    check_least(settings, {"workers": 1})
    for sparsity in settings.sparsity:
        if not 0 < sparsity < 1:
            raise SettingsError(f"sparsity {sparsity} is not between 0 and 1")
    for name in settings.mask:
        if name not in POLICIES:
            raise SettingsError(f"no policy is named {name!r}; there are {', '.join(POLICIES)}")
    chosen = {name: getattr(settings, name) for name in ("mask", "sparsity")}
    for name, values in (chosen | {"decoders": decoder_names(settings.decoders)}).items():
        if not 0 < len(values) == len(set(values)):
            raise SettingsError(f"{name} needs at least one value, each of them once")


def _read(path: Path | None) -> Excerpt:
    try:
        return read_excerpt(path)
    except AudioError as error:
        raise AudioError(f"{path}: {error}") from error


def _start(excerpt: Excerpt, number: int, folder: Path) -> Shown:
    """Writes a clip's own files; its versions are still to come."""
    # Not FLAC: there are places in such files that Chromium fails to seek to.
    sound, picture = f"{number}-original.wav", f"{number}-original.png"
    audio.write_wav(folder / sound, excerpt.samples[:, None], SAMPLE_RATE)
    # What is masked and scored is what is heard, rounding included.
    samples = audio.read_audio(folder / sound)[0][:, 0]
    _, dense = _analyze(samples)
    (folder / picture).write_bytes(draw_levels(np.asarray(dense), float(dense.max())))
    return Shown(excerpt, samples, dense.shape[1], sound, picture, [])


def _analyze(
    samples: Float32[np.ndarray, " N"],
) -> tuple[Complex[Array, "F T"], Float[Array, "F T"]]:
    spectrum = stft(jnp.asarray(samples), CONFIG)
    return spectrum, log_power(spectrum)


def _versions(
    settings: Settings,
    clip: Shown,
    number: int,
    decoders: dict[str, Fill],
    folder: Path,
    pool: ScorePool,
) -> Iterator[Version]:
    """Makes all versions of a clip, writes their files and has their sounds scored."""
    phases: Phases = settings.phase_threshold or "all"
    synthesize = make_synthesis((phases,), len(clip.samples), 0)
    spectra, dense = (array[None] for array in _analyze(clip.samples))
    levels, peak = np.asarray(dense[0]), float(dense.max())
    keys = mask_key(settings.seed, clip.excerpt.name if settings.clips else SENTENCE)[None]
    for mask, sparsity in itertools.product(settings.mask, settings.sparsity):
        masks = draw(mask, sparsity, dense, keys)
        kept = np.asarray(masks[0])
        stem = f"{number}-{mask}-{sparsity}"
        (folder / f"{stem}.png").write_bytes(draw_levels(levels, peak, kept))
        for decoder, complete in decoders.items():
            estimate = complete(dense, masks)
            errors, _, sounds = synthesize(spectra, dense, masks, estimate, keys, True)
            sound = np.asarray(sounds[phases][0])
            files = (f"{stem}-{decoder}.wav", f"{stem}-{decoder}.png", f"{stem}.png")
            _write_sound(folder / files[0], sound)
            filled = np.where(kept, levels, np.asarray(estimate[0]))
            (folder / files[1]).write_bytes(draw_levels(filled, peak))
            scores = _submit(pool, clip.samples, sound)
            yield Version(mask, decoder, sparsity, float(errors[0]), scores, *files)


def _write_sound(path: Path, sound: Float32[np.ndarray, " N"]) -> None:
    try:
        audio.write_wav(path, sound[:, None], SAMPLE_RATE)
    except AudioError as error:
        # As a network may make it whose numbers overflow.
        raise AudioError(f"{path.name}: {error}") from error


def _submit(
    pool: ScorePool, reference: Float32[np.ndarray, " N"], estimate: Float32[np.ndarray, " N"]
) -> dict[Metric, Future[Score]]:
    pair = {"reference": reference, "estimate": estimate}
    return {metric: pool.submit(metric, **pair, sample_rate=SAMPLE_RATE) for metric in SCORES}


def _figures(settings: Settings, clips: Sequence[Shown]) -> dict[str, Any]:
    """What the page says, for machines; null where there is no score."""
    return {
        "seed": settings.seed,
        "phase_threshold": settings.phase_threshold,
        "clips": [
            {
                "clip": clip.excerpt.name,
                "seconds": len(clip.samples) / SAMPLE_RATE,
                "changes": clip.excerpt.changes,
                "sound": clip.sound,
                "versions": [_scored(version) for version in clip.versions],
            }
            for clip in clips
        ],
    }


def _scored(version: Version) -> dict[str, Any]:
    scores = {metric: score.result() for metric, score in version.scores.items()}
    return {
        "mask": version.mask,
        "decoder": version.decoder,
        "sparsity": version.sparsity,
        "mse": version.mse,
        **{m: None if math.isnan(score.value) else score.value for m, score in scores.items()},
        "reasons": {metric: score.reason for metric, score in scores.items() if score.reason},
        "sound": version.sound,
    }


def render_page(settings: Settings, clips: Sequence[Shown], figures: dict[str, Any]) -> str:
    """Renders the page.

    Args:
        settings: Of the gallery.
        clips: With all of their versions.
        figures: What ``scores.json`` holds.
    """
    template = make_environment(Path(__file__).parent).get_template(TEMPLATE)
    return template.render(
        version=jaxsparse.__version__,
        clips=[_block(*each) for each in zip(clips, figures["clips"], strict=True)],
        masks={name: policies.describe(name) for name in settings.mask},
        sparsities=[f"{100 * sparsity:.6g}" for sparsity in settings.sparsity],
        threshold=settings.phase_threshold,
        seed=settings.seed,
    )


def _block(clip: Shown, figures: dict[str, Any]) -> dict[str, Any]:
    """Describes a clip to the template: a row of cells for each mask and decoder."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    cells = [_cell(*each) for each in zip(clip.versions, figures["versions"], strict=True)]
    for version, cell in zip(clip.versions, cells, strict=True):
        rows.setdefault((version.mask, version.decoder), []).append(cell)
    seconds = figures["seconds"]

    def figure(src: str, title: str, caption: str) -> dict[str, Any]:
        return make_figure(src, title, caption, seconds, clip.n_frames, CONFIG.hop_length)

    return {
        "name": clip.excerpt.name,
        "heading": clip.excerpt.transcript or clip.excerpt.name,
        "changes": clip.excerpt.changes,
        "seconds": seconds,
        "frames_per_second": SAMPLE_RATE / CONFIG.hop_length,
        "n_frames": clip.n_frames,
        "sound": clip.sound,
        "rows": rows,
        "first": cells[0],
        "figures": [
            figure(clip.picture, "Original.", "What is masked."),
            figure(cells[0]["kept"], "Kept bins.", KEPT),
            figure(cells[0]["picture"], "Filled in.", "What the decoder makes of them."),
        ],
        "reasons": [
            f"{cell['title']}, {metric}: {reason}"
            for cell in cells
            for metric, reason in cell["reasons"].items()
        ],
    }


def _cell(version: Version, figures: dict[str, Any]) -> dict[str, Any]:
    def text(metric: str, digits: int) -> str:
        return "none" if figures[metric] is None else f"{figures[metric]:.{digits}f}"

    hidden = f"{100 * version.sparsity:.6g} %"
    return {
        "title": f"{version.mask}, {version.decoder}, {hidden} hidden",
        "hidden": hidden,
        "pesq_wb": text("pesq_wb", 2),
        "pesq_nb": text("pesq_nb", 2),
        "stoi": text("stoi", 3),
        "mse": text("mse", 1),
        "reasons": figures["reasons"],
        "sound": version.sound,
        "picture": version.picture,
        "kept": version.kept,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs from the command line; returns the exit code of `run_command`."""

    def work() -> str:
        return one_line(str(run(parse_settings(Settings, "eval.gallery", __doc__, argv))))

    return run_command("eval.gallery", work, stopped="nothing of it is kept")


if __name__ == "__main__":
    sys.exit(main())
