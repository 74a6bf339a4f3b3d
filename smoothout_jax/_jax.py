"""What this package uses of JAX's private, extended and experimental APIs.

Each has a public successor, named here, and a test that fails when JAX drops it.
"""

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import jax
import jax.core
from jax.experimental.xla_metadata import set_xla_metadata
from jax.interpreters import partial_eval


def apart(fn: Callable[..., Any], *static_argnames: str) -> Callable[..., Any]:
    """Jits a function so that its results are computed once and stored.

    XLA fuses cheap arithmetic into everything that reads it, and computes it again for
    each element read: the noise of a bias once for every activation. A barrier prevents
    that; on CPU, where XLA drops barriers, a call that is not inlined does.

    Successor: `jax.jit(inline=jax.Inline.NEVER)`, from JAX 0.11.
    """
    jitted = jax.jit(fn, static_argnames=static_argnames)

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        with set_xla_metadata(inlineable="false") if on_one_cpu() else nullcontext():
            results = jitted(*args, **kwargs)
        return jax.lax.optimization_barrier(results)

    return call


def is_traced(value: Any) -> bool:
    """Whether a value is known only when the compiled program runs.

    Successor: `jax.core.Tracer` is public, but its module is not meant to stay.
    """
    return isinstance(value, jax.core.Tracer)


def on_one_cpu() -> bool:
    """Whether the only device is a single CPU, so that nothing can be sharded."""
    return jax.default_backend() == "cpu" and jax.device_count() == 1


def on_one_gpu() -> bool:
    """Whether the only device is a single GPU, where starting a kernel is slow."""
    return jax.default_backend() == "gpu" and jax.device_count() == 1


def reads_its_input(fn: Callable[[Any], Any], value: Any) -> bool:
    """Whether the results of a function depend on its argument, a tree of arrays.

    Successor: `jax.export.export(jax.jit(fn))(value).module_kept_var_idx`.
    """
    jaxpr = jax.make_jaxpr(fn)(value).jaxpr
    _, used = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return any(used)
