"""`smoothout compare`: trains methods from the same seeds, and compares them."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from smoothout_jax import _checks
from smoothout_jax.experiments import interruptions
from smoothout_jax.experiments.commands import Report
from smoothout_jax.experiments.data.datasets import held_out_for_gap, whole
from smoothout_jax.experiments.methods.table import METHODS, METHODS_HELP
from smoothout_jax.experiments.options import option
from smoothout_jax.experiments.reporting.comparison import (
    DIRECTIONS,
    Results,
    table,
    write,
)
from smoothout_jax.experiments.reporting.verdict import verdict
from smoothout_jax.experiments.settings import SharedSettings
from smoothout_jax.experiments.training.comparison import train_in_turns
from smoothout_jax.experiments.training.outcome import Guessing, measure_outcomes
from smoothout_jax.experiments.training.resuming import SavedTraining
from smoothout_jax.experiments.training.state import stack
from smoothout_jax.experiments.training.task import Task
from smoothout_jax.experiments.training.trainer import Trainer

ADVICE = (
    "interrupted: the last minute or so of training is lost; to continue, run the same"
    " command again"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareSettings(SharedSettings):
    """Settings of `smoothout compare`."""

    command: ClassVar[str] = "compare"
    group: ClassVar[str] = "run"

    methods: tuple[str, ...] = option(
        ("sgd", "smoothout", "adasmoothout", "sam"),
        "methods to compare; SGD, the baseline of the paired differences, always runs:"
        f" {METHODS_HELP}",
        "METHOD",
        choices=METHODS,
        common=True,
    )
    seeds: int = option(
        10,
        "number of seeds, at least 2; a seed fixes initial parameters and batches",
        common=True,
    )
    retrain: bool = option(
        False,
        "train the methods that follow the gap twice, the second time on all images,"
        " the held-out ones among them, with the rise that the first time had; the"
        " other methods then have all images too",
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
        common=True,
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
        if self.retrain and not self.needs_heldout:
            raise ValueError(
                "retrain needs loss_rise=gap, and images held out for it beside those"
                f" of watch_size={self.watch_size}"
            )

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """The seeds that networks are trained from."""
        return tuple(range(self.seeds))

    @property
    def title(self) -> str:
        """Data, network, batch size, length and seeds."""
        length = f"{self.steps} steps" if self.steps else f"{self.epochs:g} epochs"
        return (
            f"{self.data}, {self.network}, batches of {self.batch_size}, {length},"
            f" {self.seeds} seeds"
        )


def run(settings: CompareSettings) -> Report:
    """Runs `smoothout compare`: the table to print, and the paths written."""
    results = compare(settings)
    outcomes = results.outcomes
    failed = results.diverged.keys() | results.unlearned.keys()
    conclusion = verdict(
        {
            n: 100 * each.test_accuracy
            for n, each in outcomes.items()
            if n not in failed
        },
        float(np.mean(outcomes["sgd"].train_accuracy)),
        {name: METHODS[name].label for name in outcomes},
    )
    paths = write(results)
    return Report(table(results), paths, results.fault, results.warning, conclusion)


def compare(
    settings: CompareSettings,
    strengths: Mapping[str, float] | None = None,
    learning_rates: Mapping[str, float] | None = None,
    *,
    curves: bool = True,
) -> Results:
    """Trains every method from every seed, and measures what they reached.

    `strengths` and `learning_rates`, by method, override those of the settings.
    `curves` adds the loss along random lines, which takes longest to measure.
    """
    strengths, rates = strengths or {}, learning_rates or {}
    data = whole(settings)
    heldout = held_out_for_gap(data, settings)

    @functools.cache
    def task_at(rate: float, all_images: bool) -> Task:
        changed = dataclasses.replace(settings, learning_rate=rate)
        return Task(changed, data=data if all_images else heldout)

    def trainer(name: str, all_images: bool, strengths: Any) -> Trainer:
        task = task_at(rates.get(name, settings.learning_rate), all_images)
        slower = METHODS[name].gradients if settings.equal_gradients else 1
        whole_length = task_at(settings.learning_rate, settings.retrain).steps
        steps = max(1, whole_length // slower)
        return Trainer(METHODS[name], task, settings.all_seeds, strengths, steps)

    trainers = {}
    for name in settings.methods:
        given = [strengths[name]] * settings.seeds if name in strengths else None
        if settings.retrain and METHODS[name].follows_gap(settings):
            first = trainer(name, False, given)
            given = train_in_turns({name: first})[name].noise["loss_rise_target"]
        trainers[name] = trainer(name, settings.retrain, given)
    asked = [settings.to_json(), dict(strengths), dict(rates)]
    kept = SavedTraining(settings.output, json.loads(json.dumps(asked)))
    interruptions.advise(ADVICE)
    training = train_in_turns(trainers, kept)
    networks = {name: trainer.networks() for name, trainer in trainers.items()}
    task = task_at(settings.learning_rate, settings.retrain)
    outcomes = measure_outcomes(
        task,
        networks,
        noise_radius=settings.noise_radius,
        noise_samples=settings.noise_samples,
        directions=DIRECTIONS if curves else 0,
    )
    return Results(
        settings=settings,
        networks={name: stack(each) for name, each in networks.items()},
        outcomes=outcomes,
        training=training,
        guessing=Guessing.on(task),
        data=task.about,
    )
