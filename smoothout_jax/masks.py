"""Where noise is added: masks that select leaves by their paths."""

import re
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from smoothout_jax import _checks
from smoothout_jax._jax import is_traced
from smoothout_jax._trees import Params, broadcast, leaf_names

Mask = Any

# What Flax's layers keep besides their parameters: collections of Linen, types of NNX.
# NNX creates a new type for a Linen collection that it does not know.
STATISTICS = {"batch_stats", "_overwrite_with_gradient"}
BESIDE_PARAMS = {"cache", "intermediates", "perturbations"}
VARIABLES = {"BatchStat", "_overwrite_with_gradient", "Cache", "Intermediate"}


def exclude(*patterns: str) -> Callable[[Params], Params]:
    """Masks out the leaves whose path matches a pattern, such as those of norm layers.

    Args:
        *patterns: one or more regular expressions, searched for anywhere in a leaf's
            path: its keys joined by slashes, without Flax's wrappers, as in
            `"BatchNorm_0/scale"`. A pattern that matches no leaf warns, since it may be
            misspelt.

    Returns:
        A function from parameters to a tree of booleans, `True` where no pattern
        matches: a `mask` for noise and for Optax.

    Raises:
        TypeError: if a pattern is not a string.
        ValueError: if there is no pattern, or one is not a regular expression.

    Example:
        >>> from smoothout_jax import exclude
        >>> params = {"BatchNorm_0": {"scale": 1.0}, "Dense_0": {"kernel": 2.0}}
        >>> exclude("BatchNorm")(params)
        {'BatchNorm_0': {'scale': False}, 'Dense_0': {'kernel': True}}
    """
    return _by_match("exclude", patterns, chosen=False)


def only(*patterns: str) -> Callable[[Params], Params]:
    """Masks out all leaves except those whose path matches: the opposite of `exclude`.

    Args:
        *patterns: one or more regular expressions, as for `exclude`.

    Returns:
        A function from parameters to a tree of booleans, `True` where one matches.

    Raises:
        TypeError, ValueError: as for `exclude`.

    Example:
        >>> from smoothout_jax import only
        >>> params = {"Dense_0": {"bias": 1.0, "kernel": 2.0}}
        >>> only("kernel$")(params)
        {'Dense_0': {'bias': False, 'kernel': True}}
    """
    return _by_match("only", patterns, chosen=True)


def _by_match(
    name: str, patterns: tuple[str, ...], chosen: bool
) -> Callable[[Params], Params]:
    """A mask that is `chosen` where a path matches a pattern, else the opposite."""
    if not patterns:
        raise ValueError(f"{name} needs at least one pattern, got none")
    check_patterns(name, patterns)

    def mask(params: Params) -> Params:
        paths = leaf_names(params)
        warn_of_unmatched(name, patterns, paths)
        flags = [(first_match(patterns, path) is not None) == chosen for path in paths]
        return jax.tree.unflatten(jax.tree.structure(params), flags)

    return mask


def check_patterns(name: str, patterns: tuple[str, ...]) -> None:
    """Requires regular expressions."""
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"patterns of {name} must be strings, got {pattern!r}")
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"pattern {pattern!r} of {name} is not a valid regular expression:"
                f" {error}"
            ) from error


def first_match(patterns: Iterable[str], path: str) -> str | None:
    """The first pattern found in a path, or `None`."""
    return next((p for p in patterns if re.search(p, path)), None)


def warn_of_unmatched(name: str, patterns: tuple[str, ...], paths: list[str]) -> None:
    """Warns of patterns that match no path; they are probably misspelt."""
    for pattern in patterns:
        if not any(re.search(pattern, path) for path in paths):
            warnings.warn(
                f"{name}: pattern {pattern!r} matches no parameter; the paths begin"
                f" with {paths[:3]}",
                stacklevel=3,
            )


def mask_leaves(mask: Mask | None, params: Params) -> list[bool]:
    """One boolean for each leaf of the parameters."""
    if mask is None:
        return [True] * len(jax.tree.leaves(params))
    # As in Optax: an Equinox module of booleans is callable, but its leaves are not.
    if callable(mask) and all(map(callable, jax.tree.leaves(mask))):
        mask = mask(params)
    chosen = broadcast("mask", mask, params)
    for flag in chosen:
        if is_traced(flag) or np.shape(flag) or np.asarray(flag).dtype != bool:
            raise TypeError(
                f"mask must hold booleans known to Python, got {_checks.describe(flag)}"
            )
    return [bool(flag) for flag in chosen]


def check_noisy(params: Params, noisy: list[bool]) -> None:
    """Requires a leaf to perturb, and none that Flax does not train."""
    leaves = jax.tree.leaves(params)
    if not any(noisy) and any(map(_checks.may_bear_noise, leaves)):
        raise ValueError(
            f"mask leaves none of the {len(leaves)} leaves of params to perturb"
        )
    rows = zip(leaf_names(params), untrained_kinds(params), noisy, strict=True)
    for name, kind, is_noisy in rows:
        if is_noisy and kind is not None:
            whole = name.startswith(f"{kind}/")
            pattern = f"^{kind}/" if whole else f"^{re.escape(name)}$"
            raise ValueError(
                f"params holds {name!r}, of Flax's {kind!r}, which is not trained and"
                " must get no noise: pass the parameters alone (in Linen {'params':"
                " variables['params']}, in NNX nnx.state(model, nnx.Param)), or a mask"
                f" such as exclude({pattern!r})"
            )


def untrained_kinds(params: Params) -> list[str | None]:
    """For each leaf, its Linen collection or NNX type if Flax does not train it.

    Linen's collections are recognised at the top of the tree; those whose names a layer
    might also have, only beside the collection `params`.
    """

    def types(node):
        return _checks.classes(node, "flax") & VARIABLES

    nodes = jax.tree.leaves_with_path(params, is_leaf=lambda node: bool(types(node)))
    tops = [getattr(path[0], "key", None) if path else None for path, _ in nodes]
    untrained = STATISTICS | (BESIDE_PARAMS if "params" in tops else set())
    kinds: list[str | None] = []
    for top, (_, node) in zip(tops, nodes, strict=True):
        kind = min(types(node) or untrained & {top}, default=None)
        kinds += [kind] * len(jax.tree.leaves(node))
    return kinds
