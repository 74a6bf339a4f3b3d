"""The page of the rise against fixed radii, from the raw results.

`python -m pages.rise` makes docs/rise.md and its picture from docs/rise/*.json, which
`smoothout evidence loss-rise --output docs/rise` writes, and the text in pages/rise.md.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from pages import pictures
from pages.source import DOCS, ROOT
from smoothout_jax.experiments.plans import EXPERIMENTS
from smoothout_jax.experiments.reporting.formats import with_interval
from smoothout_jax.experiments.reporting.tables import markdown

RISE, FIXED = "adasmoothout", "adasmoothout-fixed"
COLORS = {RISE: "#0072b2", FIXED: "#999999"}
# Accuracy on the training images, in percent, at which SGD fits them.
FITS = 99.9


class Case(NamedTuple):
    """A case, and the figures of its methods.

    Attributes:
        name: its name.
        summary: figures by method.
        radius: the fixed radius that held-out images chose.
    """

    name: str
    summary: Mapping[str, Any]
    radius: float

    @property
    def fits(self) -> bool:
        """Whether SGD fits the training images."""
        return self.summary["sgd"]["train_accuracy"][0] >= FITS

    def gain(self, method: str) -> tuple[float, float, float]:
        """Difference to SGD in percent, with its interval."""
        return tuple(self.summary[method]["difference_to_sgd"])


def read() -> list[Case]:
    """The committed cases, in the order of the plan."""
    document = json.loads((DOCS / "rise" / "loss-rise-cpu.json").read_text())
    return [
        Case(
            name,
            document["cases"][name]["equal_updates"]["summary"],
            document["cases"][name]["trials"][FIXED]["chosen"],
        )
        for name in document["plan"]
        if name in document["cases"]
    ]


def page(cases: list[Case]) -> str:
    """The page."""
    parts = [
        (ROOT / "pages" / "rise.md").read_text().rstrip(),
        "![Test accuracy minus SGD's](rise/gains.png)",
        "## Where SGD fits its images",
        *_group([case for case in cases if case.fits]),
        "## Where it does not",
        *_group([case for case in cases if not case.fits]),
    ]
    there = {case.name for case in cases}
    plan = EXPERIMENTS["loss-rise"]["cpu"]
    if missing := [case.name for case in plan if case.name not in there]:
        parts += ["## Not run yet", f"{_listed(missing)}."]
    return "\n\n".join(parts) + "\n"


def _group(cases: list[Case]) -> list[str]:
    return [table(cases), verdict(cases)] if cases else ["No case yet."]


def table(cases: list[Case]) -> str:
    """A row for each case."""
    header = (
        "case",
        "SGD: test, train, %",
        "the rise, default",
        "fixed radius",
        "chosen",
        "radius at the end",
    )
    rows = [
        (
            case.name,
            "{:.2f}, {:.1f}".format(
                case.summary["sgd"]["test_accuracy"][0],
                case.summary["sgd"]["train_accuracy"][0],
            ),
            with_interval(case.gain(RISE)),
            with_interval(case.gain(FIXED)),
            f"{case.radius:g}",
            "{:.2f}".format(case.summary[RISE]["radius"]),
        )
        for case in cases
    ]
    return markdown(header, rows)


def verdict(cases: list[Case]) -> str:
    """The mean gains, and the cases in which the rise is worse than it should be."""
    gains, chosen = (
        np.array([case.gain(method)[0] for case in cases]) for method in (RISE, FIXED)
    )
    below = [case.name for case in cases if case.gain(RISE)[2] < 0]
    behind = [
        c.name for c, g, f in zip(cases, gains, chosen, strict=True) if g < f - 0.3
    ]
    return (
        f"Mean gain: {gains.mean():+.2f} by the rise, {chosen.mean():+.2f} by the"
        f" radius that held-out images chose. Certainly below SGD: {_listed(below)}."
        f" More than 0.3 points behind the chosen radius: {_listed(behind)}."
    )


def _listed(names: list[str]) -> str:
    return "; ".join(names) or "none"


def picture(cases: list[Case]) -> Figure:
    """Gains of both, case by case; beyond 10 on a logarithmic scale."""
    height = 0.46 * len(cases) + 1.2
    figure = Figure(figsize=(pictures.WIDTH, height), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(cases))[::-1]
    labels = {RISE: "the rise, by default", FIXED: "radius chosen on held-out images"}
    for shift, (method, label) in zip((0.15, -0.15), labels.items(), strict=True):
        mean, low, high = np.transpose([case.gain(method) for case in cases])
        axes.errorbar(
            mean,
            places + shift,
            xerr=[mean - low, high - mean],
            fmt="o",
            ms=5,
            capsize=3,
            color=COLORS[method],
            label=label,
        )
    axes.axvline(0, color="black", lw=1, ls=":")
    names = [pictures.in_lines(case.name) for case in cases]
    marks = ["" if case.fits else "\n(does not fit)" for case in cases]
    axes.set_yticks(places, map("".join, zip(names, marks, strict=True)))
    axes.set_ylim(-0.6, len(cases) - 0.4)
    axes.tick_params(labelsize=8)
    axes.set_xlabel("test accuracy minus SGD's, %", fontsize=9)
    axes.set_xscale("symlog", linthresh=10)
    ticks = [-20, -10, -5, 0, 5, 10]
    axes.set_xticks(ticks, [f"{tick}" for tick in ticks])
    figure.legend(frameon=False, fontsize=8, loc="outside upper center")
    axes.grid(axis="x", alpha=0.3)
    return figure


def main() -> None:
    """Writes the page and its picture."""
    cases = read()
    picture(cases).savefig(DOCS / "rise" / "gains.png", dpi=pictures.DPI)
    (DOCS / "rise.md").write_text(page(cases))


if __name__ == "__main__":
    main()
