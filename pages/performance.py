"""What smoothing costs: the pages of docs/performance, and docs/scaling.md."""

from statistics import median

from benchmarks import scaling, tables
from pages.source import figures, table

# What the README shows, by the contenders' names in the results.
README = {
    "held": "SmoothOut",
    "split": "SmoothOut, 4 copies that share the batch",
    "sam": "SAM",
}


def readme() -> str:
    """The README's table of step times: a row for each way, a column for a network."""
    problems = figures("performance/cpu.json")["problems"].values()
    rows = []
    for name, label in README.items():
        row = {"step time / SGD's": label}
        for problem in problems:
            of = problem["contenders"]
            row[problem["label"]] = f"{tables.ratio(of[name], of['plain'])[0]:.2f}"
        rows.append(row)
    return table(rows)


def costs(part: str) -> str:
    """What contenders cost on each network."""
    networks = figures("performance/cpu.json")[part].values()
    return "\n\n".join(map(tables.costs, networks))


def drift() -> str:
    """How far rounding alone moves clean weights."""
    return table(
        {"dtype": dtype, "noise": noise}
        | {f"radius {r}": f"{size:.1e}" if size else "0" for r, size in sizes.items()}
        for noise, by_dtype in figures("performance/scaling.json")["drift"].items()
        for dtype, sizes in by_dtype.items()
    )


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
    for name, way in scaling.WAYS.items():
        over, shown = [], {}
        for row in (row for row in measured["gradients"] if row["way"] == name):
            devices = row["devices"]
            examples = way.gradients * measured["batch"] / devices
            noises = way.noises / devices if way.laid else way.noises
            flops = gradient * examples + per_noise * noises
            over.append(row["flops"] / row["parameters"] / flops)
            if (row["width"], devices) == (scaling.WIDTHS[1], scaling.DEVICES[-1]):
                shown = row
        sent = (
            f"{kind} {size / 4 / shown['parameters']:.2f}"
            for kind, size in shown["sent"].items()
        )
        rows.append(
            {
                "way": name,
                "MFLOP a device": f"{shown['flops'] / 1e6:.0f}",
                "over the model's": f"{min(over):.2f} to {max(over):.2f}",
                "temporary MB": f"{shown['temporary_bytes'] / 1e6:.1f}",
                "sent, in parameters": ", ".join(sent),
            }
        )
    return table(rows)


def images() -> str:
    """What reading images costs, in sentences."""
    found = figures("performance/images.json")
    speed = {name: median(each) for name, each in found["images a second"].items()}
    step = {name: median(each) for name, each in found["seconds of a step"].items()}
    waits = max(0.0, step["read"] / step["there"] - 1)
    speed_ratio = speed["ours"] / speed["Pillow"]
    before, after = found["peak MB"]
    return (
        "On one core, images of 500 × 375 pixels are decoded, cropped and handed over"
        f" at {speed_ratio:.2f} times the speed of a bare loop of Pillow"
        f" ({speed['ours']:.0f} a second). ResNet-18 waits for them in"
        f" {100 * waits:.0f} % of a step on two cores. The first batch of 100,000 files"
        f" in 1,000 classes is there after {found['first batch']:.1f} s, and reading"
        f" them adds {after - before:.0f} MB to the {before:.0f} MB of the process."
    )
