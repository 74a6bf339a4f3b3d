"""Results of `smoothout compare`: table, files and figures."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from smoothout_jax.experiments.methods.table import METHODS
from smoothout_jax.experiments.reporting import figures
from smoothout_jax.experiments.reporting.files import provenance, write_csv, write_json
from smoothout_jax.experiments.reporting.statistics import (
    mean_and_error,
    paired_difference,
    with_error,
    with_interval,
)
from smoothout_jax.experiments.reporting.tables import terminal_table
from smoothout_jax.experiments.training.checkpoints import save_checkpoint
from smoothout_jax.experiments.training.comparison import Training
from smoothout_jax.experiments.training.outcome import DISTANCES, Guessing, Outcome
from smoothout_jax.experiments.training.resuming import delete_saved_training

DIRECTIONS = 3


@dataclasses.dataclass(frozen=True)
class Results:
    """The results of a comparison.

    Attributes:
        settings: the settings of the comparison.
        networks: parameters and BatchNorm statistics by method, all seeds along a
            leading axis.
        outcomes: what each method reached.
        training: how training went, by method.
        guessing: what guessing reaches on the training images.
        data: what the use of a network needs to know of the data.
    """

    settings: Any
    networks: dict[str, Any]
    outcomes: dict[str, Outcome]
    training: dict[str, Training]
    guessing: Guessing = Guessing()  # noqa: RUF009
    data: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def diverged(self) -> dict[str, list[int]]:
        """The seeds from which the training of a method diverged, by its name."""
        return self._seeds(
            {name: ~np.isfinite(each.test_loss) for name, each in self.outcomes.items()}
        )

    @property
    def unlearned(self) -> dict[str, list[int]]:
        """The seeds from which a method did not learn, but did not diverge either."""
        beaten = self.guessing.beaten_by
        return self._seeds(
            {
                name: ~beaten(outcome.train_loss, outcome.train_accuracy)
                for name, outcome in self.sound.items()
            }
        )

    def _seeds(self, where: Mapping[str, np.ndarray]) -> dict[str, list[int]]:
        found = {
            name: [self.settings.all_seeds[i] for i in np.flatnonzero(true)]
            for name, true in where.items()
        }
        return {name: seeds for name, seeds in found.items() if seeds}

    @property
    def fault(self) -> str:
        """Which methods diverged, and what to change; empty if none did."""
        return "; ".join(
            f"{METHODS[name].label} diverged from {self._listed(seeds)}:"
            f" {METHODS[name].what_to_lower(self.settings)}"
            for name, seeds in self.diverged.items()
        )

    @property
    def warning(self) -> str:
        """Which methods did not learn, and what to change; empty if all did."""
        return "; ".join(
            f"{METHODS[name].label} did not learn from {self._listed(seeds)}: "
            + METHODS[name].how_to_learn(
                self.settings,
                float(self.outcomes[name].train_loss.max()),
                self.guessing.loss,
            )
            for name, seeds in self.unlearned.items()
        )

    def _listed(self, seeds: list[int]) -> str:
        numbers = " ".join(map(str, seeds))
        return f"{len(seeds)} of {self.settings.seeds} seeds ({numbers})"

    @property
    def sound(self) -> dict[str, Outcome]:
        """What the methods reached that did not diverge from any seed."""
        return {k: v for k, v in self.outcomes.items() if k not in self.diverged}


def summary(results: Results) -> dict[str, dict[str, Any]]:
    """The figures of the table, by method; accuracies in percent, losses in nats.

    A method that diverged has the seeds from which it did instead of an accuracy, as a
    mean of the others would be misleading. Times are those of a step, relative to SGD's
    in the same round.
    """
    found, plain = {}, results.training["sgd"].seconds
    for name in results.outcomes:
        row: dict[str, Any] = {"diverged": results.diverged.get(name)}
        if name in results.sound:
            row = _figures_of(results, name) | results.training[name].noise_at_end
        if name in results.unlearned:
            row["did_not_learn"] = results.unlearned[name]
        time = float(np.median(results.training[name].seconds / plain))
        found[name] = row | {"relative_step_time": time}
    return found


def _figures_of(results: Results, name: str) -> dict[str, Any]:
    outcome, baseline = results.outcomes[name], results.sound.get("sgd")
    accuracy = 100 * outcome.test_accuracy
    found = {
        "test_accuracy": mean_and_error(accuracy),
        "difference_to_sgd": baseline
        and paired_difference(accuracy, 100 * baseline.test_accuracy),
        "train_accuracy": mean_and_error(100 * outcome.train_accuracy),
        "loss_rise": mean_and_error(outcome.loss_rise),
    }
    for each in ("memorised", "lost_at_8_bits", "lost_at_4_bits", "lost_under_noise"):
        values = 100 * getattr(outcome, each)
        if np.isfinite(values).all():
            found[each] = mean_and_error(values)
    if results.settings.watch_size:
        ours, plain = (100 * results.training[n].best_accuracy for n in (name, "sgd"))
        found["best_accuracy"] = mean_and_error(ours)
        found["best_difference_to_sgd"] = paired_difference(ours, plain)
    return found


# Columns of the table that depend on the settings: the figure, and its format.
_COLUMNS = {
    "rise": ("loss_rise", ".3g"),
    "memorised": ("memorised", ".1f"),
    "radius": ("radius", ".2g"),
    "best": ("best_accuracy", ".2f"),
}


def table(results: Results) -> Table:
    """The table that the command prints."""
    settings, rows = results.settings, summary(results)
    if settings.label_noise:
        chosen = {"memorised": "Memorised: wrong labels that the network repeats."}
    else:
        noise = f"uniform noise of {settings.noise_radius:g} times each filter's norm"
        chosen = {"rise": f"Rise: mean rise of the training loss (nats) under {noise}."}
    if settings.watch_size:
        images = f"the {settings.watch_size} watched images"
        chosen["best"] = f"Best: test accuracy when that on {images} was highest."
    else:
        chosen["radius"] = "Radius: size of the noise at the end, if the rise sets it."
    return terminal_table(
        settings.title,
        [_cells(rows, name, chosen) for name in rows],
        header=["method", "test", "difference to SGD", "train", *chosen, "time"],
        caption="Accuracies in percent, mean ± standard error over the seeds; paired"
        f" difference with its 95 % interval. {' '.join(chosen.values())} Time: of a"
        " step, relative to SGD's.",
    )


def _cells(rows: Mapping[str, Any], name: str, chosen: Iterable[str]) -> list[str]:
    row, label = rows[name], METHODS[name].label
    time = f"{row['relative_step_time']:.2f}"
    if fault := fault_of(row):
        return [label, fault, "", "", "", "", time]
    difference = "" if name == "sgd" else difference_to_sgd(rows, name)
    return [
        label,
        with_error(row["test_accuracy"]),
        difference and with_interval(difference),
        f"{row['train_accuracy'][0]:.2f}",
        *(_written(row, *_COLUMNS[column]) for column in chosen),
        time,
    ]


def _written(row: Mapping[str, Any], key: str, form: str) -> str:
    """A figure, the mean alone of those that have an error; empty if it is missing."""
    return f"{np.ravel(row[key])[0]:{form}}" if key in row else ""


def fault_of(row: Mapping[str, Any]) -> str:
    """What replaces the figures of a method in a table; empty if they are sound."""
    if "diverged" in row:
        return "diverged"
    return "did not learn" if "did_not_learn" in row else ""


def difference_to_sgd(rows: Mapping[str, Any], name: str) -> Any:
    """The difference of a method to SGD; empty where SGD has no accuracy."""
    return "" if fault_of(rows["sgd"]) else rows[name]["difference_to_sgd"]


def write(results: Results) -> list[Path]:
    """Writes the results, figures and networks to the output folder; the paths."""
    settings, output = results.settings, results.settings.output
    paths = [
        write_json(output / "settings.json", settings.of_the_run()),
        write_csv(output / "results.csv", _rows(results)),
        write_json(output / "results.json", _document(results)),
    ]
    for name, figure in _figures(results).items():
        paths += figures.save_figure(figure, output / name, ("png",))
    for name, (params, stats) in results.networks.items():
        about = {
            "command": settings.command,
            "method": name,
            "settings": settings.to_json(),
            "data": results.data,
        }
        path = output / "checkpoints" / name
        save_checkpoint(path, about, params=params, stats=stats)
    delete_saved_training(output)
    return [*paths, output / "checkpoints"]


def _rows(results: Results) -> list[dict[str, Any]]:
    """One for each method and seed."""
    return [
        {"method": name, "seed": seed}
        | {
            key: float(values[seed]) if np.isfinite(values[seed]) else ""
            for key, values in outcome.scalars.items()
        }
        for name, outcome in results.outcomes.items()
        for seed in results.settings.all_seeds
    ]


def _document(results: Results) -> dict[str, Any]:
    """Everything: settings, seeds, versions, machine, summary and raw figures."""
    training, outcomes = results.training.items(), results.outcomes.items()
    return provenance() | {
        "settings": results.settings.to_json(),
        "seeds": list(results.settings.all_seeds),
        "summary": summary(results),
        "seconds_per_step": {name: each.seconds for name, each in training},
        "noise": {
            name: {"steps": each.steps} | each.noise
            for name, each in training
            if each.noise
        },
        "outcomes": {name: outcome._asdict() for name, outcome in outcomes},
        "loss_curve_distances": DISTANCES,
    }


def _figures(results: Results) -> dict[str, figures.Figure]:
    settings, sound = results.settings, results.sound
    if not sound:
        return {}
    found = {
        "accuracy": figures.accuracies(
            {name: 100 * each.test_accuracy for name, each in sound.items()},
            f"{settings.data}, {settings.seeds} seeds: each seed, mean and 95 %"
            " interval",
        ),
        "landscape": figures.loss_curves(
            DISTANCES,
            {name: each.loss_curve for name, each in sound.items()},
            f"Loss along {DIRECTIONS} random directions: median and quartiles of"
            f" {settings.seeds} seeds",
        ),
    }
    held = {
        name: (each.steps, each.noise)
        for name, each in results.training.items()
        if each.noise and name in sound
    }
    if held:
        title = "How strong the noise was: median and quartiles of the seeds"
        found["noise"] = figures.noises(held, title)
    return found
