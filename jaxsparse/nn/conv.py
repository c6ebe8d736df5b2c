"""The plain convolution of one example, with a kernel gradient that is fast on a CPU."""

import functools
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

KernelGradient: TypeAlias = Literal["auto", "native"]

DIMENSIONS = ("NHWC", "HWIO", "NHWC")
# Positions of which patches are collected at a time: a few hundred kilobytes, which stay in cache.
_POSITIONS = 384

Image = Float[Array, "H W C"]
Kernel = Float[Array, "K K C D"]


def conv(
    x: Image, kernel: Kernel, kernel_gradient: KernelGradient = "auto"
) -> Float[Array, "H W D"]:
    """Convolves with stride 1 and zeros outside.

    Args:
        x: One example, channels last.
        kernel: Square, of odd size.
        kernel_gradient: ``"auto"`` takes our own kernel gradient on the CPU, where XLA's is slow;
            it rules out forward mode and second derivatives. ``"native"`` is the plain convolution.
    """
    return (
        plain_conv(x, kernel) if kernel_gradient == "native" else _conv_patches_gradient(x, kernel)
    )


def plain_conv(x: Image, kernel: Kernel) -> Float[Array, "H W D"]:
    """Convolves one example with stride 1 and zeros outside, with XLA's own derivatives."""
    return lax.conv_general_dilated(
        x[None], kernel.astype(x.dtype), (1, 1), "SAME", dimension_numbers=DIMENSIONS
    )[0]


@jax.custom_vjp
def _conv_patches_gradient(x: Image, kernel: Kernel) -> Float[Array, "H W D"]:
    return plain_conv(x, kernel)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return plain_conv(x, kernel), (x, kernel)


def _backward(residuals: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    x_cotangent = plain_conv(cotangent, kernel[::-1, ::-1].swapaxes(2, 3))
    gradient = lax.platform_dependent(
        x,
        cotangent,
        cpu=functools.partial(_kernel_gradient_of_patches, size=kernel.shape[0]),
        default=functools.partial(native_kernel_gradient, like=kernel),
    )
    return x_cotangent, gradient.astype(kernel.dtype)


_conv_patches_gradient.defvjp(_forward, _backward)


def native_kernel_gradient(
    x: Image, cotangent: Float[Array, "H W D"], *, like: Any
) -> Float[Array, "K K C D"]:
    """Computes XLA's gradient of `plain_conv` with respect to a kernel.

    Args:
        x: The layer's input.
        cotangent: Of its output.
        like: Anything with the kernel's shape and dtype.

    Returns:
        The gradient, in float32.
    """
    shape = jax.ShapeDtypeStruct(like.shape, like.dtype)
    (gradient,) = jax.linear_transpose(lambda kernel: plain_conv(x, kernel), shape)(cotangent)
    return gradient.astype(jnp.float32)


def _kernel_gradient_of_patches(x: Array, cotangent: Array, *, size: int) -> Array:
    """The kernel's gradient as matrix products of patches and cotangents, some rows at a time."""
    height, width, channels = x.shape
    n_rows = max(_POSITIONS // width, 1)
    n_steps = -(-height // n_rows)
    half, tail = size // 2, n_steps * n_rows - height
    x = jnp.pad(x, ((half, half + tail), (half, half), (0, 0)))
    cotangent = jnp.pad(cotangent, ((0, tail), (0, 0), (0, 0)))

    def add_rows(total: Array, start: Array) -> tuple[Array, None]:
        rows = lax.dynamic_slice_in_dim(x, start, n_rows + 2 * half, 0)
        patches = jnp.concatenate(
            [rows[i : i + n_rows, j : j + width] for i in range(size) for j in range(size)], -1
        )
        own = lax.dynamic_slice_in_dim(cotangent, start, n_rows, 0)
        product = jnp.einsum("hwp,hwd->pd", patches, own, preferred_element_type=jnp.float32)
        return total + product, None

    n_outputs = cotangent.shape[-1]
    empty = jnp.zeros((size * size * channels, n_outputs), jnp.float32)
    total, _ = lax.scan(add_rows, empty, n_rows * jnp.arange(n_steps))
    return total.reshape(size, size, channels, n_outputs)
