"""`smoothout compare`: trains methods from the same seeds, and compares them."""

import csv
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from rich.table import Table

from smoothout_jax import _checks
from smoothout_jax._extras import progress
from smoothout_jax._files import whole_file
from smoothout_jax.experiments.methods.table import METHODS, METHODS_HELP
from smoothout_jax.experiments.options import option
from smoothout_jax.experiments.reporting import figures
from smoothout_jax.experiments.reporting.formats import with_error, with_interval
from smoothout_jax.experiments.reporting.provenance import provenance
from smoothout_jax.experiments.reporting.statistics import (
    mean_and_error,
    paired_difference,
)
from smoothout_jax.experiments.reporting.tables import terminal_table
from smoothout_jax.experiments.settings import SharedSettings
from smoothout_jax.experiments.training.checkpoints import save_checkpoint
from smoothout_jax.experiments.training.comparison import (
    DISTANCES,
    Measurement,
    Outcome,
    Training,
    train_in_turns,
)
from smoothout_jax.experiments.training.task import Task
from smoothout_jax.experiments.training.trainer import Trainer, stack

DIRECTIONS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareSettings(SharedSettings):
    """Settings of `smoothout compare`.

    Raises:
        TypeError, ValueError: if a value is out of its range, or two values conflict.
    """

    command: ClassVar[str] = "compare"

    methods: tuple[str, ...] = option(
        ("sgd", "smoothout", "adasmoothout", "sam"),
        "methods to compare; SGD, the baseline of the paired differences, always runs:"
        f" {METHODS_HELP}",
        "METHOD",
        choices=METHODS,
    )
    seeds: int = option(
        10, "number of seeds, at least 2; a seed fixes initial parameters and batches"
    )
    equal_gradients: bool = option(
        False,
        "give methods that take two gradients a step half the steps, so that all take"
        " about the same time",
    )
    noise_radius: float = option(
        0.5, "relative radius of the noise under which the rise of the loss is measured"
    )
    noise_samples: int = option(50, "samples of that noise for each network")
    output: Path = option(
        Path("smoothout-results"),
        "folder for the results and pictures",
        "FOLDER",
        machine=True,
    )

    def __post_init__(self):
        super().__post_init__()
        chosen = tuple(name for name in METHODS if name in ("sgd", *self.methods))
        self._set(methods=chosen)
        _checks.count(seeds=self.seeds, noise_samples=self.noise_samples)
        _checks.nonnegative(noise_radius=self.noise_radius)
        if self.seeds < 2:
            raise ValueError(
                f"seeds must be at least 2 for a standard error, got {self.seeds}"
            )
        self.check_parts(*chosen)

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """The seeds that networks are trained from."""
        return tuple(range(self.seeds))

    @property
    def title(self) -> str:
        """Data, network, batch size, length and seeds."""
        length = (
            f"{self.steps} steps"
            if self.steps is not None
            else f"{self.epochs:g} epochs"
        )
        return (
            f"{self.data}, {self.network}, batches of {self.batch_size}, {length},"
            f" {self.seeds} seeds"
        )


@dataclasses.dataclass(frozen=True)
class Results:
    """The results of a comparison.

    Attributes:
        settings: its settings.
        networks: parameters and BatchNorm statistics by the method's name, all seeds
            along a leading axis.
        outcomes: what each method reached, by its name.
        training: how training went, by the method's name.
    """

    settings: CompareSettings
    networks: dict[str, Any]
    outcomes: dict[str, Outcome]
    training: dict[str, Training]

    def relative_time(self, method: str) -> float:
        """Median over rounds of the step time relative to SGD's in the same round."""
        seconds, plain = (self.training[name].seconds for name in (method, "sgd"))
        return float(np.median(seconds / plain))

    @property
    def held(self) -> dict[str, Training]:
        """How training of the methods went that hold the rise of the loss."""
        return {name: each for name, each in self.training.items() if each.radius.size}


def run(settings: CompareSettings) -> tuple[Table, list[Path]]:
    """Runs `smoothout compare`: the table to print, and the paths written."""
    results = compare(settings)
    return table(results), write(results)


def compare(
    settings: CompareSettings,
    strengths: Mapping[str, float] | None = None,
    *,
    curves: bool = True,
) -> Results:
    """Trains every method from every seed, and measures what they reached.

    Args:
        settings: the settings.
        strengths: strengths of methods, by name, instead of those of the settings.
        curves: whether to measure the loss along lines too, which takes longest.
    """
    task, strengths = Task(settings), strengths or {}
    trainers = {
        name: Trainer(
            METHODS[name],
            task,
            settings.all_seeds,
            [strengths[name]] * settings.seeds if name in strengths else None,
            steps=_num_steps(settings, task, name),
        )
        for name in settings.methods
    }
    training = train_in_turns(trainers)
    networks = {name: trainer.networks() for name, trainer in trainers.items()}
    measure = Measurement(
        task,
        settings.noise_radius,
        settings.noise_samples,
        DIRECTIONS if curves else 0,
    )
    with progress("measuring", total=len(networks) * settings.seeds) as bar:
        outcomes = {name: measure(each, bar) for name, each in networks.items()}
    return Results(
        settings=settings,
        networks={name: stack(each) for name, each in networks.items()},
        outcomes=outcomes,
        training=training,
    )


def _num_steps(settings: CompareSettings, task: Task, method: str) -> int:
    if not settings.equal_gradients:
        return task.steps
    return max(1, task.steps // METHODS[method].gradients)


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
        | results.training[name].noise_at_end
        for name, outcome in results.outcomes.items()
    }


def table(results: Results) -> Table:
    """The table that the command prints, at most 80 columns wide."""
    settings = results.settings
    return terminal_table(
        settings.title,
        [
            (
                METHODS[name].label,
                with_error(row["test_accuracy"]),
                "" if name == "sgd" else with_interval(row["difference_to_sgd"]),
                "{:.2f}".format(row["train_accuracy"][0]),
                "{:.3g}".format(row["loss_rise"][0]),
                "{:.2g}".format(row["radius"]) if "radius" in row else "",
                "{:.2f}".format(row["relative_step_time"]),
            )
            for name, row in summary(results).items()
        ],
        header=(
            "method",
            "test",
            "difference to SGD",
            "train",
            "rise",
            "radius",
            "time",
        ),
        caption="Accuracies in percent, mean ± standard error over the seeds; paired"
        " difference with its 95 % interval. Rise: mean rise of the training loss"
        f" (nats) under uniform noise of {settings.noise_radius:g} times each filter's"
        " norm. Radius: of the noise at the end, where the rise of the loss decides."
        " Time: of a step, relative to SGD's.",
    )


def write(results: Results) -> list[Path]:
    """Writes the results, figures and networks to the output folder.

    Each file or checkpoint replaces an earlier one once it is complete.

    Returns:
        The paths: `settings.json`, which repeats the comparison, `results.csv`,
        `results.json`, the figures, and `checkpoints`, a folder with a checkpoint of
        each method.
    """
    settings, output = results.settings, results.settings.output
    paths = []
    writers = {
        "settings.json": _write_settings,
        "results.csv": _write_csv,
        "results.json": _write_json,
    }
    for name, write_file in writers.items():
        paths.append(output / name)
        with whole_file(paths[-1]) as unfinished:
            write_file(results, unfinished)
    for name, figure in _figures(results).items():
        paths += figures.save_figure(figure, output / name, ("png",))
    for name, (params, stats) in results.networks.items():
        about = {
            "command": settings.command,
            "method": name,
            "settings": settings.to_json(),
        }
        path = output / "checkpoints" / name
        save_checkpoint(path, about, params=params, stats=stats)
    return [*paths, output / "checkpoints"]


def _write_settings(results: Results, path: Path) -> None:
    path.write_text(json.dumps(results.settings.to_json(), indent=1) + "\n")


def _write_csv(results: Results, path: Path) -> None:
    """One row for each method and seed."""
    rows = [
        {"method": name, "seed": seed}
        | {key: float(values[seed]) for key, values in outcome.scalars.items()}
        for name, outcome in results.outcomes.items()
        for seed in results.settings.all_seeds
    ]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def _write_json(results: Results, path: Path) -> None:
    """Everything: settings, seeds, versions, machine, summary and raw figures."""
    document = provenance() | {
        "settings": results.settings.to_json(),
        "seeds": list(results.settings.all_seeds),
        "summary": summary(results),
        "seconds_per_step": {
            name: each.seconds.tolist() for name, each in results.training.items()
        },
        "noise": {
            name: {
                key: getattr(each, key).tolist()
                for key in ("steps", "radius", "loss_rise")
            }
            for name, each in results.held.items()
        },
        "outcomes": {
            name: {key: values.tolist() for key, values in outcome._asdict().items()}
            for name, outcome in results.outcomes.items()
        },
        "loss_curve_distances": DISTANCES.tolist(),
    }
    path.write_text(json.dumps(document, indent=1) + "\n")


def _figures(results: Results) -> dict[str, figures.Figure]:
    settings, outcomes = results.settings, results.outcomes
    return {
        "accuracy": figures.accuracies(
            {name: 100 * each.test_accuracy for name, each in outcomes.items()},
            f"{settings.data}, {settings.seeds} seeds: each seed, mean and 95 %"
            " interval",
        ),
        **_noise_figure(results),
        "landscape": figures.loss_curves(
            DISTANCES,
            {name: each.loss_curve for name, each in outcomes.items()},
            f"Loss along {DIRECTIONS} random directions: median and quartiles of"
            f" {settings.seeds} seeds",
        ),
    }


def _noise_figure(results: Results) -> dict[str, figures.Figure]:
    """How strong the noise was, if a method held the rise of the loss."""
    if not results.held:
        return {}
    values = {
        name: (each.steps, each.radius, each.loss_rise)
        for name, each in results.held.items()
    }
    title = "How strong the noise was: median and quartiles of the seeds"
    return {"noise": figures.noises(values, title)}
