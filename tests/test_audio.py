import contextlib
import io
import os
import resource
import stat
import struct
import threading
import tracemalloc
from math import ceil

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given
from hypothesis import strategies as st

from jaxsparse import audio
from jaxsparse.audio import (
    check_usable,
    read_audio,
    resample,
    to_mono,
    write_wav,
)
from jaxsparse.errors import AudioError, JaxsparseError
from jaxsparse.files import atomic_write

RATE = 16_000


def tone(n_samples=8_000, n_channels=2, rate=RATE, frequency=440.0):
    phase = 2 * np.pi * frequency * np.arange(n_samples) / rate
    return (0.5 * np.sin(phase[:, None] + np.arange(n_channels))).astype(np.float32)


def encoded(samples, file_format, subtype=None, rate=RATE):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=file_format, subtype=subtype)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("file_format", "subtype", "tolerance"),
    [
        ("WAV", "FLOAT", 0.0),
        ("WAV", "PCM_16", 2**-15),
        ("AIFF", "PCM_16", 2**-15),
        ("AU", "PCM_16", 2**-15),
        ("FLAC", "PCM_24", 2**-23),
        # Lossy, by the ear's measure: a twentieth of the tone's amplitude, its start left out.
        ("OGG", "VORBIS", 0.025),
        ("OGG", "OPUS", 0.025),
        ("MP3", "MPEG_LAYER_III", 0.025),
    ],
)
def test_reads_every_format_whatever_its_name(tmp_path, file_format, subtype, tolerance):
    path = tmp_path / "sound"
    samples = tone()
    path.write_bytes(encoded(samples, file_format, subtype))
    read, rate = read_audio(path)
    assert rate == RATE
    assert read.dtype == np.float32
    assert read.shape == samples.shape
    inside = slice(2_000, -2_000) if tolerance > 0.01 else slice(None)
    np.testing.assert_allclose(read[inside], samples[inside], rtol=0, atol=tolerance)


@given(
    samples=hnp.arrays(np.int16, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)),
    rate=st.integers(1_000, 768_000),
)
def test_sixteen_bits_survive_reading_and_writing(tmp_path_factory, samples, rate):
    path = tmp_path_factory.mktemp("wav") / "a.wav"
    soundfile.write(path, samples, rate, subtype="PCM_16")
    write_wav(path, *read_audio(path))
    again, again_rate = soundfile.read(path, dtype="int16", always_2d=True)
    assert again_rate == rate
    np.testing.assert_array_equal(again, samples)


@pytest.mark.parametrize(("n_samples", "n_channels"), [(1, 1), (700_001, 2), (9, 6)])
def test_written_bytes_are_those_of_libsndfile(tmp_path, n_samples, n_channels):
    samples = tone(n_samples, n_channels)
    write_wav(tmp_path / "a.wav", samples, 44_100)
    steps = np.rint(samples * 2**15).astype(np.int16)
    assert (tmp_path / "a.wav").read_bytes() == encoded(steps, "WAV", "PCM_16", 44_100)


def test_long_audio_is_not_copied(tmp_path):
    """What is read takes an eighth more than its samples, and nothing else grows with them."""

    def peak(call, *arguments):
        tracemalloc.start()
        made = call(*arguments)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return made, used

    # Far more than the 30 MB that blocks may take.
    samples = np.tile(tone(1_000_000), (20, 1))
    _, used = peak(write_wav, tmp_path / "long.wav", samples, RATE)
    assert used < 30e6
    (read, _), used = peak(read_audio, tmp_path / "long.wav")
    assert used < 1.2 * samples.nbytes + 30e6
    resampled, used = peak(resample, read, RATE, 8_000)
    assert used < resampled.nbytes + 30e6
    read[15_000_000, 1] = np.nan
    with pytest.raises(AudioError, match=r"1 of 40000000 samples .* at 15000000$"):
        check_usable(read)


@pytest.mark.slow
@pytest.mark.parametrize(("from_rate", "to_rate"), [(96_000, RATE), (RATE, 44_100), (1_000, RATE)])
def test_resampling_in_blocks_is_resampling_at_once(from_rate, to_rate):
    samples = tone(3_000_000, 1, from_rate)
    resampled = resample(samples, from_rate, to_rate)
    at_once = soxr.resample(samples, from_rate, to_rate, quality="HQ")
    assert abs(len(resampled) - len(at_once)) <= 1
    # The end, where the samples differ by which zeros follow, is the filter's.
    inside = min(len(resampled), len(at_once)) - 2_000
    np.testing.assert_array_equal(resampled[:inside], at_once[:inside])


def test_write_rounds_halves_to_even_and_clips(tmp_path):
    steps = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 0.49, 32766.5, 40000.0, -32768.0, -40000.0])
    write_wav(tmp_path / "a.wav", steps[:, None] / 2**15, 8_000)
    written, _ = soundfile.read(tmp_path / "a.wav", dtype="int16")
    np.testing.assert_array_equal(written, [0, 2, 2, 0, -2, 0, 32766, 32767, -32768, -32768])


def test_to_mono_averages_channels():
    np.testing.assert_array_equal(to_mono(np.array([[1.0, 0.0], [-0.5, 0.25]])), [0.5, -0.125])


@given(
    n_samples=st.integers(1, 3_000),
    n_channels=st.integers(1, 3),
    from_rate=st.sampled_from([8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 15_999]),
    to_rate=st.sampled_from([8_000, 11_025, 16_000, 44_100, 48_000]),
)
def test_resampled_length_is_the_ceiling(n_samples, n_channels, from_rate, to_rate):
    resampled = resample(tone(n_samples, n_channels), from_rate, to_rate)
    assert resampled.dtype == np.float32
    # The products are far below 2^53, so the quotient's ceiling is exact in float64.
    assert resampled.shape == (ceil(n_samples * to_rate / from_rate), n_channels)


@pytest.mark.parametrize("from_rate", [8_000, 11_025, 44_100, 48_000])
def test_resampling_keeps_a_tone_in_time(from_rate):
    resampled = resample(tone(from_rate, rate=from_rate), from_rate, RATE)
    inside = slice(RATE // 4, 3 * RATE // 4)
    # Away from the edges the high quality filter is flat to 16 bits and better at 440 Hz.
    np.testing.assert_allclose(resampled[inside], tone(RATE)[inside], rtol=0, atol=1e-4)


def test_resampling_removes_what_lies_above_the_new_band():
    high = tone(48_000, rate=48_000, frequency=11_000.0)
    assert np.abs(resample(high, 48_000, RATE)[4_000:-4_000]).max() < 1e-4


def test_equal_rates_change_nothing():
    samples = tone()
    assert resample(samples, 44_100, 44_100) is samples


def test_rates_must_be_positive():
    with pytest.raises(ValueError, match="positive"):
        resample(tone(), 0, RATE)


def test_missing_file_and_directory_are_os_errors(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_audio(tmp_path / "no.wav")
    with pytest.raises(IsADirectoryError):
        read_audio(tmp_path)


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(AudioError, match="not a regular file"):
        read_audio(tmp_path / "pipe")


def floats_with(**values):
    samples = np.zeros((100, 2), np.float32)
    for name, value in values.items():
        samples[int(name.removeprefix("at")), 1] = value
    return encoded(samples, "WAV", "FLOAT")


def flac_claiming(n_samples):
    """A FLAC file whose header says that it has this many samples (36 bits at byte 21.5)."""
    flac = bytearray(encoded(tone(), "FLAC"))
    flac[21:26] = ((flac[21] >> 4 << 36) | n_samples).to_bytes(5, "big")
    return bytes(flac)


FAULTS = {
    "empty": (b"", "empty"),
    "text": (b"not audio at all\n" * 100, "not readable as audio: format not recognised"),
    "zeros": (bytes(5_000), "not readable as audio: format not recognised"),
    "no samples": (encoded(np.zeros((0, 1)), "WAV"), "no samples"),
    "nothing but the header": (flac_claiming(8_000)[:42], "damaged or cut short"),
    "NaN": (floats_with(at7=np.nan), "1 of 200 samples are NaN, .* at 7$"),
    "infinite": (floats_with(at40=-np.inf, at90=np.nan), "2 of 200 samples .* at 40$"),
    "too large": (floats_with(at3=1e30), "1 of 200 samples .* at 3$"),
    "rate": (encoded(tone(), "WAV", rate=10), "sample rate of 10 Hz"),
    "unknown length": (flac_claiming(0), "how long"),
    "length of 50 days": (flac_claiming(2**36 - 1), "cut short"),
    "zero chunks": (b"RIFF\x00\x00\x00\x00WAVE" + bytes(10_000_000), "not readable as audio"),
}


@contextlib.contextmanager
def file(data, tmp_path):
    """The name of a file."""
    path = tmp_path / "audio"
    path.write_bytes(data)
    yield path


@contextlib.contextmanager
def pipe(data, tmp_path=None):
    """The end of a pipe that brings this."""
    source, sink = os.pipe()

    def write():
        with contextlib.suppress(BrokenPipeError), open(sink, "wb") as file:
            file.write(data)

    writer = threading.Thread(target=write)
    writer.start()
    with open(source, "rb") as file:
        yield file
    writer.join()


@contextlib.contextmanager
def half_read_file(data, tmp_path):
    """An open file in which something else came first."""
    path = tmp_path / "audio"
    path.write_bytes(b"something" + data)
    with open(path, "rb") as file:
        file.seek(9)
        yield file


SOURCES = (file, pipe, half_read_file)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", FAULTS)
def test_refuses(tmp_path, name, source):
    data, message = FAULTS[name]
    with source(data, tmp_path) as where, pytest.raises(AudioError, match=message) as caught:
        read_audio(where)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("file_format", ["WAV", "AIFF", "AU", "FLAC", "OGG", "MP3"])
def test_a_pipe_brings_what_a_file_holds(tmp_path, file_format):
    data = encoded(tone(60_000), file_format)
    read = []
    for source in SOURCES:
        with source(data, tmp_path) as where:
            read.append(read_audio(where))
    assert read[0][0].shape == (60_000, 2)
    for samples, rate in read[1:]:
        assert rate == read[0][1]
        np.testing.assert_array_equal(samples, read[0][0])


def test_an_endless_pipe_is_refused(monkeypatch):
    monkeypatch.setattr(audio, "MAX_PIPE_BYTES", 3_000_000)
    with pipe(bytes(2_999_999)) as source:
        assert len(b"".join(audio.read_pipe(source))) == 2_999_999
    with pipe(bytes(3_000_001)) as source, pytest.raises(JaxsparseError, match="more than 2 MiB"):
        read_audio(source)


@pytest.mark.parametrize("file_format", ["WAV", "AIFF", "AU", "FLAC", "OGG"])
@pytest.mark.parametrize("kept", [30, 0.5, -1])
def test_refuses_truncated(tmp_path, file_format, kept):
    data = encoded(tone(), file_format)
    path = tmp_path / "cut"
    path.write_bytes(data)
    assert len(read_audio(path)[0]) == 8_000
    data = data[: int(kept * len(data)) if isinstance(kept, float) else kept]
    for source in SOURCES:
        refused = pytest.raises(AudioError, match=r"truncated|cut short|not readable")
        with source(data, tmp_path) as where, refused:
            read_audio(where)


def test_refuses_truncated_mp3(tmp_path):
    data = encoded(tone(80_000), "MP3")
    (tmp_path / "cut.mp3").write_bytes(data[: len(data) // 2])
    with pytest.raises(AudioError, match="truncated"):
        read_audio(tmp_path / "cut.mp3")


# What ffmpeg and sox write to a pipe.
@pytest.mark.parametrize("sizes", [(2**32 - 1, 2**32 - 1), (0x7FFFF024, 0x7FFFF000)])
@pytest.mark.parametrize("source", SOURCES)
def test_accepts_a_wav_that_was_written_to_a_pipe(tmp_path, source, sizes):
    data = bytearray(encoded(tone(), "WAV", "PCM_16"))
    data[4:8], data[40:44] = (struct.pack("<I", size) for size in sizes)
    with source(data, tmp_path) as where:
        assert len(read_audio(where)[0]) == 8_000


def test_write_refuses_nan(tmp_path):
    samples = tone()
    samples[5, 0] = np.nan
    with pytest.raises(AudioError, match=r"at 5$"):
        write_wav(tmp_path / "a.wav", samples, RATE)
    assert list(tmp_path.iterdir()) == []


def test_atomic_write_replaces_and_follows_links(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    atomic_write(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "target"]


def test_atomic_write_obeys_umask(tmp_path):
    before = os.umask(0o027)
    try:
        atomic_write(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_atomic_write_leaves_a_device_in_place(tmp_path):
    atomic_write("/dev/null", b"gone")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_atomic_write_leaves_a_pipe_in_place(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    atomic_write(tmp_path / "pipe", b"through")
    reader.join()
    assert read == [b"through"]
    assert (tmp_path / "pipe").is_fifo()
    # A pipe that has no name, only a link that can be opened and not followed.
    source, sink = os.pipe()
    atomic_write(f"/dev/fd/{sink}", b"through")
    os.close(sink)
    with open(source, "rb") as file:
        assert file.read() == b"through"


def test_atomic_write_goes_on_in_an_open_file(tmp_path):
    with open(tmp_path / "out", "wb") as file:
        file.write(b"before ")
        file.flush()
        atomic_write(file.fileno(), b"and ")
        write_wav(file.fileno(), tone(1), RATE)
        file.write(b" after")
    written = (tmp_path / "out").read_bytes()
    assert written.startswith(b"before and RIFF") and written.endswith(b" after")


@pytest.fixture
def full_disk():
    """No file of this process grows beyond 10 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, full_disk):
    path = tmp_path / "a.wav"
    path.write_bytes(b"old")
    write_wav(tmp_path / "small.wav", tone(1_000), RATE)
    with pytest.raises(OSError) as caught:
        write_wav(path, tone(100_000), RATE)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.wav", "small.wav"]


def test_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    path = tmp_path / "a"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_unwritable_targets_are_os_errors_with_their_own_name(tmp_path):
    with pytest.raises(IsADirectoryError):
        atomic_write(tmp_path, b"")
    with pytest.raises(FileNotFoundError) as caught:
        atomic_write(tmp_path / "no" / "a", b"")
    assert caught.value.filename == str(tmp_path / "no" / "a")
