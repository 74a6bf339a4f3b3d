"""Perturbed copies of a network: the inputs of each, and the mean over all."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType

from smoothout_jax import _checks
from smoothout_jax._jax import apart
from smoothout_jax._options import Options
from smoothout_jax._trees import Params, accumulator_dtype, add_noise, leaf_names
from smoothout_jax.loss_rise import LossRise, LossRiseState, rise_of
from smoothout_jax.masks import untrained_kinds

# Compiling more copies of a large network takes minutes.
MAX_UNROLLED = 16
# Flax's collection of fp8 scales, whose "gradients" are their next values.
OVERWRITTEN = "_overwrite_with_gradient"

# Computes a tree once, separately from the code that reads it.
written = apart(lambda tree: tree)


class Copy(NamedTuple):
    """The inputs of one copy, or of several along a leading axis."""

    key: jax.Array
    # Multiplies the noise: negative for the second of a pair, 0 for the clean copy.
    factor: np.ndarray | jax.Array
    weight: np.ndarray
    # Arguments of the averaged function, by position.
    args: dict[int, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Copies(Options):
    """Computes the means that the options describe."""

    def mean_gradients(
        self, fn: Callable, rise: LossRiseState | None, key, params, args, step=None
    ) -> tuple[tuple[Any, Params], Any, LossRiseState | None]:
        """Averages gradients, with noise that holds the rise if its state is given.

        `fn(params, *args)` returns `(value, grads)` and auxiliary outputs. Returns the
        mean, the auxiliary outputs, and the next state.
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

        scale = None if rise is None else rise.noise_scale
        (mean, seen), aux = self.mean(with_rise, key, params, args, step, scale)
        if held is not None and rise is not None:
            # The clean copy has no noise, and so no rise.
            rise = held.observed(rise, seen / (1 - self.clean_weight))
        return mean, aux, rise

    def mean(
        self, fn: Callable, key, params: Params, args, step: Any = None, scale=None
    ) -> tuple[Any, Any]:
        """The weighted mean of a function over the copies, and its auxiliary outputs.

        `fn(params, noise, *args)` returns a result and auxiliary outputs. Its noise is
        the copy's, multiplied by `scale`; without a `scale` it is `None`.
        """
        over_devices = self.axis_name is not None
        if self.total > 1 or over_devices:
            _refuse_overwritten(params)
        if over_devices:
            index = jax.lax.axis_index(self.axis_name)
            key = jax.random.split(key, jax.lax.axis_size(self.axis_name))[index]
            # jax.shard_map sums a gradient over devices unless its parameters vary over
            # them; here each device's own gradient is wanted.
            zero = index * 0
            params = jax.tree.map(lambda p: p + zero.astype(jnp.result_type(p)), params)
        copies = self._all(key, args, scale)
        perturb = functools.partial(self._perturb, step, scale)

        def call(perturbed, own):
            merged = [own.get(i, arg) for i, arg in enumerate(args, start=1)]
            result, aux = fn(*perturbed, *merged)
            return jax.tree.map(jnp.asarray, result), aux

        stacks = self.aux == "stack" or callable(self.aux)
        if self.total == 1 and not (over_devices or self.spmd_axis_name or stacks):
            # Auxiliary outputs may be of any type, as without copies.
            copy = jax.tree.map(lambda a: a[0], copies)
            return call(perturb(params, copy), copy.args)

        in_mean = self.aux == "mean"
        has_mean = in_mean or (self.aux == "clean" and over_devices)

        def call_one(perturbed, own):
            result, aux = call(perturbed, own)
            result = _as_outputs("output", True, result)
            aux = _as_outputs("auxiliary output", has_mean, aux)
            return ((result, aux), None) if in_mean else ((result, None), aux)

        execution, size = self._plan()
        if self.spmd_axis_name is not None:
            run = _over_mesh(perturb, call_one, self.spmd_axis_name, self.total)
        else:
            run = functools.partial(_run, perturb, call_one, size > 1)
        (result, aux), stacked = _sum(execution, size, run, params, copies)
        if callable(self.aux):
            aux = self.aux(stacked)
        elif not in_mean:
            chosen = {"stack": slice(None), "first": 0, "clean": -1}[self.aux]
            aux = jax.tree.map(lambda a: a[chosen], stacked)
        if over_devices:
            result = jax.lax.pmean(result, self.axis_name)
            aux = jax.lax.pmean(aux, self.axis_name) if has_mean else aux
        return result, aux

    def _plan(self) -> tuple[str, int]:
        """How the copies run, and how many of them at once."""
        if self.spmd_axis_name is not None:
            return "vmap", self.total
        if self.total == 1:
            return "unroll", 1
        if self.chunk_size is not None:
            return "scan", self.chunk_size
        execution = self.execution
        if execution == "auto":
            execution = "unroll" if self.total <= MAX_UNROLLED else "scan"
            if jax.default_backend() != "cpu" and self.batch_argnums:
                execution = "vmap"
        return execution, self.total if execution == "vmap" else 1

    def _all(self, key: jax.Array, args: Sequence[Any], scale: Any) -> Copy:
        """All copies, with their noise scaled and their parts of the arguments."""
        # Split instead of folding again: unsafe_rbg keys fold alike in either order.
        keys = jax.random.split(key, self.total) if self.total > 1 else key[None]
        factors = np.ones(self.total, np.float32)
        if self.antithetic:
            keys = keys[np.arange(self.total) // 2]
            factors[1::2] = -1
        weights = np.full(self.total, (1 - self.clean_weight) / self.num_copies)
        factors[self.num_copies :] = 0
        weights[self.num_copies :] = self.clean_weight
        own = {}
        for name in ("batch_argnums", "copy_argnums"):
            for argnum in getattr(self, name):
                if argnum > len(args):
                    raise ValueError(
                        f"{name} names argument {argnum}, but fun was given"
                        f" {len(args) + 1} positional arguments, params included"
                    )
                share = self._rows if name == "batch_argnums" else self._slices
                own[argnum] = jax.tree.map_with_path(
                    functools.partial(share, f"{name}: argument {argnum}"),
                    args[argnum - 1],
                )
        return Copy(keys, factors if scale is None else factors * scale, weights, own)

    def _rows(self, name: str, path, leaf) -> jax.Array:
        """The rows of a leaf, grouped by copy along a new leading axis."""
        first, *others = jnp.shape(leaf) or ("no",)
        if first == "no" or first % self.total:
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} has {first} rows, which do not"
                f" divide between {self.total} copies"
            )
        if self.spmd_axis_name is not None:
            return jnp.reshape(leaf, (self.total, -1, *others))
        return jnp.swapaxes(jnp.reshape(leaf, (-1, self.total, *others)), 0, 1)

    def _slices(self, name: str, path, leaf) -> jax.Array:
        """The leaf itself, if it has one slice for each copy."""
        shape = jnp.shape(leaf)
        if shape[:1] != (self.total,):
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} of shape {shape} needs a leading"
                f" axis with one slice for each of {self.total} copies"
            )
        return leaf

    def _perturb(
        self, step: Any, scale: jax.Array | None, params: Params, copy: Copy
    ) -> tuple[Params, Params | None]:
        """The parameters of one copy, and its noise if that is scaled."""
        # If we have no step, functools.partial may have bound one to the noise.
        steps = () if step is None else (step,)
        noise = self.noise(copy.key, params, *steps)
        if self.antithetic or self.clean_weight or scale is not None:
            noise = jax.tree.map(functools.partial(_times, copy.factor), noise)
        perturbed = add_noise(params, noise)
        if (dtype := self.compute_dtype) is not None:

            def cast(leaf):
                is_real = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
                return jnp.asarray(leaf, dtype) if is_real else leaf

            perturbed = jax.tree.map(cast, perturbed)
        return written((perturbed, None if scale is None else noise))


def _sum(execution, size: int, run, params: Params, copies: Copy) -> tuple[Any, Any]:
    """The weighted sum of the copies' results, and their auxiliary outputs, stacked.

    `run(params, copies)` returns both, for one copy or for `size` at once.
    """

    def weighted(params, copies):
        result, aux = run(params, copies)
        return _weigh(copies.weight, result), aux, result

    def body(total, copies):
        summand, aux, _ = weighted(params, copies)
        return jax.tree.map(jnp.add, total, summand), aux

    if execution == "vmap":
        total, stacked, result = weighted(params, copies)
    elif execution == "scan":
        if size > 1:
            copies = jax.tree.map(lambda a: a.reshape(-1, size, *a.shape[1:]), copies)
        first = jax.tree.map(lambda a: a[0], copies)
        summand, _, result = jax.eval_shape(weighted, params, first)
        zeros = jax.tree.map(jnp.zeros_like, summand)
        total, stacked = jax.lax.scan(body, zeros, copies)
        if size > 1:
            stacked = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), stacked)
    else:
        total: Any = None
        result: Any = None
        auxes = []
        for i in range(len(copies.weight)):
            copy = jax.tree.map(lambda a, i=i: a[i], copies)
            if i > 0:
                # Wait for the previous copy, so that both use the same memory.
                params, total, key = written((params, total, copy.key))
                copy = copy._replace(key=key)
            summand, aux, result = weighted(params, copy)
            auxes.append(aux)
            total = jax.tree.map(jnp.add, total, summand) if i > 0 else summand
        stacked = jax.tree.map(lambda *a: jnp.stack(a), *auxes)
    return optax.tree.cast_like(total, result), stacked


def _run(perturb, call, at_once: bool, params: Params, copies: Copy) -> tuple[Any, Any]:
    """Runs one copy, or several at once."""
    if not at_once:
        return call(perturb(params, copies), copies.args)
    # Draw the noise in a loop: under vmap, rbg keys would draw other noise.
    perturbed = jax.lax.map(functools.partial(perturb, params), copies)
    return jax.vmap(call)(perturbed, copies.args)


def _over_mesh(perturb, call, axis: str | tuple[str, ...], total: int) -> Callable:
    """Runs all copies at once, each on its part of the mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    names = (axis,) if isinstance(axis, str) else axis
    if missing := [name for name in names if name not in mesh.axis_names]:
        raise ValueError(
            f"spmd_axis_name: the mesh has no axis {missing[0]!r}, only"
            f" {mesh.axis_names}; set it with jax.set_mesh(mesh)"
        )
    devices = math.prod(mesh.shape[name] for name in names)
    if total % devices:
        raise ValueError(
            f"spmd_axis_name: the {total} copies do not divide evenly over the"
            f" {devices} devices of {axis!r}"
        )
    explicit = AxisType.Explicit in mesh.axis_types
    lay = jax.sharding.reshard if explicit else jax.lax.with_sharding_constraint

    def anywhere(leaf):
        return lay(leaf, jax.P(*[jax.P.UNCONSTRAINED] * leaf.ndim))

    def perturb_one(params, copy):
        perturbed = perturb(params, copy)
        return perturbed if explicit else jax.tree.map(anywhere, perturbed)

    def run(params, copies):
        copies = lay(jax.tree.map(jnp.asarray, copies), jax.P(axis))
        in_axes = None, 0
        perturbed = jax.vmap(perturb_one, in_axes, spmd_axis_name=axis)(params, copies)
        return jax.vmap(call, spmd_axis_name=axis)(perturbed, copies.args)

    return run


def _weigh(weight, result: Any) -> Any:
    """The weighted result of one copy, or sum over several, in at least float32."""

    def weigh(leaf):
        leaf = leaf.astype(accumulator_dtype(leaf.dtype))
        factor = jnp.asarray(weight, leaf.dtype)
        if factor.ndim == 0:
            return factor * leaf
        return jnp.tensordot(factor, leaf, axes=1, precision="highest")

    return jax.tree.map(weigh, result)


def _times(factor, noise: jax.Array) -> jax.Array:
    """Noise times a factor, in at least float32; integers are kept, or zeroed by 0."""
    dtype, scaled = jnp.result_type(noise), noise
    if _checks.is_inexact(noise):
        wide = accumulator_dtype(dtype)
        scaled = (jnp.asarray(noise, wide) * jnp.asarray(factor, wide)).astype(dtype)
    return jnp.where(factor == 0, jnp.zeros_like(noise), scaled)


def _refuse_overwritten(params: Params) -> None:
    """Raises ValueError if some "gradients" are next values, which have no mean."""
    rows = zip(leaf_names(params), untrained_kinds(params), strict=True)
    if any(OVERWRITTEN in (kind, *name.split("/")) for name, kind in rows):
        raise ValueError(
            f"params contains Flax's collection {OVERWRITTEN!r}, whose gradients are"
            " its next values, which must not be averaged over copies: set num_copies=1"
            ", or differentiate with respect to 'params' alone and pass the collection"
            " as another argument"
        )


def _as_outputs(name: str, averaged: bool, tree: Any) -> Any:
    """Outputs as arrays that copies can average, or stack."""

    def as_array(path, leaf):
        described = (
            f"{name}{jax.tree_util.keystr(path)} of fun is {_checks.describe(leaf)}"
        )
        try:
            leaf = jnp.asarray(leaf)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"{described}, which several copies can neither average nor stack:"
                " return arrays, or set num_copies=1"
            ) from error
        if averaged and not _checks.is_inexact(leaf):
            raise TypeError(
                f"{described}, which has no mean over copies; return it as an auxiliary"
                " output, with aux='first' or aux='stack'"
            )
        return leaf

    return jax.tree.map_with_path(as_array, tree)
