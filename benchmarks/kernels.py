"""Kernels that a step starts on a GPU, counted without one.

`python -m benchmarks.kernels` has XLA compile for an absent H100, from its description.
It needs JAX's plugin for CUDA, but no driver: `pip install "jax[cuda13]"`, and
`JAX_PLATFORMS=cpu` in the environment. It counts the kernels of an optimizer's update
of a ResNet-18 in a loop: on a GPU, they decide how long a small network takes.
"""

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.experimental import topologies

from benchmarks.contenders import RADIUS, RELATIVE_RADIUS
from benchmarks.harness import command
from smoothout_jax import exclude, flax_filters, smoothout, uniform
from smoothout_jax.experiments.networks import ResNet
from smoothout_jax.rivals import msam

H100 = (Path(__file__).parent / "h100.txt").read_text()
# Instructions that start nothing.
FREE = {"parameter", "tuple", "get-tuple-element", "constant", "bitcast"}
SGD = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.1, momentum=0.9))
RELATIVE = uniform(
    RELATIVE_RADIUS,
    relative_to="filter",
    filter_axis=flax_filters,
    mask=exclude("BatchNorm"),
)
OPTIMIZERS = {
    "SGD": SGD,
    "MSAM": msam(SGD, 1.0),
    "smoothout, uniform": smoothout(SGD, uniform(RADIUS), key=0),
    "smoothout, relative to filter": smoothout(SGD, RELATIVE, key=0),
    "smoothout, relative to filter, rise held": smoothout(
        SGD, RELATIVE, key=0, loss_rise=0.1
    ),
}


def kernels(text: str) -> int:
    """Counts the kernels of an iteration of the one loop in a compiled program.

    Args:
        text: the program, as XLA writes it.

    Raises:
        ValueError: if the loop has branches, so that its iterations differ.
    """
    computations, lines = {}, []
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            lines = computations[line.removeprefix("ENTRY ").split()[0]] = []
        elif line.startswith("  "):
            lines.append(line)

    (body,) = re.findall(r" while\(.*body=(%[\w.-]+)", text)
    # The shape before the operation may be a tuple, with comments in it.
    operations = [
        re.search(r"[})\]] ([a-z][a-z0-9-]*)\(", line).group(1)
        for line in computations[body]
    ]
    if "conditional" in operations:
        raise ValueError("the loop has branches, so its iterations differ in kernels")
    return sum(operation not in FREE for operation in operations)


def compiled(optimizer: Any, params: Any) -> str:
    """The program of two updates in a loop, compiled for the GPU that is described."""
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=H100, topology="1x1x1"
    )
    device = jax.sharding.SingleDeviceSharding(topology.devices[0])

    def step(grads, carry, _):
        params, state = carry
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    def train(grads, params, state):
        turn = functools.partial(step, grads)
        return jax.lax.scan(turn, (params, state), length=2)

    arguments = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        (params, params, jax.eval_shape(optimizer.init, params)),
    )
    with mock.patch.object(jax, "default_backend", return_value="gpu"):
        program = jax.jit(train, out_shardings=device, donate_argnums=(1, 2))
        lowered = program.lower(*arguments)
    # Nothing can be tried out on a GPU that is not there.
    return lowered.compile({"xla_gpu_autotune_level": 0}).as_text()


def measure() -> Iterator[dict[str, dict[str, int]]]:
    """The kernels of every optimizer."""
    norm = functools.partial(nn.BatchNorm, use_running_average=False)
    network = ResNet(18, norm=norm, channels=64, stages=4)
    images = jnp.zeros((2, 32, 32, 3))
    params = jax.eval_shape(network.init, jax.random.key(0), images)["params"]
    counts = {
        name: kernels(compiled(make, params)) for name, make in OPTIMIZERS.items()
    }
    yield {"kernels": counts}


if __name__ == "__main__":
    command("kernels", __doc__, measure)
