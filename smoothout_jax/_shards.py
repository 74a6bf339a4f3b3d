"""Parameters that are sharded by hand, in `jax.shard_map`.

There a program sees only its own shard, so the caller says over which axes of the mesh
each axis of a leaf is split. Replicated leaves get the same noise everywhere.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from smoothout_jax import _checks
from smoothout_jax._trees import Params, broadcast, leaf_names, leaves_or_none
from smoothout_jax.noise import Noise, sharded_noise, spec_names

Specs = str | tuple[str, ...] | Any


def specs_of(axis_name: Specs) -> Any:
    """A tree of partition specs; a name splits the first axis of every leaf."""
    if axis_name is None or isinstance(axis_name, str):
        return axis_name and jax.P(axis_name)
    if isinstance(axis_name, tuple) and all(isinstance(n, str) for n in axis_name):
        return jax.P(axis_name)
    if not all(map(_is_spec, jax.tree.leaves(axis_name, is_leaf=_is_spec))):
        raise TypeError(
            "axis_name must be a name, a tuple of names, or a tree of jax.P like the"
            f" parameters; got {_checks.describe(axis_name)}"
        )
    return axis_name


def draw(noise: Noise, key: jax.Array, params: Params, step: Any, specs: Any) -> Params:
    """The noise of this shard; leaves split over the same mesh axes share a key."""
    by_name = dict(zip(leaf_names(params), _by_leaf(specs, params), strict=True))
    groups = list(map(spec_names, by_name.values()))

    def of_group(names: tuple[str, ...]) -> list[jax.Array]:
        own_key = key
        for name in names:
            own_key = jax.random.fold_in(own_key, jax.lax.axis_index(name))
        own = {path: s for path, s in by_name.items() if spec_names(s) == names}
        return jax.tree.leaves(sharded_noise(noise, own)(own_key, params, step))

    drawn = {names: of_group(names) for names in dict.fromkeys(groups)}
    leaves = [drawn[names][place] for place, names in enumerate(groups)]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def total(
    product: Callable[[Params, Params], jax.Array],
    noise: Params,
    grads: optax.Updates,
    specs: Any,
) -> jax.Array:
    """A sum over the leaves of two trees, and over the shards of each leaf."""
    groups = list(map(spec_names, _by_leaf(specs, grads)))
    pairs = zip(leaves_or_none(noise), leaves_or_none(grads), strict=True)
    noises = [added for added, grad in pairs if grad is not None]
    sums = []
    for names in dict.fromkeys(groups):
        rows = zip(noises, groups, strict=True)
        own = [leaf if its == names else None for leaf, its in rows]
        part = product(own, jax.tree.leaves(grads))
        sums.append(jax.lax.psum(part, names) if names else part)
    return sum(sums, jnp.zeros([]))


def _by_leaf(specs: Any, params: Params) -> list[jax.P]:
    """The partition spec of every leaf."""
    return broadcast("axis_name", specs, params, _is_spec)


def _is_spec(node: Any) -> bool:
    return isinstance(node, jax.P)
