"""What smoothing costs in time and memory, beside its peers: `python -m benchmarks`."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import tables
from benchmarks.contenders import (
    averaged,
    bits_by_leaf,
    contenders,
    perturb_by,
    plain,
    uniform_by_leaf,
    words_by_leaf,
)
from benchmarks.harness import command, count, interleaved, measure
from benchmarks.problems import PROBLEMS, mlp
from smoothout_jax import _random, uniform

NOISE = uniform(0.01)
WAYS = {
    "params + 1": lambda key, params: jax.tree.map(lambda p: p + 1, params),
    "uniform, 8 bits": perturb_by(NOISE),
    "uniform, 16 bits": perturb_by(uniform(0.01, bits=16)),
    "uniform, 32 bits": perturb_by(uniform(0.01, bits=32)),
    "relative to filter, 8 bits": perturb_by(
        uniform(0.3, relative_to="filter", filter_axis=-1)
    ),
    "jax.random.uniform by leaf": perturb_by(uniform_by_leaf),
    "jax.random.bits in 8 bits by leaf": perturb_by(bits_by_leaf),
    "jax.random.bits in words by leaf": perturb_by(words_by_leaf),
    "random words alone, 8 bits": lambda key, params: random_words(key, params),
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
    found = []
    for label, shapes in trees.items():
        keys = iter(jax.random.split(jax.random.key(0), 2 * len(WAYS) * (rounds + 1)))
        params = [jnp.ones(shape) for shape in shapes]

        def run(way: Callable, keys=keys, params=params) -> Callable[[], Any]:
            compiled = jax.jit(way)
            return lambda: compiled(next(keys), params)

        seconds = interleaved({name: run(way) for name, way in WAYS.items()}, rounds)
        sizes = {"parameters": sum(map(math.prod, shapes)), "leaves": len(shapes)}
        found.append({"label": label, **sizes, "seconds": seconds})
    return found


def run(
    problems: list[str], dtype: str, rounds: int, slow_rounds: int, compile_rounds: int
) -> Iterator[dict[str, Any]]:
    """Measures contenders and executions on networks, noise alone, and copies."""
    four = {
        f"{how}, {'split' if split else 'whole'}": averaged(
            "uniform", NOISE, 4, split=split, execution=how
        )
        for how in ("unroll", "scan", "vmap")
        for split in (True, False)
    }
    results: dict[str, Any] = {"problems": {}, "executions": {}}
    for name in problems:
        problem = PROBLEMS[name](dtype=dtype)
        turns = rounds if name == "mlp" else slow_rounds
        results["problems"][name] = measure(
            problem, contenders(), rounds=turns, compile_rounds=compile_rounds
        )
        results["executions"][name] = measure(
            problem, {"plain": plain()} | four, rounds=min(turns, 2), compile_rounds=1
        )
        for part in ("problems", "executions"):
            print(tables.costs(results[part][name]), flush=True)
    results["noise"] = measure_noise(min(rounds, 10))
    copies = {str(m): averaged("uniform", NOISE, m) for m in (1, 2, 4, 8, 16, 32, 64)}
    results["copies"] = measure(
        mlp(), {"plain": plain()} | copies, rounds=10, compile_rounds=1
    )
    print(tables.noise(results["noise"]), tables.costs(results["copies"]), sep="\n")
    yield results


if __name__ == "__main__":
    command(
        "cpu",
        __doc__,
        run,
        problems={
            "nargs": "+",
            "choices": PROBLEMS,
            "default": ["mlp", "resnet20"],
            "help": "networks to time",
        },
        dtype={
            "choices": ["float32", "bfloat16"],
            "default": "float32",
            "help": "precision of the network; its parameters are in float32",
        },
        rounds={"type": count, "default": 25, "help": "steps of an MLP to time"},
        slow_rounds={
            "type": count, "default": 5, "help": "steps of other networks to time",
        },
        compile_rounds={
            "type": count, "default": 3, "help": "compilations to time",
        },
    )  # fmt: skip
