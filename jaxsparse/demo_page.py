"""The demo's page and pictures: from coded clips to HTML and PNG, nothing but NumPy inside."""

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from jaxsparse.plots import draw_spectrogram
from jaxsparse.types import SAMPLE_RATE

if TYPE_CHECKING:
    from jinja2 import Environment

TOP_DB = 80.0
"""Span of the colour scale, dB below the loudest bin of the original."""

METRICS = ("pesq_wb", "pesq_nb", "stoi", "mse")

_COLUMNS: dict[str, tuple[str, str, int, Callable[..., float]]] = {
    "pesq_wb": ("PESQ, wide band", "1 to 4.6, more is better", 2, max),
    "pesq_nb": ("PESQ, narrow band", "1 to 4.5, more is better", 2, max),
    "stoi": ("STOI", "0 to 1, more is better", 3, max),
    "mse": ("MSE", "dB², less is better", 1, min),
}
_CAPTIONS = {
    "mask": "Which bins are stored.",
    "stored": "What the network is given.",
    "decoded": "The spectrogram of what you hear.",
}
_PARTS = {
    "mask": ("Mask: which bins", 1),
    "values": ("Their levels", 2),
    "phase_bitmap": ("Which phases", 4),
    "phases": ("Phases", 3),
    "overhead": ("Header and checksums", 5),
}
"""Names for people, and the numbers of their colours."""
_CLOSE_UP = (128, 64)
"""Bins and frames of the close-ups: 1 kHz by one second."""
_COLORMAP = "magma"


@dataclass(frozen=True)
class Clip:
    """What was coded: one channel at ``SAMPLE_RATE``, and what was done to the input to get it."""

    name: str
    wav: bytes
    """The samples as a file."""
    n_samples: int
    spectrogram: Float[np.ndarray, "F T"]
    hop_length: int
    transcript: str | None = None
    changes: Sequence[str] = ()

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return self.n_samples / SAMPLE_RATE

    @property
    def pcm_bits(self) -> int:
        """Size as 16-bit samples."""
        return 16 * self.n_samples


@dataclass(frozen=True)
class Coded:
    """The clip coded with one kind of mask, decoded again and scored."""

    name: str
    data: bytes
    """The ``.jsac`` file."""
    wav: bytes
    """What it decodes to, as a file."""
    mask: Bool[np.ndarray, "F T"]
    stored: Float[np.ndarray, "F T"]
    """Levels in dB as the file holds them; what is outside the mask has no meaning."""
    spectrogram: Float[np.ndarray, "F T"]
    """Of the decoded sound."""
    scores: Mapping[str, float]
    """NaN where a metric has no score; `reasons` says why. One that was not computed is missing."""
    reasons: Mapping[str, str]
    parts: Mapping[str, int]
    """Bits of each part of the file; they sum to the file."""
    network: str
    description: str
    """How its mask was made, in a sentence."""

    @property
    def title(self) -> str:
        """Name for people."""
        return f"{self.name.capitalize()} mask"


def draw_pictures(clip: Clip, versions: Sequence[Coded]) -> dict[str, bytes]:
    """Draws all that the page shows of the whole clip, and ``overview``, as PNG.

    Returns:
        Name to file: ``original``, ``overview``, and for each version ``NAME-mask``,
        ``NAME-stored`` and ``NAME-decoded``.
    """
    peak = float(clip.spectrogram.max())
    pictures = {"original": draw_levels(clip.spectrogram, peak)}
    for version in versions:
        pictures[f"{version.name}-mask"] = _mask_png(_pool_bins(version.mask, 4, np.max))
        pictures[f"{version.name}-stored"] = draw_levels(version.stored, peak, version.mask)
        pictures[f"{version.name}-decoded"] = draw_levels(version.spectrogram, peak)
    pictures["overview"] = _overview(clip, versions)
    return pictures


def draw_levels(
    levels: Float[np.ndarray, "F T"], peak: float, mask: Bool[np.ndarray, "F T"] | None = None
) -> bytes:
    """Draws a whole clip's levels as PNG, without axes, low frequencies at the bottom.

    Args:
        levels: dB.
        peak: What the brightest colour stands for, dB.
        mask: Bins to show, the others being transparent; by default all. Of four bins above each
            other the loudest one is shown then, so that none that stands alone is lost.
    """
    if mask is None:
        return _spectrogram_png(_pool_bins(levels, 2, np.mean), peak)
    shown = _pool_bins(np.where(mask, levels, -np.inf), 4, np.max)
    return _spectrogram_png(shown, peak, _pool_bins(mask, 4, np.max))


def _overview(clip: Clip, versions: Sequence[Coded]) -> bytes:
    """Draws the original, and for each version its kept bins and its decoded sound, with axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    peak = float(clip.spectrogram.max())
    figure = Figure(figsize=(11.0, 6.2), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels: list[tuple[str, np.ndarray, np.ndarray | None]] = [("Original", clip.spectrogram, None)]
    for version in versions:
        panels.append((f"{version.title}: stored bins", version.stored, version.mask))
        panels.append((f"{version.title}: decoded", version.spectrogram, None))
    grid = figure.add_gridspec(2 * len(versions), 3)
    middle = len(versions) - 1
    places = [grid[middle : middle + 2, 0]]
    places += [grid[2 * row : 2 * row + 2, col] for row in range(len(versions)) for col in (1, 2)]
    image = None
    for (title, levels, mask), place in zip(panels, places, strict=True):
        axes = figure.add_subplot(place)
        axes.set_facecolor("#4b4f5e")
        shown = levels - peak if mask is None else np.where(mask, levels - peak, -np.inf)
        shown = _pool_bins(shown, 4, np.max if mask is not None else np.mean)
        image = draw_spectrogram(
            axes,
            shown,
            n_fft=2 * (clip.spectrogram.shape[0] - 1),
            hop_length=clip.hop_length,
            pooled=4,
            cmap=_COLORMAP,
            vmin=-TOP_DB,
            vmax=0.0,
        )
        axes.set_title(title, fontsize=10, loc="left")
    assert image is not None
    figure.colorbar(image, ax=figure.axes, label="dB below the loudest bin", pad=0.01, aspect=40)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def render_page(
    clip: Clip,
    versions: Sequence[Coded],
    pictures: Mapping[str, bytes],
    *,
    sparsity: str,
    n_fft: int,
    seconds: float,
    version: str,
    note: str = "",
) -> str:
    """Renders the page as one HTML file that loads nothing from elsewhere.

    Args:
        clip: What was coded.
        versions: At least one coding of it.
        pictures: As `draw_pictures` gives them.
        sparsity: Share of bins that were not stored, as it was typed.
        n_fft: For the close-up's frequency axis.
        seconds: How long the demo took.
        version: The package's.
        note: What to say of metrics that are in no version's scores.
    """
    template = make_environment().get_template("demo.html.jinja")
    n_bins, n_frames = clip.spectrogram.shape
    kept = int(versions[0].mask.sum())
    return template.render(
        version=version,
        title=clip.transcript or clip.name,
        heading="One bin in twenty" if float(sparsity) == 0.95 else "A few bins of many",
        clip=clip,
        versions=[_version(v, versions, clip, pictures) for v in versions],
        original_audio=_data_uri("audio/wav", clip.wav),
        original_picture=_figure(
            clip, pictures["original"], "Original.", "The spectrogram of what went in."
        ),
        close_ups=_close_ups(clip, versions, n_fft),
        columns=[
            {"key": key, "title": title, "hint": hint}
            for key, (title, hint, *_) in _COLUMNS.items()
            if key in versions[0].scores
        ],
        note=note[:1].upper() + note[1:],
        reasons=[
            f"{version.title}, {_COLUMNS[key][0]}: {reason}"
            for version in versions
            for key, reason in version.reasons.items()
        ],
        parts=_parts(clip, versions),
        bars=_bars(clip, versions),
        verdict=_verdict(clip, versions),
        pcm={
            "bytes": _bytes(clip.pcm_bits // 8),
            "rate": _rate(clip.pcm_bits, clip),
            "bits": f"{clip.pcm_bits:,}",
        },
        rate_khz=SAMPLE_RATE // 1000,
        n_bins=n_bins,
        n_frames=n_frames,
        kept=f"{kept:,}",
        kept_percent=f"{100 * kept / (n_bins * n_frames):.3g}",
        missing_percent=f"{100 - 100 * kept / (n_bins * n_frames):.3g}",
        sparsity=sparsity,
        top_db=f"{TOP_DB:.0f}",
        seconds=f"{seconds:.0f}",
    )


def make_environment(*folders: Path) -> "Environment":
    """Makes what renders the package's templates, and those of more folders.

    Texts are escaped, and a name that is missing raises. ``ramp`` holds the colours of the scale.
    """
    import jinja2

    # A wheel is installed as files.
    own = Path(str(resources.files("jaxsparse"))) / "assets"
    loader = jinja2.FileSystemLoader([*folders, own])
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, loader=loader
    )
    environment.globals["ramp"] = _ramp()
    return environment


def _version(
    version: Coded, versions: Sequence[Coded], clip: Clip, pictures: Mapping[str, bytes]
) -> dict[str, Any]:
    bits = 8 * len(version.data)
    return {
        "name": version.name,
        "title": version.title,
        "description": version.description,
        "network": version.network,
        "bytes": _bytes(len(version.data)),
        "bits": f"{bits:,}",
        "rate": _rate(bits, clip),
        "relative": f"{bits / clip.pcm_bits:.2f}",
        "audio": _data_uri("audio/wav", version.wav),
        "cells": {key: _cell(key, version, versions) for key in METRICS if key in version.scores},
        "pictures": [
            _figure(clip, pictures[f"{version.name}-{kind}"], f"{kind.capitalize()}.", caption)
            for kind, caption in _CAPTIONS.items()
        ],
    }


def _cell(key: str, version: Coded, versions: Sequence[Coded]) -> dict[str, Any]:
    _, _, digits, better = _COLUMNS[key]
    value = version.scores[key]
    if np.isnan(value):
        return {"text": "none", "best": False}
    others = [v.scores[key] for v in versions if not np.isnan(v.scores[key])]
    return {"text": f"{value:.{digits}f}", "best": len(others) > 1 and value == better(others)}


def _figure(clip: Clip, picture: bytes, title: str, caption: str) -> dict[str, Any]:
    src = _data_uri("image/png", picture)
    return make_figure(
        src, title, caption, clip.seconds, clip.spectrogram.shape[1], clip.hop_length
    )


def make_figure(
    src: str, title: str, caption: str, seconds: float, n_frames: int, hop_length: int
) -> dict[str, Any]:
    """Describes a picture of a whole clip to the templates, with the ticks around it.

    Args:
        src: Where the picture is.
        title: Of the picture.
        caption: What it shows.
        seconds: Duration of the clip.
        n_frames: Frames of its spectrogram.
        hop_length: Samples from frame to frame.
    """
    step = next((s for s in (0.05, 0.1, 0.2, 0.5, 1, 2) if seconds / s <= 6), 5)
    times = [i * step for i in range(math.ceil((seconds - step / 3) / step))]
    positions = [(time * SAMPLE_RATE / hop_length + 0.5) / n_frames for time in times]
    top = SAMPLE_RATE // 2000
    return {
        "src": src,
        "title": title,
        "caption": caption,
        "alt": f"{title} {caption} {seconds:.1f} seconds by {top} kHz.",
        "x_ticks": [
            {"percent": f"{100 * position:.2f}", "text": f"{time:g}" + " s" * (time == times[-1])}
            for time, position in zip(times, positions, strict=True)
        ],
        "y_ticks": [
            {"percent": f"{100 * f / top:.1f}", "text": f"{f}" + " kHz" * (f == top)}
            for f in range(0, top + 1, 2)
        ],
    }


def _close_ups(clip: Clip, versions: Sequence[Coded], n_fft: int) -> dict[str, Any]:
    """The low bins around the loudest frame, pixel for bin."""
    n_bins, n_frames = (min(a, b) for a, b in zip(_CLOSE_UP, clip.spectrogram.shape, strict=True))
    loudest = int(clip.spectrogram[:n_bins].mean(axis=0).argmax())
    start = min(max(loudest - n_frames // 2, 0), clip.spectrogram.shape[1] - n_frames)
    region = np.s_[:n_bins, start : start + n_frames]
    peak = float(clip.spectrogram.max())
    top = n_bins * SAMPLE_RATE / n_fft

    def figure(
        title: str,
        caption: str,
        levels: Float[np.ndarray, "F T"],
        mask: Bool[np.ndarray, "F T"] | None = None,
    ) -> dict[str, Any]:
        shown = None if mask is None else mask[region]
        return {
            "src": _data_uri("image/png", _spectrogram_png(levels[region], peak, shown)),
            "title": title,
            "caption": caption,
            "alt": f"Close-up, {title} {caption}",
            "x_ticks": [],
            "y_ticks": [],
        }

    figures = [figure("Original.", "", clip.spectrogram)]
    for version in versions:
        figures.append(figure(f"{version.title}.", "Stored.", version.stored, version.mask))
        figures.append(figure(f"{version.title}.", "Decoded.", version.spectrogram))
    return {
        "figures": figures,
        "top_hz": f"{top:,.0f}",
        "start": f"{start * clip.hop_length / SAMPLE_RATE:.1f}",
        "stop": f"{(start + n_frames) * clip.hop_length / SAMPLE_RATE:.1f}",
    }


def _parts(clip: Clip, versions: Sequence[Coded]) -> list[dict[str, Any]]:
    return [
        {
            "title": title,
            "colour": colour,
            "cells": [
                {
                    "rate": _rate(version.parts[name], clip),
                    "bits": f"{version.parts[name]:,}",
                }
                for version in versions
            ],
        }
        for name, (title, colour) in _PARTS.items()
    ]


def _bars(clip: Clip, versions: Sequence[Coded]) -> list[dict[str, Any]]:
    longest = max(clip.pcm_bits, *(8 * len(version.data) for version in versions))
    bars = [
        {
            "title": version.title,
            "pieces": [
                {"percent": f"{100 * bits / longest:.3f}", "colour": _PARTS[name][1]}
                for name, bits in version.parts.items()
                if bits
            ],
        }
        for version in versions
    ]
    original = {"percent": f"{100 * clip.pcm_bits / longest:.3f}", "colour": "plain"}
    return [*bars, {"title": "16-bit samples", "pieces": [original]}]


def _verdict(clip: Clip, versions: Sequence[Coded]) -> dict[str, Any]:
    ratios = [8 * len(version.data) / clip.pcm_bits for version in versions]
    part, bits = max(versions[-1].parts.items(), key=lambda item: item[1])
    share = f"{100 * bits / (8 * len(versions[-1].data)):.0f}"
    return {
        "larger": max(ratios) > 1,
        "smaller": min(ratios) < 1,
        "range": " to ".join(dict.fromkeys(f"{f(ratios):.2f}" for f in (min, max))),
        "part": _PARTS[part][0].lower(),
        "share": share,
    }


def _pool_bins(levels: np.ndarray, factor: int, reduce: Callable[..., np.ndarray]) -> np.ndarray:
    """Reduces groups of bins along frequency; the rest at the top (Nyquist) is left out."""
    n_groups = max(levels.shape[0] // factor, 1)
    factor = min(factor, levels.shape[0])
    return reduce(levels[: n_groups * factor].reshape(n_groups, factor, -1), axis=1)


def _spectrogram_png(
    levels: Float[np.ndarray, "F T"], peak: float, mask: Bool[np.ndarray, "F T"] | None = None
) -> bytes:
    """Levels in dB by colour, low frequencies at the bottom, bins outside `mask` transparent."""
    from matplotlib import colormaps

    # 64 steps of 1.25 dB can't be told apart and halve the file.
    scaled = np.round(np.clip((levels - peak) / TOP_DB + 1.0, 0.0, 1.0) * 63) / 63
    pixels = colormaps[_COLORMAP](scaled, bytes=True)
    if mask is not None:
        pixels[~mask] = 0
    return _png(pixels)


def _mask_png(mask: Bool[np.ndarray, "F T"]) -> bytes:
    """Kept bins near white, the others transparent."""
    return _png(np.where(mask[..., None], np.array([240, 236, 245, 255], np.uint8), np.uint8(0)))


def _ramp() -> str:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return ", ".join(to_hex(colormaps[_COLORMAP](x)) for x in np.linspace(0.0, 1.0, 9))


def _png(pixels: np.ndarray) -> bytes:
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, pixels[::-1], format="png")
    return buffer.getvalue()


def _data_uri(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"


def _bytes(count: int) -> str:
    return f"{count / 1000:,.1f} kB"


def _rate(bits: int, clip: Clip) -> str:
    return f"{bits / clip.seconds / 1000:,.1f}"
