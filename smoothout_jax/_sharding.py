"""How arrays are laid out over a mesh: by XLA, or by their types on explicit axes."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding

from smoothout_jax._jax import is_traced


def explicit_sharding(leaf) -> NamedSharding | None:
    """The sharding of a leaf over the explicit axes of its mesh, if it has any."""
    sharding = jax.typeof(leaf).sharding
    if not sharding.mesh.explicit_axes:
        return None
    if is_traced(leaf):
        return sharding
    # The type names the axes only; outside jit, their devices are needed too.
    return NamedSharding(leaf.sharding.mesh, sharding.spec)


def everywhere(sharding: NamedSharding) -> NamedSharding:
    """The sharding that gives every device of the mesh the whole array."""
    return NamedSharding(sharding.mesh, jax.P())


def by_parts(
    fn: Callable[..., jax.Array], sharding: NamedSharding | None
) -> Callable[..., Any]:
    """Makes each device compute its part of the result, given an explicit sharding.

    XLA splits the intermediate values: random words need not divide as levels do.
    """
    if sharding is None:
        return fn
    axes = sharding.mesh.explicit_axes
    return jax.sharding.auto_axes(fn, axes=axes, out_sharding=sharding)


def place_like(leaf: jax.Array, noise: jax.Array) -> jax.Array:
    """Lays noise out like its leaf, if the layout is known but not in its type."""
    if is_traced(leaf) or len(leaf.sharding.device_set) == 1:
        return noise
    if explicit_sharding(leaf) or jax.sharding.get_abstract_mesh().manual_axes:
        return noise
    return jax.lax.with_sharding_constraint(noise, leaf.sharding)
