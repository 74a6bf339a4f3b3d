"""Data sets: arrays of images and labels, split for training and testing."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


class Dataset(NamedTuple):
    """Images and labels.

    Attributes:
        train_images: float32, (training images, pixels), in [0, 1].
        train_labels: int32, (training images,).
        test_images: float32, (test images, pixels), in [0, 1].
        test_labels: int32, (test images,).
    """

    train_images: jax.Array
    train_labels: jax.Array
    test_images: jax.Array
    test_labels: jax.Array


def digits(train_size: int) -> Dataset:
    """Scikit-learn's digits: 1,797 images of 8 × 8 pixels, embedded in the package.

    Args:
        train_size: number of training images, drawn once and for all with the classes
            in proportion; the other images are for testing.

    Returns:
        The data set.
    """
    images, labels = load_digits(return_X_y=True)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images / 16, labels, train_size=train_size, stratify=labels, random_state=0
    )
    return Dataset(
        train_images=jnp.asarray(train_images, jnp.float32),
        train_labels=jnp.asarray(train_labels, jnp.int32),
        test_images=jnp.asarray(test_images, jnp.float32),
        test_labels=jnp.asarray(test_labels, jnp.int32),
    )


def batch_indices(
    key: jax.Array, num_examples: int, batch_size: int, steps: int
) -> jax.Array:
    """The examples of each step's batch, shuffled anew each epoch.

    Args:
        key: PRNG key of the shuffles.
        num_examples: number of examples.
        batch_size: examples in a batch; those that fill none sit the epoch out.
        steps: number of batches.

    Returns:
        Indices, int32, (steps, batch_size).
    """
    steps_per_epoch = num_examples // batch_size
    epochs = -(-steps // steps_per_epoch)
    shuffle = jax.vmap(lambda key: jax.random.permutation(key, num_examples))
    order = shuffle(jax.random.split(key, epochs))
    kept = order[:, : steps_per_epoch * batch_size]
    return kept.reshape(-1, batch_size)[:steps]
