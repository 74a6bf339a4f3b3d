"""Rivals of SmoothOut that Optax does not have, as Optax transformations."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from smoothout_jax.noise import Noise


class MomentumSamState(NamedTuple):
    """State of `msam`.

    Attributes:
        msam_params: the parameters w, unperturbed.
        msam_state: state of the optimizer.
    """

    msam_params: Any
    msam_state: Any


def msam(
    optimizer: optax.GradientTransformation, rho: Any
) -> optax.GradientTransformation:
    """Momentum-SAM: gradients at w - ρ v / ‖v‖, v being the optimizer's momentum.

    The training loop holds the perturbed parameters; `msam_eval_params` gives those to
    evaluate. In a chain, what precedes this transformation gets the perturbed
    parameters, and `optimizer` the unperturbed ones. As in the authors' program, put
    weight decay that is part of the gradient before it, and that of AdamW inside.

    Args:
        optimizer: an optimizer with momentum, of SGD (`trace`) or Adam (`mu`).
        rho: length ρ of the perturbation; may be traced.

    Reference:
        Becker et al., `Momentum-SAM: Sharpness Aware Minimization without Computational
        Overhead <https://arxiv.org/abs/2401.12033>`_, 2024, algorithm 1.
    """

    def init(params):
        return MomentumSamState(jax.tree.map(jnp.copy, params), optimizer.init(params))

    def update(updates, state, params=None):
        updates, inner = optimizer.update(updates, state.msam_state, state.msam_params)
        clean = optax.apply_updates(state.msam_params, updates)
        momentum = _momentum(inner)
        norm = optax.tree.norm(momentum)
        step = jnp.where(norm > 0, -rho / jnp.where(norm > 0, norm, 1.0), 0.0)
        perturbed = optax.tree.add_scale(clean, step, momentum)
        return optax.tree.sub(perturbed, params), MomentumSamState(clean, inner)

    return optax.GradientTransformation(init, update)


def _momentum(state: Any) -> Any:
    trace = optax.tree.get(state, "trace")
    return optax.tree.get(state, "mu") if trace is None else trace


def msam_eval_params(state: Any, params: Any) -> Any:
    """The unperturbed parameters of training with `msam`, alone or in a chain."""
    del params
    return optax.tree.get(state, "msam_params")


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
