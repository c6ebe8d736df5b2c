"""Context models: whole numbers alone, the same tables one by one as all at once."""

import numpy as np
import pytest

from jaxsparse.codec import context
from jaxsparse.codec.context import LAYOUTS, LEVELS, MAGNITUDES, check_model
from jaxsparse.codec.weights import load_codec
from jaxsparse.transforms.grid import BAND_EDGES, N_BANDS
from tests.mdct_files import make_segment

MODELS = load_codec().models


def every_table(name, segment):
    magnitudes = np.abs(segment.values.T)
    if name == "magnitudes":
        planes = context.magnitude_planes(magnitudes)
    else:
        planes = context.level_planes(segment.levels.T, magnitudes)
    return context.all_tables(MODELS[name], LAYOUTS[name], *planes, segment.rate)


@pytest.mark.parametrize("name", LAYOUTS)
def test_models_hold_whole_numbers_small_enough_to_be_exact(name):
    model = MODELS[name]
    assert all((array == np.rint(array)).all() for array in model)
    check_model(name, model)
    assert context._largest_sum(model) < 2**42
    huge = model._replace(second=model.second * 2.0**30)
    with pytest.raises(ValueError, match="too large to be exact"):
        check_model(name, huge)


@pytest.mark.parametrize("name", LAYOUTS)
def test_choosing_is_whole_number_arithmetic(name):
    """The same tables come from Python's own integers."""
    model, layout = MODELS[name], LAYOUTS[name]
    rng = np.random.default_rng(1)
    inputs = rng.integers(0, 65, (1, 3, layout.n_inputs)).astype(float)
    places = np.array([0, 1, layout.n_places - 1])
    first, bias, second, second_bias, third, third_bias, tables = (
        np.asarray(array).astype(int).tolist() for array in model
    )
    for group in range(len(layout.order)):
        chosen = model.choose(group, inputs, places)[0].tolist()
        for row, place, table in zip(inputs[0].astype(int).tolist(), places, chosen, strict=True):
            hidden = [
                max(b + sum(x * w[h] for x, w in zip(row, first[group], strict=True)), 0)
                >> context.WEIGHT_BITS - context.ACTIVATION_BITS
                for h, b in enumerate(bias[group][place])
            ]
            hidden = [
                max(b + sum(x * w[j] for x, w in zip(hidden, second, strict=True)), 0)
                >> context.WEIGHT_BITS
                for j, b in enumerate(second_bias)
            ]
            total = third_bias + sum(x * w for x, w in zip(hidden, third, strict=True))
            number = total >> context.WEIGHT_BITS + context.ACTIVATION_BITS
            assert table == min(max(number, 0), len(tables) - 1)


@pytest.mark.parametrize("name", LAYOUTS)
def test_tables_depend_on_what_is_coded_before_alone(name):
    layout = LAYOUTS[name]
    segment = make_segment()
    tables = every_table(name, segment)
    values = segment.values if name == "magnitudes" else segment.levels
    row = 9
    for group in range(len(layout.order)):
        changed = values.copy()
        columns = np.arange(layout.n_columns)
        later = np.isin(columns % len(layout.order), layout.order[group:])
        changed[later, row] = 3
        changed[:, row + 1 :] = 4
        fields = {"magnitudes": "values", "levels": "levels"}
        other = every_table(name, segment._replace(**{fields[name]: changed}))
        assert (other[:row] == tables[:row]).all()
        own = layout.groups[group]
        assert (other[row, own] == tables[row, own]).all()


def test_every_symbol_of_a_frame_is_in_one_group():
    for layout in LAYOUTS.values():
        columns = [np.arange(layout.n_columns)[group] for group in layout.groups]
        assert sorted(np.concatenate(columns)) == list(range(layout.n_columns))
        # The present row is seen only where another group is coded before.
        assert layout.margin <= BAND_EDGES[-1]
    assert (MAGNITUDES.n_columns, LEVELS.n_columns) == (BAND_EDGES[-1], N_BANDS)


def test_models_save_what_plain_counts_would_cost():
    """Speech-like magnitudes take less than by their own order-zero entropy."""
    segment = make_segment(200)
    magnitudes = np.minimum(np.abs(segment.values.T), context.N_MAGNITUDES - 1)
    tables = every_table("magnitudes", segment)
    bits = MODELS["magnitudes"].bits[tables, magnitudes].sum()
    counts = np.bincount(magnitudes.reshape(-1))
    counts = counts[counts > 0]
    assert bits < 0.7 * -(counts * np.log2(counts / counts.sum())).sum()


@pytest.mark.parametrize(
    ("part", "spoil"),
    [
        ("tables", lambda a: a + 1),
        ("tables", lambda a: -a),
        ("first", lambda a: a[:, :-1]),
        ("second", lambda a: a[0]),
        ("third_bias", lambda a: a[None]),
    ],
)
def test_what_is_no_model_is_refused(part, spoil):
    model = MODELS["levels"]
    with pytest.raises(ValueError, match=part if part != "second" else "levels"):
        check_model("levels", model._replace(**{part: spoil(getattr(model, part))}))


def test_models_are_saved_and_loaded(tmp_path):
    path = tmp_path / "models.safetensors"
    context.save_models(path, MODELS, {"data": "none"})
    loaded = context.load_models(path)
    for name, model in MODELS.items():
        assert all((a == b).all() for a, b in zip(model, loaded[name], strict=True))
