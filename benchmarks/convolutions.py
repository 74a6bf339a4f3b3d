"""What `smoothout_jax.experiments.convolutions` brings in loops on CPU.

`python -m benchmarks.convolutions` times steps of training with the convolutions of JAX
and with `convolve`, and single convolutions of few channels; `python -m
pages.convolutions` makes the page.
"""

import functools
import json
from collections.abc import Callable
from typing import Any

import jax
import optax
from flax import linen as nn
from jax import lax

from benchmarks.options import parser
from benchmarks.timing import interleaved
from smoothout_jax.experiments.convolutions import convolve
from smoothout_jax.experiments.networks import CNet, ResNet
from smoothout_jax.experiments.reporting.provenance import provenance

BATCH = 100
STEPS = 10
NETWORKS: dict[str, Callable[..., Any]] = {
    "C net of 12 channels": functools.partial(CNet, 12),
    "ResNet-8 of 8 channels": functools.partial(ResNet, 8, channels=8),
}
# Size of the images, their channels, size of the kernel, outputs.
LAYERS = (
    (28, 1, 5, 8), (32, 3, 3, 16), (32, 3, 5, 16), (32, 3, 3, 32), (32, 3, 5, 24),
    (32, 8, 3, 8), (16, 12, 5, 12), (16, 16, 3, 16),
)  # fmt: skip


def steps(network: Any) -> dict[str, Callable[[], Any]]:
    """`STEPS` steps of training, compiled, one by one and in a loop."""
    images = jax.random.normal(jax.random.key(0), (BATCH, 32, 32, 3))
    labels = jax.random.randint(jax.random.key(1), (BATCH,), 0, 10)
    params = jax.jit(network.init)(jax.random.key(2), images)

    def loss(params):
        logits = network.apply(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(params, _=None):
        return optax.apply_updates(
            params, optax.tree.scale(-0.01, jax.grad(loss)(params))
        ), None

    one = jax.jit(lambda params: step(params)[0]).lower(params).compile()
    loop = jax.jit(lambda params: lax.scan(step, params, length=STEPS)[0])
    loop = loop.lower(params).compile()

    def one_by_one():
        reached = params
        for _ in range(STEPS):
            reached = one(reached)
        return reached

    return {"one by one": one_by_one, "in a loop": lambda: loop(params)}


def layer(size: int, channels: int, width: int, outputs: int) -> dict[str, Any]:
    """A convolution of `BATCH` images, compiled, by JAX and by `convolve`."""
    images = jax.random.normal(jax.random.key(0), (BATCH, size, size, channels))
    kernel = jax.random.normal(jax.random.key(1), (width, width, channels, outputs))
    numbers = ("NHWC", "HWIO", "NHWC")

    def compiled(conv):
        fn = jax.jit(
            lambda *args: conv(*args, (1, 1), "SAME", dimension_numbers=numbers)
        )
        program = fn.lower(images, kernel).compile()
        return lambda: program(images, kernel)

    return {"JAX": compiled(lax.conv_general_dilated), "convolve": compiled(convolve)}


def measure(make: Callable[..., Any], rounds: int) -> dict[str, list[float]]:
    """Seconds of one step of a network, with JAX's gradients and with `convolve`'s."""
    network = make(num_classes=10, norm=functools.partial(nn.GroupNorm, num_groups=4))
    ours = steps(network.clone(convolve=convolve))
    runs = steps(network) | {f"{name}, convolve": run for name, run in ours.items()}
    seconds = interleaved(runs, rounds)
    return {name: (values / STEPS).tolist() for name, values in seconds.items()}


def main() -> None:
    """Runs the command."""
    command = parser("benchmarks.convolutions", __doc__, "convolutions.json")
    command.add_argument("--rounds", type=int, default=5, help="runs timed of each")
    options = command.parse_args()
    networks = {name: measure(make, options.rounds) for name, make in NETWORKS.items()}
    layers = [
        {"layer": each}
        | {
            name: seconds.tolist()
            for name, seconds in interleaved(layer(*each), 4 * options.rounds).items()
        }
        for each in LAYERS
    ]
    results = provenance() | {"batch": BATCH, "networks": networks, "layers": layers}
    options.output.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
