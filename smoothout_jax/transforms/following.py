"""Whether a training loop still holds what it was handed, and what changed if not.

The parameters handed out are told by a fingerprint: a weighted sum of each leaf. The
same sum of the parameters that come back says, in one pass and without memory of a
second tree, whether anything has touched them; only then is the noise drawn again, and
the clean parameters follow the change.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from smoothout_jax import _checks
from smoothout_jax._jax import is_traced, on_one_cpu
from smoothout_jax._sharding import by_parts, explicit_sharding
from smoothout_jax._trees import (
    Params,
    accumulator_dtype,
    add_noise,
    map_leaves,
    sums,
)

# Of a sum, against that of the absolute values: what other programs may round to.
SAME_TO_ROUNDING = 1e-6


def fingerprint(params: Params) -> jax.Array:
    """Weighted sums of the leaves, (leaves,); zero for leaves that bear no noise.

    The weights differ from element to element, so that exchanged elements show. In one
    program the same leaf gives the same bits; in another, the same to rounding. The
    barrier is for GPUs, where the order of a sum depends on what is fused with it.
    """
    return _per_leaf(_weighted, jax.lax.optimization_barrier(params))


def is_like(fingerprint: jax.Array, params: Params, tolerance: float) -> jax.Array:
    """Whether each leaf has this fingerprint, (leaves,), to a relative tolerance."""
    sizes = _per_leaf(jnp.abs, params)
    distance = jnp.abs(_per_leaf(_weighted, params) - fingerprint)
    return distance <= tolerance * sizes


def rounded(tree: Params) -> Params:
    """The tree, with leaves of half precision rounded to it.

    XLA may carry such values on in float32, so that what is stored is not what
    follow-up operations see.
    """

    def round_to_half(leaf):
        if _checks.is_inexact(leaf) and jnp.finfo(leaf.dtype).bits < 32:
            info = jnp.finfo(leaf.dtype)
            return jax.lax.reduce_precision(leaf, info.nexp, info.nmant)
        return leaf

    return jax.tree.map(round_to_half, tree)


def follow(
    clean: Params, params: Params, noise: Params, changed: jax.Array, first: Any
) -> Params:
    """The clean parameters moved by what changed in the perturbed ones.

    Args:
        clean: the clean parameters.
        params: the parameters that came back.
        noise: the noise that they were handed out with.
        changed: whether each leaf changed, (leaves,).
        first: whether they were handed out without noise, as the first are.
    """
    handed = add_noise(clean, noise)

    def move(clean, changed, params, handed, noise):
        params = jnp.asarray(params, clean.dtype)
        if not _checks.is_inexact(clean):
            return params
        wide = accumulator_dtype(clean.dtype)
        difference = params.astype(wide) - handed.astype(wide)
        # The loop rounded when it added its update: that is not a change.
        scale = jnp.abs(handed) + jnp.max(jnp.abs(noise), initial=0)
        rounding = float(jnp.finfo(clean.dtype).eps) * scale.astype(
            jnp.finfo(wide).dtype
        )
        moved = (clean.astype(wide) + difference).astype(clean.dtype)
        moved = jnp.where(jnp.abs(difference) <= rounding, clean, moved)
        overwritten = first | ~jnp.isfinite(handed)  # no difference to speak of
        return jnp.where(changed, jnp.where(overwritten, params, moved), clean)

    return map_leaves(move, clean, list(changed), params, handed, noise)


def where_any(
    flags: jax.Array, true: Callable[[], Any], false: Callable[[], Any]
) -> Any:
    """`true()` if any of the flags is set, or any run's under `jax.vmap`."""
    flag = _for_all_runs(jnp.any(flags))
    if is_traced(flag):
        return jax.lax.cond(flag, true, false)
    # Outside jit, lax.cond would compile both branches again at every call.
    return true() if flag else false()


@jax.custom_batching.custom_vmap
def _for_all_runs(flag: jax.Array) -> jax.Array:
    """The flag; under `jax.vmap`, where a `cond` would run both branches, the `any`."""
    return flag


@_for_all_runs.def_vmap
def _any_of_them(axis_size, in_batched, flag):
    del axis_size, in_batched
    return jnp.any(flag), False


def _per_leaf(summands: Callable[[jax.Array], jax.Array], params: Params) -> jax.Array:
    """Sums over every leaf that bears noise, in float32 at least, (leaves,)."""
    values = sums(
        [
            summands(_real(jnp.asarray(leaf)))
            if _checks.is_inexact(leaf)
            else jnp.float32(0)
            for leaf in jax.tree.leaves(params)
        ]
    )
    widest = max((v.dtype for v in values), key=lambda d: d.itemsize, default="float32")
    return jnp.asarray([value.astype(widest) for value in values], widest)


def _real(leaf: jax.Array) -> jax.Array:
    if jnp.iscomplexobj(leaf):
        leaf = leaf.real + leaf.imag / 2
    return leaf.astype(accumulator_dtype(leaf.dtype))


def _weighted(leaf: jax.Array) -> jax.Array:
    """The elements by their weights, or what sums to the same."""
    sharding = explicit_sharding(leaf)
    if sharding is None:
        return _by_weights(leaf)
    whole = NamedSharding(sharding.mesh, jax.P())
    return by_parts(lambda part: jnp.sum(_by_weights(part)), whole)(leaf)


def _by_weights(leaf: jax.Array) -> jax.Array:
    if leaf.ndim == 0:
        return leaf
    columns = _weights(leaf.shape[-1:], leaf.dtype)
    rows = _weights(leaf.shape[:-1], leaf.dtype)
    if on_one_cpu():  # where a product takes half the time of a reduction
        return jnp.dot(leaf, columns, precision="highest") * rows
    columns = jnp.expand_dims(columns, range(leaf.ndim - 1))
    return leaf * (rows[..., None] * columns)


def _weights(shape: tuple[int, ...], dtype) -> jax.Array:
    """Numbers in [-1, 1), different at every place."""
    index, stride = jnp.ones(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        along = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        index += along * np.uint32(stride)
        stride *= shape[axis]
    golden = jax.lax.bitcast_convert_type(index * np.uint32(0x9E3779B9), jnp.int32)
    return golden.astype(dtype) * 2.0**-31
