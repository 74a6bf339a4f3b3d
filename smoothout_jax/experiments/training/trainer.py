"""The training loop: one method, from several seeds.

Networks without convolutions train side by side in one compiled program, which is
faster. Convolutions are many times slower under `vmap` (one kernel for each run): there
runs take turns, on CPU in short loops, between which an interruption is noticed.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from smoothout_jax import (
    LossRiseState,
    init_loss_rise,
    smoothout_metrics,
    smoothout_value_and_grad,
)
from smoothout_jax.experiments import interruptions
from smoothout_jax.experiments.averaging import averaged_params
from smoothout_jax.experiments.data.batches import batch_indices
from smoothout_jax.experiments.methods.table import Context, Method
from smoothout_jax.experiments.regime import augment
from smoothout_jax.experiments.training import gap
from smoothout_jax.experiments.training.state import (
    Metrics,
    Noise,
    State,
    Watched,
    stack,
    unstack,
)
from smoothout_jax.experiments.training.task import Task

__all__ = ["State", "Trainer", "stack"]

# The loops of a run: the batches of each, and after which steps losses are reported.
Loops = list[tuple[jax.Array, jax.Array]]


class Trainer:
    """Trains one method on a task, in several runs.

    Args:
        method: the method.
        task: the task.
        seeds: the seed of each run.
        strengths: the strength of the method in each run; by default that of the
            settings.
        steps: updates in the whole of training; by default the task's.

    Attributes:
        steps: updates in the whole of training.
        compile_seconds: seconds spent compiling so far.
    """

    def __init__(
        self,
        method: Method,
        task: Task,
        seeds: Sequence[int],
        strengths: Sequence[float] | None = None,
        steps: int | None = None,
    ):
        self.method, self._task = method, task
        self.steps = task.steps if steps is None else steps
        if strengths is None:
            strengths = [method.strength_of(task.settings)[1]] * len(seeds)
        self._context = Context(
            task.settings, self.steps, method, task.steps_per_epoch, task.batch_norm
        )
        self._together = not task.convolves and task.placement.mesh is None
        self.compile_seconds, self._compiled = 0.0, {}
        self._evaluated = jax.jit(self._to_evaluate)
        self._groups = self._begin(np.asarray(seeds), np.asarray(strengths, np.float32))

    @property
    def state(self) -> State:
        """The states of all runs, along a leading axis."""
        if self._together:
            return self._groups[0]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *self._groups)

    def restore(self, state: State) -> None:
        """Continues from a state of all runs."""
        groups = [state] if self._together else unstack(state)
        places = jax.tree.map(lambda leaf: leaf.sharding, self._groups)
        self._groups = jax.device_put(groups, places)

    def prepare(self, start: int, stop: int) -> tuple[list[Loops], Any]:
        """Draws the batches from one step to another, and compiles their program."""
        batches = self._draw(start, stop - start)
        batches = [batches] if self._together else list(batches)
        reports = self._task.placement.everywhere(gap.due(self._task, start, stop))
        parts = self._loops(reports)
        loops = [list(zip(self._loops(each), parts, strict=True)) for each in batches]
        return loops, self._training_program(self._groups[0], loops[0][0])

    def advance(
        self, start: int, stop: int, stopped: Callable[[], bool] = lambda: False
    ) -> tuple[Metrics, float]:
        """Trains all runs from one step to another.

        Args:
            start: the step that the runs have reached.
            stop: the step to train to.
            stopped: says whether to end early; called between short loops.

        Returns:
            Metrics, (runs, steps), and the seconds that the steps took.
        """
        loops, program = self.prepare(start, stop)
        jax.block_until_ready((self._groups, loops))
        began = time.perf_counter()
        metrics = []
        for run, group in enumerate(zip(self._groups, loops, strict=True)):
            self._groups[run], measured = self._run(program, *group, stopped)
            metrics.append(measured)
        jax.block_until_ready(self._groups)
        seconds = time.perf_counter() - began
        if self._together:
            return jax.tree.map(np.asarray, metrics[0]), seconds
        return stack(metrics), seconds

    def networks(self) -> list[tuple[Any, Any]]:
        """The parameters and statistics of each run to evaluate."""
        return [
            (params, self._task.statistics(params, stats))
            for params, stats in self._evaluated(self._groups)
        ]

    def _to_evaluate(self, groups: list[State]) -> list[tuple[Any, Any]]:
        """The parameters of each run to evaluate, and the statistics of training."""
        averaged = self._context.settings.ema_decay is not None
        return [
            (
                averaged_params(run.opt_state)
                if averaged
                else self.method.eval_params(run.opt_state, run.params),
                run.stats,
            )
            for run in (unstack(groups[0]) if self._together else groups)
        ]

    def noise(self) -> Noise:
        """The size of the noise in use, and the rise of the loss, if it is held."""
        method, settings = self.method, self._context.settings
        if not method.holds_rise(settings):
            return Noise()
        metrics = jax.tree.map(np.asarray, smoothout_metrics(self.state))
        radius = metrics["noise_scale"] * method.largest(settings)
        names = ("loss_rise_estimate",)
        if method.follows_gap(settings):
            names += "loss_rise_target", "loss_gap"
        return Noise(radius, *(metrics.get(name) for name in names))

    def watched(self, best: Any) -> Watched:
        """The accuracy on the watched images, and on the test images where it is best.

        Args:
            best: the highest accuracy of each run on the watched images before, (runs,)
                or one of all. Where it is not exceeded, the test images are not looked
                at: their accuracy is NaN.
        """
        if "watched" not in self._task.sets:
            return Watched()

        def accuracy(network, name):
            return self._task.evaluate(*network, only=[name])[f"{name} accuracy"]

        networks = self.networks()
        watched = np.array([accuracy(network, "watched") for network in networks])
        tested = [
            accuracy(network, "test") if better else np.nan
            for network, better in zip(networks, watched > best, strict=True)
        ]
        return Watched(watched, np.array(tested))

    def _begin(self, seeds, strengths) -> list[State]:
        """The initial states: one of all runs that train together, or one for each."""
        if self._together:
            return [jax.jit(jax.vmap(self._init))(seeds, strengths)]
        shapes = jax.eval_shape(self._init, seeds[0], strengths[0])
        shardings = self._task.placement.shardings(shapes)
        init = jax.jit(self._init, out_shardings=shardings)
        return [init(*run) for run in zip(seeds, strengths, strict=True)]

    def _draw(self, start, steps) -> jax.Array:
        """Draws the batches of all runs: indices, (runs, steps, batch_size)."""
        keys = [group.batch_key for group in self._groups]
        keys = keys[0] if self._together else jnp.stack(keys)
        draw = jax.vmap(lambda key, start: self._batches(key, start, steps), (0, None))
        first = np.int32(start)
        return self._program(steps, draw, keys, first)(keys, first)

    def _training_program(self, state, loop):
        """Compiles the program of a loop."""
        function, task = self._scan, self._task
        data = task.training_data, task.gap_batches
        if self._together:
            function = jax.vmap(function, (0, (0, None), None))
        program = self._program(
            loop[0].shape,
            function,
            *(state, loop, data),
            donate_argnums=0,
            # So that the state that comes out can go in again.
            out_shardings=(
                jax.tree.map(lambda leaf: leaf.sharding, state),
                task.placement.replicated,
            ),
        )
        return lambda state, loop: program(state, loop, data)

    def _program(self, name, function, *arguments, **options):
        if name not in self._compiled:
            began = time.perf_counter()
            lowered = jax.jit(function, **options).lower(*arguments)
            self._compiled[name] = lowered.compile()
            self.compile_seconds += time.perf_counter() - began
        return self._compiled[name]

    def _loops(self, steps: jax.Array) -> jax.Array | list[jax.Array]:
        """Splits what steps take by the loop, all loops of the same length."""
        longest = self._task.longest_loop
        if longest is None:
            return [steps]
        length = max(n for n in range(1, longest + 1) if len(steps) % n == 0)
        return steps.reshape(-1, length, *steps.shape[1:])

    def _run(self, program, state, loops, stopped) -> Any:
        metrics = []
        for loop in loops:
            interruptions.check()
            state, measured = program(state, loop)
            metrics.append(measured)
            if stopped():
                break
        axis = 1 if self._together else 0
        return state, jax.tree.map(lambda *m: jnp.concatenate(m, axis), *metrics)

    def _init(self, seed, strength) -> State:
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
        if self.method.copies is None:
            return None
        _, rise = self._context.noise_and_rise(strength)
        return None if rise is None else init_loss_rise(rise)

    def _transformation(self, strength, key):
        transformation = self.method.transform(self._context, strength, key)
        return optax.with_extra_args_support(transformation)

    def _batches(self, batch_key, start, steps):
        task = self._task
        return batch_indices(
            jax.random.wrap_key_data(batch_key),
            len(task.data.train_images),
            task.settings.batch_size,
            start,
            steps,
        )

    def _scan(self, state, loop, data):
        training_data, gap_batches = data

        def step(state, each):
            batch, is_due = each
            state, metrics = self._step(state, batch, training_data)
            state = gap.reported(state, is_due, gap_batches, self.method, self._task)
            return state, metrics

        return jax.lax.scan(step, state, loop)

    def _step(self, state: State, batch, data) -> tuple[State, Metrics]:
        noise_key = jax.random.wrap_key_data(state.noise_key)
        batch_key = jax.random.wrap_key_data(state.batch_key)
        # Shuffles fold in the number of the epoch, which never gets this large.
        augment_key = jax.random.fold_in(batch_key, 2**31 - 1)
        placement = self._task.placement
        images, labels = (placement.over_data(array[batch]) for array in data)
        images = augment(
            self._task.settings, jax.random.fold_in(augment_key, state.step), images
        )

        # Copies share what is dropped, as a second gradient does.
        dropout_key = jax.random.fold_in(
            jax.random.fold_in(batch_key, 2**31 - 2), state.step
        )

        def loss(params, images, labels):
            return self._task.loss(params, state.stats, images, labels, dropout_key)

        def grad_fn(params, step):  # for SAM's second gradient
            return jax.grad(loss, has_aux=True)(params, images, labels)[0]

        ((value, (stats, accuracy)), grads), rise = self._value_and_grad(loss, state)(
            jax.random.fold_in(noise_key, state.step), state.params, images, labels
        )
        updates, opt_state = self._transformation(state.strength, noise_key).update(
            grads, state.opt_state, state.params, grad_fn=grad_fn
        )
        return state._replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            stats=stats,
            opt_state=opt_state,
            rise=rise,
        ), Metrics(value, accuracy)

    def _value_and_grad(self, loss, state: State):
        """A function to value and gradients, and the next state of the rise."""
        method = self.method
        if method.copies is None:
            plain = jax.value_and_grad(loss, has_aux=True)
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
