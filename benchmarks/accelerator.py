"""The first hour on an accelerator: `python -m benchmarks.accelerator`, nine minutes.

What `execution="auto"` should choose there, what noise costs, and what the barrier
around it is for. Parts run in order of what they tell; each is written as soon as it is
measured, and none begins when the time is nearly over.

On a GPU, XLA tries many kernels for each matrix product while it compiles. Programs
share what it found to be fastest.
"""

import contextlib
import functools
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.contenders import Contender, averaged, contenders
from benchmarks.measure import measure, perturb_by
from benchmarks.options import parser
from benchmarks.problems import PROBLEMS
from benchmarks.timing import interleaved
from smoothout_jax import _random, uniform
from smoothout_jax._files import whole_file
from smoothout_jax.experiments.reporting.provenance import provenance

SPLIT = ("vmap", "scan", "unroll")
NAMES = ("plain", "sam", "naive", "uniform", "filter", "smoothout", "held")
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
WEIGHTS = (10_000, 10_000)


def copies() -> dict[str, Contender]:
    """Four copies of a split batch, run in every way."""
    four = functools.partial(averaged, "uniform", uniform(0.01), 4, split=True)
    return {"plain": contenders()["plain"]} | {
        how: four(execution=how) for how in SPLIT
    }


def network(name: str, dtype: str, rounds: int, *, alone: bool) -> dict[str, Any]:
    """Step, compilation and memory of the contenders, or of copies, on a network."""
    chosen = {each: contenders()[each] for each in NAMES} if alone else copies()
    problem = PROBLEMS[name](dtype=dtype)
    return measure(problem, chosen, rounds=rounds, compile_rounds=1)


@contextlib.contextmanager
def no_barrier() -> Iterator[None]:
    """Noise that XLA may fuse into all that reads it."""
    kept = _random._words
    _random._words = _random._draw_words
    try:
        yield
    finally:
        _random._words = kept


def noise(rounds: int) -> dict[str, Any]:
    """Seconds to add noise to a hundred million weights, beside those of a copy."""
    ways: dict[str, Callable[..., Any]] = {
        "copy": lambda key, params: jax.tree.map(jnp.copy, params),
        "params + 1": lambda key, params: jax.tree.map(lambda p: p + 1, params),
        "relative to filter": perturb_by(
            uniform(0.3, relative_to="filter", filter_axis=-1)
        ),
    }
    ways |= {
        f"{bits} bits": perturb_by(uniform(0.01, bits=bits)) for bits in (8, 16, 32)
    }
    params = {"kernel": jnp.ones(WEIGHTS)}
    runs = {}
    for implementation in ("threefry2x32", "unsafe_rbg"):
        key = jax.random.key(0, impl=implementation)
        for name, way in ways.items():
            for barrier in (True, False):
                label = f"{name}, {implementation}{'' if barrier else ', no barrier'}"
                with contextlib.nullcontext() if barrier else no_barrier():
                    program = jax.jit(way).lower(key, params).compile()
                runs[label] = functools.partial(program, key, params)
    seconds = interleaved(runs, rounds)
    return {name: values.tolist() for name, values in seconds.items()}


def parts(rounds: int) -> dict[str, Callable[[], dict[str, Any]]]:
    """What is measured, by name, in order."""
    found: dict[str, Any] = {"noise of 100 M weights": functools.partial(noise, rounds)}
    for name, dtype, every_way in NETWORKS:
        for alone in (True, False) if every_way else (True,):
            what = "" if alone else ", four copies"
            found[f"{name}, {dtype}{what}"] = functools.partial(
                network, name, dtype, rounds, alone=alone
            )
    return found


def run(
    todo: dict[str, Callable[[], dict[str, Any]]], output: Path, seconds: float
) -> dict[str, Any]:
    """Measures part after part, as long as the longest so far would still end in time.

    Args:
        todo: the parts.
        output: file of the raw figures, written after each.
        seconds: the time for all of them.

    Returns:
        What is in the file.
    """
    began, longest = time.monotonic(), 0.0
    results = provenance() | {"parts": {}, "failed": {}, "not_begun": list(todo)}
    for name, measured in todo.items():
        started = time.monotonic()
        if started - began + longest > seconds:
            break
        print(f"{started - began:.0f} s: {name}", flush=True)
        results["not_begun"].remove(name)
        try:
            results["parts"][name] = measured()
        except Exception as error:  # such as a lack of memory: the rest still tells
            results["failed"][name] = f"{type(error).__name__}: {error}"[:500]
            print(f"  failed: {type(error).__name__}", flush=True)
        longest = max(longest, time.monotonic() - started)
        with whole_file(output) as unfinished:
            unfinished.write_text(json.dumps(results, indent=1) + "\n")
    return results


@contextlib.contextmanager
def shared_tuning() -> Iterator[None]:
    """Compilations that share what XLA found to be fastest, but no programs."""
    tuned = "xla_gpu_per_fusion_autotune_cache_dir"
    settings = {
        "jax_compilation_cache_dir": "",
        "jax_persistent_cache_enable_xla_caches": tuned,
        "jax_persistent_cache_min_compile_time_secs": float("inf"),
    }
    kept = {name: getattr(jax.config, name) for name in settings}
    with tempfile.TemporaryDirectory() as folder:
        settings["jax_compilation_cache_dir"] = folder
        for name, value in settings.items():
            jax.config.update(name, value)
        try:
            yield
        finally:
            for name, value in kept.items():
                jax.config.update(name, value)


def main() -> None:
    """Runs the command."""
    command = parser("benchmarks.accelerator", __doc__, "accelerator.json")
    command.add_argument(
        "--minutes", type=float, default=9.0, help="time for all parts"
    )
    command.add_argument("--rounds", type=int, default=20, help="runs timed of each")
    command.add_argument("--parts", nargs="+", help="parts to measure, by name")
    options = command.parse_args()
    todo = parts(options.rounds)
    for name in options.parts or ():
        if name not in todo:
            command.error(f"--parts: no part {name!r}; there are {'; '.join(todo)}")
    chosen = {name: todo[name] for name in options.parts or todo}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with shared_tuning():
        results = run(chosen, options.output, 60 * options.minutes)
    print(f"wrote {options.output}; not begun: {len(results['not_begun'])}")


if __name__ == "__main__":
    main()
