"""What a quantized MDCT costs, on the device and with a gradient: for searches and for training.

The tables are those that the context models choose for the values as they are rounded; with them
fixed, the cost of a value between two whole numbers is interpolated. Sums are in single precision
here, so that now and then a table is the next one: coding itself is done by
`jaxsparse.codec.context`.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxsparse.codec import context
from jaxsparse.codec.context import LEVELS, MAGNITUDES, ContextModel, Layout
from jaxsparse.quantizer import Coded, sum_bands
from jaxsparse.transforms.grid import BAND_EDGES, BAND_FRAMES

Models = Mapping[str, ContextModel]
Planes = Float[Array, "N C R"]


def choose_tables(
    models: Models, coded: Coded, rate: Float[Array, ""] | float
) -> tuple[Int[Array, "F T"], Int[Array, "B U"]]:
    """Chooses the tables of all magnitudes and levels.

    Args:
        models: Of magnitudes and levels.
        coded: Whole numbers, as integers or floats.
        rate: Of the step over the active level.
    """
    magnitudes = jnp.abs(coded.values.T).astype(jnp.int32)
    levels = coded.levels.T.astype(jnp.float32)
    looks = jnp.asarray(context.LOOKS, jnp.float32)[jnp.minimum(magnitudes, len(context.LOOKS) - 1)]
    of_magnitudes = _choose(models["magnitudes"], MAGNITUDES, *_magnitude_planes(looks), rate)
    planes = _level_planes(levels, looks, magnitudes)
    return of_magnitudes.T, _choose(models["levels"], LEVELS, *planes, rate).T


def bits(
    models: Models, coded: Coded, tables: tuple[Int[Array, "F T"], Int[Array, "B U"]]
) -> tuple[Float[Array, "F T"], Float[Array, "B U"]]:
    """Returns what each value, with its sign, and each level costs by its table.

    Args:
        models: Of magnitudes and levels.
        coded: Whole numbers, or values in between.
        tables: What `choose_tables` chose.
    """
    magnitudes = jnp.abs(coded.values.astype(jnp.float32))
    values = _interpolate(models["magnitudes"], tables[0], magnitudes)
    rest = jnp.maximum(magnitudes - (context.N_MAGNITUDES - 1), 0)
    values += jnp.minimum(magnitudes, 1) + jnp.minimum(magnitudes, 1) * 2 * jnp.log2(1 + rest)
    return values, _interpolate(models["levels"], tables[1], coded.levels.astype(jnp.float32))


def total_bits(
    models: Models,
    coded: Coded,
    tables: tuple[Int[Array, "F T"], Int[Array, "B U"]],
    valid: Bool[Array, "F T"],
) -> Float[Array, ""]:
    """Returns the bits of all values and levels of a clip, leaving out what only pads it.

    Args:
        models: Of magnitudes and levels.
        coded: Whole numbers, or values in between.
        tables: What `choose_tables` chose.
        valid: False in frames that only pad.
    """
    values, levels = bits(models, coded, tables)
    exists = sum_bands(valid.astype(jnp.float32)) > 0
    return jnp.sum(values * valid) + jnp.sum(levels * exists)


def _interpolate(
    model: ContextModel, tables: Int[Array, "R C"], symbols: Float[Array, "R C"]
) -> Float[Array, "R C"]:
    costs = jnp.asarray(model.bits, jnp.float32)
    last = costs.shape[1] - 1
    symbols = jnp.clip(symbols, 0, last)
    lower = jnp.minimum(jnp.floor(symbols).astype(jnp.int32), last - 1)
    share = symbols - lower
    return (1 - share) * costs[tables, lower] + share * costs[tables, lower + 1]


def _choose(
    model: ContextModel,
    layout: Layout,
    planes: Planes,
    present: Float[Array, "N C"],
    rate: Float[Array, ""] | float,
) -> Int[Array, "N C"]:
    n_columns, n_groups = layout.n_columns, len(layout.order)
    tables = jnp.zeros((len(planes), n_columns), jnp.int32)
    for group in range(n_groups):
        columns = layout.groups[group]
        known = np.isin(np.arange(n_columns) % n_groups, layout.order[:group])
        seen = planes.at[..., 0].set(present * known[None])
        x = _first_layer(model, layout, group, seen)
        bias = model.first_bias[group][layout.places[group]] / 2.0**context.WEIGHT_BITS
        last = model.first[group][-1] / 2.0**context.WEIGHT_BITS
        told = jnp.asarray(bias, x.dtype) + rate * jnp.asarray(last, x.dtype)[None]
        x = jax.nn.relu(x + told[None])
        weight, activation = 2.0**context.WEIGHT_BITS, 2.0**context.ACTIVATION_BITS
        x = x @ jnp.asarray(model.second / weight, x.dtype)
        own = jnp.asarray(model.second_bias / (weight * activation), x.dtype)
        x = jax.nn.relu(x + own[None, None])
        x = x @ jnp.asarray(model.third / weight, x.dtype)
        place = jnp.floor(x + float(model.third_bias) / (weight * activation))
        place = jnp.clip(place, 0, len(model.tables) - 1).astype(jnp.int32)
        tables = tables.at[:, columns].set(place)
    return tables


def _first_layer(
    model: ContextModel, layout: Layout, group: int, planes: Planes
) -> Float[Array, "N M H"]:
    """Applies the first layer as a convolution over columns."""
    margin, step = layout.margin, len(layout.order)
    kernel = np.zeros((2 * margin + 1, planes.shape[2], model.first.shape[2]))
    for weights, (plane, offset) in zip(model.first[group], layout.offsets, strict=False):
        kernel[margin + offset, plane] += weights / 2.0**context.WEIGHT_BITS
    start = layout.order[group]
    padding = (margin - start, margin + start)
    return lax.conv_general_dilated(
        planes,
        jnp.asarray(kernel, planes.dtype),
        (step,),
        (padding,),
        dimension_numbers=("NWC", "WIO", "NWC"),
    )[:, : len(range(layout.n_columns)[layout.groups[group]])]


def _magnitude_planes(looks: Float[Array, "T F"]) -> tuple[Planes, Float[Array, "T F"]]:
    n_frames = len(looks)
    padded = jnp.pad(looks, ((context.PAST, 0), (0, 0)))
    planes = [jnp.zeros_like(looks)]
    planes += [padded[context.PAST - back :][:n_frames] for back in range(1, 5)]
    for n_past, reach, shift in context.SUMS:
        sums = sum(padded[context.PAST - back :][:n_frames] for back in range(1, n_past + 1))
        window = (1, 2 * reach + 1)
        sums = lax.reduce_window(sums, 0.0, lax.add, window, (1, 1), "SAME")
        planes.append(jnp.floor(sums / 2**shift))
    return jnp.stack(planes, axis=-1), looks


def _level_planes(
    levels: Float[Array, "U B"], looks: Float[Array, "T F"], magnitudes: Int[Array, "T F"]
) -> tuple[Planes, Float[Array, "U B"]]:
    present = context.LEVEL_LOOK * levels
    planes = [jnp.zeros_like(present)]
    for back in range(1, context.LEVEL_PAST + 1):
        planes.append(jnp.pad(present, ((back, 0), (0, 0)))[: len(present)])
    sizes = jnp.asarray(BAND_FRAMES * np.diff(BAND_EDGES), jnp.float32)
    means = [
        jnp.floor(sum_bands(plane.T).T / sizes[None])
        for plane in (looks, 64.0 * (magnitudes > 0).astype(jnp.float32))
    ]
    planes += means
    planes += [jnp.pad(mean, ((1, 0), (0, 0)))[:-1] for mean in means]
    planes += [jnp.pad(mean, ((0, 1), (0, 0)))[1:] for mean in means]
    return jnp.stack(planes, axis=-1), present
