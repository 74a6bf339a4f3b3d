"""Data sets: arrays of images and labels, split for training and testing."""

import random
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from smoothout_jax._extras import require
from smoothout_jax.experiments.data.readers import (
    Split,
    checked_split,
    read_cifar_folder,
    read_idx_folder,
    read_npz_folder,
)
from smoothout_jax.experiments.options import InputError


class Dataset(NamedTuple):
    """Images and labels.

    Attributes:
        train_images: float32, (training images, …), channels last.
        train_labels: int32, (training images,).
        test_images: float32, (test images, …).
        test_labels: int32, (test images,).
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray

    @property
    def num_classes(self) -> int:
        """Number of classes, of which the labels are 0 to one less."""
        return 1 + int(max(self.train_labels.max(), self.test_labels.max()))


def load(name: str, data_dir: Path, train_size: int | None) -> Dataset:
    """The data set of a name.

    Args:
        name: one of `TRAINING_IMAGES`.
        data_dir: folder of those that are read from files.
        train_size: number of training images, drawn once and for all with the classes
            in proportion; `None` for all.

    Returns:
        The data set. Images are in [0, 1] for digits, as they are for MNIST-1D, and
        otherwise standardised by the training images: mean 0 and variance 1 in each
        channel.

    Raises:
        InputError: if a file is missing, damaged, or too small, or if its images are
            not finite or its labels do not count classes.
    """
    if name == "digits":
        images, labels = load_digits(return_X_y=True)
        whole = checked_split(images.reshape(-1, 8, 8, 1) / 16, labels, name)
        return _dataset(*_divide(whole, train_size or 500))
    if name == "mnist1d":
        train, test = _mnist1d()
    else:
        train, test = _read(name, data_dir)
    largest = max(train.labels.max(), test.labels.max())
    if largest >= len(train.labels):
        raise InputError(
            f"data {name} has a label {largest}, but only {len(train.labels)} training"
            " images: labels must count the classes from 0"
        )
    if train_size is not None and train_size != len(train.labels):
        if train_size > len(train.labels):
            raise InputError(
                f"train_size={train_size} is more than the {len(train.labels)} images"
                f" in {data_dir}"
            )
        train, _ = _divide(train, train_size)
    return _dataset(train, test) if name == "mnist1d" else _standardized(train, test)


def _read(name: str, data_dir: Path) -> tuple[Split, Split]:
    match name:
        case "mnist":
            return read_idx_folder(data_dir / "mnist")
        case "fashion-mnist":
            folder = data_dir / "fashion-mnist"
            debian = Path("/usr/share/datasets/fashion-mnist")
            return read_idx_folder(debian if not folder.exists() else folder)
        case "cifar10":
            return read_cifar_folder(data_dir / "cifar-10-batches-bin", 10)
        case "cifar100":
            return read_cifar_folder(data_dir / "cifar-100-binary", 100)
        case _:
            return read_npz_folder(data_dir)


def _mnist1d() -> tuple[Split, Split]:
    """Greydanus and Kobak's data, generated from their seed.

    Reference:
        Greydanus and Kobak, `Scaling Down Deep Learning with MNIST-1D
        <https://arxiv.org/abs/2011.14439>`_, 2020.
    """
    mnist1d = require("mnist1d.data", "experiments")
    state = random.getstate(), np.random.get_state()
    try:  # it seeds the global generators
        made = mnist1d.make_dataset()
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])
    return (
        checked_split(made["x"][..., None], made["y"], "mnist1d"),
        checked_split(made["x_test"][..., None], made["y_test"], "mnist1d"),
    )


def _divide(whole: Split, train_size: int) -> tuple[Split, Split]:
    """Two parts with the classes in proportion."""
    try:
        parts: Any = train_test_split(
            *whole, train_size=train_size, stratify=whole.labels, random_state=0
        )
    except ValueError as error:
        raise InputError(
            f"{train_size} of {len(whole.labels)} images cannot be drawn with the"
            f" classes in proportion: {error}"
        ) from error
    return Split(parts[0], parts[2]), Split(parts[1], parts[3])


def _standardized(train: Split, test: Split) -> Dataset:
    """Images less the mean, over the standard deviation, of each training channel."""
    axes = tuple(range(train.images.ndim - 1))
    mean = train.images.mean(axes, dtype=np.float64)
    deviation = train.images.std(axes, dtype=np.float64).astype(np.float32)
    scale = np.where(deviation > 0, deviation, np.float32(1))

    def standardize(split):
        images = (split.images - mean.astype(np.float32)) / scale
        return Split(images, split.labels)

    return _dataset(standardize(train), standardize(test))


def _dataset(train: Split, test: Split) -> Dataset:
    return Dataset(
        train_images=np.asarray(train.images, np.float32),
        train_labels=np.asarray(train.labels, np.int32),
        test_images=np.asarray(test.images, np.float32),
        test_labels=np.asarray(test.labels, np.int32),
    )


def hold_out(data: Dataset, size: int) -> Dataset:
    """The data set with some of its training images in the place of the test images.

    Args:
        data: the data set.
        size: number of images to hold out, drawn once and for all with the classes in
            proportion; with 0, the data set is left as it is.

    Raises:
        InputError: if there are not so many training images.
    """
    if not size:
        return data
    available = len(data.train_labels)
    if size >= available:
        raise InputError(
            f"validation_size={size} leaves none of the {available} training images"
        )
    whole = Split(data.train_images, data.train_labels)
    return _dataset(*_divide(whole, available - size))


def batch_indices(
    key: jax.Array, num_examples: int, batch_size: int, start: Any, steps: int
) -> jax.Array:
    """The examples of the batches of some steps, shuffled anew each epoch.

    Args:
        key: PRNG key of the shuffles.
        num_examples: number of examples.
        batch_size: examples in a batch; those that fill none sit the epoch out.
        start: first step, which may be traced.
        steps: number of steps.

    Returns:
        Indices, int32, (steps, batch_size).
    """
    steps_per_epoch = num_examples // batch_size
    first_epoch = start // steps_per_epoch
    epochs = first_epoch + jnp.arange((steps - 1) // steps_per_epoch + 2)

    def shuffle(epoch):
        order = jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)
        return order[: steps_per_epoch * batch_size].reshape(-1, batch_size)

    batches = jax.lax.map(shuffle, epochs).reshape(-1, batch_size)
    offset = start - first_epoch * steps_per_epoch
    return jax.lax.dynamic_slice_in_dim(batches, offset, steps)
