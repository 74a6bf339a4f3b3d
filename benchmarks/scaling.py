"""What copies cost on many devices: FLOPs, bytes and collectives of compiled programs.

`python -m benchmarks.scaling` compiles every way to run copies for 1 to 8 devices (of
the CPU, which are enough to count) and the noise of a sharded weight on both kinds of
axes, and writes docs/performance/scaling.json; `python -m pages.scaling` makes
docs/scaling.md of it, with a cost model beside the counts.
"""

import os

if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding

from benchmarks.problems import mlp
from smoothout_jax import (
    gaussian,
    smoothout,
    smoothout_eval_params,
    smoothout_value_and_grad,
    uniform,
)
from smoothout_jax.experiments.reporting.provenance import provenance
from smoothout_jax.noise import Noise

ROOT = Path(__file__).parents[1]
WIDTHS = (256, 512, 1024)
DEVICES = (1, 2, 4, 8)
BATCH = 512
NOISE = uniform(0.01)
COPIES = 8
# Of the weights that rounding moves, and how many steps it has.
DEVIATION, STEPS = 0.05, 1000
KINDS = (AxisType.Auto, AxisType.Explicit)
WHOLE_OVER_MESH = "8 copies, whole batch each, over the mesh"
# A weight drawn alone, and the noises that are counted on it.
SHARDED = (1024, 2048)
DRAWS = {
    "uniform, 8 bits": uniform(0.01),
    "uniform, 16 bits": uniform(0.01, bits=16),
    "gaussian": gaussian(0.01),
    "relative to filters": uniform(0.01, relative_to="filter", filter_axis=-1),
}
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


# Name, what makes the gradient, how many gradients of the batch it takes, how many
# noises each device draws, and whether copies are laid over the devices.
WAYS: dict[str, tuple[Callable[..., Any], Callable[[int], float], Any]] = {
    "SGD": (_plain, lambda devices: 1, lambda devices: 0),
    "one noise for all devices": (
        _copies(),
        lambda devices: 1,
        lambda devices: 1,
    ),
    "a noise for each device (`axis_name`)": (
        _own_noise,
        lambda devices: 1,
        lambda devices: 1,
    ),
    "8 copies, batch split": (
        _copies(num_copies=COPIES, batch_argnums=1),
        lambda devices: 1,
        lambda devices: COPIES,
    ),
    "8 copies, batch split, over the mesh (`spmd_axis_name`)": (
        _copies(num_copies=COPIES, batch_argnums=1, spmd_axis_name="data"),
        lambda devices: 1,
        lambda devices: COPIES / devices,
    ),
    "8 copies, whole batch each": (
        _copies(num_copies=COPIES),
        lambda devices: COPIES,
        lambda devices: COPIES,
    ),
    WHOLE_OVER_MESH: (
        _copies(num_copies=COPIES, spmd_axis_name="data"),
        lambda devices: COPIES,
        lambda devices: COPIES / devices,
    ),
}


def measure() -> dict[str, Any]:
    """Counts of every way, width and number of devices."""
    rows = [
        {"width": width, "devices": devices, "way": way}
        | count(width, devices, WAYS[way][0])
        for width in WIDTHS
        for devices in DEVICES
        for way in WAYS
    ]
    return provenance() | {
        "batch": BATCH,
        "gradients": rows,
        # On explicit axes JAX refuses a batch that lies over the axis of the copies.
        "explicit": [
            {"way": way} | count(WIDTHS[1], DEVICES[-1], WAYS[way][0], KINDS[1])
            for way in WAYS
            if way != WHOLE_OVER_MESH
        ],
        "draws": [
            {"noise": noise, "axes": kind.name, "devices": devices}
            | count_draw(DRAWS[noise], devices, kind)
            for noise in DRAWS
            for kind in KINDS
            for devices in DEVICES
        ],
        "states": [
            {"width": width, "devices": devices} | count_states(width, devices)
            for width in WIDTHS
            for devices in DEVICES
        ],
        "drift": {
            name: drift(keep_noise=keep_noise)
            for name, keep_noise in (("kept", True), ("drawn again", False))
        },
    }


def _mesh(devices: int, kind: AxisType = AxisType.Auto) -> jax.sharding.Mesh:
    used = jax.devices()[:devices]
    return jax.make_mesh((devices,), ("data",), (kind,), devices=used)


def count(
    width: int,
    devices: int,
    way: Callable[..., Any],
    kind: AxisType = AxisType.Auto,
) -> dict[str, Any]:
    """What one device computes, holds and sends in one step of data parallelism."""
    problem = mlp(BATCH, width)
    mesh = _mesh(devices, kind)
    key = jax.random.key(0)
    with jax.set_mesh(mesh):
        params = jax.device_put(problem.init(key), NamedSharding(mesh, jax.P()))
        batch = jax.device_put(problem.batch(key), NamedSharding(mesh, jax.P("data")))

        @jax.jit
        def step(key, params, batch):
            value, grads = way(problem.loss)(key, params, batch)
            return value, optax.tree.add_scale(params, -0.1, grads)

        program = step.lower(key, params, batch).compile()
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    return {"parameters": sum(sizes)} | _costs(program)


def count_draw(noise: Noise, devices: int, kind: AxisType) -> dict[str, Any]:
    """What one device computes, holds and sends to add noise to a sharded weight."""
    mesh = _mesh(devices, kind)
    with jax.set_mesh(mesh):
        weight = jax.device_put(jnp.ones(SHARDED), NamedSharding(mesh, jax.P("data")))
        perturb = jax.jit(lambda key, weight: weight + noise(key, weight))
        return _costs(perturb.lower(jax.random.key(0), weight).compile())


def _costs(program) -> dict[str, Any]:
    return {
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


def count_states(width: int, devices: int) -> dict[str, Any]:
    """Bytes of parameters and state on one device, fully sharded, Adam underneath."""
    params = jax.eval_shape(mlp(BATCH, width).init, jax.random.key(0))
    mesh = _mesh(devices)

    def shard(leaf):
        spread = leaf.ndim > 1 and not leaf.shape[0] % devices
        sharding = NamedSharding(mesh, jax.P("data") if spread else jax.P())
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    laid = jax.tree.map(shard, params)
    options = {"key": jax.random.key(0)}
    optimizers = {
        "Adam": optax.adam(1e-3),
        "smoothout": smoothout(optax.adam(1e-3), NOISE, **options),
        "smoothout, keep_noise=False": smoothout(
            optax.adam(1e-3), NOISE, keep_noise=False, **options
        ),
    }
    found = {}
    for name, optimizer in optimizers.items():
        state = jax.eval_shape(optimizer.init, params)
        laid_state = jax.tree.map(shard, state)
        update = jax.jit(functools.partial(_updated, optimizer), donate_argnums=(1, 2))
        memory = update.lower(laid, laid_state, laid).compile().memory_analysis()
        # Gradients, state and parameters, of which the last two are written in place.
        found[name] = memory.argument_size_in_bytes
    return {"bytes": found}


def _updated(optimizer, grads, state, params):
    updates, state = optimizer.update(grads, state, params)
    return state, optax.apply_updates(params, updates)


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


def main() -> None:
    """Counts, and writes the results."""
    path = ROOT / "docs" / "performance" / "scaling.json"
    path.write_text(json.dumps(measure(), indent=1) + "\n")


if __name__ == "__main__":
    main()
