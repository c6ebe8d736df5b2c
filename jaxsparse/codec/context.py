"""Context models of the quantized MDCT: what is coded already chooses a table of probabilities.

A small network in whole numbers looks at coded neighbours and picks, for each symbol, one of a few
tables, so that encoder and decoder agree exactly on every machine. The numbers are held in float64,
where products and sums of this size are exact in any order, for the sake of fast products of
matrices. ``docs/format.md`` says the same in words.
"""

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import Float, Int

from jaxsparse.files import atomic_write
from jaxsparse.transforms.grid import BAND_EDGES, BAND_FRAMES, N_BANDS, N_LEVELS

TOTAL = 1 << 24
"""Sum of a table's intervals: that of the range coder."""
WEIGHT_BITS, ACTIVATION_BITS = 16, 8
"""Binary places of the weights, and of what a layer passes on."""
N_MAGNITUDES = 18
"""Symbols of a magnitude; the last one stands for itself and all above, told by an escape."""

Planes = Int[np.ndarray, "N R W"]
Inputs = Float[np.ndarray, "N M I"]

# What a magnitude looks like to the networks: 16 log2(1 + a), of 15 at most.
LOOKS = np.rint(16 * np.log2(1 + np.arange(16))).astype(np.int64)
# Sums over so many frames before and coefficients to each side, and the shift that follows.
SUMS = ((1, 8, 3), (4, 16, 5), (8, 2, 4))
PAST = 8
# What a level looks like.
LEVEL_LOOK = 5
# Of a look, a sum of looks after its shift, or the rate.
_LARGEST_INPUT = 8 * 64
LEVEL_PAST = 3


@dataclass(frozen=True, eq=False)
class Layout:
    """Which symbols of a row are coded together, and what the network is shown of each.

    Attributes:
        n_columns: Symbols of a row.
        order: Groups, by column modulo their number, in the order in which they are coded.
        offsets: Plane and column offset of each input; the last input is the rate.
        n_places: Even parts of a row that have biases of their own.
    """

    n_columns: int
    order: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    n_places: int

    @functools.cached_property
    def n_inputs(self) -> int:
        """Inputs of the network."""
        return len(self.offsets) + 1

    @functools.cached_property
    def margin(self) -> int:
        """Zeros on each side of a plane."""
        return max(abs(offset) for _, offset in self.offsets)

    @functools.cached_property
    def n_planes(self) -> int:
        """Planes that are looked at."""
        return 1 + max(plane for plane, _ in self.offsets)

    @functools.cached_property
    def groups(self) -> tuple[slice, ...]:
        """Columns of each group; those of the first one in `order` are coded first."""
        return tuple(slice(start, self.n_columns, len(self.order)) for start in self.order)

    @functools.cached_property
    def padded_groups(self) -> tuple[slice, ...]:
        """The same columns in a row with its margins."""
        return tuple(
            slice(g.start + self.margin, g.stop + self.margin, g.step) for g in self.groups
        )

    @functools.cached_property
    def places(self) -> tuple[Int[np.ndarray, " _"], ...]:
        """The place of each column of a group."""
        columns = np.arange(self.n_columns)
        return tuple(columns[group] * self.n_places // self.n_columns for group in self.groups)

    def gather(self, planes: Planes, group: int, rate: int) -> Inputs:
        """Gathers the inputs for a group of each row.

        Args:
            planes: Of each row, with margins; the first one holds the row itself.
            group: Position in `order`.
            rate: Of the segment.
        """
        index = self._indices[group]
        inputs = np.empty((len(planes), *index.shape[:1], self.n_inputs))
        inputs[..., :-1] = planes.reshape(len(planes), -1)[:, index]
        inputs[..., -1] = rate
        return inputs

    @functools.cached_property
    def _indices(self) -> tuple[Int[np.ndarray, "_ _"], ...]:
        """Where in all planes of a row the inputs for each group are."""
        width = self.n_columns + 2 * self.margin
        starts = np.array([plane * width + self.margin + offset for plane, offset in self.offsets])
        columns = np.arange(self.n_columns)
        return tuple(columns[group][:, None] + starts[None] for group in self.groups)


def _offsets(plane: int, *columns: int) -> tuple[tuple[int, int], ...]:
    return tuple((plane, column) for column in columns)


MAGNITUDES = Layout(
    n_columns=BAND_EDGES[-1],
    order=(0, 2, 1, 3),
    offsets=(
        *_offsets(0, -8, *range(-6, 0), *range(1, 7), 8),
        *_offsets(1, *range(-4, 5)),
        *_offsets(2, *range(-3, 4)),
        *_offsets(3, *range(-1, 2)),
        *_offsets(4, 0),
        *((5 + i, 0) for i in range(len(SUMS))),
    ),
    n_places=8,
)
"""Magnitudes of a frame, in four groups: planes are the frame, those before, and `SUMS`."""

LEVELS = Layout(
    n_columns=N_BANDS,
    order=(0, 1),
    offsets=(
        *_offsets(0, -2, -1, 1, 2),
        *_offsets(1, *range(-2, 3)),
        *_offsets(2, *range(-1, 2)),
        *_offsets(3, 0),
        *(each for plane in (4, 5) for each in _offsets(plane, -1, 0, 1)),
        *((plane, 0) for plane in (6, 7, 8, 9)),
    ),
    n_places=N_BANDS,
)
"""Levels of bands, in two groups: planes are levels now and before, and the magnitudes' looks."""

LAYOUTS = {"magnitudes": MAGNITUDES, "levels": LEVELS}
"""What is coded with a context model each."""
N_SYMBOLS = {"magnitudes": N_MAGNITUDES, "levels": N_LEVELS}


class ContextModel(NamedTuple):
    """A network in whole numbers and its tables; arrays of float64.

    Attributes:
        first: Weights of each group's first layer.
        first_bias: Its biases in each place.
        second: Weights of the second layer.
        second_bias: Its biases.
        third: Weights of the third layer.
        third_bias: Its bias.
        tables: Widths of the intervals, less 1; those of a table and its symbols sum to `TOTAL`.
    """

    first: Float[np.ndarray, "G I H"]
    first_bias: Float[np.ndarray, "G P H"]
    second: Float[np.ndarray, "H J"]
    second_bias: Float[np.ndarray, " J"]
    third: Float[np.ndarray, " J"]
    third_bias: Float[np.ndarray, ""]
    tables: Float[np.ndarray, "K S"]

    def choose(
        self, group: int, inputs: Inputs, places: Int[np.ndarray, " M"]
    ) -> Int[np.ndarray, "N M"]:
        """Chooses a table for each symbol of a group, from `Layout.gather`'s inputs."""
        x = inputs @ self.first[group] + self.first_bias[group][places]
        x = np.floor(np.maximum(x, 0) * 2.0 ** (ACTIVATION_BITS - WEIGHT_BITS))
        x = x @ self.second + self.second_bias
        x = np.floor(np.maximum(x, 0) * 2.0**-WEIGHT_BITS)
        x = x @ self.third + self.third_bias
        x = np.floor(x * 2.0 ** -(ACTIVATION_BITS + WEIGHT_BITS))
        return np.clip(x, 0, len(self.tables) - 1).astype(np.int64)

    @property
    def bits(self) -> Float[np.ndarray, "K S"]:
        """What each symbol costs by each table."""
        return -np.log2((self.tables + 1) / TOTAL)


def magnitude_looks(magnitudes: Int[np.ndarray, "*S"]) -> Int[np.ndarray, "*S"]:
    """Returns what magnitudes look like to the networks."""
    return LOOKS[np.minimum(magnitudes, len(LOOKS) - 1)]


def past_planes(looks: Int[np.ndarray, "T W"]) -> Planes:
    """Makes the planes of frames from those before, all but the first one.

    Args:
        looks: With margins, and with `PAST` frames before the first row to make planes for.
    """
    n_rows = len(looks) - PAST
    planes = np.empty((n_rows, MAGNITUDES.n_planes - 1, looks.shape[1]), np.int64)
    for back in range(1, 5):
        planes[:, back - 1] = looks[PAST - back : PAST - back + n_rows]
    sums = np.zeros((len(looks) + 1, looks.shape[1] + 1), np.int64)
    sums[1:, 1:] = looks.cumsum(0).cumsum(1)
    columns = np.arange(looks.shape[1])
    for i, (n_frames, reach, shift) in enumerate(SUMS):
        rows = sums[PAST : PAST + n_rows] - sums[PAST - n_frames : PAST - n_frames + n_rows]
        right = np.minimum(columns + reach + 1, looks.shape[1])
        planes[:, 4 + i] = (rows[:, right] - rows[:, np.maximum(columns - reach, 0)]) >> shift
    return planes


def magnitude_planes(
    magnitudes: Int[np.ndarray, "T F"],
) -> tuple[Planes, Int[np.ndarray, "N W"]]:
    """Makes the planes of all frames at once: those before coding one, and what coding it adds.

    Returns:
        The planes, of which the first one is zero, and what that one is once a frame is coded.
    """
    margin = MAGNITUDES.margin
    looks = np.pad(magnitude_looks(magnitudes), ((PAST, 0), (margin, margin)))
    planes = np.concatenate([np.zeros_like(looks[PAST:, None]), past_planes(looks)], axis=1)
    return planes, looks[PAST:]


def level_planes(
    levels: Int[np.ndarray, "U B"], magnitudes: Int[np.ndarray, "T F"]
) -> tuple[Planes, Int[np.ndarray, "N W"]]:
    """Makes the planes of all levels at once, as `magnitude_planes` does.

    Args:
        levels: Zeros where they are not known yet.
        magnitudes: Of the whole segment.
    """
    margin = LEVELS.margin
    n_rows = len(levels)
    planes = np.zeros((n_rows, LEVELS.n_planes, N_BANDS + 2 * margin), np.int64)
    own = slice(margin, margin + N_BANDS)
    looks = np.pad(LEVEL_LOOK * levels, ((LEVEL_PAST, 0), (0, 0)))
    for back in range(1, LEVEL_PAST + 1):
        planes[:, back, own] = looks[LEVEL_PAST - back : LEVEL_PAST - back + n_rows]
    means = (magnitude_looks(magnitudes), 64 * (magnitudes > 0))
    for i, mean in enumerate(_band_means(each) for each in means):
        padded = np.pad(mean, ((1, 1), (0, 0)))
        for j, shift in enumerate((1, 0, 2)):
            planes[:, (4, 6, 8)[j] + i, own] = padded[shift : shift + n_rows]
    present = np.zeros((n_rows, N_BANDS + 2 * margin), np.int64)
    present[:, own] = LEVEL_LOOK * levels
    return planes, present


def _band_means(plane: Int[np.ndarray, "T F"]) -> Int[np.ndarray, "U B"]:
    """Means over bands and `BAND_FRAMES` frames, rounded down."""
    padded = np.pad(plane, ((0, -len(plane) % BAND_FRAMES), (0, 0)))
    sums = np.add.reduceat(padded, BAND_EDGES[:-1], axis=1)
    sums = sums.reshape(-1, BAND_FRAMES, N_BANDS).sum(axis=1)
    return sums // (BAND_FRAMES * np.diff(BAND_EDGES))


def all_inputs(
    layout: Layout, planes: Planes, present: Int[np.ndarray, "N W"], rate: int
) -> list[Inputs]:
    """Gathers the inputs for each group where all symbols are known."""
    gathered = []
    planes = planes.copy()
    for group, own in enumerate(layout.padded_groups):
        gathered.append(layout.gather(planes, group, rate))
        planes[:, 0, own] = present[:, own]
    return gathered


def all_tables(
    model: ContextModel, layout: Layout, planes: Planes, present: Int[np.ndarray, "N W"], rate: int
) -> Int[np.ndarray, "N C"]:
    """Chooses the tables of all symbols where all are known, as a decoder does one by one."""
    tables = np.empty((len(planes), layout.n_columns), np.int64)
    for group, inputs in enumerate(all_inputs(layout, planes, present, rate)):
        tables[:, layout.groups[group]] = model.choose(group, inputs, layout.places[group])
    return tables


def check_model(name: str, model: ContextModel) -> None:
    """Refuses what is no model of a layout.

    Raises:
        ValueError: If shapes don't fit, or a table is none.
    """
    layout, n_symbols = LAYOUTS[name], N_SYMBOLS[name]
    hidden = model.second.shape if model.second.ndim == 2 else (0, 0)
    n_groups, n_tables = len(layout.order), len(np.atleast_1d(model.tables))
    expected = (
        (n_groups, layout.n_inputs, hidden[0]),
        (n_groups, layout.n_places, hidden[0]),
        hidden,
        hidden[1:],
        hidden[1:],
        (),
        (n_tables, n_symbols),
    )
    for part, array, shape in zip(model._fields, model, expected, strict=True):
        if array.shape != shape or 0 in shape:
            raise ValueError(f"{name}.{part} has the shape {array.shape}, not {shape}")
    if not _largest_sum(model) < 2.0**53:
        raise ValueError(f"{name} has weights too large to be exact")
    if (model.tables < 0).any() or (model.tables.sum(axis=1) != TOTAL - n_symbols).any():
        raise ValueError(f"{name}.tables are no tables of probabilities")


def _largest_sum(model: ContextModel) -> float:
    """Bounds all sums that choosing a table can meet."""
    first = _LARGEST_INPUT * np.abs(model.first).sum(1).max() + np.abs(model.first_bias).max()
    passed = first * 2.0 ** (ACTIVATION_BITS - WEIGHT_BITS)
    second = passed * np.abs(model.second).sum(0).max() + np.abs(model.second_bias).max()
    third = second * 2.0**-WEIGHT_BITS * np.abs(model.third).sum() + np.abs(model.third_bias)
    return float(max(first, second, third))


def save_models(path: Path, models: Mapping[str, ContextModel], about: Mapping[str, Any]) -> None:
    """Writes models to a ``.safetensors`` file and a card beside it."""
    tensors = {
        f"{name}.{part}": np.asarray(array, np.int32)
        for name, model in models.items()
        for part, array in model._asdict().items()
    }
    data = safetensors.numpy.save(tensors)
    atomic_write(path, data)
    card = {**about, "sha256": hashlib.sha256(data).hexdigest()}
    atomic_write(path.with_suffix(".json"), (json.dumps(card, indent=2) + "\n").encode())


def load_models(path: Path) -> dict[str, ContextModel]:
    """Reads what `save_models` wrote, or the models of a codec.

    Raises:
        OSError: If it can't be read.
        ValueError: If it holds no models.
    """
    names = {name: [f"{name}.{part}" for part in ContextModel._fields] for name in LAYOUTS}
    try:
        # The networks in a codec's file may be of types that NumPy lacks.
        with safetensors.safe_open(path, "numpy") as file:
            present = set(file.keys())
            if missing := [n for model in names.values() for n in model if n not in present]:
                raise ValueError(f"it lacks the tensor {missing[0]}")
            arrays = {name: [file.get_tensor(n) for n in model] for name, model in names.items()}
    except safetensors.SafetensorError as error:
        raise ValueError(f"it is no file of tensors: {error}") from error
    models = {}
    for name in LAYOUTS:
        models[name] = ContextModel(*(array.astype(np.float64) for array in arrays[name]))
        check_model(name, models[name])
    return models
