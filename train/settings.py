"""Settings of a training run, and the recipes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jaxsparse.contracts import DecoderConfig
from jaxsparse.decoders import DECODERS, has_parameters, name_of
from jaxsparse.nn.pyramid_unet import PyramidUNetConfig
from jaxsparse.nn.sparse_cnn import SparseCNNConfig
from jaxsparse.policies import POLICIES
from jaxsparse.search.relaxations import RELAXATIONS
from jaxsparse.settings import SettingsError, check_least
from jaxsparse.sharding import Devices
from jaxsparse.terms import TERMS, hears, parse_loss
from jaxsparse.transforms.stft import STFTConfig

STFT = STFTConfig()
MOST_GAIN_DB = 60.0
LEAST = {
    **{name: 1 for name in ("steps", "batch_size", "n_samples", "crops_per_clip")},
    **{name: 1 for name in ("log_every", "checkpoint_every")},
    **{
        name: 0
        for name in ("workers", "picture_every", "snapshot_every", "learning_rate", "weight_decay")
    },
    "clip_norm": 0,
}


@dataclass(frozen=True)
class Settings:
    """Settings of a training run; every recipe is one set of defaults.

    Raises:
        SettingsError: If one is out of range.
    """

    # Folder tree of audio files to train on, or a prepared tensorflow-datasets data set.
    data: Path
    # Where checkpoints, log.csv, pictures and the trained network go.
    workdir: Path
    # Split of a prepared data set; by default `train`.
    split: str | None = None
    # What the data are and under which licence, for the trained network's card.
    data_note: str = ""
    # Share of bins hidden: one value, or the two ends of a range. From a range, the share of bins
    # that are kept is drawn with a uniform logarithm: as many masks keep 2 to 4 % as 4 to 8 %.
    sparsity: tuple[float, ...] = (0.95,)
    # Policies that choose which bins are kept; of several, one is drawn for each example, and a
    # policy that is named twice is drawn twice as often. random: drawn uniformly. mixed: half of
    # them the loudest, half drawn from the others. contrast: half of them stand out most.
    masks: tuple[str, ...] = ("random",)
    # Ends of a range to draw the share of bins from that a policy chooses by their content, instead
    # of its own share; policies that draw all bins or none keep theirs.
    share: tuple[float, ...] = ()
    # Share of each batch whose masks a sampler changes, which is trained beside the decoder; 0
    # trains none. It starts from the masks of --sampler-start.
    sampler_share: float = 0.0
    # Policy that makes these masks.
    sampler_start: str = "densification"
    # What makes soft masks, or hard ones, of its scores: any relaxation whose masks have the count.
    sampler_relaxation: str = "projection"
    # A trained sampler (.safetensors) to go on with.
    sampler_from: Path | None = None
    # Each clip is made louder or quieter by up to so many dB.
    gain_db: float = 0.0
    # What is minimised: terms joined by +, each with or without a weight, as in mse+0.5*mfcc.
    # mse (dB^2) is of the spectrogram; mel, mfcc, lsd (dB), stft, si-sdr (negated), stoi and estoi
    # (1 - value), surrogate and surrogate-nb (4.64 - value, of PESQ) are of its sound and need
    # whole spectrograms. Default weights make a term about as large as mse (jaxsparse/terms.py).
    loss: str = "mse"
    # Optimizer steps.
    steps: int = 11_250
    # Clips in a step.
    batch_size: int = 16
    # Samples of a clip at 16 kHz; longer ones are cut at a random offset, shorter ones padded.
    n_samples: int = 77_276
    # Bins and frames of random crops of each spectrogram; none trains on whole ones.
    crop: tuple[int, int] | None = None
    # Crops of each clip.
    crops_per_clip: int = 1
    # AdamW's learning rate; with the cosine schedule its peak.
    learning_rate: float = 1e-4
    # constant, or a short warm-up and a cosine down to zero.
    schedule: Literal["constant", "cosine"] = "constant"
    # AdamW's decoupled weight decay.
    weight_decay: float = 5e-4
    # Decay of AdamW's average of squared gradients.
    beta2: float = 0.999
    # Largest norm of a step's gradient; larger ones are scaled down. 0 leaves them as they are.
    clip_norm: float = 0.0
    # Architecture of the decoder that --decoder names.
    decoder: DecoderConfig = field(default_factory=SparseCNNConfig)
    # A trained network (.safetensors) to start from instead of random parameters.
    init_from: Path | None = None
    # Of parameters, masks, crops and the order of clips.
    seed: int = 0
    # Goes on from the newest good checkpoint in workdir; data must hold the same files.
    resume: bool = False
    # Makes an unusable audio file an error instead of skipping it.
    strict: bool = False
    # Processes that read audio ahead; 0 reads in threads.
    workers: int = 0
    # Steps between lines of the log.
    log_every: int = 20
    # Steps between checkpoints.
    checkpoint_every: int = 250
    # Steps between networks that are kept in workdir/snapshots, to see how they come along; 0 keeps
    # none but the last.
    snapshot_every: int = 0
    # Steps between pictures of input, mask, output and target; 0 draws none.
    picture_every: int = 1000
    # Type of the numbers in the trained network's file; bfloat16 takes half the space.
    save_dtype: Literal["float32", "bfloat16"] = "float32"
    # Writes TensorBoard events too (needs the extra `tensorboard`).
    tensorboard: bool = False
    # Devices that share each batch: so many of this process, all, or those of all processes of a
    # cluster (docs/devices.md); none trains on the first one.
    mesh: Devices = None

    def __post_init__(self) -> None:
        if len(self.sparsity) not in (1, 2) or not all(0 < s < 1 for s in self.sparsity):
            raise SettingsError("sparsity takes one value or the ends of a range, between 0 and 1")
        if not self.masks:
            raise SettingsError("masks takes one policy at least")
        for name in (*self.masks, self.sampler_start):
            if name not in POLICIES:
                raise SettingsError(f"no policy is named {name!r}; there are {', '.join(POLICIES)}")
        if len(self.share) not in (0, 2) or not all(0 <= s <= 1 for s in self.share):
            raise SettingsError("share takes the two ends of a range, between 0 and 1")
        # Its masks have another sum unless they are rounded.
        relaxations = [name for name in RELAXATIONS if name != "logistic"]
        if self.sampler_relaxation not in relaxations:
            raise SettingsError(
                f"sampler_relaxation must be one of {', '.join(relaxations)}, not"
                f" {self.sampler_relaxation!r}"
            )
        if not 0 <= self.sampler_share <= 1:
            raise SettingsError("sampler_share must be from 0 to 1")
        if (self.sampler_share or self.sampler_from) and not self.n_sampled:
            raise SettingsError("sampler_share must be one clip of each batch at least, or 0")
        if not 0 <= self.gain_db <= MOST_GAIN_DB:
            raise SettingsError(f"gain_db must be from 0 to {MOST_GAIN_DB:g}")
        if not 0 < self.beta2 < 1:
            raise SettingsError("beta2 must be between 0 and 1")
        check_least(self, LEAST)
        if not 0 <= self.seed < 2**32:
            raise SettingsError("seed must be from 0 to 2^32 - 1")
        whole = (STFT.n_bins, STFT.n_frames(self.n_samples))
        if self.crop and not all(1 <= a <= b for a, b in zip(self.crop, whole, strict=True)):
            raise SettingsError(f"crop {self.crop} does not fit into a clip's {whole}")
        self._check_loss()

    @property
    def n_sampled(self) -> int:
        """Clips in a step whose masks the sampler makes."""
        return round(self.sampler_share * self.batch_size)

    @property
    def terms(self) -> tuple[str, ...]:
        """Terms that the log tells apart: none where the loss has but one."""
        names = tuple(name for _, name in parse_loss(self.loss))
        return names if len(names) > 1 else ()

    def _check_loss(self) -> None:
        try:
            terms = parse_loss(self.loss)
        except ValueError as error:
            raise SettingsError(str(error)) from None
        if hears(terms) and (self.crop or self.crops_per_clip > 1):
            raise SettingsError(
                f"loss {self.loss} is of the sound of whole clips: it takes no crop and one of "
                "crops_per_clip; a small n_samples makes steps cheap"
            )
        for _, name in terms:
            if self.n_samples < TERMS[name].shortest:
                shortest = TERMS[name].shortest
                raise SettingsError(f"loss {name} needs n_samples of {shortest} at least")


# One network for masks of all kinds, on crops of a second and a half.
_PYRAMID: dict[str, Any] = {
    "batch_size": 4,
    "n_samples": 24_320,
    "share": (0.1, 0.9),
    "sparsity": (0.8, 0.98),
    "gain_db": 8.0,
    "schedule": "cosine",
    "weight_decay": 1e-4,
    "beta2": 0.98,
    "clip_norm": 10.0,
    "save_dtype": "bfloat16",
    "decoder": PyramidUNetConfig(),
}
RECIPES: dict[str, dict[str, Any]] = {
    # The thesis' (4.2): 20 epochs of 9,000 clips are 11,250 steps of 16 whole spectrograms.
    "thesis": {},
    # For two cores: eight crops a step, a high learning rate that comes down to zero.
    "fast": {
        "steps": 4_000,
        "batch_size": 4,
        "crop": (192, 96),
        "crops_per_clip": 2,
        "learning_rate": 4e-3,
        "schedule": "cosine",
        "decoder": SparseCNNConfig(kernel_gradient="native"),
    },
    # For two cores: learns the levels of hidden bins.
    "pyramid": {
        **_PYRAMID,
        "steps": 4_000,
        "masks": ("random", "mixed", "contrast"),
        "learning_rate": 2e-3,
    },
    # Its second stage: the network goes on to what its sound is judged by, on masks of more kinds.
    "pyramid-sound": {
        **_PYRAMID,
        "loss": "mse+surrogate+stoi",
        "steps": 1_500,
        "masks": ("random", "blue-noise", "mixed", "contrast", "densification", "densification"),
        "learning_rate": 1e-3,
    },
    # Its third: a sampler learns beside it which bins are best kept.
    "pyramid-sampler": {
        **_PYRAMID,
        "loss": "mse+surrogate+stoi",
        "steps": 4_000,
        "masks": ("random", "random", "blue-noise", "mixed", "contrast", "densification"),
        "sampler_share": 0.5,
        "learning_rate": 1e-3,
    },
    # For two cores: a trained network goes on to what its sound is judged by, on whole spectrograms
    # of a second each.
    "perceptual": {
        "init_from": Path("jaxsparse/weights/random-95.safetensors"),
        "loss": "mse+surrogate",
        "sparsity": (0.8, 0.95),
        "steps": 400,
        "batch_size": 4,
        "n_samples": 16_000,
        "learning_rate": 3e-4,
        "schedule": "cosine",
        "decoder": SparseCNNConfig(kernel_gradient="native"),
    },
}


def start_config(recipe: str, decoder: str | None = None) -> DecoderConfig:
    """Returns the architecture that flags start from.

    Args:
        recipe: Name of the recipe.
        decoder: Name of the decoder's kind; by default the recipe's.

    Raises:
        SettingsError: If there is no such kind, or it has no parameters.
    """
    config = RECIPES[recipe].get("decoder", SparseCNNConfig())
    if decoder is None or decoder == name_of(config):
        return config
    if decoder not in trainable():
        raise SettingsError(
            f"no decoder that can be trained is named {decoder!r}; there are "
            f"{', '.join(trainable())}"
        )
    return DECODERS[decoder]()


def trainable() -> list[str]:
    """Names the decoders that have parameters."""
    return [name for name, kind in DECODERS.items() if has_parameters(kind().build())]
