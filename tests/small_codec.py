"""A small codec for version 3 that stays as it is when the networks that ship are trained anew.

``python -m tests.small_codec`` writes it to ``tests/small_codec.safetensors``, by a rule that needs
no random numbers. Files of tests are made for these weights, and their bytes fit no others.
"""

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxsparse.codec.context import (
    LAYOUTS,
    N_SYMBOLS,
    TOTAL,
    ContextModel,
    check_model,
    load_models,
)

PATH = Path(__file__).parent / "small_codec.safetensors"
NAME = PATH.stem
# From nearly always zero to nearly anything.
_RATIOS = ((1, 256), (1, 24), (1, 6), (1, 3), (1, 2), (2, 3), (5, 6), (1, 1))
_N_LEVEL_TABLES = 6
_HIDDEN = (6, 4)


@functools.cache
def sha256() -> str:
    """Gives the SHA-256 of the file of weights."""
    return hashlib.sha256(PATH.read_bytes()).hexdigest()


@functools.cache
def models() -> Mapping[str, ContextModel]:
    """Reads the context models; needs no JAX."""
    return load_models(PATH)


def make_models() -> dict[str, ContextModel]:
    """Makes context models that expect more where there is more around."""
    made = {}
    for salt, (name, layout) in enumerate(LAYOUTS.items()):
        n_groups, n_inputs = len(layout.order), layout.n_inputs
        n_first, n_second = _HIDDEN
        # Weights have 16 binary places, and activations 8. Looks reach from 0 to 64, and on average
        # a third of them leads to the last table.
        first = _spread((n_groups, n_inputs, n_first), salt) + 0.5
        second = _spread((n_first, n_second), salt + 2) + 0.5
        third = _spread((n_second,), salt + 4) + 0.5
        tables = _magnitude_tables() if name == "magnitudes" else _level_tables()
        first, second = np.floor(first / n_inputs * 2**16), np.floor(second / n_first * 2**16)
        # Two units see so much of the rate that floats of 32 bits hold little else; what they pass
        # on is their difference.
        first[:, -1, :2], second[1] = 2**28, -second[0]
        made[name] = ContextModel(
            first,
            np.floor((_spread((n_groups, layout.n_places, n_first), salt + 6)) * 2**16),
            second,
            np.floor(_spread((n_second,), salt + 8) * 2**24),
            np.floor(third / n_second * len(tables) / 2 * 2**16),
            np.floor(np.float64(-0.1) * 2**24),
            tables,
        )
        check_model(name, made[name])
    return made


def make_params(expected: Any) -> Any:
    """Makes parameters of the shapes of `expected`."""
    import jax

    leaves, tree = jax.tree.flatten(expected)
    made = []
    for salt, leaf in enumerate(leaves):
        fan_in = max(int(np.prod(leaf.shape[:-1])), 1)
        made.append((_spread(leaf.shape, salt) * 2 / np.sqrt(fan_in)).astype(np.float32))
    return jax.tree.unflatten(tree, made)


def _spread(shape: tuple[int, ...], salt: int) -> np.ndarray:
    """Makes numbers from -1 to 1 that look random, the same ones everywhere."""
    x = np.arange(1, 1 + int(np.prod(shape)), dtype=np.uint64) + np.uint64(1_000_003 * (salt + 1))
    x = (x * np.uint64(2_654_435_761)) % np.uint64(2**32)
    x = ((x ^ (x >> np.uint64(15))) * np.uint64(2_246_822_519)) % np.uint64(2**32)
    return ((x >> np.uint64(16)).astype(np.float64) / 2**15 - 1).reshape(shape)


def _magnitude_tables() -> np.ndarray:
    rows = []
    for over, under in _RATIOS:
        row = [2**30]
        while len(row) < N_SYMBOLS["magnitudes"]:
            # What is not zero is rare, but not as small as that.
            num, den = (over, under) if len(row) == 1 else (max(4 * over, 3 * under), 4 * under)
            row.append(row[-1] * num // den)
        rows.append(row)
    return _normalise(rows)


def _level_tables() -> np.ndarray:
    n_levels = N_SYMBOLS["levels"]
    peaks = [k * (n_levels - 1) // (_N_LEVEL_TABLES - 1) for k in range(_N_LEVEL_TABLES)]
    return _normalise([[2**30 >> 2 * abs(i - peak) for i in range(n_levels)] for peak in peaks])


def _normalise(rows: list[list[int]]) -> np.ndarray:
    """Brings rows to the sum that tables have; the largest number takes what is left."""
    tables = []
    for row in rows:
        total = TOTAL - len(row)
        table = [each * total // sum(row) for each in row]
        table[row.index(max(row))] += total - sum(table)
        tables.append(table)
    return np.array(tables, np.float64)


def main() -> None:
    """Writes the codec."""
    import jax

    from jaxsparse.codec.weights import save_codec
    from jaxsparse.nn.mdct_unet import MDCTUNetConfig

    config = MDCTUNetConfig(features=(3, 4), encoder_features=(2, 2))
    params = make_params(jax.eval_shape(config.build().init, jax.random.key(0)))
    save_codec(PATH, params, config, make_models(), {"purpose": "tests"})


if __name__ == "__main__":
    main()
