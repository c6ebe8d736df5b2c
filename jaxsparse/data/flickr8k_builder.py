"""Prepares the Flickr 8k Audio Caption Corpus, for ``python -m jaxsparse.data.flickr8k``.

The corpus holds 40,000 captions read by 183 speakers, 16 kHz, mono, 16 bits, CC BY-SA
(D. Harwath and J. Glass, Deep multimodal semantic embeddings for speech and images, ASRU 2015).
TensorFlow is not needed, neither here nor to read what was prepared (``clips.find_clips``); the
extra ``train`` is, to import this module.
"""

import contextlib
import dataclasses
import gzip
import hashlib
import io
import itertools
import logging
import os
import re
import shutil
import tarfile
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int16
from tqdm import tqdm

from jaxsparse.audio import open_audio, read_audio
from jaxsparse.data.folder import CLIP_SAMPLES
from jaxsparse.errors import AudioError, JaxsparseError, needs_extra
from jaxsparse.types import SAMPLE_RATE

with needs_extra("train"):
    import tensorflow_datasets as tfds

FOLDER = "flickr_audio"
ARCHIVE = "flickr_audio.tar.gz"
ARCHIVE_MD5 = "9d078f1f150c26e864aa64d1d733779a"
CAPTION_TABLE = "wav2capt.txt"
SPEAKER_TABLE = "wav2spk.txt"
# The texts of the captions belong to the corpus of images.
TEXTS = ("Flickr8k.token.txt", "Flickr8k_text/Flickr8k.token.txt")
SPLITS = ("train", "test", "validation")

# A shard's examples are all in memory while it is written.
_SHARD_CLIPS = 1_000
_BLOCK_BYTES = 1 << 20
_ARCHIVE_ERRORS = (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error)
_CAPTION_LINE = re.compile(r"(?P<file>[^\s/]+\.wav)\s+(?P<image>\S+)\s+#(?P<number>\d{1,9})")
_SPEAKER_LINE = re.compile(r"(?P<file>[^\s/]+\.wav)\s+(?P<speaker>\S+)")
_TEXT_LINE = re.compile(r"(?P<image>\S+)#(?P<number>\d{1,9})\s+(?P<text>.*)")

_log = logging.getLogger(__name__)


class CorpusError(JaxsparseError):
    """What should be the corpus is not usable as a whole."""


class LocalInfo(tfds.core.DatasetInfo):
    """About a data set that is not among those that tensorflow-datasets' bucket describes."""

    def initialize_from_bucket(self) -> None:
        """Asks no bucket, for which a temporary folder would be made and left."""


@dataclasses.dataclass(eq=False, kw_only=True)
class SplitConfig(tfds.core.BuilderConfig):
    """Which clips make up which split. The name of the prepared folder tells all of it.

    Attributes:
      by_speaker: whole speakers go to a split, so that no speaker is in two; the sizes are then
        upper bounds, which the whole corpus reaches.
      seed: of the draw.
      train: number of clips.
      test: number of clips.
      validation: number of clips.
      max_samples: longer clips belong to no split.
      allow_fewer: with fewer clips than the splits need, scale all sizes down.
      archive_md5: what the archive is checked against; None accepts any.
    """

    name: str = ""
    by_speaker: bool = False
    seed: int = 0
    train: int = 9_000
    test: int = 1_000
    validation: int = 2_500
    max_samples: int = CLIP_SAMPLES
    allow_fewer: bool = False
    archive_md5: str | None = ARCHIVE_MD5

    def __post_init__(self) -> None:
        for name in (*SPLITS, "max_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, not {self.seed}")
        if not self.name:
            self.name = self._name()

    def _name(self) -> str:
        parts = ["by_speaker" if self.by_speaker else "by_clip"]
        for field in dataclasses.fields(SplitConfig):
            value = getattr(self, field.name)
            if field.name in ("seed", *SPLITS, "max_samples") and value != field.default:
                parts.append(f"{field.name}{value}")
        return "_".join(parts + ["fewer"] * self.allow_fewer)

    def sizes(self, available: int) -> dict[str, int]:
        """Number of clips of each split.

        Args:
          available: number of clips that there are.

        Raises:
          CorpusError: they are too few.
        """
        sizes = {split: getattr(self, split) for split in SPLITS}
        wanted = sum(sizes.values())
        if available >= wanted:
            return sizes
        if not self.allow_fewer or available < len(SPLITS):
            raise CorpusError(
                f"{available} usable clips of at most {self.max_samples} samples; "
                f"the splits need {len(SPLITS) if self.allow_fewer else wanted}"
            )
        scaled = {split: max(1, size * available // wanted) for split, size in sizes.items()}
        scaled["train"] = available - scaled["test"] - scaled["validation"]
        return scaled


class Recording(NamedTuple):
    """A usable clip of the corpus."""

    file: str
    path: Path
    speaker: str
    image: str
    caption_number: int
    n_samples: int


class Corpus(NamedTuple):
    """What a folder in the corpus' layout holds."""

    recordings: tuple[Recording, ...]
    n_longer: int
    # Reason for each clip, or line of a table, that is left out.
    skipped: dict[str, str]


def read_corpus(root: Path, *, max_samples: int = CLIP_SAMPLES) -> Corpus:
    """Reads the tables and checks every clip that is short enough, to its last sample.

    Args:
      root: the folder that holds ``wavs``, ``wav2capt.txt`` and ``wav2spk.txt``.
      max_samples: longer clips are only counted.

    Returns:
      The usable recordings sorted by name, and what is wrong with the others; each of these is
      also a warning in the log.

    Raises:
      OSError: a table or the folder of clips can't be read.
      CorpusError: they are missing, or without a single usable line or clip.
    """
    captions, caption_faults = _read_table(root / CAPTION_TABLE, _CAPTION_LINE)
    speakers, speaker_faults = _read_table(root / SPEAKER_TABLE, _SPEAKER_LINE)
    folder = root / "wavs"
    if not folder.is_dir():
        raise CorpusError(f"{root}: no folder wavs")
    wavs = {name for name in os.listdir(folder) if re.fullmatch(r"[^.].*\.wav", name)}
    skipped = {**caption_faults, **speaker_faults}
    for name in wavs | captions.keys() | speakers.keys():
        if name not in wavs:
            skipped[name] = "in the tables, but not in wavs"
        elif name not in captions:
            skipped.setdefault(name, f"no line in {CAPTION_TABLE}")
        elif name not in speakers:
            skipped.setdefault(name, f"no line in {SPEAKER_TABLE}")
    candidates = sorted(wavs - skipped.keys())

    def check(name: str) -> int | str:
        return _check(folder / name, max_samples)

    recordings: list[Recording] = []
    n_longer = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            results = zip(candidates, pool.map(check, candidates), strict=True)
            for name, result in tqdm(results, "checking clips", len(candidates), disable=None):
                if isinstance(result, str):
                    skipped[name] = result
                elif result > max_samples:
                    n_longer += 1
                else:
                    image, number = captions[name]
                    (speaker,) = speakers[name]
                    recordings.append(
                        Recording(name, folder / name, speaker, image, int(number), result)
                    )
        finally:
            # Ctrl-C doesn't wait for the rest of the corpus.
            pool.shutdown(cancel_futures=True)
    for name in sorted(skipped):
        _log.warning("skipping %s: %s", name, skipped[name])
    if not recordings:
        raise CorpusError(
            f"{root}: no usable clip; {n_longer} are too long, {len(skipped)} were skipped"
        )
    return Corpus(tuple(recordings), n_longer, dict(sorted(skipped.items())))


def _read_table(
    path: Path, pattern: re.Pattern[str]
) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """Reads a table: the columns after the file's name, by that name; and what is wrong with it.

    Raises:
      OSError: it can't be read.
      CorpusError: it is missing or has no usable line.
    """
    try:
        text = path.read_text("utf-8-sig", "replace")
    except FileNotFoundError:
        raise CorpusError(f"{path.parent}: no table {path.name}") from None
    rows: dict[str, tuple[str, ...]] = {}
    faults: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        match = pattern.fullmatch(line.strip())
        if match is None:
            if line.strip():
                faults[f"{path.name}, line {number}"] = f"malformed: {line.strip()[:80]!r}"
            continue
        name, *columns = match.groups()
        if rows.setdefault(name, tuple(columns)) != tuple(columns):
            faults[name] = f"different lines in {path.name}"
    if not rows:
        raise CorpusError(f"{path}: no usable line")
    return rows, faults


def _check(path: Path, max_samples: int) -> int | str:
    """The number of samples, or what is wrong with the clip."""
    try:
        with open_audio(path) as audio:
            if audio.samplerate != SAMPLE_RATE:
                return f"a sample rate of {audio.samplerate} Hz, not {SAMPLE_RATE}"
            if audio.channels != 1:
                return f"{audio.channels} channels, not 1"
            if audio.frames > max_samples:
                return audio.frames
        return len(_read_pcm(path))
    except AudioError as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)


def _read_pcm(path: Path) -> Int16[np.ndarray, " N"]:
    samples, _ = read_audio(path)
    return np.clip(np.rint(samples[:, 0] * 32_768), -32_768, 32_767).astype(np.int16)


def read_texts(manual_dir: Path) -> dict[tuple[str, int], str]:
    """Reads the captions' texts, which come with the corpus of images, if they are there.

    Args:
      manual_dir: may hold ``Flickr8k.token.txt``, or ``Flickr8k_text`` with it.

    Returns:
      The text by image and number of the caption.
    """
    for name in TEXTS:
        with contextlib.suppress(FileNotFoundError):
            lines = (manual_dir / name).read_text("utf-8-sig", "replace").splitlines()
            matches = filter(None, map(_TEXT_LINE.fullmatch, lines))
            return {(m["image"], int(m["number"])): m["text"].strip() for m in matches}
    return {}


def draw_splits(recordings: Sequence[Recording], config: SplitConfig) -> dict[str, list[Recording]]:
    """Draws the splits.

    The order of the draw comes from hashes of the seed and the names, so it depends neither on the
    order of the files nor on a version of NumPy, and a clip less hardly changes it.

    Args:
      recordings: those of a corpus.
      config: sizes, seed and whether speakers stay together.

    Returns:
      The recordings of each of ``SPLITS``, in the order drawn.

    Raises:
      CorpusError: there are too few recordings, or fewer speakers than splits.
    """
    sizes = config.sizes(len(recordings))

    def rank(name: str) -> bytes:
        return hashlib.sha256(f"{config.seed}/{name}".encode()).digest()

    drawn = sorted(recordings, key=lambda recording: rank(recording.file))
    if config.by_speaker:
        split_of = _assign_speakers(drawn, sizes, rank)
        groups = {
            split: [recording for recording in drawn if split_of[recording.speaker] == split]
            for split in SPLITS
        }
        return {split: groups[split][: sizes[split]] for split in SPLITS}
    iterator = iter(drawn)
    return {split: [next(iterator) for _ in range(sizes[split])] for split in SPLITS}


def _assign_speakers(
    recordings: Iterable[Recording], sizes: Mapping[str, int], rank: Callable[[str], bytes]
) -> dict[str, str]:
    """Gives each speaker to a split, so that these have what they need as nearly as possible.

    First to the one with the smallest part of its need; then single speakers move, or two change
    places, as long as that leaves fewer clips wanting.
    """
    counts = Counter(recording.speaker for recording in recordings)
    if len(counts) < len(sizes):
        raise CorpusError(f"{len(counts)} speakers are too few for {len(sizes)} splits")
    filled = dict.fromkeys(sizes, 0)
    split_of = {}
    for speaker in sorted(counts, key=rank):
        split = min(sizes, key=lambda split: filled[split] / sizes[split])
        split_of[speaker] = split
        filled[split] += counts[speaker]
    while change := _best_change(split_of, counts, sizes):
        split_of |= change
    return split_of


def _best_change(
    split_of: Mapping[str, str], counts: Mapping[str, int], sizes: Mapping[str, int]
) -> dict[str, str]:
    """The move of a speaker, or the swap of two, that helps most; empty if none does."""
    members = Counter(split_of.values())
    filled = dict.fromkeys(sizes, 0)
    for speaker, split in split_of.items():
        filled[split] += counts[speaker]

    def wanting(change: Mapping[str, str]) -> int:
        after = dict(filled)
        for speaker, split in change.items():
            after[split_of[speaker]] -= counts[speaker]
            after[split] += counts[speaker]
        return sum(max(0, size - after[split]) for split, size in sizes.items())

    fewest = wanting({})
    if not fewest:
        return {}
    changes = [
        {speaker: split}
        for speaker, old in split_of.items()
        for split in sizes
        if split != old and members[old] > 1
    ]
    changes += [
        {one: split_of[other], other: split_of[one]}
        for one, other in itertools.combinations(split_of, 2)
        if split_of[one] != split_of[other]
    ]
    best = min(changes, key=wanting, default={})
    return best if wanting(best) < fewest else {}


@contextlib.contextmanager
def open_corpus(
    manual_dir: Path, *, scratch: Path, md5: str | None = ARCHIVE_MD5
) -> Iterator[Path]:
    """Finds the unpacked corpus, or unpacks the archive for as long as it is needed.

    Args:
      manual_dir: holds ``flickr_audio`` or ``flickr_audio.tar.gz``, or is the former.
      scratch: the archive is unpacked into a temporary folder in this one.
      md5: what the archive is checked against; None accepts any.

    Yields:
      The folder with the tables and ``wavs``.

    Raises:
      OSError: something can't be read or written.
      CorpusError: neither is there, or the archive is damaged or another one.
    """
    for root in (manual_dir / FOLDER, manual_dir):
        if (root / "wavs").is_dir() or (root / CAPTION_TABLE).exists():
            yield root
            return
    archive = manual_dir / ARCHIVE
    if not archive.exists():
        raise CorpusError(f"{manual_dir}: neither a folder {FOLDER} nor {ARCHIVE}")
    _check_md5(archive, md5)
    with tempfile.TemporaryDirectory(prefix="incomplete.", dir=scratch) as temporary:
        try:
            _unpack(archive, Path(temporary))
        # Of malformed numbers and blocks, tarfile makes a ValueError or an IndexError.
        except (*_ARCHIVE_ERRORS, IndexError, ValueError) as error:
            raise CorpusError(f"{archive}: damaged or cut short: {error}") from error
        yield Path(temporary)


def _check_md5(path: Path, expected: str | None) -> None:
    if expected is None:
        return
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file, _bytes_bar("checking archive", path) as bar:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            bar.update(len(block))
    if digest.hexdigest() != expected:
        raise CorpusError(
            f"{path}: its MD5 is {digest.hexdigest()}, not {expected}: damaged, cut short or "
            f"another archive"
        )


def _unpack(archive: Path, target: Path) -> None:
    """Writes the tables and clips; nothing else, and nothing beside the target.

    Raises:
      tarfile.ReadError: a member that would be written is sparse, or has no name for a file.
    """
    wanted = re.compile(rf"(?:\./)?{FOLDER}/((?:wavs/[^/]+\.wav)|{CAPTION_TABLE}|{SPEAKER_TABLE})")
    (target / "wavs").mkdir()
    with (
        archive.open("rb") as file,
        _bytes_bar("unpacking", archive) as bar,
        gzip.open(file) as unzipped,
    ):
        with tarfile.open(fileobj=unzipped, mode="r|") as members:
            for member in members:
                bar.update(file.tell() - bar.n)
                match = wanted.fullmatch(member.name)
                if match and "\0" in member.name:
                    raise tarfile.ReadError(f"a zero byte in the name {member.name!r}")
                # Few bytes would unpack to any number of zeros.
                if match and member.issparse():
                    raise tarfile.ReadError(f"{member.name!r} is a sparse file, as no clip is")
                content = members.extractfile(member) if match and member.isreg() else None
                if match and content:
                    with (target / match[1]).open("wb") as copy:
                        shutil.copyfileobj(content, copy)
        # The checksum stands at the end, behind what tarfile reads.
        while unzipped.read(_BLOCK_BYTES):
            pass


def _bytes_bar(title: str, path: Path) -> Any:
    return tqdm(
        desc=title, total=path.stat().st_size, unit="B", unit_scale=True, disable=None, leave=False
    )


class Flickr8kAudio(tfds.core.ShardBasedBuilder):
    """The Flickr 8k Audio Caption Corpus as int16 PCM at 16 kHz.

    Written shard by shard: other builders of tensorflow-datasets keep a split in memory to shuffle
    it, and need TensorFlow where that is more than a gigabyte.
    """

    # Finding it out takes importlib_resources, which tensorflow-datasets forgets to require.
    code_path = None
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012
    BUILDER_CONFIGS = [  # noqa: RUF012
        SplitConfig(description="Splits drawn from all clips."),
        SplitConfig(by_speaker=True, description="No speaker is in two splits."),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"Put {ARCHIVE} of the Flickr 8k Audio Caption Corpus, from its authors' page, or the "
        f"folder {FOLDER} that it unpacks to, into the manual directory; beside it, if the "
        "captions' texts are wanted, Flickr8k.token.txt of the Flickr 8k corpus of images."
    )

    def __init__(self, *, file_format: str | None = "array_record", **kwargs: Any) -> None:
        self._corpora = contextlib.ExitStack()
        super().__init__(file_format=file_format, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        config = self._split_config
        return LocalInfo(
            builder=self,
            description="Captions of images, read aloud: 40,000 clips of 183 speakers, of which "
            f"those of at most {config.max_samples} samples are drawn from. {config.description}",
            features=tfds.features.FeaturesDict(
                {
                    "audio": tfds.features.Tensor(shape=(None,), dtype=np.int16, encoding="bytes"),
                    "num_samples": np.int64,
                    "file": tfds.features.Text(),
                    "speaker": tfds.features.Text(),
                    "image": tfds.features.Text(),
                    "caption_number": np.int64,
                    "caption": tfds.features.Text(),
                }
            ),
            metadata=tfds.core.MetadataDict(sample_rate=SAMPLE_RATE),
            license="CC BY-SA",
            citation="D. Harwath and J. Glass, Deep multimodal semantic embeddings for speech and "
            "images, IEEE Automatic Speech Recognition and Understanding Workshop, 2015.",
        )

    @property
    def _split_config(self) -> SplitConfig:
        assert isinstance(self.builder_config, SplitConfig)
        return self.builder_config

    def download_and_prepare(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, **kwargs: Any
    ) -> None:
        """Prepares the data set: see ``tfds.core.DatasetBuilder``, and ``prepare``."""
        # Closed when all is written, or has failed.
        with self._corpora:
            super().download_and_prepare(**kwargs)

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, list[Callable[[], Iterator[Any]]]]:
        config = self._split_config
        manual_dir = Path(dl_manager.manual_dir)
        root = self._corpora.enter_context(
            open_corpus(manual_dir, scratch=Path(self.data_dir).parent, md5=config.archive_md5)
        )
        corpus = read_corpus(root, max_samples=config.max_samples)
        splits = draw_splits(corpus.recordings, config)
        texts = read_texts(manual_dir)
        hours = {
            split: round(sum(r.n_samples for r in recordings) / SAMPLE_RATE / 3600, 4)
            for split, recordings in splits.items()
        }
        settings = {
            field.name: getattr(config, field.name)
            for field in dataclasses.fields(SplitConfig)
            if field.name in SplitConfig.__annotations__
        }
        assert self.info.metadata is not None
        self.info.metadata.update(
            settings=settings,
            hours=hours,
            usable=len(corpus.recordings),
            longer=corpus.n_longer,
            skipped=corpus.skipped,
        )

        def shard(split: str, start: int) -> Callable[[], Iterator[Any]]:
            return lambda: _examples(splits[split][start : start + _SHARD_CLIPS], texts, split)

        return {
            split: [shard(split, start) for start in range(0, len(recordings), _SHARD_CLIPS)]
            for split, recordings in splits.items()
        }


def _examples(
    recordings: Sequence[Recording], texts: Mapping[tuple[str, int], str], split: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    for recording in tqdm(recordings, f"writing {split}", disable=None, leave=False):
        try:
            audio = _read_pcm(recording.path)
        except (AudioError, OSError) as error:
            raise CorpusError(f"{recording.file}: changed while it was used: {error}") from error
        yield (
            recording.file,
            {
                "audio": audio,
                "num_samples": len(audio),
                "file": recording.file,
                "speaker": recording.speaker,
                "image": recording.image,
                "caption_number": recording.caption_number,
                "caption": texts.get((recording.image, recording.caption_number), ""),
            },
        )


def prepare(
    manual_dir: str | os.PathLike[str],
    data_dir: str | os.PathLike[str],
    config: SplitConfig | None = None,
) -> Path:
    """Prepares the data set, whole or not at all; one that is there already stays as it is.

    Args:
      manual_dir: see ``open_corpus`` and ``read_texts``.
      data_dir: the data set's folder is made in it.
      config: by default 9,000, 1,000 and 2,500 clips drawn from all that are short enough.

    Returns:
      The data set's folder, for ``find_clips``.

    Raises:
      OSError: something can't be read or written.
      CorpusError: the corpus is not usable as a whole, or too small.
    """
    manual_dir, data_dir = Path(manual_dir), Path(data_dir)
    if not manual_dir.is_dir():
        raise CorpusError(f"{manual_dir}: no such directory")
    if not any(manual_dir.iterdir()):
        raise CorpusError(f"{manual_dir}: neither a folder {FOLDER} nor {ARCHIVE}")
    config = config or SplitConfig()
    known: dict[str, Any] = {known.name: known for known in Flickr8kAudio.BUILDER_CONFIGS}
    config = known.get(config.name, config)
    existed = data_dir.exists()
    builder = Flickr8kAudio(data_dir=data_dir, config=config)
    folder = Path(builder.data_path)
    # What tensorflow-datasets says is about downloads, of which there are none.
    with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as downloads:
        try:
            builder.download_and_prepare(
                download_dir=downloads,
                download_config=tfds.download.DownloadConfig(manual_dir=manual_dir),
            )
        except BaseException as error:
            _prune(folder, data_dir, existed)
            # What array_record makes of a full disk.
            if type(error) is RuntimeError:
                raise OSError(f"{folder}: {str(error).partition(';')[0]}") from error
            # Writing to a full disk fails without a name.
            if isinstance(error, OSError) and error.filename is None:
                error.filename = os.fspath(data_dir)
            raise
    return folder


def _prune(folder: Path, data_dir: Path, existed: bool) -> None:
    """Removes the folders around a data set that could not be prepared, as far as nothing is in."""
    with contextlib.suppress(OSError):
        folder.parent.rmdir()
    with contextlib.suppress(OSError):
        if os.listdir(folder.parent.parent) == [".config"]:
            shutil.rmtree(folder.parent.parent)
        if not existed:
            data_dir.rmdir()


def summary(folder: Path) -> str:
    """Says what a prepared data set holds: clips and hours of each split, and what was left out."""
    info = tfds.builder_from_directory(folder).info
    metadata: Any = info.metadata
    lines = [
        f"{split:10} {info.splits[split].num_examples:6} clips {metadata['hours'][split]:8.3f} h"
        for split in SPLITS
    ]
    skipped, longer = len(metadata["skipped"]), metadata["longer"]
    lines.append(f"{metadata['usable']} usable clips, {longer} longer, {skipped} skipped")
    return "\n".join([*lines, f"in {folder}"])
