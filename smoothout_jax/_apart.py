"""Functions that are compiled apart from whatever reads their results."""

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import jax
from jax.experimental.xla_metadata import set_xla_metadata


def apart(fn: Callable[..., Any], *static_argnames: str) -> Callable[..., Any]:
    """A jitted function whose results are computed once, and kept.

    XLA fuses cheap arithmetic into all that reads it, and computes it again for each
    element read: the noise of a bias once for every activation. A barrier stops it;
    on CPU, where XLA drops barriers, a call that is not inlined does.
    """
    jitted = jax.jit(fn, static_argnames=static_argnames)

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        with set_xla_metadata(inlineable="false") if on_one_cpu() else nullcontext():
            results = jitted(*args, **kwargs)
        return jax.lax.optimization_barrier(results)

    return call


def on_one_cpu() -> bool:
    """Whether there is but one device, a CPU, so that nothing can be sharded."""
    return jax.default_backend() == "cpu" and jax.device_count() == 1
