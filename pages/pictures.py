"""Pictures of differences: with their intervals, and as means over cases.

They are narrow, so that their text is legible on a phone too.
"""

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pages.evidence import OURS, label_of
from smoothout_jax.experiments.methods.table import METHODS

# Inches, and dots per inch: 600 pixels.
WIDTH, DPI = 4.0, 150


class Mark(NamedTuple):
    """What a row shows of a method, which has a colour, and its label in the legend."""

    method: str
    values: Sequence[float]  # a mean and the ends of its interval, or one for each case
    label: str = ""
    hollow: bool = False

    @property
    def color(self) -> str:
        """The colour of the method."""
        return METHODS.get(self.method, METHODS[OURS]).color


Panels = Mapping[str, Mapping[str, Sequence[Mark]]]


def intervals(panels: Panels, quantity: str, linear: float = np.inf) -> Figure:
    """Dots with their intervals, of marks by row, by panel.

    Beyond some percent, the axis of the quantity is no longer linear but logarithmic.
    """
    quantity = f"{quantity},\nmean and 95 % interval of pairs"
    figure, axes = _in_rows(panels, quantity, linear)
    for ax, rows in zip(axes, panels.values(), strict=True):
        for row, marks in enumerate(rows.values()):
            for index, mark in enumerate(marks):
                mean, low, high = mark.values
                ax.errorbar(
                    mean,
                    row + 0.19 * (index - (len(marks) - 1) / 2),
                    xerr=[[mean - low], [high - mean]],
                    fmt="o",
                    ms=4,
                    lw=1.6,
                    color=mark.color,
                    mfc="white" if mark.hollow else mark.color,
                    label=mark.label,
                )
    legend(figure)
    return figure


def means(panels: Panels, quantity: str, linear: float = np.inf) -> Figure:
    """A dot for each case and a bar at their mean, of one mark by row, by panel."""
    figure, axes = _in_rows(panels, quantity, linear)
    for ax, rows in zip(axes, panels.values(), strict=True):
        for row, (mark,) in enumerate(rows.values()):
            color, mean = mark.color, np.mean(mark.values)
            ax.plot(mark.values, [row] * len(mark.values), "o", color=color, alpha=0.5)
            ax.plot([mean, mean], [row - 0.4, row + 0.4], color=color, lw=3)
    return figure


def _in_rows(panels: Panels, quantity: str, linear: float) -> tuple[Figure, list[Axes]]:
    """A figure whose panels have a row for each name."""
    names = [[in_lines(name) for name in rows] for rows in panels.values()]
    heights = [sum(0.13 + 0.15 * (1 + n.count("\n")) for n in each) for each in names]
    height = sum(heights) + 0.55 * len(panels) + 1
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(
        len(panels), 1, height_ratios=heights, sharex=True, squeeze=False
    )
    for ax, title, rows in zip(axes.flat, panels, names, strict=True):
        ax.axvline(0, color="black", lw=0.8)
        ax.set_yticks(range(len(rows)), rows, linespacing=1.0)
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.tick_params(labelsize=9, labelbottom=True)
        ax.grid(axis="x", alpha=0.3)
        lines = [textwrap.fill(line, 29) for line in in_lines(title).split("\n")]
        ax.set_title("\n".join(lines), loc="left", fontsize=10)
        if np.isfinite(linear):
            ax.set_xscale("symlog", linthresh=linear)
            ticks = [-20, -5, -2, 0, 2, 5, 20]
            ax.set_xticks(ticks, [f"{tick:+d}" if tick else "0" for tick in ticks])
            ax.minorticks_off()
    if np.isfinite(linear):
        quantity = f"{quantity}\nlinear between ±{linear:g}, logarithmic beyond"
    figure.supxlabel(quantity, fontsize=10)
    return figure, list(axes.flat)


def legend(figure: Figure) -> None:
    """A legend of each label, above the panels."""
    shown: dict[str, Any] = {}
    for ax in figure.axes:
        handles, labels = ax.get_legend_handles_labels()
        shown |= dict(zip(labels, handles, strict=True))
    if shown:
        place = {"loc": "outside upper left", "ncols": 1, "frameon": False}
        figure.legend(shown.values(), shown, fontsize=9, **place)


def marks_of(result: Any, methods: Iterable[str]) -> list[Mark]:
    """The differences of methods to SGD in a case, named in the legend."""
    return [
        Mark(name, difference, label_of(name))
        for name in methods
        if (difference := result.difference(name))
    ]


def in_lines(label: str) -> str:
    """A label of a case or a method in short lines."""
    return re.sub(r", (?=batch|\d+ %|no radius|none)", ",\n", label)
