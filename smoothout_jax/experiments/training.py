"""Training several methods from several seeds, side by side.

The seeds of a method train together in one compiled program. The methods take turns
every few steps, so that the time of each is measured under the same load.
"""

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from smoothout_jax import smooth, uniform
from smoothout_jax.experiments import methods
from smoothout_jax.experiments.data import Dataset, batch_indices
from smoothout_jax.experiments.settings import Settings

ROUNDS = 20
DIRECTIONS = 5
DISTANCES = np.linspace(-1.5, 1.5, 61)


class Outcome(NamedTuple):
    """What one method reached; the leading axis of every array is the seed.

    Attributes:
        test_accuracy: fraction of the test images classified rightly.
        train_accuracy: the same of the training images.
        test_loss: cross entropy, in nats.
        train_loss: cross entropy, in nats.
        loss_rise: mean rise of the training loss under noise, in nats.
        loss_curve: training loss along a line through the parameters, at `DISTANCES`
            in units of each filter's norm, averaged over random directions.
    """

    test_accuracy: Any
    train_accuracy: Any
    test_loss: Any
    train_loss: Any
    loss_rise: Any
    loss_curve: Any


class MLP(nn.Module):
    """A multilayer perceptron with ReLU units and ten classes."""

    hidden_sizes: tuple[int, ...]

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns the logits, (images, 10)."""
        for size in self.hidden_sizes:
            images = nn.relu(nn.Dense(size)(images))
        return nn.Dense(10)(images)


class Trainer:
    """Trains one method from all seeds at once.

    Args:
        name: the method, a key of `methods.METHODS`.
        settings: the settings of the comparison.
        data: the data set.
    """

    def __init__(self, name: str, settings: Settings, data: Dataset):
        self._method = methods.METHODS[name]
        self._settings = settings
        self._data = data
        self._network = MLP(settings.hidden_sizes)
        seeds = jax.vmap(jax.random.key)(jnp.arange(settings.seeds))
        # One key for the parameters, one for the noise, one for the batches.
        self._keys = jax.vmap(lambda key: jax.random.split(key, 3))(seeds)
        self._batches = jax.jit(jax.vmap(self._all_batches))(self._keys)
        self._state = jax.jit(jax.vmap(self._start))(self._keys)
        self._train = jax.jit(jax.vmap(self._train_seed), donate_argnums=1)
        self._compiled = {}

    def advance(self, start: int, stop: int) -> float:
        """Trains from one step to another and returns the seconds it took."""
        batches = jax.block_until_ready(self._batches[:, start:stop])
        arguments = (self._keys, self._state, batches)
        if stop - start not in self._compiled:
            self._compiled[stop - start] = self._train.lower(*arguments).compile()
        began = time.perf_counter()
        self._state = jax.block_until_ready(self._compiled[stop - start](*arguments))
        return time.perf_counter() - began

    def evaluate(self) -> Outcome:
        """Measures the trained networks, at their clean parameters."""
        outcome = jax.jit(jax.vmap(self._evaluate_seed))(self._state)
        return jax.tree.map(np.asarray, outcome)

    def _transformation(self, key):
        optimizer = methods.optimizer(self._settings)
        transformation = self._method.wrap(optimizer, self._settings, key)
        return optax.with_extra_args_support(transformation)

    def _all_batches(self, keys):
        settings = self._settings
        return batch_indices(
            keys[2], settings.train_size, settings.batch_size, settings.steps
        )

    def _start(self, keys):
        params = self._network.init(keys[0], self._data.train_images[:1])
        return params, self._transformation(keys[1]).init(params)

    def _logits(self, params, images) -> Any:
        return self._network.apply(params, images)

    def _loss(self, params, images, labels):
        logits = self._logits(params, images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    def _train_seed(self, keys, state, batches):
        transformation = self._transformation(keys[1])

        def step(state, batch):
            params, opt_state = state
            images = self._data.train_images[batch]
            labels = self._data.train_labels[batch]
            # SAM takes a second gradient by the grad_fn; the others leave it alone.
            grad_fn = jax.grad(lambda params, _: self._loss(params, images, labels))
            updates, opt_state = transformation.update(
                grad_fn(params, 0), opt_state, params, grad_fn=grad_fn
            )
            return (optax.apply_updates(params, updates), opt_state), None

        return jax.lax.scan(step, state, batches)[0]

    def _evaluate_seed(self, state) -> Outcome:
        params, opt_state = state
        params = self._method.eval_params(opt_state, params)
        train = self._data.train_images, self._data.train_labels
        test = self._data.test_images, self._data.test_labels

        def accuracy(images, labels):
            logits = self._logits(params, images)
            return (logits.argmax(-1) == labels).mean()

        noise = uniform(self._settings.noise_radius, relative_to="filter")
        samples = self._settings.noise_samples
        under_noise = smooth(self._loss, noise, num_copies=samples, execution="scan")
        train_loss = self._loss(params, *train)
        # One key for all methods and seeds: their differences are not the noise's.
        rise = under_noise(jax.random.key(0), params, *train) - train_loss
        return Outcome(
            test_accuracy=accuracy(*test),
            train_accuracy=accuracy(*train),
            test_loss=self._loss(params, *test),
            train_loss=train_loss,
            loss_rise=rise,
            loss_curve=self._loss_curve(params),
        )

    def _loss_curve(self, params):
        """Mean loss on lines along random directions with the norm of each filter."""
        direction = uniform(1.0, relative_to="filter")

        def loss_at(key, distance):
            along = optax.tree.scale(distance, direction(key, params))
            moved = optax.apply_updates(params, along)
            return self._loss(moved, self._data.train_images, self._data.train_labels)

        def curve(key):
            return jax.lax.map(lambda d: loss_at(key, d), jnp.asarray(DISTANCES))

        keys = jax.random.split(jax.random.key(1), DIRECTIONS)
        return jax.lax.map(curve, keys).mean(0)
