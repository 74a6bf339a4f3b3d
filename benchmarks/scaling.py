"""What copies cost on many devices: FLOPs, bytes and collectives of compiled programs.

`python -m benchmarks.scaling` compiles every way to run copies for 1 to 8 devices of
the CPU, enough to count, and measures how far rounding moves clean parameters.
"""

import os

if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding

from benchmarks.harness import command
from benchmarks.problems import mlp
from smoothout_jax import (
    smoothout,
    smoothout_eval_params,
    smoothout_value_and_grad,
    uniform,
)

WIDTHS = (256, 512, 1024)
DEVICES = (1, 2, 4, 8)
BATCH = 512
NOISE = uniform(0.01)
COPIES = 8
# Of the weights that rounding moves, and how many steps it has.
DEVIATION, STEPS = 0.05, 1000
REDUCING = r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-perm)"


def _plain(loss):
    grad = jax.value_and_grad(loss)
    return lambda key, params, batch: grad(params, batch)


def _copies(**options):
    return lambda loss: smoothout_value_and_grad(loss, NOISE, **options)


def _own_noise(loss):
    own = smoothout_value_and_grad(loss, NOISE, axis_name="data")
    return jax.shard_map(
        own, in_specs=(jax.P(), jax.P(), jax.P("data")), out_specs=jax.P()
    )


class Way(NamedTuple):
    """A way to run copies: what makes the gradient, and what it takes."""

    gradient: Callable[..., Any]
    gradients: int  # of the whole batch
    noises: int  # on each device, or on all of them together if they are laid over them
    laid: bool = False


SPLIT = {"num_copies": COPIES, "batch_argnums": 1}
OVER_MESH = {"num_copies": COPIES, "spmd_axis_name": "data"}
WAYS = {
    "SGD": Way(_plain, 1, 0),
    "one noise for all devices": Way(_copies(), 1, 1),
    "a noise for each device (`axis_name`)": Way(_own_noise, 1, 1),
    "8 copies, batch split": Way(_copies(**SPLIT), 1, COPIES),
    "8 copies, batch split, over the mesh (`spmd_axis_name`)": Way(
        _copies(**SPLIT | OVER_MESH), 1, COPIES, laid=True
    ),
    "8 copies, whole batch each": Way(_copies(num_copies=COPIES), COPIES, COPIES),
    "8 copies, whole batch each, over the mesh": Way(
        _copies(**OVER_MESH), COPIES, COPIES, laid=True
    ),
}


def measure() -> Iterator[dict[str, Any]]:
    """Counts of every way, width and number of devices, and the drift."""
    gradients = [
        {"width": width, "devices": devices, "way": way}
        | count(width, devices, WAYS[way])
        for width in WIDTHS
        for devices in DEVICES
        for way in WAYS
    ]
    kept, drawn_again = (drift(keep_noise=keep) for keep in (True, False))
    yield {
        "batch": BATCH,
        "gradients": gradients,
        "drift": {"kept": kept, "drawn again": drawn_again},
    }


def count(width: int, devices: int, way: Way) -> dict[str, Any]:
    """What one device computes, holds and sends in one step of data parallelism."""
    problem = mlp(BATCH, width)
    used = jax.devices()[:devices]
    mesh = jax.make_mesh((devices,), ("data",), (AxisType.Auto,), devices=used)
    key = jax.random.key(0)
    with jax.set_mesh(mesh):
        params = jax.device_put(problem.init(key), NamedSharding(mesh, jax.P()))
        batch = jax.device_put(problem.batch(key), NamedSharding(mesh, jax.P("data")))

        @jax.jit
        def step(key, params, batch):
            value, grads = way.gradient(problem.loss)(key, params, batch)
            return value, optax.tree.add_scale(params, -0.1, grads)

        program = step.lower(key, params, batch).compile()
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "flops": float(program.cost_analysis()["flops"]),
        "temporary_bytes": program.memory_analysis().temp_size_in_bytes,
        "sent": _sent(program.as_text()),
    }


def _sent(text: str) -> dict[str, int]:
    """Bytes that each kind of collective takes in."""
    sent: dict[str, int] = {}
    for shapes, kind in re.findall(REDUCING, text):
        elements = sum(
            int(np.prod([int(size) for size in dims.split(",") if size]))
            for dims in re.findall(r"f32\[([\d,]*)\]", shapes)
        )
        sent[kind] = sent.get(kind, 0) + 4 * elements
    return sent


def drift(*, keep_noise: bool) -> dict[str, dict[str, float]]:
    """How far clean parameters move by rounding alone, root mean square."""
    found = {}
    for dtype in ("float32", "bfloat16"):
        params = DEVIATION * jax.random.normal(jax.random.key(0), (100_000,), dtype)
        for size in (1e-3, 1e-2, 1e-1):
            optimizer = smoothout(
                optax.sgd(0.0), uniform(size), key=1, keep_noise=keep_noise
            )
            clean = jax.jit(functools.partial(_clean_at_the_end, optimizer))(params)
            moved = clean.astype(jnp.float32) - params.astype(jnp.float32)
            spread = float(jnp.sqrt(jnp.mean(moved**2)))
            found.setdefault(dtype, {})[f"{size:g}"] = spread
    return found


def _clean_at_the_end(optimizer, params):
    """The clean parameters after `STEPS` steps with gradients of zero."""

    def step(carry, _):
        held, state = carry
        updates, state = optimizer.update(jnp.zeros_like(held), state, held)
        return (optax.apply_updates(held, updates), state), None

    carry = params, optimizer.init(params)
    held, state = jax.lax.scan(step, carry, length=STEPS)[0]
    return smoothout_eval_params(state, held)


if __name__ == "__main__":
    command("scaling", __doc__, measure)
