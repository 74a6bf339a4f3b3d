"""Figures of methods, each in the colour that the table of methods gives it."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from smoothout_jax._files import whole_file
from smoothout_jax.experiments.methods.table import METHODS
from smoothout_jax.experiments.reporting.statistics import mean_and_interval

DPI = 150
# What the panels of `noises` show, from the top, where it is given.
PANELS = {
    "radius": "size of the noise",
    "loss_rise": "loss rise (nats)",
    "loss_gap": "loss gap (nats)",
}


def accuracies(values: Mapping[str, np.ndarray], title: str) -> Figure:
    """Draws the test accuracy (%) of each seed, and the mean with its 95 % interval."""
    figure = _figure()
    axes = figure.subplots()
    for row, (name, accuracy) in enumerate(values.items()):
        color = METHODS[name].color
        spread = np.linspace(-0.18, 0.18, len(accuracy))
        mean, low, high = mean_and_interval(accuracy)
        axes.plot(row + spread, accuracy, "o", ms=4, alpha=0.4, color=color)
        error = [[mean - low], [high - mean]]
        style = {"fmt": "D", "ms": 7, "lw": 2, "capsize": 5, "mec": "white"}
        axes.errorbar(row, mean, error, color=color, **style)
        axes.annotate(f"{mean:.2f}", (row + 0.24, mean), va="center", color=color)
    axes.set_xticks(range(len(values)), [METHODS[name].label for name in values])
    axes.set_xlim(-0.5, len(values) - 0.3)
    axes.set_ylabel("test accuracy (%)")
    axes.set_title(title, fontsize=11)
    axes.grid(axis="y", alpha=0.3)
    return figure


def loss_curves(
    distances: np.ndarray, values: Mapping[str, np.ndarray], title: str
) -> Figure:
    """Draws losses along lines, (seeds, points): their median and quartiles."""
    figure = _figure()
    axes = figure.subplots()
    for name, losses in values.items():
        _quartiles(axes, name, distances, losses)
    axes.set_xlabel("distance from the minimum / norm of each filter")
    axes.set_ylabel("training loss (nats)")
    axes.set_title(title, fontsize=11)
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    return figure


def noises(
    values: Mapping[str, tuple[np.ndarray, Mapping[str, np.ndarray]]], title: str
) -> Figure:
    """Draws how strong noise was over training: median over the seeds, and quartiles.

    Values are steps, (steps,), and fields of `Noise`, (seeds, steps), by method; the
    target of the rise is a dashed line beside it.
    """
    shown = [key for key in PANELS if any(key in each for _, each in values.values())]
    figure = _figure(4 + 1.3 * (len(shown) - 2))
    panels = dict(zip(shown, figure.subplots(len(shown), sharex=True), strict=True))
    for name, (steps, each) in values.items():
        for key in panels.keys() & each.keys():
            _quartiles(panels[key], name, steps, each[key])
        if "loss_rise_target" in each:
            target = np.median(each["loss_rise_target"], axis=0)
            color = METHODS[name].color
            panels["loss_rise"].plot(steps, target, "--", color=color, lw=1.3)
    for key, axes in panels.items():
        axes.set_ylabel(PANELS[key])
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    if any("loss_rise_target" in each for _, each in values.values()):
        panels["loss_rise"].plot([], [], "--", color="0.3", lw=1.3, label="target")
    panels[shown[0]].set_title(title, fontsize=11)
    panels[shown[-1]].set_xlabel("step")
    lines, labels = panels["loss_rise"].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def save_figure(
    figure: Figure, stem: Path, kinds: tuple[str, ...] = ("png", "pdf")
) -> list[Path]:
    """Writes a figure, by default as PNG and as PDF; the paths."""
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in kinds]
    for path in paths:
        with whole_file(path) as unfinished:
            figure.savefig(unfinished, format=path.suffix[1:], dpi=DPI)
    return paths


def _quartiles(axes, name: str, x: np.ndarray, values: np.ndarray) -> None:
    color = METHODS[name].color
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75], axis=0)
    axes.fill_between(x, low, high, color=color, alpha=0.15, lw=0)
    axes.plot(x, median, color=color, lw=2, label=METHODS[name].label)


def _figure(height: float = 4) -> Figure:
    with matplotlib.rc_context({"font.size": 11}):
        return Figure(figsize=(6.4, height), layout="constrained")
