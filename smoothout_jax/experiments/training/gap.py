"""The gap between held-out and training loss, reported at fixed steps of training.

A report comes after a step whose number is a multiple of those of an epoch, so that it
does not depend on how training is divided into loops, or where it was interrupted.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smoothout_jax import smoothout_report
from smoothout_jax.experiments.methods.table import Method
from smoothout_jax.experiments.training.state import State
from smoothout_jax.experiments.training.task import Task

LEAST_STEPS = 10


def due(task: Task, start: int, stop: int) -> np.ndarray:
    """Whether a report follows each step from one to another, (steps,)."""
    every = max(LEAST_STEPS, task.steps_per_epoch)
    return np.arange(start + 1, stop + 1) % every == 0


def reported(
    state: State, is_due: jax.Array, batches: Any, method: Method, task: Task
) -> State:
    """The state after a report, or as it is where none is due or no gap followed.

    Args:
        state: the state of a run.
        is_due: whether it is, traced; the same for runs side by side, which then
            measure no losses in vain.
        batches: the task's `gap_batches`.
        method: the method.
        task: the task.
    """
    if batches is None or not method.follows_gap(task.settings):
        return state

    def measured():
        params = method.eval_params(state.opt_state, state.params)
        return task.losses(params, state.stats, *batches)

    def not_measured():
        return (jnp.float32(jnp.nan),) * 2

    # A report that is not finite does not count.
    train_loss, heldout_loss = jax.lax.cond(is_due, measured, not_measured)
    return smoothout_report(
        state,
        train_loss=train_loss,
        heldout_loss=heldout_loss,
        chance_loss=math.log(task.data.num_classes),
    )
