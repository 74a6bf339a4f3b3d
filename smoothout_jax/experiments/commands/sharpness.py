"""`smoothout sharpness`: measures how flat the minima of checkpoints are.

`MEASURES` is the table of measures: a new measure is a new row.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import scipy.stats
from matplotlib.figure import Figure

from smoothout_jax import _checks, flax_filters, uniform
from smoothout_jax._extras import progress
from smoothout_jax.experiments import interruptions
from smoothout_jax.experiments.commands import Report
from smoothout_jax.experiments.options import InputError, option
from smoothout_jax.experiments.reporting.figures import save_figure
from smoothout_jax.experiments.reporting.files import provenance, write_csv, write_json
from smoothout_jax.experiments.reporting.statistics import (
    mean_and_error,
    to_first_digit,
)
from smoothout_jax.experiments.reporting.tables import terminal_tables
from smoothout_jax.experiments.trained_networks import (
    Checkpoint,
    Tasks,
    TrainedSettings,
    colors,
)
from smoothout_jax.experiments.training.resuming import SavedResults
from smoothout_jax.noise import Noise
from smoothout_jax.plots import plot_density
from smoothout_jax.sharpness import (
    expected_sharpness,
    hessian_density,
    hessian_eigenvalues,
    hessian_trace,
    keskar_sharpness,
    per_layer,
    sam_sharpness,
)

WHOLE = "whole"
# Iterations of Lanczos for the density.
DEPTH = 64


class Measure(NamedTuple):
    """A row of the table.

    Attributes:
        label: its name and unit in printed tables.
        measure: function of (loss, params, *, batches) to a value and its standard
            error; for λmax, the norm of the residual.
        options: function of the settings to its other arguments.
    """

    label: str
    measure: Callable[..., Any]
    options: Callable[[Any], dict[str, Any]]


@functools.cache  # one noise for all networks, so that it is compiled once
def _noise(radius: float) -> Noise:
    return uniform(radius, relative_to="filter", filter_axis=flax_filters)


def _eigenvalue(loss, params, *, batches):
    pairs = hessian_eigenvalues(loss, params, batches=batches)
    return float(pairs.values[0]), float(pairs.residuals[0])


MEASURES = {
    "expected": Measure(
        "noise (nats)",
        expected_sharpness,
        lambda settings: {
            "noise": _noise(settings.noise_radius),
            "key": jax.random.key(0),
            "num_samples": settings.noise_samples,
        },
    ),
    "keskar": Measure(
        "Keskar (%)",
        keskar_sharpness,
        lambda settings: {
            "epsilon": settings.epsilon,
            "num_samples": settings.repetitions,
        },
    ),
    "sam": Measure(
        "SAM (nats)",
        sam_sharpness,
        lambda settings: {"rho": settings.rho, "num_samples": settings.repetitions},
    ),
    "eigenvalue": Measure("Hessian's λmax", _eigenvalue, lambda settings: {}),
    "trace": Measure(
        "its trace",
        hessian_trace,
        lambda settings: {"key": jax.random.key(0), "num_samples": settings.probes},
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharpnessSettings(TrainedSettings):
    """Settings of `smoothout sharpness`."""

    measures: tuple[str, ...] = option(
        tuple(MEASURES),
        f"measures of sharpness, of the training loss: {', '.join(MEASURES)}",
        "MEASURE",
        choices=MEASURES,
    )
    noise_radius: float = option(
        0.5, "expected sharpness: radius of uniform noise relative to filters"
    )
    noise_samples: int = option(100, "expected sharpness: samples of the noise")
    epsilon: float = option(5e-4, "Keskar's sharpness: size ε of the box")
    rho: float = option(0.3, "SAM's sharpness: radius ρ of the ball")
    repetitions: int = option(5, "Keskar's and SAM's sharpness: random starts")
    probes: int = option(100, "trace of the Hessian: random vectors")
    per_layer: bool = option(False, "measure each layer too")
    output: Path = option(
        Path("smoothout-sharpness"),
        "folder for the table and pictures",
        "FOLDER",
        machine=True,
    )

    def __post_init__(self):
        super().__post_init__()
        chosen = tuple(name for name in MEASURES if name in self.measures)
        self._set(measures=chosen)
        _checks.count(**self._given("noise_samples", "repetitions", "probes"))
        _checks.positive(**self._given("noise_radius", "epsilon", "rho"))


class Row(NamedTuple):
    """What was measured of one network, or of one layer of it.

    Attributes:
        network: label of the checkpoint.
        seed: which of its networks.
        layer: path of the layer, or `WHOLE`.
        test_error: fraction of the test images that are classified wrongly.
        measures: values and standard errors by name.
    """

    network: str
    seed: int
    layer: str
    test_error: float
    measures: dict[str, tuple[float, float]]


def run(settings: SharpnessSettings) -> Report:
    """Measures the networks: the table to print, and the paths written."""
    checkpoints, tasks = settings.load(), Tasks()
    saved = SavedResults(
        settings.output,
        [settings.to_json(), [each.digest for each in checkpoints.values()]],
    )
    interruptions.advise(
        "interrupted: the networks that were measured are kept; to continue, run the"
        " same command again"
    )
    rows = measure(settings, checkpoints, tasks, saved)
    document = provenance() | {
        "settings": settings.to_json(),
        "rows": [row._asdict() for row in rows],
    }
    paths = [
        write_csv(settings.output / "sharpness.csv", [_flat(row) for row in rows]),
        write_json(settings.output / "sharpness.json", document),
    ]
    paths += save_figure(_density(checkpoints, tasks), settings.output / "density")
    saved.delete()
    header, *lines = cells(settings.measures, rows)
    caption = (
        "On the first 2,000 training images. Mean ± standard error over the networks of"
        " a method; of a single one, the measure's own. Noise, SAM: rise of the loss"
        " under noise, and at the worst point of a ball. τ: Kendall's rank correlation"
        " with the test error over all networks."
    )
    title = "Sharpness of the training loss"
    return Report(terminal_tables(title, lines, header=header, caption=caption), paths)


def measure(
    settings: SharpnessSettings,
    checkpoints: dict[str, Checkpoint],
    tasks: Tasks,
    saved: SavedResults,
) -> list[Row]:
    """Measures every network of the checkpoints that was not measured before.

    Raises:
        InputError: if a network does not fit its data, or a measure is not finite.
    """
    networks = [
        (label, checkpoint, seed)
        for label, checkpoint in checkpoints.items()
        for seed in checkpoint.settings.all_seeds
    ]
    for label, checkpoint, seed in progress("networks", networks):
        if (key := f"{label} {seed}") not in saved:
            network, task = checkpoint.network(seed), tasks.of(checkpoint)
            try:
                saved[key] = _measure(settings, task, *network)
            except ValueError as error:
                raise InputError(f"checkpoint {checkpoint.path}: {error}") from error
    return [
        Row(label, seed, layer, test_error, {k: _pair(*v) for k, v in pairs.items()})
        for label, _, seed in networks
        for layer, test_error, pairs in saved[f"{label} {seed}"]
    ]


def _pair(value: float, error: float | None) -> tuple[float, float]:
    """A measure and its error, which may be unknown."""
    return value, np.nan if error is None else error


def _measure(settings, task, params, stats) -> list[tuple]:
    """Layer, test error and measures of a network, and of its layers."""
    test_error = 1 - task.evaluate(params, stats)["test accuracy"]
    loss, parts = task.loss_with(stats), {}
    for name in settings.measures:
        measure = MEASURES[name].measure
        options = MEASURES[name].options(settings) | {"batches": task.sets["train"]}
        found = {WHOLE: measure(loss, params, **options)}
        if settings.per_layer:
            found |= per_layer(measure, loss, params, **options)
        for layer, (value, error, *_) in found.items():
            parts.setdefault(layer, {})[name] = value, error
            if not np.isfinite(value):
                raise ValueError(
                    f"the measure {name} is {value}: the loss is not finite so far from"
                    " the network"
                )
    return [(part, test_error, values) for part, values in parts.items()]


def cells(measures: Sequence[str], rows: list[Row]) -> list[list[str]]:
    """The lines of the table: a header, a line for each measure, then by layer."""
    networks = list(dict.fromkeys(row.network for row in rows))
    lines = [["", *networks, "τ"]]
    for layer in dict.fromkeys(row.layer for row in rows):
        here = [row for row in rows if row.layer == layer]
        test_errors = [row.test_error for row in here]
        if layer == WHOLE:
            percent = [(100 * error, np.nan) for error in test_errors]
            lines.append(["test error (%)", *_by_network(here, percent), ""])
        else:
            lines.append([layer])
        for name in measures:
            pairs = [row.measures[name] for row in here]
            correlation = ""
            if len(here) >= 3:
                values = [value for value, _ in pairs]
                found: Any = scipy.stats.kendalltau(values, test_errors)
                correlation = f"{found.statistic:+.2f}"
            label = MEASURES[name].label
            lines.append([label, *_by_network(here, pairs), correlation])
    return lines


def _by_network(rows: list[Row], pairs: list[tuple[float, float]]) -> list[str]:
    """Mean and error of the values of each network's rows."""
    grouped: dict[str, list[tuple[float, float]]] = {}
    for row, pair in zip(rows, pairs, strict=True):
        grouped.setdefault(row.network, []).append(pair)
    return [
        to_first_digit(
            *(mean_and_error(np.array(each)[:, 0]) if len(each) > 1 else each[0])
        )
        for each in grouped.values()
    ]


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
            depth=min(DEPTH, optax.tree.size(params)),
            batches=batches,
        )
        for label, (loss, params, batches) in networks.items()
    }
    return plot_density(densities, colors=colors(checkpoints)).figure


def _flat(row: Row) -> dict[str, Any]:
    """A row of the CSV file."""
    values = row._asdict()
    for name, (value, error) in values.pop("measures").items():
        values |= {name: value, f"{name}_error": error}
    return values
