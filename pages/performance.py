"""What smoothing costs: the pages of docs/performance, and docs/scaling.md."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from benchmarks import scaling
from benchmarks.tables import costs, noise, ratio
from pages import published
from pages.source import figures, measured_on
from smoothout_jax.experiments.reporting.tables import markdown

# What the README shows, by the contenders' names in the results.
README = {
    "smoothout": "`smoothout`",
    "held": "`smoothout` with `loss_rise`",
    "split": "4 copies, batch split",
    "sam": "SAM",
}
COUNTED = (
    "way", "MFLOP a device", "on explicit axes", "over the model's", "temporary MB",
    "sent, in parameters",
)  # fmt: skip


def readme() -> str:
    """The README's table, in one row: step times in both networks."""
    problems = figures("performance/cpu.json")["problems"].values()
    times = [
        [ratio(c[name], c["plain"])[0] for c in (p["contenders"] for p in problems)]
        for name in README
    ]
    cells = [", ".join(f"{time:.2f}" for time in each) for each in times]
    labels = "; ".join(problem["label"] for problem in problems)
    return markdown(("step time / SGD's", *README.values()), [(labels, *cells)])


def cpu() -> dict[str, str]:
    """Step times, and what noise alone costs."""
    results = figures("performance/cpu.json")
    return {
        "measured_on": measured_on(results),
        "gpu": published.step_times(),
        "problems": "\n\n".join(map(costs, results["problems"].values())),
        "executions": "\n\n".join(map(costs, results["executions"].values())),
        "noise": noise(results["noise"]),
        "copies": costs(results["copies"]),
    }


def convolutions() -> dict[str, Any]:
    """Convolutions in loops on CPU, and single layers."""
    results = figures("performance/convolutions.json")
    rows, layers = [], []
    for network, seconds in results["networks"].items():
        base, *others = map(np.median, seconds.values())
        cells = (f"{other / base:.2f}" for other in others)
        rows.append((network, f"{1e3 * base:.0f} ms", *cells))
    base, *ways = seconds
    for each in results["layers"]:
        size, channels, width, outputs = each["layer"]
        theirs, ours = (np.median(each[name]) for name in ("JAX", "convolve"))
        images = f"{size} × {size} × {channels}"
        kernel = f"{width} × {width}, {outputs} outputs"
        layers.append(
            (images, kernel, f"{1e3 * theirs:.1f} ms", f"{ours / theirs:.2f}")
        )
    return {
        "measured_on": measured_on(results),
        "batch": results["batch"],
        "networks": markdown(("network", base, *(f"{way} ×" for way in ways)), rows),
        "layers": markdown(("images", "kernel", "JAX", "convolve ×"), layers),
    }


def kernels() -> dict[str, str]:
    """Kernels of a step on a GPU."""
    results = figures("performance/kernels.json")
    rows = [(name, str(count)) for name, count in results["kernels"].items()]
    return {
        "date": results["date"][:10],
        "jax": results["versions"]["jax"],
        "kernels": markdown(("optimizer", "kernels"), rows),
    }


def many_devices() -> dict[str, Any]:
    """Counts of what copies cost on many devices, beside a model of them."""
    measured = figures("performance/scaling.json")
    gradient, per_noise = flops_per_weight(measured)
    drift = measured["drift"]
    rows = [
        (dtype, noise, *(f"{size:.1e}" if size else "0" for size in by_radius.values()))
        for noise, by_dtype in drift.items()
        for dtype, by_radius in by_dtype.items()
    ]
    radii = (f"radius {radius}" for radius in drift["kept"]["float32"])
    return {
        "counts": markdown(COUNTED, counts(measured)),
        "gradient": gradient,
        "noise": per_noise,
        "deviation": scaling.DEVIATION,
        "steps": scaling.STEPS,
        "drift": markdown(("dtype", "noise", *radii), rows),
        # Of 1e8 float32 weights, at 50 TFLOP/s, and read and written at 3 TB/s.
        "far_compute": 1e3 * per_noise * 1e8 / 5e13,
        "far_memory": 1e3 * 2 * 4 * 1e8 / 3e12,
    }


def flops_per_weight(measured: Mapping[str, Any]) -> tuple[float, float]:
    """FLOPs of a gradient, by weight and example, and of a noise, by weight."""
    plain, noisy = (
        row
        for row in measured["gradients"]
        if (row["width"], row["devices"]) == (scaling.WIDTHS[-1], 1)
        and row["way"] in ("SGD", "one noise for all devices")
    )
    weights = plain["parameters"]
    gradient = plain["flops"] / weights / measured["batch"]
    return gradient, (noisy["flops"] - plain["flops"]) / weights


def counts(measured: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Counts of the middle width on 8 devices, and how well the model predicts all."""
    gradient, per_noise = flops_per_weight(measured)
    explicit = {row["way"]: f"{row['flops'] / 1e6:.0f}" for row in measured["explicit"]}
    for name, way in scaling.WAYS.items():
        over, shown = [], {}
        for row in (row for row in measured["gradients"] if row["way"] == name):
            devices = row["devices"]
            examples = way.gradients * measured["batch"] / devices
            flops = gradient * examples + per_noise * way.noises_each(devices)
            over.append(row["flops"] / row["parameters"] / flops)
            if (row["width"], devices) == (scaling.WIDTHS[1], scaling.DEVICES[-1]):
                shown = row
        sent = (
            f"{kind} {size / 4 / shown['parameters']:.2f}"
            for kind, size in shown["sent"].items()
        )
        yield (
            name,
            f"{shown['flops'] / 1e6:.0f}",
            explicit.get(name, "refused"),
            f"{min(over):.2f} to {max(over):.2f}",
            f"{shown['temporary_bytes'] / 1e6:.1f}",
            ", ".join(sent),
        )
