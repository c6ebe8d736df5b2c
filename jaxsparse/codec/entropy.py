"""Entropy coding of the parts of a segment: a range coder, and what it expects of each symbol.

Every model is adaptive: it is updated from what is coded already, by integer arithmetic or by
single IEEE operations, so that encoder and decoder agree exactly on any machine. The same function
encodes and decodes. Arrays are [T, F] here, coded frame after frame. ``docs/format.md`` says the
same in words.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple, TypeAlias

import constriction
import numpy as np
from jaxtyping import Bool, Int

from jaxsparse.errors import ContainerError

# `perfect` changes the bytes, and its default has changed between releases of constriction.
_stream: Any = constriction.stream  # pyright: ignore[reportAttributeAccessIssue]
_BERNOULLI = _stream.model.Bernoulli(perfect=False)
_CATEGORICAL = _stream.model.Categorical(perfect=False)


class Encoder:
    """Range coder; called with symbols and their model, it gives the symbols back."""

    def __init__(self) -> None:
        self._coder = _stream.queue.RangeEncoder()

    def __call__(self, symbols: np.ndarray, model: object, *parameters: np.ndarray) -> np.ndarray:
        """Encodes symbols."""
        self._coder.encode(symbols.astype(np.int32), model, *parameters)
        return symbols

    def data(self) -> bytes:
        """Gives the bytes of what was encoded so far."""
        return self._coder.get_compressed().astype("<u4").tobytes()


class Decoder:
    """The inverse of `Encoder`: of the symbols only the number counts.

    It encodes again what it decodes. A range coder reads zeros behind the end of its data and
    doesn't miss what is cut off, so that only equal bytes show that an encoder wrote them.
    """

    def __init__(self, data: bytes | memoryview, name: str) -> None:
        if len(data) % 4:
            raise ContainerError(f"the {name} part has {len(data)} bytes, not a multiple of 4")
        self._coder = _stream.queue.RangeDecoder(np.frombuffer(data, "<u4").astype(np.uint32))
        self._again = Encoder()
        self._data = data
        self._name = name

    def __call__(self, symbols: np.ndarray, model: object, *parameters: np.ndarray) -> np.ndarray:
        """Decodes as many symbols as are given.

        Raises:
            ContainerError: If the data can't be those of an encoder.
        """
        try:
            decoded = self._coder.decode(model, *(parameters or (len(symbols),)))
        except AssertionError as error:
            raise ContainerError(f"the {self._name} part can't be decoded") from error
        return self._again(decoded, model, *parameters)

    def finish(self) -> None:
        """Refuses data that an encoder of the same symbols would not have written.

        Raises:
            ContainerError: If there are more bytes, fewer or others.
        """
        expected = self._again.data()
        if len(self._data) > len(expected):
            raise ContainerError(f"the {self._name} part is longer than what it codes")
        if self._data != expected:
            raise ContainerError(f"the {self._name} part is not as an encoder writes it")


Coder: TypeAlias = Encoder | Decoder


class _Pass(NamedTuple):
    """Rows that are coded together; a later pass knows the rows between which it lies.

    Attributes:
        start: First row.
        step: Rows from row to row.
        neighbours: Groups of (frame, row) offsets; of each group the ones are counted.
    """

    start: int
    step: int
    neighbours: tuple[tuple[tuple[int, int], ...], ...]


def _between(start: int) -> _Pass:
    below, above = -start, start
    return _Pass(
        start,
        2 * start,
        (
            ((-1, 0),),
            ((0, below),),
            ((0, above),),
            ((1, below), (1, above)),
            ((-1, below), (-1, above)),
        ),
    )


_PASSES = (
    _Pass(0, 4, (((-1, 0),), ((-2, 0),), ((-1, -4), (-1, 4)))),
    _between(2),
    _between(1),
)
_MARGIN = 4
_BANDS = 4
_PRIOR = 8


def code_bitmap(
    coder: Coder,
    bitmap: Bool[np.ndarray, "T F"],
    hint: Int[np.ndarray, "T F"] | None,
    density: Fraction,
) -> None:
    """Codes a bitmap, or decodes into it.

    The probability of a one comes from counts of how often it was one in the same context (coded
    neighbours and hint) and frequency band. A context that was rarely seen in its band leans on
    the other bands, and one rarely seen at all on the whole bitmap: that keeps uniform bitmaps
    near their entropy.

    Args:
        coder: Encoder or decoder.
        bitmap: To encode, or to fill.
        hint: What else is known of each bin, 0 to 2.
        density: Expected share of ones.
    """
    n_frames, n_bins = bitmap.shape
    coded = np.zeros((n_frames + 2 * _MARGIN, n_bins + 2 * _MARGIN), np.int64)
    total, ones = 2.0 * _PRIOR, 2.0 * _PRIOR * density.numerator / density.denominator
    for start, step, neighbours in _PASSES:
        rows = np.arange(start, n_bins, step)
        if not len(rows):
            continue
        band = rows * _BANDS // n_bins
        own = _columns(rows, 0)
        groups = [[(dt, _columns(rows, df)) for dt, df in group] for group in neighbours]
        n_contexts = 3 * int(np.prod([len(group) + 1 for group in groups]))
        seen = np.zeros((2, n_contexts, _BANDS))
        for t in range(n_frames):
            context = np.zeros(len(rows), np.int64) if hint is None else hint[t, start::step]
            for group in groups:
                context = context * (len(group) + 1)
                for dt, columns in group:
                    context += coded[t + dt + _MARGIN, columns]
            p = (seen[1].sum(1)[context] + _PRIOR * ones / total) / (
                seen[0].sum(1)[context] + _PRIOR
            )
            p = (seen[1, context, band] + _PRIOR * p) / (seen[0, context, band] + _PRIOR)
            bits = coder(bitmap[t, start::step], _BERNOULLI, np.clip(p, 2**-16, 1 - 2**-16))
            bitmap[t, start::step] = bits
            coded[t + _MARGIN, own] = bits
            place = context * _BANDS + band
            for counts, which in zip(seen, (place, place[bits == 1]), strict=True):
                counts += np.bincount(which, minlength=counts.size).reshape(counts.shape)
            total, ones = total + len(rows), ones + np.count_nonzero(bits)


def _columns(rows: Int[np.ndarray, " R"], offset: int) -> slice:
    """Where evenly spaced rows, shifted by `offset`, lie within the margin."""
    shift = _MARGIN + offset
    step = int(rows[1] - rows[0]) if len(rows) > 1 else 1
    return slice(int(rows[0]) + shift, int(rows[-1]) + shift + 1, step)


# What a neighbour at (frame, row) distance d says about a level, by d^2 + 0.3 to the power -1.5:
# only IEEE operations, hence the same everywhere.
_REACH = 6
_UNIT = 4096
_SQUARES = np.arange(-_REACH, _REACH + 1) ** 2
_DISTANCES = np.add.outer(_SQUARES, _SQUARES).reshape(-1) + 0.3
_WEIGHTS = np.floor(_UNIT / (_DISTANCES * np.sqrt(_DISTANCES))).astype(np.int64)
_CONFIDENCES = np.array([_UNIT * share // 100 for share in (3, 10, 30, 100, 300)])
_MEAN_WEIGHT = _UNIT // 50


class LevelClass(NamedTuple):
    """Bins whose levels are coded together.

    Attributes:
        bins: Which ones.
        low: No level of theirs is lower.
        high: No level of theirs is higher.
    """

    bins: Bool[np.ndarray, "T F"]
    low: int
    high: int


def code_levels(
    coder: Coder,
    levels: Int[np.ndarray, "T F"],
    classes: Sequence[LevelClass],
    step_mdb: int,
) -> None:
    """Codes levels, or decodes into them, one class after the other.

    Args:
        coder: Encoder or decoder.
        levels: To encode, or to fill; 0 or above, in steps of the quantizer.
        classes: Of the bins; what is known of an earlier class predicts the later ones too.
        step_mdb: Step of the quantizer in thousandths of a dB.
    """
    n_frames, n_bins = levels.shape
    known = np.zeros((2, n_frames + 2 * _REACH, n_bins + 2 * _REACH), np.int64)
    for level_class in classes:
        _code_class(coder, levels, level_class, known, step_mdb)


def _code_class(
    coder: Coder,
    levels: Int[np.ndarray, "T F"],
    level_class: LevelClass,
    known: Int[np.ndarray, "2 T_padded F_padded"],
    step_mdb: int,
) -> None:
    """Codes the levels of one class; `known` says which levels are coded, and what they are.

    Each is predicted by a weighted mean of the known levels around it. How far levels lie from
    their predictions is counted separately by how much was known.
    """
    mask, low, high = level_class
    n_frames, n_bins = mask.shape
    inner = known[:, _REACH : _REACH + n_frames, _REACH : _REACH + n_bins]
    flat = known.reshape(2, -1)
    reach = np.arange(-_REACH, _REACH + 1)
    offsets = np.add.outer(reach * known.shape[2], reach).reshape(-1)
    total, count = 2 * (low + high), 4
    for start, step, _ in _PASSES:
        spread = _Spread(step_mdb, low, high)
        for t in range(n_frames):
            rows = start + step * np.flatnonzero(mask[t, start::step])
            if not len(rows):
                continue
            centres = (t + _REACH) * known.shape[2] + rows + _REACH
            evidence, weighted = flat[:, centres[:, None] + offsets] @ _WEIGHTS
            mean = total // count
            above = 2 * (weighted + _MEAN_WEIGHT * mean) + evidence + _MEAN_WEIGHT
            prediction = np.clip(above // (2 * (evidence + _MEAN_WEIGHT)), low, high)
            confidence = np.searchsorted(_CONFIDENCES, evidence, side="right")
            symbols = spread.code(coder, levels[t, rows], prediction, confidence)
            levels[t, rows] = symbols
            inner[0, t, rows], inner[1, t, rows] = 1, symbols
            total, count = total + int(symbols.sum()), count + len(rows)


class _Spread:
    """Counts of how far levels lie from their predictions, for each confidence."""

    def __init__(self, step_mdb: int, low: int, high: int) -> None:
        self._low, self._span = low, high - low
        # Long-tailed, 6 dB wide; an observation outweighs an eighth of it.
        distance = np.arange(-self._span, self._span + 1) * step_mdb / 6000
        tail = 1 + distance * distance
        start = 1 + np.floor(_UNIT / (tail * np.sqrt(tail))).astype(np.int64)
        self._counts = np.tile(start, (len(_CONFIDENCES) + 1, 1))
        half = min(1500 // step_mdb, 8)
        self._around = np.arange(-half, half + 1)
        kernel = half + 1 - np.abs(self._around)
        self._kernel = kernel * max(int(start.sum()) // (8 * int(kernel.sum())), 1)

    def code(
        self,
        coder: Coder,
        levels: Int[np.ndarray, " K"],
        prediction: Int[np.ndarray, " K"],
        confidence: Int[np.ndarray, " K"],
    ) -> Int[np.ndarray, " K"]:
        """Codes the levels of one frame, then counts them."""
        if self._span == 0:
            return np.full(len(levels), self._low)
        shift = self._span - (prediction - self._low)
        columns = shift[:, None] + np.arange(self._span + 1)
        table = self._counts[confidence[:, None], columns].astype(np.float64)
        symbols = coder(levels - self._low, _CATEGORICAL, table)
        places = np.clip((shift + symbols)[:, None] + self._around, 0, 2 * self._span)
        np.add.at(self._counts, (confidence[:, None], places), self._kernel)
        return symbols + self._low


def code_phases(
    coder: Coder,
    phases: Int[np.ndarray, "T F"],
    mask: Bool[np.ndarray, "T F"],
    bits: int,
) -> None:
    """Codes stored phases, or decodes into `phases`.

    Phases are uniform, to a good approximation; counts make those of digital silence, all zero,
    cost nothing.
    """
    counts = np.full(2**bits, 32)
    for t in range(len(mask)):
        model = _stream.model.Categorical(counts.astype(np.float64), perfect=False)
        if mask[t].any():
            symbols = coder(phases[t, mask[t]], model)
            phases[t, mask[t]] = symbols
            counts += np.bincount(symbols, minlength=len(counts))
