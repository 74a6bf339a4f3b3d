"""Trees of parameters: names of leaves, comparison, added noise, and sums.

Trees are compared by the paths and shapes of their leaves, because containers, such as
NNX modules or classes registered with JAX, need not define equality.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from smoothout_jax._jax import on_one_gpu

Params = Any

# Elements that a GPU sums in one go.
ROW = 256


def leaf_names(tree: Any) -> list[str]:
    """The path of each leaf, as the user wrote it: `"Dense_0/kernel"`.

    The attribute in which Flax boxes an array, as `nnx.Param` does, is left out.
    """
    return list(map(_joined, _leaf_paths(tree)))


def layer_names(tree: Any) -> list[str]:
    """The path of each leaf's layer: the node above it, or, at the top, the leaf."""
    return [_joined(path[:-1] or path) for path in _leaf_paths(tree)]


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Each leaf with its name."""
    return list(zip(leaf_names(tree), jax.tree.leaves(tree), strict=True))


def require_like(params: Any, name: str, tree: Any) -> None:
    """Requires a tree with the leaves of the parameters: same paths, same shapes."""
    here, there = (
        {path: f"of shape {np.shape(leaf)}" for path, leaf in named_leaves(each)}
        for each in (params, tree)
    )
    for path in here | there:
        expected, given = here.get(path, "missing"), there.get(path, "missing")
        if given != expected:
            raise ValueError(
                f"{name} must be a tree like params, but {path!r} is {given} in {name},"
                f" and {expected} in params"
            )


def broadcast(name: str, tree: Any, params: Any, is_leaf: Any = None) -> list[Any]:
    """The leaves of a tree, or prefix tree, one for each leaf of the parameters."""
    try:
        whole = jax.tree.broadcast(tree, params, is_leaf=is_leaf)
    except ValueError as error:
        raise ValueError(
            f"{name} must be a tree, or prefix tree, like params: its structure is"
            f" {jax.tree.structure(tree, is_leaf)}, that of params"
            f" {jax.tree.structure(params)}"
        ) from error
    return jax.tree.leaves(whole, is_leaf=is_leaf)


def map_leaves(fun: Callable[..., Any], params: Any, *others: Any) -> Any:
    """Applies a function to the leaves of the parameters and of trees like them.

    `None` counts as a leaf of the others. Where the parameters have it, it stays.
    """
    rows = zip(*map(leaves_or_none, (params, *others)), strict=True)
    results = [None if row[0] is None else fun(*row) for row in rows]
    structure = jax.tree.structure(params, is_leaf=_is_none)
    return jax.tree.unflatten(structure, results)


def leaves_or_none(tree: Any) -> list[Any]:
    """The leaves of a tree, including `None`."""
    return jax.tree.leaves(tree, is_leaf=_is_none)


def stored(values: jax.Array, dtype: Any) -> jax.Array:
    """Values rounded to a dtype, even where XLA would keep excess precision."""
    if dtype == jnp.bfloat16:
        return jax.lax.reduce_precision(values, 8, 7).astype(dtype)
    values = values.astype(dtype)
    # reduce_precision has no subnormal numbers, which float16 and below need.
    is_narrow = jnp.finfo(dtype).bits < 32
    return jax.lax.optimization_barrier(values) if is_narrow else values


def _is_none(node: Any) -> bool:
    return node is None


def _leaf_paths(tree):
    return [
        path + below[1 if _is_box(node) else 0 :]
        for path, node in jax.tree.leaves_with_path(tree, is_leaf=_is_box)
        for below, _ in jax.tree.leaves_with_path(node)
    ]


def _is_box(node) -> bool:
    """Whether it is a box of Flax: only boxes can gain or lose an axis."""
    return hasattr(type(node), "add_axis") and hasattr(type(node), "remove_axis")


def _joined(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def add_noise(params: Params, noise: Params) -> Params:
    """Adds noise, except where a parameter would leave the range of its dtype.

    PRNG keys stay as they are. Raises ValueError unless the trees are alike.
    """
    require_like(params, "noise", noise)

    def add(leaf, noise):
        dtype = jnp.result_type(leaf)
        if jnp.issubdtype(dtype, jax.dtypes.prng_key):
            return leaf
        if not jnp.issubdtype(dtype, jnp.inexact):
            return optax.apply_updates(leaf, noise)
        leaf, wide = jnp.asarray(leaf), accumulator_dtype(dtype)
        exact = leaf.astype(wide) + jnp.asarray(noise).astype(wide)
        return jnp.where(is_in_range(exact, dtype), stored(exact, dtype), leaf)

    return map_leaves(add, params, noise)


def is_in_range(values: jax.Array, dtype: Any) -> jax.Array:
    """Whether values fit into a dtype, elementwise; NaN does not."""
    return jnp.abs(values) <= float(jnp.finfo(dtype).max)


def accumulator_dtype(dtype: Any) -> Any:
    """The dtype itself, or float32 for half precision and integers."""
    wide = jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).bits >= 32
    return dtype if wide else jnp.dtype(jnp.float32)


def total(arrays: Sequence[jax.Array]) -> jax.Array:
    """The sum of all elements of all arrays, float32.

    A GPU takes about as long to start a sum as to add up a small array, and networks
    have dozens of those. There, each array is summed in rows, and all rows together.
    """
    if not on_one_gpu():
        arrays = [jnp.sum(each) for each in arrays]
        return jnp.sum(jnp.asarray([each.astype(jnp.float32) for each in arrays]))

    def sums_of_rows(array):
        vector = jnp.ravel(array).astype(jnp.float32)
        rows = jnp.pad(vector, (0, -vector.size % ROW)).reshape(-1, ROW)
        return jnp.sum(rows, axis=1)

    sums = list(map(sums_of_rows, arrays)) or [jnp.zeros(0)]
    # Without the barrier XLA would sum each of them alone.
    return jnp.sum(jax.lax.optimization_barrier(jnp.concatenate(sums)))
