"""The perturbed copies of a network: how many, on what data, how they run and average.

The machinery under `smooth`, `smoothout_value_and_grad` and `smooth_gradients`: one
class that holds the options, checked, and averages any function over the copies.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from smoothout_jax import _checks
from smoothout_jax._jax import apart, is_traced
from smoothout_jax._trees import Params, accumulator_dtype, add_noise
from smoothout_jax.noise import Noise

AUX = ("mean", "stack", "first", "clean")
EXECUTIONS = ("auto", "vmap", "scan", "unroll")
# Beyond, compiling the copies takes minutes for a large network.
MAX_UNROLLED = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Copies:
    """The options of `smoothout_value_and_grad`, where they are described."""

    noise: Noise
    num_copies: int = 1
    has_aux: bool = False
    batch_argnums: int | Sequence[int] = ()
    copy_argnums: int | Sequence[int] = ()
    antithetic: bool = False
    clean_weight: float = 0.0
    aux: str = "mean"
    execution: str = "auto"
    chunk_size: int | None = None
    axis_name: str | tuple[str, ...] | None = None
    spmd_axis_name: str | tuple[str, ...] | None = None

    def __post_init__(self):
        _checks.function("such as smoothout_jax.uniform(0.01)", noise=self.noise)
        _checks.count(num_copies=self.num_copies)
        _checks.choice(AUX, aux=self.aux)
        _checks.choice(EXECUTIONS, execution=self.execution)
        self._check_clean_weight()
        self._check_argnums()
        self._check_chunk_size()
        self._check_spmd_axis_name()
        if self.antithetic and self.num_copies % 2:
            raise ValueError(
                "antithetic copies come in pairs, so num_copies must be even; got"
                f" num_copies={self.num_copies}"
            )
        if self.aux != "mean" and not self.has_aux:
            raise ValueError(f"aux={self.aux!r} needs has_aux=True")

    def _check_clean_weight(self):
        if is_traced(self.clean_weight):
            raise TypeError(
                "clean_weight must be known to Python, since it decides whether a"
                f" clean copy runs; got {self.clean_weight}"
            )
        _checks.nonnegative(clean_weight=self.clean_weight)
        if self.clean_weight >= 1:
            raise ValueError(
                f"clean_weight must be in [0, 1), got {self.clean_weight}; at 1 no"
                " perturbed copy would count"
            )
        if self.aux == "clean" and not self.clean_weight:
            raise ValueError(
                "aux='clean' takes the copy at the clean parameters, which runs only"
                " with a clean_weight above 0"
            )

    def _check_argnums(self):
        seen = set()
        for name in ("batch_argnums", "copy_argnums"):
            given = getattr(self, name)
            try:
                argnums = given if isinstance(given, Sequence) else (given,)
                argnums = tuple(map(operator.index, argnums))
            except TypeError:
                raise TypeError(
                    f"{name} must be an integer or a sequence of them, got {given!r}"
                ) from None
            if any(argnum < 1 for argnum in argnums):
                raise ValueError(
                    f"{name} counts the arguments of fun from params, which is 0, so it"
                    f" must be at least 1; got {given!r}"
                )
            if len(seen | {*argnums}) < len(seen) + len(argnums):
                raise ValueError(
                    "batch_argnums and copy_argnums name an argument twice:"
                    f" {self.batch_argnums!r} and {self.copy_argnums!r}"
                )
            seen.update(argnums)
            object.__setattr__(self, name, argnums)

    def _check_chunk_size(self):
        if self.chunk_size is None:
            return
        _checks.count(chunk_size=self.chunk_size)
        if self.execution not in ("auto", "scan"):
            raise ValueError(
                "chunk_size is the number of copies vmapped inside a scan; it excludes"
                f" execution={self.execution!r}"
            )
        if self.total % self.chunk_size:
            clean = ", the clean one included" if self.clean_weight else ""
            raise ValueError(
                f"chunk_size={self.chunk_size} does not divide the {self.total}"
                f" copies{clean}"
            )

    def _check_spmd_axis_name(self):
        if self.spmd_axis_name is None:
            return
        if self.execution not in ("auto", "vmap") or self.chunk_size is not None:
            raise ValueError(
                "spmd_axis_name lays the copies over devices, which run them together;"
                f" it excludes execution={self.execution!r} and"
                f" chunk_size={self.chunk_size}"
            )
        if self.axis_name is not None:
            raise ValueError(
                f"axis_name={self.axis_name!r} is for jax.shard_map and"
                f" spmd_axis_name={self.spmd_axis_name!r} for jax.jit: give one"
            )

    @property
    def total(self) -> int:
        """The number of copies, the clean one included."""
        return self.num_copies + bool(self.clean_weight)

    def mean(
        self,
        fn: Callable[..., tuple[Any, Any]],
        key: jax.Array,
        params: Params,
        args: Sequence[Any] = (),
        step: Any = None,
    ) -> tuple[Any, Any]:
        """Averages a function over the copies.

        Args:
            fn: function `fn(params, *args)` to a pair: what is averaged, and auxiliary
                outputs, which go as `aux` says.
            key: the PRNG key of the noise.
            params: the clean parameters.
            args: the arguments after the parameters, not yet split.
            step: the step handed to the noise.

        Returns:
            The pair of the weighted mean and the auxiliary outputs.
        """
        _checks.prng_key(key)
        own_args = self._own_args(args)
        if self.axis_name is not None:
            index = jax.lax.axis_index(self.axis_name)
            key = jax.random.split(key, jax.lax.axis_size(self.axis_name))[index]
            params = _vary(params, index)

        # Split, not folded once more: unsafe_rbg keys fold alike in either order.
        keys = jax.random.split(key, self.total) if self.total > 1 else key[None]
        if self.antithetic:
            keys = keys[np.arange(self.total) // 2]

        # The auxiliary outputs of a single copy may be anything, as without copies.
        alone = self.total == 1 and self.aux != "stack"
        alone = alone and self.axis_name is None and self.spmd_axis_name is None
        # What is averaged as the gradients are travels with them.
        together = alone or self.aux == "mean"

        def perturb(params, numbered):
            number, key = numbered
            return self._perturb(number, key, params, step)

        def call(perturbed, own):
            merged = [own.get(i, arg) for i, arg in enumerate(args, start=1)]
            result, aux = fn(perturbed, *merged)
            result = jax.tree.map(jnp.asarray, result)
            if not alone:
                check = functools.partial(_as_output, self.aux == "mean")
                aux = jax.tree.map_with_path(check, aux)
            return ((result, aux), None) if together else ((result, None), aux)

        numbered = np.arange(self.total), keys
        (result, aux), stacked = self._run(perturb, call, params, numbered, own_args)
        if not together:
            picked = {"stack": slice(None), "first": 0, "clean": -1}[self.aux]
            aux = jax.tree.map(lambda a: a[picked], stacked)
        if self.axis_name is not None:
            result = jax.lax.pmean(result, self.axis_name)
            if self.aux in ("mean", "clean"):
                jax.tree.map(_require_inexact, aux)
                aux = jax.lax.pmean(aux, self.axis_name)
        return result, aux

    def _run(self, perturb, call, params, numbered, own_args) -> tuple[Any, Any]:
        """Calls every copy: the weighted sum of the results, and stacked auxiliaries.

        Args:
            perturb: function of the parameters and a copy's number and key to its own.
            call: function of a copy's parameters and own arguments to a result that is
                summed and one that is stacked.
            params: the clean parameters.
            numbered: the copies' numbers and keys.
            own_args: the arguments that differ, with a leading axis of copies.
        """
        execution = self._execution()
        size = {"vmap": self.total, "scan": self.chunk_size or 1, "unroll": 1}[
            execution
        ]

        def run(params, chunk):
            numbered, own = chunk
            if self.spmd_axis_name is not None:
                return self._run_over_mesh(perturb, call, params, numbered, own)
            if size == 1:
                return call(perturb(params, numbered), own)
            # A loop draws the noise: under vmap, rbg keys would draw another.
            perturbed = jax.lax.map(functools.partial(perturb, params), numbered)
            return jax.vmap(call)(perturbed, own)

        copies = (numbered, own_args)
        weights = np.full(self.total, (1 - self.clean_weight) / self.num_copies)
        if self.clean_weight:
            weights[-1] = self.clean_weight
        if size > 1:
            weights, copies = jax.tree.map(
                lambda a: a.reshape(-1, size, *a.shape[1:]), (weights, copies)
            )
        sum_chunks = _scan if execution == "scan" else _unroll
        total, stacked = sum_chunks(run, params, weights, copies)
        if size > 1:
            stacked = jax.tree.map(
                lambda a: a.reshape(self.total, *a.shape[2:]), stacked
            )
        return total, stacked

    def _run_over_mesh(self, perturb, call, params, numbered, own):
        """Every copy where its part of the mesh is."""
        mesh = jax.sharding.get_abstract_mesh()
        names = self.spmd_axis_name or ()
        names = (names,) if isinstance(names, str) else names
        if missing := [name for name in names if name not in mesh.axis_names]:
            raise ValueError(
                f"spmd_axis_name: the mesh has no axis {missing[0]!r}, but"
                f" {mesh.axis_names}; set it by jax.set_mesh(mesh)"
            )
        devices = math.prod(mesh.shape[name] for name in names)
        if self.total % devices:
            raise ValueError(
                f"spmd_axis_name: the {self.total} copies do not divide over the"
                f" {devices} devices of {self.spmd_axis_name!r}"
            )

        explicit = AxisType.Explicit in mesh.axis_types

        def run(numbered, own):
            perturbed = perturb(params, numbered)
            if not explicit:
                perturbed = jax.tree.map(_anywhere, perturbed)
            return call(perturbed, own)

        lay = jax.sharding.reshard if explicit else jax.lax.with_sharding_constraint
        copies = jax.tree.map(jnp.asarray, (numbered, own))
        copies = lay(copies, jax.P(self.spmd_axis_name))
        return jax.vmap(run, spmd_axis_name=self.spmd_axis_name)(*copies)

    def _execution(self) -> str:
        """How the copies run, `"auto"` decided; one copy needs no loop."""
        if self.spmd_axis_name is not None:
            return "vmap"
        if self.total == 1:
            return "unroll"
        if self.execution != "auto":
            return self.execution
        if self.chunk_size is not None:
            return "scan"
        if jax.default_backend() != "cpu" and self.batch_argnums:
            return "vmap"
        return "unroll" if self.total <= MAX_UNROLLED else "scan"

    def _perturb(self, number, key, params, step):
        """The parameters of one copy."""
        # Without a step of ours, the noise may have one bound by functools.partial.
        steps = () if step is None else (step,)
        noise = self.noise(key, params, *steps)
        if self.antithetic:
            odd = number % 2 == 1
            noise = jax.tree.map(
                lambda n: jnp.where(odd, -n, n) if _checks.is_inexact(n) else n, noise
            )
        if self.clean_weight:
            clean = number == self.num_copies
            noise = jax.tree.map(
                lambda n: jnp.where(clean, jnp.zeros_like(n), n), noise
            )
        return _keep(add_noise(params, noise))

    def _own_args(self, args) -> dict[int, Any]:
        """The arguments that differ between copies, with a leading axis of copies."""
        own = {}
        split = _split_rows if self.spmd_axis_name is None else _split_blocks
        for name, distribute in (
            ("batch_argnums", split),
            ("copy_argnums", _check_slices),
        ):
            for argnum in getattr(self, name):
                if argnum > len(args):
                    raise ValueError(
                        f"{name} names argument {argnum}, but fun was given"
                        f" {len(args) + 1} positional arguments, params included"
                    )
                own[argnum] = jax.tree.map_with_path(
                    functools.partial(distribute, self.total, argnum), args[argnum - 1]
                )
        return own


def _split_rows(total: int, argnum: int, path, leaf) -> jax.Array:
    """Rows m, m + total, … of a leaf, at index m of a new leading axis."""
    shape = _check_rows(total, argnum, path, leaf)
    return jnp.swapaxes(jnp.reshape(leaf, (-1, total, *shape[1:])), 0, 1)


def _split_blocks(total: int, argnum: int, path, leaf) -> jax.Array:
    """The m-th block of rows of a leaf, at index m of a new leading axis."""
    shape = _check_rows(total, argnum, path, leaf)
    return jnp.reshape(leaf, (total, -1, *shape[1:]))


def _check_rows(total: int, argnum: int, path, leaf) -> tuple[int, ...]:
    shape = jnp.shape(leaf)
    if not shape or shape[0] % total:
        raise ValueError(
            f"batch_argnums: argument {argnum}{jax.tree_util.keystr(path)} has"
            f" {shape[0] if shape else 'no'} rows, which do not divide between {total}"
            " copies"
        )
    return shape


def _check_slices(total: int, argnum: int, path, leaf) -> jax.Array:
    """The leaf as it is, once its leading axis is seen to be one of copies."""
    shape = jnp.shape(leaf)
    if not shape or shape[0] != total:
        raise ValueError(
            f"copy_argnums: argument {argnum}{jax.tree_util.keystr(path)} of shape"
            f" {shape} needs a leading axis with one slice for each of {total} copies"
        )
    return leaf


def _anywhere(leaf: jax.Array) -> jax.Array:
    """The leaf, laid over devices as it may be, but for the copies."""
    free = jax.P(*[jax.P.UNCONSTRAINED] * leaf.ndim)
    return jax.lax.with_sharding_constraint(leaf, free)


def _vary(params: Params, index: jax.Array) -> Params:
    """Makes parameters vary over the devices that `index` numbers.

    `jax.shard_map` sums a gradient over devices when its parameters are the same on
    all of them; here each device's own gradient is wanted.
    """
    return jax.tree.map(lambda p: p + (index * 0).astype(jnp.result_type(p)), params)


def _unroll(run, params, weights, copies) -> tuple[Any, Any]:
    """Runs chunk after chunk in a Python loop: weighted sum, stacked auxiliaries."""
    total, result, auxes = None, None, []
    for i, weight in enumerate(weights):
        (number, key), own = jax.tree.map(lambda a, i=i: a[i], copies)
        if total is not None:
            # A copy, and its noise, wait for the one before: their memory is the same.
            params, total, key = _keep((params, total, key))
        result, aux = run(params, ((number, key), own))
        if weights.shape == (1,):
            return result, jax.tree.map(lambda a: jnp.asarray(a)[None], aux)
        auxes.append(aux)
        if total is None:
            total = _weigh(weight, result)
        else:
            total = jax.tree.map(jnp.add, total, _weigh(weight, result))
    return _cast_like(total, result), jax.tree.map(lambda *a: jnp.stack(a), *auxes)


def _scan(run, params, weights, copies) -> tuple[Any, Any]:
    """Runs chunk after chunk in a compiled loop, to the same pair."""

    def weighted(chunk):
        weight, copy = chunk
        result, aux = run(params, copy)
        return _weigh(weight, result), aux, result

    def body(total, chunk):
        summand, aux, _ = weighted(chunk)
        return jax.tree.map(jnp.add, total, summand), aux

    chunks = (weights, copies)
    first = jax.tree.map(lambda a: a[0], chunks)
    summand, _, result = jax.eval_shape(weighted, first)
    total, stacked = jax.lax.scan(body, jax.tree.map(jnp.zeros_like, summand), chunks)
    return _cast_like(total, result), stacked


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


def _as_output(averaged: bool, path, leaf: Any) -> jax.Array:
    """An auxiliary output as an array that copies can average, or stack."""
    name = f"auxiliary output{jax.tree_util.keystr(path)} of fun"
    try:
        leaf = jnp.asarray(leaf)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name} is {_checks.describe(leaf)}, which several copies can neither"
            " average nor stack: return arrays, or take one copy"
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


def _cast_like(tree: Any, like: Any) -> Any:
    """The tree in the dtypes of another."""
    return jax.tree.map(
        lambda leaf, other: leaf.astype(jnp.result_type(other)), tree, like
    )


def _identity(tree: Any) -> Any:
    return tree


_keep = apart(_identity)
