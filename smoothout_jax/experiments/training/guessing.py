"""What guessing reaches: a network that does no better has not learned."""

from typing import Any

import numpy as np

from smoothout_jax.experiments.training.task import MEASURED_IMAGES, Task


def guessing_loss(task: Task) -> float:
    """Loss of the class frequencies on the images that `"train loss"` is of, in nats.

    A network with the same output for every image reaches no smaller loss on them.
    """
    labels = task.data.train_labels[:MEASURED_IMAGES]
    frequencies = np.bincount(labels) / len(labels)
    frequencies = frequencies[frequencies > 0]
    return float(-(frequencies * np.log(frequencies)).sum())


def has_learned(loss: Any, guessing: float) -> Any:
    """Whether losses are below that of guessing, by more than rounding."""
    return (np.asarray(loss) < guessing) & ~np.isclose(loss, guessing)
