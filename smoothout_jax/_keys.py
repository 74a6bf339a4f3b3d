"""PRNG keys in optimizer states: stored as data, with the step folded in when used.

Typed keys in an optimizer's state break many checkpointers and wrappers.
"""

from typing import Any

import jax
import jax.numpy as jnp


def implementation(key: jax.Array) -> Any:
    """The implementation of a typed key; `None` for a raw one."""
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return jax.random.key_impl(key) if typed else None


def key_data(key: jax.Array) -> jax.Array:
    """The data of a key: plain integers in their own buffer."""
    return jnp.array(key if implementation(key) is None else jax.random.key_data(key))


def fold(impl: Any, data: jax.Array, count: Any) -> jax.Array:
    """The key of one step, from the implementation and the data of a key."""
    key = jnp.asarray(data)
    if impl is not None:
        key = jax.random.wrap_key_data(key, impl=impl)
    return jax.random.fold_in(key, count)
