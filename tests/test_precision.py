"""Parameters of every precision keep their bits, their range and their values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from smoothout_jax import (
    smoothout,
    smoothout_eval_params,
    smoothout_value_and_grad,
    uniform,
)

KEY = jax.random.key(3)
# Values that arithmetic in their own dtype, or in float32, easily loses.
EXTREMES = {
    "float8_e4m3fn": [448.0, -448.0, 300.0, 0.005],
    "float8_e5m2": [57344.0, 448.0, 300.0, 0.005],
    "float4_e2m1fn": [6.0, -6.0, 0.5, 3.0],
    "float16": [np.inf, -np.inf, np.nan, 1e-7],
    "bfloat16": [np.inf, -np.inf, np.nan, 3e38],
    "float32": [np.inf, -np.inf, np.nan, 3e38],
}
PARAMS = {"trained": jnp.array([1.5, -0.5])} | {
    dtype: jnp.array(values, dtype) for dtype, values in EXTREMES.items()
}
IS_TRAINED = {name: name == "trained" for name in PARAMS}
IS_FROZEN = {name: name != "trained" for name in PARAMS}
FREEZING = optax.multi_transform(
    {True: optax.sgd(0.1), False: optax.set_to_zero()}, IS_TRAINED
)


def outside(optimizer):
    """Hides the frozen leaves from an optimizer."""
    return optax.chain(
        optax.masked(optimizer, IS_TRAINED),
        optax.masked(optax.set_to_zero(), IS_FROZEN),
    )


# Which leaves get noise, what the inner optimizer is, and what is around both.
FROZEN = {
    "masked from the noise": (IS_TRAINED, FREEZING, lambda optimizer: optimizer),
    "frozen by the optimizer": (None, FREEZING, lambda optimizer: optimizer),
    "masked from smoothout": (None, optax.sgd(0.1), outside),
}


def bits(leaf):
    return np.asarray(leaf).tobytes()


def train(optimizer, transform=jax.jit, steps=3, params=PARAMS):
    """Parameters of the loop, and their state."""

    def step(params, state):
        grads = jax.tree.map(jnp.ones_like, params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state, step = optimizer.init(params), transform(step)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


@pytest.mark.parametrize(
    ("radius", "transform", "options"),
    [
        (0.0, jax.jit, {}),
        (0.1, jax.jit, {}),
        (0.1, jax.jit, {"num_copies": 2}),
        (0.1, jax.jit, {"loss_rise": 0.1}),
        (0.1, lambda fn: fn, {}),
    ],
    ids=["no noise", "", "copies", "rise", "eager"],
)
@pytest.mark.parametrize("how", FROZEN)
@pytest.mark.filterwarnings("ignore:radius is below the resolution")
def test_frozen_leaves_keep_their_bits_beside_leaves_that_train(
    how, radius, transform, options
):
    mask, inner, around = FROZEN[how]
    optimizer = around(smoothout(inner, uniform(radius, mask=mask), key=KEY, **options))
    params, state = train(optimizer, transform)
    clean = smoothout_eval_params(state, params)
    if mask is IS_TRAINED:
        assert len(jax.tree.leaves(state.smoothout_noise)) == 1
    plain, _ = train(around(inner), transform)
    for name in EXTREMES:
        assert bits(clean[name]) == bits(plain[name]) == bits(PARAMS[name])
        if how != "frozen by the optimizer" or radius == 0:
            assert bits(params[name]) == bits(PARAMS[name])
    if not options:
        np.testing.assert_allclose(clean["trained"], plain["trained"], rtol=1e-6)
    assert np.all(clean["trained"] != PARAMS["trained"])


beyond_the_range = pytest.mark.parametrize(
    ("dtype", "radius"),
    [
        ("float16", 1000.0),
        ("bfloat16", 1e37),
        ("float32", 1e37),
        ("float8_e4m3fn", 100.0),
        ("float8_e5m2", 20000.0),
    ],
)


@beyond_the_range
def test_copies_get_no_noise_that_would_leave_the_range(dtype, radius):
    most = float(jnp.finfo(dtype).max)

    def loss(leaf):
        held = leaf.astype("float32")
        return jnp.sum(held * 0), held

    fn = smoothout_value_and_grad(loss, uniform(radius), has_aux=True)
    (_, held), _ = jax.jit(fn)(KEY, jnp.full(64, most, dtype))
    assert np.all(np.abs(held) <= most)
    assert 0 < np.mean(held == np.float32(most)) < 1


@beyond_the_range
def test_noise_is_not_added_where_it_would_leave_the_range(dtype, radius):
    most = float(jnp.finfo(dtype).max)
    start = jnp.repeat(jnp.array([most, -most, most / 2], dtype), 8)
    optimizer = smoothout(optax.sgd(0.0), uniform(radius), key=KEY)
    perturbed = np.zeros(3, bool)
    for steps in (1, 2, 3):
        params, state = train(optimizer, steps=steps, params=start)
        held, at = (np.asarray(each, float).reshape(3, 8) for each in (params, start))
        assert np.all(np.isfinite(held))
        # Noise that points inwards is added.
        assert np.all(np.abs(held[:2]) <= most)
        assert 0 < np.mean(held[:2] == at[:2]) < 1
        perturbed |= np.any(held != at, axis=1)
        clean = smoothout_eval_params(state, params)
        np.testing.assert_allclose(
            *(np.asarray(a, float) for a in (clean, start)), 1e-6
        )
    assert np.all(perturbed)


def drift(dtype, radius, **options):
    """How far clean parameters move in 1,000 steps at learning rate 0, as an RMS."""
    optimizer = smoothout(optax.sgd(0.0), uniform(radius, **options), key=KEY)
    start = (0.05 * jax.random.normal(KEY, (40, 50))).astype(dtype)

    @jax.jit
    def run(start):
        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(params, state, params)
            return (optax.apply_updates(params, updates), state), None

        carry = start, optimizer.init(start)
        (params, state), _ = jax.lax.scan(step, carry, length=1000)
        return params, smoothout_eval_params(state, params)

    params, clean = run(start)
    assert jnp.mean(params != start) > 0.5
    moved = clean.astype("float32") - start.astype("float32")
    return float(jnp.sqrt(jnp.mean(jnp.square(moved))))


RELATIVE = functools.partial(drift, relative_to="filter", filter_axis=-1)


@pytest.mark.parametrize(
    ("measure", "radius", "most"),
    [(drift, 0.1, 5e-8), (drift, 0.001, 1e-10), (RELATIVE, 0.5, 1e-8)],
    ids=["large", "small", "relative"],
)
def test_clean_parameters_hardly_drift_in_float32(measure, radius, most):
    assert measure("float32", radius) <= most


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("measure", [drift, RELATIVE], ids=["absolute", "relative"])
def test_clean_parameters_never_drift_in_half_precision(measure, dtype):
    assert measure(dtype, 0.1) == 0


def test_noise_that_is_drawn_again_drifts_in_half_precision():
    """By two roundings per step, as documented."""
    start = jnp.ones(1000, "bfloat16")
    optimizer = smoothout(optax.sgd(0.0), uniform(0.1), key=KEY, keep_noise=False)
    params, state = train(optimizer, steps=100, params=start)
    clean = smoothout_eval_params(state, params).astype("float32")
    assert 1e-3 < float(jnp.sqrt(jnp.mean(jnp.square(clean - 1)))) < 0.5
