"""The comparison of codecs: bytes, alignment, missing peers, resuming and tables."""

import csv
import json
from concurrent.futures import Future
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import scipy.signal
import soundfile
from test_eval import voice

from benchmarks.codecs import coding, listen, own, run
from benchmarks.codecs.alignment import align, find_delay
from benchmarks.codecs.coding import Task, code
from benchmarks.codecs.contract import Codec
from benchmarks.codecs.files import FLAC
from benchmarks.codecs.pcm import from_frames, from_pcm, join_bits, split_bits, to_frames, to_pcm
from benchmarks.codecs.peers import PEERS, PUBLISHED, find
from benchmarks.codecs.plots import plot
from jaxsparse.audio import read_audio
from jaxsparse.data.clips import FileClip
from jaxsparse.metrics import Score

LATE, FRAME = 123, 320
N = 10_000


def delay_pcm(signal, setting):
    """16-bit PCM in frames, as a codec sends it that looks ahead by `LATE` samples."""
    late = np.concatenate([np.zeros(LATE, np.float32), signal])
    return [frame.tobytes() for frame in to_frames(late, FRAME)[: len(signal) // FRAME + 1]]


def read_pcm(packets, setting):
    return from_frames(np.frombuffer(packet, np.int16) for packet in packets)


PCM = Codec("PCM", "packets", (16.0,), lambda: None, delay_pcm, read_pcm)
ABSENT = Codec("Absent", "packets", (1.0,), lambda: "libabsent is missing", delay_pcm, read_pcm)


@pytest.fixture(scope="module")
def sentence():
    with resources.as_file(resources.files("jaxsparse") / "assets" / "sentence.flac") as path:
        return read_audio(path)[0][:, 0]


@pytest.mark.parametrize("delay", [0, 1, 104, 3_999])
def test_delay_is_found(delay):
    rng = np.random.default_rng(0)
    reference = rng.normal(size=8_000).astype(np.float32)
    estimate = np.pad(reference, (delay, 500))[: 8_000 + delay]
    estimate += rng.normal(size=estimate.size).astype(np.float32)
    assert find_delay(reference, estimate) == delay


def test_what_is_too_short_is_filled_up():
    signal = np.arange(5, dtype=np.float32)
    np.testing.assert_array_equal(align(signal, 2, 4), [2, 3, 4, 0])
    np.testing.assert_array_equal(align(signal, 1, 2), [1, 2])


def test_a_late_codec_is_aligned_to_its_last_sample_and_all_its_bytes_count():
    signal = voice(1, 0.3).astype(np.float32)
    coded = code(Task("pcm", PCM, 16.0), signal)
    assert coded.delay == LATE
    np.testing.assert_array_equal(coded.decoded, from_pcm(to_pcm(signal)))
    # The frames that hold the clip and the delay.
    assert coded.n_bytes == 2 * FRAME * -(-(N + LATE) // FRAME)
    assert coded.encode_seconds > 0 and coded.decode_seconds > 0


@pytest.mark.parametrize("n_bits", [52, 64, 132])
def test_bits_are_joined_without_gaps(n_bits):
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (7, n_bits), np.uint8)
    frames = [np.packbits(frame).tobytes() for frame in bits]
    joined = join_bits(frames, n_bits)
    assert len(joined) == -(-7 * n_bits // 8)
    assert [frame.tobytes() for frame in split_bits(joined, n_bits)] == frames


def test_flac_is_lossless_and_counted_as_a_file(sentence, tmp_path):
    coded = code(Task("flac", FLAC, 1.0), sentence)
    np.testing.assert_array_equal(coded.decoded, sentence)
    soundfile.write(tmp_path / "x.flac", sentence, 16_000, compression_level=1.0)
    assert coded.n_bytes == (tmp_path / "x.flac").stat().st_size


# Lowest and highest kbit/s at the setting, and the correlation with the original.
EXPECTED = {
    "opus": (16.0, 12.0, 18.0, 0.9),
    "opus-lace": (16.0, 12.0, 18.0, 0.9),
    "opus-nolace": (16.0, 12.0, 18.0, 0.9),
    "amr-wb": (15.85, 15.8, 16.2, 0.9),
    "lc3": (24.0, 24.0, 24.4, 0.9),
    "codec2": (3.2, 3.2, 3.3, None),
    "speex": (6.0, 12.0, 21.0, 0.9),
    "mp3": (32.0, 32.0, 34.0, 0.9),
    "flac": (1.0, 60.0, 256.0, 0.999),
}


def envelope(signal):
    """Level of 20 ms, with what is 40 dB below the loudest cut off."""
    power = np.convolve(signal**2, np.hanning(320), "same")
    level = np.log10(power + 1e-4 * power.max())
    return level - level.mean()


def lag(reference, estimate):
    products = scipy.signal.correlate(estimate, reference, "full", "fft")
    return int(np.argmax(products)) - (len(reference) - 1)


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_keeps_its_rate_and_lies_on_the_original(sentence, name):
    setting, low, high, least = EXPECTED[name]
    if reason := PEERS[name].available():
        pytest.skip(reason)
    assert setting in PEERS[name].settings
    coded = code(Task(name, PEERS[name], setting), sentence)
    assert low <= 8 * coded.n_bytes / (len(sentence) / 16_000) / 1000 <= high
    if least is None:
        # Its phases are made up, so that levels are compared: to 3 ms, a seventh of their window.
        assert abs(lag(envelope(sentence), envelope(coded.decoded))) <= 48
    else:
        assert lag(sentence, coded.decoded) == 0
        assert np.corrcoef(sentence, coded.decoded)[0, 1] > least


def test_opus_decoded_with_lace_is_the_same_packets(sentence):
    if reason := PEERS["opus-lace"].available():
        pytest.skip(reason)
    opus, lace, nolace = (PEERS[name] for name in ("opus", "opus-lace", "opus-nolace"))
    packets = opus.encode(sentence, 8.5)
    assert lace.encode(sentence, 8.5) == packets
    sounds = [codec.decode(packets, 8.5) for codec in (opus, lace, nolace)]
    assert len({sound.tobytes() for sound in sounds}) == 3


@pytest.mark.slow
def test_our_codec_is_coded_at_its_rate_and_its_file_counted(sentence):
    codec = own.make_codec((16.0,), 0)
    assert codec.available() is None
    clip = sentence[:30_000]
    coded = code(Task("jaxsparse-0", codec, 16.0), clip)
    assert 8 * coded.n_bytes / len(clip) * 16 == pytest.approx(16.0, rel=0.02)
    assert coded.delay == 0 and coded.decoded.shape == clip.shape
    assert np.corrcoef(coded.decoded, clip)[0, 1] > 0.9
    assert find("jaxsparse-3").title == "jaxsparse, effort 3"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two speakers, with two clips and one; the latter is silent."""
    folder = tmp_path_factory.mktemp("clips")
    for name, level in (("1-a-0", 0.3), ("1-a-1", 0.2), ("2-b-0", 0.0)):
        soundfile.write(folder / f"{name}.flac", voice(1, level), 16_000)
    return folder


@pytest.fixture
def peers(monkeypatch):
    """Codecs that every machine has, and one that none has."""
    saved = dict(PEERS)
    PEERS.clear()
    PEERS.update({"pcm": PCM, "flac": FLAC, "absent": ABSENT})
    monkeypatch.setattr(run, "NAMES", (own.NAME, *PEERS))
    monkeypatch.setattr(run, "UNIT", Task("pcm", PCM, 16.0))
    yield
    PEERS.clear()
    PEERS.update(saved)


class FreePool:
    """Stands for the pool, with the same score for all."""

    def __init__(self, workers):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, metric, *, reference, estimate, sample_rate):
        assert reference.shape == estimate.shape and sample_rate == 16_000
        future = Future()
        future.set_result(Score(1.5, None))
        return future


@pytest.fixture
def no_scores(monkeypatch):
    """Leaves out what takes seconds: scores and plots."""
    monkeypatch.setattr(run, "ScorePool", FreePool)
    monkeypatch.setattr(run, "plot", lambda summary, out: None)


def command(data, out, *more):
    flags = ["--data", str(data), "--out", str(out), "--seconds", "0.625", "--workers", "1"]
    return run.main([*flags, *more])


def test_a_run_has_rows_means_a_table_and_plots(data, tmp_path, peers, capsys):
    out = tmp_path / "run"
    assert command(data, out, "--codecs", "flac", "pcm", "absent") == 0
    text = capsys.readouterr().out
    assert text.strip() == (out / "table.md").read_text().strip()
    lines = [line[2:-2].split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert [line[:4] for line in lines[2:4]] == [
        ["PCM", "16", "3", "262.14"],
        ["FLAC (lossless)", "1", "3", lines[3][3]],
    ]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["missing"] == {"Absent": "libabsent is missing"}
    assert "- Absent: libabsent is missing" in text
    assert "- 2-b-0.flac, stoi: reference is silent" in text
    pcm, flac = summary["groups"]
    # Frames of 16 bits: the last one holds the end of the clip, which comes late.
    assert pcm["kbps"]["mean"] == pytest.approx(32 * FRAME * 16 / 0.625 / 1000)
    for group in (pcm, flac):
        assert (group["clips"], group["pesq_wb"]["clips"], group["pesq_wb"]["unscored"]) == (
            3,
            2,
            1,
        )
        # Without loss: the highest scores that there are.
        assert group["pesq_wb"]["mean"] > 4.6 and group["stoi"]["mean"] > 0.999
        assert group["moved_pesq_wb"]["mean"] > 4.6
    assert pcm["encode_times_opus"] > 0 and pcm["encode_real_time_factor"] > 0
    assert [line[:3] for line in lines[-len(PUBLISHED) :]] == [
        [each.name, f"{each.kbps:g}", f"{each.pesq_wb:.2f}"] for each in PUBLISHED
    ]
    for name in ("pesq-wb", "pesq-nb", "stoi", "estoi"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_command_adds_what_is_new_and_computes_nothing_twice(
    data, tmp_path, peers, no_scores, monkeypatch
):
    out = tmp_path / "run"
    coded = []
    monkeypatch.setattr(run, "code", lambda task, signal: coded.append(task) or code(task, signal))
    assert command(data, out, "--codecs", "pcm", "--clips", "1") == 0
    before = (out / "rows.csv").read_text().splitlines()
    # The row, and the unit of times.
    assert len(before) == 2 and len(coded) == 2
    coded.clear()
    assert command(data, out, "--codecs", "pcm", "--clips", "1") == 0
    assert not coded
    assert command(data, out, "--codecs", "pcm", "flac", "--per-speaker", "1") == 0
    names = [(task.name, task.setting) for task in coded]
    assert names == [("pcm", 16.0), ("flac", 1.0), ("pcm", 16.0), ("pcm", 16.0), ("flac", 1.0)]
    after = (out / "rows.csv").read_text().splitlines()
    assert set(before) < set(after) and len(after) == 5
    assert after[1:] == sorted(after[1:])
    # Codecs that were not asked for this time stay in the table.
    assert command(data, out, "--codecs", "absent", "--clips", "1") == 0
    summary = json.loads((out / "summary.json").read_text())
    assert [group["title"] for group in summary["groups"]] == ["PCM", "FLAC (lossless)"]
    assert list(summary["missing"]) == ["Absent"]


def test_a_missing_codec_whose_rows_are_all_there_is_not_missing(data, tmp_path, peers, no_scores):
    def missing(*more):
        assert command(data, tmp_path / "run", "--codecs", "pcm", *more) == 0
        return json.loads((tmp_path / "run" / "summary.json").read_text())["missing"]

    assert missing("--clips", "1") == {}
    PEERS["pcm"] = PCM._replace(available=lambda: "it is gone")
    assert missing("--clips", "1") == {}
    PEERS["pcm"] = PCM
    assert command(data, tmp_path / "run", "--codecs", "flac") == 0
    PEERS["pcm"] = PCM._replace(available=lambda: "it is gone")
    assert missing() == {"PCM": "it is gone"}


def test_without_opus_times_have_no_unit(data, tmp_path, peers, no_scores, monkeypatch):
    monkeypatch.setattr(run, "UNIT", Task("absent", ABSENT, 1.0))
    assert command(data, tmp_path / "run", "--codecs", "flac", "--clips", "1") == 0
    [group] = json.loads((tmp_path / "run" / "summary.json").read_text())["groups"]
    assert group["encode_times_opus"] is None and group["encode_seconds"] > 0


def test_nothing_but_missing_codecs_is_a_table_too(
    data, tmp_path, peers, no_scores, monkeypatch, capsys
):
    monkeypatch.setattr(run, "plot", plot)
    assert command(data, tmp_path / "run", "--codecs", "absent") == 0
    assert "- Absent: libabsent is missing" in capsys.readouterr().out


@pytest.mark.parametrize(("seconds", "n_samples"), [("0.6", 9_600), ("0.7", N)])
def test_clips_are_cut_and_never_filled_up(data, tmp_path, peers, no_scores, seconds, n_samples):
    flags = ("--codecs", "pcm", "--clips", "1", "--seconds", seconds)
    assert command(data, tmp_path / "run", *flags) == 0
    [row] = csv.DictReader((tmp_path / "run" / "rows.csv").read_text().splitlines())
    assert int(row["samples"]) == n_samples
    n_bytes = 2 * FRAME * -(-(n_samples + LATE) // FRAME)
    assert int(row["bytes"]) == n_bytes
    assert float(row["kbps"]) == pytest.approx(8 * n_bytes / (n_samples / 16))


def test_rows_of_another_length_are_not_mixed(data, tmp_path, peers, no_scores, capsys):
    flags = ("--codecs", "flac", "--clips", "1")
    assert command(data, tmp_path / "run", *flags) == 0
    assert command(data, tmp_path / "run", *flags, "--seconds", "0.6") == 2
    assert "another n_samples (10000, now 9600)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--codecs", "loud"], "no codec is named 'loud'; there are jaxsparse, pcm, flac, absent"),
        (["--codecs", "flac", "flac"], "codecs needs at least one value, each of them once"),
        (["--kbps", "6", "6"], "kbps needs at least one value, each of them once"),
        (["--seconds", "0"], "seconds must be a number from 0.5 to 3600"),
        (["--clips", "0"], "clips must be at least 1"),
        (["--per-speaker", "0"], "per_speaker must be at least 1"),
        (["--codecs", "flac", "--data", "no"], "no: No such file"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    data, tmp_path, peers, no_scores, capsys, options, reason
):
    assert command(data, tmp_path / "run", *options) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("benchmarks.codecs: ") and reason in line
    assert not (tmp_path / "run").exists()


def test_an_unreadable_clip_is_named(data, tmp_path, peers, no_scores, capsys):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "bad.flac").write_bytes(b"fLaC and no more")
    assert command(tmp_path / "clips", tmp_path / "run", "--codecs", "flac") == 2
    assert "bad.flac: not readable as audio" in capsys.readouterr().err


def test_a_failing_codec_is_named_in_one_line(data, tmp_path, peers, no_scores, capsys):
    def fail(packets, setting):
        raise coding.CodecError("it refused a packet")

    PEERS["pcm"] = PCM._replace(decode=fail)
    assert command(data, tmp_path / "run", "--codecs", "pcm", "--clips", "1") == 2
    assert capsys.readouterr().err == "benchmarks.codecs: PCM at 16: it refused a packet\n"


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


def listen_to(data, out, *more):
    flags = ["--data", str(data), "--out", str(out), "--seconds", "0.625", "--workers", "1"]
    return listen.main([*flags, *more])


@pytest.fixture(scope="module")
def heard(data, tmp_path_factory):
    """A page of one clip: this codec, one that codes without loss but late, and a missing one."""
    out = tmp_path_factory.mktemp("listen") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PEERS, "opus", ABSENT)
        patch.setitem(PEERS, "amr-wb", PCM)
        flags = ("--clips", "1", "--kbps", "6", "12", "--codecs", "opus", "amr-wb")
        assert listen_to(data, out, *flags) == 0
    return out


@pytest.fixture(scope="module")
def heard_page(heard):
    return Page((heard / "index.html").read_text("utf-8"))


@pytest.mark.slow
def test_page_refers_to_all_of_its_files_and_to_nothing_else(heard, heard_page):
    sources = heard_page.values("src") + heard_page.values("href")
    files = {path.name for path in heard.iterdir()}
    assert {unquote(source) for source in sources} - {"data:,"} | {"index.html"} == files
    sounds = {"1-original", "1-jaxsparse-6", "1-jaxsparse-12"}
    sounds |= {f"1-amr-wb-{setting:g}" for setting in listen.SETTINGS["amr-wb"]}
    assert {name for name in files if name.endswith(".wav")} == {f"{s}.wav" for s in sounds}
    assert "http:" not in heard_page.text and "https:" not in heard_page.text
    for sound in sounds:
        # All lie on the original.
        assert soundfile.info(heard / f"{sound}.wav").frames == N


@pytest.mark.slow
def test_what_can_not_be_heard_is_named(heard, heard_page):
    assert "Missing here, and left out: Absent (libabsent is missing)." in heard_page.text
    assert json.loads((heard / "scores.json").read_text())["missing"] == {
        "Absent": "libabsent is missing"
    }


@pytest.mark.slow
def test_page_has_the_figures_of_its_sounds(heard, heard_page):
    [clip] = json.loads((heard / "scores.json").read_text())["clips"]
    original, _ = soundfile.read(heard / clip["sound"], dtype="float32")
    np.testing.assert_array_equal(original, from_pcm(to_pcm(voice(1, 0.3)))[:N])
    for version in clip["versions"]:
        assert version["kbps"] == pytest.approx(8 * version["bytes"] / 625)
        cells = f"{version['setting']:g}{version['bytes']:,}{version['kbps']:.2f}"
        scores = f"{version['pesq_wb']:.2f}{version['pesq_nb']:.2f}{version['stoi']:.3f}"
        assert cells + scores in heard_page.text
        sound, _ = soundfile.read(heard / version["sound"], dtype="float32")
        if version["codec"] == "PCM":
            np.testing.assert_array_equal(sound, original)
            assert version["bytes"] == 2 * FRAME * -(-(N + LATE) // FRAME)
        else:
            assert version["kbps"] == pytest.approx(version["setting"], rel=0.05)
            assert np.corrcoef(sound, original)[0, 1] > 0.8
    # Behind the slider's.
    labels = heard_page.values("aria-label", "input")[1:]
    assert labels == [
        "Original, 16-bit samples",
        *(
            f"{v['codec']} {v['kbps']:.1f} kbit/s, PESQ {v['pesq_wb']:.2f}, STOI {v['stoi']:.3f}"
            for v in clip["versions"]
        ),
    ]


def test_clips_are_spread_over_the_folder():
    clips = [FileClip(Path(name), name) for name in "abcdefgh"]
    assert [clip.name for clip in listen.choose_clips(clips, 3)] == ["a", "c", "f"]
    assert listen.choose_clips(clips, 99) == clips


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--clips", "0"], "clips must be at least 1"),
        (["--seconds", "0"], "seconds must be a number from 0.5 to 60"),
        (["--kbps", "1"], "kbps 1.0 is not from 2 to 64"),
        (["--kbps", "6", "6"], "kbps needs at least one value, each of them once"),
        (["--effort", "4"], "effort 4 is not from 0 to 3"),
        (["--codecs", "opus", "opus"], "codecs needs each of its values once"),
        (["--data", "no"], "no: No such file"),
    ],
)
def test_a_page_of_bad_input_is_refused_in_one_line(data, tmp_path, capsys, options, reason):
    assert listen_to(data, tmp_path / "out", *options) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("benchmarks.codecs.listen: ") and reason in line
    assert list(tmp_path.iterdir()) == []


def test_a_page_replaces_nothing_unless_it_is_forced_to(data, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert listen_to(data, tmp_path, "--clips", "1", "--codecs") == 2
    assert "is not empty (--force" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
