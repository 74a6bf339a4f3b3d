"""What copies cost on many devices: FLOPs, bytes and collectives of compiled programs.

`python -m benchmarks.scaling` compiles every way to run copies for 1 to 8 devices (of
the CPU, which are enough to count) and the noise of a sharded weight on both kinds of
axes, and writes docs/performance/scaling.json and
docs/scaling.md, with a cost model beside the counts.
"""

import os

if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import functools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding

from benchmarks.problems import mlp
from benchmarks.report import markdown
from smoothout_jax import gaussian, smoothout, smoothout_value_and_grad, uniform
from smoothout_jax.experiments.provenance import provenance
from smoothout_jax.noise import Noise

ROOT = Path(__file__).parents[1]
WIDTHS = (256, 512, 1024)
DEVICES = (1, 2, 4, 8)
BATCH = 512
NOISE = uniform(0.01)
COPIES = 8
KINDS = (AxisType.Auto, AxisType.Explicit)
WHOLE_OVER_MESH = "8 copies, whole batch each, over the mesh"
# A weight drawn alone, and the noises that are counted on it.
SHARDED = (1024, 2048)
DRAWS = {
    "uniform, 8 bits": uniform(0.01),
    "uniform, 16 bits": uniform(0.01, bits=16),
    "gaussian": gaussian(0.01),
    "relative to filters": uniform(0.01, relative_to="filter"),
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
        "drift": drift(),
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
        "smoothout, keep_clean=False": smoothout(
            optax.adam(1e-3), NOISE, keep_clean=False, **options
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


def drift(steps: int = 1000) -> dict[str, dict[str, float]]:
    """How far parameters move by rounding alone when their clean copy is not kept."""
    found = {}
    for dtype in ("float32", "bfloat16"):
        for size in (1e-3, 1e-2, 1e-1):
            noise, key = uniform(size), jax.random.key(1)
            optimizer = smoothout(optax.sgd(0.0), noise, key=key, keep_clean=False)
            params = jax.random.normal(jax.random.key(0), (100_000,), dtype)

            @jax.jit
            def run(params, optimizer=optimizer):
                def body(carry, _):
                    held, state = carry
                    zeros = jnp.zeros_like(held)
                    updates, state = optimizer.update(zeros, state, held)
                    return (optax.apply_updates(held, updates), state), None

                carry = params, optimizer.init(params)
                return jax.lax.scan(body, carry, length=steps)[0][0]

            # What is left of the last noise is far below the drift's own spread, but it
            # is taken away all the same.
            last = noise(jax.random.fold_in(key, steps), params)
            moved = (run(params) - last).astype(jnp.float32) - params
            spread = float(jnp.sqrt(jnp.mean(moved**2)))
            found.setdefault(dtype, {})[f"{size:g}"] = spread
    return found


def flops_per_weight(measured: Mapping[str, Any]) -> tuple[float, float]:
    """FLOPs of a gradient, by weight and example, and of a noise, by weight."""
    one = {
        row["way"]: row
        for row in measured["gradients"]
        if (row["width"], row["devices"]) == (WIDTHS[-1], 1)
    }
    plain, noisy = one["SGD"], one["one noise for all devices"]
    parameters = plain["parameters"]
    return (
        plain["flops"] / parameters / measured["batch"],
        (noisy["flops"] - plain["flops"]) / parameters,
    )


def predicted(measured: Mapping[str, Any], row: Mapping[str, Any]) -> float:
    """FLOPs of a row by the model."""
    gradient, noise = flops_per_weight(measured)
    _, gradients, noises = WAYS[row["way"]]
    devices = row["devices"]
    examples = gradients(devices) * measured["batch"] / devices
    return row["parameters"] * (gradient * examples + noise * noises(devices))


def page(measured: Mapping[str, Any]) -> str:
    """The page."""
    text = (ROOT / "benchmarks" / "scaling.md").read_text()
    gradient, noise = flops_per_weight(measured)
    parts = {
        "counts": counts(measured),
        "model": f"{gradient:.1f} FLOPs a weight and example for the gradient, and"
        f" {noise:.0f} FLOPs a weight for each noise",
        "draws": draws(measured),
        "states": states(measured),
        "drift": drifts(measured),
        "far": far(noise),
    }
    for name, part in parts.items():
        text = text.replace(f"{{{name}}}", part)
    return text


def counts(measured: Mapping[str, Any]) -> str:
    """Counts of the middle width on 8 devices, and how well the model tells all."""
    rows = []
    explicit = {row["way"]: f"{row['flops'] / 1e6:.0f}" for row in measured["explicit"]}
    for way in WAYS:
        here = [row for row in measured["gradients"] if row["way"] == way]
        ratios = [row["flops"] / predicted(measured, row) for row in here]
        (row,) = (
            row
            for row in here
            if (row["width"], row["devices"]) == (WIDTHS[1], DEVICES[-1])
        )
        sent = ", ".join(
            f"{kind} {size / 4 / row['parameters']:.2f}"
            for kind, size in row["sent"].items()
        )
        rows.append(
            (
                way,
                f"{row['flops'] / 1e6:.0f}",
                explicit.get(way, "refused"),
                f"{min(ratios):.2f} to {max(ratios):.2f}",
                f"{row['temporary_bytes'] / 1e6:.1f}",
                sent,
            )
        )
    header = (
        "way",
        "MFLOP a device",
        "on explicit axes",
        "over the model's, all sizes",
        "temporary MB",
        "sent, in parameters",
    )
    return markdown(header, rows)


def draws(measured: Mapping[str, Any]) -> str:
    """MFLOP and temporary megabytes by noise and kind of axes, over the devices."""
    rows = [
        (
            noise,
            axes.lower(),
            *(
                f"{row['flops'] / 1e6:.1f}, {row['temporary_bytes'] / 1e6:.1f}"
                for row in measured["draws"]
                if (row["noise"], row["axes"]) == (noise, axes)
            ),
        )
        for noise in DRAWS
        for axes in (kind.name for kind in KINDS)
    ]
    header = ("noise", "axes", "1 device", *(f"{n} devices" for n in DEVICES[1:]))
    return markdown(header, rows)


def states(measured: Mapping[str, Any]) -> str:
    """Bytes on one device by way to keep the clean parameters."""
    names = list(measured["states"][0]["bytes"])
    rows = [
        (
            str(row["width"]),
            str(row["devices"]),
            *(f"{row['bytes'][name] / 1e6:.2f}" for name in names),
        )
        for row in measured["states"]
    ]
    return markdown(("width", "devices", *(f"{name}, MB" for name in names)), rows)


def drifts(measured: Mapping[str, Any]) -> str:
    """Drift by dtype and radius."""
    radii = list(measured["drift"]["float32"])
    rows = [
        (dtype, *(f"{found[radius]:.1e}" for radius in radii))
        for dtype, found in measured["drift"].items()
    ]
    return markdown(("dtype", *(f"radius {radius}" for radius in radii)), rows)


def far(noise: float) -> str:
    """The model at 1,000 devices and 100 billion weights in float32."""
    rows = []
    for devices in (8, 64, 1000):
        weights = 1e11 / devices
        rows.append(
            (
                f"{devices:,}",
                f"{4 * 4 * weights / 1e9:.1f}",
                f"{5 * 4 * weights / 1e9:.1f}",
                f"{1e3 * noise * weights / 5e13:.2f}",
                f"{1e3 * 2 * 4 * weights / 3e12:.2f}",
            )
        )
    header = (
        "devices",
        "parameters, gradients, Adam: GB a device",
        "with the clean parameters",
        "noise at 50 TFLOP/s, ms",
        "noise at 3 TB/s, ms",
    )
    return markdown(header, rows)


@functools.cache
def committed() -> dict[str, Any]:
    """The committed counts."""
    return json.loads((ROOT / "docs" / "performance" / "scaling.json").read_text())


def main() -> None:
    """Counts, and writes the results and the page."""
    measured = measure()
    path = ROOT / "docs" / "performance" / "scaling.json"
    path.write_text(json.dumps(measured, indent=1) + "\n")
    (ROOT / "docs" / "scaling.md").write_text(page(measured))


if __name__ == "__main__":
    main()
