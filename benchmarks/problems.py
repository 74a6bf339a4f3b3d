"""The networks that are timed, each with a loss and fresh batches."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from smoothout_jax.experiments.networks import MLP, ResNet


@dataclasses.dataclass(frozen=True)
class Problem:
    """A network to train.

    Attributes:
        label: name, with the batch size.
        loss: function `loss(params, batch)`.
        init: function of a key to the parameters.
        batch: function of a key to a batch.
    """

    label: str
    loss: Callable[[Any, Any], jax.Array]
    init: Callable[[jax.Array], Any]
    batch: Callable[[jax.Array], Any]


def _classifier(label, network, image_shape, batch_size, dtype=jnp.float32) -> Problem:
    def batch(key):
        images = jax.random.normal(key, (batch_size, *image_shape), dtype)
        return images, jax.random.randint(key, (batch_size,), 0, 10)

    def init(key):
        params = network.init(key, jnp.zeros((1, *image_shape)))
        return jax.tree.map(lambda leaf: leaf.astype(dtype), params)

    def loss(params, batch):
        images, labels = batch
        logits = network.apply(params, images).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return Problem(f"{label}, batch {batch_size}", loss, init, batch)


def mlp(batch_size: int = 128, width: int = 512, **options: Any) -> Problem:
    """An MLP of five hidden layers on 784 inputs: 1.46 M parameters by default."""
    return _classifier(
        f"MLP 5 × {width}", MLP((width,) * 5), (784,), batch_size, **options
    )


def resnet(depth: int = 20, batch_size: int = 64, **options: Any) -> Problem:
    """A residual network with GroupNorm on images of 28 × 28."""
    return _classifier(
        f"ResNet-{depth}", ResNet(depth), (28, 28, 1), batch_size, **options
    )


PROBLEMS = {"mlp": mlp, "resnet20": resnet, "resnet44": functools.partial(resnet, 44)}
