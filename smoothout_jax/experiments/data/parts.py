"""A data set and its parts: drawn, held out, or with wrong labels."""

from typing import Literal, NamedTuple

import numpy as np
from sklearn.model_selection import train_test_split

from smoothout_jax.experiments.data.readers import Split
from smoothout_jax.experiments.options import InputError


class Dataset(NamedTuple):
    """Images and labels.

    Attributes:
        train_images: float32 or uint8, (training images, …), channels last; or
            `ImageFiles`, which are read when they are needed.
        train_labels: int32, (training images,).
        test_images: likewise, (test images, …).
        test_labels: int32, (test images,).
        true_labels: int32, (training images,): those before any were made wrong.
        watched: images held out beside the test images, with their labels, if any.
        heldout: images held out to measure the gap to the training loss, likewise.
        scaling: mean and deviation of each channel, by which images are standardized,
            unless they are uint8: those are standardized as they are used.
        classes: names of the classes, if they have any.
        digest: a hash by which the files are recognised, if they may change.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    true_labels: np.ndarray
    watched: Split | None = None
    heldout: Split | None = None
    scaling: tuple[np.ndarray, np.ndarray] | None = None
    classes: tuple[str, ...] = ()
    digest: str = ""

    @property
    def num_classes(self) -> int:
        """Number of classes; labels are 0 to `num_classes` - 1."""
        return 1 + int(max(self.train_labels.max(), self.test_labels.max()))


def divide(whole: Split, train_size: int) -> tuple[Split, Split]:
    """Draws two parts with the classes in proportion.

    An image that is alone in its class is drawn like those of the largest class.
    """
    counts, total = np.bincount(whole.labels), len(whole.labels)
    strata = np.where(counts[whole.labels] == 1, counts.argmax(), whole.labels)
    try:
        parts = train_test_split(
            np.arange(total), train_size=train_size, stratify=strata, random_state=0
        )
    except ValueError as error:
        raise InputError(
            f"{train_size} of {total} images cannot be drawn with the classes in"
            f" proportion: {error}"
        ) from error
    drawn, rest = (Split(whole.images[part], whole.labels[part]) for part in parts)
    return drawn, rest


def with_wrong_labels(
    data: Dataset, fraction: float, kind: Literal["symmetric", "pair"]
) -> Dataset:
    """Makes training labels wrong, as many of each class, by a fixed draw.

    Args:
        data: the data set.
        fraction: fraction of the labels of each class, rounded to whole labels.
        kind: `"symmetric"` for any of the other classes with the same probability,
            `"pair"` for the next class, and for the last class the first.
    """
    if not fraction:
        return data
    draw, labels = np.random.default_rng(0), data.train_labels.copy()
    for label in range(data.num_classes):
        (members,) = np.nonzero(data.train_labels == label)
        wrong = draw.choice(members, round(fraction * len(members)), replace=False)
        steps = draw.integers(1, data.num_classes, len(wrong))
        labels[wrong] = (label + (steps if kind == "symmetric" else 1)) % (
            data.num_classes
        )
    return data._replace(train_labels=labels)


def hold_out(
    data: Dataset,
    *,
    validation_size: int = 0,
    watch_size: int = 0,
    heldout_size: int = 0,
) -> Dataset:
    """Takes some of the training images out, a draw with the classes in proportion.

    Args:
        data: the data set.
        validation_size: number of images to put in the place of the test images.
        watch_size: number of images to watch beside them.
        heldout_size: number of images to measure the gap on; give one of the three.

    Raises:
        InputError: if there are too few training images.
    """
    sizes = {
        "validation_size": validation_size,
        "watch_size": watch_size,
        "heldout_size": heldout_size,
    }
    size, available = sum(sizes.values()), len(data.train_labels)
    if not size:
        return data
    if size >= available:
        name = next(name for name, given in sizes.items() if given)
        raise InputError(
            f"{name}={size} leaves none of the {available} training images"
        )
    kept, out = divide(Split(np.arange(available), data.train_labels), available - size)
    held = Split(data.train_images[out.images], out.labels)
    data = data._replace(
        train_images=data.train_images[kept.images],
        train_labels=kept.labels,
        true_labels=data.true_labels[kept.images],
    )
    if watch_size:
        return data._replace(watched=held)
    if heldout_size:
        return data._replace(heldout=held)
    return data._replace(test_images=held.images, test_labels=held.labels)
