"""The trials of an experiment: what each method chooses, on held-out training images.

First SGD tries learning rates, then the strength of the recipe, if the case has one;
then every method tries as many strengths, at SGD's best learning rate, at the default
one and at those between: with noise, other rates may be better. Where the best is at an
end of what was tried, more is tried beyond it, unless it is the lower end and no better
than SGD: weaker still, a method is SGD.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from smoothout_jax._extras import progress
from smoothout_jax.experiments.commands.compare import CompareSettings
from smoothout_jax.experiments.methods.table import METHODS
from smoothout_jax.experiments.plans import FIRST_TRIAL_SEED, TRIALS, Case, widened
from smoothout_jax.experiments.progress import announce
from smoothout_jax.experiments.regime import LEARNING_RATES
from smoothout_jax.experiments.training.resuming import SavedResults
from smoothout_jax.experiments.training.task import Task
from smoothout_jax.experiments.training.trainer import Trainer

RECIPE = "recipe"
# How many strengths are tried beyond an end.
BEYOND = 2
# Any will do: where the size of the noise is given, it is fixed, and the trials choose.
_FIXED_SIZES: dict[str, Any] = {"radius": 0.1, "relative_radius": 0.5, "std": 0.05}

# Trains with each of some strengths: what is reached from each seed, by the strength.
Attempt = Callable[[Sequence[Any]], dict[Any, list[dict[str, float]]]]


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


def try_strengths(case: Case, data_dir: Path, saved: SavedResults) -> dict[str, Any]:
    """What each method tried and chose, by name; for the recipe, under `RECIPE`.

    Trials that are in `saved` are not repeated; the others are added to it.
    """
    settings = case_settings(case, data_dir, held_out=True)
    began = time.monotonic()
    if "sgd" not in saved:
        saved["sgd"] = try_method("sgd", case, Task(settings), needed=False)
        _announce(case, settings, time.monotonic() - began)
    plain, rate = saved["sgd"], saved["sgd"]["chosen"]
    best = dataclasses.replace(settings, learning_rate=rate)
    if case.recipe:
        if RECIPE not in saved:
            saved[RECIPE] = _try_recipe(case, Task(best), plain)
        plain = saved[RECIPE]
        best = dataclasses.replace(best, **{case.recipe: plain["chosen"]})
    others = [name for name in settings.methods if name not in saved]
    low, high = sorted((rate, LEARNING_RATES[best.optimizer]))
    between = [each for each in saved["sgd"]["strengths"] if low < each < high]
    rates = dict.fromkeys((rate, *between, LEARNING_RATES[best.optimizer]))
    tasks: list[Task] = []
    for each in rates if others else ():
        changed = dataclasses.replace(best, learning_rate=each)
        tasks.append(Task(changed, data=tasks[0].data if tasks else None))
    for name in progress("trials", others):
        needed = len(tasks) > 1
        found = [try_method(name, case, task, plain, needed=needed) for task in tasks]
        saved[name] = max(found, key=_best) | {"at_each_learning_rate": found}
    names = "sgd", *([RECIPE] if case.recipe else []), *settings.methods
    return {name: saved[name] for name in names}


def try_method(
    name: str, case: Case, task: Task, plain: Any = None, *, needed: bool = True
) -> dict[str, Any]:
    """The strengths that a method tried, what they reached, and the one it chose.

    The task has the held-out images in the place of the test images; `plain` are SGD's
    trials. A single strength is tried only if its accuracy is `needed`.
    """
    method, seeds = METHODS[name], _seeds(case)

    def attempt(strengths):
        repeated = [strength for strength in strengths for _ in seeds]
        reached = _reached(Trainer(method, task, [*seeds] * len(strengths), repeated))
        return {
            strength: reached[index * len(seeds) : (index + 1) * len(seeds)]
            for index, strength in enumerate(strengths)
        }

    setting, default = method.strength_of(task.settings)
    grid = _grid(case, setting, default)
    found = _search(setting, grid, attempt, plain, needed)
    return {"learning_rate": task.settings.learning_rate} | found


def _try_recipe(case: Case, task: Task, plain: Any) -> dict[str, Any]:
    """The same for a recipe, on SGD; each of its strengths needs a task of its own."""

    def attempt(strengths):
        reached = {}
        for strength in strengths:
            settings = dataclasses.replace(task.settings, **{case.recipe: strength})
            own = Task(settings, data=task.data)
            reached[strength] = _reached(Trainer(METHODS["sgd"], own, _seeds(case)))
        return reached

    found = _search(case.recipe, _grid(case, case.recipe, None), attempt, plain)
    return {"learning_rate": task.settings.learning_rate} | found


def _search(
    setting: str, grid: list[Any], attempt: Attempt, plain: Any, needed: bool = True
) -> dict[str, Any]:
    """Tries a grid, and more beyond its ends, as long as the best is there."""
    least = -1.0 if plain is None else _best(plain)
    reached = attempt(grid) if needed or len(grid) > 1 else {}

    def column(name: str) -> list[list[float]]:
        return [[row[name] for row in reached[each]] for each in sorted(reached)]

    def mean(strength: Any) -> float:
        return _mean([row["test accuracy"] for row in reached[strength]])

    def choose() -> Any:
        """Of equally good strengths the weakest, but the largest learning rate."""
        return max(sorted(reached, reverse=setting == "learning_rate"), key=mean)

    for low in (False, True) if len(grid) > 1 else ():
        for _ in range(BEYOND):
            strengths, chosen = sorted(reached), choose()
            at_end = chosen == strengths[0 if low else -1]
            if not at_end or (low and mean(chosen) <= least):
                break
            beyond = widened(setting, tuple(strengths), low)
            if beyond is not None:
                reached |= attempt((beyond,))
    return {
        "strengths": sorted(reached) or grid,
        "accuracies": column("test accuracy"),
        "train_accuracies": column("train accuracy"),
        "chosen": choose() if reached else grid[0],
    }


def _grid(case: Case, setting: str, default: Any) -> list[Any]:
    """The strengths that are tried first; the default one if none are planned."""
    return [*case.trials.get(setting, TRIALS.get(setting, (default,)))]


def _seeds(case: Case) -> range:
    return range(FIRST_TRIAL_SEED, FIRST_TRIAL_SEED + case.trial_seeds)


def _reached(trainer: Trainer) -> list[dict[str, float]]:
    """What each run of a trainer reaches."""
    trainer.advance(0, trainer.steps)
    return [trainer.task.evaluate(*each) for each in trainer.networks()]


def _best(trial: dict[str, Any]) -> float:
    """The highest mean accuracy of a trial; below all others if there is none."""
    return max(map(_mean, trial["accuracies"]), default=-1.0)


def _mean(accuracies: Any) -> float:
    """The mean over the seeds; below all others if training diverged from one."""
    # Saved trials have `None` where training diverged.
    return float(np.nan_to_num(np.mean(np.asarray(accuracies, float)), nan=-1.0))


def _announce(case: Case, settings: CompareSettings, seconds: float) -> None:
    """Says how long a case will take, from how long the trials of SGD took.

    The time is proportional to the number of runs times the gradients of a step.
    Methods try one learning rate or more, and some strengths beyond the grid: two rates
    are counted.
    """

    def trials(name: str) -> int:
        strengths = len(_grid(case, *METHODS[name].strength_of(settings)))
        return METHODS[name].gradients * strengths * case.trial_seeds

    gradients = [METHODS[name].gradients for name in case.methods]
    halved = gradients.count(2)
    compared = case.seeds * (sum(gradients) + halved + bool(halved))
    tried = 2 * sum(trials(name) for name in case.methods if name != "sgd")
    recipe = trials("sgd") if case.recipe else 0
    announce(case.name, seconds * (recipe + tried + compared) / trials("sgd"))
