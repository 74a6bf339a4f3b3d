"""What guessing reaches: a network that does no better has not learned."""

from typing import Any, NamedTuple

import numpy as np

from smoothout_jax.experiments.training.task import MEASURED_IMAGES, Task


class Guessing(NamedTuple):
    """What a network with the same output for every image reaches at best.

    Attributes:
        loss: loss of the class frequencies, in nats.
        accuracy: share of the most frequent class, and three standard errors.
    """

    loss: float = np.inf
    accuracy: float = 1.0

    @classmethod
    def on(cls, task: Task) -> "Guessing":
        """That on the images that `"train loss"` is of."""
        labels = task.data.train_labels[:MEASURED_IMAGES]
        frequencies = np.bincount(labels) / len(labels)
        share, frequencies = frequencies.max(), frequencies[frequencies > 0]
        error = np.sqrt(share * (1 - share) / len(labels))
        loss = -(frequencies * np.log(frequencies)).sum()
        return cls(float(loss), float(share + 3 * error))

    def beaten_by(self, loss: Any, accuracy: Any) -> Any:
        """Whether losses are below, by more than rounding, or accuracies above.

        One is enough: where labels are wrong, what has learned the right ones may pay
        more for the others than guessing does.
        """
        below = (np.asarray(loss) < self.loss) & ~np.isclose(loss, self.loss)
        return below | (np.asarray(accuracy) > self.accuracy)
