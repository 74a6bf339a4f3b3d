"""Where arrays lie on a mesh: as XLA decides, or, on explicit axes, as typed."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding

from smoothout_jax._jax import is_traced


def explicit_sharding(leaf) -> NamedSharding | None:
    """How a leaf lies over the explicit axes of its mesh, if there are any."""
    sharding = jax.typeof(leaf).sharding
    if not sharding.mesh.explicit_axes:
        return None
    if is_traced(leaf):
        return sharding
    # The type names the axes alone; outside jit, their devices are needed too.
    return NamedSharding(leaf.sharding.mesh, sharding.spec)


def by_parts(
    fn: Callable[..., jax.Array], sharding: NamedSharding | None
) -> Callable[..., Any]:
    """A function of which every device computes its part of an explicit sharding.

    XLA chooses how to split what the function computes on its way, as it does on
    automatic axes: the random words of a row need not divide as its elements do.
    """
    if sharding is None:
        return fn
    axes = sharding.mesh.explicit_axes
    return jax.sharding.auto_axes(fn, axes=axes, out_sharding=sharding)


def ravel(params: Any) -> tuple[jax.Array, Callable[[jax.Array], Any]]:
    """Parameters in one vector, and the function from such a vector to their tree.

    On explicit axes, which the entries of a vector cannot keep, every device has all of
    it; the leaves of the tree lie where those of the parameters do.
    """
    leaves, structure = jax.tree.flatten(params)
    leaves = list(map(jnp.asarray, leaves))
    shardings = tuple(map(explicit_sharding, leaves))
    whole = _moved(leaves, [its and everywhere(its) for its in shardings])
    vector, unravel = ravel_pytree(jax.tree.unflatten(structure, whole))
    return vector, Unravel(unravel, shardings)


@dataclasses.dataclass(frozen=True)
class Unravel:
    """From a vector to a tree; equal to another for trees of one kind."""

    unravel: Callable[[jax.Array], Any]
    shardings: tuple[NamedSharding | None, ...]

    def __call__(self, vector: jax.Array) -> Any:
        """The tree, its leaves placed."""
        leaves, structure = jax.tree.flatten(self.unravel(vector))
        return jax.tree.unflatten(structure, _moved(leaves, self.shardings))


def _moved(leaves, shardings):
    return [
        leaf if its is None else jax.sharding.reshard(leaf, its)
        for leaf, its in zip(leaves, shardings, strict=True)
    ]


def everywhere(sharding: NamedSharding) -> NamedSharding:
    """Whole on every device of the mesh."""
    return NamedSharding(sharding.mesh, jax.P())


def place_like(leaf: jax.Array, noise: jax.Array) -> jax.Array:
    """Noise that lies where its leaf does, where that is known and no type says it."""
    if is_traced(leaf) or len(leaf.sharding.device_set) == 1:
        return noise
    if explicit_sharding(leaf) or jax.sharding.get_abstract_mesh().manual_axes:
        return noise
    return jax.lax.with_sharding_constraint(noise, leaf.sharding)


def axes_of_rows(batch: Any, params: Any) -> tuple[str, ...]:
    """The explicit axes that all rows of a batch lie along, if no parameter does.

    Empty where they differ, or are not known.
    """
    found = {(*_axes_of(leaf), ())[0] for leaf in jax.tree.leaves(batch)}
    axes = found.pop() if len(found) == 1 else ()
    used = {
        name for p in jax.tree.leaves(params) for part in _axes_of(p) for name in part
    }
    return () if used.intersection(axes) else axes


def _axes_of(leaf) -> tuple[tuple[str, ...], ...]:
    """The names of the explicit axes that each axis of a leaf lies along."""
    sharding = explicit_sharding(leaf)
    parts = sharding.spec if sharding is not None else ()
    return tuple(
        (part,) if isinstance(part, str) else tuple(part or ()) for part in parts
    )
