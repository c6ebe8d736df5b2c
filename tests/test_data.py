import json
import logging
from contextlib import closing
from itertools import islice
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from jaxsparse.audio import resample, to_mono
from jaxsparse.data.folder import find_audio, read_segment
from jaxsparse.data.loader import check_clips, make_loader
from jaxsparse.errors import AudioError

N = 400


def ramp(number, n_samples=1_000):
    """Samples that tell the file (the sign and the size) and the position in it."""
    return (number + 1 + np.arange(n_samples) / 1_024).astype(np.float32) / 64


def write(path, samples, rate=16_000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, format="WAV", subtype="FLOAT")
    return path


@pytest.fixture
def files(tmp_path):
    return [write(tmp_path / f"{i}.wav", ramp(i)) for i in range(10)]


def batches(loader, count=None):
    with closing(iter(loader)) as iterator:
        return list(islice(iterator, count))


def assert_same(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys() == {"audio", "index"}
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def corrupt(path):
    """Keeps the header and the length, so that only decoding shows it."""
    samples, rate = soundfile.read(path, dtype="float32")
    write(path, np.full_like(samples, np.nan), rate)


def test_find_audio_is_sorted_by_relative_posix_path(tmp_path):
    names = ["b.WAV", "a/z.flac", "a.b/y.ogg", "a-b/x.mp3", "notes.txt", ".hidden.wav", ".h/a.wav"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in find_audio(tmp_path)]
    assert found == ["a-b/x.mp3", "a.b/y.ogg", "a/z.flac", "b.WAV"]


def test_find_audio_refuses_what_is_no_corpus(tmp_path):
    with pytest.raises(FileNotFoundError):
        find_audio(tmp_path / "no")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(NotADirectoryError):
        find_audio(tmp_path / "notes.txt")
    with pytest.raises(AudioError, match="no audio"):
        find_audio(tmp_path)


class FixedOffset(np.random.Generator):
    """Draws the offset asked for, or the last one that is allowed."""

    def __init__(self, offset):
        super().__init__(np.random.PCG64(0))
        self.offset = offset

    def integers(self, low, **_):  # pyright: ignore[reportIncompatibleMethodOverride]
        return min(self.offset, low - 1)


@given(
    rate=st.sampled_from([8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 15_999]),
    n_source=st.integers(1, 60_000),
    n_samples=st.integers(1, 9_000),
    offset=st.integers(0, 20_000),
    n_channels=st.integers(1, 2),
)
def test_segment_is_a_part_of_the_whole(
    tmp_path_factory, rate, n_source, n_samples, offset, n_channels
):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (n_source, n_channels))
    path = write(tmp_path_factory.mktemp("segment") / "a.wav", samples, rate)
    mono = to_mono(samples.astype(np.float32))[:, None]
    whole = resample(mono, rate, 16_000)[:, 0]
    start = min(offset, max(0, len(whole) - n_samples))
    expected = whole[start : start + n_samples]

    segment = read_segment(path, n_samples, FixedOffset(offset))
    assert segment.dtype == np.float32
    assert segment.shape == (n_samples,)
    # 16-bit steps are 3e-5: where resampling starts anew can't be heard.
    np.testing.assert_allclose(segment[: len(expected)], expected, rtol=0, atol=3e-6)
    assert not segment[len(expected) :].any()
    np.testing.assert_array_equal(
        read_segment(path, n_samples), read_segment(path, n_samples, FixedOffset(0))
    )


def test_offsets_are_uniform(files):
    loader = make_loader(files[:1], batch_size=100, n_samples=N, seed=0)
    starts = np.concatenate([batch["audio"][:, 0] for batch in batches(loader, 12)])
    offsets = np.rint((starts * 64 - 1) * 1_024).astype(int)
    assert offsets.min() >= 0
    assert offsets.max() <= 600
    counts, _ = np.histogram(offsets, bins=6, range=(0, 601))
    # 200 are expected in each bin, with a standard deviation of 13.
    assert np.all(np.abs(counts - 200) < 65)


def test_every_epoch_has_all_files_in_an_order_of_its_own(files):
    loader = make_loader(files, batch_size=5, n_samples=N, seed=3, num_epochs=3)
    indices = np.concatenate([batch["index"] for batch in batches(loader)]).reshape(3, 10)
    np.testing.assert_array_equal(np.sort(indices), np.tile(np.arange(10), (3, 1)))
    assert len({tuple(epoch) for epoch in indices}) == 3
    assert tuple(range(10)) not in {tuple(epoch) for epoch in indices}


def test_audio_belongs_to_the_index_and_offsets_differ_between_epochs(files):
    loader = make_loader(files, batch_size=10, n_samples=N, seed=3, num_epochs=2)
    starts = []
    for batch in batches(loader):
        assert batch["audio"].dtype == np.float32
        assert batch["audio"].shape == (10, N)
        offset = np.rint((batch["audio"][:, 0] * 64 - batch["index"] - 1) * 1_024).astype(int)
        for clip, index, start in zip(batch["audio"], batch["index"], offset, strict=True):
            np.testing.assert_array_equal(clip, ramp(index)[start : start + N])
        starts.append(offset[np.argsort(batch["index"])])
    assert np.sum(starts[0] != starts[1]) >= 8


def test_evaluation_reads_the_start_of_each_file_once_in_order(files):
    loader = make_loader(
        files, batch_size=4, n_samples=1_200, seed=0, num_epochs=1,
        shuffle=False, random_offset=False, drop_remainder=False,
    )  # fmt: skip
    audio = [clip for batch in batches(loader) for clip in batch["audio"]]
    assert len(audio) == len(loader.clips) == 10
    for number, clip in enumerate(audio):
        np.testing.assert_array_equal(clip, np.pad(ramp(number), (0, 200)))


def test_the_same_seed_gives_the_same_batches_and_another_one_others(files):
    def first(seed, **settings):
        return batches(make_loader(files, batch_size=4, n_samples=N, seed=seed, **settings), 6)

    reference = first(7)
    assert_same(first(7), reference)
    assert_same(first(7, threads=3, prefetch=5, full_check=False), reference)
    others = first(8)
    assert any(
        not np.array_equal(a["index"], b["index"]) for a, b in zip(reference, others, strict=True)
    )


@pytest.mark.parametrize("position", [0, 1, 5])
def test_resumes_exactly(files, position):
    settings: dict[str, Any] = {"batch_size": 4, "n_samples": N, "seed": 1}
    with closing(iter(make_loader(files, **settings))) as iterator:
        for _ in range(position):
            next(iterator)
        state = json.dumps(iterator.get_state())
        rest = list(islice(iterator, 4))
    with closing(iter(make_loader(files, **settings))) as iterator:
        iterator.set_state(json.loads(state))
        assert_same(list(islice(iterator, 4)), rest)


def test_workers_give_the_same_batches_skip_alike_and_resume_exactly(files, caplog):
    corrupt(files[4])
    settings: dict[str, Any] = {"batch_size": 4, "n_samples": N, "seed": 1, "full_check": False}
    reference = batches(make_loader(files, **settings), 7)
    caplog.clear()
    loader = make_loader(files, workers=2, **settings)
    with closing(iter(loader)) as iterator:
        first = list(islice(iterator, 3))
        state = json.loads(json.dumps(iterator.get_state()))
        rest = list(islice(iterator, 4))
        assert_same(first + rest, reference)
        iterator.set_state(state)
        assert_same(list(islice(iterator, 4)), rest)
    assert list(loader.skipped) == [str(files[4])]
    assert caplog.text.count(str(files[4])) == 1


def test_bad_files_are_named_skipped_and_counted(tmp_path, files, caplog):
    good = list(files)
    bad = {
        tmp_path / "empty.wav": b"",
        tmp_path / "text.wav": b"not audio\n" * 50,
        tmp_path / "cut.wav": files[0].read_bytes()[:-9],
    }
    for path, data in bad.items():
        path.write_bytes(data)
    corrupt(good[2])
    missing = tmp_path / "missing.wav"
    with caplog.at_level(logging.WARNING):
        usable, skipped = check_clips([*bad, *good, missing])
    assert [clip.name for clip in usable] == [str(path) for path in good[:2] + good[3:]]
    assert set(skipped) == {str(path) for path in (*bad, good[2], missing)}
    for path, reason in skipped.items():
        assert f"{path}: {reason}" in caplog.text
    assert skipped[str(tmp_path / "empty.wav")] == "the file is empty"
    assert "truncated" in skipped[str(tmp_path / "cut.wav")]
    assert "1000 of 1000 samples are NaN" in skipped[str(good[2])]
    assert skipped[str(missing)] == "No such file or directory"

    loader = make_loader([*bad, *good, missing], batch_size=9, n_samples=N, seed=0, num_epochs=1)
    (batch,) = batches(loader)
    assert loader.skipped == skipped
    assert sorted(batch["index"]) == list(range(9))


def test_strict_makes_a_bad_file_fatal_and_names_it(files):
    corrupt(files[6])
    with pytest.raises(AudioError, match=r"6\.wav: 1000 of 1000 samples are NaN"):
        make_loader(files, batch_size=4, n_samples=N, seed=0, strict=True)
    loader = make_loader(files, batch_size=4, n_samples=N, seed=0, strict=True, full_check=False)
    with pytest.raises(AudioError, match=r"6\.wav: 400 of 400 samples are NaN"):
        batches(loader, 3)


def test_a_file_found_bad_while_reading_gives_way_to_the_next_one(files, caplog):
    corrupt(files[9])
    files[3].with_suffix(".flac").write_bytes(b"")
    settings: dict[str, Any] = {
        "batch_size": 5,
        "n_samples": N,
        "num_epochs": 2,
        "full_check": False,
    }
    given_files = [*files, files[3].with_suffix(".flac")]
    loader = make_loader(given_files, seed=2, **settings)
    got = batches(loader)
    assert_same(batches(make_loader(given_files, seed=2, **settings)), got)

    assert [clip.name for clip in loader.clips] == [str(path) for path in files]
    indices = np.concatenate([batch["index"] for batch in got])
    counts = np.bincount(indices, minlength=10)
    # The last file's place is taken by the first one, in both epochs.
    np.testing.assert_array_equal(counts, [4, 2, 2, 2, 2, 2, 2, 2, 2, 0])
    assert all(np.isfinite(batch["audio"]).all() for batch in got)
    assert set(loader.skipped) == {str(files[9]), str(given_files[10])}
    assert "1000 of 1000 samples are NaN" in loader.skipped[str(files[9])]


def test_all_files_bad(files):
    loader = make_loader(files, batch_size=2, n_samples=N, seed=0)
    for path in files:
        corrupt(path)
    with pytest.raises(AudioError, match="none of 10 clips can be read any more"):
        batches(loader, 1)
    with pytest.raises(AudioError, match="none of 10 clips is usable"):
        make_loader(files, batch_size=2, n_samples=N, seed=0)


def test_settings_are_checked(files):
    settings: dict[str, Any] = {"batch_size": 4, "n_samples": N, "seed": 0}
    wrong: dict[str, Any] = {
        "batch_size": 0,
        "n_samples": 0,
        "threads": 0,
        "workers": -1,
        "seed": -1,
    }
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=f"{name} must be"):
            make_loader(files, **{**settings, name: value})
    with pytest.raises(ValueError, match="seed must be"):
        make_loader(files, batch_size=4, seed=2**32)
    with pytest.raises(ValueError, match="don't fill a batch"):
        make_loader(files, batch_size=21, n_samples=N, seed=0, num_epochs=2)
