"""The trials of an experiment: what each method chooses, on held-out training images.

First SGD tries learning rates, then the strength of the recipe, if the case has one;
then every method tries as many strengths, at SGD's best learning rate, at the default
one and at those between: with noise, other rates may be better. Where the best is at an
end of what was tried, more is tried beyond it, unless it is the lower end and no better
than SGD: weaker still, a method is SGD.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from smoothout_jax._extras import progress
from smoothout_jax.experiments import interruptions
from smoothout_jax.experiments.commands.compare import CompareSettings
from smoothout_jax.experiments.commands.unfinished import Unfinished
from smoothout_jax.experiments.methods.table import METHODS
from smoothout_jax.experiments.plans import (
    FIRST_TRIAL_SEED,
    TRIALS,
    Case,
    widened,
)
from smoothout_jax.experiments.progress import announce
from smoothout_jax.experiments.regime import LEARNING_RATES
from smoothout_jax.experiments.training.task import Task
from smoothout_jax.experiments.training.trainer import Trainer

RECIPE = "recipe"
# How many strengths are tried beyond an end.
BEYOND = 2
# Any will do: where the size of the noise is given, it is fixed, and the trials choose.
_FIXED_SIZES: dict[str, Any] = {"radius": 0.1, "relative_radius": 0.5, "std": 0.05}


def case_settings(case: Case, data_dir: Path, *, held_out: bool) -> CompareSettings:
    """Settings of the comparison, or of the trials on held-out images.

    Images that the comparison watches are those held out for the trials.
    """
    training = dict(case.training)
    watched = training.pop("watch_size", 0)
    validation_size = case.validation_size if held_out else 0
    watch_size = 0 if held_out else watched
    out = validation_size + watch_size + training.get("heldout_size", 0)
    return CompareSettings(
        **training,
        data=case.data,
        data_dir=data_dir,
        network=case.network,
        batch_size=case.batch_size or training["train_size"] - out,
        validation_size=validation_size,
        watch_size=watch_size,
        methods=case.methods,
        seeds=case.seeds,
        noise_samples=10,
        **({} if case.holds_rise else _FIXED_SIZES),
    )


def try_strengths(case: Case, data_dir: Path, kept: Unfinished) -> dict[str, Any]:
    """What each method tried and chose, by method.

    Args:
        case: the case.
        data_dir: the folder of the data sets.
        kept: the trials done already; the rest is added.

    Returns:
        The trials of the methods, and those of the recipe under `RECIPE`.
    """
    settings = case_settings(case, data_dir, held_out=True)
    began = time.monotonic()
    if "sgd" not in kept:
        kept["sgd"] = _Trials("sgd", case, Task(settings)).run(needed=False)
        _announce(case, settings, time.monotonic() - began)
    best = dataclasses.replace(settings, learning_rate=kept["sgd"]["chosen"])
    if case.recipe and RECIPE not in kept:
        kept[RECIPE] = _RecipeTrials("sgd", case, Task(best), kept["sgd"]).run()
    if case.recipe:
        best = dataclasses.replace(best, **{case.recipe: kept[RECIPE]["chosen"]})
    plain = kept[RECIPE if case.recipe else "sgd"]
    others = [name for name in settings.methods if name not in kept]
    rates = _rates(best.learning_rate, LEARNING_RATES[best.optimizer], kept["sgd"])
    tasks = _tasks(best, rates) if others else []
    for name in progress("trials", others):
        found = [
            _Trials(name, case, task, plain).run(needed=len(tasks) > 1)
            for task in tasks
        ]
        kept[name] = max(found, key=_best) | {"at_each_learning_rate": found}
    names = "sgd", *([RECIPE] if case.recipe else []), *settings.methods
    return {name: kept[name] for name in names}


def _rates(best: Any, default: float, tried: dict[str, Any]) -> tuple[float, ...]:
    """SGD's best learning rate, the default one, and those tried between the two."""
    low, high = sorted((best, default))
    between = [rate for rate in tried["strengths"] if low < rate < high]
    return tuple(dict.fromkeys((best, *between, default)))


def _grid(case: Case, setting: str, default: Any) -> list[Any]:
    """The strengths that are tried first; the default one if none are planned."""
    return [*case.trials.get(setting, TRIALS.get(setting, (default,)))]


def _announce(case: Case, settings: CompareSettings, seconds: float) -> None:
    """Says how long a case will take, from how long the trials of SGD took.

    Time goes by the number of runs, times the gradients of a step. Methods try one
    learning rate or more, and some strengths beyond the grid: two rates are counted.
    """

    def trials(name: str) -> int:
        strengths = len(_grid(case, *METHODS[name].strength_of(settings)))
        return METHODS[name].gradients * strengths * case.trial_seeds

    gradients = [METHODS[name].gradients for name in case.methods]
    halved = sum(number == 2 for number in gradients)
    compared = case.seeds * (sum(gradients) + halved + bool(halved))
    tried = 2 * sum(trials(name) for name in case.methods if name != "sgd")
    recipe = trials("sgd") if case.recipe else 0
    announce(case.name, seconds * (recipe + tried + compared) / trials("sgd"))


def _tasks(settings: CompareSettings, rates: tuple[float, ...]) -> list[Task]:
    """The task at each learning rate, with the data loaded once."""
    tasks = [Task(dataclasses.replace(settings, learning_rate=rates[0]))]
    for rate in rates[1:]:
        changed = dataclasses.replace(settings, learning_rate=rate)
        tasks.append(Task(changed, data=tasks[0].data))
    return tasks


def _best(trial: dict[str, Any]) -> float:
    """The highest mean accuracy of a trial; below all others if there is none."""
    if not trial["accuracies"]:
        return -1.0
    # Trials that were kept have `None` where training diverged.
    accuracies = np.asarray(trial["accuracies"], float)
    return float(np.nan_to_num(accuracies.mean(1), nan=-1.0).max())


class _Trials:
    """The trials of a method in a case.

    Args:
        method: the method's name.
        case: the case.
        task: the task, with the held-out images in the place of the test images.
        plain: what SGD reached, if that is known.
    """

    def __init__(self, method: str, case: Case, task: Any, plain: Any = None):
        self._method, self._case, self._task = METHODS[method], case, task
        self._plain = -1.0 if plain is None else _best(plain)
        self._reached: dict[Any, list[dict[str, float]]] = {}

    @property
    def _strength(self) -> tuple[str, Any]:
        return self._method.strength_of(self._task.settings)

    def run(self, *, needed: bool = True) -> dict[str, Any]:
        """The strengths tried, the accuracies reached, and the strength chosen.

        Args:
            needed: whether to try a strength that is the only one.
        """
        grid = _grid(self._case, *self._strength)
        if len(grid) > 1:
            self._try(grid)
            self._widen(self._strength[0])
        elif needed:
            self._try(grid)
        strengths = sorted(self._reached)
        return {
            "learning_rate": self._task.settings.learning_rate,
            "strengths": strengths or grid,
            "accuracies": [self._of(each, "test accuracy") for each in strengths],
            "train_accuracies": [
                self._of(each, "train accuracy") for each in strengths
            ],
            "chosen": self._chosen if strengths else grid[0],
        }

    def _widen(self, setting: str) -> None:
        """Tries more beyond the ends, as long as the best is there."""
        for low in (False, True):
            for _ in range(BEYOND):
                strengths = sorted(self._reached)
                at_end = self._chosen == strengths[0 if low else -1]
                if not at_end or (low and self._mean(self._chosen) <= self._plain):
                    break
                beyond = widened(setting, tuple(strengths), low)
                if beyond is not None:
                    self._try((beyond,))

    def _of(self, strength: Any, quantity: str) -> list[float]:
        """A quantity reached at a strength, by seed."""
        return [each[quantity] for each in self._reached[strength]]

    @property
    def _chosen(self) -> Any:
        """Of equally good strengths the weakest, but the largest learning rate."""
        largest = self._strength[0] == "learning_rate"
        return max(sorted(self._reached, reverse=largest), key=self._mean)

    def _mean(self, strength: Any) -> float:
        """Mean accuracy reached at a strength; below all others if any is lost."""
        mean = np.mean(self._of(strength, "test accuracy"))
        return float(np.nan_to_num(mean, nan=-1.0))

    def _try(self, strengths: Sequence[Any]) -> None:
        seeds = self._seeds
        trainer = Trainer(
            self._method,
            self._task,
            [seed for _ in strengths for seed in seeds],
            [strength for strength in strengths for _ in seeds],
        )
        trainer.advance(0, trainer.steps)
        reached = [self._task.evaluate(*each) for each in trainer.networks()]
        for index, strength in enumerate(strengths):
            start = index * len(seeds)
            self._reached[strength] = reached[start : start + len(seeds)]

    @property
    def _seeds(self) -> range:
        return range(FIRST_TRIAL_SEED, FIRST_TRIAL_SEED + self._case.trial_seeds)


class _RecipeTrials(_Trials):
    """The trials of a recipe, of which every strength is a task of its own."""

    @property
    def _strength(self) -> tuple[str, Any]:
        return self._case.recipe, None

    def _try(self, strengths: Sequence[Any]) -> None:
        for strength in strengths:
            interruptions.check()
            changed = {self._case.recipe: strength}
            settings = dataclasses.replace(self._task.settings, **changed)
            task = Task(settings, data=self._task.data)
            trainer = Trainer(self._method, task, self._seeds)
            trainer.advance(0, trainer.steps)
            self._reached[strength] = [
                task.evaluate(*each) for each in trainer.networks()
            ]
