"""The demo: what it writes, and a page that stands on its own."""

import base64
import io
import json
import sys
import tracemalloc
from html.parser import HTMLParser

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from matplotlib.image import imread

from jaxsparse import audio, codec, demo, demo_page
from jaxsparse.cli import main
from jaxsparse.codec.mdct_container import STEP_ONE, STEPS_PER_OCTAVE, CodedSegment, pack
from jaxsparse.pretrained import shipped
from jaxsparse.spectrogram import log_power
from jaxsparse.transforms.stft import stft
from tests import plain_mdct
from tests.mdct_files import encode, make_header, make_segment

SAMPLE_RATE = 16_000
RATES = ("3", "6", "12")
NAMES = (*(f"mdct-{rate}" for rate in RATES), "learned")
KINDS = ("decoded", "kept")
VOID = ("meta", "link", "img", "br", "input")


class Page(HTMLParser):
    """What a browser would load, and what it would show to somebody who sees or hears nothing."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.text, self.script = [], [], "", ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.script += data
        else:
            self.text += data

    def values(self, name, tag=None):
        return [a[name] for t, a in self.tags if name in a and tag in (None, t)]

    def files(self, media_type):
        start = f"data:{media_type};base64,"
        sources = self.values("src")
        return [base64.b64decode(s[len(start) :]) for s in sources if s.startswith(start)]


def clip(n_frames=20, **changes):
    fields = {
        "name": "a clip",
        "wav": b"original",
        "n_samples": 256 * (n_frames - 1),
        "spectrogram": rising(1025, n_frames),
        "coefficients": rising(256, n_frames),
        "hop_length": 256,
    }
    return demo_page.Clip(**fields | changes)


def rising(n_bins, n_frames):
    return np.linspace(-80, 0, n_bins * n_frames, dtype=np.float32).reshape(n_bins, n_frames)


def coded(clip, grid="mdct", **changes):
    levels = clip.coefficients if grid == "mdct" else clip.spectrogram
    mask = np.zeros(levels.shape, bool)
    mask[::5, ::4] = True
    fields = {
        "name": "some",
        "title": "Some",
        "grid": grid,
        "data": bytes(1000),
        "wav": b"decoded",
        "mask": mask,
        "levels": levels,
        "spectrogram": clip.spectrogram,
        "scores": {"pesq_wb": 3.21, "pesq_nb": 3.5, "stoi": 0.9},
        "mse": 40.0,
        "reasons": {},
        "parts": {"mask": 1000, "phases": 7000},
        "network": "unet",
    }
    return demo_page.Coded(**fields | changes)


def render(clip, versions):
    pictures = demo_page.draw_pictures(clip, versions)
    return demo_page.render_page(clip, versions, pictures, version="1.2.3")


def test_page_escapes_names_and_says_why_there_is_no_score():
    name = "<script>alert('x')</script> & co.wav"
    original = clip(name=name)
    silent = coded(
        original,
        mask=np.zeros((256, 20), bool),
        scores={"pesq_wb": float("nan"), "pesq_nb": 3.5, "stoi": 0.9},
        reasons={"pesq_wb": "no utterance was found"},
    )
    html = render(original, [silent])
    page = Page(html)
    assert name not in html and name in page.text
    assert "0.0 % kept." in page.text
    assert "Some, PESQ, wide band: no utterance was found" in page.text
    assert "nan" not in page.text.lower()


@pytest.mark.parametrize(("n_bytes", "larger"), [(100, False), (100_000, True)])
def test_page_says_whether_the_way_of_the_thesis_saves_anything(n_bytes, larger):
    original = clip()
    page = Page(render(original, [coded(original, "stft", data=bytes(n_bytes))]))
    assert ("larger, not smaller" in page.text) == larger
    assert f"It has {8 * n_bytes / original.pcm_bits:.2f} times the size" in page.text


@pytest.mark.parametrize(("grid", "row"), [("mdct", 252), ("stft", 255)])
def test_pictures_show_what_is_kept_and_low_frequencies_at_the_bottom(grid, row):
    original = clip(n_frames=8)
    mask = np.zeros((256 if grid == "mdct" else 1025, 8), bool)
    mask[3, 5] = True
    pictures = demo_page.draw_pictures(original, [coded(original, grid, mask=mask)])
    opaque = imread(io.BytesIO(pictures["some-kept"]))[..., 3] > 0
    # Four bins of the STFT share a row.
    assert opaque.shape == (256, 8)
    assert np.argwhere(opaque).tolist() == [[row, 5]]
    for name in ("original", "original-mdct", "some-decoded"):
        whole = imread(io.BytesIO(pictures[name]))[..., :3].sum(-1)
        assert whole[0].mean() > 10 * whole[-1].mean()


def test_page_quotes_the_bundled_sentence_and_names_the_rates():
    original = clip(transcript="To be & not")
    versions = [coded(original, name=f"mdct-{r}", title=f"{r} kbit/s") for r in RATES]
    page = Page(render(original, versions))
    assert "Speech at 3, 6 and 12 kbit/s" in page.text and "“To be & not”" in page.text
    assert "compress original.wav again.jsac --kbps 3\n" in page.text


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The demo on a second of stereo sound, through the command line."""
    folder = tmp_path_factory.mktemp("demo")
    time = np.arange(24_000) / 24_000
    tone = sum(np.sin(2 * np.pi * 140 * k * time) / k for k in range(1, 30))
    tone = 0.1 * tone * (1 + np.sin(2 * np.pi * 3 * time))
    audio.write_wav(folder / "tone.wav", np.stack([tone, 0.5 * tone], axis=1), 24_000)
    (folder / "out").mkdir()
    status = main(["demo", "--input", str(folder / "tone.wav"), "--out", str(folder / "out")])
    assert status == 0
    return folder


@pytest.fixture(scope="module")
def page(made):
    return Page((made / "out" / "index.html").read_text("utf-8"))


@pytest.fixture(scope="module")
def figures(made):
    """What scores.json says of each file, by the file's name."""
    whole = json.loads((made / "out" / "scores.json").read_text())
    return {**{f"mdct-{rate}": each for rate, each in whole["rates"].items()}, **whole["masks"]}


def test_everything_is_written_and_nothing_else(made):
    ends = (".jsac", ".wav", "-kept.png", "-decoded.png")
    files = {path.name for path in (made / "out").iterdir()}
    assert files == {
        "index.html",
        "scores.json",
        "original.wav",
        "original.png",
        "original-mdct.png",
        "overview.png",
    } | {f"{name}{end}" for name in NAMES for end in ends}
    assert {path.name for path in made.iterdir()} == {"tone.wav", "out"}


def test_page_stands_on_its_own(made, page):
    sources = page.values("src") + page.values("href") + page.values("srcset")
    assert all(source.startswith("data:") for source in sources)
    for text in (page.text, page.script):
        assert "url(" not in text and "http:" not in text and "https:" not in text
    out = made / "out"
    sounds = [(out / f"{name}.wav").read_bytes() for name in ("original", *NAMES)]
    assert page.files("audio/wav") == sounds
    pictures = [
        (out / f"{stem}.png").read_bytes()
        for stem in ("original", "original-mdct", *(f"{n}-{k}" for n in NAMES for k in KINDS))
    ]
    assert page.files("image/png") == pictures


def test_all_is_named_for_those_who_do_not_see_it(page):
    ids = page.values("id")
    assert len(set(ids)) == len(ids) and set(page.values("aria-labelledby")) <= set(ids)
    assert all(page.values("alt")) and len(page.values("alt")) == 2 * (1 + len(NAMES))
    buttons = [a for tag, a in page.tags if tag == "input" and a["type"] == "radio"]
    players = page.values("aria-label", "audio")
    assert len(buttons) == len(players) == len(set(players)) == 1 + len(NAMES)
    assert len({button["name"] for button in buttons}) == 1
    assert ["checked" in button for button in buttons] == [True] + len(NAMES) * [False]
    for button, player in zip(buttons, players, strict=True):
        assert button["aria-label"].startswith(player)


def test_figures_are_those_of_the_files(made, page, figures):
    out = made / "out"
    original, _ = audio.read_audio(out / "original.wav")
    assert list(figures) == list(NAMES)
    for name in NAMES:
        entry, data = figures[name], (out / f"{name}.jsac").read_bytes()
        assert entry["bits"] == 8 * len(data) == sum(entry["parts"].values())
        # Of one second.
        assert entry["kbit_per_s"] == entry["bits"] / 1000
        share = f"{100 * entry['bits'] / 256_000:.1f} %"
        cells = [f"{len(data):,}", f"{entry['kbit_per_s']:.2f}", share]
        scores = [entry["scores"][metric] for metric in ("pesq_wb", "pesq_nb", "stoi")]
        cells.append(f"{100 * entry['kept']:.1f} %")
        cells += [f"{score:.{n}f}" for score, n in zip(scores, (2, 2, 3), strict=True)]
        assert "".join(cells) in page.text
        samples, rate = codec.decompress(data)
        written, _ = audio.read_audio(out / f"{name}.wav")
        assert rate == SAMPLE_RATE
        assert np.abs(written - np.clip(samples, -1, 1)).max() <= 1.01 / 2**15
        levels = [np.asarray(log_power(stft(jnp.asarray(x[:, 0])))) for x in (samples, original)]
        mse = np.mean((levels[0] - levels[1]) ** 2)
        assert entry["scores"]["mse"] == pytest.approx(mse, rel=1e-4)
    for rate in RATES:
        assert figures[f"mdct-{rate}"]["kbit_per_s"] == pytest.approx(float(rate), rel=0.05)


def test_what_is_kept_is_what_the_files_hold(made, figures):
    """By a decoder that was written from the description of the format alone."""
    weights = plain_mdct.Weights(shipped("mdct").read_bytes())
    file = plain_mdct.read((made / "out" / "mdct-3.jsac").read_bytes())
    [(values, _)] = plain_mdct.decode_numbers(*file, weights)
    assert figures["mdct-3"]["kept"] == np.mean(values != 0) > 0
    opaque = imread(made / "out" / "mdct-3-kept.png")[::-1, :, 3] > 0
    np.testing.assert_array_equal(opaque, values != 0)
    # A count of bins is a whole number.
    assert figures["learned"]["kept"] == pytest.approx(0.05, abs=1 / (1025 * 63))


def test_coefficients_of_a_long_file_are_in_the_units_of_the_signal():
    segments = [make_segment(320), make_segment(90, seed=1)]
    octaves = (-9, -7)
    packed = [
        CodedSegment(STEP_ONE + octave * STEPS_PER_OCTAVE, segment.rate, encode(segment))
        for segment, octave in zip(segments, octaves, strict=True)
    ]
    data = pack(make_header(n_samples=409 * 256), packed)
    mask, levels = demo._kept_coefficients(data)
    values = np.concatenate([s.values * 2.0**o for s, o in zip(segments, octaves, strict=True)], 1)
    np.testing.assert_array_equal(mask, values != 0)
    np.testing.assert_allclose(levels[mask], 20 * np.log10(np.abs(values[mask])), atol=1e-4)


def test_only_the_start_of_a_long_file_is_read(tmp_path):
    """Whatever comes later, if it is an hour of it or cannot be used, costs and hurts nothing."""
    with soundfile.SoundFile(tmp_path / "hour.wav", "w", 16_000, 1, "FLOAT") as file:
        for minute in range(60):
            file.write(
                np.full(60 * 16_000, (minute + 1) / 128 if minute < 59 else np.nan, np.float32)
            )
    tracemalloc.start()
    clip, samples = demo._clip(tmp_path / "hour.wav", tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert clip.changes == ["the first 20 of 3600 seconds"]
    np.testing.assert_array_equal(samples, np.full(20 * 16_000, 1 / 128, np.float32))
    # The whole file is 230 MB.
    assert peak < 60e6


def test_refused_without_force(made, capsys):
    before = (made / "out" / "index.html").read_bytes()
    assert main(["demo", "--out", str(made / "out")]) == 2
    assert "not empty" in capsys.readouterr().err
    assert main(["demo", "--out", str(made / "tone.wav"), "--force"]) == 2
    assert (made / "out" / "index.html").read_bytes() == before


def test_a_failure_leaves_nothing(made, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(demo, "_code", fail)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    arguments = ["demo", "--input", str(made / "tone.wav"), "--out"]
    assert main([*arguments, str(tmp_path / "new")]) == 2
    assert main([*arguments, str(tmp_path / "out"), "--force"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_without_pesq_and_pystoi_a_line_says_what_brings_them(made, tmp_path, monkeypatch, capsys):
    for package in ("pesq", "pystoi"):
        monkeypatch.setitem(sys.modules, package, None)
    out = tmp_path / "out"
    arguments = ["--input", str(made / "tone.wav"), "--kbps", "6", "--mask", "--out", str(out)]
    assert main(["demo", *arguments]) == 0
    said = "without the figures of pesq and pystoi, which pip install 'jaxsparse[eval]' brings"
    assert capsys.readouterr().err.count(f"jaxsparse: {said}\n") == 1
    text = Page((out / "index.html").read_text("utf-8")).text
    assert text.count(said.capitalize()) == 1
    assert "PESQ" not in text and "STOI" not in text and "Speech" not in text
    figures = json.loads((out / "scores.json").read_text())
    assert figures["masks"] == {} and figures["rates"].keys() == {"6"}
    assert figures["rates"]["6"]["scores"].keys() == {"mse"}
    # What is coded depends on nothing else.
    for name in ("mdct-6.jsac", "mdct-6-kept.png", "original-mdct.png"):
        assert (out / name).read_bytes() == (made / "out" / name).read_bytes()


def test_a_package_that_is_there_is_used_without_the_other(monkeypatch):
    monkeypatch.setitem(sys.modules, "pesq", None)
    metrics, note = demo._installed_metrics()
    assert metrics == ("stoi",)
    assert note == "without the figures of pesq, which pip install 'jaxsparse[eval]' brings"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--kbps", "6", "1.9"], "kbps 1.9 is not from 2 to 64"),
        (["--kbps", "nan"], "kbps nan is not from 2 to 64"),
        (["--mask", "loud"], "no policy is named 'loud'"),
        (["--kbps", "--mask"], "there is neither a rate nor a mask"),
    ],
)
def test_what_can_not_be_coded_is_refused_in_one_line(tmp_path, capsys, arguments, reason):
    assert main(["demo", "--out", str(tmp_path / "out"), *arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("jaxsparse: ") and reason in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_force_keeps_what_is_not_the_demos_and_makes_the_same_again(made, tmp_path, monkeypatch):
    # Scores would take most of the time.
    for package in ("pesq", "pystoi"):
        monkeypatch.setitem(sys.modules, package, None)
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / "index.html").write_text("old")
    pages = []
    for _ in range(2):
        page = demo.run_demo(made / "tone.wav", out, force=True, kbps=(3.2, 3.2), masks=())
        pages.append(page.read_text("utf-8"))
    assert pages[0] == pages[1] and pages[0].startswith("<!doctype html>")
    text = Page(pages[0]).text
    assert "Your clip at 3.2 kbit/s" in text
    assert (out / "mdct-3.2.jsac").exists() and not list(out.glob("learned*"))
    assert (out / "notes.txt").read_text() == "mine"
