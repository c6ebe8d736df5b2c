"""Sparsity-invariant convolution (Uhrig et al. 2017) as a pure function.

The numerator convolves the observed inputs, the denominator counts them, the next mask says
which windows held any. A bool mask is hard: what it hides is selected away and cannot leak, NaN
included. A float mask is soft: it multiplies, and has a gradient of its own.
"""

import functools
from collections.abc import Callable
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxsparse.nn.conv import DIMENSIONS, KernelGradient, native_kernel_gradient, plain_conv

Normalization: TypeAlias = Literal["count", "weight"]

_BLOCKS = 8


def sparse_conv(
    x: Float[Array, "F T C_in"],
    mask: Bool[Array, "F T"] | Float[Array, "F T"],
    kernel: Float[Array, "K K C_in C_out"],
    bias: Float[Array, " C_out"],
    *,
    normalization: Normalization = "count",
    eps: float = 1e-8,
    kernel_gradient: KernelGradient = "auto",
) -> tuple[Float[Array, "F T C_out"], Bool[Array, "F T"] | Float[Array, "F T"]]:
    """Convolves the observed part of `x` and divides by how much of it each window holds.

    With ``normalization="count"`` (Uhrig et al. 2017, eq. 5)::

        y = conv(mask * x, kernel) / (box_sum(mask) + eps) + bias

    With ``"weight"`` the denominator is ``conv(mask, sum of kernel over C_in)`` and eps takes its
    sign: the formula printed in the thesis (eq. 3.2), fragile where signed weights cancel.
    The next mask is the max-pool of `mask` over the same window in both. Stride 1, zero padding.

    A window without any observed input gives the bias. For soft masks the gradient with respect
    to the mask passes through product, denominator and max-pool; where several inputs share the
    maximum, they share its gradient equally. In nearly empty windows that gradient is of the
    order ``1 / eps``, so a relaxation does well to set `eps` larger.

    Args:
        x: Inputs of one example, channels last. Unobserved ones may be NaN under a hard mask.
        mask: One mask for all channels; bool is hard, float (in [0, 1]) is soft.
        kernel: Square, of odd size.
        bias: Added after the division.
        normalization: What divides the numerator.
        eps: Keeps the denominator from zero.
        kernel_gradient: ``"auto"`` takes our own kernel gradient on the CPU, where XLA's is slow;
            it rules out forward mode and second derivatives. ``"native"`` is the plain convolution.

    Returns:
        The outputs, in the dtype of `x`, and the next mask, of the dtype of `mask`.

    Raises:
        ValueError: If the kernel is not square and odd, or a setting is unknown.
    """
    size = kernel.shape[0]
    if kernel.shape[1] != size or size % 2 == 0:
        raise ValueError(f"the kernel must be square and of odd size, not {kernel.shape[:2]}")
    hard = mask.dtype == jnp.bool_
    weights = mask.astype(jnp.float32)
    observed = (
        jnp.where(mask[..., None], x, jnp.zeros((), x.dtype))
        if hard
        else x * _over_channels(mask.astype(x.dtype), x.shape[-1])
    )
    numerator = _convolution(kernel_gradient)(observed, kernel).astype(jnp.float32)
    # Neither the sum nor its gradient is computed anew in each of the slices of the next one.
    count = lax.optimization_barrier(box_sum(weights, size))
    if normalization == "count":
        denominator = (count + eps)[..., None]
    elif normalization == "weight":
        summed = kernel.astype(jnp.float32).sum(axis=2, keepdims=True)
        denominator = _convolution(kernel_gradient)(weights[..., None], summed)
        denominator = denominator + jnp.where(denominator < 0, -eps, eps)
    else:
        raise ValueError(f"unknown normalization {normalization!r}")
    if hard:
        # Not 1 / eps in an empty window: the backward convolution of such a number would reach
        # the neighbours through the rounding of FFT or Winograd algorithms.
        filled = (count > 0)[..., None]
        scale = jnp.where(filled, 1.0 / jnp.where(filled, denominator, 1.0), 0.0)
        next_mask = count > 0
    else:
        scale = 1.0 / denominator
        if normalization == "count":
            scale = _over_channels(scale[..., 0], kernel.shape[-1])
        next_mask = max_pool(mask, size)
    return (numerator * scale + bias.astype(jnp.float32)[None, None]).astype(x.dtype), next_mask


def _over_channels(values: Float[Array, "F T"], channels: int) -> Float[Array, "F T C"]:
    """Repeats values for each channel.

    As a matrix product, since then its transpose is one too: XLA's own sum over the last axis
    slows the gradient with respect to the mask on a CPU.
    """
    ones = jnp.ones((1, channels), values.dtype)
    return jnp.matmul(values[..., None], ones, precision=lax.Precision.HIGHEST)


def box_sum(values: Float[Array, "F T"], size: int) -> Float[Array, "F T"]:
    """Sums `values` over a centred square window of odd `size`, zeros outside; separable."""
    for axis in (0, 1):
        values = sum(_shifts(values, size, axis, 0.0), jnp.zeros_like(values))
    return values


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def max_pool(values: Float[Array, "F T"], size: int) -> Float[Array, "F T"]:
    """Takes the maximum over a centred square window of odd `size`; ties share the gradient."""
    for axis in (0, 1):
        values = functools.reduce(jnp.maximum, _shifts(values, size, axis, -jnp.inf))
    return values


@max_pool.defjvp
def _max_pool_jvp(
    size: int, primals: tuple[Float[Array, "F T"]], tangents: tuple[Float[Array, "F T"]]
) -> tuple[Float[Array, "F T"], Float[Array, "F T"]]:
    (values,), (tangent,) = primals, tangents
    pooled = max_pool(values, size)
    ties = jnp.zeros_like(pooled)
    moved = jnp.zeros_like(pooled)
    for rows, row_tangents in zip(
        _shifts(values, size, 0, -jnp.inf), _shifts(tangent, size, 0, 0.0), strict=True
    ):
        for shifted, shifted_tangent in zip(
            _shifts(rows, size, 1, -jnp.inf), _shifts(row_tangents, size, 1, 0.0), strict=True
        ):
            is_maximum = shifted == pooled
            ties += is_maximum.astype(ties.dtype)
            moved += jnp.where(is_maximum, shifted_tangent, jnp.zeros((), ties.dtype))
    return pooled, moved / ties


def _shifts(
    values: Float[Array, "F T"], size: int, axis: int, fill: float
) -> list[Float[Array, "F T"]]:
    """The `size` copies of `values` that a centred window sees along `axis`."""
    half = size // 2
    pads = [(0, 0), (0, 0)]
    pads[axis] = (half, half)
    padded = jnp.pad(values, pads, constant_values=fill)
    length = values.shape[axis]
    return [lax.slice_in_dim(padded, i, i + length, axis=axis) for i in range(size)]


def _convolution(kernel_gradient: KernelGradient) -> Callable[[Array, Array], Array]:
    try:
        return {"auto": _conv_blocked_gradient, "native": plain_conv}[kernel_gradient]
    except KeyError:
        raise ValueError(f"unknown kernel gradient {kernel_gradient!r}") from None


@jax.custom_vjp
def _conv_blocked_gradient(
    x: Float[Array, "F T C_in"], kernel: Float[Array, "K K C_in C_out"]
) -> Float[Array, "F T C_out"]:
    return plain_conv(x, kernel)


def _conv_fwd(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return plain_conv(x, kernel), (x, kernel)


def _conv_bwd(residuals: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    x_cotangent = plain_conv(cotangent, kernel[::-1, ::-1].swapaxes(2, 3))
    like = jax.ShapeDtypeStruct(kernel.shape, kernel.dtype)
    kernel_cotangent = lax.platform_dependent(
        x,
        cotangent,
        cpu=_one_after_the_other(functools.partial(_kernel_gradient_in_blocks, kernel=like)),
        default=functools.partial(native_kernel_gradient, like=like),
    )
    return x_cotangent, kernel_cotangent.astype(kernel.dtype)


_conv_blocked_gradient.defvjp(_conv_fwd, _conv_bwd)


def _kernel_gradient_in_blocks(
    x: Array, cotangent: Array, *, kernel: jax.ShapeDtypeStruct
) -> Array:
    """The kernel's gradient of one example, as that of a batch of eight blocks of its rows.

    XLA's CPU gradient with respect to the kernel is up to ten times faster for a batch of 8 to
    16 images than for one of the same size, or for 32 of a fraction of it.
    """
    size = kernel.shape[0]
    half = size // 2
    n_rows = -(-x.shape[0] // _BLOCKS)
    tail = n_rows * _BLOCKS - x.shape[0]
    x = jnp.pad(x, ((half, half + tail), (half, half), (0, 0)))
    blocks = jnp.stack([x[i * n_rows : (i + 1) * n_rows + 2 * half] for i in range(_BLOCKS)])
    cotangents = jnp.pad(cotangent, ((0, tail), (0, 0), (0, 0)))
    cotangents = cotangents.reshape(_BLOCKS, n_rows, *cotangent.shape[1:])

    def conv(k: Array) -> Array:
        return lax.conv_general_dilated(
            blocks, k.astype(x.dtype), (1, 1), "VALID", dimension_numbers=DIMENSIONS
        )

    (gradient,) = jax.linear_transpose(conv, kernel)(cotangents)
    return gradient.astype(jnp.float32)


def _one_after_the_other(function: Callable[[Array, Array], Array]) -> Callable[..., Array]:
    """Unrolls ``vmap`` over examples: batched, the blocks would be too many to be fast."""
    unrolled = jax.custom_batching.custom_vmap(function)

    @unrolled.def_vmap
    def rule(
        axis_size: int, in_batched: list[bool], x: Array, cotangent: Array
    ) -> tuple[Array, bool]:
        outputs = [
            unrolled(x[i] if in_batched[0] else x, cotangent[i] if in_batched[1] else cotangent)
            for i in range(axis_size)
        ]
        return jnp.stack(outputs), True

    return unrolled
