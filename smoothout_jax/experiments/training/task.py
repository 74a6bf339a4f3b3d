"""What a network learns: the data, the network, its loss and its accuracy."""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.tree_util import Partial

from smoothout_jax.experiments.data.datasets import Dataset, prepare
from smoothout_jax.experiments.data.image_folder import ImageFiles
from smoothout_jax.experiments.data.stream import read_batches
from smoothout_jax.experiments.networks import keep
from smoothout_jax.experiments.options import InputError
from smoothout_jax.experiments.settings import SharedSettings
from smoothout_jax.experiments.training.placement import Placement
from smoothout_jax.sharpness.objective import mean_over_batches

UNITS = {"loss": "nats"}
MEASURED_IMAGES = 2000
BATCH = 500
# The same of images that are read while the network trains, or are large.
MEASURED_FILES = 500
LARGE_BATCH, LARGE = 100, 96**2


class Task:
    """Data, network, loss and accuracy.

    Parameters are trees `{"params": …}`, and BatchNorm's statistics trees
    `{"batch_stats": …}`, or empty for networks without it.

    Args:
        settings: the settings of training.
        placement: which devices hold arrays; by default the first.
        data: the data set, if it was loaded before.

    Attributes:
        streams: whether training images are read while the network trains.
        arrays: what the training program reads, on the devices: `"train"`, images and
            labels, unless it streams, and `"gap"`, the first 500 of them and as many
            held-out or watched ones, between whose losses the gap is; `None` if there
            are none.
        steps: updates in the whole of training.
        batch_norm: whether the network has BatchNorm.
        convolves: whether it has convolutions, which are slow under vmap.
        sets: batches of images and labels: `"train"`, the first 2,000 training images,
            which measures of sharpness use too, `"test"`, and, if any are held out
            beside these, `"watched"` and `"heldout"`.

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
        self.placement = placement or Placement()
        self.data = data = prepare(settings) if data is None else data
        self._check()
        num_images = len(data.train_images)
        self.steps = settings.num_steps(num_images)
        self.steps_per_epoch = num_images // settings.batch_size
        self.convolves = settings.model.convolves
        self._training = self._network(
            use_running_average=False, momentum=0.9, drops=True
        )
        self._evaluating = self._network(use_running_average=True)
        self._measuring = self._network(use_running_average=False, momentum=0.0)
        self._init_stats = jax.eval_shape(self.init, jax.random.key(0))[1]
        self.batch_norm = bool(self._init_stats)
        self.streams = isinstance(data.train_images, ImageFiles)
        train = data.train_images, data.train_labels
        measured = MEASURED_FILES if self.streams else MEASURED_IMAGES
        self.sets = {
            "train": self._batches(*(array[:measured] for array in train)),
            "test": self._batches(data.test_images, data.test_labels),
        }
        self.arrays: dict[str, Any] = {
            "train": () if self.streams else tuple(map(self.placement.examples, train)),
            "gap": None,
        }
        for name in ("watched", "heldout"):
            if (split := getattr(data, name)) is not None:
                self.sets[name] = self._batches(split.images, split.labels)
                self.arrays["gap"] = self.sets["train"][0], self.sets[name][0]
        self._quantities = jax.jit(self.quantities)
        self._statistics = jax.jit(self.batch_statistics)

    def standardized(self, images: Any) -> Any:
        """Images as the network takes them."""
        if images.dtype != jnp.uint8 or self.data.scaling is None:
            return images
        return in_deviations(images, self.data.scaling)

    @property
    def about(self) -> dict[str, Any]:
        """What is to know of the data where a trained network is used, for JSON."""
        data, scaling = self.data, self.data.scaling
        return {
            "classes": data.classes,
            "num_classes": data.num_classes,
            "shape": data.train_images.shape[1:],
            "scaling": scaling and [each.tolist() for each in scaling],
            "digest": data.digest,
        }

    def stream(self, seed: int, steps: range) -> Iterator[tuple[Any, Any]]:
        """Reads the batches of steps, from a seed."""
        settings, data = self.settings, self.data
        for batch in read_batches(
            cast(ImageFiles, data.train_images),
            data.train_labels,
            seed,
            steps,
            settings.batch_size,
            crop_area=settings.crop_area,
        ):
            images, labels = map(self.placement.batch, batch)
            yield images, labels

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """Initial parameters and statistics."""
        images = self.standardized(np.asarray(self.data.train_images[:2]))
        variables = dict(self._measuring.init(key, images))
        params = {"params": variables.pop("params")}
        return params, variables

    def loss(
        self,
        params: Any,
        stats: Any,
        images: jax.Array,
        labels: jax.Array,
        dropout_key: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[Any, jax.Array]]:
        """The loss to minimise, in nats; with it, new statistics and the accuracy."""
        if self.settings.precision != "float32":
            params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
            images = images.astype(jnp.bfloat16)
        logits, stats = _normalized(self._training, params, stats, images, dropout_key)
        logits = logits.astype(jnp.float32)
        loss, smoothing = _cross_entropy(logits, labels), self.settings.label_smoothing
        if smoothing:
            to_all_classes = -jax.nn.log_softmax(logits).mean()
            loss = (1 - smoothing) * loss + smoothing * to_all_classes
        return loss, (stats, _accuracy(logits, labels))

    def quantities(self, params: Any, batch: Any, stats: Any) -> dict[str, jax.Array]:
        """Loss and accuracy of a batch, with fixed statistics."""
        images, labels = batch
        logits = self._evaluating.apply(params | stats, self.standardized(images))
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

    def statistics(self, params: Any, stats: Any) -> Any:
        """The BatchNorm statistics to evaluate clean parameters with.

        Those of training are of noisy parameters. So they are estimated anew: the mean
        of the statistics of each batch of the first training images.
        """
        if not self.batch_norm:
            return stats
        return mean_over_batches(
            lambda batch: self._statistics(params, batch), self.sets["train"]
        )

    def batch_statistics(self, params: Any, batch: Any) -> Any:
        """The BatchNorm statistics of one batch."""
        return self._measured(params, batch[0])[1]

    def losses(self, params: Any, train: Any, heldout: Any) -> tuple[Any, Any]:
        """The losses of a training batch and another, by the statistics of the first.

        The loss of the first and its statistics come from one pass.
        """
        logits, stats = self._measured(params, train[0])
        return _cross_entropy(logits, train[1]), self._loss(params, heldout, stats)

    def _measured(self, params, images):
        """Logits, normalised by their own batch, and its statistics."""
        empty = jax.tree.map(lambda leaf: jnp.zeros_like(leaf), self._init_stats)
        images = self.standardized(images)
        return _normalized(self._measuring, params, empty, images)

    def _network(self, *, drops: bool = False, **batch_norm: Any) -> nn.Module:
        """The network, with or without dropout, and its BatchNorm."""
        settings, drop = self.settings, keep
        norm = functools.partial(nn.BatchNorm, **batch_norm)
        if drops and settings.dropout:
            drop = nn.Dropout(settings.dropout, deterministic=False)
        try:
            return settings.model.build(settings, self.data.num_classes, norm, drop)
        except ValueError as error:
            raise InputError(str(error)) from error

    def _check(self) -> None:
        settings, shape = self.settings, self.data.train_images.shape
        if settings.batch_size > shape[0]:
            raise InputError(
                f"batch_size={settings.batch_size} is larger than the {shape[0]}"
                " training images"
            )
        self.placement.check_batch(settings.batch_size, 1)
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

    def _batches(self, images, labels) -> Sequence[tuple[Any, Any]]:
        large = math.prod(images.shape[1:-1]) >= LARGE
        size = LARGE_BATCH if large else BATCH
        batches = Batches(images, labels, size, self.placement)
        return batches if isinstance(images, ImageFiles) else list(batches)

    def _loss(self, params, batch, stats):
        return self.quantities(params, batch, stats)["loss"]


def _normalized(network, params, stats, images, dropout_key=None) -> Any:
    """Logits, normalised by the batch, and the statistics that it updates."""
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    return network.apply(params | stats, images, mutable=["batch_stats"], rngs=rngs)


def _cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _accuracy(logits, labels):
    return (logits.argmax(-1) == labels).mean()


def in_deviations(images: Any, scaling: Any) -> jax.Array:
    """Images less the mean of each channel, in its deviations, float32."""
    shape = (1,) * (images.ndim - 1) + (-1,)
    mean, deviation = (jnp.asarray(e, jnp.float32).reshape(shape) for e in scaling)
    return (jnp.asarray(images, jnp.float32) - mean) / deviation


class Batches(Sequence):
    """Batches to measure on, placed on the devices when they are taken."""

    def __init__(self, images, labels, size: int, placement: Placement):
        self._images, self._labels, self._size = images, labels, size
        self._placement = placement

    def __len__(self) -> int:
        return -(-len(self._labels) // self._size)

    def __getitem__(self, number):
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        part = slice(number * self._size, (number + 1) * self._size)
        if not 0 <= number < len(self):
            raise IndexError(number)
        arrays = self._images[part], self._labels[part]
        return tuple(self._placement.everywhere(np.asarray(each)) for each in arrays)
