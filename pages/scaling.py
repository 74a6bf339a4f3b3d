"""The page of what copies cost on many devices: counts, beside a model of them.

`python -m pages.scaling` makes docs/scaling.md from docs/performance/scaling.json,
which `python -m benchmarks.scaling` writes, and the text in pages/scaling.md.
"""

import functools
import json
from collections.abc import Mapping
from typing import Any

from benchmarks.scaling import (
    DEVIATION,
    DEVICES,
    DRAWS,
    KINDS,
    STEPS,
    WAYS,
    WIDTHS,
)
from pages.source import DOCS, ROOT
from smoothout_jax.experiments.reporting.tables import markdown


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
    text = (ROOT / "pages" / "scaling.md").read_text()
    gradient, noise = flops_per_weight(measured)
    parts = {
        "counts": counts(measured),
        "model": f"{gradient:.1f} FLOPs a weight and example for the gradient, and"
        f" {noise:.0f} FLOPs a weight for each noise",
        "draws": draws(measured),
        "states": states(measured),
        "deviation": f"{DEVIATION:g}",
        "steps": f"{STEPS:,}",
        "drift": drifts(measured),
        "far": far(noise),
    }
    for name, part in parts.items():
        text = text.replace(f"{{{name}}}", part)
    return text


def counts(measured: Mapping[str, Any]) -> str:
    """Counts of the middle width on 8 devices, and how well the model predicts all."""
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
    """Bytes on one device, without noise, with it and with its key alone."""
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
    """Drift by dtype, by what becomes of the noise, and by radius."""
    rows = [
        (dtype, noise, *(f"{size:.1e}" if size else "0" for size in by_radius.values()))
        for noise, by_dtype in measured["drift"].items()
        for dtype, by_radius in by_dtype.items()
    ]
    radii = measured["drift"]["kept"]["float32"]
    return markdown(("dtype", "noise", *(f"radius {radius}" for radius in radii)), rows)


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
        "with the noise",
        "noise at 50 TFLOP/s, ms",
        "noise at 3 TB/s, ms",
    )
    return markdown(header, rows)


@functools.cache
def committed() -> dict[str, Any]:
    """The committed counts."""
    return json.loads((DOCS / "performance" / "scaling.json").read_text())


def main() -> None:
    """Writes the page."""
    (DOCS / "scaling.md").write_text(page(committed()))


if __name__ == "__main__":
    main()
