"""What a comparison found, as a table, as files and as pictures."""

import csv
import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import scipy.stats
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from smoothout_jax._files import whole_file
from smoothout_jax.experiments.commands.compare import (
    DIRECTIONS,
    DISTANCES,
    Results,
    compare,
)
from smoothout_jax.experiments.methods.table import METHODS
from smoothout_jax.experiments.reporting.provenance import provenance
from smoothout_jax.experiments.settings import Settings
from smoothout_jax.experiments.training.checkpoints import save_checkpoint

# Okabe and Ito's colours, told apart by readers of every colour vision.
COLORS = {
    "sgd": "#000000",
    "smoothout": "#56b4e9",
    "adasmoothout": "#0072b2",
    "sam": "#d55e00",
    "msam": "#e69f00",
    "smoothout-split": "#44cfa6",
    "adasmoothout-split": "#009e73",
    "two-sided": "#cc79a7",
    "mix": "#8c564b",
    "gaussian": "#7f3c8d",
    "no-denoising": "#999999",
    "sgd-split": "#555555",
}


def run(settings: Settings) -> tuple[Table, list[Path]]:
    """Runs `smoothout compare`: the table to print, and the paths written."""
    results = compare(settings)
    return table(results), write(results)


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Mean over the seeds and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def paired_difference(
    values: np.ndarray, baseline: np.ndarray
) -> tuple[float, float, float]:
    """Mean difference of pairs, and the ends of its 95 % interval by Student's t."""
    mean, error = mean_and_error(values - baseline)
    half_width = scipy.stats.t.ppf(0.975, len(values) - 1) * error
    return mean, float(mean - half_width), float(mean + half_width)


def summary(results: Results) -> dict[str, dict[str, Any]]:
    """The figures of the table, by method; accuracies in percent, losses in nats."""
    baseline = results.outcomes["sgd"]
    return {
        name: {
            "test_accuracy": mean_and_error(100 * outcome.test_accuracy),
            "difference_to_sgd": paired_difference(
                100 * outcome.test_accuracy, 100 * baseline.test_accuracy
            ),
            "train_accuracy": mean_and_error(100 * outcome.train_accuracy),
            "loss_rise": mean_and_error(outcome.loss_rise),
            "relative_step_time": results.relative_time(name),
        }
        for name, outcome in results.outcomes.items()
    }


def table(results: Results) -> Table:
    """The table that the command prints, of at most 80 columns."""
    settings = results.settings
    table = Table(
        title=title(settings),
        caption="Accuracies in percent, mean ± standard error over the seeds; paired"
        " difference with its 95 % interval. Loss rise: mean rise of the training loss"
        f" (nats) under uniform noise of {settings.noise_radius:g} times each filter's"
        " norm. Time: of a step, SGD's being 1.",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=0,
    )
    table.add_column("method", no_wrap=True)
    for heading in ("test", "difference to SGD", "train", "loss rise", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in summary(results).items():
        difference = "{:+.2f} [{:+.2f}, {:+.2f}]".format(*row["difference_to_sgd"])
        table.add_row(
            METHODS[name].label,
            "{:.2f} ± {:.2f}".format(*row["test_accuracy"]),
            "" if name == "sgd" else difference,
            "{:.2f}".format(row["train_accuracy"][0]),
            "{:.3g}".format(row["loss_rise"][0]),
            "{:.2f}".format(row["relative_step_time"]),
        )
    return table


def title(settings: Settings) -> str:
    """Data, network, batch size, length and seeds of a comparison."""
    length = (
        f"{settings.steps} steps"
        if settings.steps is not None
        else f"{settings.epochs:g} epochs"
    )
    return (
        f"{settings.data}, {settings.network}, batches of {settings.batch_size},"
        f" {length}, {settings.seeds} seeds"
    )


def write(results: Results) -> list[Path]:
    """Writes the results, pictures and last parameters to the output folder.

    Each file or checkpoint replaces an earlier one whole, once it is complete.

    Returns:
        The paths: `settings.json`, which repeat the comparison, `results.csv`,
        `results.json`, the pictures and `checkpoints`, a folder with a checkpoint of
        each method.
    """
    writers = {
        "settings.json": _write_settings,
        "results.csv": _write_csv,
        "results.json": _write_json,
        "accuracy.png": _draw_accuracies,
        "landscape.png": _draw_landscape,
    }
    paths = []
    for name, write_file in writers.items():
        path = results.settings.output / name
        with whole_file(path) as unfinished:
            write_file(results, unfinished)
        paths.append(path)
    checkpoints = results.settings.output / "checkpoints"
    for name, (params, stats) in results.networks.items():
        save_checkpoint(
            checkpoints / name, name, results.settings, params=params, stats=stats
        )
    return [*paths, checkpoints]


def scalars(outcome) -> dict[str, np.ndarray]:
    """The measures of an outcome that are one number a seed."""
    return {
        name: values
        for name, values in outcome._asdict().items()
        if name != "loss_curve"
    }


def _write_settings(results: Results, path: Path) -> None:
    path.write_text(json.dumps(results.settings.to_json(), indent=1) + "\n")


def _write_csv(results: Results, path: Path) -> None:
    """One row for each method and seed."""
    rows = [
        {"method": name, "seed": seed}
        | {key: float(values[seed]) for key, values in scalars(outcome).items()}
        for name, outcome in results.outcomes.items()
        for seed in range(results.settings.seeds)
    ]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def _write_json(results: Results, path: Path) -> None:
    """Everything: settings, seeds, versions, machine, summary and raw figures."""
    document = provenance() | {
        "settings": results.settings.to_json(),
        "seeds": list(range(results.settings.seeds)),
        "summary": summary(results),
        "seconds_per_step": {k: v.tolist() for k, v in results.seconds.items()},
        "outcomes": {
            name: {key: values.tolist() for key, values in outcome._asdict().items()}
            for name, outcome in results.outcomes.items()
        },
        "loss_curve_distances": DISTANCES.tolist(),
    }
    path.write_text(json.dumps(document, indent=1) + "\n")


def _figure(size: tuple[float, float]) -> Figure:
    with matplotlib.rc_context({"font.size": 11}):
        return Figure(figsize=size, layout="constrained")


def _draw_accuracies(results: Results, path: Path) -> None:
    """Test accuracy of each seed, and the mean with its 95 % interval."""
    figure = _figure((6.4, 4))
    axes = figure.subplots()
    spread = np.linspace(-0.18, 0.18, results.settings.seeds)
    for row, (name, outcome) in enumerate(results.outcomes.items()):
        accuracy = 100 * outcome.test_accuracy
        mean, low, high = paired_difference(accuracy, np.zeros_like(accuracy))
        axes.plot(row + spread, accuracy, "o", ms=4, alpha=0.4, color=COLORS[name])
        axes.errorbar(
            row,
            mean,
            [[mean - low], [high - mean]],
            fmt="D",
            ms=7,
            lw=2,
            capsize=5,
            color=COLORS[name],
            mec="white",
        )
        axes.annotate(
            f"{mean:.2f}", (row + 0.24, mean), va="center", color=COLORS[name]
        )
    axes.set_xticks(
        range(len(results.outcomes)), [METHODS[name].label for name in results.outcomes]
    )
    axes.set_xlim(-0.5, len(results.outcomes) - 0.3)
    axes.set_ylabel("test accuracy (%)")
    axes.set_title(
        f"{results.settings.data}, {results.settings.seeds} seeds: each seed, mean and"
        " 95 % interval",
        fontsize=11,
    )
    axes.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=150, format="png")


def _draw_landscape(results: Results, path: Path) -> None:
    """Training loss along random directions: mean over seeds, and their quartiles."""
    figure = _figure((6.4, 4))
    axes = figure.subplots()
    for name, outcome in results.outcomes.items():
        low, high = np.quantile(outcome.loss_curve, [0.25, 0.75], axis=0)
        axes.fill_between(DISTANCES, low, high, color=COLORS[name], alpha=0.15, lw=0)
        axes.plot(
            DISTANCES,
            np.median(outcome.loss_curve, axis=0),
            color=COLORS[name],
            lw=2,
            label=METHODS[name].label,
        )
    axes.set_xlabel("distance from the minimum / norm of each filter")
    axes.set_ylabel("training loss (nats)")
    axes.set_title(
        f"Loss along {DIRECTIONS} random directions: median and quartiles of"
        f" {results.settings.seeds} seeds",
        fontsize=11,
    )
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150, format="png")
