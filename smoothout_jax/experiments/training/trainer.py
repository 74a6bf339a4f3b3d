"""The training loop: one method, from several seeds.

Networks without convolutions train side by side in one compiled program, which is
faster. Convolutions are many times slower under `vmap`, so there runs take turns; and
on CPU in a compiled loop, so there steps are taken one by one, as they are where images
are read meanwhile.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smoothout_jax import smoothout_metrics
from smoothout_jax.experiments.averaging import averaged_params
from smoothout_jax.experiments.methods.table import Context, Method
from smoothout_jax.experiments.training.state import (
    Metrics,
    Noise,
    State,
    stack,
    unstack,
)
from smoothout_jax.experiments.training.step import Step
from smoothout_jax.experiments.training.task import Task


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
        self.method, self.task = method, task
        self.steps = task.steps if steps is None else steps
        if strengths is None:
            strengths = [method.strength_of(task.settings)[1]] * len(seeds)
        self._context = Context(
            task.settings, self.steps, method, task.steps_per_epoch, task.batch_norm
        )
        self._seeds, streams = tuple(map(int, seeds)), task.streams
        alone = task.convolves or streams or task.placement.mesh is not None
        self._together = not alone
        self._step = step = Step(method, task, self._context)
        runs: Any = np.asarray(seeds), np.asarray(strengths, np.float32)
        runs = [runs] if self._together else list(zip(*runs, strict=True))
        init, train = step.init, step.train
        if self._together:
            init, train = jax.vmap(init), jax.vmap(train, (0, None, None))
        shapes = jax.eval_shape(init, *runs[0])
        init = jax.jit(init, out_shardings=task.placement.shardings(shapes))
        # One state of all runs, or one of each.
        self._states: list[State] = [init(*run) for run in runs]
        slow = task.convolves and jax.default_backend() == "cpu"
        self._loops = not (slow or streams)
        # The state that comes out can go in again.
        same = jax.tree.map(lambda leaf: leaf.sharding, self._states[0])
        self._program = jax.jit(
            train if self._loops else step.take,
            donate_argnums=0,
            out_shardings=(same, task.placement.replicated),
        )
        self._jitted_batches = jax.jit(step.batches)
        self._evaluated = jax.jit(self._to_evaluate)
        self.compile_seconds, self._compiled = 0.0, {}

    @property
    def state(self) -> State:
        """The states of all runs, along a leading axis."""
        if self._together:
            return self._states[0]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *self._states)

    def restore(self, state: State) -> None:
        """Continues from a state of all runs."""
        states = [state] if self._together else unstack(state)
        places = jax.tree.map(lambda leaf: leaf.sharding, self._states)
        self._states = jax.device_put(states, places)

    def advance(self, start: int, stop: int) -> tuple[Metrics, float]:
        """Trains all runs from the step that they have reached to another.

        Returns:
            Metrics, (runs, steps), and the seconds that the steps took.
        """
        take = self._take_together if self._loops else self._take_one_by_one
        steps = range(start, stop)
        self.compile(steps)
        jax.block_until_ready(self._states)
        began, metrics = time.perf_counter(), []
        for run in range(len(self._states)):
            metrics.append(take(run, steps))
        jax.block_until_ready(self._states)
        seconds = time.perf_counter() - began
        if self._together:
            return jax.tree.map(np.asarray, metrics[0]), seconds
        return stack(metrics), seconds

    def compile(self, steps: range) -> Any:
        """Compiles the program of such steps: of all of them, or of one."""
        key = len(steps) if self._loops else 1
        if key not in self._compiled:
            began = time.perf_counter()
            if self._loops:
                arguments = self._numbers(steps)
            else:
                arguments = next(self._batches_of(0, steps))
            lowered = self._program.lower(self._states[0], arguments, self.task.arrays)
            self._compiled[key] = lowered.compile()
            self.compile_seconds += time.perf_counter() - began
        return self._compiled[key]

    def _take_together(self, run: int, steps: range) -> Metrics:
        program, numbers = self.compile(steps), self._numbers(steps)
        self._states[run], metrics = program(
            self._states[run], numbers, self.task.arrays
        )
        return metrics

    def _take_one_by_one(self, run: int, steps: range) -> Metrics:
        program, metrics = self.compile(steps), []
        for batch in self._batches_of(run, steps):
            self._states[run], measured = program(
                self._states[run], batch, self.task.arrays
            )
            metrics.append(measured)
        return stack(metrics)

    def _batches_of(
        self, run: int, steps: range, state: State | None = None
    ) -> Iterator[tuple[Any, Any]]:
        """What each of the steps takes, as `_step` does."""
        if not self.task.streams:
            state = self._states[run] if state is None else state
            found = self._jitted_batches(state, self._numbers(steps))
            yield from zip(*map(np.asarray, found), strict=True)
            return
        batches = self.task.stream(self._seeds[run], steps)
        for step, batch in zip(steps, batches, strict=True):
            yield batch, np.asarray((step + 1) % self._step.report_every == 0)

    def _numbers(self, steps: range) -> jax.Array:
        return self.task.placement.everywhere(np.asarray(steps, dtype=np.int32))

    def networks(self) -> list[tuple[Any, Any]]:
        """The parameters and statistics of each run to evaluate."""
        return [
            (params, self.task.statistics(params, stats))
            for params, stats in self._evaluated(self._states)
        ]

    def _to_evaluate(self, states: list[State]) -> list[tuple[Any, Any]]:
        def params_of(run):
            if self._context.settings.ema_decay is not None:
                return averaged_params(run.opt_state)
            return self.method.eval_params(run.opt_state, run.params)

        runs = unstack(states[0]) if self._together else states
        return [(params_of(run), run.stats) for run in runs]

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

    def watched(self, best: Any) -> dict[str, np.ndarray]:
        """The accuracy on the watched images, and on the test images where it is best.

        Args:
            best: the highest accuracy of each run on the watched images before. Where
                it is not exceeded, the accuracy on the test images is NaN: they are not
                looked at.
        """
        if "watched" not in self.task.sets:
            return {}

        def accuracy(network, name):
            return self.task.evaluate(*network, only=[name])[f"{name} accuracy"]

        networks = self.networks()
        watched = np.array([accuracy(network, "watched") for network in networks])
        tested = [
            accuracy(network, "test") if better else np.nan
            for network, better in zip(networks, watched > best, strict=True)
        ]
        return {"watched_accuracy": watched, "test_accuracy": np.array(tested)}

    def cost(self, steps: range) -> str:
        """Parameters, FLOPs and memory of a step, in words; compiles such steps."""
        run = unstack(self._states[0])[0] if self._together else self._states[0]
        size = sum(leaf.size for leaf in jax.tree.leaves(run.params))
        costs = [f"{size / 1e6:.3g} M parameters"]
        each = next(self._batches_of(0, steps[:1], state=run))
        step = jax.jit(self._step.take).lower(run, each, self.task.arrays)
        counts: Any = step.cost_analysis()  # not every backend knows
        if counts and "flops" in counts:
            # Of the parts of a batch, two are counted.
            flops = counts["flops"] * max(1, self.task.settings.accumulate / 2)
            costs.append(f"{flops / 1e9:.3g} GFLOP a step")
        if memory := self.compile(steps).memory_analysis():
            used = memory.temp_size_in_bytes + memory.argument_size_in_bytes
            costs.append(f"{used / 1e6:.3g} MB of memory")
        return ", ".join(costs)
