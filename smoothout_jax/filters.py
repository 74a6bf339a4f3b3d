"""Which weights make up a filter: the axes of a leaf that index its filters.

A filter is all weights of one output, such as a column of a dense kernel. The norms
that scale relative noise are taken over the other axes of a leaf::

    parameter                                              filter_axis
    Flax or Haiku dense kernel, (inputs, outputs)          -1
    Flax or Haiku convolution, (…, inputs, outputs)        -1
    Flax attention, (inputs, heads, head size)             (-2, -1)
    embedding, (tokens, features)                          0
    Equinox, any layer, (outputs, inputs, …)               0
    dense layers stacked by a scan, (layers, in, out)      (0, -1)
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple

from smoothout_jax import _checks
from smoothout_jax._trees import Params, leaf_names, named_leaves
from smoothout_jax.masks import check_patterns, first_match, warn_of_unmatched

Axes = int | tuple[int, ...]
FilterAxis = Axes | Literal["auto"] | Mapping[str, Axes] | Callable[[Params], Any]

LAST = -1
# The names of leaves by which frameworks are recognised. Haiku has two levels: the path
# of the module, whose name may contain slashes, and the name of the leaf.
FLAX = {"kernel", "embedding", "lora_a", "lora_b"}
HAIKU = {"w", "embeddings", "w_i", "w_h"}


class Numbering(NamedTuple):
    """The axes of a leaf that index its filters, counted from 0."""

    filters: tuple[int, ...]
    # Those among them that index stacked layers.
    layers: tuple[int, ...] = ()


def flax_filters(params: Params) -> Params:
    """The filter axes of Flax's layers, Linen's and NNX's, by path.

    Attention's queries, keys and values, (inputs, heads, head size), have a filter for
    each unit of each head. Embeddings of tokens, positions or classes have one for each
    row; they are the leaves named `position` or ending in `embed`, `embedding` or
    `embeddings`. All other leaves have one for each index of the last axis. Use a
    mapping for transposed convolutions with `transpose_kernel=True`, whose outputs come
    before their inputs, and for outputs of several axes outside attention.

    Args:
        params: the parameters.

    Returns:
        A tree of axes like the parameters: a `filter_axis`.

    Example:
        >>> import jax.numpy as jnp
        >>> from smoothout_jax import flax_filters, uniform
        >>> params = {"query": {"kernel": jnp.ones((8, 2, 4))}}
        >>> print(flax_filters(params))
        {'query': {'kernel': (-2, -1)}}
        >>> noise = uniform(0.5, relative_to="filter", filter_axis=flax_filters)
    """
    attention = r"(^|/)(query|key|value)/"
    return _by_rank(
        params,
        {
            attention + "kernel$": (3, (-2, -1)),
            attention + "bias$": (2, (-2, -1)),
            r"embed(dings?)?$|(^|/)position$": (2, -2),
        },
    )


def haiku_filters(params: Params) -> Params:
    """The filter axes of Haiku's layers, by path.

    Transposed convolutions, (…, outputs, inputs), have a filter for each index of the
    second-to-last axis, and embeddings one for each token. All other leaves have one
    for each index of the last axis.

    Args:
        params: the parameters.

    Returns:
        A tree of axes like the parameters: a `filter_axis`.
    """
    return _by_rank(params, {r"transpose[^/]*/w$|(^|/)embeddings$": (2, -2)})


def equinox_filters(params: Params) -> Params:
    """The filter axes of Equinox's layers: the first axis, which holds the outputs.

    Args:
        params: the parameters.

    Returns:
        A tree of axes like the parameters: a `filter_axis`. Wrap it in `stacked` for
        layers made by `equinox.filter_vmap`.
    """
    return _tree(params, [0] * len(jax.tree.leaves(params)))


def stacked(
    filter_axis: FilterAxis, *patterns: str, axis: int = 0
) -> Callable[[Params], Params]:
    """The filter axes of layers stacked by a scan or `vmap`.

    Every layer keeps its own filters and norms, also with `relative_to="layer"`.

    Args:
        filter_axis: the filter axes of one layer, as for `uniform`; a function gets the
            shapes and dtypes of one layer.
        *patterns: regular expressions, searched for in the paths, that match the
            stacked leaves, such as `"^layers/"`; without patterns, all are stacked.
        axis: the axis along which they are stacked, counted from 0.

    Returns:
        A function from the parameters to a tree of axes: a `filter_axis`.

    Raises:
        TypeError, ValueError: if an axis or a pattern is invalid; from the function, if
            a stacked leaf does not have the axis.

    Example:
        >>> from smoothout_jax import flax_filters, stacked, uniform
        >>> filters = stacked(flax_filters, "^layers/")
        >>> noise = uniform(0.5, relative_to="filter", filter_axis=filters)
    """
    check_filter_axis(filter_axis)
    check_patterns("stacked", patterns)
    check_stack_axis(axis)

    def one_layer(leaf: jax.Array, path: str) -> jax.ShapeDtypeStruct:
        check_stacked(leaf.shape, path, axis)
        shape = leaf.shape[:axis] + leaf.shape[axis + 1 :]
        return jax.ShapeDtypeStruct(shape, leaf.dtype)

    def of_all_layers(one: tuple[int, ...]) -> tuple[int, ...]:
        return (axis, *(each + (each >= axis) for each in one))

    def axes_of(params: Params) -> Params:
        paths = leaf_names(params)
        warn_of_unmatched("stacked", patterns, paths)
        leaves: list[Any] = list(map(jnp.asarray, jax.tree.leaves(params)))
        chosen = [not patterns or first_match(patterns, p) is not None for p in paths]
        for place in np.flatnonzero(chosen):
            leaves[place] = one_layer(leaves[place], paths[place])
        found = raw_axes(filter_axis, _tree(params, leaves))
        for place in np.flatnonzero(chosen):
            of_one = numbering(found[place], leaves[place].shape, paths[place])
            found[place] = Numbering(*map(of_all_layers, of_one))
        return _tree(params, found)

    return axes_of


def check_stack_axis(axis: int, name: str = "axis") -> None:
    """Requires an axis counted from 0."""
    if isinstance(axis, bool) or not isinstance(axis, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {_checks.describe(axis)}")
    if axis < 0:
        raise ValueError(f"{name} must be at least 0, got {axis}")


def check_stacked(shape: tuple[int, ...], path: str, axis: int) -> None:
    """Requires a leaf to have the axis along which layers are stacked."""
    if len(shape) <= axis:
        raise ValueError(
            f"stacked: parameter {path!r} of shape {shape} has no axis {axis} of layers"
        )


def check_filter_axis(filter_axis: FilterAxis) -> None:
    """Requires "auto", one or more axes, a mapping from patterns, or a function."""
    if filter_axis == "auto":
        return
    if isinstance(filter_axis, Mapping):
        check_patterns("filter_axis", tuple(filter_axis))
        for pattern, axes in filter_axis.items():
            _require_axes(f"filter_axis[{pattern!r}]", axes)
    elif not callable(filter_axis):
        _require_axes("filter_axis", filter_axis)


def raw_axes(filter_axis: FilterAxis, params: Params) -> list[Any]:
    """The filter axes of each leaf, as given."""
    if filter_axis == "auto":
        filter_axis = _of_framework(params)
    if isinstance(filter_axis, Mapping):
        paths = leaf_names(params)
        warn_of_unmatched("filter_axis", tuple(filter_axis), paths)
        matches = [first_match(filter_axis, path) for path in paths]
        return [LAST if match is None else filter_axis[match] for match in matches]
    if callable(filter_axis):
        tree = filter_axis(params)
        try:
            return jax.tree.structure(params).flatten_up_to(tree)
        except ValueError as error:
            raise ValueError(
                "filter_axis must make a tree of axes like params, but made"
                f" {_checks.describe(tree)}"
            ) from error
    return [filter_axis] * len(jax.tree.leaves(params))


def numbering(axes: Any, shape: tuple[int, ...], path: str) -> Numbering:
    """The axes of a leaf, counted from 0; raises if it does not have them."""
    if isinstance(axes, Numbering) or not shape:
        return axes if isinstance(axes, Numbering) else Numbering(())
    _require_axes(f"filter_axis of {path!r}", axes)
    try:
        return Numbering(normalize_axis_tuple(axes, len(shape)))
    except ValueError as error:
        raise ValueError(
            f"filter_axis={axes} does not suit parameter {path!r} of shape {shape}:"
            f" {error}; mask it out or choose another axis"
        ) from None


def _require_axes(name: str, axes: Any) -> None:
    for axis in axes if isinstance(axes, tuple) else (axes,):
        if isinstance(axis, bool) or not isinstance(axis, int):
            raise TypeError(
                f"{name} must be an integer or a tuple of integers, got"
                f" {_checks.describe(axes)}"
            )


def _by_rank(params: Params, axes: Mapping[str, tuple[int, Axes]]) -> Params:
    """The axes of the first pattern that matches, for leaves of at least its rank."""

    def find(path, leaf):
        for pattern, (rank, found) in axes.items():
            if np.ndim(leaf) >= rank and re.search(pattern, path):
                return found
        return LAST

    return _tree(params, [find(path, leaf) for path, leaf in named_leaves(params)])


def _tree(params: Params, leaves: list[Any]) -> Params:
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def _of_framework(params: Params) -> Callable[[Params], Params]:
    """The filters of the framework that the modules or names in the parameters show."""
    if _checks.has_class(params, "equinox"):
        return equinox_filters
    # Leaves of fewer than two axes are the same in every framework.
    paths = [path for path, leaf in named_leaves(params) if np.ndim(leaf) > 1]
    last = {path.rpartition("/")[2] for path in paths}
    if last & FLAX or not paths:
        return flax_filters
    if last & HAIKU and any("/" in path for path in paths):
        return haiku_filters
    raise ValueError(
        "filter_axis='auto' recognises the layers of Flax, Equinox and Haiku, but not"
        f" parameter {paths[0]!r}: pass the axis of its outputs, such as filter_axis=-1"
        " for x @ w or 0 for w @ x"
    )
