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
    """Measures each layer on its own, with the weights of all other layers fixed.

    Args:
        measure: `expected_sharpness`, `keskar_sharpness`, `sam_sharpness`, one of the
            `hessian_` functions, or any function `measure(loss, params, ...)`. It is
            called with a tree like `params` in which the leaves of the other layers are
            empty (size 0 along their first axis), so patterns, masks and filter axes
            mean the same as for the whole network. If a mask leaves a layer without
            noise, its rise is 0.
        loss: the loss of the whole network.
        params: the parameters of the whole network. A layer is all leaves directly
            below one node, such as a module's kernel and bias, whether or not Flax
            boxes them; each leaf at the top is a layer. Leaves that are not floating or
            complex, such as counters and PRNG keys, belong to no layer and stay fixed.
        *args: further positional arguments of the measure.
        stacked: the axes, counted from 0, along which a scan or `vmap` stacks layers,
            by regular expressions that are searched for in the paths of the leaves,
            such as `{"^params/layers/": 0}`; the first match counts. Each index is then
            a layer of its own, whose leaves keep that axis with size 1.
        **options: the measure's keyword arguments, the same for every layer.

    Returns:
        The measure's result for each layer, by path, such as `"params/Dense_0"`, or
        `"params/layers/Dense_0[2]"` if it is stacked.

    Raises:
        ValueError: if `params` has no floating or complex leaf.
        TypeError, ValueError: if `stacked` contains an invalid pattern or axis, or an
            axis that a leaf does not have, or if leaves of the same node have different
            numbers of stacked layers.

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
        # Keeps the signature of the loss, so that a measure can check it.
        whole = functools.update_wrapper(
            Partial(_with_layer, partial, params, where), partial
        )
        return measure(whole, jax.tree.unflatten(structure, own), *args, **options)

    return {name: measured(layers[name]) for name in progress("layers", list(layers))}


def _with_layer(loss, params, where, layer, *batch):
    """The loss of the whole network with one layer replaced."""
    # Containers may not compare equal, but they hold their leaves in the same order.
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
    """The parts of each layer, as `_cut` takes them, by the number of the leaf."""
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
    """A layer's part of a leaf, and a mask of its place unless it is the whole leaf."""
    if place is None:
        return leaf, None
    axis, index = place
    shape = [size if each == axis else 1 for each, size in enumerate(leaf.shape)]
    where = np.arange(leaf.shape[axis]).reshape(shape) == index
    bounds, sharding = (index, index + 1), explicit_sharding(leaf)
    if sharding is not None:  # A single layer cannot be sharded along the stacked axis.
        spec = [None if each == axis else its for each, its in enumerate(sharding.spec)]
        sharding = NamedSharding(sharding.mesh, jax.P(*spec))
    cut = by_parts(lambda leaf: lax.slice_in_dim(leaf, *bounds, axis=axis), sharding)
    return cut(leaf), where


def _place(where, layer, leaf):
    """The leaf with a layer's part replaced."""
    return by_parts(jnp.where, explicit_sharding(leaf))(where, layer, leaf)


def _emptied(leaf, dtype):
    """An empty leaf, in place of one that is not part of the layer."""
    if not _checks.is_inexact(leaf):
        return jnp.zeros(0, dtype)
    return jnp.atleast_1d(leaf)[:0]
