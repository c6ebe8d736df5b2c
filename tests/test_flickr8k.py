import contextlib
import gzip
import hashlib
import io
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st

from jaxsparse.data import flickr8k_builder
from jaxsparse.data.clips import find_clips
from jaxsparse.data.flickr8k import main
from jaxsparse.data.flickr8k_builder import (
    ARCHIVE,
    CorpusError,
    Recording,
    SplitConfig,
    draw_splits,
    prepare,
    read_corpus,
)
from jaxsparse.errors import JaxsparseError

N_CLIPS = 20
MAX_SAMPLES = 400


def clip_name(number):
    return f"{1_000_268_201 + number // 5}_693b08cb{number // 5:02x}_{number % 5}.wav"


def image_name(number):
    return clip_name(number)[:-6] + ".jpg"


def clip_samples(number):
    length = MAX_SAMPLES - N_CLIPS + number
    return np.random.default_rng(number).integers(-32_768, 32_768, length).astype(np.int16)


def write_wav(path, samples, rate=16_000):
    soundfile.write(path, samples, rate, subtype="PCM_16")


@pytest.fixture(autouse=True)
def quiet(caplog):
    # tensorflow-datasets says which settings were asked for.
    caplog.set_level(logging.WARNING)
    yield
    logging.getLogger("absl").setLevel(logging.NOTSET)


@pytest.fixture
def manual(tmp_path):
    """A corpus of 20 clips by 5 speakers in the layout of the real one."""
    wavs = tmp_path / "manual" / "flickr_audio" / "wavs"
    wavs.mkdir(parents=True)
    captions, speakers, texts = [], [], []
    for number in range(N_CLIPS):
        name, image = clip_name(number), image_name(number)
        write_wav(wavs / name, clip_samples(number))
        captions.append(f"{name} {image} #{number % 5}\n")
        speakers.append(f"{name} {number % 5 + 1}\n")
        texts.append(f"{image}#{number % 5}\tA child in dress number {number} .\n")
    (wavs.parent / "wav2capt.txt").write_text("".join(captions))
    (wavs.parent / "wav2spk.txt").write_text("".join(speakers))
    (tmp_path / "manual" / "Flickr8k.token.txt").write_text("".join(texts))
    return tmp_path / "manual"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "data"


def config(**changes):
    sizes = {"train": 9, "test": 2, "validation": 4, "max_samples": MAX_SAMPLES}
    return SplitConfig(**{**sizes, "archive_md5": None, **changes})


def pack(manual, order=sorted):
    """Replaces the folder by the archive."""
    root = manual / "flickr_audio"
    with tarfile.open(manual / ARCHIVE, "w:gz") as archive:
        for path in order(root.rglob("*")):
            archive.add(path, path.relative_to(manual).as_posix(), recursive=False)
    for path in sorted(root.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    root.rmdir()
    return manual / ARCHIVE


def examples(folder, split):
    builder: Any = tfds.builder_from_directory(folder)
    return list(builder.as_data_source(split))


def names(folder, split):
    return [clip.name for clip in find_clips(folder, split)]


def metadata(folder):
    return json.loads((folder / "metadata.json").read_text())


def append(path, line):
    path.write_text(path.read_text() + line)


def test_everything_is_kept(manual, out):
    folder = prepare(manual, out, config())
    assert folder.is_relative_to(out / "flickr8k_audio")
    seen = []
    for split, size in {"train": 9, "test": 2, "validation": 4}.items():
        assert len(examples(folder, split)) == size
        for example in examples(folder, split):
            number = next(n for n in range(N_CLIPS) if clip_name(n) == example["file"].decode())
            seen.append(number)
            np.testing.assert_array_equal(example["audio"], clip_samples(number))
            assert example["audio"].dtype == np.int16
            assert example["num_samples"] == len(clip_samples(number))
            assert example["speaker"].decode() == str(number % 5 + 1)
            assert example["image"].decode() == image_name(number)
            assert example["caption_number"] == number % 5
            assert example["caption"].decode() == f"A child in dress number {number} ."
    assert len(set(seen)) == 15
    assert metadata(folder)["sample_rate"] == 16_000
    assert metadata(folder)["usable"] == 20
    assert metadata(folder)["settings"]["seed"] == 0
    (clip,) = [clip for clip in find_clips(out, "test") if clip.name == names(folder, "test")[0]]
    number = next(n for n in range(N_CLIPS) if clip_name(n) == clip.name)
    np.testing.assert_array_equal(clip.read(), clip_samples(number) / np.float32(32_768))


def test_captions_texts_may_be_missing(manual, out):
    (manual / "Flickr8k.token.txt").unlink()
    assert {e["caption"] for e in examples(prepare(manual, out, config()), "train")} == {b""}


def test_longer_clips_belong_to_no_split(manual, out):
    # The lengths are 380 to 399.
    folder = prepare(manual, out, config(max_samples=394))
    every = {name for split in ("train", "test", "validation") for name in names(folder, split)}
    assert every == {clip_name(number) for number in range(15)}
    assert metadata(folder)["longer"] == 5
    with pytest.raises(CorpusError, match=r"14 usable clips .* need 15"):
        prepare(manual, out / "more", config(max_samples=393))


def remove(root):
    (root / "wavs" / clip_name(3)).unlink()


def garble(root):
    (root / "wavs" / clip_name(3)).write_bytes(b"no audio" * 20)


def empty(root):
    (root / "wavs" / clip_name(3)).write_bytes(b"")


def no_samples(root):
    write_wav(root / "wavs" / clip_name(3), np.zeros(0, np.int16))


def cut(root):
    path = root / "wavs" / clip_name(3)
    path.write_bytes(path.read_bytes()[:-100])


def other_rate(root):
    write_wav(root / "wavs" / clip_name(3), clip_samples(3), 8_000)


def stereo(root):
    write_wav(root / "wavs" / clip_name(3), np.stack([clip_samples(3)] * 2, 1))


def directory(root):
    remove(root)
    (root / "wavs" / clip_name(3)).mkdir()


def broken_link(root):
    remove(root)
    (root / "wavs" / clip_name(3)).symlink_to("nowhere.wav")


def drop_line(table):
    def change(root):
        lines = (root / table).read_text().splitlines(keepends=True)
        (root / table).write_text("".join(lines[:3] + lines[4:]))

    return change


def spoil_line(table):
    def change(root):
        lines = (root / table).read_text().splitlines(keepends=True)
        (root / table).write_text("".join([*lines[:3], "what is this\n", *lines[4:]]))

    return change


FAULTS = {
    "missing": (remove, "in the tables, but not in wavs"),
    "garbled": (garble, "not readable as audio"),
    "empty": (empty, "the file is empty"),
    "without samples": (no_samples, "holds no samples"),
    "truncated": (cut, "truncated: at least 100 bytes"),
    "another rate": (other_rate, "a sample rate of 8000 Hz, not 16000"),
    "stereo": (stereo, "2 channels, not 1"),
    "a directory": (directory, "directory"),
    "a broken link": (broken_link, "No such file"),
    "without a caption": (drop_line("wav2capt.txt"), "no line in wav2capt.txt"),
    "without a speaker": (drop_line("wav2spk.txt"), "no line in wav2spk.txt"),
    "with a malformed caption": (spoil_line("wav2capt.txt"), "no line in wav2capt.txt"),
    "with a malformed speaker": (spoil_line("wav2spk.txt"), "no line in wav2spk.txt"),
    "with two captions": (
        lambda root: append(root / "wav2capt.txt", f"{clip_name(3)} other.jpg #0\n"),
        "different lines in wav2capt.txt",
    ),
    "with two speakers": (
        lambda root: append(root / "wav2spk.txt", f"{clip_name(3)} 99\n"),
        "different lines in wav2spk.txt",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_clip_is_named_and_skipped(manual, fault, caplog):
    change, reason = FAULTS[fault]
    change(manual / "flickr_audio")
    corpus = read_corpus(manual / "flickr_audio")
    assert [recording.file for recording in corpus.recordings] == [
        clip_name(number) for number in range(N_CLIPS) if number != 3
    ]
    assert reason in corpus.skipped[clip_name(3)]
    malformed = {"wav2capt.txt, line 4", "wav2spk.txt, line 4"} & set(corpus.skipped)
    assert set(corpus.skipped) == {clip_name(3)} | malformed
    assert len(malformed) == ("malformed" in fault)
    assert f"skipping {clip_name(3)}: {corpus.skipped[clip_name(3)]}" in caplog.text


@pytest.mark.parametrize(
    ("table", "line", "key"),
    [
        ("wav2capt.txt", "997_0.wav 997.jpg #0\n", "997_0.wav"),
        ("wav2spk.txt", "997_0.wav 7\n", "997_0.wav"),
        ("wav2capt.txt", "997_0.wav 997.jpg 0\n", "wav2capt.txt, line 21"),
        ("wav2capt.txt", "997_0.wav\n", "wav2capt.txt, line 21"),
        ("wav2capt.txt", "../../997_0.wav 997.jpg #0\n", "wav2capt.txt, line 21"),
        ("wav2spk.txt", "997_0.wav\n", "wav2spk.txt, line 21"),
        ("wav2spk.txt", "\x00\x01\n", "wav2spk.txt, line 21"),
    ],
)
def test_a_line_too_many_is_named_and_skipped(manual, table, line, key):
    append(manual / "flickr_audio" / table, line)
    corpus = read_corpus(manual / "flickr_audio")
    assert len(corpus.recordings) == N_CLIPS
    assert list(corpus.skipped) == [key]


def test_tables_from_other_systems(manual):
    root = manual / "flickr_audio"
    expected = read_corpus(root)
    for table in ("wav2capt.txt", "wav2spk.txt"):
        text = (root / table).read_text()
        repeated = text + text.splitlines()[0] + "\n\n"
        (root / table).write_bytes(b"\xef\xbb\xbf" + repeated.replace("\n", "\r\n").encode())
    (root / "wavs" / f"._{clip_name(0)}").write_bytes(b"of a Mac")
    assert read_corpus(root) == expected
    assert not expected.skipped


def test_a_corpus_with_all_faults_is_prepared_from_the_rest(manual, out, caplog):
    root = manual / "flickr_audio"
    for number, change in enumerate([remove, garble, empty, other_rate, stereo]):
        # Each fault in a clip of its own.
        change(root)
        if (root / "wavs" / clip_name(3)).exists():
            (root / "wavs" / clip_name(3)).rename(root / "wavs" / clip_name(10 + number))
        else:
            (root / "wavs" / clip_name(10 + number)).unlink()
        write_wav(root / "wavs" / clip_name(3), clip_samples(3))
    append(root / "wav2capt.txt", "997_0.wav 997.jpg #0\nnonsense\n")
    folder = prepare(manual, out, config())
    skipped = metadata(folder)["skipped"]
    bad = {clip_name(number) for number in range(10, 15)}
    assert set(skipped) == bad | {"997_0.wav", "wav2capt.txt, line 22"}
    every = [name for split in ("train", "test", "validation") for name in names(folder, split)]
    assert sorted(every) == sorted({clip_name(number) for number in range(N_CLIPS)} - bad)
    assert all(f"skipping {name}: {reason}" in caplog.text for name, reason in skipped.items())


def without_wavs(root):
    for path in (root / "wavs").iterdir():
        path.unlink()


def all_empty(root):
    for path in (root / "wavs").iterdir():
        path.write_bytes(b"")


UNUSABLE = {
    "no caption table": (lambda root: (root / "wav2capt.txt").unlink(), "no table wav2capt.txt"),
    "no speaker table": (lambda root: (root / "wav2spk.txt").unlink(), "no table wav2spk.txt"),
    "an empty table": (lambda root: (root / "wav2capt.txt").write_text(""), "no usable line"),
    "a table of something": (
        lambda root: (root / "wav2spk.txt").write_bytes(os.urandom(2_000)),
        "no usable line",
    ),
    "no clips": (without_wavs, "no usable clip; 0 are too long, 20 were skipped"),
    "no usable clips": (all_empty, "no usable clip; 0 are too long, 20 were skipped"),
    "no folder of clips": (lambda root: (root / "wavs").rename(root / "wav"), "no folder wavs"),
    "nothing": (lambda root: root.rename(root.with_name("other")), "neither a folder flickr_audio"),
}


@pytest.mark.parametrize("fault", UNUSABLE)
def test_an_unusable_corpus_is_refused_as_a_whole(manual, out, fault):
    change, message = UNUSABLE[fault]
    change(manual / "flickr_audio")
    with pytest.raises(CorpusError, match=message):
        prepare(manual, out, config())
    assert not out.exists()


def recordings_of(counts):
    """So many recordings of each speaker."""
    return [
        Recording(f"{speaker}_{i}.wav", Path(), str(speaker), "", 0, 1)
        for speaker, count in enumerate(counts)
        for i in range(count)
    ]


def test_the_seed_alone_decides_on_the_splits():
    recordings = recordings_of([50] * 10)
    for by_speaker in (False, True):
        sizes = {"train": 100, "test": 50, "validation": 70, "by_speaker": by_speaker}
        drawn = draw_splits(recordings, config(**sizes))
        assert {split: len(clips) for split, clips in drawn.items()} == {
            "train": 100,
            "test": 50,
            "validation": 70,
        }
        assert len({clip for clips in drawn.values() for clip in clips}) == 220
        assert draw_splits(recordings[::-1], config(**sizes)) == drawn
        assert draw_splits(recordings, config(**sizes, seed=1)) != drawn


def test_clips_are_drawn_evenly():
    recordings = recordings_of([1_000, 1_000])
    drawn = draw_splits(recordings, config(train=1_000, test=100, validation=500))
    assert len({clip for clips in drawn.values() for clip in clips}) == 1_600
    # The mean number of the first speaker's clips, and four standard deviations around it.
    for split, expected, spread in (("train", 500, 63), ("test", 50, 20), ("validation", 250, 45)):
        first = sum(clip.speaker == "0" for clip in drawn[split])
        assert abs(first - expected) < spread


@given(
    counts=st.lists(st.integers(1, 12), min_size=3, max_size=12),
    sizes=st.tuples(*[st.integers(1, 20)] * 3),
    seed=st.integers(0, 5),
)
def test_no_speaker_is_in_two_splits(counts, sizes, seed):
    asked: dict[str, int] = dict(zip(("train", "test", "validation"), sizes, strict=True))
    settings = config(**asked, seed=seed, by_speaker=True)
    if sum(counts) < sum(sizes):
        with pytest.raises(CorpusError, match="usable clips"):
            draw_splits(recordings_of(counts), settings)
        return
    drawn = draw_splits(recordings_of(counts), settings)
    speakers = [{clip.speaker for clip in clips} for clips in drawn.values()]
    assert sum(map(len, speakers)) == len(set.union(*speakers))
    wanting = 0
    for split, clips in drawn.items():
        assert 1 <= len(set(clips)) == len(clips) <= asked[split]
        wanting += asked[split] - len(clips)
    # With three splits, more than a speaker's clips in two of them could be handed on.
    assert wanting <= 2 * max(counts)


def test_whole_speakers_fit_where_they_can():
    drawn = draw_splits(
        recordings_of([7, 5, 4, 3, 2]),
        config(train=12, test=2, validation=7, by_speaker=True),
    )
    assert {split: len(clips) for split, clips in drawn.items()} == {
        "train": 12,
        "test": 2,
        "validation": 7,
    }


def test_by_speaker(manual, out):
    folder = prepare(manual, out, config(train=8, test=4, validation=8, by_speaker=True))
    speakers = [
        {example["speaker"] for example in examples(folder, split)}
        for split in ("train", "test", "validation")
    ]
    assert [len(group) for group in speakers] == [2, 1, 2]
    assert len(set.union(*speakers)) == 5
    assert [len(names(folder, split)) for split in ("train", "test", "validation")] == [8, 4, 8]


def test_too_few(manual, out):
    with pytest.raises(CorpusError, match=r"20 usable clips of at most 400 samples.* need 12500"):
        prepare(manual, out, config(train=9_000, test=1_000, validation=2_500))
    assert not out.exists()
    folder = prepare(
        manual, out, config(train=9_000, test=1_000, validation=2_500, allow_fewer=True)
    )
    sizes = [len(names(folder, split)) for split in ("train", "test", "validation")]
    assert sizes == [15, 1, 4]
    with pytest.raises(CorpusError, match=r"2 usable clips .* need 3"):
        config(allow_fewer=True).sizes(2)
    with pytest.raises(CorpusError, match="2 speakers are too few for 3 splits"):
        draw_splits(recordings_of([20, 20]), config(by_speaker=True))
    for name in ("train", "test", "validation", "max_samples"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1"):
            config(**{name: 0})
    with pytest.raises(ValueError, match="seed must be"):
        config(seed=-1)


def test_the_default_splits_are_those_of_the_thesis():
    assert SplitConfig().sizes(40_000) == {"train": 9_000, "test": 1_000, "validation": 2_500}
    assert SplitConfig().max_samples == 77_276
    assert SplitConfig().archive_md5 == "9d078f1f150c26e864aa64d1d733779a"


def test_every_setting_has_a_folder_of_its_own(manual, out):
    changes = [{}, {"seed": 1}, {"by_speaker": True}, {"train": 8}, {"max_samples": 399}]
    folders = [prepare(manual, out, config(**change)) for change in changes]
    assert len(set(folders)) == len(changes)
    before = sorted((path, path.stat().st_mtime_ns) for path in folders[0].iterdir())
    assert prepare(manual, out, config()) == folders[0]
    assert sorted((path, path.stat().st_mtime_ns) for path in folders[0].iterdir()) == before


def test_the_archive_gives_the_same_bytes_whatever_its_order(manual, out):
    def contents(folder):
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    expected = contents(prepare(manual, out / "folder", config()))
    assert sum("array_record" in name for name in expected) == 3
    archive = pack(manual, lambda paths: sorted(paths, reverse=True))
    assert contents(prepare(manual, out / "archive", config())) == expected
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    prepare(manual, out / "checked", config(archive_md5=md5))
    assert not list(out.rglob("incomplete*"))
    assert not list(out.rglob("*.wav"))


def test_a_folder_that_is_the_unpacked_archive_itself(manual, out):
    assert len(names(prepare(manual / "flickr_audio", out, config()), "train")) == 9


def test_another_archive_is_refused(manual, out):
    archive = pack(manual)
    found = hashlib.md5(archive.read_bytes()).hexdigest()
    with pytest.raises(CorpusError, match=rf"{ARCHIVE}: its MD5 is {found}, not 9d078f1f"):
        prepare(manual, out, config(archive_md5=flickr8k_builder.ARCHIVE_MD5))
    assert not out.exists()


@pytest.mark.parametrize("kept", [0, 5, 0.3, 0.7, 0.99, -8, -1])
def test_a_truncated_archive_is_refused(manual, out, kept):
    archive = pack(manual)
    data = archive.read_bytes()
    archive.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(CorpusError, match=f"{ARCHIVE}: damaged or cut short"):
        prepare(manual, out, config())
    assert not out.exists()


@pytest.mark.parametrize("position", [0.1, 0.5, 0.9])
def test_a_damaged_archive_is_refused(manual, out, position):
    archive = pack(manual)
    data = bytearray(archive.read_bytes())
    data[int(position * len(data))] ^= 16
    archive.write_bytes(data)
    with pytest.raises(CorpusError, match=f"{ARCHIVE}: damaged or cut short"):
        prepare(manual, out, config())
    assert not out.exists()


def test_nothing_is_written_beside_the_target(manual, out, tmp_path):
    def member(name, kind=tarfile.REGTYPE, link="", data=b"evil"):
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        info.size = len(data) if kind == tarfile.REGTYPE else 0
        return info, io.BytesIO(data)

    root = manual / "flickr_audio"
    members = [
        member("../evil.wav"),
        member("flickr_audio/wavs/../../evil.wav"),
        member(str(tmp_path / "evil.wav")),
        member("flickr_audio/wavs/evil_0.wav", tarfile.SYMTYPE, "/etc/passwd"),
        member("flickr_audio/wavs/evil_1.wav", tarfile.LNKTYPE, "/etc/passwd"),
        member("flickr_audio/wavs/evil_2.wav", tarfile.CHRTYPE),
        member("flickr_audio/wavs/evil_3.wav", tarfile.FIFOTYPE),
        member("flickr_audio/wavs/deeper/evil_4.wav"),
        member("flickr_audio/readme.txt"),
    ]
    members += [
        member(path.relative_to(manual).as_posix(), data=path.read_bytes())
        for path in root.rglob("*")
        if path.is_file()
    ]
    pack(manual)
    with tarfile.open(manual / ARCHIVE, "w:gz") as archive:
        for info, data in members:
            archive.addfile(info, data)
    before = set(tmp_path.rglob("*"))
    with flickr8k_builder.open_corpus(manual, scratch=tmp_path, md5=None) as root:
        written = set(tmp_path.rglob("*")) - before
        assert all(path.is_relative_to(root) for path in written)
        assert not [path for path in written if "evil" in path.name or path.is_symlink()]
        assert len(list((root / "wavs").iterdir())) == N_CLIPS
    assert set(tmp_path.rglob("*")) == before


@contextlib.contextmanager
def files_at_most(n_bytes):
    """As on a full disk, writing more fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def member(headers, data=b"", name="flickr_audio/wavs/a_0.wav"):
    """An archive with one member, and what its extended header says."""
    info = tarfile.TarInfo(name)
    info.size, info.pax_headers = len(data), headers
    with io.BytesIO() as buffer:
        with tarfile.open(fileobj=buffer, mode="w:gz", format=tarfile.PAX_FORMAT) as archive:
            archive.addfile(info, io.BytesIO(data))
        return buffer.getvalue()


def old_sparse(extended=0):
    """A sparse member as GNU tar wrote it before there were extended headers: 1 GiB of zeros."""
    info = tarfile.TarInfo("flickr_audio/wavs/a_0.wav")
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[156:157] = tarfile.GNUTYPE_SPARSE
    block[482], block[483:495] = extended, b"%011o\0" % (1 << 30)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return gzip.compress(bytes(block) + bytes(0 if extended else 1024))


SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 30)}


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (member({"path": "flickr_audio/wavs/a\0b.wav"}), "a zero byte in the name"),
        (member({"path": "flickr_audio/wavs/a\0/../b.wav"}), "no table wav2capt.txt"),
        (old_sparse(), "a sparse file"),
        (member({"GNU.sparse.map": "0,4", "GNU.sparse.size": str(1 << 30)}, b"abcd"), "a sparse"),
        (member(SPARSE, b"1\n0\n4\n".ljust(512, b"\0") + b"abcd"), "a sparse file"),
        (member(SPARSE, b"x\n".ljust(512, b"\0")), "damaged or cut short: invalid literal"),
        (member({"GNU.sparse.map": "0,x", "GNU.sparse.size": "9"}), "damaged or cut short: inv"),
        (old_sparse(extended=1), "damaged or cut short: "),
    ],
    ids=["NUL", "NUL and folder", "GNU", "0.1", "1.0", "damaged 1.0", "damaged 0.1", "cut GNU"],
)
def test_members_that_no_corpus_has_are_refused(tmp_path, out, content, fault):
    assert len(content) < 400
    manual = tmp_path / "manual"
    manual.mkdir()
    (manual / ARCHIVE).write_bytes(content)
    # Were it unpacked, the disk would be full.
    with files_at_most(1 << 20), pytest.raises(CorpusError) as caught:
        prepare(manual, out, config())
    assert fault in str(caught.value) and str(caught.value).isprintable()
    assert not out.exists()


@pytest.mark.parametrize(("packed", "n_bytes"), [(False, 20_000), (False, 100), (True, 600)])
def test_a_full_disk_leaves_nothing(manual, out, packed, n_bytes):
    if packed:
        pack(manual)
    with files_at_most(n_bytes), pytest.raises(OSError, match="too large") as caught:
        prepare(manual, out, config())
    assert str(out) in str(caught.value)
    assert not out.exists()


def test_what_was_prepared_before_survives_a_failure(manual, out):
    folder = prepare(manual, out, config())
    before = sorted(out.rglob("*"))
    with files_at_most(20_000), pytest.raises(OSError, match="too large"):
        prepare(manual, out, config(seed=1))
    assert sorted(out.rglob("*")) == before
    assert len(names(folder, "train")) == 9


@pytest.mark.parametrize("packed", [False, True])
def test_ctrl_c_leaves_nothing(manual, out, packed, monkeypatch):
    if packed:
        pack(manual)
    reading = flickr8k_builder._read_pcm
    calls = []

    def read_and_interrupt(path):
        calls.append(path)
        if len(calls) == N_CLIPS + 5:
            assert list(out.rglob("*array_record*"))
            assert packed == bool(list(out.rglob("*.wav")))
            signal.raise_signal(signal.SIGINT)
        return reading(path)

    monkeypatch.setattr(flickr8k_builder, "_read_pcm", read_and_interrupt)
    if packed:
        with pytest.raises(KeyboardInterrupt):
            prepare(manual, out, config())
    else:
        flags = ["--manual-dir", str(manual), "--data-dir", str(out), "--allow-fewer"]
        assert main(flags) == 130
    assert len(calls) == N_CLIPS + 5
    assert not out.exists()


def test_a_clip_that_vanishes_meanwhile(manual, out, monkeypatch):
    draw = flickr8k_builder.draw_splits

    def draw_and_remove(recordings, settings):
        splits = draw(recordings, settings)
        splits["test"][0].path.unlink()
        return splits

    monkeypatch.setattr(flickr8k_builder, "draw_splits", draw_and_remove)
    with pytest.raises(CorpusError, match=r"_\d\.wav: changed while it was used"):
        prepare(manual, out, config())
    assert not out.exists()


def test_command(manual, out, capsys, caplog):
    flags = ["--manual-dir", str(manual), "--data-dir", str(out), "--allow-fewer", "--seed", "4"]
    (manual / "flickr_audio" / "wavs" / clip_name(3)).unlink()
    assert main([*flags, "--by-speaker"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["train", "test", "validation"]
    folder = Path(lines[4].removeprefix("in "))
    assert folder.is_relative_to(out)
    for line in lines[:3]:
        split, count, *_, hours, _ = line.split()
        found = find_clips(out, split)
        assert len(found) == int(count)
        assert float(hours) == pytest.approx(
            sum(len(clip.read()) for clip in found) / 16_000 / 3_600, abs=6e-4
        )
    assert lines[3] == "19 usable clips, 0 longer, 1 skipped"
    assert f"skipping {clip_name(3)}" in caplog.text


def test_command_refuses_with_one_line(manual, out, capsys):
    flags = ["--manual-dir", str(manual), "--data-dir", str(out)]
    wrong = {
        "need 12500": flags,
        "seed must be at least 0": [*flags, "--seed", "-1"],
        f"{out}: no such directory": ["--manual-dir", str(out), "--data-dir", str(out)],
        "a file": ["--manual-dir", str(manual), "--data-dir", str(manual / "a file" / "data")],
    }
    (manual / "a file").write_text("")
    for message, arguments in wrong.items():
        assert main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("jaxsparse.data.flickr8k: ")
        assert message in line
    assert not out.exists()
    assert (manual / "a file").read_text() == ""
    assert issubclass(CorpusError, JaxsparseError)


def test_without_tensorflow(manual, out):
    """As the program that users run."""
    code = (
        "import runpy, sys\n"
        "sys.argv[0] = 'flickr8k'\n"
        "try: runpy.run_module('jaxsparse.data.flickr8k', run_name='__main__')\n"
        "except SystemExit as exit: assert exit.code == 0, exit.code\n"
        "from jaxsparse.data.clips import find_clips\n"
        "print(len(find_clips(sys.argv[-1], 'train')), 'tensorflow' in sys.modules)\n"
    )
    flags = ["--allow-fewer", "--manual-dir", str(manual), "--data-dir", str(out)]
    run = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "15 False"


def test_the_builder_by_its_name(manual, out):
    builder: Any = tfds.builder(
        "flickr8k_audio", data_dir=out, config=config(), file_format="array_record"
    )
    builder.download_and_prepare(
        download_dir=out / "downloads",
        download_config=tfds.download.DownloadConfig(manual_dir=manual),
    )
    assert len(builder.as_data_source("train")) == 9
