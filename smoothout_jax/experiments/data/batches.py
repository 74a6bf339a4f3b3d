"""Batches: which examples each step takes."""

from typing import Any

import jax
import jax.numpy as jnp


def batch_indices(
    key: jax.Array, num_examples: int, batch_size: int, start: Any, steps: int
) -> jax.Array:
    """Picks the examples of each batch, in a new order each epoch.

    Args:
        key: PRNG key of the shuffles.
        num_examples: number of examples.
        batch_size: examples in a batch; an epoch skips those that do not fill one.
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
