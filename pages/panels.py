"""What the pictures of the results show, by the names of their files."""

from collections.abc import Callable

from matplotlib.figure import Figure

from pages import evidence, feedback, gap, pictures, results
from pages.evidence import GAP, OURS, SWEPT, Result, label_of, of_experiment
from pages.pictures import Mark, Panels, intervals, marks_of, means
from smoothout_jax.experiments.methods.table import METHODS

MINUS_SGD = "test accuracy minus SGD's (%)"
SHOWN = (OURS, "smoothout-fixed", "msam", "sam")


def overview(cases: list[Result], methods: tuple[str, ...]) -> Figure:
    """A dot for each case, and a bar at their mean: by group and method."""
    panels: dict[str, dict[str, list[Mark]]] = {}
    for group, here in evidence.grouped(cases).items():
        rows = panels[evidence.GROUPS[group]] = {}
        for method in methods:
            gains = [d[0] for each in here if (d := each.difference(method))]
            rows[f"{label_of(method)} ({len(gains)})"] = [Mark(method, gains)]
    quantity = f"{MINUS_SGD}\ndots: cases (how many); bars: their means"
    return means(panels, quantity, linear=2)


def headline() -> Figure:
    """What noise gains without a strength to choose: a dot for each case, by group."""
    figure = Figure(figsize=(pictures.WIDTH, 2.9), layout="constrained")
    ax, here = figure.subplots(), evidence.grouped(gap.cases())
    for row, group in enumerate(gap.README):
        gains = [
            difference[0] for e in here[group] if (difference := e.difference(GAP))
        ]
        color, mean = METHODS[OURS].color, sum(gains) / len(gains)
        ax.plot(gains, [row] * len(gains), "o", color=color, alpha=0.5, ms=8)
        ax.plot([mean, mean], [row - 0.3, row + 0.3], color=color, lw=4)
    ax.axvline(0, color="black", lw=1)
    ax.set_yticks(
        range(len(here)), ["labels\nare wrong", "SGD\nfits", "SGD does\nnot fit"]
    )
    ax.set_ylim(len(here) - 0.5, -0.5)
    ax.grid(axis="x", alpha=0.3)
    ax.tick_params(labelsize=12)
    ax.set_xlabel("points of test accuracy\ngained over SGD", fontsize=12)
    return figure


def forest(cases: list[Result], methods: tuple[str, ...]) -> Figure:
    """Paired differences to SGD with their intervals, case by case."""
    panels = {
        evidence.GROUPS[group]: {each.label: marks_of(each, methods) for each in here}
        for group, here in evidence.grouped(cases).items()
    }
    return intervals(panels, MINUS_SGD, linear=2)


def recipes() -> Figure:
    """Differences of noise on top of a recipe to the recipe alone."""
    panels: dict[str, dict[str, list[Mark]]] = {}
    for each, _, case, recipe in results.by_recipe():
        panels.setdefault(case, {})[recipe] = marks_of(each, (OURS, SWEPT))
    return intervals(panels, "test accuracy minus that of SGD with the recipe (%)")


def parts() -> Figure:
    """Differences to SGD by the part that is changed, a panel for each case."""
    panels: dict[str, dict[str, list[Mark]]] = {}
    for (name, change), of in results.changed().items():
        for case, difference in of.items():
            if not change:  # schedules and BatchNorm are in the table
                row = METHODS[name].label
                panels.setdefault(case, {})[row] = [Mark(name, difference)]
    return intervals(panels, MINUS_SGD)


def rivals() -> Figure:
    """Differences to SGD, hollow at equal gradients."""
    panels: Panels = {
        each.label: {
            label_of(name): [
                Mark(name, difference, hollow=hollow)
                for difference, hollow in (
                    (each.difference(name), False),
                    (results.fair(each, name), True),
                )
                if difference
            ]
            for name in each.summary
            if name != "sgd"
        }
        for each in of_experiment("rivals")
    }
    return intervals(panels, f"{MINUS_SGD};\nhollow: at equal gradients")


def robustness() -> Figure:
    """Accuracy lost without training again."""
    lost = results.lost()
    panels = {
        cause: {label_of(name): [Mark(name, [v])] for name, v in lost[cause].items()}
        for cause in ("at 4 bits", "under noise")
    }
    return means(panels, "test accuracy lost (%), mean of the cases")


def strengths() -> Figure:
    """Mean gain on held-out images by strength."""
    panels = {
        METHODS[name].label: {
            f"{strength:g}": [Mark(name, [gain])] for strength, gain in gains.items()
        }
        for name, gains in results.mean_gains().items()
    }
    return means(panels, "accuracy on held-out images minus SGD's (%)", linear=2)


def wrong_labels() -> Figure:
    """Differences to SGD at the end, by the fraction of wrong labels."""
    panels: dict[str, dict[str, list[Mark]]] = {}
    for each in of_experiment(evidence.WRONG_LABELS):
        if each.settings["label_noise_kind"] == "symmetric":
            network = evidence.NETWORKS[each.settings["network"]]
            row = f"{evidence.DATA[each.settings['data']]}, {network}"
            title = f"{100 * each.settings['label_noise']:.0f} % of the labels wrong"
            marks = marks_of(each, (OURS, SWEPT, "msam"))
            panels.setdefault(title, {})[row] = marks
    return intervals(dict(sorted(panels.items())), MINUS_SGD, linear=2)


PICTURES: dict[str, Callable[[], Figure]] = {
    "results/headline": headline,
    "results/groups": lambda: overview(results.main_cases(), SHOWN),
    "results/cases": lambda: forest(results.main_cases(), SHOWN),
    "results/gap": lambda: overview(gap.cases(), gap.METHODS),
    "results/feedback": feedback.draw,
    "results/recipes": recipes,
    "results/parts": parts,
    "results/rivals": rivals,
    "results/robustness": robustness,
    "results/strengths": strengths,
    "results/wrong-labels": wrong_labels,
}
