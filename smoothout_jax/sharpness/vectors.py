"""Parameters as one vector, and back."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding

from smoothout_jax._sharding import everywhere, explicit_sharding


def ravel(params: Any) -> tuple[jax.Array, Callable[[jax.Array], Any]]:
    """The parameters as one vector, and the function back to a tree.

    With explicit mesh axes, which a vector cannot keep, every device holds the whole
    vector; the leaves of the tree are placed like those of the parameters.
    """
    leaves, structure = jax.tree.flatten(params)
    leaves = list(map(jnp.asarray, leaves))
    shardings = tuple(map(explicit_sharding, leaves))
    whole = _moved(leaves, [its and everywhere(its) for its in shardings])
    vector, unravel = ravel_pytree(jax.tree.unflatten(structure, whole))
    return vector, Unravel(unravel, shardings)


@dataclasses.dataclass(frozen=True)
class Unravel:
    """Turns a vector into a tree; instances for like trees compare equal."""

    unravel: Callable[[jax.Array], Any]
    shardings: tuple[NamedSharding | None, ...]

    def __call__(self, vector: jax.Array) -> Any:
        """The tree, with its leaves placed."""
        leaves, structure = jax.tree.flatten(self.unravel(vector))
        return jax.tree.unflatten(structure, _moved(leaves, self.shardings))


def _moved(leaves, shardings):
    return [
        leaf if its is None else jax.sharding.reshard(leaf, its)
        for leaf, its in zip(leaves, shardings, strict=True)
    ]
