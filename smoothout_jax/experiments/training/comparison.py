"""Training of several methods in turns, and measurement of what they reached."""

import itertools
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from smoothout_jax import exclude, flax_filters, uniform
from smoothout_jax._extras import progress
from smoothout_jax.experiments import interruptions
from smoothout_jax.experiments.progress import announce
from smoothout_jax.experiments.training.harm import accuracy_lost, memorised
from smoothout_jax.experiments.training.kept import KeptTraining
from smoothout_jax.experiments.training.state import Noise
from smoothout_jax.experiments.training.task import Task
from smoothout_jax.experiments.training.trainer import Trainer, stack
from smoothout_jax.landscape import filter_normalized_direction, loss_curve
from smoothout_jax.sharpness import expected_sharpness

ROUNDS = 20
SECONDS_BETWEEN_SAVES = 60.0
# The next save waits as many times longer as the last took longer.
SECONDS_OF_A_SAVE = 3.0
DISTANCES = np.linspace(-1.5, 1.5, 31)


class Training(NamedTuple):
    """How the training of one method went, round by round.

    Attributes:
        seconds: seconds of a step, (rounds,).
        steps: steps taken at the end of each round, (rounds,).
        radius: size of the noise then, (seeds, rounds); empty where it is not held at
            a rise of the loss.
        loss_rise: that rise, in nats, likewise.
        loss_rise_target: what it is held at, likewise; empty where that does not follow
            the gap.
        loss_gap: the gap between held-out and training loss, in nats, likewise.
        watched_accuracy: fraction of the watched images that are classified correctly,
            likewise; empty where none are watched.
        test_accuracy: that of the test images, likewise; NaN but where that of the
            watched images is the highest so far.
    """

    seconds: np.ndarray
    steps: np.ndarray
    radius: np.ndarray
    loss_rise: np.ndarray
    loss_rise_target: np.ndarray
    loss_gap: np.ndarray
    watched_accuracy: np.ndarray
    test_accuracy: np.ndarray

    @property
    def best_accuracy(self) -> np.ndarray:
        """The test accuracy where that on the watched images is highest, (seeds,)."""
        best = np.nan_to_num(self.watched_accuracy, nan=-1).argmax(-1)
        return np.take_along_axis(self.test_accuracy, best[:, None], -1)[:, 0]

    @property
    def noise(self) -> dict[str, np.ndarray]:
        """What is known of the noise, (seeds, rounds), by the names of `Noise`."""
        found = {name: getattr(self, name) for name in Noise._fields}
        return {name: values for name, values in found.items() if values.size}

    @property
    def noise_at_end(self) -> dict[str, float]:
        """The same at the end, means of the seeds."""
        names = {"loss_rise": "held_loss_rise"}
        return {
            names.get(name, name): float(values[:, -1].mean())
            for name, values in self.noise.items()
        }


def train_in_turns(
    trainers: Mapping[str, Trainer], kept: KeptTraining | None = None
) -> dict[str, Training]:
    """Trains methods in turns, so that all are timed under the same load.

    Args:
        trainers: the trainers, by name.
        kept: where training is kept each minute (more rarely if that takes more than
            a few seconds), in the end and when it is interrupted; what is there already
            is continued.

    Returns:
        How each went, by name.
    """
    rounds = min(ROUNDS, *(trainer.steps for trainer in trainers.values()))
    done, earlier = kept.restore(trainers) if kept is not None else (0, {})
    seen: dict[str, list[Any]] = {name: earlier.get(name, []) for name in trainers}
    turns = list(itertools.product(range(rounds), trainers.items()))
    saved, pause = time.monotonic(), SECONDS_BETWEEN_SAVES
    for turn, (_, trainer) in turns[done : done + len(trainers)]:
        interruptions.check()
        trainer.prepare(*_ends(trainer, turn, rounds))
    with interruptions.deferred() as interrupted:
        bar = progress("training", turns[done:], len(turns) - done)
        for number, (turn, (name, trainer)) in enumerate(bar, done + 1):
            start, stop = _ends(trainer, turn, rounds)
            _, spent = trainer.advance(start, stop)
            also = [
                [] if v is None else v.tolist()
                for v in (*trainer.noise(), *trainer.watched(_best(seen[name])))
            ]
            seen[name].append([spent / (stop - start), stop, *also])
            if number == len(trainers):
                whole = sum(rows[0][0] * trainers[n].steps for n, rows in seen.items())
                announce("training", whole * (rounds - 1) / rounds)
            now = time.monotonic()
            last = number == len(turns)
            if kept is not None and (interrupted() or now - saved > pause or last):
                kept.save(trainers, number, seen)
                saved = time.monotonic()
                pause = SECONDS_BETWEEN_SAVES * max(
                    1.0, (saved - now) / SECONDS_OF_A_SAVE
                )
            if interrupted():
                interruptions.end()
    return {
        name: Training(*(np.stack(each, axis=-1) for each in zip(*rows, strict=True)))
        for name, rows in seen.items()
    }


def _best(rows: list[Any]) -> Any:
    """The highest accuracies on the watched images so far, (seeds,); at first -1."""
    column = Training._fields.index("watched_accuracy")
    watched = [np.nan_to_num(row[column], nan=-1) for row in rows]
    return np.max(watched, axis=0, initial=-1)


def _ends(trainer: Trainer, turn: int, rounds: int) -> tuple[int, int]:
    """The first step of a turn, and the step after its last."""
    return trainer.steps * turn // rounds, trainer.steps * (turn + 1) // rounds


class Outcome(NamedTuple):
    """What one method reached; the leading axis of every array counts the seeds.

    All is NaN of a network whose training diverged: its loss is not finite.

    Attributes:
        test_accuracy: fraction of the test images that are classified correctly.
        train_accuracy: that of the first training images.
        test_loss: cross entropy, in nats.
        train_loss: cross entropy of the first training images, in nats.
        loss_rise: mean rise of that loss under noise, in nats.
        memorised: fraction of the wrong labels among the first training images that
            the network predicts; NaN if there are none.
        lost_at_8_bits: test accuracy that rounding the weights of each filter to 8
            bits costs, on the first test images.
        lost_at_4_bits: that of 4 bits.
        lost_under_noise: that of the noise.
        loss_curve: that loss along a line through the parameters, at `DISTANCES` in
            norms of each filter, averaged over random directions; may be empty.
    """

    test_accuracy: Any
    train_accuracy: Any
    test_loss: Any
    train_loss: Any
    loss_rise: Any
    memorised: Any
    lost_at_8_bits: Any
    lost_at_4_bits: Any
    lost_under_noise: Any
    loss_curve: Any

    @property
    def scalars(self) -> dict[str, np.ndarray]:
        """The measures that are one number for each seed."""
        return {
            name: values
            for name, values in self._asdict().items()
            if name != "loss_curve"
        }


class Measurement:
    """Measures networks: all with the same noise, and in directions of the same keys.

    Args:
        task: the task that they were trained on.
        noise_radius: relative radius of the noise under which the loss rises.
        noise_samples: samples of that noise.
        directions: number of directions that the loss curve is averaged over.
    """

    def __init__(
        self, task: Task, noise_radius: float, noise_samples: int, directions: int
    ):
        self._task, self._num_samples = task, noise_samples
        self._keys = jax.random.split(jax.random.key(1), directions)
        self._noise = uniform(
            noise_radius,
            relative_to="filter",
            filter_axis=flax_filters,
            mask=exclude("BatchNorm") if task.batch_norm else None,
        )

    def __call__(self, networks: list[tuple[Any, Any]], bar: Any) -> Outcome:
        """Measures the networks of one method, and advances a progress bar."""
        return stack([self._measure(bar, *network) for network in networks])

    def _measure(self, bar, params, stats) -> Outcome:
        batches, loss = self._task.sets["train"], self._task.loss_with(stats)
        reached = self._task.evaluate(params, stats)
        if not np.isfinite(list(reached.values())).all():
            bar.update()
            curve = np.full(len(DISTANCES) if len(self._keys) else 0, np.nan)
            return Outcome(*[np.nan] * (len(Outcome._fields) - 1), loss_curve=curve)
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
                filter_normalized_direction(key, params, filter_axis=flax_filters),
                DISTANCES,
                batches=batches,
            ).values["loss"]
            for key in self._keys
        ]
        bar.update()
        return Outcome(
            test_accuracy=reached["test accuracy"],
            train_accuracy=reached["train accuracy"],
            test_loss=reached["test loss"],
            train_loss=reached["train loss"],
            loss_rise=rise.value,
            memorised=memorised(self._task, params, stats),
            **accuracy_lost(self._task, params, stats, self._noise),
            loss_curve=np.mean(curves, axis=0) if curves else np.empty(0),
        )
