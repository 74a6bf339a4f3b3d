"""What Optax demands of its contributions, of every transformation with every noise."""

import functools

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding

from smoothout_jax import (
    cosine_schedule,
    exclude,
    gaussian,
    smooth_gradients,
    smoothout,
    uniform,
)

KEY = jax.random.key(0)
LAWS = {
    "uniform": uniform,
    "16 bits": functools.partial(uniform, bits=16),
    "32 bits": functools.partial(uniform, bits=32),
    "gaussian": gaussian,
    "masked": functools.partial(uniform, mask=exclude("bias")),
    "rising": lambda size: uniform(cosine_schedule(size, 2.0, 10)),
    "weight": functools.partial(uniform, relative_to="weight"),
    "filter": functools.partial(uniform, relative_to="filter"),
    "layer": functools.partial(uniform, relative_to="layer"),
    "gaussian, filter": functools.partial(gaussian, relative_to="filter"),
}
MOMENTUM = optax.sgd(0.1, momentum=0.9)


def wrapping(noise, **options):
    return smoothout(MOMENTUM, noise, key=KEY, **options)


def replacing(noise, **options):
    return optax.chain(smooth_gradients(noise, key=KEY, **options), MOMENTUM)


MAKERS = {
    "smoothout": wrapping,
    "smoothout of 2": functools.partial(wrapping, num_copies=2),
    "unkept": functools.partial(wrapping, keep_noise=False),
    # The noise given is the largest.
    "a rise": functools.partial(wrapping, num_copies=2, loss_rise=0.01),
    "smooth_gradients": replacing,
    "smooth_gradients of 2": functools.partial(
        replacing, num_copies=2, antithetic=True, loss_rise=0.01
    ),
}
PAIRS = [("smoothout", law) for law in LAWS] + [
    (make, law)
    for make in list(MAKERS)[1:]
    for law in ("masked", "rising", "filter")
    if (make, law) != ("unkept", "filter")
]
every_maker = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)

PARAMS = {
    "kernel": jnp.linspace(-2.0, 3.0, 12).reshape(3, 4),
    "bias": jnp.array([0.5, -1.0, 2.0, 1.5]),
}


def loss(params):
    if "kernel" not in params:
        return sum(loss(part).astype(jnp.float32) for part in params.values())
    total = jnp.sum(jnp.cos(params["kernel"] + params["bias"][None]))
    return total + jnp.sum(params["kernel"] ** 2) / 8


def step(optimizer, params, state):
    grad_fn = jax.grad(lambda params, copy: loss(params))
    updates, state = optax.with_extra_args_support(optimizer).update(
        grad_fn(params, 0), state, params, grad_fn=grad_fn
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    return optax.apply_updates(params, updates), state


def trained(optimizer, params, steps=4, step=step):
    """Parameters and state after steps in a loop, each behind a condition."""

    def body(carry, _):
        taken = jax.lax.cond(
            True, lambda carry: step(optimizer, *carry), lambda carry: carry, carry
        )
        return taken, None

    start = params, optimizer.init(params)
    return jax.jit(lambda start: jax.lax.scan(body, start, length=steps)[0])(start)


@pytest.mark.parametrize(("make", "law"), PAIRS)
def test_state_is_stable_and_the_loss_falls(make, law):
    """`lax.scan` and `lax.cond` refuse a state whose structure or dtypes change."""
    dtypes = (jnp.float32,)
    if law in ("rising", "filter"):
        dtypes = (jnp.bfloat16, jnp.float16, jnp.float32)
    params = {str(dtype): optax.tree.cast(PARAMS, dtype) for dtype in dtypes}
    optimizer = MAKERS[make](LAWS[law](0.05))
    after, state = trained(optimizer, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, optimizer.init(params))
    chex.assert_tree_all_finite((after, optax.tree.cast(state, jnp.float32)))
    assert loss(after) < loss(params) - 0.1 * len(dtypes)


@every_maker
def test_hyperparameters_are_injected(make):
    """An injected radius trains as the same radius given to begin with."""
    injected = optax.inject_hyperparams(lambda radius: make(uniform(radius)))
    expected, _ = trained(make(uniform(0.05)), PARAMS)
    with jax.numpy_dtype_promotion("standard"):  # as Optax's wrapper needs it
        found, state = trained(injected(radius=0.05), PARAMS)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)
    assert state.hyperparams["radius"] == jnp.float32(0.05)


@every_maker
def test_multi_steps_wrap_it(make):
    wrapped = optax.MultiSteps(make(uniform(0.05)), every_k_schedule=2)
    with jax.numpy_dtype_promotion("standard"):  # as Optax's wrapper needs it
        wrapped = optax.GradientTransformationExtraArgs(wrapped.init, wrapped.update)
        after, state = trained(wrapped, PARAMS)
    assert int(state.gradient_step) == 2
    assert not jnp.array_equal(after["kernel"], PARAMS["kernel"])


@pytest.mark.parametrize("make", ["smoothout", "unkept"])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_updates_lie_as_the_parameters(make, kind):
    mesh = jax.make_mesh((4,), ("x",), (kind,), devices=jax.devices()[:4])
    shardings = {
        "kernel": NamedSharding(mesh, jax.P(None, "x")),
        "bias": NamedSharding(mesh, jax.P("x")),
    }
    optimizer = MAKERS[make](uniform(0.05))
    expected, _ = trained(optimizer, PARAMS)
    with jax.set_mesh(mesh):
        params = jax.device_put(PARAMS, shardings)
        state = jax.jit(optimizer.init)(params)
        update = jax.jit(functools.partial(step, optimizer))
        for _ in range(4):
            params, state = update(params, state)
    chex.assert_trees_all_close(params, expected, rtol=1e-5, atol=1e-6)
    for name, sharding in shardings.items():
        assert params[name].sharding.is_equivalent_to(sharding, params[name].ndim)
