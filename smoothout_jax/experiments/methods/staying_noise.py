"""The authors' ablation of SmoothOut, as an Optax transformation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from smoothout_jax.noise import Noise


class StayingNoiseState(NamedTuple):
    """State of `staying_noise`.

    Attributes:
        staying_key_data: data of the PRNG key.
        staying_step: number of updates, int32.
    """

    staying_key_data: jax.Array
    staying_step: jax.typing.ArrayLike


def staying_noise(noise: Noise, key: jax.Array) -> optax.GradientTransformation:
    """Adds noise to the parameters after each update, and leaves it there.

    This is SmoothOut without de-noising, the authors' ablation. Put it last in a chain.

    Args:
        noise: the law of the noise.
        key: PRNG key, typed.
    """

    def init(params):
        del params
        return StayingNoiseState(jax.random.key_data(key), jnp.zeros([], jnp.int32))

    def update(updates, state, params=None):
        data, step = state
        step_key = jax.random.fold_in(jax.random.wrap_key_data(data), step)
        updated = optax.tree.add(params, updates)
        updates = optax.tree.add(updates, noise(step_key, updated, step))
        return updates, StayingNoiseState(data, optax.safe_increment(step))

    return optax.GradientTransformation(init, update)
