"""Which law for which parameters: noise of several groups, by path."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from smoothout_jax import _checks
from smoothout_jax._trees import Params, leaf_names
from smoothout_jax.masks import (
    check_noisy,
    check_patterns,
    first_match,
    warn_of_unmatched,
)
from smoothout_jax.noise import Noise


def by_path(noises: Mapping[str, Noise]) -> Noise:
    """Noise of several groups of parameters, each of a law of its own.

    Args:
        noises: noises by pattern: a regular expression, searched for in the path of a
            leaf, such as `"embedding"`. The first that is found counts; leaves without
            any get no noise. A pattern that matches no leaf warns.

    Returns:
        The noise function. A mask of one of its noises must be a function of the
        parameters, such as `exclude`, since it gets those of the group alone, by path.

    Raises:
        TypeError: if a pattern is not a string or a noise not a function.
        ValueError: if there is no pattern, or one is not a regular expression.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from smoothout_jax import by_path, uniform
        >>> noise = by_path({
        ...     "embedding": uniform(0.1, relative_to="filter", filter_axis=0),
        ...     "kernel": uniform(0.3, relative_to="filter"),
        ... })
        >>> params = {"embedding": jnp.ones((5, 4)), "kernel": jnp.ones((4, 2))}
        >>> added = noise(jax.random.key(0), params)
        >>> print(jnp.linalg.norm(added["kernel"], axis=0).round(3))
        [0.6 0.6]
    """
    if not noises:
        raise ValueError("by_path needs at least one pattern, got none")
    check_patterns("by_path", tuple(noises))
    for pattern, noise in noises.items():
        _checks.function("such as uniform(0.01)", **{f"noises[{pattern!r}]": noise})

    def draw(key: jax.Array, params: Params, *step: Any) -> Params:
        _checks.arrays(params=params)
        paths = leaf_names(params)
        warn_of_unmatched("by_path", tuple(noises), paths)
        leaves, structure = jax.tree.flatten(params)
        leaves = list(map(jnp.asarray, leaves))
        chosen = [first_match(noises, path) for path in paths]
        check_noisy(params, leaves, [pattern is not None for pattern in chosen])
        drawn = dict(zip(paths, map(jnp.zeros_like, leaves), strict=True))
        for number, (pattern, noise) in enumerate(noises.items()):
            rows = zip(paths, leaves, chosen, strict=True)
            group = {path: leaf for path, leaf, its in rows if its == pattern}
            if group:
                drawn |= noise(jax.random.fold_in(key, number), group, *step)
        return jax.tree.unflatten(structure, [drawn[path] for path in paths])

    return _checks.key_first(draw)
