"""Any measure, layer by layer."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.tree_util import Partial

from smoothout_jax import _checks
from smoothout_jax._extras import progress
from smoothout_jax._trees import Params, layer_names
from smoothout_jax.sharpness.objective import Loss, as_partial, check_function


def per_layer(
    measure: Callable[..., Any],
    loss: Loss,
    params: Params,
    *args: Any,
    **options: Any,
) -> dict[str, Any]:
    """A measure of each layer: with the weights of all others held where they are.

    Args:
        measure: `expected_sharpness`, `keskar_sharpness`, `sam_sharpness`, one of the
            `hessian_` functions, or any function `measure(loss, params, ...)`.
        loss: the loss of the whole network.
        params: the parameters of the whole network. A layer is what lies right below
            one node, such as a module's kernel and bias, whether Flax boxes them or
            not; leaves at the top are layers each.
        *args: further positional arguments of the measure.
        **options: its keyword arguments, the same for every layer.

    Returns:
        What the measure returns, by the path of the layer, such as `"params/Dense_0"`.

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
    # Is called as the loss is, so that a measure can check it.
    whole = functools.update_wrapper(Partial(_with_layer, partial, params), partial)
    leaves, structure = jax.tree.flatten(params)
    names = layer_names(params)

    def layer(name):
        own = [
            leaf if other == name else None
            for other, leaf in zip(names, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, own)

    return {
        name: measure(whole, layer(name), *args, **options)
        for name in progress("layers", list(dict.fromkeys(names)))
    }


def _with_layer(loss, params, layer, *batch):
    """The loss of the whole network with one layer replaced."""

    def is_none(node):
        return node is None

    # Containers need not say that they are equal, but hold their leaves in one order.
    old, structure = jax.tree.flatten(params, is_leaf=is_none)
    new = jax.tree.leaves(layer, is_leaf=is_none)
    replaced = [o if n is None else n for o, n in zip(old, new, strict=True)]
    return loss(jax.tree.unflatten(structure, replaced), *batch)
