"""What the pictures of the results show, by the names of their files."""

from collections.abc import Callable

from matplotlib.figure import Figure

from pages import evidence, feedback, gap, results
from pages.evidence import OURS, SWEPT, Result, label_of, of_experiment
from pages.pictures import Mark, Panels, intervals, lines, marks_of, means
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
    """Differences to SGD by what is changed, a panel for each case."""
    panels: dict[str, dict[str, list[Mark]]] = {}
    for (name, change), of in results.changed().items():
        row = METHODS[name].label + change
        for case, difference in of.items():
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
    return intervals(panels, f"{MINUS_SGD}; hollow: at equal gradients")


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
        METHODS[name].label: [
            ([*gains], [*gains.values()], "o-", METHODS[name].color, "")
        ]
        for name, gains in results.mean_gains().items()
    }
    figure, axes = lines(
        panels, "strength", "accuracy on held-out images\nminus SGD's (%)"
    )
    for ax in axes:
        ax.axhline(0, color="black", lw=0.8)
        ax.set_xscale("log")
        ax.set_ylim(-6, 3)
    return figure


def wrong_labels() -> Figure:
    """Accuracy at the end, and at its best, by the fraction of wrong labels."""
    cases: dict[str, list[Result]] = {}
    for each in of_experiment(evidence.WRONG_LABELS):
        if each.settings["label_noise_kind"] == "symmetric":
            network = evidence.NETWORKS[each.settings["network"]]
            title = f"{evidence.DATA[each.settings['data']]}, {network}"
            cases.setdefault(title, []).append(each)
    panels = {
        title: [
            (
                [100 * each.settings["label_noise"] for each in here],
                [each.summary[method][quantity][0] for each in here],
                style,
                METHODS[method].color,
                label,
            )
            for method in ("sgd", *SHOWN)
            for quantity, style, label in (
                ("test_accuracy", "o-", label_of(method)),
                ("best_accuracy", "o:", ""),
            )
        ]
        for title, here in cases.items()
    }
    x = "wrong training labels (%)\nsolid: at the end; dotted: with early stopping"
    return lines(panels, x, "test accuracy (%)")[0]


PICTURES: dict[str, Callable[[], Figure]] = {
    "results/groups": lambda: overview(results.main_cases(), SHOWN),
    "results/cases": lambda: forest(results.main_cases(), SHOWN),
    "results/feedback": feedback.draw,
    "results/gap": lambda: overview(gap.cases(), gap.METHODS),
    "results/recipes": recipes,
    "results/parts": parts,
    "results/rivals": rivals,
    "results/robustness": robustness,
    "results/strengths": strengths,
    "results/wrong-labels": wrong_labels,
}
