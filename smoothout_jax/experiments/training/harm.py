"""What wrong labels did to a network, and what rounding or noise would do to it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from smoothout_jax import flax_filters
from smoothout_jax.experiments.training.task import BATCH, MEASURED_IMAGES, Task
from smoothout_jax.noise import Noise

NOISE_SAMPLES = 3


def memorised(task: Task, params: Any, stats: Any) -> float:
    """Fraction of the wrong labels that a network predicts; NaN if there are none.

    Args:
        task: the task, of whose training images the first are looked at.
        params: the parameters.
        stats: the statistics of BatchNorm.
    """
    labels, true = (
        each[:MEASURED_IMAGES]
        for each in (task.data.train_labels, task.data.true_labels)
    )
    (wrong,) = np.nonzero(labels != true)
    if not len(wrong):
        return float("nan")
    batch = task.data.train_images[wrong], labels[wrong]
    return float(task.measure(params, stats, [batch])["accuracy"])


def accuracy_lost(
    task: Task, params: Any, stats: Any, noise: Noise
) -> dict[str, float]:
    """Test accuracy lost by rounding the weights, and by noise in them.

    Args:
        task: the task, of whose test images the first 2,000 are looked at.
        params: the parameters.
        stats: the statistics of BatchNorm, which stay.
        noise: the noise, of which three samples are taken.
    """
    batches = task.sets["test"][: MEASURED_IMAGES // BATCH]

    def accuracy(params):
        return float(task.measure(params, stats, batches)["accuracy"])

    whole = accuracy(params)
    samples = [
        accuracy(optax.tree.add(params, noise(key, params, 0)))
        for key in jax.random.split(jax.random.key(2), NOISE_SAMPLES)
    ]
    return {
        "lost_at_8_bits": whole - accuracy(rounded(params, 8)),
        "lost_at_4_bits": whole - accuracy(rounded(params, 4)),
        "lost_under_noise": whole - float(np.mean(samples)),
    }


def rounded(params: Any, bits: int) -> Any:
    """Rounds each filter of each matrix or kernel to 2 ** bits - 1 equal levels.

    The largest weight of a filter is kept; biases and scales stay as they are, as in
    the usual quantization of weights.

    Args:
        params: the parameters of a network of Flax.
        bits: number of bits, at least 2.
    """

    def of_leaf(leaf, filter_axes):
        filters = np.arange(leaf.ndim)[np.atleast_1d(filter_axes)]
        others = tuple(axis for axis in range(leaf.ndim) if axis not in filters)
        if not others:  # a bias or a scale
            return leaf
        largest = jnp.abs(leaf).max(others, keepdims=True)
        step = largest / (2 ** (bits - 1) - 1)
        return jnp.where(step > 0, jnp.round(leaf / step) * step, leaf)

    leaves, tree = jax.tree.flatten(params)
    axes = tree.flatten_up_to(flax_filters(params))
    return jax.tree.unflatten(tree, map(of_leaf, leaves, axes))
