"""Convolutions in loops on CPU, by JAX and by `smoothout_jax.experiments.convolutions`.

`python -m benchmarks.convolutions` times steps of training with both.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax
from flax import linen as nn
from jax import lax

from benchmarks.harness import command, count, interleaved
from smoothout_jax.experiments.convolutions import convolve
from smoothout_jax.experiments.networks import CNet, ResNet

BATCH = 100
STEPS = 10
OPTIONS = {
    "num_classes": 10,
    "norm": functools.partial(nn.GroupNorm, num_groups=4),
}
NETWORKS = {
    "C net of 12 channels": CNet(12, **OPTIONS),
    "ResNet-8 of 8 channels": ResNet(8, channels=8, **OPTIONS),
}


def steps(network: Any) -> dict[str, Callable[[], Any]]:
    """`STEPS` steps of training, compiled, one by one and in a loop."""
    images = jax.random.normal(jax.random.key(0), (BATCH, 32, 32, 3))
    labels = jax.random.randint(jax.random.key(1), (BATCH,), 0, 10)
    params = jax.jit(network.init)(jax.random.key(2), images)

    def loss(params):
        logits = network.apply(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(params, _=None):
        return optax.tree.add_scale(params, -0.01, jax.grad(loss)(params)), None

    one = jax.jit(lambda params: step(params)[0]).lower(params).compile()
    loop = jax.jit(lambda params: lax.scan(step, params, length=STEPS)[0])
    loop = loop.lower(params).compile()

    def one_by_one():
        reached = params
        for _ in range(STEPS):
            reached = one(reached)
        return reached

    return {"one by one": one_by_one, "in a loop": lambda: loop(params)}


def measure(rounds: int) -> Iterator[dict[str, Any]]:
    """Seconds of one step of each network."""
    networks = {}
    for name, network in NETWORKS.items():
        ours = steps(network.clone(convolve=convolve))
        runs = steps(network) | {f"{how}, convolve": run for how, run in ours.items()}
        networks[name] = {
            how: [total / STEPS for total in seconds]
            for how, seconds in interleaved(runs, rounds).items()
        }
    yield {"batch": BATCH, "networks": networks}


if __name__ == "__main__":
    rounds = {"type": count, "default": 5, "help": "runs to time of each"}
    command("convolutions", __doc__, measure, rounds=rounds)
