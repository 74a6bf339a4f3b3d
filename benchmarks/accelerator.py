"""The first hour on an accelerator: `python -m benchmarks.accelerator`, nine minutes.

What `execution="auto"` should choose there, what noise costs, and what the barrier
around it is for. The most informative parts run first; each is written as soon as it is
measured, and none begins when the time is nearly over.

On a GPU, XLA tries many kernels for each matrix product while it compiles. Programs
share what it found to be fastest.
"""

import contextlib
import functools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from benchmarks.contenders import CONTENDERS, NOISE, WAYS, Contender, averaged
from benchmarks.harness import command, count, interleaved, measure
from benchmarks.problems import PROBLEMS
from smoothout_jax import _random

NAMES = ("plain", "sam", "naive", "uniform", "filter", "smoothout", "held")
ALONE = {name: CONTENDERS[name] for name in NAMES}
COPIES = {"plain": CONTENDERS["plain"]} | {
    how: averaged("uniform", NOISE, 4, split=True, execution=how)
    for how in ("vmap", "scan", "unroll")
}
# Network, precision, and whether its copies are run in every way.
NETWORKS = (
    ("mlp", "float32", True),
    ("resnet20", "float32", True),
    ("transformer", "bfloat16", True),
    ("resnet44", "bfloat16", False),
    ("resnet44-2048", "bfloat16", False),
    ("transformer", "float32", False),
    ("resnet44", "float32", False),
    ("resnet44-2048", "float32", False),
)

# What is measured in how many rounds.
Part = Callable[[int], dict[str, Any]]


def network(name: str, dtype: str, contenders: Mapping[str, Contender]) -> Part:
    """Step, compilation and memory of contenders on a network."""
    return lambda rounds: measure(PROBLEMS[name](dtype=dtype), contenders, rounds)


def noise(rounds: int) -> dict[str, list[float]]:
    """Seconds to add noise to a hundred million weights, beside those of a copy."""
    ways = {"copy": lambda key, params: jax.tree.map(jnp.copy, params)} | WAYS
    # Noise that XLA may fuse into all that reads it.
    no_barrier = mock.patch.object(_random, "_words", _random._draw_words)
    barriers = {"": contextlib.nullcontext(), ", no barrier": no_barrier}
    params = {"kernel": jnp.ones((10_000, 10_000))}
    runs = {}
    for implementation in ("threefry2x32", "unsafe_rbg"):
        key = jax.random.key(0, impl=implementation)
        for name, way in ways.items():
            for ending, barrier in barriers.items():
                with barrier:
                    # A new function, as JAX would not trace the same one again.
                    fresh = functools.partial(way)
                    program = jax.jit(fresh).lower(key, params).compile()
                label = f"{name}, {implementation}{ending}"
                runs[label] = functools.partial(program, key, params)
    return interleaved(runs, rounds)


PARTS: dict[str, Part] = {"noise of 100 M weights": noise}
for name, dtype, every_way in NETWORKS:
    PARTS[f"{name}, {dtype}"] = network(name, dtype, ALONE)
    if every_way:
        PARTS[f"{name}, {dtype}, four copies"] = network(name, dtype, COPIES)


def run(
    todo: Mapping[str, Part], rounds: int, minutes: float
) -> Iterator[dict[str, Any]]:
    """Yields all figures after each part, while the longest part would end in time."""
    began, longest = time.monotonic(), 0.0
    results: dict[str, Any] = {"parts": {}, "failed": {}, "not_begun": list(todo)}
    for name, measured in todo.items():
        started = time.monotonic()
        if started - began + longest > 60 * minutes:
            break
        print(f"{started - began:.0f} s: {name}", flush=True)
        results["not_begun"].remove(name)
        try:
            results["parts"][name] = measured(rounds)
        except Exception as error:  # such as a lack of memory: go on with the rest
            results["failed"][name] = f"{type(error).__name__}: {error}"[:500]
            print(f"  failed: {type(error).__name__}", flush=True)
        longest = max(longest, time.monotonic() - started)
        yield results
    print(f"not begun: {len(results['not_begun'])}")


def run_chosen(parts: list[str], **options: Any) -> Iterator[dict[str, Any]]:
    """Runs parts by name. Compilations share what XLA tuned, but not programs."""
    with tempfile.TemporaryDirectory() as folder:
        tuned = "xla_gpu_per_fusion_autotune_cache_dir"
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_enable_xla_caches", tuned)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", float("inf"))
        yield from run({name: PARTS[name] for name in parts}, **options)


if __name__ == "__main__":
    command(
        "accelerator",
        __doc__,
        run_chosen,
        minutes={"type": float, "default": 9.0, "help": "time for all parts"},
        rounds={"type": count, "default": 20, "help": "runs to time of each"},
        parts={
            "nargs": "+", "choices": PARTS, "default": list(PARTS), "metavar": "PART",
            "help": "parts to measure",
        },
    )  # fmt: skip
