"""What a network learns: the data, the network itself and how it is judged."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.tree_util import Partial

from smoothout_jax.experiments.data.datasets import Dataset, hold_out, load
from smoothout_jax.experiments.networks import make_network
from smoothout_jax.experiments.options import InputError
from smoothout_jax.experiments.regime import num_steps
from smoothout_jax.experiments.settings import TrainingSettings
from smoothout_jax.experiments.training.placement import Placement
from smoothout_jax.sharpness.objective import mean_over_batches

UNITS = {"loss": "nats"}
MEASURED_IMAGES = 2000
BATCH = 500


class Task:
    """Data, network, loss and accuracy.

    Parameters are trees `{"params": …}`, and BatchNorm's statistics trees
    `{"batch_stats": …}`, or empty for networks without it.

    Args:
        settings: the settings that training runs on.
        placement: where arrays lie; by default on the first device.

    Attributes:
        settings: those settings.
        placement: where arrays lie.
        data: the data set.
        training_data: training images and their labels, on the devices.
        steps: updates in the whole of training.
        steps_per_epoch: updates in a pass over the training images.
        batch_norm: whether the network has BatchNorm.
        convolves: whether it has convolutions, which are slow in loops and under vmap
            on CPU.
        sets: batches of images and labels: `"train"`, the first 2,000 training images,
            on which measures are taken, and `"test"`.

    Raises:
        InputError: if the data cannot be read, or do not suit the network.
    """

    def __init__(self, settings: TrainingSettings, placement: Placement | None = None):
        self.settings = settings
        self.placement = placement = placement or Placement()
        data = load(settings.data, settings.data_dir, settings.train_size)
        self.data: Dataset = hold_out(data, settings.validation_size)
        num_images = len(self.data.train_images)
        if settings.batch_size > num_images:
            raise InputError(
                f"batch_size={settings.batch_size} is larger than the {num_images}"
                " training images"
            )
        self._check_images(self.data.train_images.shape)
        placement.check_batch(settings.batch_size, 1)
        self.training_data = (
            placement.examples(self.data.train_images),
            placement.examples(self.data.train_labels),
        )
        self.steps = num_steps(settings, num_images)
        self.steps_per_epoch = num_images // settings.batch_size
        self.convolves = settings.network not in ("mlp", "f1")
        try:
            self._training, self._evaluating, self._measuring = (
                make_network(
                    settings,
                    self.data.num_classes,
                    functools.partial(nn.BatchNorm, **options),
                )
                for options in (
                    {"use_running_average": False, "momentum": 0.9},
                    {"use_running_average": True},
                    {"use_running_average": False, "momentum": 0.0},
                )
            )
        except ValueError as error:
            raise InputError(str(error)) from error
        self._init_stats = jax.eval_shape(self.init, jax.random.key(0))[1]
        self.batch_norm = bool(self._init_stats)
        self.sets = {
            "train": self._batches(
                self.data.train_images[:MEASURED_IMAGES],
                self.data.train_labels[:MEASURED_IMAGES],
            ),
            "test": self._batches(self.data.test_images, self.data.test_labels),
        }
        self._quantities = jax.jit(self.quantities)
        self._statistics = jax.jit(self.batch_statistics)

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """Initial parameters and statistics."""
        variables = dict(self._training.init(key, self.data.train_images[:2]))
        params = {"params": variables.pop("params")}
        return params, variables

    def loss(
        self, params: Any, stats: Any, images: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, tuple[Any, jax.Array]]:
        """The loss that is trained, in nats, with new statistics and the accuracy."""
        logits, stats = _apply_training(self._training, params, stats, images)
        return _cross_entropy(logits, labels), (stats, _accuracy(logits, labels))

    def quantities(self, params: Any, batch: Any, stats: Any) -> dict[str, jax.Array]:
        """Loss and accuracy of images and labels, by statistics that stay."""
        images, labels = batch
        logits = self._evaluating.apply(params | stats, images)
        return {
            "loss": _cross_entropy(logits, labels),
            "accuracy": _accuracy(logits, labels),
        }

    def evaluate(self, params: Any, stats: Any) -> dict[str, float]:
        """Loss and accuracy of each of the sets, such as `"train loss"`."""
        return {
            f"{name} {quantity}": float(value)
            for name, batches in self.sets.items()
            for quantity, value in mean_over_batches(
                lambda batch: self._quantities(params, batch, stats), batches
            ).items()
        }

    def loss_with(self, stats: Any) -> Partial:
        """The loss of a batch, by statistics that stay: `loss(params, batch)`."""
        return Partial(self._loss, stats=stats)

    def quantities_with(self, stats: Any) -> Partial:
        """Loss and accuracy of a batch, by statistics that stay."""
        return Partial(self.quantities, stats=stats)

    def statistics(self, params: Any, running: Any) -> Any:
        """The BatchNorm statistics to evaluate with, by the setting of that name.

        Args:
            params: the clean parameters.
            running: the statistics of training, taken at noisy parameters as a rule.

        Returns:
            The running ones, or means of the batches' statistics over the first
            training images.
        """
        if not self.batch_norm or self.settings.statistics == "running":
            return running
        return mean_over_batches(
            lambda batch: self._statistics(params, batch), self.sets["train"]
        )

    def batch_statistics(self, params: Any, batch: Any) -> Any:
        """The BatchNorm statistics of a batch: running means without momentum."""
        empty = jax.tree.map(lambda leaf: jnp.zeros_like(leaf), self._init_stats)
        return _apply_training(self._measuring, params, empty, batch[0])[1]

    def _check_images(self, shape) -> None:
        settings = self.settings
        if settings.network in ("resnet", "wide-resnet", "vit") and len(shape) != 4:
            raise InputError(
                f"network {settings.network} needs images of two dimensions, those of"
                f" {settings.data} have shape {shape[1:]}"
            )
        if settings.network == "vit" and (shape[1] % 4 or shape[2] % 4):
            raise InputError(
                "network vit needs images of a multiple of 4 pixels either way, got"
                f" {shape[1:3]}"
            )
        if settings.network == "cnet" and len(shape) < 3:
            raise InputError(
                f"network cnet needs images with channels, those of {settings.data}"
                f" have shape {shape[1:]}"
            )
        if (settings.shift or settings.flip) and len(shape) != 4:
            raise InputError(
                "shift and flip need images of two dimensions, those of"
                f" {settings.data} have shape {shape[1:]}"
            )

    def _batches(self, *arrays):
        starts = range(0, len(arrays[0]), BATCH)
        return [
            tuple(self.placement.everywhere(a[i : i + BATCH]) for a in arrays)
            for i in starts
        ]

    def _loss(self, params, batch, stats):
        return self.quantities(params, batch, stats)["loss"]


def _apply_training(network, params, stats, images) -> Any:
    """Logits, normalised by the batch, and the statistics moved by it."""
    return network.apply(params | stats, images, mutable=["batch_stats"])


def _cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _accuracy(logits, labels):
    return (logits.argmax(-1) == labels).mean()
