import pickle
import shutil
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds

from jaxsparse.audio import resample
from jaxsparse.data.clips import Clip, FileClip, PreparedClip, as_clips, find_clips
from jaxsparse.data.flickr8k_builder import LocalInfo
from jaxsparse.data.loader import make_loader
from jaxsparse.errors import AudioError

N_CLIPS = 6


def pcm(number):
    """Samples that tell the clip and the position in it."""
    return (1_000 * (number + 1) + np.arange(700 + number)).astype(np.int16)


def write_wav(path, samples, rate=16_000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype="PCM_16")
    return path


class Ramps(tfds.core.ShardBasedBuilder):
    """Six clips in two shards, and a split of one of them."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, audio=None, named=True, rate=16_000, samples=pcm, **kwargs):
        self.audio = audio or tfds.features.Tensor(shape=(None,), dtype=np.int16, encoding="bytes")
        self.named, self.rate, self.samples = named, rate, samples
        super().__init__(file_format="array_record", **kwargs)

    def _info(self):
        features = {"audio": self.audio, **({"file": tfds.features.Text()} if self.named else {})}
        return LocalInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(sample_rate=self.rate),
        )

    def _shard_iterators_per_split(self, dl_manager):
        def shard(*numbers):
            def examples():
                for number in numbers:
                    samples = self.samples(number).astype(self.audio.np_dtype)
                    name = {"file": f"{number}.wav"} if self.named else {}
                    yield number, {"audio": samples, **name}

            return examples

        return {"train": [shard(5, 0, 3), shard(1, 4, 2)], "test": [shard(2)]}


def prepare(data_dir, **settings) -> Path:
    builder = Ramps(data_dir=data_dir, **settings)
    builder.download_and_prepare(download_dir=data_dir / "downloads")
    shutil.rmtree(data_dir / "downloads")
    return Path(builder.data_path)


@pytest.fixture
def prepared(tmp_path):
    return prepare(tmp_path / "data")


@pytest.fixture(params=["folder", "prepared"])
def clips(request, tmp_path):
    """The same six clips from either source."""
    if request.param == "prepared":
        return find_clips(prepare(tmp_path / "data"))
    for number in range(N_CLIPS):
        write_wav(tmp_path / "files" / f"{number}.wav", pcm(number))
    return find_clips(tmp_path / "files")


class FixedOffset(np.random.Generator):
    """Draws the offset asked for, or the last one that is allowed."""

    def __init__(self, offset):
        super().__init__(np.random.PCG64(0))
        self.offset = offset

    def integers(self, low, **_):  # pyright: ignore[reportIncompatibleMethodOverride]
        return min(self.offset, low - 1)


def test_both_sources_keep_the_contract(clips):
    assert [clip.name for clip in clips] == [f"{number}.wav" for number in range(N_CLIPS)]
    assert len(set(clips)) == N_CLIPS
    for number, clip in enumerate(clips):
        assert isinstance(clip, Clip)
        whole = pcm(number) / np.float32(32_768)
        reads = {
            (None, None): whole,
            (50, None): whole[:50],
            (50, 7): whole[7:57],
            (50, 10_000): whole[-50:],
            (len(whole), 5): whole,
            (900, None): np.pad(whole, (0, 900 - len(whole))),
            (900, 3): np.pad(whole, (0, 900 - len(whole))),
        }
        for (n_samples, offset), expected in reads.items():
            rng = None if offset is None else FixedOffset(offset)
            samples = clip.read(n_samples, rng)
            assert samples.dtype == np.float32
            np.testing.assert_array_equal(samples, expected)


def test_both_sources_draw_the_same_offsets(clips):
    rng = np.random.default_rng(3)
    for number, clip in enumerate(clips):
        expected = np.random.default_rng(number).integers(len(pcm(number)) - 50 + 1)
        part = clip.read(50, np.random.default_rng(number))
        np.testing.assert_array_equal(part * 32_768, pcm(number)[expected : expected + 50])
    starts = [round(float(clips[0].read(50, rng)[0]) * 32_768) - 1_000 for _ in range(400)]
    assert 0 <= min(starts) < 20
    assert 630 < max(starts) <= 650


def test_clips_can_be_sent_to_other_processes(clips):
    copies = pickle.loads(pickle.dumps(clips))
    assert copies == clips
    np.testing.assert_array_equal(copies[3].read(), clips[3].read())
    assert len(pickle.dumps(clips[0])) < 1_000


def test_files_of_any_rate_are_read_whole_at_16_khz(tmp_path):
    samples = np.random.default_rng(0).integers(-9_000, 9_000, (4_000, 2)).astype(np.int16)
    write_wav(tmp_path / "a" / "b.wav", samples, 8_000)
    (clip,) = find_clips(tmp_path)
    assert clip.name == "a/b.wav"
    mono = (samples / np.float32(32_768)).mean(1, keepdims=True, dtype=np.float32)
    np.testing.assert_allclose(clip.read(), resample(mono, 8_000, 16_000)[:, 0], atol=1e-7)


def test_names_are_posix_paths_in_their_order(tmp_path):
    for name in ["b.wav", "a/z.wav", "a-b/x.wav"]:
        write_wav(tmp_path / name, pcm(0))
    assert [clip.name for clip in find_clips(tmp_path)] == ["a-b/x.wav", "a/z.wav", "b.wav"]


def test_paths_become_clips(tmp_path, prepared):
    path = write_wav(tmp_path / "a.wav", pcm(0))
    (clip,) = find_clips(prepared, "test")
    assert as_clips([path, str(path), clip]) == (
        FileClip(path, str(path)),
        FileClip(path, str(path)),
        clip,
    )


def test_a_prepared_data_set_is_found_from_above(tmp_path, prepared):
    expected = find_clips(prepared)
    assert len(expected) == N_CLIPS
    for folder in (prepared.parent, tmp_path / "data", tmp_path, str(tmp_path)):
        assert find_clips(folder) == find_clips(folder, "train") == expected
    assert [clip.name for clip in find_clips(tmp_path, "test")] == ["2.wav"]


def test_examples_without_a_name(tmp_path):
    clips = find_clips(prepare(tmp_path, named=False))
    assert [clip.name for clip in clips] == [f"train/{index:06d}" for index in range(N_CLIPS)]
    np.testing.assert_array_equal(clips[1].read() * 32_768, pcm(0))


def test_refusals_name_the_folder(tmp_path, prepared):
    with pytest.raises(AudioError, match=f"{prepared}: no split 'valid', there are test, train"):
        find_clips(tmp_path, "valid")
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "no")):
        find_clips(tmp_path / "no")
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "no")):
        find_clips(tmp_path / "no", "train")
    path = write_wav(tmp_path / "files" / "a.wav", pcm(0))
    with pytest.raises(AudioError, match=f"{path.parent}: not a prepared data set"):
        find_clips(path.parent, "train")
    with pytest.raises(NotADirectoryError, match=str(path)):
        find_clips(path)
    shutil.copytree(prepared, prepared.with_name("1.0.1"))
    with pytest.raises(AudioError, match=r"choose one of data/ramps/1\.0\.0, data/ramps/1\.0\.1"):
        find_clips(tmp_path)
    assert find_clips(prepared) == find_clips(prepared, "train")


def test_data_sets_of_another_kind_are_refused(tmp_path):
    kinds: dict[str, Any] = {
        "no data set of mono audio": {
            "audio": tfds.features.Tensor(shape=(None,), dtype=np.float32, encoding="bytes")
        },
        "the sample rate is 8000, not 16000 Hz": {"rate": 8_000},
    }
    for message, settings in kinds.items():
        folder = prepare(tmp_path / message, **settings)
        with pytest.raises(AudioError, match=f"{folder}: {message}"):
            find_clips(folder)


def shards(folder, split="train"):
    return sorted(folder.glob(f"*{split}*"))


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {
    "no info": lambda folder: (folder / "dataset_info.json").unlink(),
    "an empty info": lambda folder: (folder / "dataset_info.json").write_text(""),
    "an info cut short": lambda folder: cut(folder / "dataset_info.json"),
    "another info": lambda folder: (folder / "dataset_info.json").write_text("{}"),
    "no features": lambda folder: (folder / "features.json").unlink(),
    "features cut short": lambda folder: cut(folder / "features.json"),
    "no shards": lambda folder: [path.unlink() for path in shards(folder)],
    "empty shards": lambda folder: [path.write_bytes(b"") for path in shards(folder)],
    "shards cut short": lambda folder: [cut(path) for path in shards(folder)],
    "other shards": lambda folder: [path.write_bytes(b"\0" * 200_000) for path in shards(folder)],
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("above", [False, True])
def test_a_damaged_data_set_is_named(tmp_path, prepared, damage, above):
    DAMAGES[damage](prepared)
    with pytest.raises(AudioError, match=str(prepared)) as caught:
        find_clips(tmp_path if above else prepared)
    assert "\n" not in str(caught.value)


def test_a_half_written_data_set_is_named(tmp_path, prepared):
    unfinished = prepared.with_name("incomplete.7B70QF_1.0.0")
    shutil.copytree(prepared, unfinished)
    (unfinished / "dataset_info.json").unlink()
    assert len(find_clips(tmp_path)) == N_CLIPS
    shutil.rmtree(prepared)
    for _ in range(2):
        with pytest.raises(AudioError, match=f"{unfinished}: a half-written data set"):
            find_clips(tmp_path)
        (unfinished / "dataset_info.json").write_text("{}")


def noise(number):
    """Samples that can't be compressed, so that their bytes are found in the file."""
    return np.random.default_rng(number).integers(-32_768, 32_768, 5_000).astype(np.int16)


def test_a_damaged_record_is_one_clip_that_cannot_be_read(tmp_path, caplog):
    prepared = prepare(tmp_path, samples=noise)
    first = shards(prepared)[0]
    data = bytearray(first.read_bytes())
    data[data.index(noise(3)[2_000:2_010].tobytes())] ^= 1
    first.write_bytes(data)
    clips = find_clips(prepared)
    # Its name can't be read either.
    expected = [*(f"{number}.wav" for number in (0, 1, 2, 4, 5)), "train/000002"]
    assert [clip.name for clip in clips] == expected
    with pytest.raises(AudioError, match="the record is damaged"):
        clips[-1].read()
    loader = make_loader(clips, batch_size=5, n_samples=100, seed=0, num_epochs=1)
    assert list(loader.skipped) == ["train/000002"]
    assert "skipping train/000002: the record is damaged" in caplog.text
    with closing(iter(loader)) as batches:
        (batch,) = batches
    assert sorted(batch["index"]) == list(range(5))


def test_a_record_without_samples(tmp_path):
    folder = prepare(tmp_path, samples=lambda number: pcm(number)[: 0 if number == 3 else None])
    clips = find_clips(folder)
    assert [clip.name for clip in clips][-1] == "train/000002"
    with pytest.raises(AudioError, match="the clip holds no samples"):
        clips[-1].read(10)


def test_a_record_that_is_not_there(prepared):
    assert PreparedClip(prepared, "train", 0, "5.wav").read(10).shape == (10,)
    with pytest.raises(AudioError, match="the record is damaged"):
        PreparedClip(prepared, "train", 99, "a").read(10)


def test_loader_gives_the_same_batches_from_either_source(tmp_path, prepared):
    for number in range(N_CLIPS):
        write_wav(tmp_path / "files" / f"{number}.wav", pcm(number))
    settings: dict[str, Any] = {"batch_size": 4, "n_samples": 100, "seed": 5}
    loaders = [make_loader(find_clips(root), **settings) for root in (tmp_path / "files", prepared)]
    assert [clip.name for clip in loaders[1].clips] == [f"{n}.wav" for n in range(N_CLIPS)]
    with closing(iter(loaders[0])) as ours, closing(iter(loaders[1])) as theirs:
        for a, b in zip(islice(ours, 6), islice(theirs, 6), strict=True):
            np.testing.assert_array_equal(a["audio"], b["audio"])
            np.testing.assert_array_equal(a["index"], b["index"])
            for samples, index in zip(b["audio"], b["index"], strict=True):
                start = round(float(samples[0]) * 32_768) - 1_000 * (index + 1)
                np.testing.assert_array_equal(samples * 32_768, pcm(index)[start : start + 100])


@pytest.mark.slow
def test_workers_read_prepared_clips(prepared):
    settings: dict[str, Any] = {"batch_size": 4, "n_samples": 100, "seed": 5}
    with closing(iter(make_loader(find_clips(prepared), **settings))) as batches:
        expected = list(islice(batches, 3))
    with closing(iter(make_loader(find_clips(prepared), workers=1, **settings))) as batches:
        for batch, same in zip(islice(batches, 3), expected, strict=True):
            np.testing.assert_array_equal(batch["audio"], same["audio"])
