"""Convolutions that are fast on CPU: in a loop as outside, and with few channels.

XLA's fast kernel for CPU takes convolutions in one form, images (batch, sizes…,
channels) by kernels (sizes…, inputs, outputs), and XLA rewrites others to it outside
loops only. The forward pass of Flax has that form; the gradients that JAX derives have
not, and in a loop they fall to a slow kernel. Here they are written in that form, which
XLA keeps unless an image is smaller than the kernel.

That kernel is slow where outputs are few, most of all for images whose channels are no
multiple of 4. There it gets tiles of 2 or 4 neighbouring pixels as one pixel, with as
many times the channels: more multiplications, in less time.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# Images that the gradient by a kernel takes at once.
GROUP = 128


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
    return _quickest(inputs, kernel, strides, padding, precision)


def _quickest(inputs, kernel, strides, padding, precision, lhs_dilation=None):
    """A convolution, in tiles where that is faster."""
    low, high = padding[-1]
    size, channels, outputs = kernel.shape[-3:]
    width = inputs.shape[-2] + low + high - size + 1
    dense = strides[-1] == 1 and (lhs_dilation is None or lhs_dilation[-1] == 1)
    tile = _tile(width, size, channels, outputs) if dense else 1
    if tile > 1:
        inputs, kernel = _in_tiles(inputs, kernel, tile, low, width)
        padding = *padding[:-1], (0, 0)
    result = _canonical(
        inputs, kernel, strides, padding, precision, lhs_dilation=lhs_dilation
    )
    return result.reshape(*result.shape[:-2], width, outputs) if tile > 1 else result


def _canonical(inputs, kernel, strides, padding, precision, **dilation):
    return lax.conv_general_dilated(
        inputs,
        kernel,
        strides,
        padding,
        dimension_numbers=_form(inputs),
        precision=precision,
        **dilation,
    )


def _tile(width: int, size: int, channels: int, outputs: int) -> int:
    """How many pixels make a tile: 4 or 2, if the width divides by it, or 1.

    The limits were measured on two CPU cores.
    """
    smallest, most = (2, 32) if channels % 4 else (4, 16)
    if size < smallest or outputs > most or width < 1:
        return 1
    tiles = (4, 2) if outputs <= 8 else (2,)
    return next((tile for tile in tiles if width % tile == 0), 1)


def _in_tiles(inputs, kernel, tile: int, low: int, width: int):
    """Images and kernel whose last size counts tiles of pixels.

    Args:
        inputs: (batch, sizes…, channels).
        kernel: (sizes…, channels, outputs).
        tile: pixels of a tile.
        low: padding before the first pixel.
        width: pixels of the result, a multiple of those of a tile.

    Returns:
        Images of (batch, sizes…, tiles, tile · channels), padded, and a kernel of
        (sizes…, tiles, tile · channels, tile · outputs) that has the given one at each
        place where it can begin in a tile.
    """
    *sizes, size, channels, outputs = kernel.shape
    across = -(-(size + tile - 1) // tile)
    tiles = width // tile + across - 1
    high = tiles * tile - inputs.shape[-2] - low
    inputs = _pad(inputs, low, high, axis=-2)
    ends = across * tile - size
    kernels = [_pad(kernel, each, ends - each, axis=-3) for each in range(tile)]
    kernel = jnp.stack(kernels, -2)
    return (
        inputs.reshape(*inputs.shape[:-2], tiles, tile * channels),
        kernel.reshape(*sizes, across, tile * channels, tile * outputs),
    )


def _pad(array, low: int, high: int, axis: int):
    """An array with zeros before and after it along an axis; fewer than 0 cut it."""
    edges = [(0, 0, 0)] * array.ndim
    edges[axis] = low, high, 0
    return lax.pad(array, jnp.zeros((), array.dtype), edges)


def _form(inputs):
    axes = "xyz"[: inputs.ndim - 2]
    return f"N{axes}C", f"{axes}IO", f"N{axes}C"


def _forward(inputs, kernel, *how):
    return _quickest(inputs, kernel, *how), (inputs, kernel)


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
    by_inputs = _quickest(grads, swapped, ones, of_inputs, precision, strides)

    def by_kernel(inputs, grads):
        images = inputs.swapaxes(0, -1)  # channels in the place of the batch
        weights = jnp.moveaxis(grads, 0, -2)
        result = _canonical(
            images, weights, ones, of_kernel, precision, rhs_dilation=strides
        )
        return jnp.moveaxis(result, 0, -2)

    return by_inputs, _sum_over_images(by_kernel, inputs, grads)


def _sum_over_images(fn, *arrays):
    """A sum over images, in groups of `GROUP` at most: more at once are slower."""
    total = len(arrays[0])
    size = next((n for n in range(GROUP, GROUP // 4, -1) if total % n == 0), total)
    if size >= total:
        return fn(*arrays)
    groups = [each.reshape(-1, size, *each.shape[1:]) for each in arrays]
    return lax.map(lambda group: fn(*group), groups).sum(0)


_convolve.defvjp(_forward, _backward)
