"""Checks of data sets: what a network could not learn, or would learn wrongly."""

from typing import Any

import numpy as np

from smoothout_jax.experiments.options import InputError

# Colour images have 3 or 4 channels, grey ones 1 or 2.
MOST_CHANNELS = 4
# How many times as wide the spread of training images may be as that of test images.
WIDEST = 10
# Of the values of test images, the part that may lie outside those for training.
OUTSIDE = 0.25


def check_shape(shape: tuple[int, ...], dtype: Any, source: Any) -> None:
    """Requires a shape of images that can be told to have its channels last.

    Args:
        shape: shape of one image.
        dtype: dtype of the images.
        source: where they come from, to name in errors.

    Raises:
        InputError: if an image has no pixels, no channels, or has them first.
    """
    if not np.prod(shape):
        raise InputError(f"{source}: images of shape {shape} have no pixels")
    *sides, channels = shape
    many = np.issubdtype(dtype, np.integer) and channels > MOST_CHANNELS
    if len(sides) == 1 and sides[0] > 1 and (sides[0] == channels or many):
        raise InputError(
            f"{source}: images of shape {shape} have no axis of channels: append one,"
            " such as by images[..., None]"
        )
    if len(sides) > 1 and sides[0] <= MOST_CHANNELS < min(*sides[1:], channels):
        raise InputError(
            f"{source}: images of shape {shape} have their channels first: move them"
            " to the last axis, such as by np.moveaxis(images, 1, -1)"
        )


def check_labels(train: np.ndarray, test: np.ndarray, name: str) -> None:
    """Requires labels that count the classes from 0, each with a training image.

    Args:
        train: labels of the training images.
        test: labels of the test images.
        name: name of the data set.

    Raises:
        InputError: if they do not, or there is a single class.
    """
    largest = max(train.max(), test.max())
    if largest >= len(train):
        raise InputError(
            f"data {name} has a label {largest}, but only {len(train)} training"
            " images: labels must count the classes from 0"
        )
    shown = np.bincount(train)
    if len(shown) == 1:
        raise InputError(
            f"data {name} has training images of one class only; there must be two"
        )
    if not shown.all():
        raise InputError(
            f"data {name} has no training image of class {shown.argmin()}: labels must"
            f" count the classes from 0, and are {train.min()} to {train.max()}"
        )


def check_images(train: np.ndarray, test: np.ndarray, name: str) -> None:
    """Requires images that differ, and test images of the same scale.

    Args:
        train: the training images.
        test: the test images.
        name: name of the data set.

    Raises:
        InputError: if training images are all alike, or test images have another
            scale.
    """
    if (train == train[0]).all():
        raise InputError(f"data {name} has training images that are all alike")
    (low, high), (test_low, test_high) = (
        (float(images.min()), float(images.max())) for images in (train, test)
    )
    outside = np.count_nonzero((test < low) | (test > high)) / test.size
    spreads = [float(images.std(dtype=np.float64)) for images in (train, test)]
    if outside > OUTSIDE or 0 < WIDEST * min(spreads) < max(spreads):
        raise InputError(
            f"data {name}: training images have values in [{low:g}, {high:g}], test"
            f" images in [{test_low:g}, {test_high:g}]: scale them alike"
        )
