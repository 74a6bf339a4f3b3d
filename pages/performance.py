"""What smoothing costs: the pages of docs/performance, and docs/scaling.md."""

import numpy as np

from benchmarks import scaling, tables
from pages.source import figures
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
    measured = [problem["contenders"] for problem in problems]
    cells = [
        ", ".join(f"{tables.ratio(c[name], c['plain'])[0]:.2f}" for c in measured)
        for name in README
    ]
    labels = "; ".join(problem["label"] for problem in problems)
    return markdown(("step time / SGD's", *README.values()), [(labels, *cells)])


def costs(part: str) -> str:
    """What contenders cost on each network."""
    networks = figures("performance/cpu.json")[part].values()
    return "\n\n".join(map(tables.costs, networks))


def convolutions() -> str:
    """Steps with convolutions, one by one and in a loop."""
    rows = []
    for network, seconds in figures("performance/convolutions.json")[
        "networks"
    ].items():
        base, *others = map(np.median, seconds.values())
        cells = (f"{other / base:.2f}" for other in others)
        rows.append((network, f"{1e3 * base:.0f} ms", *cells))
    base, *ways = seconds
    return markdown(("network", base, *(f"{way} ×" for way in ways)), rows)


def layers() -> str:
    """Single convolutions."""
    rows = []
    for each in figures("performance/convolutions.json")["layers"]:
        size, channels, width, outputs = each["layer"]
        theirs, ours = (np.median(each[name]) for name in ("JAX", "convolve"))
        images = f"{size} × {size} × {channels}"
        kernel = f"{width} × {width}, {outputs} outputs"
        rows.append((images, kernel, f"{1e3 * theirs:.1f} ms", f"{ours / theirs:.2f}"))
    return markdown(("images", "kernel", "JAX", "convolve ×"), rows)


def kernels() -> str:
    """Kernels of a step on a GPU."""
    counts = figures("performance/kernels.json")["kernels"].items()
    return markdown(("optimizer", "kernels"), ((name, f"{n}") for name, n in counts))


def drift() -> str:
    """How far rounding alone moves clean weights."""
    measured = figures("performance/scaling.json")["drift"]
    rows = [
        (dtype, noise, *(f"{size:.1e}" if size else "0" for size in by_radius.values()))
        for noise, by_dtype in measured.items()
        for dtype, by_radius in by_dtype.items()
    ]
    radii = (f"radius {radius}" for radius in measured["kept"]["float32"])
    return markdown(("dtype", "noise", *radii), rows)


def flops_per_weight() -> tuple[float, float]:
    """FLOPs of a gradient, by weight and example, and of a noise, by weight."""
    measured = figures("performance/scaling.json")
    plain, noisy = (
        row
        for row in measured["gradients"]
        if (row["width"], row["devices"]) == (scaling.WIDTHS[-1], 1)
        and row["way"] in ("SGD", "one noise for all devices")
    )
    weights = plain["parameters"]
    gradient = plain["flops"] / weights / measured["batch"]
    return gradient, (noisy["flops"] - plain["flops"]) / weights


def counts() -> str:
    """Counts of the middle width on 8 devices, and how well the model predicts all."""
    rows, (gradient, per_noise) = [], flops_per_weight()
    measured = figures("performance/scaling.json")
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
        rows.append(
            (
                name,
                f"{shown['flops'] / 1e6:.0f}",
                explicit.get(name, "refused"),
                f"{min(over):.2f} to {max(over):.2f}",
                f"{shown['temporary_bytes'] / 1e6:.1f}",
                ", ".join(sent),
            )
        )
    return markdown(COUNTED, rows)
