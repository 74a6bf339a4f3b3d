"""What `smoothout compare` found: its table, its files and its figures."""

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smoothout_jax._files import whole_file
from smoothout_jax.experiments.commands import advice
from smoothout_jax.experiments.methods.table import METHODS
from smoothout_jax.experiments.reporting import figures
from smoothout_jax.experiments.reporting.formats import (
    json_text,
)
from smoothout_jax.experiments.reporting.provenance import provenance
from smoothout_jax.experiments.reporting.statistics import (
    mean_and_error,
    paired_difference,
)
from smoothout_jax.experiments.training.checkpoints import save_checkpoint
from smoothout_jax.experiments.training.comparison import DISTANCES, Outcome, Training
from smoothout_jax.experiments.training.guessing import Guessing
from smoothout_jax.experiments.training.kept import remove_kept

if TYPE_CHECKING:
    from smoothout_jax.experiments.commands.compare import CompareSettings

DIRECTIONS = 3


@dataclasses.dataclass(frozen=True)
class Results:
    """The results of a comparison.

    Attributes:
        settings: its settings.
        networks: parameters and BatchNorm statistics by the method's name, all seeds
            along a leading axis.
        outcomes: what each method reached, by its name.
        training: how training went, by the method's name.
        guessing: what guessing reaches on the training images.
    """

    settings: "CompareSettings"
    networks: dict[str, Any]
    outcomes: dict[str, Outcome]
    training: dict[str, Training]
    guessing: Guessing = Guessing()  # noqa: RUF009

    def relative_time(self, method: str) -> float:
        """Median over rounds of the step time relative to SGD's in the same round."""
        seconds, plain = (self.training[name].seconds for name in (method, "sgd"))
        return float(np.median(seconds / plain))

    @property
    def held(self) -> dict[str, Training]:
        """How training of the methods went that hold the rise of the loss."""
        return {name: each for name, each in self.training.items() if each.radius.size}

    @property
    def diverged(self) -> dict[str, list[int]]:
        """The seeds from which the training of a method diverged, by its name."""
        return self._seeds(lambda outcome: ~np.isfinite(outcome.test_loss))

    @property
    def unlearned(self) -> dict[str, list[int]]:
        """The seeds from which a method did not learn, but did not diverge either."""
        found = self._seeds(
            lambda each: ~self.guessing.beaten_by(each.train_loss, each.train_accuracy)
        )
        return {k: seeds for k, seeds in found.items() if k not in self.diverged}

    def _seeds(self, where: Callable[[Outcome], np.ndarray]) -> dict[str, list[int]]:
        found = {
            name: [self.settings.all_seeds[i] for i in np.flatnonzero(where(outcome))]
            for name, outcome in self.outcomes.items()
        }
        return {name: seeds for name, seeds in found.items() if seeds}

    @property
    def fault(self) -> str:
        """Which methods diverged, and what to change; empty if none did."""
        return "; ".join(
            f"{METHODS[name].label} diverged from {self._number(seeds)}:"
            f" {advice.lower(METHODS[name], self.settings)}"
            for name, seeds in self.diverged.items()
        )

    @property
    def warning(self) -> str:
        """Which methods did not learn, and what to change; empty if all did."""
        told = []
        for name, seeds in self.unlearned.items():
            method, loss = METHODS[name], float(self.outcomes[name].train_loss.max())
            reason = advice.to_learn(method, self.settings, loss, self.guessing.loss)
            told.append(
                f"{method.label} did not learn from {self._number(seeds)}: {reason}"
            )
        return "; ".join(told)

    def best(self, method: str) -> dict[str, tuple[float, ...]]:
        """Accuracy when that on the watched images was highest, if any are watched."""
        if not self.settings.watch_size:
            return {}
        ours, plain = (100 * self.training[n].best_accuracy for n in (method, "sgd"))
        return {
            "best_accuracy": mean_and_error(ours),
            "best_difference_to_sgd": paired_difference(ours, plain),
        }

    def _number(self, seeds: list[int]) -> str:
        numbers = " ".join(map(str, seeds))
        return f"{len(seeds)} of {self.settings.seeds} seeds ({numbers})"

    @property
    def sound(self) -> dict[str, Outcome]:
        """What the methods reached that diverged from no seed."""
        return {k: v for k, v in self.outcomes.items() if k not in self.diverged}


def summary(results: Results) -> dict[str, dict[str, Any]]:
    """The figures of the table, by method; accuracies in percent, losses in nats.

    Of a method that diverged, the seeds from which it did, and no accuracy: a mean of
    the others would tell of another method. Of a method that did not learn, the seeds
    besides.
    """
    baseline, unlearned = results.sound.get("sgd"), results.unlearned
    return {
        name: (
            {"diverged": results.diverged[name]}
            if name in results.diverged
            else _figures_of(outcome, baseline)
            | results.training[name].noise_at_end
            | results.best(name)
        )
        | ({"did_not_learn": unlearned[name]} if name in unlearned else {})
        | {"relative_step_time": results.relative_time(name)}
        for name, outcome in results.outcomes.items()
    }


def _figures_of(outcome: Outcome, baseline: Outcome | None) -> dict[str, Any]:
    difference = None
    if baseline is not None:
        difference = paired_difference(
            100 * outcome.test_accuracy, 100 * baseline.test_accuracy
        )
    figures = {
        "test_accuracy": mean_and_error(100 * outcome.test_accuracy),
        "difference_to_sgd": difference,
        "train_accuracy": mean_and_error(100 * outcome.train_accuracy),
        "loss_rise": mean_and_error(outcome.loss_rise),
    }
    for name in ("memorised", "lost_at_8_bits", "lost_at_4_bits", "lost_under_noise"):
        values = 100 * getattr(outcome, name)
        if np.isfinite(values).all():
            figures[name] = mean_and_error(values)
    return figures


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
    remove_kept(output)
    return [*paths, output / "checkpoints"]


def _write_settings(results: Results, path: Path) -> None:
    path.write_text(json.dumps(results.settings.to_json(), indent=1) + "\n")


def _write_csv(results: Results, path: Path) -> None:
    """One row for each method and seed."""
    rows = [
        {"method": name, "seed": seed}
        | {
            key: float(values[seed]) if np.isfinite(values[seed]) else ""
            for key, values in outcome.scalars.items()
        }
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
            name: {"steps": each.steps.tolist()}
            | {key: values.tolist() for key, values in each.noise.items()}
            for name, each in results.held.items()
        },
        "outcomes": {
            name: {key: values.tolist() for key, values in outcome._asdict().items()}
            for name, outcome in results.outcomes.items()
        },
        "loss_curve_distances": DISTANCES.tolist(),
    }
    path.write_text(json_text(document))


def _figures(results: Results) -> dict[str, figures.Figure]:
    settings, outcomes = results.settings, results.sound
    if not outcomes:
        return {}
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
    values = {
        name: (each.steps, each.noise)
        for name, each in results.held.items()
        if name in results.sound
    }
    if not values:
        return {}
    title = "How strong the noise was: median and quartiles of the seeds"
    return {"noise": figures.noises(values, title)}
