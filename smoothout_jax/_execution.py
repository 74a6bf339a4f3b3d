"""How perturbed copies run: one after another, in a loop, or together.

Results are the same to rounding. What decides between them is speed and memory: on CPU,
convolutions are many times slower in a loop or under `jax.vmap`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from smoothout_jax import _checks
from smoothout_jax._jax import apart
from smoothout_jax._trees import Params, accumulator_dtype

AxisNames = str | tuple[str, ...] | None

# Beyond, compiling the copies takes minutes for a large network.
MAX_UNROLLED = 16


class Copy(NamedTuple):
    """A perturbed network, or several along a leading axis.

    Attributes:
        key: PRNG key of its noise.
        sign: of the noise: 1, -1 for the second of an antithetic pair, 0 for none.
        weight: in the mean over the copies.
        own: its own arguments of the function averaged, by position.
    """

    key: jax.Array
    sign: np.ndarray | jax.Array
    weight: np.ndarray | jax.Array
    own: dict[int, Any]


@dataclasses.dataclass(frozen=True)
class Run:
    """Functions of a single copy, and the parameters that they start from.

    Attributes:
        perturb: function (params, copy) to the copy's parameters.
        call: function (perturbed, own arguments) to a result, which is averaged over
            the copies, and another, which is stacked.
        params: the clean parameters.
    """

    perturb: Callable[[Params, Copy], Params]
    call: Callable[[Params, dict[int, Any]], tuple[Any, Any]]
    params: Params

    def one(self, params: Params, copy: Copy) -> tuple[Any, Any]:
        """The results of a copy."""
        return self.call(self.perturb(params, copy), copy.own)

    def together(self, params: Params, copies: Copy) -> tuple[Any, Any]:
        """The stacked results of copies that run at once."""
        # A loop draws the noise: under vmap, rbg keys would draw another.
        perturbed = jax.lax.map(functools.partial(self.perturb, params), copies)
        return jax.vmap(self.call)(perturbed, copies.own)


def average(
    run: Run,
    copies: Copy,
    execution: Literal["vmap", "scan", "unroll"],
    chunk_size: int | None,
    spmd_axis_name: AxisNames,
) -> tuple[Any, Any]:
    """Runs every copy.

    Args:
        run: what to run.
        copies: the copies, along a leading axis.
        execution: how.
        chunk_size: copies that run together inside a scan.
        spmd_axis_name: the mesh axis that the copies are laid over.

    Returns:
        The weighted sum of the results to average, and the stacked others.
    """
    total = len(copies.weight)
    size = {"vmap": total, "scan": chunk_size or 1, "unroll": 1}[execution]
    step = run.one if size == 1 else run.together
    if spmd_axis_name is not None:
        step = functools.partial(_over_mesh, run, spmd_axis_name)
    if size > 1:
        copies = jax.tree.map(lambda a: a.reshape(-1, size, *a.shape[1:]), copies)
    loop = _scan if execution == "scan" else _unroll
    result, stacked = loop(step, run.params, copies)
    if size > 1:
        stacked = jax.tree.map(lambda a: a.reshape(total, *a.shape[2:]), stacked)
    return result, stacked


def _unroll(step, params: Params, copies: Copy) -> tuple[Any, Any]:
    """Runs copy after copy, or chunk after chunk, in a Python loop."""
    total, result, auxes = None, None, []
    for i in range(len(copies.weight)):
        copy = jax.tree.map(lambda a, i=i: a[i], copies)
        if total is not None:
            # A copy, and its noise, wait for the one before: their memory is the same.
            params, total, key = keep((params, total, copy.key))
            copy = copy._replace(key=key)
        result, aux = step(params, copy)
        if copies.weight.shape == (1,):
            return result, jax.tree.map(lambda a: jnp.asarray(a)[None], aux)
        auxes.append(aux)
        summand = _weigh(copy.weight, result)
        total = summand if total is None else jax.tree.map(jnp.add, total, summand)
    return _cast_like(total, result), jax.tree.map(lambda *a: jnp.stack(a), *auxes)


def _scan(step, params: Params, copies: Copy) -> tuple[Any, Any]:
    """Runs copy after copy, or chunk after chunk, in a compiled loop."""

    def weighted(copy):
        result, aux = step(params, copy)
        return _weigh(copy.weight, result), aux, result

    def body(total, copy):
        summand, aux, _ = weighted(copy)
        return jax.tree.map(jnp.add, total, summand), aux

    first = jax.tree.map(lambda a: a[0], copies)
    summand, _, result = jax.eval_shape(weighted, first)
    total, stacked = jax.lax.scan(body, jax.tree.map(jnp.zeros_like, summand), copies)
    return _cast_like(total, result), stacked


def _over_mesh(run: Run, axis: AxisNames, params: Params, copies: Copy) -> Any:
    """The stacked results of copies that run at once, each on its part of the mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    names = (axis,) if isinstance(axis, str) else axis or ()
    if missing := [name for name in names if name not in mesh.axis_names]:
        raise ValueError(
            f"spmd_axis_name: the mesh has no axis {missing[0]!r}, but"
            f" {mesh.axis_names}; set it by jax.set_mesh(mesh)"
        )
    devices, total = math.prod(mesh.shape[name] for name in names), len(copies.weight)
    if total % devices:
        raise ValueError(
            f"spmd_axis_name: the {total} copies do not divide over the {devices}"
            f" devices of {axis!r}"
        )
    explicit = AxisType.Explicit in mesh.axis_types

    def one(copy):
        perturbed = run.perturb(params, copy)
        if not explicit:
            perturbed = jax.tree.map(_anywhere, perturbed)
        return run.call(perturbed, copy.own)

    lay = jax.sharding.reshard if explicit else jax.lax.with_sharding_constraint
    laid = lay(jax.tree.map(jnp.asarray, copies), jax.P(axis))
    return jax.vmap(one, spmd_axis_name=axis)(laid)


def _anywhere(leaf: jax.Array) -> jax.Array:
    """The leaf, laid over devices as it may be, but for the copies."""
    free = jax.P(*[jax.P.UNCONSTRAINED] * leaf.ndim)
    return jax.lax.with_sharding_constraint(leaf, free)


def _weigh(weight, result: Any) -> Any:
    """The weighted result of one copy, or sum over several, in float32 at least."""

    def weigh(leaf):
        require_inexact(leaf)
        leaf = leaf.astype(accumulator_dtype(leaf.dtype))
        factor = jnp.asarray(weight, leaf.dtype)
        if factor.ndim == 0:
            return factor * leaf
        return jnp.tensordot(factor, leaf, axes=1, precision="highest")

    return jax.tree.map(weigh, result)


def require_inexact(leaf: Any) -> None:
    if not _checks.is_inexact(leaf):
        raise TypeError(
            "only floating or complex outputs of fun can be averaged over copies, got"
            f" {leaf.dtype}{list(leaf.shape)}; return it as auxiliary output and choose"
            " aux='stack' or 'first'"
        )


def _cast_like(tree: Any, like: Any) -> Any:
    """The tree in the dtypes of another."""
    return jax.tree.map(
        lambda leaf, other: leaf.astype(jnp.result_type(other)), tree, like
    )


def _identity(tree: Any) -> Any:
    return tree


# A tree that no other computation is merged with.
keep = apart(_identity)
