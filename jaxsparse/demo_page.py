"""The demo's page and pictures: from coded clips to HTML and PNG, nothing but NumPy inside.

What other pages have in common with it is here too: templates, pictures with axes, and players.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jaxsparse.metrics import Metric
from jaxsparse.plots import COLORMAP, color_stops, draw_levels, draw_spectrogram, pool_bins
from jaxsparse.spectrogram import TOP_DB
from jaxsparse.types import SAMPLE_RATE

if TYPE_CHECKING:
    from jinja2 import Environment

METRICS: dict[Metric, tuple[str, int]] = {
    "pesq_wb": ("PESQ, wide band", 2),
    "pesq_nb": ("PESQ, narrow band", 2),
    "stoi": ("STOI", 3),
}
"""Metrics on pages: their titles, and digits behind the point."""

_KEPT = {
    "mdct": "The coefficients in the file.",
    "stft": "The levels in the file.",
}


@dataclass(frozen=True)
class Clip:
    """What was coded: one channel at ``SAMPLE_RATE``, and what was done to the input to get it."""

    name: str
    wav: bytes
    """The samples as a file."""
    n_samples: int
    spectrogram: Float[np.ndarray, "F T"]
    """dB."""
    coefficients: Float[np.ndarray, "K U"]
    """Magnitudes of its MDCT, dB."""
    hop_length: int
    """Samples from frame to frame of both."""
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
    """The clip coded in one way, decoded again and scored."""

    name: str
    """Of its files."""
    title: str
    """Name for people."""
    grid: Literal["mdct", "stft"]
    data: bytes
    """The ``.jsac`` file."""
    wav: bytes
    """What it decodes to, as a file."""
    mask: Bool[np.ndarray, "F T"]
    """What is kept of the grid."""
    levels: Float[np.ndarray, "F T"]
    """In dB as the file holds them; what is outside the mask has no meaning."""
    spectrogram: Float[np.ndarray, "K U"]
    """Of the decoded sound, dB."""
    parts: Mapping[str, int]
    """Bits of each part of the file; they sum to the file."""
    network: str
    mse: float
    """Of the decoded sound's spectrogram, dB^2."""
    scores: Mapping[Metric, float]
    """NaN where a metric has no score; `reasons` says why. One that was not computed is missing."""
    reasons: Mapping[Metric, str]

    @property
    def bits(self) -> int:
        """Size of the file."""
        return 8 * len(self.data)

    @property
    def kept(self) -> float:
        """Share of the grid that is kept."""
        return float(self.mask.mean())


class Source(NamedTuple):
    """What a player switches to."""

    title: str
    detail: str
    """A few figures, for its button."""
    sound: str
    """Where its sound is."""
    figures: list[dict[str, Any]]
    """As `make_figure` describes them."""


class Player(NamedTuple):
    """A clip on a page, in several versions."""

    name: str
    seconds: float
    n_frames: int
    """Frames of its pictures."""
    frames_per_second: float
    groups: Mapping[str, Sequence[Source]]
    """Versions by the names of their kinds, or all of them below an empty name."""


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
    environment.globals["ramp"] = color_stops()
    environment.globals["top_db"] = f"{TOP_DB:.0f}"
    return environment


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
    top = SAMPLE_RATE // 2
    return {
        "src": src,
        "title": title,
        "caption": caption,
        "alt": f"{title} {caption} {seconds:.1f} seconds by {top} Hz.",
        "x_ticks": [
            {"percent": f"{100 * position:.2f}", "text": f"{time:g}" + " s" * (time == times[-1])}
            for time, position in zip(times, positions, strict=True)
        ],
        "y_ticks": [
            {"percent": f"{100 * f / top:.1f}", "text": f"{f}" + " Hz" * (f == top)}
            for f in range(0, top + 1, 2000)
        ],
    }


def draw_pictures(clip: Clip, versions: Sequence[Coded]) -> dict[str, bytes]:
    """Draws all that the page shows, and ``overview``, as PNG.

    Returns:
        Name to file: ``original``, ``original-mdct``, ``overview``, and for each version
        ``NAME-kept`` and ``NAME-decoded``.
    """
    peak = float(clip.spectrogram.max())
    pictures = {
        "original": draw_levels(clip.spectrogram, peak),
        "original-mdct": draw_levels(clip.coefficients, float(clip.coefficients.max())),
    }
    for version in versions:
        loudest = _peak(clip, version)
        pictures[f"{version.name}-kept"] = draw_levels(version.levels, loudest, version.mask)
        pictures[f"{version.name}-decoded"] = draw_levels(version.spectrogram, peak)
    pictures["overview"] = _overview(clip, versions)
    return pictures


def _peak(clip: Clip, version: Coded) -> float:
    """Returns the level of the original's loudest bin on a version's grid, dB."""
    return float((clip.coefficients if version.grid == "mdct" else clip.spectrogram).max())


def _overview(clip: Clip, versions: Sequence[Coded]) -> bytes:
    """Draws what each version keeps and its decoded sound, below the original, with axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    peak = float(clip.spectrogram.max())
    panels = [
        ("Original, MDCT", clip.coefficients - clip.coefficients.max(), None),
        ("Original, spectrogram", clip.spectrogram - peak, None),
    ]
    for version in versions:
        title = f"{version.title}: {_percent(version.kept)} kept"
        panels.append((title, version.levels - _peak(clip, version), version.mask))
        panels.append((f"{version.title}: decoded", version.spectrogram - peak, None))
    figure = Figure(figsize=(11.0, len(panels)), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    places = figure.subplots(len(panels) // 2, 2, sharex=True, sharey=True)
    images = [
        _draw_panel(axes, levels, mask, clip.hop_length, title)
        for axes, (title, levels, mask) in zip(places.flat, panels, strict=True)
    ]
    for axes in places.flat:
        axes.label_outer()
    label = "dB below the original's loudest bin"
    figure.colorbar(images[0], ax=places, label=label, pad=0.01, aspect=40)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _draw_panel(
    axes: Any,
    levels: Float[np.ndarray, "F T"],
    mask: Bool[np.ndarray, "F T"] | None,
    hop_length: int,
    title: str,
) -> Any:
    """Draws levels, in dB below the peak, in 256 rows; returns what a colour bar is made for."""
    factor = max(len(levels) // 256, 1)
    shown = levels if mask is None else np.where(mask, levels, -np.inf)
    shown = pool_bins(shown, factor, np.mean if mask is None else np.max)
    axes.set_facecolor("#4b4f5e")
    axes.set_title(title, fontsize=10, loc="left")
    # Coefficients of an MDCT lie between the bins of an STFT, as groups of four of them do.
    grid = {"n_fft": 8 * len(shown), "hop_length": hop_length, "pooled": 4}
    return draw_spectrogram(axes, shown, **grid, cmap=COLORMAP, vmin=-TOP_DB, vmax=0.0)


def render_page(
    clip: Clip,
    versions: Sequence[Coded],
    pictures: Mapping[str, bytes],
    *,
    version: str,
    note: str = "",
) -> str:
    """Renders the page as one HTML file that loads nothing from elsewhere.

    Args:
        clip: What was coded.
        versions: At least one coding of it.
        pictures: As `draw_pictures` gives them.
        version: The package's.
        note: What to say of metrics that are in no version's scores.
    """
    template = make_environment().get_template("demo.html.jinja")
    metrics: list[Metric] = [metric for metric in METRICS if metric in versions[0].scores]
    return template.render(
        version=version,
        clip=clip,
        player=_player(clip, versions, pictures),
        rates=[each.title.removesuffix(" kbit/s") for each in _on(versions, "mdct")],
        pcm={"bytes": f"{clip.pcm_bits // 8:,}", "rate": _rate(clip.pcm_bits, clip)},
        rows=[_row(clip, each, metrics) for each in versions],
        titles=[METRICS[key][0] for key in metrics],
        networks=dict.fromkeys(each.network for each in versions),
        thesis=[_verdict(clip, each) for each in _on(versions, "stft")],
        note=note[:1].upper() + note[1:],
        reasons=[
            f"{each.title}, {METRICS[key][0]}: {reason}"
            for each in versions
            for key, reason in each.reasons.items()
        ],
    )


def _on(versions: Sequence[Coded], grid: str) -> list[Coded]:
    return [version for version in versions if version.grid == grid]


def _player(clip: Clip, versions: Sequence[Coded], pictures: Mapping[str, bytes]) -> Player:
    def figure(picture: str, title: str, caption: str) -> dict[str, Any]:
        src = _data_uri("image/png", pictures[picture])
        n_frames = clip.spectrogram.shape[1]
        return make_figure(src, title, caption, clip.seconds, n_frames, clip.hop_length)

    def source(each: Coded) -> Source:
        size = f"{_bytes(len(each.data))}, {_percent(each.kept)} kept"
        heard = figure(f"{each.name}-decoded", "Spectrogram.", "What you hear.")
        kept = figure(f"{each.name}-kept", f"{_percent(each.kept)} kept.", _KEPT[each.grid])
        return Source(each.title, size, _data_uri("audio/wav", each.wav), [heard, kept])

    original = Source(
        "Original",
        f"{_bytes(clip.pcm_bits // 8)} as 16 bits",
        _data_uri("audio/wav", clip.wav),
        [
            figure("original", "Spectrogram.", "What you hear."),
            figure("original-mdct", "MDCT.", "All coefficients."),
        ],
    )
    return Player(
        clip.name,
        clip.seconds,
        clip.spectrogram.shape[1],
        SAMPLE_RATE / clip.hop_length,
        {"": [original, *map(source, versions)]},
    )


def _row(clip: Clip, version: Coded, metrics: Sequence[Metric]) -> dict[str, Any]:
    """Writes a version's figures for the table."""
    return {
        "title": version.title,
        "name": version.name,
        "bytes": f"{len(version.data):,}",
        "rate": _rate(version.bits, clip),
        "kept": _percent(version.kept),
        "relative": _percent(version.bits / clip.pcm_bits),
        "scores": [format_score(key, version.scores[key]) for key in metrics],
    }


def format_score(metric: Metric, value: float | None) -> str:
    """Writes a score with the digits of its metric; None and NaN are none."""
    return "none" if value is None or math.isnan(value) else f"{value:.{METRICS[metric][1]}f}"


def _verdict(clip: Clip, version: Coded) -> dict[str, Any]:
    """Says how large a file of the thesis' grid is, and how much of it are phases."""
    return {
        "title": version.title,
        "kept": _percent(version.kept),
        "ratio": f"{version.bits / clip.pcm_bits:.2f}",
        "larger": version.bits > clip.pcm_bits,
        "phases": f"{100 * version.parts['phases'] / version.bits:.0f}",
    }


def _data_uri(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"


def _bytes(count: int) -> str:
    return f"{count / 1000:,.1f} kB"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _rate(bits: int, clip: Clip) -> str:
    return f"{bits / clip.seconds / 1000:,.2f}"
