"""Pictures of differences in rows: of recipes, of parts, of rivals, and of radii."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from pages.pictures import WIDTH, in_lines, interval, rows
from smoothout_jax.experiments.methods.table import METHODS


class Mark(NamedTuple):
    """One difference in a row.

    Attributes:
        difference: its mean and the two ends of its interval, in percent.
        color: its colour.
        label: what the legend calls it; not in the legend without one.
        hollow: whether to leave its dot empty.
    """

    difference: tuple[float, float, float]
    color: str
    label: str = ""
    hollow: bool = False


def panels(groups: Mapping[str, Mapping[str, Sequence[Mark]]], quantity: str) -> Figure:
    """A panel for each group: a row for each name, with its marks.

    Args:
        groups: marks by row, by the title of the panel.
        quantity: what is shown, for the axis.
    """
    heights = [0.24 * len(each) + 0.1 for each in groups.values()]
    figure = Figure(
        figsize=(WIDTH, sum(heights) + 0.6 * len(groups) + 0.7), layout="constrained"
    )
    axes = figure.subplots(len(groups), 1, height_ratios=heights, squeeze=False)[:, 0]
    shown = {}
    for ax, (title, of_rows) in zip(axes, groups.items(), strict=True):
        for row, marks in enumerate(of_rows.values()):
            for index, mark in enumerate(marks):
                place = row + 0.25 * (index - (len(marks) - 1) / 2)
                face = "white" if mark.hollow else mark.color
                shown[mark.label] = interval(
                    ax, place, mark.difference, ms=4, color=mark.color, mfc=face
                )
        rows(ax, [in_lines(name) for name in of_rows])
        ax.set_title(in_lines(title), loc="left", fontsize=9)
    shown.pop("", None)
    if shown:
        figure.legend(
            shown.values(),
            shown,
            loc="outside upper center",
            ncols=2,
            frameon=False,
            fontsize=8,
        )
    figure.supxlabel(f"{quantity} (%),\nmean and 95 % interval of pairs", fontsize=9)
    return figure


def strengths(gains: Mapping[str, Mapping[float, float]]) -> Figure:
    """Mean gain on held-out images by strength, in a panel for each method.

    Args:
        gains: gain in percent by strength, by method.
    """
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axes = figure.subplots(2, 2, sharey=True)
    for ax, (name, of_strength) in zip(axes.flat, gains.items(), strict=True):
        ax.plot(
            *zip(*of_strength.items(), strict=True), "o-", color=METHODS[name].color
        )
        ax.axhline(0, color="black", lw=0.8)
        ax.set_xscale("log")
        ax.set_ylim(-6, 3)
        ax.set_title(METHODS[name].label, fontsize=9)
        ax.tick_params(labelsize=8)
        ax.grid(alpha=0.3)
    figure.supxlabel("strength", fontsize=9)
    figure.supylabel("accuracy on held-out images\nminus SGD's (%)", fontsize=9)
    return figure
