"""What smoothing costs in time and memory, beside its peers: `python -m benchmarks`."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import tables
from benchmarks.contenders import (
    CONTENDERS,
    NOISE,
    WAYS,
    averaged,
    perturb_by,
    uniform_by_leaf,
)
from benchmarks.harness import command, count, interleaved, measure
from benchmarks.problems import PROBLEMS, mlp
from smoothout_jax import _random

PLAIN = {"plain": CONTENDERS["plain"]}
# Four copies, run in every way.
EXECUTIONS = PLAIN | {
    f"{how}, {'split' if split else 'whole'}": averaged(
        "uniform", NOISE, 4, split=split, execution=how
    )
    for how in ("unroll", "scan", "vmap")
    for split in (True, False)
}
COPIES = PLAIN | {
    str(m): averaged("uniform", NOISE, m) for m in (1, 2, 4, 8, 16, 32, 64)
}


def random_words(key: jax.Array, params: Any) -> jax.Array:
    """The words that noise of 8 bits is made of, in rows of 256."""
    weights = sum(leaf.size for leaf in jax.tree.leaves(params))
    return _random._words(key, group=0, start=0, shape=(-(-weights // 1024), 256))


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
    ways = WAYS | {
        "jax.random.uniform by leaf": perturb_by(uniform_by_leaf),
        "random words alone, 8 bits": random_words,
    }
    found = []
    for label, shapes in trees.items():
        keys = iter(jax.random.split(jax.random.key(0), 2 * len(ways) * (rounds + 1)))
        params = [jnp.ones(shape) for shape in shapes]

        def run(way: Callable, keys=keys, params=params) -> Callable[[], Any]:
            compiled = jax.jit(way)
            return lambda: compiled(next(keys), params)

        seconds = interleaved({name: run(way) for name, way in ways.items()}, rounds)
        sizes = {"parameters": sum(map(math.prod, shapes)), "leaves": len(shapes)}
        found.append({"label": label, **sizes, "seconds": seconds})
    return found


def run(
    problems: list[str], rounds: int, compile_rounds: int
) -> Iterator[dict[str, Any]]:
    """Measures contenders and executions on networks, noise alone, and copies."""
    results: dict[str, Any] = {"problems": {}, "executions": {}}
    for name in problems:
        problem, turns = PROBLEMS[name](), rounds if name == "mlp" else min(rounds, 5)
        results["problems"][name] = measure(problem, CONTENDERS, turns, compile_rounds)
        results["executions"][name] = measure(problem, EXECUTIONS, min(rounds, 2))
        for part in ("problems", "executions"):
            print(tables.costs(results[part][name]), flush=True)
    results["noise"] = measure_noise(min(rounds, 10))
    results["copies"] = measure(mlp(), COPIES, min(rounds, 10))
    print(tables.noise(results["noise"]), tables.costs(results["copies"]), sep="\n")
    yield results


if __name__ == "__main__":
    names = {"nargs": "+", "choices": PROBLEMS, "default": ["mlp", "resnet20"]}
    rounds = {"type": count, "default": 25}
    compile_rounds = {"type": count, "default": 3, "help": "compilations to time"}
    command(
        "cpu",
        __doc__,
        run,
        problems=names | {"help": "networks to time"},
        rounds=rounds | {"help": "steps to time, of networks but the MLP at most 5"},
        compile_rounds=compile_rounds,
    )
