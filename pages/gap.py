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
# As it is named in the results of these experiments.
OURS = "adasmoothout"
LABELS = {
    GAP: "half the gap, none chosen",
    FIXED: "fixed radius, of six",
    MSAM: "MSAM, ρ of six",
}
COLORS = {GAP: "#0072b2", FIXED: "#999999", MSAM: "#e69f00"}


class Case(NamedTuple):
    """A case with sweeps and without, and differences to the former's SGD, (seeds,)."""

    swept: evidence.Result
    own: evidence.Result
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
        own = evidence.Result(GAP, name, case)
        sgd = swept[name].accuracies("sgd")
        differences = {m: swept[name].accuracies(m) - sgd for m in (FIXED, MSAM)}
        differences[GAP] = own.accuracies(OURS) - sgd
        found.append(Case(swept[name], own, differences))
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
        f"Mean of {len(cases)} cases: {against_sweeps(cases)}; {to_own_sgd(cases)}."
        f" Certainly below SGD: {'; '.join(below) or 'none'}."
    )


def against_sweeps(cases: list[Case]) -> str:
    """The mean differences of no strength chosen, and of those from a sweep."""
    ours, fixed, rival = (mean_gain(cases, method) for method in LABELS)
    return (
        f"{ours:+.1f} with no strength chosen, {fixed:+.1f} by the best of six radii,"
        f" {rival:+.1f} by MSAM's best of six"
    )


def to_own_sgd(cases: list[Case]) -> str:
    """The mean difference to SGD of the same run."""
    mean = np.mean([case.own.difference(OURS)[0] for case in cases])
    return f"{mean:+.1f} to SGD of its own run"


def texts() -> dict[str, str]:
    """What other pages say of it, by name."""
    said = {f"gap_{g}": against_sweeps(own) for g, own in grouped(read()).items()}
    return said | {"gap_short": to_own_sgd(grouped(read())["short"])}


def readme() -> str:
    """The sentence in the README."""
    said = texts()
    return (
        "Points of test accuracy over SGD: where it fits, trained twice to use the"
        f" held-out images too, {said['gap_fits']}; where labels are wrong,"
        f" {said['gap_wrong']} ([all cases](docs/gap.md))."
    )


def alone(experiment: str) -> dict[str, evidence.Result]:
    """The committed cases of an experiment that has no sweeps beside it, by name."""
    document = json.loads((DOCS / "results" / f"{experiment}-cpu.json").read_text())
    return {
        name: evidence.Result(experiment, name, document["cases"][name])
        for name in document["plan"]
        if name in document["cases"]
    }


def others() -> str:
    """A row for each case with a recipe, or of another kind of network."""
    rows = [
        (
            case.label,
            f"{case.accuracies('sgd').mean():.1f}",
            with_interval(case.difference(OURS)),
        )
        for case in alone("gap-others").values()
    ]
    return markdown(("case", "SGD or AdamW, %", LABELS[GAP]), rows)


def held_out() -> str:
    """A row for each case of which a twentieth was held out, and one for the mean."""
    tenth, twentieth = alone("gap"), alone("gap-twentieth")
    both = {
        case.label: (tenth[name].difference(OURS), case.difference(OURS))
        for name, case in twentieth.items()
    }
    rows = [(label, *map(with_interval, each)) for label, each in both.items()]
    means = [f"{np.mean([e[i][0] for e in both.values()]):+.2f}" for i in (0, 1)]
    header = "case", "a tenth held out", "a twentieth"
    return markdown(header, [*rows, ("mean", *means)])


def page(cases: list[Case]) -> str:
    """The page."""
    parts = [
        (ROOT / "pages" / "gap.md").read_text().rstrip(),
        "![Mean difference to SGD, by group of cases](results/gap.png)",
    ]
    for group, own in grouped(cases).items():
        parts += [f"## {evidence.GROUPS[group]}", verdict(own), table(own)]
    parts += [
        "## Beside other recipes, and in other networks",
        "Differences to the same training without noise, the strength of the recipe"
        " chosen for it. Dropout, which keeps MNIST-1D's perceptron from memorising by"
        " itself, leaves noise nothing to add there, only harm.",
        others(),
        "## How much to hold out",
        "Differences to SGD of the same run, trained on all images in the end. Ten to"
        " two hundred images are too few to measure the gap on.",
        held_out(),
    ]
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
