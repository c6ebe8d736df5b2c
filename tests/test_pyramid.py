"""The pyramid fill, and the U-Net over it, against slow references and at their limits."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from jax.test_util import check_grads

from jaxsparse.masks import count_observed, random_mask
from jaxsparse.nn.conv import conv
from jaxsparse.nn.network import n_parameters
from jaxsparse.nn.pyramid import PyramidConfig, fill
from jaxsparse.nn.pyramid_unet import PyramidUNetConfig
from jaxsparse.pretrained import load_pretrained

pytestmark = pytest.mark.usefixtures("strict_dtypes")

SHAPE = (41, 33)
UNET = PyramidUNetConfig(features=(4, 6))
compiled_fill = jax.jit(fill, static_argnames="config")


def levels(shape=SHAPE, seed=0):
    """What speech is like: 15 dB of smooth up and down around -25 dB."""
    field = scipy.ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 2)
    return jnp.asarray(-25 + 15 * field / max(field.std(), 1e-3), jnp.float32)


def kept(shape=SHAPE, sparsity="0.9", seed=1):
    return random_mask(jax.random.key(seed), shape, count_observed(shape, sparsity))


def odd_masks(shape=SHAPE):
    """Masks that no policy makes."""
    empty = np.zeros(shape, bool)
    one, corner, hole = empty.copy(), empty.copy(), ~empty
    one[20, 10] = True
    corner[:5, :4] = True
    hole[3:39, 2:30] = False
    return {"empty": empty, "one": one, "corner": corner, "hole": hole, "all": ~empty}


each_odd = pytest.mark.parametrize("mask", odd_masks().values(), ids=odd_masks())


def slow_fill(values, weights, exists, time_levels, n_levels, prior):
    """The fill, level by level and cell by cell, in double precision.

    Args:
        values: dB of one level.
        weights: How much is known of each.
        exists: Whether each is part of the spectrogram.
        time_levels: Levels from here on that halve the frames.
        n_levels: Levels from here on.
        prior: Of what nothing is known.
    """
    if n_levels == 0:
        return weights * values + (1 - weights) * prior
    height, width = values.shape
    step = 2 if time_levels > 0 else 1
    shape = (-(-height // 2), -(-width // step))
    coarse, own, there = (np.zeros(shape) for _ in range(3))
    for i in range(shape[0]):
        for j in range(shape[1]):
            cell = np.s_[2 * i : 2 * i + 2, step * j : step * j + step]
            known = weights[cell].sum()
            coarse[i, j] = (weights[cell] * values[cell]).sum() / known if known > 0 else 0
            own[i, j], there[i, j] = min(known, 1), exists[cell].any()
    filled = slow_fill(coarse, own, there, time_levels - 1, n_levels - 1, prior)
    result = np.empty_like(values)
    for f in range(height):
        for t in range(width):
            # The own cell's centre is a quarter of a cell away, the next one's three quarters.
            rows = [(f // 2, 0.75), (f // 2 + (1 if f % 2 else -1), 0.25)]
            columns = [(t // 2, 0.75), (t // 2 + (1 if t % 2 else -1), 0.25)]
            total = weight = 0.0
            for i, a in rows:
                for j, b in columns if step == 2 else [(t, 1.0)]:
                    if 0 <= i < shape[0] and 0 <= j < shape[1] and there[i, j]:
                        total, weight = total + a * b * filled[i, j], weight + a * b
            around = total / weight if weight else 0.0
            result[f, t] = weights[f, t] * values[f, t] + (1 - weights[f, t]) * around
    return result


@pytest.mark.parametrize(
    "shape",
    [
        (41, 33),
        (1, 1),
        *(pytest.param(s, marks=pytest.mark.slow) for s in [(2, 5), (64, 16), (17, 50)]),
    ],
)
@pytest.mark.parametrize("soft", [False, True])
def test_fill_agrees_with_a_slow_reference(shape, soft, key):
    x = levels(shape)
    mask = jax.random.uniform(key, shape) ** 4 if soft else kept(shape)
    weights = np.asarray(mask, np.float64)
    expected = slow_fill(np.asarray(x, np.float64), weights, np.ones(shape, bool), 4, 11, -25.0)
    np.testing.assert_allclose(compiled_fill(x, mask), expected, atol=1e-4)


@each_odd
def test_fill_of_odd_masks_agrees_with_a_slow_reference(mask):
    x = levels()
    config = PyramidConfig(levels=4, time_levels=2)
    weights = mask.astype(np.float64)
    expected = slow_fill(np.asarray(x, np.float64), weights, np.ones(SHAPE, bool), 2, 4, -25.0)
    np.testing.assert_allclose(
        compiled_fill(x, jnp.asarray(mask), config=config), expected, atol=1e-4
    )


@pytest.mark.parametrize("config", [PyramidConfig(), UNET])
def test_kept_bins_are_exact(config):
    decoder, x, mask = config.build(), levels(), kept()
    completed = jax.jit(decoder.apply)(initial(decoder), x, mask)
    np.testing.assert_array_equal(completed[mask], x[mask])


def test_fill_stays_between_the_kept_bins():
    for sparsity in ("0.5", "0.9", "0.99"):
        x, mask = levels(), kept(sparsity=sparsity)
        filled = compiled_fill(x, mask)
        assert x[mask].min() - 1e-4 <= filled.min() and filled.max() <= x[mask].max() + 1e-4


def test_fill_knows_a_bin_that_is_far_away():
    """In frequency at any distance, in time within the largest cells."""
    mask = jnp.zeros((1025, 64), bool).at[3, 3].set(True)
    filled = compiled_fill(jnp.full(mask.shape, -60.0), mask)
    assert filled[:, :4].max() < -50
    np.testing.assert_array_equal(filled[:, 32:], -25)


@pytest.mark.slow
def test_gradients_of_the_fill(key):
    x, mask = levels((9, 7)), jax.random.uniform(key, (9, 7), minval=0.1, maxval=0.6)
    with jax.enable_x64(True):
        x, mask = (jnp.asarray(np.asarray(a), jnp.float64) for a in (x, mask))
        check_grads(
            lambda x, mask: compiled_fill(jnp.asarray(x), jnp.asarray(mask)), (x, mask), 1, eps=1e-6
        )


@pytest.mark.slow
def test_gradients_of_the_network_are_finite_for_soft_and_nearly_empty_masks(key):
    decoder = UNET.build()
    params = trained(decoder)

    @jax.jit
    def gradients(x, mask):
        return jax.grad(lambda *at: jnp.square(decoder.apply(params, *at) + 30).mean(), (0, 1))(
            x, mask
        )

    soft = jax.random.uniform(key, SHAPE)
    for mask in (soft, jnp.zeros(SHAPE), 1e-30 * soft, jnp.ones(SHAPE)):
        assert all(np.isfinite(g).all() for g in gradients(levels(), mask))
    assert np.abs(gradients(levels(), soft)[1]).min() > 0


@pytest.mark.slow
def test_a_first_bin_in_a_hole_has_a_gradient_of_the_size_of_the_others():
    """The local mean has no pole where nothing is kept."""
    decoder, x = UNET.build(), levels()
    params = trained(decoder)
    mask = jnp.asarray(odd_masks()["hole"], jnp.float32)

    def error(mask):
        return jnp.square(decoder.apply(params, x, mask) + 30).mean()

    gradient = np.abs(jax.jit(jax.grad(error))(mask))
    inside, outside = gradient[8:34, 7:25], gradient[np.asarray(mask) > 0]
    assert inside.max() < 30 * outside.max()


def test_a_hard_mask_is_a_soft_one_of_zeros_and_ones():
    for config in (PyramidConfig(), UNET):
        decoder, x, mask = config.build(), levels(), kept()
        params = trained(decoder)
        hard = jax.jit(decoder.apply)(params, jnp.where(mask, x, jnp.nan), mask)
        np.testing.assert_allclose(
            jax.jit(decoder.apply)(params, x, mask.astype(jnp.float32)), hard, atol=1e-4
        )


@functools.cache
def initial(decoder):
    """Parameters as training begins with them."""
    return jax.jit(decoder.init)(jax.random.key(0))


@functools.cache
def trained(decoder, scale=1.0):
    """Parameters that are not at zero anywhere, as training leaves them."""

    @jax.jit
    def move(params):
        leaves, tree = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.key(5), len(leaves))
        return jax.tree.unflatten(
            tree,
            [
                p + 0.1 * scale * jax.random.normal(k, p.shape)
                for p, k in zip(leaves, keys, strict=True)
            ],
        )

    return move(initial(decoder))


@pytest.mark.parametrize(
    ("config", "pads"),
    [
        (UNET, (7, 31)),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in [
                *((UNET, pads) for pads in [(0, 1), (3, 0), (40, 64)]),
                *((PyramidConfig(), pads) for pads in [(3, 0), (7, 31)]),
            ]
        ),
        (PyramidUNetConfig((4,), (3, 5)), (7, 31)),
    ],
)
def test_padding_is_not_observed_on_either_axis(config, pads):
    decoder, x, mask = config.build(), levels(), kept()
    params = trained(decoder)
    pads = [(0, pad) for pad in pads]
    padded = jnp.pad(x, pads, constant_values=jnp.nan), jnp.pad(mask, pads, constant_values=True)
    valid = jnp.pad(jnp.ones(SHAPE, bool), pads)
    completed = jax.jit(decoder.apply)(params, *padded, valid)[: SHAPE[0], : SHAPE[1]]
    np.testing.assert_allclose(completed, jax.jit(decoder.apply)(params, x, mask), atol=2e-4)


@pytest.mark.parametrize(
    "config",
    [
        PyramidConfig(),
        UNET,
        pytest.param(PyramidUNetConfig((3,)), marks=pytest.mark.slow),
        pytest.param(PyramidUNetConfig((3, 3, 3, 3)), marks=pytest.mark.slow),
    ],
)
def test_parts_agree_with_the_whole(config):
    """What lies beyond the halo of a part that starts at the alignment does not matter."""
    decoder = config.build()
    assert decoder.halo is not None and decoder.halo >= decoder.alignment
    params = trained(decoder)
    halo, step, length = decoder.halo, decoder.alignment, 20
    before = step * -(-halo // step)
    shape = (9, 2 * before + length + halo)
    x, mask = levels(shape), kept(shape)
    whole = jax.jit(decoder.apply)(params, x, mask)
    part = slice(before, 2 * before + length + halo)
    found = jax.jit(decoder.apply)(params, x[:, part], mask[:, part])[:, before:][:, :length]
    np.testing.assert_allclose(found, whole[:, 2 * before :][:, :length], atol=2e-4)


@each_odd
def test_no_mask_makes_the_network_explode(mask):
    """Whatever its parameters are, it stays within its limits of the fill."""
    decoder, x, mask = UNET.build(), levels(), jnp.asarray(mask)
    params = trained(decoder, scale=100.0)
    filled, completed = compiled_fill(x, mask), jax.jit(decoder.apply)(params, x, mask)
    assert completed.max() - filled.max() <= UNET.most_above + 1e-3
    assert jnp.all(completed <= filled + UNET.most_above + 1e-3)
    assert jnp.all(completed >= filled - UNET.most_below - 1e-3)


@pytest.mark.slow
def test_training_starts_at_the_fill():
    for shape in (SHAPE, (1, 1), (16, 8)):
        decoder, x, mask = UNET.build(), levels(shape), kept(shape, "0.7")
        completed = jax.jit(decoder.apply)(initial(decoder), x, mask)
        np.testing.assert_allclose(completed, compiled_fill(x, mask), atol=1e-4)
    blank = PyramidUNetConfig((4,), start_from_fill=False).build()
    completed = jax.jit(blank.apply)(initial(blank), levels(), kept())
    np.testing.assert_array_equal(completed[~kept()], -25)


def test_the_network_hears_how_high_a_bin_lies():
    """The same surroundings give other levels elsewhere."""
    decoder = UNET.build()
    completed = jax.jit(decoder.apply)(
        trained(decoder), jnp.full((1024, 16), -25.0), kept((1024, 16), "1")
    )
    inner = completed[100:-100]
    assert inner.max() - inner.min() > 0.1


def test_size_and_multiply_adds():
    config = PyramidUNetConfig()
    params = jax.eval_shape(config.build().init, jax.random.key(0))
    assert n_parameters(params) == 600_264
    cost = config.multiply_adds(1025, 302)
    assert 3e9 < cost < 6e9
    # What the compiler counts, which takes a tanh for one operation and more.
    lowered = jax.jit(config.build().apply).lower(
        params,
        jax.ShapeDtypeStruct((1025, 302), jnp.float32),
        jax.ShapeDtypeStruct((1025, 302), jnp.bool_),
    )
    analysis = lowered.cost_analysis()
    assert analysis is not None
    flops = analysis["flops"]
    assert 2 * cost == pytest.approx(flops, rel=0.15)
    assert PyramidConfig().multiply_adds(1025, 302) < 0.002 * cost
    small = load_pretrained("unet-small").decoder.config
    assert isinstance(small, PyramidUNetConfig)
    assert small.multiply_adds(1025, 302) < 0.25 * cost


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        (PyramidConfig, {"levels": 17}),
        (PyramidConfig, {"levels": 3, "time_levels": 4}),
        (PyramidConfig, {"prior": math.nan}),
        (PyramidUNetConfig, {"features": ()}),
        (PyramidUNetConfig, {"features": (0,)}),
        (PyramidUNetConfig, {"cell": (4, 17)}),
        (PyramidUNetConfig, {"most_above": -1.0}),
        (PyramidUNetConfig, {"input_scale": math.inf}),
    ],
)
def test_settings_out_of_range_are_refused(kind, setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        kind(**setting)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(37, 19), (1, 1), (5, 700), (130, 3)])
def test_both_kernel_gradients_agree(shape, key):
    keys = jax.random.split(key, 3)
    x = jax.random.normal(keys[0], (3, *shape, 5))
    kernel = jax.random.normal(keys[1], (3, 3, 5, 7))
    cotangent = jax.random.normal(keys[2], (3, *shape, 7))

    def gradients(how):
        batch = jax.vmap(functools.partial(conv, kernel_gradient=how), (0, None))
        return jax.jit(lambda *args: jax.vjp(batch, *args)[1](cotangent))(x, kernel)

    scale = math.sqrt(math.prod(shape))
    for found, expected in zip(gradients("auto"), gradients("native"), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4 * scale)
