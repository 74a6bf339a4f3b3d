"""A step of training, and the state that it starts from."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from smoothout_jax import (
    LossRiseState,
    init_loss_rise,
    smoothout_report,
    smoothout_value_and_grad,
)
from smoothout_jax.experiments.data.batches import batch_indices
from smoothout_jax.experiments.methods.table import Context, Method
from smoothout_jax.experiments.regime import augment
from smoothout_jax.experiments.training.state import Metrics, State
from smoothout_jax.experiments.training.task import Task

# The gap between held-out and training loss is measured once an epoch, but not sooner.
LEAST_STEPS_OF_A_GAP = 10
# Keys of augmentation and dropout; shuffles fold in epochs, which never get this large.
AUGMENTATION, DROPOUT = 2**31 - 1, 2**31 - 2


class Step:
    """The training step of a method on a task, in a context."""

    def __init__(self, method: Method, task: Task, context: Context):
        self._method, self._task, self._context = method, task, context

    def init(self, seed: Any, strength: Any) -> State:
        """The initial state from a seed."""
        params_key, noise_key, batch_key = jax.random.split(jax.random.key(seed), 3)
        params, stats = self._task.init(params_key)
        return State(
            step=jnp.zeros([], jnp.int32),
            params=params,
            stats=stats,
            opt_state=self._transformation(strength, noise_key).init(params),
            noise_key=jax.random.key_data(noise_key),
            batch_key=jax.random.key_data(batch_key),
            strength=strength,
            rise=self._init_rise(strength),
        )

    def _init_rise(self, strength) -> LossRiseState | None:
        """The rise of the loss, where copies take the gradients and hold it."""
        if self._method.copies is None:
            return None
        _, rise = self._context.noise_and_rise(strength)
        return None if rise is None else init_loss_rise(rise)

    def _transformation(self, strength, key):
        transformation = self._method.transform(self._context, strength, key)
        return optax.with_extra_args_support(transformation)

    def train(self, state: State, steps: Any, arrays: Any) -> tuple[State, Metrics]:
        """Takes steps by their numbers, which are the same in runs side by side."""
        step = functools.partial(self.take, arrays=arrays)
        return jax.lax.scan(step, state, self.batches(state, steps))

    def batches(self, state: State, steps: Any) -> tuple[jax.Array, jax.Array]:
        """The examples of each step, and whether losses are reported after it."""
        task = self._task
        batches = batch_indices(
            jax.random.wrap_key_data(state.batch_key),
            len(task.data.train_images),
            task.settings.batch_size,
            steps[0],
            len(steps),
        )
        return batches, (steps + 1) % self.report_every == 0

    @property
    def report_every(self) -> int:
        """Steps between reports of the gap."""
        return max(LEAST_STEPS_OF_A_GAP, self._task.steps_per_epoch)

    def take(self, state: State, each: Any, arrays: Any) -> tuple[State, Metrics]:
        """Takes one step, `each` as `batches` has it, or with the batch itself."""
        batch, reported = each
        noise_key = jax.random.wrap_key_data(state.noise_key)
        batch_key = jax.random.wrap_key_data(state.batch_key)
        augment_key, dropout_key = (
            jax.random.fold_in(jax.random.fold_in(batch_key, use), state.step)
            for use in (AUGMENTATION, DROPOUT)
        )
        placement = self._task.placement
        if not self._task.streams:
            batch = [array[batch] for array in arrays["train"]]
        images, labels = map(placement.over_data, batch)
        images = self._task.standardized(images)
        images = augment(
            self._task.settings, augment_key, images, cropped=self._task.streams
        )

        def loss(params, images, labels):  # copies share what is dropped
            return self._task.loss(params, state.stats, images, labels, dropout_key)

        def grad_fn(params, step):  # for SAM's second gradient
            return self._plain_gradient(loss)(params, images, labels)[1]

        ((value, (stats, accuracy)), grads), rise = self._value_and_grad(loss, state)(
            jax.random.fold_in(noise_key, state.step), state.params, images, labels
        )
        updates, opt_state = self._transformation(state.strength, noise_key).update(
            grads, state.opt_state, state.params, grad_fn=grad_fn
        )
        state = state._replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            stats=stats,
            opt_state=opt_state,
            rise=rise,
        )
        state = self._report(state, reported, arrays["gap"])
        return state, Metrics(value, accuracy)

    def _value_and_grad(self, loss, state: State):
        """A function to value and gradients, and the next state of the rise."""
        method = self._method
        if method.copies is None:
            plain = self._plain_gradient(loss)
            return lambda key, *arguments: (plain(*arguments), None)
        noise, rise = self._context.noise_and_rise(state.strength)
        value_and_grad = smoothout_value_and_grad(
            loss,
            lambda key, params, step=None: noise(key, params, state.step),
            has_aux=True,
            batch_argnums=(1, 2) if method.splits else (),
            loss_rise=rise,
            **method.copies(self._task.settings),
        )
        if rise is None:
            return lambda *arguments: (value_and_grad(*arguments), None)
        return functools.partial(value_and_grad, state.rise)

    def _plain_gradient(self, loss):
        """The value and gradient of a loss, by parts of the batch if it accumulates."""
        value_and_grad = jax.value_and_grad(loss, has_aux=True)
        parts = self._task.settings.accumulate
        if parts == 1:
            return value_and_grad

        def accumulated(params, *batch):
            # Each part has examples of every device.
            split = [a.reshape(-1, parts, *a.shape[1:]).swapaxes(0, 1) for a in batch]
            first = value_and_grad(params, *(each[0] for each in split))

            def add(total, part):
                return jax.tree.map(jnp.add, total, value_and_grad(params, *part)), None

            total, _ = jax.lax.scan(add, first, [each[1:] for each in split])
            return jax.tree.map(lambda leaf: leaf / parts, total)

        return accumulated

    def _report(self, state: State, is_due, batches) -> State:
        """Reports the losses whose gap the noise follows, if that is due."""
        task, method = self._task, self._method
        if batches is None or not method.follows_gap(task.settings):
            return state

        def measured():
            params = method.eval_params(state.opt_state, state.params)
            return task.losses(params, *batches)

        def not_measured():  # a report that is not finite does not count
            return (jnp.float32(jnp.nan),) * 2

        train_loss, heldout_loss = jax.lax.cond(is_due, measured, not_measured)
        return smoothout_report(
            state,
            train_loss=train_loss,
            heldout_loss=heldout_loss,
            chance_loss=math.log(task.data.num_classes),
        )
