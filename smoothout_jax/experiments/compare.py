"""`smoothout compare`: trains the methods, and writes what came out.

The table, the CSV and JSON files and the pictures all come from one `Results`.
"""

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np

from smoothout_jax.experiments.methods import METHODS
from smoothout_jax.experiments.settings import Settings
from smoothout_jax.experiments.training import Outcome, Problem, Trainer

ROUNDS = 20


@dataclasses.dataclass(frozen=True)
class Results:
    """What a comparison found.

    Attributes:
        settings: the settings it ran on.
        outcomes: what each method reached, by its name.
        seconds: seconds of a step of all seeds, (rounds,), by the method's name.
    """

    settings: Settings
    outcomes: dict[str, Outcome]
    seconds: dict[str, np.ndarray]

    def relative_time(self, method: str) -> float:
        """Median over rounds of the step time relative to SGD's in the same round."""
        return float(np.median(self.seconds[method] / self.seconds["sgd"]))


def compare(settings: Settings, progress: Callable[[int, int, str], None]) -> Results:
    """Trains every method from every seed and measures what they reached.

    Args:
        settings: the settings.
        progress: called with the turns done, the turns in all and what comes next.

    Returns:
        The results.
    """
    bounds = np.linspace(0, settings.steps, min(ROUNDS, settings.steps) + 1).astype(int)
    turns = (len(bounds) - 1) * len(settings.methods)
    progress(0, turns, "preparing")
    problem = Problem(settings)
    trainers = {name: Trainer(METHODS[name], problem) for name in settings.methods}
    seconds = {name: [] for name in settings.methods}
    for start, stop in itertools.pairwise(bounds):
        for name, trainer in trainers.items():
            done = sum(map(len, seconds.values()))
            progress(done, turns, f"step {start} of {settings.steps}: {name}")
            seconds[name].append(trainer.advance(start, stop) / (stop - start))
    progress(turns, turns, "measuring sharpness")
    return Results(
        settings=settings,
        outcomes={name: problem.evaluate(t.params()) for name, t in trainers.items()},
        seconds={name: np.array(times) for name, times in seconds.items()},
    )
