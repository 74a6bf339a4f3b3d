"""How a benchmark runs: its command, and warm, blocked and interleaved programs."""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.contenders import Contender
from benchmarks.problems import Problem
from smoothout_jax._files import whole_file
from smoothout_jax.experiments.reporting.files import provenance

NUM_BATCHES = 4


def count(text: str) -> int:
    """An option that is a number of at least 1."""
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"must be an integer above 0, got {text!r}")
    return int(text)


def command(
    name: str,
    description: str | None,
    measure: Callable[..., Iterator[dict[str, Any]]],
    **options: Mapping[str, Any],
) -> None:
    """Runs a benchmark from the command line.

    `measure` yields all figures so far after each part, and they are written to the
    file of that name in docs/performance. Each option has its arguments of
    `ArgumentParser.add_argument`.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    path = Path("docs/performance") / f"{name}.json"
    parser.add_argument("--output", type=Path, default=path, help="file of raw figures")
    for option, arguments in options.items():
        parser.add_argument(f"--{option.replace('_', '-')}", **arguments)
    chosen = vars(parser.parse_args())
    output = chosen.pop("output")
    output.parent.mkdir(parents=True, exist_ok=True)
    origin = provenance()
    for figures in measure(**chosen):
        with whole_file(output) as unfinished:
            unfinished.write_text(json.dumps(origin | figures, indent=1) + "\n")
    print(f"wrote {output}")


def interleaved(
    runs: Mapping[str, Callable[[], Any]], rounds: int
) -> dict[str, list[float]]:
    """Seconds of every run, round after round, so that all see the same load.

    Each timed run follows an untimed one, so that none pays for the caches that the
    run before it emptied. Runs return arrays to wait for.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(-1, rounds):
        for name, run in runs.items():
            jax.block_until_ready(run())
            began = time.perf_counter()
            jax.block_until_ready(run())
            if turn >= 0:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def compile_seconds(
    lower: Mapping[str, Callable[[], Any]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds to trace and compile, interleaved; and the compiled programs."""
    compiled: dict[str, Any] = {}
    seconds: dict[str, list[float]] = {name: [] for name in lower}
    for _ in range(rounds):
        for name in lower:
            jax.clear_caches()
            began = time.perf_counter()
            compiled[name] = lower[name]().compile()
            seconds[name].append(time.perf_counter() - began)
    return seconds, compiled


def measure(
    problem: Problem,
    contenders: Mapping[str, Contender],
    rounds: int,
    compile_rounds: int = 1,
) -> dict[str, Any]:
    """Step time, compile time and memory of every contender on one problem."""
    params = jax.jit(problem.init)(jax.random.key(0))
    batches = [problem.batch(jax.random.key(1 + i)) for i in range(NUM_BATCHES)]

    def start(name):
        state = contenders[name].init(params, jax.random.key(7))
        return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), state)

    def lower(name):
        step = jax.jit(contenders[name].step(problem.loss), donate_argnums=0)
        state = start(name)  # compiles the optimizer's init, which is not timed
        return lambda: step.lower(state, batches[0])

    compiling, compiled = compile_seconds(
        {name: lower(name) for name in contenders}, compile_rounds
    )

    def steps(name):
        state, taken = start(name), 0

        def run():
            nonlocal state, taken
            taken += 1
            state = compiled[name](state, batches[taken % NUM_BATCHES])
            return state

        return run

    seconds = interleaved({name: steps(name) for name in contenders}, rounds)
    leaves = jax.tree.leaves(params)
    return {
        "label": problem.label,
        "parameters": sum(leaf.size for leaf in leaves),
        "bytes": sum(leaf.nbytes for leaf in leaves),
        "leaves": len(leaves),
        "contenders": {
            name: {
                "label": contender.label,
                "seconds": seconds[name],
                "compile_seconds": compiling[name],
                "temporary_bytes": compiled[name].memory_analysis().temp_size_in_bytes,
            }
            for name, contender in contenders.items()
        },
    }
