"""What is timed: training steps of SGD around gradients taken in different ways.

Each contender names the copies it should take its gradient at, and is checked against
a plain Python loop over them before it is timed.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from smoothout_jax import (
    SmoothoutState,
    smoothout,
    smoothout_eval_params,
    smoothout_value_and_grad,
    uniform,
)

LEARNING_RATE = 1e-3
RADIUS = 0.01
RELATIVE_RADIUS = 0.3
RHO = 0.05

State = Any
Step = Callable[[State, Any], State]


@dataclasses.dataclass(frozen=True)
class Contender:
    """A way to take a training step.

    Attributes:
        label: its row in the table.
        init: function (params, key) to the state that `step` carries.
        step: function (loss) to a function (state, batch) to the next state.
        expected: function (loss, state, batch) to the clean parameters that the step
            should reach, computed the long way.
    """

    label: str
    init: Callable[[Any, jax.Array], State]
    step: Callable[[Callable], Step]
    expected: Callable[[Callable, State, Any], Any]


def rows(batch, copy: int, num_copies: int):
    """The part of a split batch that one copy takes."""
    return jax.tree.map(lambda leaf: leaf[copy::num_copies], batch)


def uniform_by_leaf(key, params):
    """One `jax.random.uniform` a leaf, as IVON-style code draws its noise."""

    def draw(key, leaf):
        return jax.random.uniform(key, leaf.shape, leaf.dtype, -RADIUS, RADIUS)

    return _by_leaf(draw, key, params)


def bits_by_leaf(key, params):
    """Levels of `jax.random.bits` in eight bits, drawn leaf by leaf."""

    def draw(key, leaf):
        return _levels(jax.random.bits(key, leaf.shape, jnp.uint8))

    return _by_leaf(draw, key, params)


def words_by_leaf(key, params):
    """Levels of `jax.random.bits` in words of 32 bits, each cut into four."""

    def draw(key, leaf):
        words = jax.random.bits(key, (-(-leaf.size // 4),), jnp.uint32)
        return _levels(words.view(jnp.uint8)[: leaf.size].reshape(leaf.shape))

    return _by_leaf(draw, key, params)


def by_gradient(label: str, gradient: Callable, perturbed: Callable) -> Contender:
    """SGD on a gradient.

    Args:
        label: the row.
        gradient: function (loss, key, params, batch) to `(value, grads)`.
        perturbed: function (key, params, batch) to pairs of the parameters and the
            batch of each copy.
    """

    def step(loss):
        def take(state, batch):
            params, key = state
            key, noise_key = jax.random.split(key)
            _, grads = gradient(loss, noise_key, params, batch)
            return _descend(params, grads), key

        return take

    def expected(loss, state, batch):
        params, key = state
        _, noise_key = jax.random.split(key)
        grad = jax.jit(jax.grad(loss))
        grads = [grad(*copy) for copy in perturbed(noise_key, params, batch)]
        mean = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *grads)
        return _descend(params, mean)

    return Contender(label, lambda params, key: (params, key), step, expected)


def plain() -> Contender:
    """SGD, the baseline."""
    return by_gradient(
        "SGD",
        lambda loss, key, params, batch: jax.value_and_grad(loss)(params, batch),
        lambda key, params, batch: [(params, batch)],
    )


def naive() -> Contender:
    """One copy perturbed by `jax.random.uniform` for each leaf."""

    def gradient(loss, key, params, batch):
        perturbed = optax.apply_updates(params, uniform_by_leaf(key, params))
        return jax.value_and_grad(loss)(perturbed, batch)

    def perturbed(key, params, batch):
        return [(optax.apply_updates(params, uniform_by_leaf(key, params)), batch)]

    return by_gradient("jax.random.uniform by leaf, M = 1", gradient, perturbed)


def vmapped(num_copies: int, *, split: bool) -> Contender:
    """Copies perturbed leaf by leaf, all under one `jax.vmap`."""

    def perturb(key, params):
        return optax.apply_updates(params, uniform_by_leaf(key, params))

    def gradient(loss, key, params, batch):
        copies = jax.vmap(perturb, (0, None))(jax.random.split(key, num_copies), params)
        axis = None
        if split:
            axis = 0
            batch = jax.tree.map(
                lambda leaf: jnp.stack(
                    [leaf[m::num_copies] for m in range(num_copies)]
                ),
                batch,
            )
        results = jax.vmap(jax.value_and_grad(loss), (0, axis))(copies, batch)
        return jax.tree.map(lambda leaf: leaf.mean(0), results)

    def perturbed(key, params, batch):
        keys = jax.random.split(key, num_copies)
        return [
            (perturb(k, params), rows(batch, m, num_copies) if split else batch)
            for m, k in enumerate(keys)
        ]

    label = f"copies under vmap, M = {num_copies}, {_batch(split)}"
    return by_gradient(label, gradient, perturbed)


def averaged(
    noise_label: str, noise: Any, num_copies: int = 1, *, split: bool = False, **options
) -> Contender:
    """`smoothout_value_and_grad`."""
    if split:
        options["batch_argnums"] = 1

    def gradient(loss, key, params, batch):
        value_and_grad = smoothout_value_and_grad(
            loss, noise, num_copies=num_copies, **options
        )
        return value_and_grad(key, params, batch)

    def perturbed(key, params, batch):
        keys = jax.random.split(key, num_copies) if num_copies > 1 else key[None]
        return [
            (
                optax.apply_updates(params, noise(k, params)),
                rows(batch, m, num_copies) if split else batch,
            )
            for m, k in enumerate(keys)
        ]

    how = f", {options['execution']}" if "execution" in options else ""
    copies = f", {_batch(split)}" if num_copies > 1 else ""
    label = f"{noise_label}, M = {num_copies}{copies}{how}"
    return by_gradient(label, gradient, perturbed)


def sam() -> Contender:
    """`optax.contrib.sam` around SGD: two gradients."""
    optimizer = optax.contrib.sam(
        optax.sgd(LEARNING_RATE),
        optax.chain(optax.contrib.normalize(), optax.sgd(RHO)),
        opaque_mode=True,
    )

    def expected(loss, state, batch):
        params, _ = state
        grad = jax.jit(jax.grad(loss))
        ascent = grad(params, batch)
        size = RHO / optax.tree.norm(ascent)
        worst = jax.tree.map(lambda p, g: p + size * g, params, ascent)
        return _descend(params, grad(worst, batch))

    return by_optimizer("optax.contrib.sam", lambda key: optimizer, expected)


def held(noise_label: str, noise: Any) -> Contender:
    """`smoothout` that holds the rise."""
    contender = wrapped(noise_label, noise, loss_rise=0.1)
    return dataclasses.replace(contender, label=f"{contender.label}, rise held")


def wrapped(noise_label: str, noise: Any, **options: Any) -> Contender:
    """`smoothout` around SGD."""

    def expected(loss, state, batch):
        perturbed, _ = state
        grads = jax.jit(jax.grad(loss))(perturbed, batch)
        return _descend(clean_params(state), grads)

    return by_optimizer(
        f"smoothout around SGD, {noise_label}, M = 1",
        lambda key: smoothout(optax.sgd(LEARNING_RATE), noise, key=key, **options),
        expected,
    )


def by_optimizer(label: str, optimizer: Callable, expected: Callable) -> Contender:
    """The training loop of Optax.

    Args:
        label: the row.
        optimizer: function of a key to the transformation.
        expected: as for `Contender`.
    """

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

    return Contender(label, init, step, expected)


def clean_params(state: State) -> Any:
    """The clean parameters of any contender's state."""
    params, rest = state
    if isinstance(rest, SmoothoutState):
        return smoothout_eval_params(rest, params)
    return params


def contenders() -> dict[str, Contender]:
    """All that are compared, the baseline first."""
    uniform_noise = uniform(RADIUS)
    relative = uniform(RELATIVE_RADIUS, relative_to="filter", filter_axis=-1)
    return {
        "plain": plain(),
        "sam": sam(),
        "naive": naive(),
        "uniform": averaged("uniform", uniform_noise),
        "filter": averaged("relative to filter", relative),
        "smoothout": wrapped("uniform", uniform_noise),
        "held": held("relative to filter", relative),
        "split": averaged("uniform", uniform_noise, 4, split=True),
        "whole": averaged("uniform", uniform_noise, 4),
        "vmap_split": vmapped(4, split=True),
        "vmap_whole": vmapped(4, split=False),
    }


def _by_leaf(draw, key, params):
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(structure, map(draw, keys, leaves))


def _levels(integers):
    return RADIUS * ((2 * integers.astype(jnp.float32) + 1) / 256 - 1)


def _batch(split: bool) -> str:
    return "batch split" if split else "whole batch each"


def _descend(params, grads):
    return jax.tree.map(
        lambda p, g: (p - LEARNING_RATE * g).astype(p.dtype), params, grads
    )
