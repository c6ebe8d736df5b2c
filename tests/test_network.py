import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import scipy.ndimage
from flax import nnx
from jaxtyping import TypeCheckError

from jaxsparse.masks import count_observed, random_mask
from jaxsparse.nn.network import n_parameters
from jaxsparse.nn.sparse_cnn import SparseCNN, SparseCNNConfig, sparse_cnn

pytestmark = pytest.mark.usefixtures("strict_dtypes")

SHAPE = (41, 33)
GRADIENTS = ("auto", "native")
SMALL = SparseCNNConfig(kernel_sizes=(5, 3), features=3)
# All of the default's kernels, so that it sees as far, and a quarter of its features.
NARROW = SparseCNNConfig(features=4)
DB = 1e-4


def levels(shape=SHAPE, seed=0):
    """What speech is like: 15 dB of smooth up and down around -25 dB."""
    field = scipy.ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 2)
    return jnp.asarray(-25 + 15 * field / field.std(), jnp.float32)


def observed(shape=SHAPE, sparsity="0.9", seed=1):
    return random_mask(jax.random.key(seed), shape, count_observed(shape, sparsity))


def soft(shape=SHAPE):
    return jax.random.uniform(jax.random.key(2), shape)


def build(config, seed=0):
    network = sparse_cnn(config)
    return network, jax.jit(network.init)(jax.random.key(seed))


@pytest.fixture(scope="module")
def narrow():
    return build(NARROW)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (SparseCNNConfig(), 30_849),
        (
            SparseCNNConfig(features=24),
            (49 * 24 + 24) + (49 + 25 + 25 + 9 + 9) * 24 * 24 + 5 * 24 + (24 + 1),
        ),
        (SparseCNNConfig((5, 5, 3), 8), (25 * 8 + 8) + (25 * 64 + 8) + (9 * 64 + 8) + (8 + 1)),
        (SparseCNNConfig((1,), 1), 4),
    ],
)
def test_number_of_parameters(config, expected):
    params = jax.eval_shape(sparse_cnn(config).init, jax.random.key(0))
    assert n_parameters(params) == expected


@pytest.mark.slow
def test_halo_is_how_far_the_network_sees(narrow):
    network, params = narrow
    assert sparse_cnn().halo == network.halo == 12
    mask = jnp.ones(SHAPE, bool)
    run = jax.jit(network.apply)
    touched = run(params, levels().at[20, 16].add(30.0), mask) != run(params, levels(), mask)
    bins, frames = np.nonzero(touched)
    assert np.abs(bins - 20).max() == np.abs(frames - 16).max() == 12


@pytest.mark.parametrize("mask", [observed((14, 11)), soft((14, 11))], ids=["hard", "soft"])
def test_equals_the_loop(mask):
    network, params = build(SMALL, 3)
    params = jax.tree.map(lambda p: p + 0.1 * jnp.ones_like(p), params)  # biases that count
    spectrogram = levels((14, 11))
    expected = reference.network(params, spectrogram, mask, input_offset=-25, input_scale=15)

    @jax.jit
    def layers(params):
        graph = nnx.graphdef(nnx.eval_shape(lambda: SparseCNN(SMALL, rngs=nnx.Rngs(0))))
        return nnx.merge(graph, nnx.State(params)).layers(spectrogram, mask)

    for ours, theirs in zip(layers(params), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
    completed = jax.jit(network.apply)(params, spectrogram, mask)
    np.testing.assert_allclose(completed, expected[-1], atol=1e-5 * np.abs(expected[-1]).max())


@pytest.fixture(scope="module")
def deviations():
    """Of every hidden layer's outputs, by sparsity; and each layer's share of living channels."""
    config = SparseCNNConfig()
    shape = (96, 64)

    @jax.jit
    def measure(mask):
        outputs = SparseCNN(config, rngs=nnx.Rngs(0)).layers(levels(shape), mask)[:-1]
        alive = [jnp.any(x > 0, axis=(0, 1)).mean() for x in outputs]
        return jnp.stack([x.std() for x in outputs]), jnp.stack(alive)

    return {s: measure(observed(shape, s)) for s in ("0.8", "0.9", "0.95", "0.99")}


@pytest.mark.slow
@pytest.mark.parametrize("sparsity", ["0.8", "0.9", "0.95", "0.99"])
def test_activations_neither_die_nor_explode(deviations, sparsity):
    """They start at 1, and no layer halves or doubles them at 80 to 95 %.

    At 99 % they do grow, two to three times a layer and to about 100: windows at the borders of
    holes hold one or two observed inputs, which then weigh too much. No bound on the whole there.
    """
    by_layer, alive = deviations[sparsity]
    low, high = (0.1, float("inf")) if sparsity == "0.99" else (0.1, 5.0)
    assert low < by_layer.min() and by_layer.max() < high, by_layer
    growth = by_layer[1:] / by_layer[:-1]
    assert growth.min() > 0.4 and growth.max() < (4.0 if sparsity == "0.99" else 2.0), growth
    assert alive.min() >= 0.5


def test_init_and_apply_are_pure():
    network, params = build(SMALL)
    _, again = build(SMALL)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    _, other = build(SMALL, 1)
    assert jnp.any(other["output"]["kernel"] != params["output"]["kernel"])
    before = jax.tree.map(jnp.copy, params)
    run = jax.jit(network.apply)
    first = run(params, levels(), observed())
    np.testing.assert_array_equal(run(params, levels(), observed()), first)
    jax.tree.map(np.testing.assert_array_equal, params, before)


def test_the_same_settings_give_the_same_functions():
    assert sparse_cnn(SparseCNNConfig()) is sparse_cnn(SparseCNNConfig())
    assert sparse_cnn() is sparse_cnn(SparseCNNConfig()) is sparse_cnn(config=SparseCNNConfig())
    assert sparse_cnn().apply is not sparse_cnn(NARROW).apply


@pytest.mark.slow
def test_vmap_equals_loop_and_both_kernel_gradients_agree():
    networks = {g: sparse_cnn(SparseCNNConfig((5, 3), 3, kernel_gradient=g)) for g in GRADIENTS}
    _, params = build(SMALL)
    spectrograms = jnp.stack([levels(seed=s) for s in range(3)])
    masks = jnp.stack([observed(seed=s) for s in range(3)])

    def losses(params, kernel_gradient):
        apply = networks[kernel_gradient].apply
        completed = jax.vmap(apply, in_axes=(None, 0, 0))(params, spectrograms, masks)
        return jnp.mean((completed - spectrograms) ** 2), completed

    differentiate = jax.jit(jax.grad(losses, has_aux=True), static_argnums=1)
    ours, completed = differentiate(params, "auto")
    native, _ = differentiate(params, "native")
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(native), strict=True):
        assert a.any()
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
    run = jax.jit(networks["auto"].apply)
    for i in range(3):
        np.testing.assert_allclose(completed[i], run(params, spectrograms[i], masks[i]), atol=DB)


def test_what_is_hidden_changes_nothing(narrow):
    network, params = narrow
    run = jax.jit(network.apply)
    expected = run(params, levels(), observed())
    for junk in (jnp.nan, jnp.inf, 1e30):
        hidden = jnp.where(observed(), levels(), junk)
        np.testing.assert_array_equal(run(params, hidden, observed()), expected)
    nothing = run(params, levels(), jnp.zeros(SHAPE, bool))
    assert jnp.isfinite(nothing).all()
    assert jnp.ptp(nothing) == 0, "biases alone, the same everywhere"


def test_bfloat16(narrow):
    network, params = narrow
    run = jax.jit(network.apply)
    low = run(params, levels().astype(jnp.bfloat16), observed())
    assert low.dtype == jnp.bfloat16
    exact = run(params, levels(), observed())
    assert jnp.abs(low.astype(jnp.float32) - exact).max() < 0.05 * jnp.ptp(exact)


def test_soft_masks_have_gradients_through_the_network():
    network, params = build(SMALL)
    gradient = jax.jit(jax.grad(lambda m: jnp.mean(network.apply(params, levels(), m) ** 2)))
    of_soft = gradient(soft())
    assert jnp.isfinite(of_soft).all() and (of_soft != 0).mean() > 0.99
    of_binary = gradient(jnp.ones(SHAPE).at[::2].set(0.0))
    assert jnp.isfinite(of_binary).all() and (of_binary != 0).mean() > 0.99


@pytest.fixture(scope="module", params=["hard", "soft"])
def plain(request, narrow):
    """A mask and what the plain call makes of it."""
    network, params = narrow
    mask = observed() if request.param == "hard" else soft()
    completed = jax.jit(network.apply)(params, levels(), mask)
    assert 10 < jnp.ptp(completed) < 1000, "tens of dB, so that 1e-4 dB means something"
    return mask, np.asarray(completed)


@pytest.mark.parametrize(
    "pads",
    [
        *(pytest.param(p, marks=pytest.mark.slow) for p in [((0, 0), (0, 31)), ((0, 7), (0, 15))]),
        ((4, 3), (12, 3)),
    ],
)
def test_padded_equals_plain(narrow, plain, pads):
    network, params = narrow
    mask, expected = plain
    valid = jnp.pad(jnp.ones(SHAPE, bool), pads)
    # What padding holds doesn't count.
    around = jnp.pad(levels(), pads, constant_values=1e6), jnp.pad(mask, pads, constant_values=1)
    padded = jax.jit(network.apply)(params, *around, valid)
    inner = padded[pads[0][0] :, pads[1][0] :][: SHAPE[0], : SHAPE[1]]
    np.testing.assert_allclose(inner, expected, atol=DB)


@pytest.mark.parametrize("plain", ["hard"], indirect=True)
def test_without_validity_padding_leaks_in(narrow, plain):
    network, params = narrow
    mask, expected = plain
    pads = ((0, 7), (0, 15))
    run = jax.jit(network.apply)
    leaking = run(params, jnp.pad(levels(), pads), jnp.pad(mask, pads))[:41, :33]
    error = np.abs(np.asarray(leaking) - expected)
    assert error[-1].max() > 1 and error[:, -1].max() > 1
    # As far as the network sees.
    assert error[: 41 - 12, : 33 - 12].max() < DB


@pytest.mark.parametrize("sizes", [(7, 4), (0,), (-3,), ()])
def test_refuses_kernels_without_a_centre(sizes):
    with pytest.raises(ValueError, match="odd"):
        sparse_cnn(SparseCNNConfig(kernel_sizes=sizes))


def test_wrong_ranks_and_shapes_are_refused():
    network, params = build(SMALL)
    for spectrogram, mask in (
        (levels()[None], observed()[None]),
        (levels()[0], observed()[0]),
        (levels(), observed((41, 32))),
        (levels(), observed().astype(jnp.int32)),
        (levels().astype(jnp.int32), observed()),
    ):
        with pytest.raises(TypeCheckError):
            network.apply(params, spectrogram, mask)
