"""A segment of one channel on the MDCT grid, and the bytes that hold it.

Magnitudes come first, frame after frame, in the groups of `MAGNITUDES`; then the levels of the
bands, which see all of them; then escapes and signs. ``docs/format.md`` describes the bytes.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import constriction
import numpy as np
from jaxtyping import Int

from jaxsparse.codec.context import (
    LEVEL_LOOK,
    LEVEL_PAST,
    LEVELS,
    MAGNITUDES,
    N_MAGNITUDES,
    PAST,
    ContextModel,
    Layout,
    all_tables,
    level_planes,
    magnitude_looks,
    magnitude_planes,
    past_planes,
)
from jaxsparse.codec.entropy import Coder, Decoder, Encoder
from jaxsparse.errors import ContainerError
from jaxsparse.transforms.grid import BAND_FRAMES, N_BANDS

Models = Mapping[str, ContextModel]

MAX_ESCAPE_BITS = 20
"""Binary digits of an escape, the first one apart: magnitudes are less than 2^21 or so."""

# `perfect` changes the bytes, and its default has changed between releases of constriction.
_stream: Any = constriction.stream  # pyright: ignore[reportAttributeAccessIssue]
_CATEGORICAL = _stream.model.Categorical(perfect=False)
_BERNOULLI = _stream.model.Bernoulli(perfect=False)


class QuantizedSegment(NamedTuple):
    """What a file stores of one segment of one channel on the MDCT grid.

    Attributes:
        values: Coefficients in steps.
        levels: Of bands, see `jaxsparse.quantizer`.
        rate: The step over the active level, see `jaxsparse.quantizer.relative_step`.
    """

    values: Int[np.ndarray, "F T"]
    levels: Int[np.ndarray, "B U"]
    rate: int


class Cost(NamedTuple):
    """Bits of a segment's parts, as far as the models tell.

    Attributes:
        mask: Which coefficients are kept, that is not zero.
        magnitudes: Of those, up to the last symbol of the tables.
        levels: Of the bands.
        escapes: What magnitudes beyond that symbol take more.
        signs: One for each that is kept.
    """

    mask: float
    magnitudes: float
    levels: float
    escapes: int
    signs: int

    @property
    def total(self) -> float:
        """All bits."""
        return float(sum(self))


def is_silent(segment: QuantizedSegment) -> bool:
    """Whether nothing of a segment is heard: it is coded as no bytes."""
    return not (segment.values.any() or segment.levels.any())


def encode_segment(segment: QuantizedSegment, models: Models) -> bytes:
    """Codes a segment.

    Raises:
        ContainerError: If a magnitude is too large.
    """
    if is_silent(segment):
        return b""
    coder = Encoder()
    magnitudes = np.abs(segment.values.T)
    symbols = np.minimum(magnitudes, N_MAGNITUDES - 1)
    tables = _magnitude_tables(segment, models)
    _encode(coder, MAGNITUDES, symbols, models["magnitudes"].tables[tables])
    tables = _level_tables(segment, models)
    _encode(coder, LEVELS, segment.levels.T, models["levels"].tables[tables])
    _code_escapes(coder, magnitudes)
    _code_signs(coder, segment.values.T.copy())
    return coder.data()


def decode_segment(
    data: bytes | memoryview, n_frames: int, rate: int, models: Models
) -> QuantizedSegment:
    """Decodes what `encode_segment` wrote.

    Raises:
        ContainerError: If an encoder did not write that.
    """
    if not len(data):
        return silence(n_frames)
    coder = Decoder(data, "coefficients")
    magnitudes = _decode_magnitudes(coder, n_frames, rate, models["magnitudes"])
    levels = _decode_levels(coder, magnitudes, rate, models["levels"])
    _code_escapes(coder, magnitudes)
    values = magnitudes.copy()
    _code_signs(coder, values)
    coder.finish()
    segment = QuantizedSegment(values.T, levels.T, rate)
    if is_silent(segment):
        raise ContainerError("silence is not as an encoder writes it")
    return segment


def silence(n_frames: int) -> QuantizedSegment:
    """Returns a segment in which nothing is heard."""
    levels = np.zeros((N_BANDS, -(-n_frames // BAND_FRAMES)), np.int64)
    return QuantizedSegment(np.zeros((MAGNITUDES.n_columns, n_frames), np.int64), levels, 0)


def cost(segment: QuantizedSegment, models: Models) -> Cost:
    """Counts the bits that a segment takes, without coding it."""
    if is_silent(segment):
        return Cost(0.0, 0.0, 0.0, 0, 0)
    magnitudes = np.abs(segment.values.T)
    symbols = np.minimum(magnitudes, N_MAGNITUDES - 1)
    bits = {name: model.bits for name, model in models.items()}
    escapes = magnitudes[magnitudes >= N_MAGNITUDES - 1] - (N_MAGNITUDES - 2)
    tables = _magnitude_tables(segment, models)
    both = float(bits["magnitudes"][tables, symbols].sum())
    zero = bits["magnitudes"][:, 0]
    kept = -np.log2(-np.expm1(-np.log(2) * zero))
    mask = float(np.where(symbols, kept[tables], zero[tables]).sum())
    return Cost(
        mask,
        both - mask,
        float(bits["levels"][_level_tables(segment, models), segment.levels.T].sum()),
        sum(2 * int(each).bit_length() - 1 for each in escapes),
        int(np.count_nonzero(magnitudes)),
    )


def _magnitude_tables(segment: QuantizedSegment, models: Models) -> Int[np.ndarray, "T F"]:
    planes = magnitude_planes(np.abs(segment.values.T))
    return all_tables(models["magnitudes"], MAGNITUDES, *planes, segment.rate)


def _level_tables(segment: QuantizedSegment, models: Models) -> Int[np.ndarray, "U B"]:
    planes = level_planes(segment.levels.T, np.abs(segment.values.T))
    return all_tables(models["levels"], LEVELS, *planes, segment.rate)


def _encode(
    coder: Encoder, layout: Layout, symbols: Int[np.ndarray, "N C"], tables: np.ndarray
) -> None:
    """Codes all symbols in one call, in the order in which a decoder meets them."""
    order = np.concatenate([np.arange(layout.n_columns)[group] for group in layout.groups])
    coder(
        symbols[:, order].reshape(-1), _CATEGORICAL, tables[:, order].reshape(-1, tables.shape[2])
    )


def _decode_magnitudes(
    coder: Decoder, n_frames: int, rate: int, model: ContextModel
) -> Int[np.ndarray, "T F"]:
    margin = MAGNITUDES.margin
    magnitudes = np.zeros((n_frames, MAGNITUDES.n_columns), np.int64)
    looks = np.zeros((n_frames + PAST, MAGNITUDES.n_columns + 2 * margin), np.int64)
    planes = np.zeros((1, MAGNITUDES.n_planes, looks.shape[1]), np.int64)
    for frame in range(n_frames):
        planes[0, 0] = 0
        planes[0, 1:] = past_planes(looks[frame : frame + PAST + 1])[0]
        for group, own in enumerate(MAGNITUDES.padded_groups):
            symbols = _decode_group(coder, MAGNITUDES, group, planes, rate, model)
            magnitudes[frame, MAGNITUDES.groups[group]] = symbols
            planes[0, 0, own] = magnitude_looks(symbols)
        looks[frame + PAST] = planes[0, 0]
    return magnitudes


def _decode_levels(
    coder: Decoder, magnitudes: Int[np.ndarray, "T F"], rate: int, model: ContextModel
) -> Int[np.ndarray, "U B"]:
    levels = np.zeros((-(-len(magnitudes) // BAND_FRAMES), N_BANDS), np.int64)
    planes, _ = level_planes(levels, magnitudes)
    for row in range(len(levels)):
        for group, own in enumerate(LEVELS.padded_groups):
            symbols = _decode_group(coder, LEVELS, group, planes[row : row + 1], rate, model)
            levels[row, LEVELS.groups[group]] = symbols
            planes[row, 0, own] = LEVEL_LOOK * symbols
        for back in range(1, min(LEVEL_PAST + 1, len(levels) - row)):
            planes[row + back, back] = planes[row, 0]
    return levels


def _decode_group(
    coder: Decoder, layout: Layout, group: int, planes: np.ndarray, rate: int, model: ContextModel
) -> Int[np.ndarray, " M"]:
    inputs = layout.gather(planes, group, rate)
    tables = model.choose(group, inputs, layout.places[group])[0]
    return coder(tables, _CATEGORICAL, model.tables[tables]).astype(np.int64)


def _code_escapes(coder: Coder, magnitudes: Int[np.ndarray, "T F"]) -> None:
    """Codes by how much magnitudes are above the last symbol, or adds it to them (Elias gamma)."""
    least = N_MAGNITUDES - 1
    for place in np.flatnonzero(magnitudes >= least):
        rest = int(magnitudes.flat[place]) - least + 1
        n_bits = 0
        while _code_bit(coder, rest.bit_length() - 1 > n_bits):
            n_bits += 1
            if n_bits > MAX_ESCAPE_BITS:
                raise ContainerError("a magnitude is too large")
        value = 1
        for bit in reversed(range(n_bits)):
            value = 2 * value + _code_bit(coder, rest >> bit & 1)
        magnitudes.flat[place] = least + value - 1


def _code_bit(coder: Coder, bit: int) -> int:
    return int(coder(np.array([bit]), _BERNOULLI, np.array([0.5]))[0])


def _code_signs(coder: Coder, values: Int[np.ndarray, "T F"]) -> None:
    """Codes the signs of all values that are not zero, or gives them theirs."""
    places = np.flatnonzero(values)
    if len(places):
        negative = values.flat[places] < 0
        bits = coder(negative.astype(np.int64), _BERNOULLI, np.full(len(places), 0.5))
        values.flat[places] = np.abs(values.flat[places]) * (1 - 2 * bits)
