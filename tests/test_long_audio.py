"""An hour of audio: bounded memory, and a bar where somebody looks at it."""

import os
import pty
import subprocess
import sys
import termios
import threading
import tracemalloc
from typing import NamedTuple

import numpy as np
import pytest
import soundfile

from jaxsparse.data.clips import find_clips
from jaxsparse.data.loader import make_loader

MIB = 1 << 20
MINUTE = 60
COMMAND = "import sys; from jaxsparse.cli import main; sys.exit(main())"


class Run(NamedTuple):
    """How a process ended: its output, what it showed on a terminal, its peak memory in MiB."""

    out: str
    shown: str
    peak: float


def run(*arguments, terminal=True):
    """Runs `jaxsparse` with its stderr on a terminal, or in a pipe."""
    ours, theirs = pty.openpty() if terminal else os.pipe()
    if terminal:
        termios.tcsetwinsize(theirs, (24, 80))
    command = [sys.executable, "-c", COMMAND, *map(str, arguments)]
    shown = bytearray()

    def watch():
        # A terminal that nobody writes to any more is an error, a pipe is at its end.
        try:
            while piece := os.read(ours, 65_536):
                shown.extend(piece)
        except OSError:
            pass

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        watcher = threading.Thread(target=watch)
        watcher.start()
        assert process.stdout
        out = process.stdout.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        watcher.join()
    os.close(ours)
    assert process.returncode == 0, shown.decode()
    unit = 1024 if sys.platform != "darwin" else 1
    return Run(out, shown.decode(), usage.ru_maxrss * unit / MIB)


def voice(sample_rate, channels, minute):
    """A minute of syllables that no other minute has."""
    time = np.arange(MINUTE * sample_rate)[:, None] / sample_rate
    turns = (110 + minute + 17 * np.arange(channels)) * (time + 0.02 * np.sin(2 * np.pi * time))
    harmonics = sum(np.sin(2 * np.pi * k * turns) / k for k in range(1, 13))
    return 0.15 * harmonics * (0.55 - 0.45 * np.cos(2 * np.pi * 4 * time))


def write(path, sample_rate, channels, minutes):
    with soundfile.SoundFile(path, "w", sample_rate, channels, "PCM_16") as file:
        for minute in range(minutes):
            file.write(voice(sample_rate, channels, minute))
    return path


def check_decoded(path, sample_rate, channels, minutes):
    """Rate, channels and length, and the sound at the start, in the middle and at the end."""
    with soundfile.SoundFile(path) as file:
        assert (file.samplerate, file.channels) == (sample_rate, channels)
        assert file.frames == minutes * MINUTE * sample_rate
        for minute in (0, minutes // 2, minutes - 1):
            file.seek(minute * MINUTE * sample_rate)
            decoded = file.read(MINUTE * sample_rate, always_2d=True)
            expected = voice(sample_rate, channels, minute)
            for channel in range(channels):
                assert np.corrcoef(decoded[:, channel], expected[:, channel])[0, 1] > 0.98


# Six minutes have 75 segments a channel, an hour has 746.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("sample_rate", "channels", "minutes", "segments", "terminal"),
    [(16_000, 1, 60, 746, True), (44_100, 2, 6, 150, False)],
)
def test_long_audio(sample_rate, channels, minutes, segments, terminal, tmp_path):
    wav = write(tmp_path / "long.wav", sample_rate, channels, minutes)
    jsac, decoded = tmp_path / "long.jsac", tmp_path / "decoded.wav"
    compressed = run("compress", wav, jsac, terminal=terminal)
    described = run("info", jsac, terminal=terminal)
    decompressed = run("decompress", jsac, decoded, terminal=terminal)
    assert f"{minutes * MINUTE * sample_rate:,} samples" in described.out
    assert max(compressed.peak, described.peak, decompressed.peak) < 4096
    assert described.shown == ""
    for each, name in ((compressed, "compressing"), (decompressed, "decompressing")):
        if terminal:
            counts = [f" {done}/{segments} " for done in range(segments + 1)]
            assert name in each.shown and sum(count in each.shown for count in counts) > 50
            # The bar leaves an empty line.
            assert each.shown.endswith(" \r")
        else:
            assert each.shown == ""
    check_decoded(decoded, sample_rate, channels, minutes)


@pytest.fixture(scope="module")
def hour(tmp_path_factory):
    """A folder with a minute of a voice, and nothing but noise for the other 59."""
    folder = tmp_path_factory.mktemp("hour")
    noise = np.random.default_rng(0).normal(scale=0.1, size=(MINUTE * 16_000, 1))
    with soundfile.SoundFile(folder / "hour.wav", "w", 16_000, 1, "PCM_16") as file:
        for _ in range(59):
            file.write(noise)
        file.write(0 * noise)
    return folder


def test_parts_of_an_hour_are_read_without_the_rest(hour):
    (clip,) = find_clips(hour)
    rng = np.random.default_rng(0)
    tracemalloc.start()
    parts = [clip.read(77_276, rng) for _ in range(50)]
    loader = make_loader([clip], batch_size=2, seed=0, full_check=False)
    batches = iter(loader)
    parts += [part for _ in range(3) for part in next(batches)["audio"]]
    batches.close()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Parts are from all over the hour: they differ, though the noise is the same every minute.
    assert len({part.tobytes() for part in parts}) == len(parts)
    # The parts are 17 MB, the file would be 230 MB.
    assert peak < 60e6
