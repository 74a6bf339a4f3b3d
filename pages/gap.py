"""The page of noise that follows the gap, from the raw results.

`python -m pages.gap` makes docs/gap.md and its picture from docs/results/gap-cpu.json,
which `smoothout evidence gap` writes, beside the results of the same cases there, and
the text in pages/gap.md.
"""

import json
import textwrap
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from pages import evidence, pictures
from pages.source import DOCS, ROOT
from smoothout_jax.experiments.reporting.formats import with_interval
from smoothout_jax.experiments.reporting.tables import markdown

GAP, FIXED, MSAM = "gap", "adasmoothout-fixed", "msam"
LABELS = {
    GAP: "half the gap, none chosen",
    FIXED: "fixed radius, of six",
    MSAM: "MSAM, ρ of six",
}
COLORS = {GAP: "#0072b2", FIXED: "#999999", MSAM: "#e69f00"}


class Case(NamedTuple):
    """A case, and the differences to SGD by method, (seeds,)."""

    swept: evidence.Result
    differences: Mapping[str, np.ndarray]

    def gain(self, method: str) -> tuple[float, float, float]:
        """Mean difference to SGD in percent, with its interval."""
        seeds = self.differences[method]
        half = stats.t.ppf(0.975, len(seeds) - 1) * stats.sem(seeds)
        return seeds.mean(), seeds.mean() - half, seeds.mean() + half


def read() -> list[Case]:
    """The committed cases, in the order of the plan."""
    document = json.loads((DOCS / "results" / "gap-cpu.json").read_text())
    asked, found = ("batches", "wrong-labels"), []
    swept = {each.name: each for each in evidence.read() if each.experiment in asked}
    for name, case in document["cases"].items():
        ours = evidence.Result(GAP, name, case).accuracies("adasmoothout")
        sgd = swept[name].accuracies("sgd")
        differences = {m: swept[name].accuracies(m) - sgd for m in (FIXED, MSAM)}
        found.append(Case(swept[name], {GAP: ours - sgd} | differences))
    return found


def grouped(cases: list[Case]) -> dict[str, list[Case]]:
    """The cases by what the prediction says of them."""
    return {
        group: [case for case in cases if case.swept.group == group]
        for group in evidence.GROUPS
    }


def table(cases: list[Case]) -> str:
    """A row for each case, and one for their mean."""
    rows = [
        (
            case.swept.label,
            f"{case.swept.accuracies('sgd').mean():.1f}",
            *(with_interval(case.gain(method)) for method in LABELS),
        )
        for case in cases
    ]
    means = [f"{mean_gain(cases, method):+.2f}" for method in LABELS]
    return markdown(("case", "SGD, %", *LABELS.values()), [*rows, ("mean", "", *means)])


def mean_gain(cases: list[Case], method: str) -> float:
    """The mean difference to SGD over the cases."""
    return float(np.mean([case.differences[method].mean() for case in cases]))


def verdict(cases: list[Case]) -> str:
    """What no strength chosen gains, beside the sweeps, and where it harms."""
    below = [case.swept.label for case in cases if case.gain(GAP)[2] < 0]
    return (
        f"Mean of {len(cases)} cases: {against_sweeps(cases)}. Certainly below SGD:"
        f" {'; '.join(below) or 'none'}."
    )


def against_sweeps(cases: list[Case]) -> str:
    """The mean differences of no strength chosen, and of those from a sweep."""
    ours, fixed, rival = (mean_gain(cases, method) for method in LABELS)
    return (
        f"{ours:+.1f} with no strength chosen, {fixed:+.1f} by the best of six radii,"
        f" {rival:+.1f} by MSAM's best of six"
    )


def texts() -> dict[str, str]:
    """What other pages say of it, by name."""
    return {f"gap_{g}": against_sweeps(own) for g, own in grouped(read()).items()}


def readme() -> str:
    """The sentence in the README."""
    said = texts()
    return (
        "Points of test accuracy over SGD: where it fits, trained twice to use the"
        f" held-out images too, {said['gap_fits']}; where labels are wrong,"
        f" {said['gap_wrong']} ([all cases](docs/gap.md))."
    )


def page(cases: list[Case]) -> str:
    """The page."""
    parts = [
        (ROOT / "pages" / "gap.md").read_text().rstrip(),
        "![Mean difference to SGD, by group of cases](results/gap.png)",
    ]
    for group, own in grouped(cases).items():
        parts += [f"## {evidence.GROUPS[group]}", verdict(own), table(own)]
    return "\n\n".join(parts) + "\n"


def picture(cases: list[Case]) -> Figure:
    """The mean differences of each group, and those of its cases as dots."""
    figure = Figure(figsize=(pictures.WIDTH, 3.6), layout="constrained")
    axes, groups = figure.subplots(), grouped(cases)
    for shift, (method, label) in enumerate(LABELS.items(), start=-1):
        color = COLORS[method]
        for place, own in enumerate(groups.values()):
            dots = [case.gain(method)[0] for case in own]
            where = place + 0.27 * shift
            axes.bar(where, np.mean(dots), 0.25, color=color, alpha=0.6)
            axes.scatter([where] * len(dots), dots, s=9, color=color, zorder=3)
        axes.bar(0, 0, color=color, alpha=0.6, label=label)
    names = [f"{evidence.GROUPS[g]} ({len(own)} cases)" for g, own in groups.items()]
    names = [textwrap.fill(name, 18) for name in names]
    axes.set_xticks(range(len(groups)), names, fontsize=8)
    axes.axhline(0, color="black", lw=1)
    axes.grid(axis="y", alpha=0.3)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_ylabel("test accuracy minus SGD's, %", fontsize=9)
    figure.legend(frameon=False, fontsize=8, loc="outside upper center", ncols=2)
    return figure


def main() -> None:
    """Writes the page and its picture."""
    cases = read()
    picture(cases).savefig(DOCS / "results" / "gap.png", dpi=pictures.DPI)
    (DOCS / "gap.md").write_text(page(cases))


if __name__ == "__main__":
    main()
