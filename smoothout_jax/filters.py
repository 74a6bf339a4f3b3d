"""Which weights make one filter: the axes of a leaf whose indices number its filters.

A filter is all that makes one output: the column of a dense kernel, the weights of one
channel of a convolution, those of one unit of an attention head, a token's row of an
embedding. The norms that noise is relative to are taken over a leaf's other axes::

    parameter                                              filter_axis
    dense kernel of Flax or Haiku, (inputs, outputs)       -1
    convolution of theirs, (…, inputs, outputs)            -1
    attention of Flax, (inputs, heads, head size)          (-2, -1)
    embedding, (tokens, features)                          0
    any of Equinox, (outputs, inputs, …)                   0
    dense layers stacked by a scan, (layers, in, out)      (0, -1)

Networks of several kinds name them by path, or by a function of the parameters, as
`flax_filters`, `equinox_filters` and `haiku_filters` are; `stacked` adds the axis of
stacked layers.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple

from smoothout_jax import _checks
from smoothout_jax._trees import Params, leaf_names
from smoothout_jax.masks import check_patterns, first_match, warn_of_unmatched

Axes = int | tuple[int, ...]
FilterAxis = Axes | Literal["auto"] | Mapping[str, Axes] | Callable[[Params], Any]

LAST = -1
# The names of leaves by which frameworks are recognised, and how Haiku has them: by the
# path of the module, in which slashes are part of a name, and their own.
FLAX = {"kernel", "embedding", "lora_a", "lora_b"}
HAIKU = {"w", "embeddings", "w_i", "w_h"}


class Numbering(NamedTuple):
    """The axes of a leaf that number its filters, counted from 0.

    Attributes:
        filters: all of them.
        layers: those of them that number stacked layers.
    """

    filters: tuple[int, ...]
    layers: tuple[int, ...] = ()


def flax_filters(params: Params) -> Params:
    """The axes of the filters of Flax's layers, Linen's and NNX's, by path.

    Attention's queries, keys and values, (inputs, heads, head size), have a filter for
    each unit of each head. Embeddings, of tokens, of positions or of classes, have one
    for each row: leaves whose name ends in `embed`, `embedding` or `embeddings`, or is
    `position`. All else has one for each index of the last axis. Name in a mapping what
    it cannot know of: transposed convolutions with `transpose_kernel=True`, whose
    outputs come before their inputs, or outputs of several axes outside attention.

    Args:
        params: the parameters.

    Returns:
        A tree like the parameters of axes: a `filter_axis`.

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
    """The axes of the filters of Haiku's layers, by path.

    Transposed convolutions, (…, outputs, inputs), have a filter for each index of the
    last axis but one, and embeddings one for each token; all else has one for each
    index of the last axis.

    Args:
        params: the parameters.

    Returns:
        A tree like the parameters of axes: a `filter_axis`.
    """
    return _by_rank(params, {r"transpose[^/]*/w$|(^|/)embeddings$": (2, -2)})


def equinox_filters(params: Params) -> Params:
    """The axes of the filters of Equinox's layers: the first, that of their outputs.

    Args:
        params: the parameters.

    Returns:
        A tree like the parameters of axes: a `filter_axis`, which `stacked` takes for
        layers that `equinox.filter_vmap` has made.
    """
    return _tree(params, [0] * len(jax.tree.leaves(params)))


def stacked(
    filter_axis: FilterAxis, *patterns: str, axis: int = 0
) -> Callable[[Params], Params]:
    """The filters of layers that a scan or `vmap` has stacked.

    Every layer keeps filters, and norms, of its own, with `relative_to="layer"` too.

    Args:
        filter_axis: the axes of the filters of one layer, as for `uniform`; a function
            gets the shapes and dtypes of one layer.
        *patterns: regular expressions, searched for in the paths of the leaves that
            are stacked, such as `"^layers/"`; without any, all of them are.
        axis: the axis along which they are stacked, counted from 0.

    Returns:
        A function of the parameters to a tree of axes: a `filter_axis`.

    Raises:
        TypeError, ValueError: if an axis or a pattern is not one; from the function, if
            a stacked leaf has no such axis.

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
    """Requires "auto", an axis or several, a mapping from patterns, or a function."""
    if filter_axis == "auto":
        return
    if isinstance(filter_axis, Mapping):
        check_patterns("filter_axis", tuple(filter_axis))
        for pattern, axes in filter_axis.items():
            _require_axes(f"filter_axis[{pattern!r}]", axes)
    elif not callable(filter_axis):
        _require_axes("filter_axis", filter_axis)


def raw_axes(filter_axis: FilterAxis, params: Params) -> list[Any]:
    """The axes of each leaf's filters, as they were given."""
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
    """The axes of a leaf, counted from 0; raises unless it has them."""
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
    """The axes of the first pattern that a path matches and whose rank its leaf has."""

    def find(path, leaf):
        for pattern, (rank, found) in axes.items():
            if np.ndim(leaf) >= rank and re.search(pattern, path):
                return found
        return LAST

    return _tree(params, list(map(find, leaf_names(params), jax.tree.leaves(params))))


def _tree(params: Params, leaves: list[Any]) -> Params:
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def _of_framework(params: Params) -> Callable[[Params], Params]:
    """The filters of the framework whose modules or names the parameters have.

    Leaves of fewer than two axes are the same in all of them.
    """
    if _checks.has_class(params, "equinox"):
        return equinox_filters
    rows = list(zip(leaf_names(params), jax.tree.leaves(params), strict=True))
    paths = [path for path, leaf in rows if np.ndim(leaf) > 1]
    last = {path.rpartition("/")[2] for path in paths}
    if last & FLAX or not paths:
        return flax_filters
    if last & HAIKU and any("/" in path for path in paths):
        return haiku_filters
    raise ValueError(
        f"filter_axis='auto' knows the layers of Flax, Equinox and Haiku, but not the"
        f" parameter {paths[0]!r}: pass the axis of its outputs, such as filter_axis=-1"
        " for x @ w or 0 for w @ x"
    )
