"""Whether noise is large enough to be seen in half precision."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp

from smoothout_jax._jax import is_traced


def warn_if_lost(leaf, path: str, name: str, scale: Any, relative_to) -> None:
    """Warns if noise drowns in the rounding of a half-precision leaf.

    Weights unknown while traced count as one in size.
    """
    if is_traced(scale) or float(scale) == 0:
        return
    if leaf.dtype.itemsize > 2 or leaf.size == 0:
        return
    # Half a unit in the last place is between eps / 4 and eps / 2 of the weight.
    resolved = 2 * float(scale) / float(jnp.finfo(leaf.dtype).eps)
    if relative_to is not None or is_traced(leaf):
        lost = resolved < 1
    else:
        lost = _share_above(leaf, resolved) > 0.5
    if lost:
        # No figures: Python shows a message once, and those of a schedule change.
        warnings.warn(
            f"{name} is below the resolution of {path!r}, {leaf.dtype}: most of its"
            " noise is lost when added; keep the parameters in float32 or enlarge it",
            stacklevel=4,
        )


def _share_above(leaf: jax.Array, size: float) -> float:
    """The share of known weights above a size, whatever is traced around them.

    Unlike a median, a count needs no sort, which explicit axes refuse.
    """
    no_mesh = jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ()))
    with jax.ensure_compile_time_eval(), no_mesh:
        return float(jnp.mean(jnp.abs(leaf.astype(jnp.float32)) > size))
