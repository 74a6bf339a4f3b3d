"""The options of `smooth`, `smoothout_value_and_grad` and `smooth_gradients`."""

import dataclasses
import functools
import inspect
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypedDict, TypeVar, get_args

import jax.numpy as jnp
from jax.typing import DTypeLike

from smoothout_jax import _checks
from smoothout_jax._jax import is_traced
from smoothout_jax.loss_rise import LossRise, Rise
from smoothout_jax.noise import Noise

AuxName = Literal["mean", "stack", "first", "clean"]
Aux = AuxName | Callable[[Any], Any]
Execution = Literal["auto", "vmap", "scan", "unroll"]
AxisNames = str | tuple[str, ...] | None


class SharedOptions(TypedDict, total=False):
    """Options of `smooth`, `smoothout_value_and_grad` and `smooth_gradients`.

    Copies are numbered from 0 to num_copies - 1. With a `clean_weight`, the network at
    the clean parameters is one more copy, numbered `num_copies`. It also takes its part
    of a split batch and its slice of the `copy_argnums`.

    Attributes:
        num_copies: number M of perturbed copies, each at the cost of one gradient.
        antithetic: whether the copies come in pairs at θ + ε and θ - ε, which cancels
            the odd part of the Monte-Carlo error. Needs an even `num_copies`.
        clean_weight: weight λ in [0, 1) of the gradient at θ itself, in
            λ · clean + (1 - λ) · noisy, as RWP mixes them.
        execution: how the copies run; the results are the same to rounding. `"vmap"`
            runs them together, in the memory of all; `"scan"` runs them one after
            another, in the memory of one; `"unroll"` does so without a loop, which
            takes longest to compile. `"auto"` chooses `"unroll"` for up to 16 copies,
            then `"scan"`: on CPU, convolutions are many times slower in a loop or under
            `"vmap"`, as docs/performance shows. On accelerators it chooses `"vmap"` for
            a split batch, which uses no more memory than a plain step (unmeasured).
        chunk_size: number of copies vmapped together inside a scan; it divides the
            number of copies. Implies `execution="scan"`.
        axis_name: name, or names, of the mapped axis of devices inside `jax.shard_map`
            (or `jax.vmap`). Each device draws noise of its own; the value, the
            gradients and `"mean"` or `"clean"` auxiliary outputs are averaged over the
            axis. Other auxiliary outputs remain separate on each device.
        spmd_axis_name: name, or names, of the mesh axis over which the copies run
            together under `jax.jit`, with the mesh set by `jax.set_mesh`. The number of
            copies is a multiple of that of the devices. A batch is split into blocks,
            the m-th for copy m, so that one sharded over the axis stays where it is.
            Excludes `axis_name`, `chunk_size`, and every `execution` but `"vmap"`.
        compute_dtype: dtype to which real floating parameters are cast for the
            function, such as `jnp.bfloat16` for a network that computes in half
            precision from parameters in float32. They are perturbed in their own dtype
            and rounded once. Gradients have the dtypes of the parameters.
    """

    num_copies: int
    antithetic: bool
    clean_weight: float
    execution: Execution
    chunk_size: int | None
    axis_name: AxisNames
    spmd_axis_name: AxisNames
    compute_dtype: DTypeLike | None


class SmoothOptions(SharedOptions, total=False):
    """Options of `smooth` and `smoothout_value_and_grad` besides `SharedOptions`.

    Attributes:
        has_aux: whether `fun` returns a pair whose second element is auxiliary.
        batch_argnums: positions of the arguments, trees of arrays, that are split
            between the copies along their leading axis: of C copies, copy m takes the
            rows m, m + C, m + 2C, …, so that a batch sharded over devices stays where
            it is. Positions are those of `fun`, whose params are 0; other arguments,
            and keyword arguments, are passed unsplit to every copy. Every copy has the
            same weight, so a loss that is a mean over valid tokens averages means over
            unequal numbers of tokens. To give every token the same weight, return the
            sum over the rows divided by a number that is the same for every copy.
        copy_argnums: positions of the arguments with one slice for each copy along
            their leading axis, such as dropout keys.
        aux: what to return of the copies' auxiliary outputs. `"mean"` averages them
            (they must be floating), weighted as the gradients are. `"stack"` stacks
            them along a new leading axis, the clean copy last. `"first"` returns those
            of copy 0, and `"clean"` those of the clean copy: the choice for BatchNorm's
            statistics. A function is called with the stacked outputs, and its result is
            returned: for states with integer counts as well as means, such as those of
            Haiku's and Equinox's BatchNorm.
    """

    has_aux: bool
    batch_argnums: int | Sequence[int]
    copy_argnums: int | Sequence[int]
    aux: Aux


class CopyOptions(SharedOptions, total=False):
    """Options of `smooth_gradients` besides `SharedOptions`.

    Attributes:
        loss_rise: the rise δ of the loss that the noise may cause, as for `smoothout`.
    """

    loss_rise: Rise | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The options of all three functions, checked, with their defaults."""

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
    loss_rise: Rise | None = None
    compute_dtype: DTypeLike | None = None

    def __post_init__(self):
        _checks.function("such as smoothout_jax.uniform(0.01)", noise=self.noise)
        _checks.count(num_copies=self.num_copies)
        _checks.choice(get_args(Execution), execution=self.execution)
        _checks.nonnegative(clean_weight=self.clean_weight)
        if is_traced(self.clean_weight) or self.clean_weight >= 1:
            raise ValueError(
                "clean_weight must be in [0, 1) and known to Python, since it decides"
                f" whether a clean copy runs; got {self.clean_weight}"
            )
        if self.antithetic and self.num_copies % 2:
            raise ValueError(
                "antithetic copies come in pairs, so num_copies must be even; got"
                f" num_copies={self.num_copies}"
            )
        if self.loss_rise is not None:
            LossRise(self.loss_rise)
        dtype = self.compute_dtype
        if dtype is not None and not jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
            raise ValueError(f"compute_dtype must be a floating dtype, got {dtype!r}")
        self._check_aux()
        self._check_argnums()
        self._check_execution()

    def _check_aux(self):
        if not callable(self.aux):
            _checks.choice(get_args(AuxName), aux=self.aux)
        if self.aux != "mean" and not self.has_aux:
            name = "a function" if callable(self.aux) else repr(self.aux)
            raise ValueError(f"aux={name} needs has_aux=True")
        if self.aux == "clean" and not self.clean_weight:
            raise ValueError("aux='clean' needs a clean_weight above 0")

    def _check_argnums(self):
        seen = []
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
            object.__setattr__(self, name, argnums)
            seen += argnums
        if len(set(seen)) < len(seen):
            raise ValueError(
                "batch_argnums and copy_argnums name an argument twice:"
                f" {self.batch_argnums!r} and {self.copy_argnums!r}"
            )

    def _check_execution(self):
        """Checks that spmd_axis_name and chunk_size suit the other options."""
        if self.spmd_axis_name is not None and (
            self.execution not in ("auto", "vmap")
            or self.chunk_size is not None
            or self.axis_name is not None
        ):
            raise ValueError(
                "spmd_axis_name runs the copies together under jax.jit: it excludes"
                " every execution but 'vmap', chunk_size, and axis_name, which is for"
                f" jax.shard_map; got execution={self.execution!r},"
                f" chunk_size={self.chunk_size}, axis_name={self.axis_name!r}"
            )
        if self.chunk_size is not None:
            _checks.count(chunk_size=self.chunk_size)
            if self.execution not in ("auto", "scan"):
                raise ValueError(
                    "chunk_size is the number of copies vmapped inside a scan; it"
                    f" excludes execution={self.execution!r}"
                )
            if self.total % self.chunk_size:
                raise ValueError(
                    f"chunk_size={self.chunk_size} does not divide the {self.total}"
                    " copies, a clean one included"
                )

    @property
    def total(self) -> int:
        """The number of copies, the clean one included."""
        return self.num_copies + bool(self.clean_weight)


F = TypeVar("F", bound=Callable[..., Any])


def takes(options: type) -> Callable[[F], F]:
    """Declares the options of a function `f(…, **options)` from their `TypedDict`.

    The signature shows each option with its default, for `help`, Sphinx and
    `optax.inject_hyperparams`. An unknown option raises a `TypeError`.
    """

    def declare(fn: F) -> F:
        *own, _ = inspect.signature(fn).parameters.values()
        keyword = inspect.Parameter.KEYWORD_ONLY
        given = [
            inspect.Parameter(
                name, keyword, default=getattr(Options, name), annotation=kind
            )
            for name, kind in options.__annotations__.items()
        ]
        signature = inspect.signature(fn).replace(parameters=[*own, *given])

        @functools.wraps(fn)
        def checked(*args: Any, **kwargs: Any) -> Any:
            signature.bind(*args, **kwargs)
            return fn(*args, **kwargs)

        checked.__dict__["__signature__"] = signature
        return checked  # pyright: ignore[reportReturnType]

    return declare
