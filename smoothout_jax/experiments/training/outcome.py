"""What a network reached, and what rounding or noise would take from it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from smoothout_jax import exclude, flax_filters, uniform
from smoothout_jax._extras import progress
from smoothout_jax.experiments.training.state import stack
from smoothout_jax.experiments.training.task import BATCH, MEASURED_IMAGES, Task
from smoothout_jax.landscape import filter_normalized_direction, loss_curve
from smoothout_jax.noise import Noise
from smoothout_jax.sharpness import expected_sharpness

# Where losses along a line are measured, in norms of each filter.
DISTANCES = np.linspace(-1.5, 1.5, 31)
NOISE_SAMPLES = 3


class Outcome(NamedTuple):
    """What one method reached; the leading axis of every array counts the seeds.

    All values are NaN for a network whose loss is not finite.

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
        loss_curve: that loss along a line through the parameters, at `DISTANCES`,
            averaged over random directions; may be empty.
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
        return {k: v for k, v in self._asdict().items() if k != "loss_curve"}


def measure_outcomes(
    task: Task,
    networks: Mapping[str, Sequence[tuple[Any, Any]]],
    *,
    noise_radius: float,
    noise_samples: int,
    directions: int,
) -> dict[str, Outcome]:
    """Measures the networks of each method, pairs of parameters and statistics.

    All are measured with the same noise, and in directions of the same keys.
    """
    mask = exclude("BatchNorm") if task.batch_norm else None
    noise = uniform(
        noise_radius, relative_to="filter", filter_axis=flax_filters, mask=mask
    )
    keys = jax.random.split(jax.random.key(1), directions)
    runs = [(name, run) for name, each in networks.items() for run in each]
    outcomes: dict[str, list[Any]] = {name: [] for name in networks}
    for name, (params, stats) in progress("measuring", runs):
        outcome = _measure(task, params, stats, noise, noise_samples, keys)
        outcomes[name].append(outcome)
    return {name: stack(each) for name, each in outcomes.items()}


def _measure(task: Task, params, stats, noise: Noise, samples: int, keys) -> Outcome:
    batches, loss = task.sets["train"], task.loss_with(stats)
    reached = task.evaluate(params, stats)
    if not np.isfinite(list(reached.values())).all():
        curve = np.full(len(DISTANCES) if len(keys) else 0, np.nan)
        return Outcome(*[np.nan] * (len(Outcome._fields) - 1), loss_curve=curve)
    rise = expected_sharpness(
        loss,
        params,
        noise,
        key=jax.random.key(0),
        num_samples=samples,
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
        for key in keys
    ]
    return Outcome(
        test_accuracy=reached["test accuracy"],
        train_accuracy=reached["train accuracy"],
        test_loss=reached["test loss"],
        train_loss=reached["train loss"],
        loss_rise=rise.value,
        memorised=memorised(task, params, stats),
        **accuracy_lost(task, params, stats, noise),
        loss_curve=np.mean(curves, axis=0) if curves else np.empty(0),
    )


def memorised(task: Task, params: Any, stats: Any) -> float:
    """Fraction of the wrong labels that a network predicts; NaN if there are none."""
    data = task.data
    different = data.train_labels != data.true_labels
    (wrong,) = np.nonzero(different[:MEASURED_IMAGES])
    if not len(wrong):
        return float("nan")
    batch = np.asarray(data.train_images[wrong]), data.train_labels[wrong]
    return float(task.measure(params, stats, [batch])["accuracy"])


def accuracy_lost(
    task: Task, params: Any, stats: Any, noise: Noise
) -> dict[str, float]:
    """Accuracy on the first 2,000 test images lost by rounding weights, and by noise.

    BatchNorm keeps its statistics.
    """
    batches = task.sets["test"][: MEASURED_IMAGES // BATCH]

    def accuracy(params):
        return float(task.measure(params, stats, batches)["accuracy"])

    whole = accuracy(params)
    samples = [
        accuracy(optax.tree.add(params, noise(key, params, 0)))
        for key in jax.random.split(jax.random.key(2), NOISE_SAMPLES)
    ]
    return {
        "lost_at_8_bits": whole - accuracy(rounded(params, 8)),
        "lost_at_4_bits": whole - accuracy(rounded(params, 4)),
        "lost_under_noise": whole - float(np.mean(samples)),
    }


def rounded(params: Any, bits: int) -> Any:
    """Rounds each filter of a network of Flax to 2 ** bits - 1 equal levels.

    The largest weight of a filter is kept. Biases and scales are not rounded, as usual.
    """

    def of_leaf(leaf, filter_axes):
        filters = np.arange(leaf.ndim)[np.atleast_1d(filter_axes)]
        others = tuple(axis for axis in range(leaf.ndim) if axis not in filters)
        if not others:  # a bias or a scale
            return leaf
        largest = jnp.abs(leaf).max(others, keepdims=True)
        step = largest / (2 ** (bits - 1) - 1)
        return jnp.where(step > 0, jnp.round(leaf / step) * step, leaf)

    return jax.tree.map(of_leaf, params, flax_filters(params))


class Guessing(NamedTuple):
    """The best that a network with the same output for every image can reach.

    A network that does no better has not learned.

    Attributes:
        loss: loss of the class frequencies, in nats.
        accuracy: share of the most frequent class, and three standard errors.
    """

    loss: float = np.inf
    accuracy: float = 1.0

    @classmethod
    def on(cls, task: Task) -> "Guessing":
        """Guessing on the images that `"train loss"` is measured on."""
        labels = task.data.train_labels[:MEASURED_IMAGES]
        frequencies = np.bincount(labels) / len(labels)
        share, frequencies = frequencies.max(), frequencies[frequencies > 0]
        error = np.sqrt(share * (1 - share) / len(labels))
        loss = -(frequencies * np.log(frequencies)).sum()
        return cls(float(loss), float(share + 3 * error))

    def beaten_by(self, loss: Any, accuracy: Any) -> Any:
        """Whether losses are below, by more than rounding, or accuracies above.

        One is enough: a network that has learned the right labels may pay more for
        wrong ones than guessing does.
        """
        below = (np.asarray(loss) < self.loss) & ~np.isclose(loss, self.loss)
        return below | (np.asarray(accuracy) > self.accuracy)
