"""The gallery: files, page and scores that belong together."""

import json
from html.parser import HTMLParser
from urllib.parse import unquote

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from pesq import pesq
from test_eval import voice

from eval import gallery
from eval.reconstruction import mask_key
from jaxsparse.audio import read_audio
from jaxsparse.masks import count_observed
from jaxsparse.nn.pyramid import fill
from jaxsparse.nn.pyramid_unet import PyramidUNetConfig
from jaxsparse.policies import POLICIES
from jaxsparse.pretrained import save_weights
from jaxsparse.reconstruct import to_waveform
from jaxsparse.spectrogram import log_power, phase_mask
from jaxsparse.transforms.stft import stft

ODD = '<b>a & "b" #1%'
CHEAP = ("--decoders", "pyramid", "--mask", "random", "--sparsity", "0.9", "--workers", "1")


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def values(self, name, tag=None):
        return [a[name] for t, a in self.tags if name in a and tag in (None, t)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A gallery of speech-like sound and of silence, with a network of one's own."""
    folder = tmp_path_factory.mktemp("gallery")
    clips = [folder / f"{ODD}.wav", folder / "silence.flac"]
    soundfile.write(clips[0], np.stack([voice(1, 0.3), voice(1, 0.1)], axis=1), 16_000)
    soundfile.write(clips[1], np.zeros(10_000), 16_000)
    config = PyramidUNetConfig(features=(2,))
    network = folder / f"{ODD}.safetensors"
    params = config.build().init(jax.random.key(0))
    # As it is drawn it is the pyramid.
    save_weights(network, jax.tree.map(lambda leaf: leaf + 0.1, params), config, {})
    argv = ["--clips", *map(str, clips), "--out", str(folder / "out"), "--workers", "1"]
    argv += ["--decoders", "pyramid", str(network), "--sparsity", "0.9", "0.95"]
    assert gallery.main(argv) == 0
    return folder


@pytest.fixture(scope="module")
def page(made):
    return Page((made / "out" / "index.html").read_text("utf-8"))


@pytest.fixture(scope="module")
def figures(made):
    return json.loads((made / "out" / "scores.json").read_text())


@pytest.mark.slow
def test_page_refers_to_all_files_and_to_nothing_else(made, page):
    names = ("src", "href", "data-picture", "data-kept")
    sources = {source for name in names for source in page.values(name)} - {"data:,"}
    files = {path.name for path in (made / "out").iterdir()}
    assert {unquote(source) for source in sources} | {"index.html"} == files
    # Nothing in them has a meaning in a URL.
    assert not {c for source in sources for c in source} & set(' #?:&<"')
    assert "url(" not in page.text and "http:" not in page.text and "https:" not in page.text
    # Two clips, each with two sparsities of two masks, and two decoders.
    kinds = {suffix: sum(name.endswith(suffix) for name in files) for suffix in (".wav", ".png")}
    assert kinds == {".wav": 2 * (1 + 8), ".png": 2 * (1 + 4 + 8)}


@pytest.mark.slow
def test_names_are_escaped(made, page):
    html = (made / "out" / "index.html").read_text("utf-8")
    assert "<b>a" not in html and f"{ODD}.wav" in page.text
    assert f"random, {ODD}" in page.text
    assert "Of this file: 2 channels mixed down to one." in page.text


@pytest.mark.slow
def test_all_is_named_for_those_who_do_not_see_it(page):
    ids = page.values("id")
    assert len(set(ids)) == len(ids) and set(page.values("aria-labelledby")) == set(ids)
    assert all(page.values("alt")) and len(page.values("alt")) == 2 * 3
    labels = page.values("aria-label", "button")
    assert len(labels) == len(page.values("src", "audio")) == 2 * (1 + 8)
    assert page.values("aria-pressed").count("true") == 2


@pytest.mark.slow
def test_figures_of_the_page_are_those_of_the_file(page, figures):
    labels, scores = page.values("aria-label", "button"), page.values("data-scores")
    versions = [version for clip in figures["clips"] for version in clip["versions"]]
    assert len(versions) == len(scores) == 16
    for version in versions[:8]:
        hidden = f"{100 * version['sparsity']:g} %"
        title = f"{version['mask']}, {version['decoder']}, {hidden} hidden"
        wide, narrow, stoi = (version[name] for name in ("pesq_wb", "pesq_nb", "stoi"))
        words = f"PESQ {wide:.2f} in wide band ({narrow:.2f} in narrow band), STOI {stoi:.3f}"
        assert f"{title}: {words}" in labels
        assert any(text.endswith(f"MSE {version['mse']:.1f} dB²") for text in scores)
    # None of them stands for another.
    assert len({version["mse"] for version in versions[:8]}) == 8


@pytest.mark.slow
def test_silence_has_no_scores_and_a_reason(page, figures):
    speech, silence = figures["clips"]
    assert not any(version["reasons"] for version in speech["versions"])
    for version in silence["versions"]:
        assert version["pesq_wb"] is version["stoi"] is None and version["mse"] >= 0
        assert version["reasons"]["stoi"] == "reference is silent"
    assert page.text.count("stoi: reference is silent") == 8
    assert "nan" not in page.text.lower()


@pytest.mark.slow
def test_a_version_is_as_by_hand(made, figures):
    clip = figures["clips"][0]
    original = read_audio(made / "out" / clip["sound"])[0][:, 0]
    expected = np.mean([voice(1, 0.3), voice(1, 0.1)], axis=0)
    # The test's files are cut off to steps of 16 bits, and the gallery's are rounded to them.
    np.testing.assert_allclose(original, expected, atol=1.6 / 2**15)
    [version] = [
        v
        for v in clip["versions"]
        if (v["mask"], v["decoder"], v["sparsity"]) == ("learned", "pyramid", 0.95)
    ]
    spectrum = stft(jnp.asarray(original))
    levels = log_power(spectrum)
    key, count = mask_key(0, f"{ODD}.wav"), count_observed(levels.shape, 0.95)
    mask = POLICIES["learned"](key, levels, count)
    filled = jnp.where(mask, levels, jax.jit(fill)(levels, mask))
    phase = jnp.where(phase_mask(levels, 75.0), jnp.angle(spectrum), 0)
    sound = np.asarray(to_waveform(filled, phase, length=len(original)))
    heard = read_audio(made / "out" / version["sound"])[0][:, 0]
    # A step of 16 bits: half of it by rounding.
    np.testing.assert_allclose(heard, sound, atol=1 / 2**15)
    error = np.mean(np.square(np.asarray(filled, np.float64) - np.asarray(levels)))
    assert version["mse"] == pytest.approx(error, rel=1e-4)
    # PESQ in steps of the sound's last bits.
    assert version["pesq_wb"] == pytest.approx(pesq(16_000, original, sound, "wb"), abs=1e-2)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--mask", "loud"], "no policy is named 'loud'"),
        (["--mask", "random", "random"], "mask needs at least one value, each of them once"),
        (["--decoders", "absent"], "no decoder is named 'absent'"),
        (["--decoders", "sparse-cnn"], "sparse-cnn has to be trained"),
        (["--decoders", "absent.safetensors"], "absent.safetensors: No such file"),
        (["--decoders", "linear", "linear"], "decoders needs at least one value"),
        (["--sparsity", "0"], "sparsity 0.0 is not between 0 and 1"),
        (["--sparsity", "0.9", "1"], "sparsity 1.0 is not between 0 and 1"),
        (["--sparsity", "nan"], "sparsity nan is not between 0 and 1"),
        (["--workers", "0"], "workers must be at least 1"),
        (["--clips", "absent.wav"], "absent.wav: No such file"),
        (["--clips", "."], "Is a directory"),
        (["--clips", "bad.flac"], "bad.flac: not readable as audio"),
        (["--clips", "short.wav"], "short.wav: the file is truncated"),
        (["--out", "absent/out"], "absent: No such file"),
        (["--out", "bad.flac"], "bad.flac: Not a directory"),
        (["--out", "full"], "full is not empty (--force"),
    ],
)
def test_bad_input_is_refused_in_one_line(tmp_path, monkeypatch, capsys, options, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.flac").write_bytes(b"fLaC and no more")
    soundfile.write(tmp_path / "short.wav", voice(1, 0.3), 16_000)
    whole = (tmp_path / "short.wav").read_bytes()
    (tmp_path / "short.wav").write_bytes(whole[:-100])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert gallery.main([*CHEAP, *options]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("eval.gallery: ") and reason in line
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_the_bundled_sentence_is_the_default_and_force_keeps_what_is_not_ours(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gallery").mkdir()
    (tmp_path / "gallery" / "notes.txt").write_text("mine")
    (tmp_path / "gallery" / "index.html").write_text("old")
    assert gallery.main([*CHEAP, "--force", "--phase-threshold", "None"]) == 0
    assert capsys.readouterr().out == "gallery/index.html\n"
    page = Page((tmp_path / "gallery" / "index.html").read_text("utf-8"))
    assert "A woman rock climber" in page.text and "This is the bundled sentence." in page.text
    assert "made with the original phases." in page.text
    assert (tmp_path / "gallery" / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["gallery"]


@pytest.mark.slow
def test_a_failure_leaves_nothing(made, tmp_path, monkeypatch, capsys):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gallery, "render_page", fail)
    clip = str(made / f"{ODD}.wav")
    assert gallery.main([*CHEAP, "--clips", clip, "--out", str(tmp_path / "out")]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
