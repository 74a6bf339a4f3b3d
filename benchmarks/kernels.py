"""Kernels that a step starts on a GPU, counted without one.

`python -m benchmarks.kernels` lets XLA compile for an H100 that is not there, by its
description. It needs JAX's plugin for CUDA, but no driver: `pip install "jax[cuda13]"`,
and `JAX_PLATFORMS=cpu` in the environment.
What is counted is the update of an optimizer, in a loop, of the weights of a ResNet-18;
small networks on a GPU take about as long as their kernels are many.
"""

import functools
import json
import re
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.experimental import topologies

from benchmarks.contenders import RADIUS, RELATIVE_RADIUS
from benchmarks.options import parser
from smoothout_jax import exclude, flax_filters, smoothout, uniform
from smoothout_jax.experiments.networks import ResNet
from smoothout_jax.experiments.reporting.provenance import provenance
from smoothout_jax.rivals import msam

H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000
  device_memory_size: 84942979072
  l2_cache_size: 52428800
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  threads_per_warp: 32
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
# Instructions that start nothing.
FREE = {"parameter", "tuple", "get-tuple-element", "constant", "bitcast"}
SGD = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.1, momentum=0.9))
RELATIVE = uniform(
    RELATIVE_RADIUS,
    relative_to="filter",
    filter_axis=flax_filters,
    mask=exclude("BatchNorm"),
)
OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "SGD": lambda: SGD,
    "MSAM": lambda: msam(SGD, 1.0),
    "smoothout, uniform": lambda: smoothout(SGD, uniform(RADIUS), key=0),
    "smoothout, relative to filter": lambda: smoothout(SGD, RELATIVE, key=0),
    "smoothout, relative to filter, rise held": lambda: smoothout(
        SGD, RELATIVE, key=0, loss_rise=0.1
    ),
}


def kernels(text: str) -> int:
    """Counts the kernels of a turn of the one loop in a compiled program.

    Args:
        text: the program, as XLA writes it.

    Returns:
        Their number.

    Raises:
        ValueError: if the loop has branches, so that its turns differ.
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
        raise ValueError("the loop has branches, so its turns differ in kernels")
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


def measure() -> dict[str, int]:
    """The kernels of every optimizer."""
    norm = functools.partial(nn.BatchNorm, use_running_average=False)
    network = ResNet(18, norm=norm, channels=64, stages=4)
    images = jnp.zeros((2, 32, 32, 3))
    params = jax.eval_shape(network.init, jax.random.key(0), images)["params"]
    return {
        name: kernels(compiled(make(), params)) for name, make in OPTIMIZERS.items()
    }


def main() -> None:
    """Runs the command."""
    output = parser("benchmarks.kernels", __doc__, "kernels.json").parse_args().output
    results = provenance() | {"kernels": measure()}
    output.write_text(json.dumps(results, indent=1) + "\n")
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
