"""`smoothout sharpness`: every measure of the networks of checkpoints."""

import csv
import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich import box
from rich.table import Table
from scipy import stats

from smoothout_jax import uniform
from smoothout_jax._extras import progress
from smoothout_jax._files import whole_file
from smoothout_jax.experiments.measure_settings import SharpnessSettings
from smoothout_jax.experiments.reporting.provenance import provenance
from smoothout_jax.experiments.training.checkpoints import (
    Checkpoint,
    labels,
    load_checkpoint,
    save_figure,
)
from smoothout_jax.experiments.training.task import Task
from smoothout_jax.plots import plot_density
from smoothout_jax.sharpness import (
    Estimate,
    expected_sharpness,
    hessian_density,
    hessian_eigenvalues,
    hessian_trace,
    keskar_sharpness,
    per_layer,
    sam_sharpness,
)

WHOLE = "whole"


class Measure(NamedTuple):
    """A measure of sharpness.

    Attributes:
        label: its name and unit in the table.
        measure: function of the settings to the function `measure(loss, params,
            batches)`, of a value and its standard error.
    """

    label: str
    measure: Callable[[SharpnessSettings], Callable[..., tuple[float, float]]]


def _expected(settings):
    noise = uniform(settings.noise_radius, relative_to="filter")
    return _estimated(
        expected_sharpness,
        noise=noise,
        key=jax.random.key(0),
        num_samples=settings.noise_samples,
    )


def _keskar(settings):
    return _estimated(
        keskar_sharpness, epsilon=settings.epsilon, num_samples=settings.repetitions
    )


def _sam(settings):
    return _estimated(sam_sharpness, rho=settings.rho, num_samples=settings.repetitions)


def _eigenvalue(settings):
    def measure(loss, params, batches):
        pairs = hessian_eigenvalues(loss, params, batches=batches)
        return float(pairs.values[0]), float(pairs.residuals[0])

    return measure


def _trace(settings):
    return _estimated(hessian_trace, key=jax.random.key(0), num_samples=settings.probes)


def _estimated(function, **options):
    def measure(loss, params, batches):
        estimate = function(loss, params, batches=batches, **options)
        return estimate.value, estimate.standard_error

    return measure


MEASURES = {
    "expected": Measure("noise (nats)", _expected),
    "keskar": Measure("Keskar (%)", _keskar),
    "sam": Measure("SAM (nats)", _sam),
    "eigenvalue": Measure("Hessian's λmax", _eigenvalue),
    "trace": Measure("its trace", _trace),
}


class Row(NamedTuple):
    """What was measured of one network, or of one layer of it.

    Attributes:
        network: the checkpoint's label.
        seed: which of its networks.
        layer: the layer's path, or `WHOLE`.
        test_error: fraction of the test images classified wrongly.
        measures: values and standard errors (of λmax: the residual's norm) by name.
    """

    network: str
    seed: int
    layer: str
    test_error: float
    measures: dict[str, tuple[float, float]]


def run(settings: SharpnessSettings) -> tuple[Table, list[Path]]:
    """Runs `smoothout sharpness`: the table to print, and the paths written."""
    checkpoints = [
        load_checkpoint(path, settings.data_dir) for path in settings.checkpoints
    ]
    rows = measure(settings, checkpoints)
    writers = {"sharpness.csv": _write_csv, "sharpness.json": _write_json}
    paths = []
    for name, write in writers.items():
        paths.append(settings.output / name)
        with whole_file(paths[-1]) as unfinished:
            write(settings, rows, unfinished)
    figure = _density(checkpoints).figure
    return table(settings, rows), paths + save_figure(
        figure, settings.output / "density"
    )


def measure(settings: SharpnessSettings, checkpoints: list[Checkpoint]) -> list[Row]:
    """Measures every network of the checkpoints."""
    # One task and one set of measures for all, so that they are compiled once.
    tasks = {settings: Task(settings) for settings in {c.settings for c in checkpoints}}
    measures = {name: MEASURES[name].measure(settings) for name in settings.measures}
    networks = [
        (label, checkpoint, seed)
        for label, checkpoint in labels(checkpoints).items()
        for seed in checkpoint.settings.all_seeds
    ]
    rows = []
    for label, checkpoint, seed in progress("networks", networks):
        task, (params, stats) = tasks[checkpoint.settings], checkpoint.network(seed)
        error = 1 - task.evaluate(params, stats)["test accuracy"]
        arguments = task.loss_with(stats), params, task.sets["train"]
        parts = {
            WHOLE: {name: measure(*arguments) for name, measure in measures.items()}
        }
        if settings.per_layer:
            parts |= _by_layer(measures, *arguments)
        rows += [Row(label, seed, part, error, found) for part, found in parts.items()]
    return rows


def _by_layer(measures, loss, params, batches) -> dict[str, Any]:
    found = {
        name: per_layer(measure, loss, params, batches=batches)
        for name, measure in measures.items()
    }
    layers = next(iter(found.values()))
    return {layer: {name: found[name][layer] for name in found} for layer in layers}


def table(settings: SharpnessSettings, rows: list[Row]) -> Table:
    """The table that the command prints."""
    table = Table(
        title="Sharpness of the training loss",
        caption="On the first 2,000 training images. Mean ± standard error over the"
        " networks of a method; of a single one, the measure's own. Noise, SAM: rise of"
        " the loss under noise, and at the worst point of a ball. τ:"
        " Kendall's rank correlation with the test error over all networks.",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=0,
    )
    header, *lines = cells(settings.measures, rows)
    table.add_column(header[0])
    for heading in header[1:]:
        table.add_column(heading, justify="right")
    for line in lines:
        table.add_row(*line, style="bold" if len(line) == 1 else None)
    return table


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


def _by_network(rows: Iterable[Row], measured) -> list[str]:
    """Mean and error of each network's values."""
    values: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        values.setdefault(row.network, []).append(measured(row))
    cells = []
    for pairs in values.values():
        if len(pairs) > 1:
            pairs = [Estimate.from_samples(np.array([value for value, _ in pairs]))[:2]]
        cells.append(_with_error(*pairs[0]))
    return cells


def _with_error(mean: float, error: float) -> str:
    """A mean to the first digit of its error."""
    if not 0 < error < np.inf:
        return f"{mean:.3g}"
    if abs(mean) < 1e-3:
        return f"{mean:.1e} ± {error:.0e}".replace("e-0", "e-")
    decimals = max(0, -int(np.floor(np.log10(error))))
    return f"{mean:.{decimals}f} ± {error:.{decimals}f}"


def _correlation(rows: list[Row], name: str) -> str:
    if len(rows) < 3:
        return ""
    result: Any = stats.kendalltau(
        [row.measures[name][0] for row in rows], [row.test_error for row in rows]
    )
    return f"{result.statistic:+.2f}"


def _density(checkpoints: list[Checkpoint]):
    """Spectral densities of the first networks, blurred alike."""
    found = {}
    for label, checkpoint in labels(checkpoints).items():
        task = Task(checkpoint.settings)
        params, stats = checkpoint.network(checkpoint.settings.all_seeds[0])
        found[label] = task.loss_with(stats), params, task.sets["train"]
    largest = max(
        abs(hessian_eigenvalues(loss, params, batches=batches).values[0])
        for loss, params, batches in found.values()
    )
    return plot_density(
        {
            label: hessian_density(
                loss,
                params,
                key=jax.random.key(0),
                width=0.01 * largest,
                batches=batches,
            )
            for label, (loss, params, batches) in found.items()
        }
    )


def _write_csv(settings: SharpnessSettings, rows: list[Row], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        columns = [f"{m}{end}" for m in settings.measures for end in ("", "_error")]
        writer.writerow(["network", "seed", "layer", "test_error", *columns])
        for row in rows:
            measured = [number for pair in row.measures.values() for number in pair]
            writer.writerow([*row[:4], *measured])


def _write_json(settings: SharpnessSettings, rows: list[Row], path: Path) -> None:
    chosen = dataclasses.asdict(settings)
    for name in ("checkpoints", "data_dir", "output"):  # paths of one machine
        del chosen[name]
    document = provenance() | {
        "settings": chosen,
        "rows": [row._asdict() for row in rows],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
