"""Validation of arguments; every message names the argument and the value given."""

import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smoothout_jax._jax import is_traced
from smoothout_jax._trees import named_leaves

NUMBERS = bool, int, float, complex, np.generic
ARRAYS = jax.Array, np.ndarray, jax.ShapeDtypeStruct


def describe(value: Any) -> str:
    """A value in one line: an array by its shape, a tree by its type and size."""
    if isinstance(value, (jax.Array, np.ndarray)):
        if is_traced(value):
            return f"a traced array of {value.dtype}{list(value.shape)}"
        if value.ndim or jnp.issubdtype(value.dtype, jax.dtypes.extended):
            return f"an array of {value.dtype}{list(value.shape)}"
        return str(value)
    leaves = jax.tree.leaves(value)
    if any(isinstance(leaf, (jax.Array, np.ndarray)) for leaf in leaves):
        return f"a {type(value).__name__} of {len(leaves)} leaves"
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def nonnegative(**values: Any) -> None:
    """Requires real, finite scalars of at least 0; traced values are not checked."""
    for name, value in values.items():
        if not _is_real_scalar(value):
            raise TypeError(f"{name} must be a number, got {describe(value)}")
        if not (is_traced(value) or 0 <= float(value) < math.inf):
            raise ValueError(
                f"{name} must be finite and at least 0, got {describe(value)}"
            )


def real(**values: Any) -> None:
    """Requires real numbers, or arrays of them."""
    for name, value in values.items():
        if not _is_real(value):
            raise TypeError(f"{name} must be a real number, got {describe(value)}")


def positive(**values: Any) -> None:
    """Requires real, finite numbers above 0 that are not traced."""
    for name, value in values.items():
        if is_traced(value) or not _is_real_scalar(value):
            raise TypeError(f"{name} must be a number, got {describe(value)}")
        if not 0 < float(value) < math.inf:
            raise ValueError(
                f"{name} must be finite and above 0, got {describe(value)}"
            )


def count(**values: Any) -> None:
    """Requires Python or NumPy integers of at least 1."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise TypeError(
                f"{name} must be a Python integer, got {describe(value)}; the compiled"
                " program depends on it, so it cannot be traced (under"
                " optax.inject_hyperparams, name it in static_args)"
            )
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def choice(accepted: tuple[Any, ...], **values: Any) -> None:
    """Requires one of the accepted values."""
    for name, value in values.items():
        if not any(type(value) is type(one) and value == one for one in accepted):
            options = ", ".join(map(repr, accepted))
            raise ValueError(f"{name} must be one of {options}; got {describe(value)}")


def function(example: str, **values: Any) -> None:
    """Requires a callable; the message shows an example of one."""
    for name, value in values.items():
        if not callable(value):
            raise TypeError(
                f"{name} must be a function, {example}; got {describe(value)}"
            )


def transformation(**values: Any) -> None:
    """Requires transformations of Optax."""
    for name, value in values.items():
        if not (hasattr(value, "init") and hasattr(value, "update")):
            raise TypeError(
                f"{name} must be an optax.GradientTransformation, such as"
                f" optax.sgd(0.1); got {describe(value)}"
            )


def loss(**values: Any) -> None:
    """Requires functions of the parameters, not noises."""
    function("such as fun(params, *args)", **values)
    for name, value in values.items():
        try:
            arguments = list(inspect.signature(value).parameters)
        except (TypeError, ValueError):  # some built-in functions have no signature
            continue
        if arguments[:2] == ["key", "params"]:
            raise TypeError(
                f"{name} must be a function of params, but takes (key, params) as a"
                f" noise does: were {name} and noise swapped?"
            )


def prng_key(key: Any, alone: bool = False) -> None:
    """Requires one PRNG key, typed (`jax.random.key`) or raw (`PRNGKey`).

    With `alone`, it is the only argument given, as the step of a schedule is.
    """
    typed, hint = False, ""
    if isinstance(key, (jax.Array, np.ndarray)):
        typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        if key.ndim == 0 if typed else key.dtype == jnp.uint32 and key.ndim == 1:
            return
    if type(key).__name__ in ("Rngs", "RngStream"):
        hint = "; draw one from it, such as rngs.params()"
    elif alone and _is_real_scalar(key):
        hint = " alone; under optax.inject_hyperparams, name the noise in static_args"
    elif not typed and jax.tree.leaves(key):
        hint = "; did you forget the key?"
    raise TypeError(
        "key must be a single PRNG key, as jax.random.key(0) makes it; got"
        f" {describe(key)}{hint}"
    )


def key_or_seed(key: Any) -> jax.Array:
    """The PRNG key itself, or the key made from an integer seed."""
    if _is_real_scalar(key) and jnp.issubdtype(jnp.result_type(key), jnp.integer):
        return jax.random.key(key)
    prng_key(key)
    return key


def arrays(**trees: Any) -> None:
    """Requires trees whose leaves are arrays or numbers."""
    for name, tree in trees.items():
        for path, leaf in named_leaves(tree):
            if not isinstance(leaf, (*NUMBERS, *ARRAYS)):
                raise TypeError(
                    f"{name} must hold arrays, but its leaf {path!r} is"
                    f" {_described_leaf(leaf, name, tree)}"
                )


def _described_leaf(leaf: Any, name: str, tree: Any) -> str:
    """Describes a leaf that is not an array, and says what to pass instead."""
    is_hijax = "HijaxVariable" in classes(leaf, "flax")
    if isinstance(leaf, jax.Ref) or is_hijax or is_traced(leaf):
        return (
            f"{jax.typeof(leaf)}, a reference to an array: pass the arrays themselves,"
            f" jax.tree.map(lambda ref: ref[...], {name})"
        )
    hint = "; of an Equinox model, pass eqx.filter(model, eqx.is_inexact_array)"
    is_of_equinox = callable(leaf) or has_class(tree, "equinox")
    return describe(leaf) + (hint if is_of_equinox else "")


def classes(value: Any, package: str) -> set[str]:
    """The names of the classes of a value that a package defines."""
    bases = type(value).__mro__
    return {base.__name__ for base in bases if base.__module__.split(".")[0] == package}


def has_class(tree: Any, package: str) -> bool:
    """Whether a tree contains a node whose class a package defines."""

    def is_of_package(node):
        return bool(classes(node, package))

    return any(map(is_of_package, jax.tree.leaves(tree, is_leaf=is_of_package)))


def is_inexact(leaf: Any) -> bool:
    """Whether a leaf is floating or complex, so that noise can be added to it."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def may_bear_noise(leaf: Any) -> bool:
    """Whether a leaf has floating or complex elements."""
    return is_inexact(leaf) and math.prod(jnp.shape(leaf)) > 0


def _is_real(value: Any) -> bool:
    if not isinstance(value, (*NUMBERS, np.ndarray, jax.Array)):
        return False
    dtype = jnp.result_type(value)
    return jnp.issubdtype(dtype, jnp.number) and not jnp.iscomplexobj(value)


def _is_real_scalar(value: Any) -> bool:
    return _is_real(value) and not jnp.ndim(value)
