"""The demo: what it writes, and a page that stands on its own."""

import base64
import io
import json
import re
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
from jaxsparse.spectrogram import log_power
from jaxsparse.transforms.stft import stft

SAMPLE_RATE = 16_000


class Page(HTMLParser):
    """What a browser would load, and what it would show to somebody who sees or hears nothing."""

    def __init__(self, html):
        super().__init__()
        self.sources, self.names, self.ids, self.text = [], [], [], []
        self.open = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)
        self.sources += [attributes[k] for k in ("src", "href", "srcset") if k in attributes]
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if tag in ("img", "audio"):
            self.names.append(attributes.get("alt") or attributes.get("aria-label"))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def files(self, media_type):
        start = f"data:{media_type};base64,"
        return [base64.b64decode(s[len(start) :]) for s in self.sources if s.startswith(start)]


def clip(n_frames=20, **changes):
    levels = np.linspace(-80, 0, 1025 * n_frames, dtype=np.float32).reshape(1025, n_frames)
    fields = {"name": "a clip", "wav": b"original", "n_samples": 256 * (n_frames - 1)}
    return demo_page.Clip(**fields | {"spectrogram": levels, "hop_length": 256} | changes)


def coded(clip, name="mixed", **changes):
    mask = np.zeros(clip.spectrogram.shape, bool)
    mask[::5, ::4] = True
    fields = {
        "name": name,
        "data": bytes(1000),
        "wav": b"decoded",
        "mask": mask,
        "stored": clip.spectrogram,
        "spectrogram": clip.spectrogram,
        "scores": {"pesq_wb": 3.21, "pesq_nb": 3.5, "stoi": 0.9, "mse": 40.0},
        "reasons": {},
        "parts": {"mask": 800, "values": 2000, "phase_bitmap": 0, "phases": 5000, "overhead": 200},
        "network": "mixed",
        "description": "Half of them are loud.",
    }
    return demo_page.Coded(**fields | changes)


def render(clip, versions):
    pictures = demo_page.draw_pictures(clip, versions)
    return demo_page.render_page(
        clip, versions, pictures, sparsity="0.95", n_fft=2048, seconds=1.0, version="1.2.3"
    )


def test_page_escapes_names_and_says_why_there_is_no_score():
    name = "<script>alert('x')</script> & co.wav"
    original = clip(name=name)
    silent = coded(
        original,
        scores={"pesq_wb": float("nan"), "pesq_nb": 3.5, "stoi": 0.9, "mse": 40.0},
        reasons={"pesq_wb": "no utterance was found"},
    )
    html = render(original, [silent])
    page = Page(html)
    assert name not in html and name in "".join(page.text)
    assert "no utterance was found" in html
    assert "nan" not in "".join(page.text).lower()


@pytest.mark.parametrize(("n_bytes", "larger"), [(100, False), (100_000, True)])
def test_page_says_whether_anything_was_saved(n_bytes, larger):
    original = clip()
    html = render(original, [coded(original, data=bytes(n_bytes))])
    assert ("larger</em>" in html or "are larger" in html) == larger
    assert f"{8 * n_bytes / original.pcm_bits:.2f}" in html


def test_pictures_show_the_mask_and_low_frequencies_at_the_bottom():
    original = clip(n_frames=8)
    mask = np.zeros(original.spectrogram.shape, bool)
    mask[:4, 3] = True
    pictures = demo_page.draw_pictures(original, [coded(original, mask=mask)])
    opaque = imread(io.BytesIO(pictures["mixed-mask"]))[..., 3] > 0
    assert opaque.shape == (256, 8)
    assert np.argwhere(opaque).tolist() == [[255, 3]]
    whole = imread(io.BytesIO(pictures["original"]))[..., :3].sum(-1)
    assert whole[0].mean() > 10 * whole[-1].mean()


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


def test_everything_is_written_and_nothing_else(made):
    kinds = [f"{m}{suffix}" for m in demo.MASKS for suffix in (".jsac", ".wav")]
    kinds += [f"{m}-{k}.png" for m in demo.MASKS for k in ("mask", "stored", "decoded")]
    files = {path.name for path in (made / "out").iterdir()}
    assert files == {
        "index.html",
        "scores.json",
        "original.wav",
        "original.png",
        "overview.png",
    } | set(kinds)
    assert {path.name for path in made.iterdir()} == {"tone.wav", "out"}


def test_page_stands_on_its_own(made):
    page = Page((made / "out" / "index.html").read_text("utf-8"))
    assert all(source.startswith("data:") for source in page.sources)
    assert "url(" not in "".join(page.text) and "http" not in "".join(page.text)
    assert all(page.names) and len(set(page.ids)) == len(page.ids)
    players = [(made / "out" / f"{name}.wav").read_bytes() for name in ("original", *demo.MASKS)]
    assert page.files("audio/wav") == players
    pictures = page.files("image/png")
    for name in ("original", "random-stored", "learned-decoded"):
        assert (made / "out" / f"{name}.png").read_bytes() in pictures


def test_scores_are_those_of_the_files(made):
    figures = json.loads((made / "out" / "scores.json").read_text())
    assert figures["seconds"] == 1.0
    assert len(figures["changes"]) == 2
    text = (made / "out" / "index.html").read_text("utf-8")
    for name in demo.MASKS:
        data = (made / "out" / f"{name}.jsac").read_bytes()
        entry = figures["masks"][name]
        assert entry["bits"] == 8 * len(data) == sum(entry["parts"].values())
        assert f"{entry['bits']:,}" in text
        assert re.search(rf">{entry['scores']['stoi']:.3f}<", text)
    name = "learned"
    samples, rate = codec.decompress((made / "out" / f"{name}.jsac").read_bytes())
    original, _ = audio.read_audio(made / "out" / "original.wav")
    written, _ = audio.read_audio(made / "out" / f"{name}.wav")
    assert rate == SAMPLE_RATE
    assert np.abs(written - np.clip(samples, -1, 1)).max() <= 1.01 / 2**15
    spectrograms = [np.asarray(log_power(stft(jnp.asarray(x[:, 0])))) for x in (samples, original)]
    mse = np.mean((spectrograms[0] - spectrograms[1]) ** 2)
    assert figures["masks"][name]["scores"]["mse"] == pytest.approx(mse, rel=1e-4)


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
    assert main(["demo", "--input", str(made / "tone.wav"), "--out", str(out)]) == 0
    said = "without the figures of pesq and pystoi, which pip install 'jaxsparse[eval]' brings"
    assert capsys.readouterr().err.count(f"jaxsparse: {said}\n") == 1
    text = "".join(Page((out / "index.html").read_text("utf-8")).text)
    assert text.count(said.capitalize()) == 1
    assert "PESQ" not in text and "STOI" not in text and "MSE" in text
    with_all = json.loads((made / "out" / "scores.json").read_text())["masks"]
    for name, mask in json.loads((out / "scores.json").read_text())["masks"].items():
        assert mask["scores"] == {"mse": with_all[name]["scores"]["mse"]}
        assert mask["reasons"] == {}


def test_a_package_that_is_there_is_used_without_the_other(monkeypatch):
    monkeypatch.setitem(sys.modules, "pesq", None)
    metrics, note = demo._installed_metrics()
    assert metrics == ("stoi",)
    assert note == "without the figures of pesq, which pip install 'jaxsparse[eval]' brings"


def test_force_keeps_what_is_not_the_demos(made, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / "index.html").write_text("old")
    page = demo.run_demo(made / "tone.wav", out, force=True, masks=("mixed",))
    assert page.read_text("utf-8").startswith("<!doctype html>")
    assert (out / "notes.txt").read_text() == "mine"
