"""What a network learns: the data, the network, its loss and its accuracy."""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.tree_util import Partial

from smoothout_jax.experiments import interruptions
from smoothout_jax.experiments.convolutions import convolve
from smoothout_jax.experiments.data.datasets import Dataset, prepare
from smoothout_jax.experiments.networks import keep
from smoothout_jax.experiments.options import InputError
from smoothout_jax.experiments.settings import SharedSettings
from smoothout_jax.experiments.training.placement import Placement
from smoothout_jax.sharpness.objective import mean_over_batches

UNITS = {"loss": "nats"}
MEASURED_IMAGES = 2000
BATCH = 500
# Steps of a loop with convolutions on CPU: few, to notice an interruption soon.
SHORT_LOOP = 10


class Batches(list[Any]):
    """Batches of images and labels, between which an interrupted program ends."""

    def __iter__(self) -> Iterator[Any]:
        for batch in super().__iter__():
            interruptions.check()
            yield batch


class Task:
    """Data, network, loss and accuracy.

    Parameters are trees `{"params": …}`, and BatchNorm's statistics trees
    `{"batch_stats": …}`, or empty for networks without it.

    Args:
        settings: the settings of training.
        placement: which devices hold arrays; by default the first.
        data: the data set, if it was loaded before.

    Attributes:
        settings: the settings of training.
        placement: which devices hold arrays.
        data: the data set.
        training_data: training images and their labels, on the devices.
        steps: updates in the whole of training.
        steps_per_epoch: updates in a pass over the training images.
        batch_norm: whether the network has BatchNorm.
        convolves: whether it has convolutions, which are slow under vmap.
        longest_loop: how many steps a compiled loop may take; `None` for any number.
        sets: batches of images and labels: `"train"`, the first 2,000 training images,
            which measures of sharpness use too, `"test"`, and, if there are any that
            are held out beside these, `"watched"` and `"heldout"`.
        gap_batches: the first 500 training images, and as many held-out or watched
            ones, between whose losses the gap is; `None` if there are none.

    Raises:
        InputError: if the data cannot be read, or do not fit the network.
    """

    def __init__(
        self,
        settings: SharedSettings,
        placement: Placement | None = None,
        data: Dataset | None = None,
    ):
        self.settings = settings
        self.placement = placement = placement or Placement()
        if data is None:
            data = prepare(settings)
        self.data = data
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
        self.steps = settings.num_steps(num_images)
        self.steps_per_epoch = num_images // settings.batch_size
        self.convolves = settings.model.convolves
        self.longest_loop = None
        if self.convolves and jax.default_backend() == "cpu":
            self.longest_loop = SHORT_LOOP if placement.mesh is None else 1
        self._training = self._network(
            use_running_average=False, momentum=0.9, drops=True
        )
        self._evaluating = self._network(use_running_average=True)
        self._measuring = self._network(use_running_average=False, momentum=0.0)
        self._init_stats = jax.eval_shape(self.init, jax.random.key(0))[1]
        self.batch_norm = bool(self._init_stats)
        self.sets = {
            "train": self._batches(
                self.data.train_images[:MEASURED_IMAGES],
                self.data.train_labels[:MEASURED_IMAGES],
            ),
            "test": self._batches(self.data.test_images, self.data.test_labels),
        }
        self.gap_batches = None
        for name in ("watched", "heldout"):
            if (images := getattr(self.data, name)) is not None:
                self.sets[name] = self._batches(*images)
                self.gap_batches = self.sets["train"][0], self.sets[name][0]
        self._quantities = jax.jit(self.quantities)
        self._statistics = jax.jit(self.batch_statistics)

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """Initial parameters and statistics."""
        variables = dict(self._measuring.init(key, self.data.train_images[:2]))
        params = {"params": variables.pop("params")}
        return params, variables

    def loss(
        self,
        params: Any,
        stats: Any,
        images: jax.Array,
        labels: jax.Array,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[Any, jax.Array]]:
        """The loss to minimise, in nats; with it, new statistics and the accuracy.

        The key is that of dropout.
        """
        if self.settings.precision != "float32":
            params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
            images = images.astype(jnp.bfloat16)
        logits, stats = _apply_training(self._training, params, stats, images, key)
        logits = logits.astype(jnp.float32)
        smoothing = self.settings.label_smoothing
        loss = _cross_entropy(logits, labels)
        if smoothing:
            loss = (1 - smoothing) * loss + smoothing * _to_all_classes(logits)
        return loss, (stats, _accuracy(logits, labels))

    def quantities(self, params: Any, batch: Any, stats: Any) -> dict[str, jax.Array]:
        """Loss and accuracy of a batch, with fixed statistics."""
        images, labels = batch
        logits = self._evaluating.apply(params | stats, images)
        return {
            "loss": _cross_entropy(logits, labels),
            "accuracy": _accuracy(logits, labels),
        }

    def evaluate(
        self, params: Any, stats: Any, only: Sequence[str] = ()
    ) -> dict[str, float]:
        """Loss and accuracy on each of the sets, by names such as `"train loss"`.

        A network whose loss is not finite has no accuracy either: it is NaN.

        Args:
            params: the parameters.
            stats: the statistics of BatchNorm.
            only: names of the sets, if not all.
        """
        reached = {}
        for name in only or self.sets:
            means = self.measure(params, stats, self.sets[name])
            lost = not jnp.isfinite(means["loss"])
            for quantity, value in means.items():
                reached[f"{name} {quantity}"] = math.nan if lost else float(value)
        return reached

    def measure(self, params: Any, stats: Any, batches: Any) -> dict[str, jax.Array]:
        """Mean loss and accuracy of batches, with fixed statistics."""
        return mean_over_batches(
            lambda batch: self._quantities(params, batch, stats), batches
        )

    def loss_with(self, stats: Any) -> Partial:
        """The loss of a batch with fixed statistics: `loss(params, batch)`."""
        return Partial(self._loss, stats=stats)

    def quantities_with(self, stats: Any) -> Partial:
        """Loss and accuracy of a batch with fixed statistics, as a function of both."""
        return Partial(self.quantities, stats=stats)

    def statistics(self, params: Any, running: Any) -> Any:
        """The BatchNorm statistics to evaluate with, as the settings choose.

        Args:
            params: the clean parameters.
            running: the running statistics of training, most often of noisy parameters.

        Returns:
            The running statistics, or the mean of the statistics of each batch of the
            first training images.
        """
        if not self.batch_norm or self.settings.statistics == "running":
            return running
        return mean_over_batches(
            lambda batch: self._statistics(params, batch), self.sets["train"]
        )

    def batch_statistics(self, params: Any, batch: Any) -> Any:
        """The BatchNorm statistics of one batch: running means without momentum."""
        return self._normalized(params, batch[0])[1]

    def losses(
        self, params: Any, running: Any, train: Any, heldout: Any
    ) -> tuple[jax.Array, jax.Array]:
        """The losses of two batches, the first one of training images.

        Without fixed statistics, those of BatchNorm are of the first batch, so that its
        loss and they come from one pass.
        """
        if self.settings.statistics == "running":
            return self._loss(params, train, running), self._loss(
                params, heldout, running
            )
        logits, stats = self._normalized(params, train[0])
        return _cross_entropy(logits, train[1]), self._loss(params, heldout, stats)

    def _normalized(self, params, images):
        """Logits, normalised by their own batch, and its statistics."""
        empty = jax.tree.map(lambda leaf: jnp.zeros_like(leaf), self._init_stats)
        return _apply_training(self._measuring, params, empty, images)

    def _network(self, *, drops: bool = False, **batch_norm: Any) -> nn.Module:
        """The network, with or without what only training needs, and its BatchNorm."""
        settings, drop = self.settings, keep
        norm = functools.partial(nn.BatchNorm, **batch_norm)
        if drops and settings.dropout:
            drop = nn.Dropout(settings.dropout, deterministic=False)
        try:
            network = settings.model.build(settings, self.data.num_classes, norm, drop)
        except ValueError as error:
            raise InputError(str(error)) from error
        if self.longest_loop == SHORT_LOOP:
            return network.clone(convolve=convolve)
        return network

    def _check_images(self, shape) -> None:
        settings = self.settings
        settings.model.check_images(settings.network, shape[1:], settings.data)
        if (settings.shift or settings.flip) and len(shape) != 4:
            raise InputError(
                "shift and flip need images of 2 dimensions, with channels; those of"
                f" {settings.data} have shape {shape[1:]}"
            )
        if settings.shift >= min(shape[1:3]):
            raise InputError(
                f"shift={settings.shift} moves images of shape {shape[1:]} out of sight"
            )

    def _batches(self, *arrays):
        starts = range(0, len(arrays[0]), BATCH)
        return Batches(
            tuple(self.placement.everywhere(a[i : i + BATCH]) for a in arrays)
            for i in starts
        )

    def _loss(self, params, batch, stats):
        return self.quantities(params, batch, stats)["loss"]


def _apply_training(network, params, stats, images, key=None) -> Any:
    """Logits, normalised by the batch, and the statistics that it updates."""
    rngs = None if key is None else {"dropout": key}
    return network.apply(params | stats, images, mutable=["batch_stats"], rngs=rngs)


def _cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _to_all_classes(logits):
    """Cross entropy to the uniform distribution over the classes."""
    return -jax.nn.log_softmax(logits).mean()


def _accuracy(logits, labels):
    return (logits.argmax(-1) == labels).mean()
