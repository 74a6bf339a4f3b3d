"""The networks that are timed, each with a loss and fresh batches."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from smoothout_jax.experiments.networks import MLP, ResNet, Transformer


class Problem(NamedTuple):
    """A network to train, with a loss of parameters and batch, each made from a key."""

    label: str
    loss: Callable[[Any, Any], jax.Array]
    init: Callable[[jax.Array], Any]
    batch: Callable[[jax.Array], Any]


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
    return Problem(label, loss, init, batch)


def _on_images(label, network, shape, dtype) -> Problem:
    def images(key):
        return jax.random.normal(key, shape)

    return _problem(f"{label}, batch {shape[0]}", network, images, shape[:1], dtype)


def mlp(batch_size: int = 128, width: int = 512, dtype: Any = jnp.float32) -> Problem:
    """An MLP of five hidden layers on 784 inputs: 1.46 M parameters by default."""
    label, shape = f"MLP 5 × {width}", (batch_size, 784)
    return _on_images(label, MLP((width,) * 5), shape, dtype)


def resnet(depth: int, batch_size: int, dtype: Any = jnp.float32) -> Problem:
    """A residual network with GroupNorm on images of 28 × 28."""
    shape = (batch_size, 28, 28, 1)
    return _on_images(f"ResNet-{depth}", ResNet(depth), shape, dtype)


def transformer(dtype: Any = jnp.float32) -> Problem:
    """A decoder of GPT-2 small's size on random tokens."""
    network, shape = Transformer(), (8, 512)

    def tokens(key):
        return jax.random.randint(key, shape, 0, network.vocabulary)

    label = f"transformer of width {network.width}, batch 8 × 512"
    return _problem(label, network, tokens, shape, dtype, network.vocabulary)


PROBLEMS = {
    "mlp": mlp,
    "resnet20": functools.partial(resnet, 20, 64),
    "resnet44": functools.partial(resnet, 44, 128),
    "resnet44-2048": functools.partial(resnet, 44, 2048),
    "transformer": transformer,
}
