"""Training of several methods in turns, so that all are timed under the same load."""

import dataclasses
import itertools
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from smoothout_jax.experiments.progress import Progress
from smoothout_jax.experiments.training.resuming import SavedTraining
from smoothout_jax.experiments.training.state import Noise
from smoothout_jax.experiments.training.trainer import Trainer

ROUNDS = 20
SECONDS_BETWEEN_SAVES = 60.0
# The next save waits as many times longer as the last took longer.
SECONDS_OF_A_SAVE = 3.0


@dataclasses.dataclass(frozen=True)
class Training:
    """How the training of one method went, round by round.

    Attributes:
        seconds: seconds of a step, (rounds,).
        steps: steps taken at the end of each round, (rounds,).
        noise: what is known of the noise then, (seeds, rounds), by the names of
            `Noise`; empty where the rise of the loss is not held.
        watched_accuracy: fraction of the watched images that are classified correctly,
            likewise; `None` where none are watched.
        test_accuracy: that of the test images, likewise; NaN except where that of the
            watched images is the highest so far.
    """

    seconds: np.ndarray
    steps: np.ndarray
    noise: dict[str, np.ndarray]
    watched_accuracy: Any = None
    test_accuracy: Any = None

    @classmethod
    def of(cls, rounds: list[dict[str, Any]]) -> "Training":
        """Joins what each round measured."""
        columns = {
            name: np.stack([each[name] for each in rounds], axis=-1)
            for name in rounds[0]
        }
        noise = {name: columns.pop(name) for name in Noise._fields if name in columns}
        return cls(noise=noise, **columns)

    @property
    def best_accuracy(self) -> np.ndarray:
        """The test accuracy where that on the watched images is highest, (seeds,)."""
        best = np.nan_to_num(self.watched_accuracy, nan=-1).argmax(-1)
        return np.take_along_axis(self.test_accuracy, best[:, None], -1)[:, 0]

    @property
    def noise_at_end(self) -> dict[str, float]:
        """What is known of the noise at the end, means of the seeds."""
        names = {"loss_rise": "held_loss_rise"}
        return {
            names.get(name, name): float(values[:, -1].mean())
            for name, values in self.noise.items()
        }


def train_in_turns(
    trainers: Mapping[str, Trainer], kept: SavedTraining | None = None
) -> dict[str, Training]:
    """Trains methods in turns.

    Args:
        trainers: the trainers, by name.
        kept: where training is kept each minute and in the end; what is there already
            is continued.

    Returns:
        How each went, by name.
    """
    rounds = min(ROUNDS, *(trainer.steps for trainer in trainers.values()))
    done, earlier = kept.restore(trainers) if kept is not None else (0, {})
    seen: dict[str, list[Any]] = {name: earlier.get(name, []) for name in trainers}
    turns = list(itertools.product(range(rounds), trainers.items()))[done:]
    saved, pause = time.monotonic(), SECONDS_BETWEEN_SAVES
    bar = Progress("training", turns, compiling=len(trainers))
    for number, (turn, (name, trainer)) in enumerate(bar, done + 1):
        if number <= done + len(trainers):
            bar.say(f"compiling {name}")
        start, stop = (trainer.steps * each // rounds for each in (turn, turn + 1))
        _, spent = trainer.advance(start, stop)
        times = {"seconds": spent / (stop - start), "steps": stop}
        seen[name].append(times | _measured(trainer, seen[name]))
        now = time.monotonic()
        if kept is not None and (now - saved > pause or number == done + len(turns)):
            kept.save(trainers, number, seen)
            saved = time.monotonic()
            slow = max(1.0, (saved - now) / SECONDS_OF_A_SAVE)
            pause = SECONDS_BETWEEN_SAVES * slow
    return {name: Training.of(rows) for name, rows in seen.items()}


def _measured(trainer: Trainer, before: list[Any]) -> dict[str, Any]:
    """What is known of the noise and the watched images after a round."""
    watched = [np.nan_to_num(row.get("watched_accuracy", -1), nan=-1) for row in before]
    best = np.max(watched, axis=0, initial=-1)
    measured = trainer.noise()._asdict() | trainer.watched(best)
    return {name: each.tolist() for name, each in measured.items() if each is not None}
