"""Where arrays lie on a mesh: as XLA decides, or, on explicit axes, as typed."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding

from smoothout_jax._jax import is_traced


def explicit_sharding(leaf) -> NamedSharding | None:
    """How a leaf lies over the explicit axes of its mesh, if there are any."""
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
    """A function whose result every device computes in part, by an explicit sharding.

    XLA splits what is computed on the way: random words need not divide as levels do.
    """
    if sharding is None:
        return fn
    axes = sharding.mesh.explicit_axes
    return jax.sharding.auto_axes(fn, axes=axes, out_sharding=sharding)


def place_like(leaf: jax.Array, noise: jax.Array) -> jax.Array:
    """Places noise where its leaf lies, if that is known and no type says it."""
    if is_traced(leaf) or len(leaf.sharding.device_set) == 1:
        return noise
    if explicit_sharding(leaf) or jax.sharding.get_abstract_mesh().manual_axes:
        return noise
    return jax.lax.with_sharding_constraint(noise, leaf.sharding)
