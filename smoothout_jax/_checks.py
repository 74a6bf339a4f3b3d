"""Validation of arguments; every message names the argument and the value given."""

import math
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np


def nonnegative(**values: Any) -> None:
    """Requires real, finite scalars of at least zero; traced ones pass unseen."""
    for name, value in values.items():
        if not _is_real_scalar(value):
            raise TypeError(f"{name} must be a number, got {value!r}")
        if isinstance(value, jax.core.Tracer):
            continue
        if not 0 <= float(value) < math.inf:
            raise ValueError(f"{name} must be finite and at least 0, got {value!r}")


def positive(**values: Any) -> None:
    """Requires real, finite numbers above zero, known to Python."""
    for name, value in values.items():
        if isinstance(value, jax.core.Tracer) or not _is_real_scalar(value):
            raise TypeError(f"{name} must be a number, got {value!r}")
        if not 0 < float(value) < math.inf:
            raise ValueError(f"{name} must be finite and above 0, got {value!r}")


def count(**values: Any) -> None:
    """Requires Python (or NumPy) integers of at least one."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise TypeError(
                f"{name} must be a Python integer, got {value!r}; it shapes the"
                " compiled program, so it cannot be traced (under"
                " optax.inject_hyperparams, name it in static_args)"
            )
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def choice(accepted: tuple, **values: Any) -> None:
    """Requires one of the accepted values."""
    for name, value in values.items():
        if not any(type(value) is type(one) and value == one for one in accepted):
            options = ", ".join(map(repr, accepted))
            raise ValueError(f"{name} must be one of {options}; got {value!r}")


def function(example: str, **values: Any) -> None:
    """Requires a callable; the message shows an example of one."""
    for name, value in values.items():
        if not callable(value):
            raise TypeError(f"{name} must be a function, {example}; got {value!r}")


def prng_key(key: Any) -> None:
    """Requires one PRNG key, typed (`jax.random.key`) or raw (`PRNGKey`)."""
    dtype, ndim = getattr(key, "dtype", None), getattr(key, "ndim", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not ((typed and ndim == 0) or (dtype == jnp.uint32 and ndim == 1)):
        raise TypeError(
            f"key must be a single PRNG key, as jax.random.key(0) makes it; got {key!r}"
        )


def is_inexact(leaf: Any) -> bool:
    """Whether a leaf is floating or complex, so that noise can be added to it."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def _is_real_scalar(value: Any) -> bool:
    if not isinstance(value, (int, float, complex, np.generic, np.ndarray, jax.Array)):
        return False
    dtype = jnp.result_type(value)
    is_complex = jnp.issubdtype(dtype, jnp.complexfloating)
    return jnp.issubdtype(dtype, jnp.number) and not is_complex and not jnp.ndim(value)
