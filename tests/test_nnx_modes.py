"""Flax's two ways to see a module: a graph, which may share parts, and a tree, which may not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxsparse.masks import random_mask
from jaxsparse.nn import sparse_cnn
from jaxsparse.nn.sparse_cnn import SparseCNN, SparseCNNConfig

CONFIG = SparseCNNConfig(kernel_sizes=(3, 3), features=2)
SHAPE = (21, 17)
MODES = {
    "graph with updates": (True, True),
    "graph": (True, False),
    "tree": (False, False),
}


def in_mode(name, run):
    graph, updates = MODES[name]
    with nnx.set_graph_mode(graph), nnx.set_graph_updates(updates):
        return run()


def examples():
    noise = np.random.default_rng(0).standard_normal((3, *SHAPE))
    masks = [random_mask(jax.random.key(i), SHAPE, 60) for i in range(3)]
    return jnp.asarray(-25 + 15 * noise, jnp.float32), jnp.stack(masks)


def numbers(built):
    """Parameters, outputs, outputs of a batch, and gradients, all from compiled functions."""
    spectrograms, masks = examples()
    params = jax.jit(built.init)(jax.random.key(7))

    def loss(params, spectrogram):
        return jnp.mean((built.apply(params, spectrogram, masks[0]) - spectrogram) ** 2)

    return {
        "params": params,
        "one": jax.jit(built.apply)(params, spectrograms[0], masks[0]),
        "batch": jax.jit(jax.vmap(built.apply, (None, 0, 0)))(params, spectrograms, masks),
        "gradients": jax.jit(jax.grad(loss, (0, 1)))(params, spectrograms[0]),
    }


# The cache would give what an earlier mode made.
build = sparse_cnn._build.__wrapped__


@pytest.fixture(scope="module")
def expected():
    return in_mode("graph with updates", lambda: numbers(build(CONFIG)))


@pytest.mark.parametrize(
    ("built_in", "used_in"),
    [
        pytest.param("graph", "graph", marks=pytest.mark.slow),
        pytest.param("tree", "tree", marks=pytest.mark.slow),
        pytest.param("graph with updates", "tree", marks=pytest.mark.slow),
        ("tree", "graph with updates"),
    ],
)
def test_modes_agree_bit_for_bit(built_in, used_in, expected):
    built = in_mode(built_in, lambda: build(CONFIG))
    found = in_mode(used_in, lambda: numbers(built))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    # ReLU may leave a channel without a gradient, but no layer.
    for layer in (*expected["gradients"][0]["hidden"].values(), expected["gradients"][1]):
        leaves = jax.tree.leaves(layer)
        assert all(np.isfinite(leaf).all() and np.any(leaf) for leaf in leaves)


def test_modes_differ_where_parts_are_shared():
    """Otherwise the test above would compare a mode with itself."""

    def split_shared():
        module = SparseCNN(CONFIG, rngs=nnx.Rngs(0))
        module.hidden[1].bias = module.hidden[0].bias
        return len(jax.tree.leaves(nnx.split(module)[1]))

    assert in_mode("graph", split_shared) == 5
    with pytest.raises(ValueError, match="share"):
        in_mode("tree", split_shared)
