"""Convolutions that are as fast in a loop as outside, on CPU.

XLA's fast kernel for CPU takes convolutions in one form, images (batch, sizes…,
channels) by kernels (sizes…, inputs, outputs), and XLA rewrites others to it outside
loops only. The forward pass of Flax has that form; the gradients that JAX derives have
not, and in a loop they fall to a slow kernel. Here they are written in that form, which
XLA keeps unless an image is smaller than the kernel.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def convolve(
    inputs: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    lhs_dilation: Sequence[int] = (),
    rhs_dilation: Sequence[int] = (),
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
) -> jax.Array:
    """A convolution whose gradients are fast in loops on CPU.

    For Flax: `nn.Conv(..., conv_general_dilated=convolve)`. Second derivatives are
    those of JAX; a first derivative in forward mode is not supported.

    Args:
        inputs: images, (batch, sizes…, channels).
        kernel: (sizes…, channels, outputs).
        strides: the step along each axis.
        padding: `"SAME"`, `"VALID"`, or two numbers for each axis.
        lhs_dilation: must be all ones.
        rhs_dilation: must be all ones.
        dimension_numbers: must be that of arrays of these axes, as Flax gives it.
        feature_group_count: must be 1.
        precision: as for `jax.lax.conv_general_dilated`.

    Raises:
        ValueError: if it is dilated or grouped, or if axes are in another order.
    """
    if {*lhs_dilation, *rhs_dilation, feature_group_count} - {1}:
        raise ValueError(
            "convolve is neither dilated nor grouped, got"
            f" lhs_dilation={lhs_dilation}, rhs_dilation={rhs_dilation},"
            f" feature_group_count={feature_group_count}"
        )
    shapes, form = (inputs.shape, kernel.shape), _form(inputs)
    numbers = lax.conv_dimension_numbers(*shapes, dimension_numbers or form)
    if numbers != lax.conv_dimension_numbers(*shapes, form):
        raise ValueError(
            f"dimension_numbers must be those of {form}, got {dimension_numbers}"
        )
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(
            inputs.shape[1:-1], kernel.shape[:-2], strides, padding
        )
    pads = tuple((low, high) for low, high in padding)
    return _convolve(inputs, kernel, tuple(strides), pads, precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _convolve(inputs, kernel, strides, padding, precision):
    return _canonical(inputs, kernel, strides, padding, precision)


def _canonical(inputs, kernel, strides, padding, precision, **dilations):
    return lax.conv_general_dilated(
        inputs,
        kernel,
        strides,
        padding,
        dimension_numbers=_form(inputs),
        precision=precision,
        **dilations,
    )


def _form(inputs):
    axes = "xyz"[: inputs.ndim - 2]
    return f"N{axes}C", f"{axes}IO", f"N{axes}C"


def _forward(inputs, kernel, *how):
    return _canonical(inputs, kernel, *how), (inputs, kernel)


def _backward(strides, padding, precision, saved, grads):
    inputs, kernel = saved
    axes = tuple(range(inputs.ndim - 2))
    ones, of_inputs, of_kernel = (1,) * len(axes), [], []
    for axis, (low, _) in zip(axes, padding, strict=True):
        size, width = inputs.shape[1 + axis], kernel.shape[axis]
        spread = (grads.shape[1 + axis] - 1) * strides[axis] + 1
        of_inputs.append((width - 1 - low, size + low - spread))
        of_kernel.append((low, spread + width - 1 - size - low))
    swapped = jnp.flip(kernel, axes).swapaxes(-1, -2)
    images = inputs.swapaxes(0, -1)  # channels in the place of the batch
    weights = jnp.moveaxis(grads, 0, -2)
    by_inputs = _canonical(
        grads, swapped, ones, of_inputs, precision, lhs_dilation=strides
    )
    by_kernel = _canonical(
        images, weights, ones, of_kernel, precision, rhs_dilation=strides
    )
    return by_inputs, jnp.moveaxis(by_kernel, 0, -2)


_convolve.defvjp(_forward, _backward)
