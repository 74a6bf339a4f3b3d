"""Trees of parameters: names of leaves, whether two are alike, noise added, sums.

Trees are compared by the paths and shapes of their leaves, as containers need not say
whether they are equal: classes registered with JAX, or NNX modules.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from smoothout_jax._jax import on_one_gpu

Params = Any

# Elements from which on an array is summed alone on a GPU; those of a row of others.
LARGE, ROW = 2**16, 256


def leaf_names(tree: Any) -> list[str]:
    """The path of each leaf, its keys joined by slashes: `"Dense_0/kernel"`.

    A path is what the user wrote: the attribute in which Flax boxes an array, as
    `nnx.Param` and `nn.Partitioned` do, is left out.
    """
    return list(map(_joined, _leaf_paths(tree)))


def layer_names(tree: Any) -> list[str]:
    """The path of each leaf's layer: of the node above it, or its own at the top."""
    return [_joined(path[:-1] or path) for path in _leaf_paths(tree)]


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Each leaf with its name."""
    return list(zip(leaf_names(tree), jax.tree.leaves(tree), strict=True))


def require_like(params: Any, name: str, tree: Any) -> None:
    """Requires a tree with the leaves of the parameters: same paths, same shapes."""
    expected, given = _shapes(params), _shapes(tree)
    for leaf in expected | given:
        here, there = expected.get(leaf), given.get(leaf)
        if here != there:
            raise ValueError(
                f"{name} must be a tree like params, but {leaf!r} is"
                f" {_described(there)} in {name}, and {_described(here)} in params"
            )


def map_leaves(fun: Callable[..., Any], params: Any, *others: Any) -> Any:
    """A tree like the parameters, of a function of the leaves of trees like them."""
    leaves, structure = jax.tree.flatten(params)
    rows = zip(leaves, *map(jax.tree.leaves, others), strict=True)
    return jax.tree.unflatten(structure, [fun(*row) for row in rows])


def _leaf_paths(tree):
    return [
        path + below[1 if _is_box(node) else 0 :]
        for path, node in jax.tree.leaves_with_path(tree, is_leaf=_is_box)
        for below, _ in jax.tree.leaves_with_path(node)
    ]


def _is_box(node) -> bool:
    """Whether Flax boxes an array in it: boxes alone can gain an axis, or lose it."""
    return hasattr(type(node), "add_axis") and hasattr(type(node), "remove_axis")


def _joined(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    return {name: np.shape(leaf) for name, leaf in named_leaves(tree)}


def _described(shape) -> str:
    return "missing" if shape is None else f"of shape {shape}"


def add_noise(params: Params, noise: Params) -> Params:
    """Adds noise to the parameters, but for PRNG keys, which stay as they are.

    Raises:
        ValueError: unless the noise is a tree like the parameters.
    """
    require_like(params, "noise", noise)

    def add(leaf, noise):
        is_key = jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)
        return leaf if is_key else optax.apply_updates(leaf, noise)

    return map_leaves(add, params, noise)


def accumulator_dtype(dtype: Any) -> Any:
    """The dtype itself, or float32 in the place of half precision and integers."""
    wide = jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).bits >= 32
    return dtype if wide else jnp.dtype(jnp.float32)


def sums(arrays: Sequence[jax.Array]) -> list[jax.Array]:
    """The sum of each array, in its dtype.

    A GPU takes about as long to start a sum as to add up a small array, and networks
    have dozens of them: there they are laid into rows, and summed together.
    """
    small = list(filter(_is_small, arrays))
    if len(small) < 2 or not on_one_gpu():
        return [jnp.sum(each) for each in arrays]
    rows = [-(-each.size // ROW) for each in small]
    padded = [
        jnp.pad(jnp.ravel(each), (0, number * ROW - each.size))
        for each, number in zip(small, rows, strict=True)
    ]
    of_rows = jnp.sum(jnp.concatenate(padded).reshape(-1, ROW), axis=1)
    is_its_own = (
        np.repeat(np.arange(len(small)), rows) == np.arange(len(small))[:, None]
    )
    together = iter(jnp.sum(jnp.where(is_its_own, of_rows, 0), axis=1))
    return [next(together) if _is_small(each) else jnp.sum(each) for each in arrays]


def _is_small(array: jax.Array) -> bool:
    return array.size < LARGE and array.dtype == jnp.float32
