"""A running mean of the weights, as an Optax transformation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class AveragingState(NamedTuple):
    """Number of updates, the mean before it is corrected for its start, its decay."""

    averaged_updates: jax.typing.ArrayLike
    averaged_params: Any
    averaging_decay: jax.Array


def averaging(decay: jax.typing.ArrayLike) -> optax.GradientTransformation:
    """Keeps an exponential moving average of the parameters; goes last in a chain.

    The decay, in [0, 1), may be traced. `optax.ema` averages updates instead.

    Reference:
        Polyak and Juditsky, `Acceleration of Stochastic Approximation by Averaging
        <https://doi.org/10.1137/0330046>`_, 1992.
    """

    def init(params):
        return AveragingState(
            jnp.zeros([], jnp.int32),
            optax.tree.zeros_like(params),
            jnp.asarray(decay, jnp.float32),
        )

    def update(updates, state, params: Any = None):
        number, mean, decay = state
        updated = optax.apply_updates(params, updates)
        mean = optax.tree.update_moment(updated, mean, decay, 1)
        return updates, AveragingState(optax.safe_increment(number), mean, decay)

    return optax.GradientTransformation(init, update)


def averaged_params(state: Any) -> Any:
    """The mean of the parameters in the state of a training that keeps one."""
    updates, mean, decay = (
        optax.tree.get(state, name) for name in AveragingState._fields
    )
    return optax.tree.bias_correction(mean, decay, jnp.maximum(updates, 1))
