"""Whether noise is large enough to survive rounding to half precision."""

import warnings
from typing import Any

import jax.numpy as jnp

from smoothout_jax._jax import is_traced


def warn_if_lost(leaf, path: str, name: str, scale: Any, relative_to) -> None:
    """Warns if half precision would round most noise away at weights near 1.

    For noise relative to the weights, their size makes no difference.
    """
    if is_traced(scale) or leaf.dtype.itemsize > 2:
        return
    # The numbers above 1 are eps apart: noise of less than half of that is lost.
    if 0 < float(scale) < float(jnp.finfo(leaf.dtype).eps) / 2:
        added = "added to weights near 1" if relative_to is None else "added"
        # No numbers: Python shows each message once, and those of a schedule change.
        warnings.warn(
            f"{name} is below the resolution of {path!r}, {leaf.dtype}: most of its"
            f" noise is lost when {added}; keep the parameters in float32 or enlarge"
            " it",
            stacklevel=4,
        )
