"""`smoothout sharpness`: measures how flat the minima of checkpoints are."""

import csv
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.stats
from matplotlib.figure import Figure

from smoothout_jax._extras import progress
from smoothout_jax._files import whole_file
from smoothout_jax.experiments import interruptions
from smoothout_jax.experiments.commands import Report
from smoothout_jax.experiments.commands.trained import (
    Checkpoint,
    Tasks,
    TrainedSettings,
    colors,
)
from smoothout_jax.experiments.commands.unfinished import Unfinished
from smoothout_jax.experiments.measures import MEASURES, MeasureSettings
from smoothout_jax.experiments.options import InputError, option
from smoothout_jax.experiments.progress import Forecast
from smoothout_jax.experiments.reporting.figures import save_figure
from smoothout_jax.experiments.reporting.formats import json_text, to_first_digit
from smoothout_jax.experiments.reporting.provenance import provenance
from smoothout_jax.experiments.reporting.statistics import mean_and_error
from smoothout_jax.experiments.reporting.tables import terminal_tables
from smoothout_jax.plots import plot_density
from smoothout_jax.sharpness import (
    hessian_density,
    hessian_eigenvalues,
    per_layer,
)

WHOLE = "whole"
# Iterations of Lanczos for the density.
DEPTH = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharpnessSettings(MeasureSettings, TrainedSettings):
    """Settings of `smoothout sharpness`.

    Raises:
        TypeError, ValueError: if a value is out of its range.
    """

    per_layer: bool = option(False, "measure each layer too")
    output: Path = option(
        Path("smoothout-sharpness"),
        "folder for the table and pictures",
        "FOLDER",
        machine=True,
    )


class Row(NamedTuple):
    """What was measured of one network, or of one layer of it.

    Attributes:
        network: label of the checkpoint.
        seed: which of its networks.
        layer: path of the layer, or `WHOLE`.
        test_error: fraction of the test images that are classified wrongly.
        measures: values and standard errors by name (of λmax, the norm of the
            residual).
    """

    network: str
    seed: int
    layer: str
    test_error: float
    measures: dict[str, tuple[float, float]]


def run(settings: SharpnessSettings) -> Report:
    """Runs `smoothout sharpness`: the table to print, and the paths written."""
    checkpoints, tasks = settings.load(), Tasks()
    kept = Unfinished(
        settings.output / "unfinished.json",
        [settings.to_json(), [each.digest for each in checkpoints.values()]],
    )
    rows = measure(settings, checkpoints, tasks, kept)
    writers = {"sharpness.csv": _write_csv, "sharpness.json": _write_json}
    paths = []
    for name, write in writers.items():
        paths.append(settings.output / name)
        with whole_file(paths[-1]) as unfinished:
            write(settings, rows, unfinished)
    paths += save_figure(_density(checkpoints, tasks), settings.output / "density")
    kept.remove()
    return Report(tables(settings, rows), paths)


def measure(
    settings: SharpnessSettings,
    checkpoints: dict[str, Checkpoint],
    tasks: Tasks,
    kept: Unfinished,
) -> list[Row]:
    """Measures every network of the checkpoints, but for those that were before.

    Raises:
        InputError: if a network is not that of its data, or a measure is not finite.
    """
    # One set of measures for all, so that they are compiled once.
    measures = {name: MEASURES[name].measure(settings) for name in settings.measures}
    networks = [
        (label, checkpoint, seed)
        for label, checkpoint in checkpoints.items()
        for seed in checkpoint.settings.all_seeds
    ]
    interruptions.advise(lambda: _interrupted(len(kept), len(networks)))
    forecast = Forecast("measuring")
    for label, checkpoint, seed in progress("networks", networks):
        key = f"{label} {seed}"
        if key not in kept:
            network, task = checkpoint.network(seed), tasks.of(checkpoint)
            try:
                kept[key] = _measure(settings, measures, task, network)
            except ValueError as error:
                raise InputError(f"checkpoint {checkpoint.path}: {error}") from error
            forecast.update(len(kept), len(networks))
    return [
        Row(label, seed, layer, error, {k: _pair(*v) for k, v in measured.items()})
        for label, _, seed in networks
        for layer, error, measured in kept[f"{label} {seed}"]
    ]


def _pair(value: float, error: float | None) -> tuple[float, float]:
    """A measure and its error, which may be unknown."""
    return value, np.nan if error is None else error


def _interrupted(done: int, total: int) -> str:
    if not done:
        return "interrupted: nothing was measured yet"
    return (
        f"interrupted: {done} of {total} networks are measured; to continue, run the"
        " same command again"
    )


def _measure(settings, measures, task, network) -> list[tuple]:
    """Layer, test error and measures of a network, and of its layers."""
    params, stats = network
    error = 1 - task.evaluate(params, stats)["test accuracy"]
    arguments = task.loss_with(stats), params, task.sets["train"]
    parts = {WHOLE: {name: measure(*arguments) for name, measure in measures.items()}}
    if settings.per_layer:
        parts |= _by_layer(measures, *arguments)
    for values in parts.values():
        for name, (value, _) in values.items():
            if not np.isfinite(value):
                raise ValueError(
                    f"the measure {name} is {value}: the loss is not finite so far from"
                    " the network"
                )
    return [(part, error, values) for part, values in parts.items()]


def _by_layer(measures, loss, params, batches) -> dict[str, Any]:
    values = {
        name: per_layer(measure, loss, params, batches=batches)
        for name, measure in measures.items()
    }
    layers = next(iter(values.values()))
    return {layer: {name: values[name][layer] for name in values} for layer in layers}


def tables(settings: SharpnessSettings, rows: list[Row]) -> Any:
    """The tables that the command prints, none wider than a terminal."""
    header, *lines = cells(settings.measures, rows)
    return terminal_tables(
        "Sharpness of the training loss",
        lines,
        header=header,
        caption="On the first 2,000 training images. Mean ± standard error over the"
        " networks of a method; of a single one, the measure's own. Noise, SAM: rise of"
        " the loss under noise, and at the worst point of a ball. τ: Kendall's rank"
        " correlation with the test error over all networks.",
    )


def cells(measures: Sequence[str], rows: list[Row]) -> list[list[str]]:
    """The lines of the table: a header, a line for each measure, then by layer."""
    networks = list(dict.fromkeys(row.network for row in rows))
    lines = [["", *networks, "τ"]]
    for layer in dict.fromkeys(row.layer for row in rows):
        here = [row for row in rows if row.layer == layer]
        if layer == WHOLE:
            errors = _by_network(here, lambda row: (100 * row.test_error, np.nan))
            lines.append(["test error (%)", *errors, ""])
        else:
            lines.append([layer])
        for name in measures:
            values = _by_network(here, lambda row, name=name: row.measures[name])
            lines.append([MEASURES[name].label, *values, _correlation(here, name)])
    return lines


def _by_network(
    rows: Iterable[Row], pair: Callable[[Row], tuple[float, float]]
) -> list[str]:
    """Mean and error of the values of each network's rows."""
    pairs: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        pairs.setdefault(row.network, []).append(pair(row))
    return [
        to_first_digit(
            *(mean_and_error(np.array(each)[:, 0]) if len(each) > 1 else each[0])
        )
        for each in pairs.values()
    ]


def _correlation(rows: list[Row], name: str) -> str:
    if len(rows) < 3:
        return ""
    result: Any = scipy.stats.kendalltau(
        [row.measures[name][0] for row in rows], [row.test_error for row in rows]
    )
    return f"{result.statistic:+.2f}"


def _density(checkpoints: dict[str, Checkpoint], tasks: Tasks) -> Figure:
    """Draws spectral densities of the first networks, all blurred by one width."""
    networks = {}
    for label, checkpoint in checkpoints.items():
        task = tasks.of(checkpoint)
        params, stats = checkpoint.network(checkpoint.settings.all_seeds[0])
        networks[label] = task.loss_with(stats), params, task.sets["train"]
    largest = max(
        abs(hessian_eigenvalues(loss, params, batches=batches).values[0])
        for loss, params, batches in networks.values()
    )
    # None where the Hessian is zero, as of a network whose units are all off.
    width = 0.01 * largest or None
    densities = {
        label: hessian_density(
            loss,
            params,
            key=jax.random.key(0),
            width=width,
            depth=min(DEPTH, sum(leaf.size for leaf in jax.tree.leaves(params))),
            batches=batches,
        )
        for label, (loss, params, batches) in networks.items()
    }
    return plot_density(densities, colors=colors(checkpoints)).figure


def _write_csv(settings: SharpnessSettings, rows: list[Row], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        columns = [f"{m}{end}" for m in settings.measures for end in ("", "_error")]
        writer.writerow(["network", "seed", "layer", "test_error", *columns])
        for row in rows:
            measured = [number for pair in row.measures.values() for number in pair]
            writer.writerow([*row[:4], *measured])


def _write_json(settings: SharpnessSettings, rows: list[Row], path: Path) -> None:
    document = provenance() | {
        "settings": settings.to_json(),
        "rows": [row._asdict() for row in rows],
    }
    path.write_text(json_text(document))
