"""The networks that are timed, each with a loss and fresh batches."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from smoothout_jax.experiments.networks import MLP, ResNet, Transformer


@dataclasses.dataclass(frozen=True)
class Problem:
    """A network to train.

    Attributes:
        label: name, with the batch size.
        loss: function `loss(params, batch)`.
        init: function of a key to the parameters.
        batch: function of a key to a batch.
        tolerance: error of a step that passes for rounding, as a part of the step.
    """

    label: str
    loss: Callable[[Any, Any], jax.Array]
    init: Callable[[jax.Array], Any]
    batch: Callable[[jax.Array], Any]
    tolerance: float = 0.01


def _problem(label, network, inputs, labels_shape, dtype, classes=10) -> Problem:
    """A classifier of inputs, computed in a dtype from parameters in float32."""

    def batch(key):
        return inputs(key), jax.random.randint(key, labels_shape, 0, classes)

    def init(key):
        return network.init(key, inputs(key)[:1])

    def loss(params, batch):
        data, labels = batch
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        if jnp.issubdtype(data.dtype, jnp.inexact):
            data = data.astype(dtype)
        logits = network.apply(params, data).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    half = jnp.dtype(dtype).itemsize < 4
    label = f"{label}, {jnp.dtype(dtype).name}" if half else label
    return Problem(label, loss, init, batch, tolerance=0.1 if half else 0.01)


def _images(*shape: int) -> Callable[[jax.Array], jax.Array]:
    return lambda key: jax.random.normal(key, shape)


def mlp(batch_size: int = 128, width: int = 512, dtype: Any = jnp.float32) -> Problem:
    """An MLP of five hidden layers on 784 inputs: 1.46 M parameters by default."""
    label = f"MLP 5 × {width}, batch {batch_size}"
    return _problem(
        label, MLP((width,) * 5), _images(batch_size, 784), (batch_size,), dtype
    )


def resnet(depth: int, batch_size: int, dtype: Any = jnp.float32) -> Problem:
    """A residual network with GroupNorm on images of 28 × 28."""
    label = f"ResNet-{depth}, batch {batch_size}"
    images = _images(batch_size, 28, 28, 1)
    return _problem(label, ResNet(depth), images, (batch_size,), dtype)


def transformer(
    batch_size: int = 8,
    length: int = 512,
    dtype: Any = jnp.float32,
    **sizes: int,
) -> Problem:
    """A decoder of GPT-2 small's size on random tokens."""
    network, shape = Transformer(**sizes), (batch_size, length)

    def tokens(key):
        return jax.random.randint(key, shape, 0, network.vocabulary)

    label = f"transformer of width {network.width}, batch {batch_size} × {length}"
    return _problem(label, network, tokens, shape, dtype, network.vocabulary)


PROBLEMS = {
    "mlp": mlp,
    "resnet20": functools.partial(resnet, 20, 64),
    "resnet44": functools.partial(resnet, 44, 128),
    "resnet44-2048": functools.partial(resnet, 44, 2048),
    "transformer": transformer,
}
