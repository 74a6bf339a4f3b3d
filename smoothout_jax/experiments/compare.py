"""`smoothout compare`: trains the methods, and writes what came out.

The table, the CSV and JSON files and the pictures all come from one `Results`.
"""

import dataclasses
import itertools
from typing import Any

import numpy as np

from smoothout_jax._extras import progress
from smoothout_jax.experiments.methods import METHODS
from smoothout_jax.experiments.settings import Settings
from smoothout_jax.experiments.training import Outcome, Problem, Trainer

ROUNDS = 20


@dataclasses.dataclass(frozen=True)
class Results:
    """What a comparison found.

    Attributes:
        settings: the settings it ran on.
        params: the last parameters of all seeds, along a leading axis, by the method's
            name.
        outcomes: what each method reached, by its name.
        seconds: seconds of a step of all seeds, (rounds,), by the method's name.
    """

    settings: Settings
    params: dict[str, Any]
    outcomes: dict[str, Outcome]
    seconds: dict[str, np.ndarray]

    def relative_time(self, method: str) -> float:
        """Median over rounds of the step time relative to SGD's in the same round."""
        return float(np.median(self.seconds[method] / self.seconds["sgd"]))


def compare(settings: Settings) -> Results:
    """Trains every method from every seed and measures what they reached."""
    bounds = np.linspace(0, settings.steps, min(ROUNDS, settings.steps) + 1).astype(int)
    problem = Problem(settings)
    trainers = {name: Trainer(METHODS[name], problem) for name in settings.methods}
    seconds = {name: [] for name in settings.methods}
    turns = itertools.product(itertools.pairwise(bounds), trainers.items())
    total = len(trainers) * (len(bounds) - 1)
    for (start, stop), (name, trainer) in progress("training", turns, total):
        seconds[name].append(trainer.advance(start, stop) / (stop - start))
    params = {name: trainer.params() for name, trainer in trainers.items()}
    return Results(
        settings=settings,
        params=params,
        outcomes={name: problem.evaluate(tree) for name, tree in params.items()},
        seconds={name: np.array(times) for name, times in seconds.items()},
    )
