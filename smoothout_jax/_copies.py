"""The perturbed copies of a network: how many, and what each of them gets.

The machinery under `smooth`, `smoothout_value_and_grad` and `smooth_gradients`: one
class that holds the options, checked, and averages any function over the copies.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from smoothout_jax import _checks
from smoothout_jax._execution import (
    MAX_UNROLLED,
    AxisNames,
    Copy,
    Run,
    average,
    keep,
    require_inexact,
)
from smoothout_jax._jax import is_traced
from smoothout_jax._sharding import axes_of_rows
from smoothout_jax._trees import Params, add_noise
from smoothout_jax.loss_rise import LossRise, LossRiseState, rise_of, scaled_noise
from smoothout_jax.noise import Noise, Size

AuxName = Literal["mean", "stack", "first", "clean"]
Aux = AuxName | Callable[[Any], Any]
Execution = Literal["auto", "vmap", "scan", "unroll"]


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
    aux: Aux = "mean"
    execution: Execution = "auto"
    chunk_size: int | None = None
    axis_name: AxisNames = None
    spmd_axis_name: AxisNames = None
    loss_rise: Size | None = None
    compute_dtype: Any = None

    def __post_init__(self):
        _checks.function("such as smoothout_jax.uniform(0.01)", noise=self.noise)
        _checks.count(num_copies=self.num_copies)
        if not callable(self.aux):
            _checks.choice(get_args(AuxName), aux=self.aux)
        _checks.choice(get_args(Execution), execution=self.execution)
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
            name = "a function" if callable(self.aux) else repr(self.aux)
            raise ValueError(f"aux={name} needs has_aux=True")
        if self.loss_rise is not None:
            LossRise(self.loss_rise)
        if self.compute_dtype is not None:
            _checks.floating(compute_dtype=self.compute_dtype)

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

    def mean_gradients(
        self,
        fn: Callable[..., tuple[tuple[Any, Params], Any]],
        rise: LossRiseState | None,
        key: jax.Array,
        params: Params,
        args: Sequence[Any],
        step: Any = None,
    ) -> tuple[tuple[Any, Params], Any, LossRiseState | None]:
        """Averages gradients, under noise that holds the rise if one is to be held.

        Args:
            fn: function `fn(params, *args)` to `(value, grads)`, and auxiliary outputs.
            rise: the state of the rise; `None` for the noise as it is.
            key: as for `mean`, like all that follow.
            params: the clean parameters.
            args: the arguments after the parameters.
            step: the step handed to the noise.

        Returns:
            The mean, the auxiliary outputs, and the next state of the rise.
        """
        fn = self._widening(fn, params)
        if self.loss_rise is None or rise is None:
            return *self.mean(fn, key, params, args, step), None
        held = LossRise(self.loss_rise)
        rise = held.scaled(rise)

        def and_rise(perturbed, *args):
            (value, grads), aux = fn(perturbed, *args)
            return ((value, grads), rise_of(params, perturbed, grads)), aux

        noise = scaled_noise(self.noise, rise.noise_scale)
        copies = dataclasses.replace(self, noise=noise)
        (mean, seen), aux = copies.mean(and_rise, key, params, args, step)
        # The clean copy sees none.
        seen = seen / (1 - self.clean_weight)
        return mean, aux, held.observed(rise, seen)

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
        own = self._own_args(args)
        laid_over = self.spmd_axis_name or self._axis_of_batch(params, args)
        if self.axis_name is not None:
            index = jax.lax.axis_index(self.axis_name)
            key = jax.random.split(key, jax.lax.axis_size(self.axis_name))[index]
            params = _vary(params, index)
        copies = Copy(self._keys(key), self._signs(), self._weights(), own)

        # The auxiliary outputs of a single copy may be anything, as without copies.
        alone = self.total == 1 and self.aux != "stack" and not callable(self.aux)
        alone = alone and self.axis_name is None and laid_over is None
        # What is averaged as the gradients are travels with them.
        together = alone or self.aux == "mean"

        def call(perturbed, own):
            merged = [own.get(i, arg) for i, arg in enumerate(args, start=1)]
            result, aux = fn(perturbed, *merged)
            result = jax.tree.map(jnp.asarray, result)
            if not alone:
                check = functools.partial(_as_output, self.aux == "mean")
                aux = jax.tree.map_with_path(check, aux)
            return ((result, aux), None) if together else ((result, None), aux)

        (result, aux), stacked = average(
            Run(functools.partial(self._perturb, step), call, params),
            copies,
            "vmap" if laid_over is not None else self._how(),
            self.chunk_size,
            laid_over,
        )
        if callable(self.aux):
            aux = self.aux(stacked)
        elif not together:
            picked = {"stack": slice(None), "first": 0, "clean": -1}[self.aux]
            aux = jax.tree.map(lambda a: a[picked], stacked)
        if self.axis_name is not None:
            result = jax.lax.pmean(result, self.axis_name)
            if self.aux in ("mean", "clean"):
                jax.tree.map(require_inexact, aux)
                aux = jax.lax.pmean(aux, self.axis_name)
        return result, aux

    def _keys(self, key: jax.Array) -> jax.Array:
        # Split, not folded once more: unsafe_rbg keys fold alike in either order.
        keys = jax.random.split(key, self.total) if self.total > 1 else key[None]
        return keys[np.arange(self.total) // 2] if self.antithetic else keys

    def _signs(self) -> np.ndarray:
        signs = np.ones(self.total, np.int8)
        if self.antithetic:
            signs[1::2] = -1
        signs[self.num_copies :] = 0
        return signs

    def _weights(self) -> np.ndarray:
        weights = np.full(self.total, (1 - self.clean_weight) / self.num_copies)
        weights[self.num_copies :] = self.clean_weight
        return weights

    def _how(self) -> Literal["vmap", "scan", "unroll"]:
        """How the copies run, `"auto"` decided; one copy needs no loop."""
        if self.total == 1:
            return "unroll"
        if self.execution != "auto":
            return self.execution
        if self.chunk_size is not None:
            return "scan"
        if jax.default_backend() != "cpu" and self.batch_argnums:
            return "vmap"
        return "unroll" if self.total <= MAX_UNROLLED else "scan"

    def _axis_of_batch(self, params: Params, args: Sequence[Any]) -> AxisNames:
        """The mesh axis to lay the copies over, where the mesh says so.

        One after another, copies of a split batch that lies along an axis would each
        send their gradients; laid over it, they move the batch, and send them once.
        """
        numbers = np.ravel(self.batch_argnums)
        batch = [arg for number, arg in enumerate(args, start=1) if number in numbers]
        axes = axes_of_rows(batch, params)
        told = self.execution != "auto" or self.chunk_size is not None
        if not axes or told or self.axis_name is not None:
            return None
        mesh = jax.sharding.get_abstract_mesh()
        devices = math.prod(mesh.shape.get(name, 0) for name in axes)
        if not devices or self.total % devices:
            return None
        moved, sent = (sum(map(_bytes, jax.tree.leaves(t))) for t in (batch, params))
        return axes if moved < (self.total - 1) * sent else None

    def _widening(self, fn, params: Params):
        """The function, with its gradients in the dtypes of the parameters."""
        if self.compute_dtype is None:
            return fn

        def widened(perturbed, *args):
            (value, grads), aux = fn(perturbed, *args)
            return (value, optax.tree.cast_like(grads, params)), aux

        return widened

    def _perturb(self, step: Any, params: Params, copy: Copy) -> Params:
        """The parameters of one copy."""
        # Without a step of ours, the noise may have one bound by functools.partial.
        steps = () if step is None else (step,)
        noise = self.noise(copy.key, params, *steps)
        if self.antithetic or self.clean_weight:
            noise = jax.tree.map(functools.partial(_signed, copy.sign), noise)
        perturbed = add_noise(params, noise)
        if self.compute_dtype is not None:
            perturbed = jax.tree.map(self._computing, perturbed)
        return keep(perturbed)

    def _computing(self, leaf: jax.Array) -> jax.Array:
        """A leaf in the dtype in which the network computes."""
        is_real = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        return jnp.asarray(leaf, self.compute_dtype) if is_real else leaf

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
    """Returns the leaf; raises ValueError unless it has one slice for each copy."""
    shape = jnp.shape(leaf)
    if not shape or shape[0] != total:
        raise ValueError(
            f"copy_argnums: argument {argnum}{jax.tree_util.keystr(path)} of shape"
            f" {shape} needs a leading axis with one slice for each of {total} copies"
        )
    return leaf


def _bytes(leaf: Any) -> int:
    return math.prod(jnp.shape(leaf)) * jnp.result_type(leaf).itemsize


def _signed(sign, noise: jax.Array) -> jax.Array:
    """Noise of a sign; one that cannot be negated is left as it is."""
    if not _checks.is_inexact(noise):
        return jnp.where(sign == 0, jnp.zeros_like(noise), noise)
    negated = jnp.where(sign < 0, -noise, noise)
    return jnp.where(sign == 0, jnp.zeros_like(noise), negated)


def _vary(params: Params, index: jax.Array) -> Params:
    """Makes parameters vary over the devices that `index` numbers.

    `jax.shard_map` sums a gradient over devices when its parameters are the same on
    all of them; here each device's own gradient is wanted.
    """
    return jax.tree.map(lambda p: p + (index * 0).astype(jnp.result_type(p)), params)


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
