"""Runs the contenders on a problem, checked first, and gathers their figures."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.contenders import (
    Contender,
    bits_by_leaf,
    clean_params,
    plain,
    uniform_by_leaf,
    words_by_leaf,
)
from benchmarks.problems import Problem, mlp
from benchmarks.timing import compile_seconds, interleaved
from smoothout_jax import _random, uniform

NUM_BATCHES = 4


def measure(
    problem: Problem,
    contenders: Mapping[str, Contender],
    *,
    rounds: int,
    compile_rounds: int,
) -> dict[str, Any]:
    """Step time, compile time and memory of every contender on one problem.

    Args:
        problem: the network, its loss and batches.
        contenders: what is compared, `"plain"` among them.
        rounds: steps of each that are timed.
        compile_rounds: compilations of each that are timed.

    Returns:
        The figures, plain numbers all: seconds of every round, and bytes.
    """
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
        {n: lower(n) for n in contenders}, compile_rounds
    )
    for name, contender in contenders.items():
        check(problem, contender, compiled[name], start(name), batches)
    states = {name: start(name) for name in contenders}
    taken = dict.fromkeys(contenders, 0)

    def step(name):
        def run():
            taken[name] += 1
            batch = batches[taken[name] % NUM_BATCHES]
            states[name] = compiled[name](states[name], batch)
            return states[name]

        return run

    seconds = interleaved({name: step(name) for name in contenders}, rounds)
    return {
        "label": problem.label,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
        "leaves": len(jax.tree.leaves(params)),
        "contenders": {
            name: {
                "label": contender.label,
                "seconds": seconds[name].tolist(),
                "compile_seconds": compiling[name].tolist(),
                "temporary_bytes": compiled[name].memory_analysis().temp_size_in_bytes,
            }
            for name, contender in contenders.items()
        },
    }


def check(problem, contender, compiled, state, batches) -> None:
    """Asserts that the second step of a contender is that of a plain loop."""
    state = compiled(state, batches[0])
    expected = contender.expected(problem.loss, state, batches[1])
    before = jax.tree.map(np.array, clean_params(state))
    actual = clean_params(compiled(state, batches[1]))
    distance = optax.tree.norm(optax.tree.sub(actual, expected))
    moved = optax.tree.norm(optax.tree.sub(expected, before))
    if not distance < problem.tolerance * moved:
        raise AssertionError(
            f"{contender.label} on {problem.label}: the step is off by {distance:.1e},"
            f" of {moved:.1e}"
        )


def measure_noise(rounds: int) -> list[dict[str, Any]]:
    """Seconds to perturb parameters, beside those of adding one to them."""
    of_mlp = jax.eval_shape(mlp().init, jax.random.key(0))
    trees = {
        "the MLP's 1.46 M weights": [leaf.shape for leaf in jax.tree.leaves(of_mlp)],
        "10 M weights in one leaf": [(2500, 4000)],
        "10 M weights in 200 leaves": [(250, 200)] * 200,
        "1 M weights": [(1000, 1000)],
        "100 M weights": [(10_000, 10_000)],
    }
    ways = {"params + 1": lambda key, params: jax.tree.map(lambda p: p + 1, params)}
    for bits in (8, 16, 32):
        ways[f"uniform, {bits} bits"] = perturb_by(uniform(0.01, bits=bits))
    ways["relative to filter, 8 bits"] = perturb_by(
        uniform(0.3, relative_to="filter", filter_axis=-1, bits=8)
    )
    ways["jax.random.uniform by leaf"] = perturb_by(uniform_by_leaf)
    ways["jax.random.bits in 8 bits by leaf"] = perturb_by(bits_by_leaf)
    ways["jax.random.bits in words by leaf"] = perturb_by(words_by_leaf)
    ways["random words alone, 8 bits"] = random_words
    return [
        {
            "label": label,
            "parameters": sum(map(math.prod, shapes)),
            "leaves": len(shapes),
            "seconds": _perturbation_seconds(ways, shapes, rounds),
        }
        for label, shapes in trees.items()
    ]


def random_words(key: jax.Array, params: Any) -> jax.Array:
    """The words that noise of 8 bits is made of, in rows of 256."""
    weights = sum(leaf.size for leaf in jax.tree.leaves(params))
    return _random._words(key, group=0, start=0, shape=(-(-weights // 1024), 256))


def perturb_by(noise: Callable) -> Callable:
    """A function (key, params) to parameters with noise added."""
    return lambda key, params: optax.apply_updates(params, noise(key, params))


def _perturbation_seconds(ways, shapes, rounds) -> dict[str, list[float]]:
    keys = iter(jax.random.split(jax.random.key(0), 2 * len(ways) * (rounds + 1)))
    params = [jnp.ones(shape) for shape in shapes]

    def run(way):
        compiled = jax.jit(way)
        return lambda: compiled(next(keys), params)

    runs = {name: run(way) for name, way in ways.items()}
    return {name: s.tolist() for name, s in interleaved(runs, rounds).items()}


def measure_copies(
    problem: Problem, copies: Callable[[int], Contender], counts, rounds: int
) -> dict[str, Any]:
    """Step time as the number of copies grows."""
    contenders = {"plain": plain()} | {str(m): copies(m) for m in counts}
    return measure(problem, contenders, rounds=rounds, compile_rounds=1)
