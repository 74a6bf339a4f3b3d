"""What a network learns: the data, the network itself and how it is judged."""

from typing import Any

import jax
import optax
from jax.tree_util import Partial

from smoothout_jax.experiments.data import load
from smoothout_jax.experiments.networks import MLP
from smoothout_jax.experiments.settings import InputError, Settings

UNITS = {"loss": "nats"}


class Task:
    """Data, network, loss and accuracy.

    Args:
        settings: the settings that training ran on.

    Attributes:
        data: the data set.
        train_loss: mean cross entropy of the training images, a function of the
            parameters, in nats.
    """

    def __init__(self, settings: Settings):
        self.data = load(settings.data, settings.data_dir, settings.train_size)
        self._network = MLP(settings.hidden_sizes, self.data.num_classes)
        if settings.batch_size > len(self.data.train_images):
            raise InputError(
                f"batch_size={settings.batch_size} is larger than the"
                f" {len(self.data.train_images)} training images"
            )
        self.train_loss = Partial(
            self.loss, images=self.data.train_images, labels=self.data.train_labels
        )

    def init(self, key: jax.Array) -> Any:
        """Initial parameters."""
        return self._network.init(key, self.data.train_images[:1])

    def loss(self, params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        """Mean cross entropy of a batch, in nats."""
        return _cross_entropy(self._logits(params, images), labels)

    def quantities(self, params: Any) -> dict[str, jax.Array]:
        """Loss and accuracy, a fraction, of each data set, such as `"train loss"`."""
        data = self.data
        named = {}
        for data_set, images, labels in (
            ("train", data.train_images, data.train_labels),
            ("test", data.test_images, data.test_labels),
        ):
            logits = self._logits(params, images)
            named[f"{data_set} loss"] = _cross_entropy(logits, labels)
            named[f"{data_set} accuracy"] = (logits.argmax(-1) == labels).mean()
        return named

    def _logits(self, params, images) -> Any:
        return self._network.apply(params, images)


def _cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
