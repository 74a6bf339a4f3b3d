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

from smoothout_jax import smooth, uniform
from smoothout_jax.experiments.data import batch_indices
from smoothout_jax.experiments.methods import Method, optimizer
from smoothout_jax.experiments.settings import Settings
from smoothout_jax.experiments.task import Task

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


class Problem:
    """What all methods share: the task, initial parameters, batches and measures.

    Args:
        settings: the settings of the comparison.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self.task = Task(settings)
        seeds = jax.vmap(jax.random.key)(jnp.arange(settings.seeds))
        keys = jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)(seeds)
        params_keys, self.noise_keys, batch_keys = keys
        self.params = jax.jit(jax.vmap(self.task.init))(params_keys)
        self.batches = jax.jit(jax.vmap(self._batch_indices))(batch_keys)
        self._evaluate = jax.jit(jax.vmap(self._evaluate_seed))

    def evaluate(self, params: Any) -> Outcome:
        """Measures the networks of all seeds."""
        return jax.tree.map(np.asarray, self._evaluate(params))

    def _batch_indices(self, key):
        num_examples = len(self.task.data.train_images)
        return batch_indices(
            key, num_examples, self.settings.batch_size, self.settings.steps
        )

    def _evaluate_seed(self, params) -> Outcome:
        quantities = self.task.quantities(params)
        under_noise = smooth(
            self.task.train_loss,
            uniform(self.settings.noise_radius, relative_to="filter"),
            num_copies=self.settings.noise_samples,
            execution="scan",
        )
        # One key for all methods and seeds: their differences are not the noise's.
        noisy_loss = under_noise(jax.random.key(0), params)
        return Outcome(
            test_accuracy=quantities["test accuracy"],
            train_accuracy=quantities["train accuracy"],
            test_loss=quantities["test loss"],
            train_loss=quantities["train loss"],
            loss_rise=noisy_loss - quantities["train loss"],
            loss_curve=self._loss_curve(params),
        )

    def _loss_curve(self, params):
        """Mean loss on lines along random directions with the norm of each filter."""
        draw_direction = uniform(1.0, relative_to="filter")

        def curve(key):
            direction = draw_direction(key, params)

            def loss_at(distance):
                return self.task.train_loss(
                    optax.tree.add_scale(params, distance, direction)
                )

            return jax.lax.map(loss_at, jnp.asarray(DISTANCES, jnp.float32))

        keys = jax.random.split(jax.random.key(1), DIRECTIONS)
        return jax.lax.map(curve, keys).mean(0)


class Trainer:
    """Trains one method on a problem, from all seeds at once.

    Args:
        method: the method.
        problem: the problem.
    """

    def __init__(self, method: Method, problem: Problem):
        self._method = method
        self._problem = problem
        params = jax.tree.map(jnp.copy, problem.params)
        init = jax.vmap(lambda key, params: self._transformation(key).init(params))
        self._state = params, jax.jit(init)(problem.noise_keys, params)
        self._train = jax.jit(jax.vmap(self._train_seed), donate_argnums=1)
        self._compiled = {}

    def advance(self, start: int, stop: int) -> float:
        """Trains from one step to another and returns the seconds it took."""
        batches = jax.block_until_ready(self._problem.batches[:, start:stop])
        arguments = (self._problem.noise_keys, self._state, batches)
        if stop - start not in self._compiled:
            self._compiled[stop - start] = self._train.lower(*arguments).compile()
        began = time.perf_counter()
        self._state = jax.block_until_ready(self._compiled[stop - start](*arguments))
        return time.perf_counter() - began

    def params(self) -> Any:
        """The parameters to evaluate, of all seeds."""
        params, opt_state = self._state
        return self._method.eval_params(opt_state, params)

    def _transformation(self, key):
        settings = self._problem.settings
        transformation = self._method.wrap(optimizer(settings), settings, key)
        return optax.with_extra_args_support(transformation)

    def _train_seed(self, noise_key, state, batches):
        transformation = self._transformation(noise_key)
        task = self._problem.task
        num_parts = self._method.parts(self._problem.settings)

        def step(state, batch):
            params, opt_state = state
            parts = batch.reshape(-1, num_parts)

            # SAM and averaged copies take gradients by the grad_fn; others leave it.
            @jax.grad
            def grad_fn(params, copy):
                part = parts[:, copy if num_parts > 1 else 0]
                images = task.data.train_images[part]
                return task.loss(params, images, task.data.train_labels[part])

            updates, opt_state = transformation.update(
                grad_fn(params, 0), opt_state, params, grad_fn=grad_fn
            )
            return (optax.apply_updates(params, updates), opt_state), None

        return jax.lax.scan(step, state, batches)[0]
