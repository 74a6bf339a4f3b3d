"""The pictures of the results: differences by group, accuracy by wrong labels.

They are narrow, so that their text is legible on a phone too.
"""

import re

from matplotlib.figure import Figure

from pages.evidence import CHOSEN, DATA, GROUPS, NETWORKS, RISE, Result
from pages.source import DOCS
from smoothout_jax.experiments.methods.table import METHODS
from smoothout_jax.experiments.reporting.statistics import paired_difference

SHOWN = ("adasmoothout", "smoothout-fixed", "msam", "sam")
LABELS = {
    "adasmoothout": "AdaSmoothOut, no radius chosen",
    CHOSEN: f"AdaSmoothOut{CHOSEN}",
}
MAIN = ("batches", "wrong-labels", "networks", RISE)
# Inches, and dots per inch: 585 pixels.
WIDTH, DPI = 4.5, 130


def paired(one: Result, method: str, other: Result) -> tuple[float, float, float]:
    """Difference of a method in a case to SGD in another, paired by the seed."""
    return paired_difference(one.accuracies(method), other.accuracies("sgd"))


def save(results: list[Result]) -> None:
    """Writes the pictures that there are results for."""
    main = [each for each in results if each.experiment in MAIN]
    overview(main).savefig(DOCS / "results" / "groups.png", dpi=DPI)
    forest(main).savefig(DOCS / "results" / "cases.png", dpi=DPI)
    if wrong := at_several_fractions(results):
        wrong_labels(wrong).savefig(DOCS / "results" / "wrong-labels.png", dpi=DPI)


def at_several_fractions(results: list[Result]) -> list[Result]:
    """The symmetric wrong labels, on data of which several fractions were wrong."""
    wrong = [
        each
        for each in results
        if each.experiment == "wrong-labels"
        and each.settings["label_noise_kind"] == "symmetric"
    ]
    data = [each.settings["data"] for each in wrong]
    return [each for each in wrong if data.count(each.settings["data"]) > 1]


def robustness(lost: dict[str, dict[str, float]]) -> Figure:
    """Accuracy lost without training again: a panel for each cause.

    Args:
        lost: mean accuracy lost in percent, by cause and method.
    """
    figure = Figure(figsize=(WIDTH, 2.5), layout="constrained")
    panels = figure.subplots(1, len(lost), sharey=True)
    for ax, (cause, values) in zip(panels, lost.items(), strict=True):
        names = [in_lines(label_of(name)) for name in values]
        colors = [METHODS[name].color for name in values]
        bars = ax.barh(names, list(values.values()), color=colors)
        ax.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
        ax.set_title(cause, fontsize=10)
        ax.tick_params(labelsize=8)
        ax.margins(x=0.4)
        ax.grid(axis="x", alpha=0.3)
    panels[0].invert_yaxis()
    figure.supxlabel("test accuracy lost (%), mean of the cases", fontsize=9)
    return figure


def in_lines(label: str) -> str:
    """A label of a case or a method in short lines."""
    return re.sub(r", (?=batch|\d+ %|no radius)", ",\n", label)


def overview(results: list[Result]) -> Figure:
    """A dot for each case, and a bar at their mean: by group and method."""
    groups = _grouped(results)
    limits = _limits(groups)
    figure = Figure(figsize=(WIDTH, 1.2 * len(groups) + 0.8), layout="constrained")
    panels = figure.subplots(len(groups), 1, sharex=True, squeeze=False)[:, 0]
    for ax, (name, here) in zip(panels, groups.items(), strict=True):
        labels = []
        for row, method in enumerate(SHOWN):
            means = [d[0] for each in here if (d := each.difference(method))]
            labels.append(f"{in_lines(label_of(method))} ({len(means)})")
            color = METHODS[method].color
            ax.plot(means, [row] * len(means), "o", ms=5, alpha=0.5, color=color)
            if means:
                mean = sum(means) / len(means)
                ax.plot([mean] * 2, [row - 0.4, row + 0.4], lw=3, color=color)
        rows(ax, labels)
        _in_percent(ax, limits, GROUPS[name])
    figure.supxlabel(
        "test accuracy minus SGD's (%)\ndots: cases (how many); bars: their means",
        fontsize=9,
    )
    return figure


def _grouped(results: list[Result]) -> dict[str, list[Result]]:
    """The cases by group, without empty groups."""
    groups = {name: [each for each in results if each.group == name] for name in GROUPS}
    return {name: here for name, here in groups.items() if here}


def label_of(method: str) -> str:
    """A method's name in the pictures."""
    return LABELS.get(method) or METHODS[method].label


def _in_percent(ax, limits: tuple[float, float], title: str) -> None:
    """An axis of differences, linear up to 2 %."""
    ticks = [-20, -5, -2, 0, 2, 5, 20]
    ax.set_xscale("symlog", linthresh=2, linscale=1)
    ax.set_xticks(ticks, [f"{tick:+d}" if tick else "0" for tick in ticks])
    ax.set_xlim(limits)
    ax.set_title(title, loc="left", fontsize=10)
    ax.minorticks_off()


def forest(results: list[Result]) -> Figure:
    """Paired differences to SGD with their intervals: a panel for each group."""
    groups = _grouped(results)
    labels = {
        name: [in_lines(each.label) for each in here] for name, here in groups.items()
    }
    inches = [
        len(here) * (0.1 + 0.13 * max(label.count("\n") + 1 for label in here))
        for here in labels.values()
    ]
    figure = Figure(
        figsize=(WIDTH, sum(inches) + 0.4 * len(groups) + 0.8), layout="constrained"
    )
    panels = figure.subplots(len(groups), 1, height_ratios=inches, squeeze=False)
    limits = _limits(groups)
    for ax, (name, here) in zip(panels[:, 0], groups.items(), strict=True):
        for row, each in enumerate(here):
            there = [method for method in SHOWN if each.difference(method)]
            for index, method in enumerate(there):
                place = row + 0.19 * (index - (len(there) - 1) / 2)
                _bar(ax, place, each.difference(method), method)
        rows(ax, labels[name])
        _in_percent(ax, limits, GROUPS[name])
    handles, names = panels[0, 0].get_legend_handles_labels()
    unique = dict(zip(names, handles, strict=True))
    figure.legend(
        unique.values(),
        unique,
        loc="outside upper center",
        ncols=2,
        frameon=False,
        fontsize=8,
        columnspacing=1.0,
    )
    figure.supxlabel(
        "test accuracy minus SGD's (%),\nmean and 95 % interval of pairs", fontsize=9
    )
    return figure


def _bar(ax, row: float, difference: tuple, method: str) -> None:
    size, color = 5 if method == SHOWN[0] else 4, METHODS[method].color
    interval(ax, row, difference, ms=size, color=color, label=label_of(method))


def interval(ax, row: float, difference: tuple, **style):
    """Draws a mean with its interval in a row; what a legend can show."""
    mean, low, high = difference
    error = [[mean - low], [high - mean]]
    return ax.errorbar(mean, row, xerr=error, fmt="o", lw=1.6, **style)


def rows(ax, labels: list[str]) -> None:
    """Makes an axis of rows, from the top, and a line at zero."""
    ax.axvline(0, color="black", lw=0.8)
    ax.set_yticks(range(len(labels)), labels, linespacing=1.0)
    ax.set_ylim(len(labels) - 0.4, -0.6)
    ax.tick_params(labelsize=8)
    ax.grid(axis="x", alpha=0.3)


def _limits(groups: dict[str, list[Result]]) -> tuple[float, float]:
    """Limits that hold all intervals, on both sides of zero."""
    ends = [
        end
        for here in groups.values()
        for each in here
        for method in SHOWN
        for end in each.difference(method) or ()
    ]
    return min(-2.5, 1.3 * min(ends)), max(2.5, 1.3 * max(ends))


def wrong_labels(results: list[Result]) -> Figure:
    """Accuracy at the end, and at its best, by the fraction of wrong labels."""
    data = list(dict.fromkeys(each.settings["data"] for each in results))
    rows = -(-len(data) // 2)
    figure = Figure(figsize=(1.4 * WIDTH, 2.7 * rows + 0.8), layout="constrained")
    panels = figure.subplots(rows, 2, squeeze=False)
    for ax in panels.flat[len(data) :]:
        ax.set_axis_off()
    for ax, name in zip(panels.flat, data, strict=False):
        here = [each for each in results if each.settings["data"] == name]
        for method in ("sgd", *SHOWN):
            there = [each for each in here if each.difference(method)]
            noise = [100 * each.settings["label_noise"] for each in there]
            for quantity, style in (("test_accuracy", "o-"), ("best_accuracy", "o:")):
                means = [each.summary[method][quantity][0] for each in there]
                label = label_of(method)
                ax.plot(
                    noise,
                    means,
                    style,
                    color=METHODS[method].color,
                    label=label if style == "o-" else None,
                )
        network = NETWORKS[here[0].settings["network"]]
        ax.set_title(f"{DATA[name]}, {network}", fontsize=10)
        ax.set_xticks([20, 40, 60])
        ax.grid(alpha=0.3)
    figure.supylabel("test accuracy (%)", fontsize=10)
    figure.supxlabel(
        "wrong training labels (%)\nsolid: at the end; dotted: with early stopping",
        fontsize=10,
    )
    handles, names = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=3, frameon=False)
    return figure
