"""What is timed: training steps of SGD around gradients taken in different ways."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from smoothout_jax import smoothout, smoothout_value_and_grad, uniform

LEARNING_RATE = 1e-3
RADIUS = 0.01
RELATIVE_RADIUS = 0.3
RHO = 0.05

State = Any


class Contender(NamedTuple):
    """A way to take a training step."""

    label: str
    # From parameters and a key to the state that a step carries.
    init: Callable[[Any, jax.Array], State]
    # From a loss to a function of a state and a batch to the next state.
    step: Callable[[Callable], Callable[[State, Any], State]]


def uniform_by_leaf(key: jax.Array, params: Any) -> Any:
    """A noise that draws each leaf by itself, as IVON-style code does."""

    def draw(key, leaf):
        return jax.random.uniform(key, leaf.shape, leaf.dtype, -RADIUS, RADIUS)

    keys = optax.tree.split_key_like(key, params)
    return jax.tree.map(draw, keys, params)


def perturb_by(noise: Callable) -> Callable:
    """A function (key, params) to parameters with noise added."""
    return lambda key, params: optax.apply_updates(params, noise(key, params))


def by_gradient(label: str, gradient: Callable) -> Contender:
    """SGD on a gradient: a function (loss, key, params, batch) to `(value, grads)`."""

    def step(loss):
        def take(state, batch):
            params, key = state
            key, noise_key = jax.random.split(key)
            _, grads = gradient(loss, noise_key, params, batch)
            return optax.tree.add_scale(params, -LEARNING_RATE, grads), key

        return take

    return Contender(label, lambda params, key: (params, key), step)


def plain() -> Contender:
    """SGD, the baseline."""
    return by_gradient(
        "SGD", lambda loss, key, params, batch: jax.value_and_grad(loss)(params, batch)
    )


def naive() -> Contender:
    """One copy perturbed by `jax.random.uniform` for each leaf."""

    def gradient(loss, key, params, batch):
        perturbed = perturb_by(uniform_by_leaf)(key, params)
        return jax.value_and_grad(loss)(perturbed, batch)

    return by_gradient("jax.random.uniform by leaf, M = 1", gradient)


def averaged(
    label: str, noise: Any, num_copies: int = 1, *, split: bool = False, **options: Any
) -> Contender:
    """`smoothout_value_and_grad`."""
    label = f"{label}, M = {num_copies}"
    if num_copies > 1:
        label += ", batch split" if split else ", whole batch each"
    if "execution" in options:
        label += f", {options['execution']}"
    if split:
        options["batch_argnums"] = 1

    def gradient(loss, key, params, batch):
        value_and_grad = smoothout_value_and_grad(
            loss, noise, num_copies=num_copies, **options
        )
        return value_and_grad(key, params, batch)

    return by_gradient(label, gradient)


def by_optimizer(label: str, optimizer: Callable) -> Contender:
    """The training loop of Optax, with a function of a key to the optimizer."""

    def init(params, key):
        return params, optimizer(key).init(params)

    def step(loss):
        transformation = optax.with_extra_args_support(optimizer(jax.random.key(0)))

        def take(state, batch):
            params, optimizer_state = state
            grad_fn = jax.grad(lambda params, _: loss(params, batch))
            updates, optimizer_state = transformation.update(
                grad_fn(params, 0), optimizer_state, params, grad_fn=grad_fn
            )
            return optax.apply_updates(params, updates), optimizer_state

        return take

    return Contender(label, init, step)


def sam() -> Contender:
    """`optax.contrib.sam` around SGD: two gradients."""
    ascent = optax.chain(optax.contrib.normalize(), optax.sgd(RHO))
    optimizer = optax.contrib.sam(optax.sgd(LEARNING_RATE), ascent, opaque_mode=True)
    return by_optimizer("optax.contrib.sam", lambda key: optimizer)


def wrapped(label: str, noise: Any, loss_rise: float | None = None) -> Contender:
    """`smoothout` around SGD."""
    return by_optimizer(
        f"smoothout around SGD, {label}",
        lambda key: smoothout(
            optax.sgd(LEARNING_RATE), noise, key=key, loss_rise=loss_rise
        ),
    )


NOISE = uniform(RADIUS)
RELATIVE = uniform(RELATIVE_RADIUS, relative_to="filter", filter_axis=-1)
# All that are compared, the baseline first.
CONTENDERS = {
    "plain": plain(),
    "sam": sam(),
    "naive": naive(),
    "uniform": averaged("uniform", NOISE),
    "filter": averaged("relative to filter", RELATIVE),
    "smoothout": wrapped("uniform, M = 1", NOISE),
    "held": wrapped("relative to filter, M = 1, rise held", RELATIVE, loss_rise=0.1),
    "split": averaged("uniform", NOISE, 4, split=True),
    "whole": averaged("uniform", NOISE, 4),
}
# How noise is added to parameters.
WAYS = {
    "params + 1": lambda key, params: jax.tree.map(lambda leaf: leaf + 1, params),
    "uniform, 8 bits": perturb_by(NOISE),
    "uniform, 16 bits": perturb_by(uniform(RADIUS, bits=16)),
    "uniform, 32 bits": perturb_by(uniform(RADIUS, bits=32)),
    "relative to filter, 8 bits": perturb_by(RELATIVE),
}
