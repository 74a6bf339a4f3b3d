"""Any measure, layer by layer."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding
from jax.tree_util import Partial

from smoothout_jax import _checks
from smoothout_jax._extras import progress
from smoothout_jax._sharding import by_parts, explicit_sharding
from smoothout_jax._trees import Params, layer_names, leaf_names, named_leaves
from smoothout_jax.filters import check_stack_axis, check_stacked
from smoothout_jax.masks import check_patterns, first_match, warn_of_unmatched
from smoothout_jax.sharpness.objective import Loss, as_partial, check_function


def per_layer(
    measure: Callable[..., Any],
    loss: Loss,
    params: Params,
    *args: Any,
    stacked: Mapping[str, int] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """A measure of each layer: with the weights of all others held where they are.

    Args:
        measure: `expected_sharpness`, `keskar_sharpness`, `sam_sharpness`, one of the
            `hessian_` functions, or any function `measure(loss, params, ...)`. It gets
            a tree like `params` in which the leaves of the other layers are empty: of
            size 0 along their first axis. So patterns, masks and filters' axes mean
            what they mean for the whole network; where a mask leaves a layer no noise,
            its loss rises by 0.
        loss: the loss of the whole network.
        params: the parameters of the whole network. A layer is what lies right below
            one node, such as a module's kernel and bias, whether Flax boxes them or
            not; leaves at the top are layers each. What is not floating or complex,
            such as counters and PRNG keys, is of no layer, and stays where it is.
        *args: further positional arguments of the measure.
        stacked: the axes, counted from 0, along which a scan or `vmap` has stacked
            layers, by patterns that are searched for in the paths of the leaves, such
            as `{"^params/layers/": 0}`; the first that matches counts. Each index is
            then a layer of its own, whose leaves keep that axis, of size 1.
        **options: the measure's keyword arguments, the same for every layer.

    Returns:
        What the measure returns, by the path of the layer, such as `"params/Dense_0"`,
        or, of stacked ones, `"params/layers/Dense_0[2]"`.

    Raises:
        ValueError: if `params` has no floating or complex leaf.
        TypeError, ValueError: if `stacked` holds what is no pattern or no axis, or an
            axis that a leaf does not have, or if leaves of one layer are stacked unlike
            often.

    Example:
        >>> import jax.numpy as jnp
        >>> from smoothout_jax.sharpness import per_layer, sam_sharpness
        >>> def loss(params):
        ...     return params["first"] ** 2 + 9 * params["second"] ** 2
        >>> params = {"first": jnp.array(0.0), "second": jnp.array(0.0)}
        >>> for layer, rise in per_layer(sam_sharpness, loss, params, rho=1.0).items():
        ...     print(layer, f"{rise.value:.1f}")
        first 1.0
        second 9.0
    """
    check_function(measure, name="measure")
    partial = as_partial(loss)
    _checks.arrays(params=params)
    stacked = {} if stacked is None else stacked
    _check_axes(stacked)
    warn_of_unmatched("stacked", tuple(stacked), leaf_names(params))
    arrays = jax.tree.map(jnp.asarray, params)
    leaves, structure = jax.tree.flatten(arrays)
    layers = _layers(arrays, stacked)
    if not layers:
        raise ValueError("params has no floating or complex leaf, so no layer")
    dtype = next(filter(_checks.is_inexact, leaves)).dtype

    def measured(places: dict[int, Any]) -> Any:
        parts = [
            _cut(leaf, places[number])
            if number in places
            else (_emptied(leaf, dtype), None)
            for number, leaf in enumerate(leaves)
        ]
        own, where = zip(*parts, strict=True)
        # Is called as the loss is, so that a measure can check it.
        whole = functools.update_wrapper(
            Partial(_with_layer, partial, params, where), partial
        )
        return measure(whole, jax.tree.unflatten(structure, own), *args, **options)

    return {name: measured(layers[name]) for name in progress("layers", list(layers))}


def _with_layer(loss, params, where, layer, *batch):
    """The loss of the whole network with one layer replaced."""
    # Containers need not say that they are equal, but hold their leaves in one order.
    old, structure = jax.tree.flatten(params)
    replaced = [
        o if not jnp.size(n) else n if its is None else _place(its, n, o)
        for o, n, its in zip(old, jax.tree.leaves(layer), where, strict=True)
    ]
    return loss(jax.tree.unflatten(structure, replaced), *batch)


def _check_axes(stacked) -> None:
    if not isinstance(stacked, Mapping):
        raise TypeError(
            "stacked must be a mapping from patterns to axes, such as"
            f" {{'^layers/': 0}}, got {_checks.describe(stacked)}"
        )
    check_patterns("stacked", tuple(stacked))
    for pattern, axis in stacked.items():
        check_stack_axis(axis, f"stacked[{pattern!r}]")


def _layers(params, stacked) -> dict[str, dict[int, Any]]:
    """The parts of each layer: what `_cut` takes, by the number of the leaf."""
    layers, depths = {}, {}
    rows = zip(layer_names(params), named_leaves(params), strict=True)
    for number, (layer, (path, leaf)) in enumerate(rows):
        if not _checks.is_inexact(leaf):
            continue
        axis = stacked.get(first_match(stacked, path))
        if axis is None:
            layers.setdefault(layer, {})[number] = None
            continue
        check_stacked(leaf.shape, path, axis)
        depth = leaf.shape[axis]
        if depths.setdefault(layer, depth) != depth:
            raise ValueError(
                f"stacked: parameter {path!r} of shape {leaf.shape} has {depth} layers"
                f" along axis {axis}, other weights of {layer!r} {depths[layer]}"
            )
        for index in range(depth):
            layers.setdefault(f"{layer}[{index}]", {})[number] = axis, index
    return layers


def _cut(leaf, place):
    """A layer's part of a leaf, and where it lies there if it is not all of it."""
    if place is None:
        return leaf, None
    axis, index = place
    shape = [size if each == axis else 1 for each, size in enumerate(leaf.shape)]
    where = np.arange(leaf.shape[axis]).reshape(shape) == index
    bounds, sharding = (index, index + 1), explicit_sharding(leaf)
    if sharding is not None:  # One layer cannot lie along the axis of all.
        spec = [None if each == axis else its for each, its in enumerate(sharding.spec)]
        sharding = NamedSharding(sharding.mesh, jax.P(*spec))
    cut = by_parts(lambda leaf: lax.slice_in_dim(leaf, *bounds, axis=axis), sharding)
    return cut(leaf), where


def _place(where, layer, leaf):
    """A leaf with a layer's part in its place."""
    return by_parts(jnp.where, explicit_sharding(leaf))(where, layer, leaf)


def _emptied(leaf, dtype):
    """In the place of a leaf of another layer, or of none: one without weights."""
    if not _checks.is_inexact(leaf):
        return jnp.zeros(0, dtype)
    return jnp.atleast_1d(leaf)[:0]
