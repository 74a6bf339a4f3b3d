"""The perturbed copies of a network: what each of them gets, and their mean.

The machinery under `smooth`, `smoothout_value_and_grad` and `smooth_gradients`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType

from smoothout_jax import _checks
from smoothout_jax._jax import apart
from smoothout_jax._options import AxisNames, CopyOptions, Options
from smoothout_jax._trees import Params, accumulator_dtype, add_noise
from smoothout_jax.loss_rise import LossRise, LossRiseState, rise_of

__all__ = ["Copies", "CopyOptions"]

# Beyond, compiling the copies takes minutes for a large network.
MAX_UNROLLED = 16
# Flax's collection of fp8 scales, whose "gradients" are their next values.
OVERWRITTEN = "_overwrite_with_gradient"


class Copy(NamedTuple):
    """What a copy has of its own; of several copies, along a leading axis."""

    key: jax.Array
    # Of the noise: negative for the second of a pair, 0 for the clean copy.
    factor: np.ndarray | jax.Array
    weight: np.ndarray | jax.Array
    # Arguments of the function averaged, by position.
    args: dict[int, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Copies(Options):
    """The means that the options describe."""

    def mean_gradients(
        self,
        fn: Callable[..., tuple[tuple[Any, Params], Any]],
        rise: LossRiseState | None,
        key: jax.Array,
        params: Params,
        args: Sequence[Any],
        step: Any = None,
    ) -> tuple[tuple[Any, Params], Any, LossRiseState | None]:
        """Averages gradients, under noise that holds the rise if its state is given.

        Of a function `fn(params, *args)` to `(value, grads)` and auxiliary outputs, and
        what `mean` takes. Returns the mean, the auxiliary outputs, and the next state.
        """
        held = None
        if self.loss_rise is not None and rise is not None:
            held = LossRise(self.loss_rise)
            rise = held.scaled(rise)

        def with_rise(perturbed, noise, *args):
            (value, grads), aux = fn(perturbed, *args)
            if self.compute_dtype is not None:
                grads = optax.tree.cast_like(grads, params)
            return ((value, grads), rise_of(noise, grads) if held else None), aux

        scale = rise.noise_scale if rise is not None else None
        (mean, seen), aux = self.mean(with_rise, key, params, args, step, scale)
        if held is not None and rise is not None:
            # The clean copy sees none.
            rise = held.observed(rise, seen / (1 - self.clean_weight))
        return mean, aux, rise

    def mean(
        self,
        fn: Callable[..., tuple[Any, Any]],
        key: jax.Array,
        params: Params,
        args: Sequence[Any] = (),
        step: Any = None,
        scale: jax.Array | None = None,
    ) -> tuple[Any, Any]:
        """Averages a function over the copies.

        Args:
            fn: function `fn(params, noise, *args)`, of a copy's noise if it is scaled
                and else `None`, to a pair: what is averaged, and auxiliary outputs.
            key: the PRNG key of the noise.
            params: the clean parameters.
            args: the arguments after the parameters, not yet split.
            step: the step handed to the noise.
            scale: a factor of the noise.

        Returns:
            The weighted mean, and the auxiliary outputs as `aux` wants them.
        """
        _checks.prng_key(key)
        if self.total > 1 or self.axis_name is not None:
            _refuse_overwritten(params)
        own = self._own_args(args)
        mesh_axis = self.spmd_axis_name
        if self.axis_name is not None:
            index = jax.lax.axis_index(self.axis_name)
            key = jax.random.split(key, jax.lax.axis_size(self.axis_name))[index]
            # jax.shard_map sums a gradient over devices unless its parameters vary over
            # them; here each device's own gradient is wanted.
            zero = index * 0
            params = jax.tree.map(lambda p: p + zero.astype(jnp.result_type(p)), params)
        copies = Copy(self._keys(key), self._factors(scale), self._weights(), own)
        perturb = functools.partial(self._perturb, step, scale)

        # The auxiliary outputs of a single copy may be anything, as without copies.
        is_single = self.total == 1 and self.axis_name is None and mesh_axis is None
        is_single &= self.aux != "stack" and not callable(self.aux)

        def call(perturbed, own):
            merged = [own.get(i, arg) for i, arg in enumerate(args, start=1)]
            result, aux = fn(*perturbed, *merged)
            result = jax.tree.map(jnp.asarray, result)
            if is_single:
                return result, aux
            check = functools.partial(_as_output, self.aux == "mean")
            aux = jax.tree.map_with_path(check, aux)
            if self.aux == "mean":
                return (result, aux), None
            return (result, None), aux

        if is_single:
            copy = jax.tree.map(lambda a: a[0], copies)
            return call(perturb(params, copy), copy.args)
        loop, is_of_groups = self._loop(mesh_axis)
        if mesh_axis is not None:
            perturb, call = _over_mesh(perturb, call, mesh_axis, self.total)
        elif is_of_groups:
            perturb, call = _together(perturb, call)
        (result, aux), stacked = loop(perturb, call, params, copies)
        return self._finish(result, aux, stacked)

    def _finish(self, result: Any, mean_aux: Any, stacked: Any) -> tuple[Any, Any]:
        """The results averaged over devices too, and what `aux` says of the others."""
        if callable(self.aux):
            aux = self.aux(stacked)
        elif self.aux == "mean":
            aux = mean_aux
        else:
            chosen = {"stack": slice(None), "first": 0, "clean": -1}[self.aux]
            aux = jax.tree.map(lambda a: a[chosen], stacked)
        if self.axis_name is not None:
            result = jax.lax.pmean(result, self.axis_name)
            if self.aux in ("mean", "clean"):
                jax.tree.map(_require_inexact, aux)
                aux = jax.lax.pmean(aux, self.axis_name)
        return result, aux

    def _keys(self, key: jax.Array) -> jax.Array:
        # Split, not folded once more: unsafe_rbg keys fold alike in either order.
        keys = jax.random.split(key, self.total) if self.total > 1 else key[None]
        return keys[np.arange(self.total) // 2] if self.antithetic else keys

    def _factors(self, scale: jax.Array | None) -> np.ndarray | jax.Array:
        factors = np.ones(self.total, np.float32)
        if self.antithetic:
            factors[1::2] = -1
        factors[self.num_copies :] = 0
        return factors if scale is None else factors * scale

    def _weights(self) -> np.ndarray:
        weights = np.full(self.total, (1 - self.clean_weight) / self.num_copies)
        weights[self.num_copies :] = self.clean_weight
        return weights

    def _loop(self, mesh_axis: AxisNames) -> tuple[Callable[..., Any], bool]:
        """The loop, and whether its steps are of groups of copies."""
        execution, size = self.execution, self.chunk_size or 1
        if execution == "auto":
            if self.chunk_size is not None:
                execution = "scan"
            elif jax.default_backend() != "cpu" and self.batch_argnums:
                execution = "vmap"
            else:
                execution = "unroll" if self.total <= MAX_UNROLLED else "scan"
        if mesh_axis is not None or (execution == "vmap" and self.total > 1):
            return _at_once, True
        if execution == "scan" and self.total > 1:
            return functools.partial(_scan, size), size > 1
        return _unroll, False

    def _perturb(
        self, step: Any, scale: jax.Array | None, params: Params, copy: Copy
    ) -> tuple[Params, Params | None]:
        """The parameters of one copy, and its noise if that is scaled."""
        # Without a step of ours, the noise may have one bound by functools.partial.
        steps = () if step is None else (step,)
        noise = self.noise(copy.key, params, *steps)
        if self.antithetic or self.clean_weight or scale is not None:
            noise = jax.tree.map(functools.partial(_times, copy.factor), noise)
        perturbed = add_noise(params, noise)
        if (dtype := self.compute_dtype) is not None:
            perturbed = jax.tree.map(
                lambda p: jnp.asarray(p, dtype) if _is_real(p) else p, perturbed
            )
        return written((perturbed, None if scale is None else noise))

    def _own_args(self, args: Sequence[Any]) -> dict[int, Any]:
        """The arguments that differ between copies, with a leading axis of copies."""
        own = {}
        for name in ("batch_argnums", "copy_argnums"):
            for argnum in getattr(self, name):
                if argnum > len(args):
                    raise ValueError(
                        f"{name} names argument {argnum}, but fun was given"
                        f" {len(args) + 1} positional arguments, params included"
                    )
                distribute = self._rows if name == "batch_argnums" else self._slices
                own[argnum] = jax.tree.map_with_path(
                    functools.partial(distribute, argnum), args[argnum - 1]
                )
        return own

    def _rows(self, argnum: int, path, leaf) -> jax.Array:
        """The rows of a leaf, those of each copy along a new leading axis."""
        first, *others = jnp.shape(leaf) or ("no",)
        if first == "no" or first % self.total:
            raise ValueError(
                f"batch_argnums: argument {argnum}{jax.tree_util.keystr(path)} has"
                f" {first} rows, which do not divide between {self.total} copies"
            )
        if self.spmd_axis_name is not None:
            return jnp.reshape(leaf, (self.total, -1, *others))
        return jnp.swapaxes(jnp.reshape(leaf, (-1, self.total, *others)), 0, 1)

    def _slices(self, argnum: int, path, leaf) -> jax.Array:
        """The leaf itself, if it has one slice for each copy."""
        shape = jnp.shape(leaf)
        if shape[:1] != (self.total,):
            raise ValueError(
                f"copy_argnums: argument {argnum}{jax.tree_util.keystr(path)} of shape"
                f" {shape} needs a leading axis with one slice for each of {self.total}"
                " copies"
            )
        return leaf


# Loops over copies, or groups of them, of functions perturb(params, copy), and
# call(perturbed, args) to a result, of which they return the weighted sum, and another,
# which they stack.


def _at_once(perturb, call, params: Params, copies: Copy) -> tuple[Any, Any]:
    """Runs all copies as one group."""
    result, stacked = call(perturb(params, copies), copies.args)
    return optax.tree.cast_like(_weigh(copies.weight, result), result), stacked


def _unroll(perturb, call, params: Params, copies: Copy) -> tuple[Any, Any]:
    """Runs copy after copy in a Python loop."""
    total: Any = None
    result: Any = None
    stacked = []
    for i in range(len(copies.weight)):
        copy = jax.tree.map(lambda a, i=i: a[i], copies)
        if total is not None:
            # A copy, and its noise, wait for the one before: their memory is the same.
            params, total, key = written((params, total, copy.key))
            copy = copy._replace(key=key)
        result, aux = call(perturb(params, copy), copy.args)
        stacked.append(aux)
        summand = _weigh(copy.weight, result)
        total = summand if total is None else jax.tree.map(jnp.add, total, summand)
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *stacked)
    return optax.tree.cast_like(total, result), stacked


def _scan(size: int, perturb, call, params: Params, copies: Copy) -> tuple[Any, Any]:
    """Runs copy after copy, or groups of `size` copies, in a compiled loop."""

    def weighted(copy):
        result, aux = call(perturb(params, copy), copy.args)
        return _weigh(copy.weight, result), aux, result

    def body(total, copy):
        summand, aux, _ = weighted(copy)
        return jax.tree.map(jnp.add, total, summand), aux

    if size > 1:
        copies = jax.tree.map(lambda a: a.reshape(-1, size, *a.shape[1:]), copies)
    first = jax.tree.map(lambda a: a[0], copies)
    summand, _, result = jax.eval_shape(weighted, first)
    total, stacked = jax.lax.scan(body, jax.tree.map(jnp.zeros_like, summand), copies)
    if size > 1:
        stacked = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), stacked)
    return optax.tree.cast_like(total, result), stacked


def _together(perturb, call) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The functions of a group of copies that run at once."""

    def perturb_all(params, copies):
        # A loop draws the noise: under vmap, rbg keys would draw another.
        return jax.lax.map(functools.partial(perturb, params), copies)

    return perturb_all, jax.vmap(call)


def _over_mesh(
    perturb, call, axis: AxisNames, total: int
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The functions of all copies at once, each copy on its part of the mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    names = (axis,) if isinstance(axis, str) else axis or ()
    if missing := [name for name in names if name not in mesh.axis_names]:
        raise ValueError(
            f"spmd_axis_name: the mesh has no axis {missing[0]!r}, but"
            f" {mesh.axis_names}; set it by jax.set_mesh(mesh)"
        )
    devices = math.prod(mesh.shape[name] for name in names)
    if total % devices:
        raise ValueError(
            f"spmd_axis_name: the {total} copies do not divide over the {devices}"
            f" devices of {axis!r}"
        )
    explicit = AxisType.Explicit in mesh.axis_types

    def lay(tree):
        move = jax.sharding.reshard if explicit else jax.lax.with_sharding_constraint
        return move(jax.tree.map(jnp.asarray, tree), jax.P(axis))

    def perturb_one(params, copy):
        perturbed = perturb(params, copy)
        return perturbed if explicit else jax.tree.map(_anywhere, perturbed)

    perturb_all = jax.vmap(perturb_one, (None, 0), spmd_axis_name=axis)
    call_all = jax.vmap(call, spmd_axis_name=axis)
    return (
        lambda params, copies: perturb_all(params, lay(copies)),
        lambda perturbed, args: call_all(perturbed, lay(args)),
    )


def _anywhere(leaf: jax.Array) -> jax.Array:
    """The leaf, laid over devices in any way, but for the copies."""
    free = jax.P(*[jax.P.UNCONSTRAINED] * leaf.ndim)
    return jax.lax.with_sharding_constraint(leaf, free)


def _weigh(weight, result: Any) -> Any:
    """The weighted result of one copy, or sum over several, in float32 at least."""

    def weigh(leaf):
        _require_inexact(leaf)
        leaf = leaf.astype(accumulator_dtype(leaf.dtype))
        factor = jnp.asarray(weight, leaf.dtype)
        if factor.ndim == 0:
            return factor * leaf
        return jnp.tensordot(factor, leaf, axes=1, precision="highest")

    return jax.tree.map(weigh, result)


def _is_real(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def _times(factor, noise: jax.Array) -> jax.Array:
    """Noise times a factor, in float32 at least; integers are kept, or dropped by 0."""
    scaled = noise
    if _checks.is_inexact(noise):
        wide = accumulator_dtype(jnp.result_type(noise))
        scaled = jnp.asarray(noise, wide) * jnp.asarray(factor, wide)
        scaled = scaled.astype(jnp.result_type(noise))
    return jnp.where(factor == 0, jnp.zeros_like(noise), scaled)


def _refuse_overwritten(params: Params):
    """Raises ValueError if gradients of some params are next values, not slopes."""

    def is_overwritten(node):
        # NNX has the collection as a type of variables.
        in_mapping = isinstance(node, Mapping) and OVERWRITTEN in node
        return in_mapping or type(node).__name__ == OVERWRITTEN

    if any(map(is_overwritten, jax.tree.leaves(params, is_leaf=is_overwritten))):
        raise ValueError(
            f"params holds Flax's collection {OVERWRITTEN!r}, whose gradients are its"
            " next values, which must not be averaged over copies: set num_copies=1, or"
            " differentiate with respect to 'params' alone and pass the collection as"
            " another argument"
        )


def _as_output(averaged: bool, path, leaf: Any) -> jax.Array:
    """An auxiliary output as an array that copies can average, or stack."""
    name = f"auxiliary output{jax.tree_util.keystr(path)} of fun"
    try:
        leaf = jnp.asarray(leaf)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name} is {_checks.describe(leaf)}, which several copies can neither"
            " average nor stack: return arrays, or set num_copies=1"
        ) from error
    if averaged and not _checks.is_inexact(leaf):
        raise TypeError(
            f"{name} is {_checks.describe(leaf)}, which has no mean over copies; choose"
            " aux='first' or aux='stack'"
        )
    return leaf


def _require_inexact(leaf: Any) -> None:
    if not _checks.is_inexact(leaf):
        raise TypeError(
            "only floating or complex outputs of fun can be averaged over copies, got"
            f" {leaf.dtype}{list(leaf.shape)}; return it as auxiliary output and choose"
            " aux='stack' or 'first'"
        )


# A tree that is computed once, apart from what reads it.
written = apart(lambda tree: tree)
