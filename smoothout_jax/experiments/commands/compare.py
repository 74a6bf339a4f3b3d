"""`smoothout compare`: trains the methods from the same seeds, and measures them.

The methods take turns every few steps, so that the time of each is measured under the
same load.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from smoothout_jax import exclude, uniform
from smoothout_jax._extras import progress
from smoothout_jax.experiments.methods.table import METHODS
from smoothout_jax.experiments.settings import Settings
from smoothout_jax.experiments.training.task import Task
from smoothout_jax.experiments.training.trainer import Trainer, stack
from smoothout_jax.landscape import filter_normalized_direction, loss_curve
from smoothout_jax.sharpness import expected_sharpness

ROUNDS = 20
DIRECTIONS = 3
DISTANCES = np.linspace(-1.5, 1.5, 31)


class Outcome(NamedTuple):
    """What one method reached; the leading axis of every array is the seed.

    Attributes:
        test_accuracy: fraction of the test images classified rightly.
        train_accuracy: the same of the first training images.
        test_loss: cross entropy, in nats.
        train_loss: cross entropy of the first training images, in nats.
        loss_rise: mean rise of that loss under noise, in nats.
        loss_curve: that loss along a line through the parameters, at `DISTANCES` in
            units of each filter's norm, averaged over random directions; or nothing.
    """

    test_accuracy: Any
    train_accuracy: Any
    test_loss: Any
    train_loss: Any
    loss_rise: Any
    loss_curve: Any


@dataclasses.dataclass(frozen=True)
class Results:
    """What a comparison found.

    Attributes:
        settings: the settings it ran on.
        networks: parameters and BatchNorm statistics of all seeds, along a leading
            axis, by the method's name.
        outcomes: what each method reached, by its name.
        seconds: seconds of a step of all seeds, (rounds,), by the method's name.
    """

    settings: Settings
    networks: dict[str, Any]
    outcomes: dict[str, Outcome]
    seconds: dict[str, np.ndarray]

    def relative_time(self, method: str) -> float:
        """Median over rounds of the step time relative to SGD's in the same round."""
        return float(np.median(self.seconds[method] / self.seconds["sgd"]))


def compare(
    settings: Settings,
    strengths: Mapping[str, float] | None = None,
    *,
    curves: bool = True,
) -> Results:
    """Trains every method from every seed and measures what they reached.

    Args:
        settings: the settings.
        strengths: strengths of methods, by name, in the place of the settings'.
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
    seconds = _train(trainers)
    networks = {name: trainer.networks() for name, trainer in trainers.items()}
    total = len(networks) * settings.seeds
    measure = Measurement(settings, task, DIRECTIONS if curves else 0)
    with progress("measuring", total=total) as bar:
        outcomes = {name: measure(each, bar) for name, each in networks.items()}
    return Results(
        settings=settings,
        networks={name: stack(each) for name, each in networks.items()},
        outcomes=outcomes,
        seconds=seconds,
    )


def _num_steps(settings: Settings, task: Task, method: str) -> int:
    if not settings.equal_gradients:
        return task.steps
    return max(1, task.steps // METHODS[method].gradients)


def _train(trainers: dict[str, Trainer]) -> dict[str, np.ndarray]:
    """Trains in turns; the seconds of a step in each round."""
    rounds = min(ROUNDS, *(trainer.steps for trainer in trainers.values()))
    seconds = {name: [] for name in trainers}
    turns = itertools.product(range(rounds), trainers.items())
    for turn, (name, trainer) in progress("training", turns, rounds * len(trainers)):
        start, stop = (trainer.steps * i // rounds for i in (turn, turn + 1))
        _, spent = trainer.advance(start, stop)
        seconds[name].append(spent / (stop - start))
    return {name: np.array(spent) for name, spent in seconds.items()}


class Measurement:
    """Measures networks: each by the same noise and in directions of the same keys.

    Args:
        settings: the settings of the comparison.
        task: the task that they were trained on.
        directions: number of directions in which the loss is averaged.
    """

    def __init__(self, settings: Settings, task: Task, directions: int):
        self._task, self._num_samples = task, settings.noise_samples
        self._keys = jax.random.split(jax.random.key(1), directions)
        self._noise = uniform(
            settings.noise_radius,
            relative_to="filter",
            mask=exclude("BatchNorm") if task.batch_norm else None,
        )

    def __call__(self, networks: list[tuple[Any, Any]], bar: Any) -> Outcome:
        """Measures the networks of one method, and counts them on a progress bar."""
        return stack([self._measure(bar, *network) for network in networks])

    def _measure(self, bar, params, stats) -> Outcome:
        batches, loss = self._task.sets["train"], self._task.loss_with(stats)
        found = self._task.evaluate(params, stats)
        rise = expected_sharpness(
            loss,
            params,
            self._noise,
            key=jax.random.key(0),
            num_samples=self._num_samples,
            batches=batches,
        )
        curves = [
            loss_curve(
                loss,
                params,
                filter_normalized_direction(key, params),
                DISTANCES,
                batches=batches,
            ).values["loss"]
            for key in self._keys
        ]
        bar.update()
        return Outcome(
            test_accuracy=found["test accuracy"],
            train_accuracy=found["train accuracy"],
            test_loss=found["test loss"],
            train_loss=found["train loss"],
            loss_rise=rise.value,
            loss_curve=np.mean(curves, axis=0) if curves else np.empty(0),
        )
