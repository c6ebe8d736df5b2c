import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jaxtyping import config as jaxtyping_config

from jaxsparse.nn import sparse_conv as layers
from jaxsparse.nn.sparse_conv import box_sum, max_pool

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def sparse_conv(x, mask, kernel, bias, **settings):
    """Takes NumPy arrays, too."""
    return layers.sparse_conv(*map(jnp.asarray, (x, mask, kernel, bias)), **settings)


conv = jax.jit(sparse_conv, static_argnames=("normalization", "eps", "kernel_gradient"))


def assert_close(actual, desired, tolerance=1e-5):
    """The largest difference, relative to the largest value."""
    desired = np.asarray(desired, np.float64)
    assert actual.shape == desired.shape
    assert np.isfinite(actual).all()
    assert np.abs(np.asarray(actual, np.float64) - desired).max() <= tolerance * max(
        np.abs(desired).max(), 1e-3
    )


def layer(shape=(9, 8), size=3, c_in=2, c_out=3, seed=0, positive=False):
    """Inputs, kernel and bias; a positive kernel keeps the weight normalization well-behaved."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((*shape, c_in)).astype(np.float32)
    kernel = rng.standard_normal((size, size, c_in, c_out)).astype(np.float32)
    if positive:
        kernel = np.abs(kernel) + np.float32(0.1)
    bias = rng.standard_normal(c_out).astype(np.float32)
    return x, kernel, bias


def hard_mask(shape=(9, 8), density=0.1, seed=1):
    return np.random.default_rng(seed).random(shape) < density


def soft_mask(shape=(9, 8), seed=1):
    """In (0.1, 0.9), with zeros, and ones that no other one is near to, so that none tie."""
    mask = np.random.default_rng(seed).uniform(0.1, 0.9, shape).astype(np.float32)
    mask[1::3, 1::2] = 0.0
    mask[0, 0] = mask[-1, -1] = 1.0
    return mask


@pytest.mark.optimised
@pytest.mark.parametrize("normalization", ["count", "weight"])
@pytest.mark.parametrize(
    ("size", "c_in", "shape"), [(1, 2, (9, 8)), (3, 1, (9, 8)), (5, 3, (7, 4))]
)
def test_equals_the_loop(size, c_in, shape, normalization):
    x, kernel, bias = layer(shape, size, c_in, positive=normalization == "weight")
    masks = [hard_mask(shape), soft_mask(shape), hard_mask(shape).astype(np.float32)]
    masks += [np.ones(shape, bool), np.zeros(shape, bool)]
    for mask in masks:
        expected, expected_mask = reference.sparse_conv(
            x, mask, kernel, bias, normalization=normalization
        )
        output, next_mask = conv(x, mask, kernel, bias, normalization=normalization)
        assert output.dtype == jnp.float32 and next_mask.dtype == mask.dtype
        assert_close(output, expected)
        np.testing.assert_array_equal(next_mask, expected_mask.astype(mask.dtype))


@pytest.mark.parametrize("sign", [1, -1])
def test_eps_has_the_sign_of_the_weights_sum(sign):
    x, kernel, bias = layer(positive=True)
    mask = soft_mask()
    expected, _ = reference.sparse_conv(
        x, mask, sign * kernel, bias, normalization="weight", eps=0.3
    )
    output, _ = conv(x, mask, sign * kernel, bias, normalization="weight", eps=0.3)
    assert_close(output, expected)


def test_eps_counts():
    x, kernel, bias = layer()
    mask = hard_mask()
    expected, _ = reference.sparse_conv(x, mask, kernel, bias, eps=0.5)
    without, _ = reference.sparse_conv(x, mask, kernel, bias)
    assert np.abs(expected - without).max() > 0.1
    assert_close(conv(x, mask, kernel, bias, eps=0.5)[0], expected)


def clustered_mask(shape=(40, 30)):
    """A block, a line and a lone bin, with holes wider than any window between them."""
    mask = np.zeros(shape, bool)
    mask[2:9, 3:8] = True
    mask[:, 22] = True
    mask[39, 5] = True
    return mask


@pytest.mark.optimised
@pytest.mark.parametrize("normalization", ["count", "weight"])
@pytest.mark.parametrize("dtype", [bool, np.float32])
def test_large_holes_give_the_bias_forward_and_nothing_backward(dtype, normalization):
    x, kernel, bias = layer((40, 30), 7, positive=True)
    mask = clustered_mask().astype(dtype)
    expected, expected_mask = reference.sparse_conv(
        x, mask, kernel, bias, normalization=normalization
    )
    output, next_mask = conv(x, mask, kernel, bias, normalization=normalization)
    assert_close(output, expected)
    np.testing.assert_array_equal(next_mask, expected_mask)
    hole = ~expected_mask.astype(bool)
    assert 0.2 < hole.mean() < 0.8
    np.testing.assert_array_equal(
        np.asarray(output)[hole], np.broadcast_to(bias, output.shape)[hole]
    )

    def loss(x, kernel, bias):
        return jnp.sum(conv(x, mask, kernel, bias, normalization=normalization)[0] ** 2)

    def loss_of_holes(x, kernel, bias):
        output, _ = conv(x, mask, kernel, bias, normalization=normalization)
        return jnp.sum(jnp.where(hole[..., None], output, 0.0))

    for gradient in jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(x, kernel, bias):
        assert jnp.isfinite(gradient).all() and gradient.any()
    of_x, of_kernel, of_bias = jax.jit(jax.grad(loss_of_holes, argnums=(0, 1, 2)))(x, kernel, bias)
    assert not of_x.any() and not of_kernel.any()
    np.testing.assert_allclose(of_bias, hole.sum())


@pytest.mark.parametrize("dtype", [bool, np.float32])
def test_an_empty_mask_gives_the_bias(dtype):
    x, kernel, bias = layer()
    mask = np.zeros((9, 8), dtype)
    output, next_mask = conv(x, mask, kernel, bias)
    np.testing.assert_array_equal(output, np.broadcast_to(bias, output.shape))
    assert not next_mask.any()
    gradients = jax.jit(jax.grad(lambda *a: jnp.sum(conv(a[0], mask, *a[1:])[0]), (0, 1, 2)))
    of_x, of_kernel, of_bias = gradients(x, kernel, bias)
    assert not of_x.any() and not of_kernel.any()
    np.testing.assert_allclose(of_bias, 72.0)


@pytest.mark.optimised
def test_a_soft_mask_has_finite_gradients_in_empty_windows():
    x, kernel, bias = layer()
    mask = np.zeros((9, 8), np.float32)
    mask[0, 0] = 1.0

    def loss(mask):
        output, next_mask = conv(x, mask, kernel, bias, eps=1e-3)
        return jnp.sum(output**2) + jnp.sum(next_mask)

    gradient = jax.jit(jax.grad(loss))(mask)
    assert jnp.isfinite(gradient).all()
    # A little of a hidden bin, where nothing else is seen, changes the output by 1 / eps.
    assert jnp.abs(gradient[5:, 5:]).max() > 1e2


def weighted_sum(output, next_mask):
    """A scalar in which no two entries have the same part."""
    xp = jnp if isinstance(output, jax.Array) else np
    of_output = xp.asarray(np.sin(1 + np.arange(output.size)).reshape(output.shape), output.dtype)
    total = (of_output * output**2).sum()
    if next_mask.dtype == bool:
        return total
    of_mask = np.cos(np.arange(next_mask.size)).reshape(next_mask.shape)
    return total + (xp.asarray(of_mask, next_mask.dtype) * next_mask).sum()


NAMES = ("x", "mask", "kernel", "bias")


@pytest.mark.optimised
@pytest.mark.parametrize(
    ("normalization", "size", "kernel_gradient"),
    [
        pytest.param("count", 3, "native", marks=pytest.mark.slow),
        pytest.param("count", 5, "auto", marks=pytest.mark.slow),
        ("weight", 3, "auto"),
    ],
)
def test_soft_gradients_equal_finite_differences(normalization, size, kernel_gradient):
    shape = (7, 6)
    x, kernel, bias = layer(shape, size, positive=normalization == "weight")
    arguments = {"x": x, "mask": soft_mask(shape), "kernel": kernel, "bias": bias}
    assert {0.0, 1.0} < set(arguments["mask"].ravel().tolist())

    def loss(x, mask, kernel, bias):
        return weighted_sum(
            *sparse_conv(
                x,
                mask,
                kernel,
                bias,
                normalization=normalization,
                eps=1e-2,
                kernel_gradient=kernel_gradient,
            )
        )

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(*arguments.values())
    for name, gradient in zip(NAMES, gradients, strict=True):

        def reference_loss(value, name=name):
            inputs: dict[str, Any] = arguments | {name: value}
            return weighted_sum(
                *reference.sparse_conv(**inputs, normalization=normalization, eps=1e-2)
            )

        assert_close(gradient, reference.derivative(reference_loss, arguments[name]), 2e-5)


@pytest.mark.optimised
@pytest.mark.parametrize("normalization", ["count", "weight"])
def test_hard_gradients_equal_finite_differences(normalization):
    shape = (7, 6)
    x, kernel, bias = layer(shape, positive=normalization == "weight")
    mask = hard_mask(shape, 0.15)
    arguments = {"x": x, "kernel": kernel, "bias": bias}

    def loss(x, kernel, bias):
        return weighted_sum(*sparse_conv(x, mask, kernel, bias, normalization=normalization))

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*arguments.values())
    assert not gradients[0][~mask].any() and gradients[0][mask].all()
    for name, gradient in zip(arguments, gradients, strict=True):

        def reference_loss(value, name=name):
            inputs: dict[str, Any] = arguments | {name: value}
            return weighted_sum(
                *reference.sparse_conv(mask=mask, **inputs, normalization=normalization)
            )

        assert_close(gradient, reference.derivative(reference_loss, arguments[name]), 2e-5)


def test_a_soft_mask_of_zeros_and_ones_has_a_gradient():
    """That of product and count; the max-pool, which ties there, is a case of its own."""
    shape = (7, 6)
    x, kernel, bias = layer(shape)
    mask = hard_mask(shape, 0.3).astype(np.float32)
    mask[::2, ::2] = 1.0
    assert reference.sparse_conv(x, mask, kernel, bias)[1].all(), "no window is empty"
    gradient = jax.jit(jax.grad(lambda m: weighted_sum(sparse_conv(x, m, kernel, bias)[0], m > 2)))

    def reference_loss(mask):
        output, _ = reference.sparse_conv(x, mask, kernel, bias)
        return weighted_sum(output, np.zeros(1, bool))

    expected = reference.derivative(reference_loss, mask)
    assert (np.abs(expected[mask == 0]) > 1e-3).any() and (np.abs(expected[mask == 1]) > 1e-3).any()
    assert_close(gradient(mask), expected, 2e-5)


@pytest.mark.optimised
def test_equal_inputs_share_the_gradient_of_the_maximum():
    mask = jnp.zeros((5, 7)).at[2, 3].set(0.5).at[2, 4].set(0.5).at[0, 0].set(0.9)

    @jax.jit
    def gradient_at(f, t):
        return jax.grad(lambda m: max_pool(m, 3)[f, t])(mask)

    both = jnp.zeros((5, 7)).at[2, 3].set(0.5).at[2, 4].set(0.5)
    np.testing.assert_array_equal(gradient_at(2, 3), both)
    np.testing.assert_array_equal(gradient_at(1, 4), both)
    np.testing.assert_array_equal(gradient_at(2, 2), jnp.zeros((5, 7)).at[2, 3].set(1.0))
    np.testing.assert_array_equal(gradient_at(1, 1), jnp.zeros((5, 7)).at[0, 0].set(1.0))
    # Nine equal ones inside, six at the edge, four in the corner.
    equal = jax.jit(jax.jacrev(lambda m: max_pool(m, 3)))(jnp.ones((5, 7)))
    for f, t, n in ((2, 3, 9), (0, 3, 6), (4, 6, 4)):
        share = equal[f, t]
        np.testing.assert_allclose(share[share > 0], np.full(n, 1 / n), rtol=1e-6)
    forward = jax.jit(jax.jacfwd(lambda m: max_pool(m, 3)))(jnp.ones((5, 7)))
    np.testing.assert_allclose(forward, equal)


def test_box_sum_counts():
    counts = box_sum(jnp.ones((4, 5)), 3)
    np.testing.assert_array_equal(
        counts, [[4, 6, 6, 6, 4], [6, 9, 9, 9, 6], [6, 9, 9, 9, 6], [4, 6, 6, 6, 4]]
    )


@pytest.mark.optimised
@pytest.mark.parametrize("normalization", ["count", "weight"])
def test_what_a_hard_mask_hides_changes_nothing(normalization):
    x, kernel, bias = layer((40, 30), 5, positive=True)
    mask = hard_mask((40, 30), 0.05)

    @jax.jit
    def everything(x):
        def loss(x, kernel, bias):
            output, next_mask = sparse_conv(x, mask, kernel, bias, normalization=normalization)
            return weighted_sum(output, next_mask), (output, next_mask)

        return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(x, kernel, bias)

    clean = everything(x)
    (_, gradients) = clean
    assert not gradients[0][~mask].any()
    assert gradients[0][mask].any()
    for junk in (np.nan, np.inf, -np.inf, 1e30):
        hidden = np.where(mask[..., None], x, np.float32(junk))
        jax.tree.map(np.testing.assert_array_equal, everything(hidden), clean)
    seen = x.copy()
    seen[tuple(np.argwhere(mask)[0])] = np.nan
    assert jnp.isnan(everything(seen)[0][0])


@pytest.mark.slow
@pytest.mark.optimised
def test_bfloat16():
    x, kernel, bias = layer((40, 30), 7, 4, 4)
    mask = hard_mask((40, 30), 0.1)
    soft = soft_mask((40, 30))
    half = jnp.bfloat16

    @functools.partial(jax.jit, static_argnums=3)
    def everything(x, soft, kernel, dtype):
        def loss(x, kernel, soft):
            hard_output, _ = sparse_conv(x, mask, kernel, jnp.asarray(bias, dtype))
            soft_output, pooled = sparse_conv(x, soft, kernel, jnp.asarray(bias, dtype), eps=0.1)
            total = jnp.sum(hard_output.astype(jnp.float32) ** 2)
            total += jnp.sum(soft_output.astype(jnp.float32) ** 2)
            return total + jnp.sum(pooled.astype(jnp.float32)), (hard_output, soft_output, pooled)

        return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(x, kernel, soft)

    def rounded(array):
        return jnp.asarray(array, half).astype(jnp.float32)

    exact = everything(rounded(x), rounded(soft), rounded(kernel), jnp.float32)
    low = everything(jnp.asarray(x, half), jnp.asarray(soft, half), jnp.asarray(kernel, half), half)
    for ours, expected in zip(jax.tree.leaves(low), jax.tree.leaves(exact), strict=True):
        assert ours.dtype == half
        # A bfloat16 has 8 bits; sums of rounded products lose two or three of them.
        assert_close(ours.astype(jnp.float32), expected, 0.03)


def test_bfloat16_inputs_with_float32_parameters_keep_their_dtype():
    x, kernel, bias = layer()
    x = jnp.asarray(x, jnp.bfloat16)

    def loss(kernel, bias):
        output, _ = sparse_conv(x, hard_mask(), kernel, bias)
        assert output.dtype == jnp.bfloat16
        return jnp.sum(output.astype(jnp.float32))

    gradients = jax.eval_shape(jax.grad(loss, argnums=(0, 1)), kernel, bias)
    assert all(gradient.dtype == jnp.float32 for gradient in gradients)


@pytest.mark.parametrize("dtype", [bool, np.float32])
def test_vmap_equals_loop(dtype):
    rng = np.random.default_rng(0)
    _, kernel, bias = layer()
    x = rng.standard_normal((3, 9, 8, 2)).astype(np.float32)
    masks = np.stack([hard_mask(density=d) for d in (0.05, 0.3, 0.9)]).astype(dtype)
    outputs, next_masks = jax.jit(jax.vmap(lambda x, m: sparse_conv(x, m, kernel, bias)))(x, masks)
    for i in range(3):
        output, next_mask = conv(x[i], masks[i], kernel, bias)
        assert_close(outputs[i], output, 1e-6)
        np.testing.assert_array_equal(next_masks[i], next_mask)


def kernel_gradients(kernel_gradient, x, kernel, bias, mask, batched=()):
    """Gradients of a batch's loss, and each example's own."""

    def loss(x, kernel):
        output, _ = sparse_conv(x, mask, kernel, bias, kernel_gradient=kernel_gradient)
        return weighted_sum(output, mask)

    def total(x, kernel):
        return jax.vmap(loss, in_axes=(0, None))(x, kernel).sum()

    together = jax.grad(total, argnums=(0, 1))(x, kernel)
    each = jax.vmap(jax.grad(loss, argnums=(0, 1)), in_axes=(0, None))(x, kernel)
    return together, each, jax.grad(loss, argnums=(0, 1))(x[0], kernel)


@pytest.mark.optimised
@pytest.mark.parametrize(
    ("size", "shape", "c_in"),
    [
        (1, (21, 9), 4),
        (3, (5, 9), 1),  # fewer rows than blocks
        (3, (16, 4), 4),
        (5, (19, 7), 4),
        (5, (1, 1), 1),
        (7, (40, 11), 1),
        (7, (21, 3), 4),  # fewer frames than taps
    ],
)
def test_our_kernel_gradient_equals_the_librarys(size, shape, c_in):
    _, kernel, bias = layer(shape, size, c_in)
    x = np.random.default_rng(2).standard_normal((3, *shape, c_in)).astype(np.float32)
    mask = hard_mask(shape, 0.7)
    mask[0, 0] = True
    run = jax.jit(kernel_gradients, static_argnums=0)
    ours = run("auto", x, kernel, bias, mask)
    native = run("native", x, kernel, bias, mask)
    jax.tree.map(assert_close, ours, native)
    together, each, first = ours
    assert_close(each[1].sum(axis=0), together[1])
    assert_close(first[1], each[1][0])


def test_our_kernel_gradient_under_other_batchings():
    """A kernel for each example, and one input with a batch of kernels."""
    x, kernel, bias = layer((11, 8))
    kernels = np.stack([kernel, -kernel, 2 * kernel])
    mask = hard_mask((11, 8), 0.5)

    def gradients(kernel_gradient):
        def loss(x, kernel):
            output, _ = sparse_conv(x, mask, kernel, bias, kernel_gradient=kernel_gradient)
            return weighted_sum(output, mask)

        one = jax.grad(loss, argnums=(0, 1))
        return (
            jax.vmap(one, in_axes=(None, 0))(x, kernels),
            jax.vmap(jax.vmap(one, in_axes=(0, None)), in_axes=(None, 0))(
                np.stack([x, 2 * x]), kernels
            ),
        )

    run = jax.jit(gradients, static_argnums=0)
    jax.tree.map(assert_close, run("auto"), run("native"))


def test_our_kernel_gradient_is_the_one_that_runs():
    x, kernel, bias = layer((40, 30))
    mask = hard_mask((40, 30))

    def gradient(kernel_gradient):
        return jax.grad(
            lambda k: sparse_conv(x, mask, k, bias, kernel_gradient=kernel_gradient)[0].sum()
        )

    # Eight blocks of five rows, with a halo of one.
    blocks = "f32[8,7,32,2]"
    assert blocks in str(jax.make_jaxpr(gradient("auto"))(kernel))
    assert blocks not in str(jax.make_jaxpr(gradient("native"))(kernel))


def test_forward_mode_and_hessian_vector_products_of_the_native_gradient():
    shape = (5, 4)
    x, kernel, bias = layer(shape)
    mask = soft_mask(shape)
    arguments = (x, mask, kernel, bias)
    rng = np.random.default_rng(3)
    along, across = (
        [rng.standard_normal(np.shape(a)).astype(np.float32) for a in arguments] for _ in range(2)
    )

    def loss(*arguments, kernel_gradient="native"):
        return weighted_sum(*sparse_conv(*arguments, eps=0.1, kernel_gradient=kernel_gradient))

    def reference_loss(a, b):
        moved = [
            np.asarray(v, np.float64) + a * d + b * e
            for v, d, e in zip(arguments, along, across, strict=True)
        ]
        return weighted_sum(*reference.sparse_conv(*moved, eps=0.1))

    h = 1e-4
    slope = (reference_loss(h, 0) - reference_loss(-h, 0)) / (2 * h)
    bend = (
        reference_loss(h, h)
        - reference_loss(h, -h)
        - reference_loss(-h, h)
        + reference_loss(-h, -h)
    ) / (4 * h**2)
    _, tangent = jax.jit(lambda a, d: jax.jvp(loss, a, d))(arguments, tuple(along))
    assert tangent == pytest.approx(slope, rel=1e-4)

    @jax.jit
    def hessian_vector(arguments, direction):
        return jax.jvp(jax.grad(loss, argnums=(0, 1, 2, 3)), arguments, direction)[1]

    product = hessian_vector(arguments, tuple(along))
    actual = sum(np.vdot(p, e) for p, e in zip(product, across, strict=True))
    assert actual == pytest.approx(bend, rel=1e-3)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(functools.partial(loss, kernel_gradient="auto"), arguments, tuple(along))


@contextlib.contextmanager
def without_type_checks():
    """As outside of the tests, where nothing but the function itself looks at its arguments."""
    jaxtyping_config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping_config.update("jaxtyping_disable", False)


def test_refuses_what_it_does_not_know():
    x, kernel, bias = layer()
    mask = hard_mask()
    with without_type_checks():
        for wrong in (kernel[:2, :2], kernel[:, :1]):
            with pytest.raises(ValueError, match="odd"):
                sparse_conv(x, mask, wrong, bias)
        with pytest.raises(ValueError, match="normalization 'mean'"):
            sparse_conv(x, mask, kernel, bias, normalization="mean")
        with pytest.raises(ValueError, match="kernel gradient 'fast'"):
            sparse_conv(x, mask, kernel, bias, kernel_gradient="fast")
