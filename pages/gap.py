"""The page of noise that follows the gap, from the raw results.

`python -m pages.gap` makes docs/gap.md and its picture from docs/results/gap-cpu.json
and gap-share-cpu.json, which `smoothout evidence` writes, beside the results of the
same cases there, and the text in pages/gap.md.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from pages import pictures
from pages.source import DOCS, ROOT
from smoothout_jax.experiments.reporting.formats import with_interval
from smoothout_jax.experiments.reporting.tables import markdown

GAP, SHARE, FIXED, MSAM = "gap", "gap-share", "adasmoothout-fixed", "msam"
LABELS = {
    GAP: "half the gap, nothing chosen",
    SHARE: "share chosen",
    FIXED: "fixed radius of six",
    MSAM: "MSAM, ρ of six",
}
COLORS = {GAP: "#0072b2", SHARE: "#56b4e9", FIXED: "#999999", MSAM: "#e69f00"}
GROUPS = ("SGD fits its images", "Some labels are wrong", "SGD does not fit its images")


class Case(NamedTuple):
    """A case: SGD's accuracy, and the differences to it by method, for each seed."""

    name: str
    group: str
    sgd: float
    differences: Mapping[str, np.ndarray]

    def gain(self, method: str) -> tuple[float, float, float] | None:
        """Mean difference to SGD in percent, with its interval."""
        if method not in self.differences:
            return None
        seeds = self.differences[method]
        half = stats.t.ppf(0.975, len(seeds) - 1) * stats.sem(seeds)
        return seeds.mean(), seeds.mean() - half, seeds.mean() + half


def _cases_of(name: str) -> dict[str, Any]:
    path = DOCS / "results" / f"{name}-cpu.json"
    return json.loads(path.read_text())["cases"] if path.exists() else {}


def _accuracies(case: Mapping[str, Any], method: str) -> np.ndarray:
    outcomes = case["equal_updates"]["outcomes"][method]
    return 100 * np.array(outcomes["test_accuracy"])


def _group(name: str, case: Mapping[str, Any]) -> str:
    if "wrong labels" in name:
        return GROUPS[1]
    fits = case["equal_updates"]["summary"]["sgd"]["train_accuracy"][0] >= 99.9
    return GROUPS[0 if fits else 2]


def read() -> list[Case]:
    """The committed cases, in the order of the plan."""
    swept = _cases_of("batches") | _cases_of("wrong-labels")
    shared, found = _cases_of(SHARE), []
    for name, ours in _cases_of(GAP).items():
        sgd = _accuracies(swept[name], "sgd")
        reached = {GAP: _accuracies(ours, "adasmoothout")}
        if name in shared:
            reached[SHARE] = _accuracies(shared[name], "adasmoothout")
        reached |= {
            method: _accuracies(swept[name], method) for method in (FIXED, MSAM)
        }
        differences = {method: each - sgd for method, each in reached.items()}
        found.append(Case(name, _group(name, swept[name]), sgd.mean(), differences))
    return found


def table(cases: list[Case], methods: list[str]) -> str:
    """A row for each case, and one for their mean."""
    rows = [
        (
            case.name,
            f"{case.sgd:.1f}",
            *(with_interval(case.gain(method) or (np.nan,) * 3) for method in methods),
        )
        for case in cases
    ]
    means = [f"{mean_gain(cases, method):+.2f}" for method in methods]
    header = ("case", "SGD, %", *(LABELS[method] for method in methods))
    return markdown(header, [*rows, ("mean", "", *means)])


def mean_gain(cases: list[Case], method: str) -> float:
    """The mean difference to SGD over the cases."""
    return float(np.mean([case.differences[method].mean() for case in cases]))


def verdict(cases: list[Case]) -> str:
    """What nothing chosen gains, of what the sweeps do, and where it harms."""
    gains = {case.name: case.gain(GAP) for case in cases}
    below = [name for name, gain in gains.items() if gain and gain[2] < 0]
    return (
        f"Mean of {len(cases)} cases: {against_sweeps(cases)}. Certainly below SGD:"
        f" {'; '.join(below) or 'none'}."
    )


def against_sweeps(cases: list[Case]) -> str:
    """The mean differences of nothing chosen, and of strengths from a sweep."""
    ours, fixed, rival = (mean_gain(cases, method) for method in (GAP, FIXED, MSAM))
    return (
        f"{ours:+.1f} with nothing chosen, {fixed:+.1f} by the best of six radii,"
        f" {rival:+.1f} by MSAM's best of six"
    )


def texts() -> dict[str, str]:
    """What other pages say of it, by name."""
    cases = read()
    return {
        f"gap_{name}": against_sweeps([case for case in cases if case.group == group])
        for name, group in zip(("fits", "wrong", "short"), GROUPS, strict=True)
    }


def page(cases: list[Case]) -> str:
    """The page."""
    parts = [
        (ROOT / "pages" / "gap.md").read_text().rstrip(),
        "![Mean difference to SGD, by group of cases](results/gap.png)",
    ]
    for group in GROUPS:
        if own := [case for case in cases if case.group == group]:
            methods = [m for m in LABELS if all(m in case.differences for case in own)]
            parts += [f"## {group}", verdict(own), table(own, methods)]
    return "\n\n".join(parts) + "\n"


def picture(cases: list[Case]) -> Figure:
    """The mean differences of each group, and those of its cases as dots."""
    figure = Figure(figsize=(pictures.WIDTH, 3.4), layout="constrained")
    groups = [g for g in GROUPS if any(case.group == g for case in cases)]
    for axes, group in zip(
        figure.subplots(1, len(groups), squeeze=False)[0], groups, strict=True
    ):
        own = [case for case in cases if case.group == group]
        methods = [m for m in LABELS if all(m in case.differences for case in own)]
        for place, method in enumerate(methods):
            dots = [case.differences[method].mean() for case in own]
            axes.bar(place, np.mean(dots), color=COLORS[method], alpha=0.5)
            axes.scatter([place] * len(dots), dots, s=12, color=COLORS[method])
        names = [LABELS[method].replace(", ", ",\n") for method in methods]
        axes.set_xticks(range(len(methods)), names, rotation=30, ha="right", fontsize=8)
        axes.axhline(0, color="black", lw=1)
        axes.set_title(f"{group} ({len(own)})", fontsize=9)
        axes.grid(axis="y", alpha=0.3)
        axes.tick_params(axis="y", labelsize=8)
    figure.supylabel("test accuracy minus SGD's, %", fontsize=9)
    return figure


def main() -> None:
    """Writes the page and its picture."""
    cases = read()
    picture(cases).savefig(DOCS / "results" / "gap.png", dpi=pictures.DPI)
    (DOCS / "gap.md").write_text(page(cases))


if __name__ == "__main__":
    main()
