"""The rise of the loss: in theory, over several copies, and over devices."""

import collections
import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from test_rise import (
    CENTRE,
    KEY,
    NOISE,
    PAIR,
    RISE,
    SGD,
    assert_close,
    estimates,
    nearby,
    quadratic,
    replacing,
    scales,
    user_step,
    wrapping,
)

from smoothout_jax import init_loss_rise, smoothout, smoothout_value_and_grad, uniform

both_kinds = pytest.mark.parametrize(
    "kind", [AxisType.Auto, AxisType.Explicit], ids=lambda kind: kind.name
)


# Theory: the noise under which the loss rises by so much


OPTIMIZERS = {
    "smoothout": wrapping(),
    "smoothout of 3": wrapping(optimizer=optax.set_to_zero(), num_copies=3),
    "unkept": wrapping(optimizer=optax.set_to_zero(), keep_noise=False),
    "smooth_gradients": replacing(**PAIR),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_the_radius_of_a_quadratic_is_that_of_its_trace(optimizer):
    """δ = E½⟨ε, Hε⟩ = a² tr(H) / 6, and √(6δ / tr H) is the radius a."""

    def step(carry, _):
        carry = user_step(optimizer, *carry)
        return carry, (scales(carry[1]), estimates(carry[1]))

    carry = CENTRE, optimizer.init(CENTRE)
    found, seen = jax.jit(lambda c: jax.lax.scan(step, c, length=400)[1])(carry)
    np.testing.assert_allclose(10 * jnp.mean(found[-150:]), 1, rtol=0.02)
    np.testing.assert_allclose(jnp.mean(seen[-150:]), RISE, rtol=0.03)


def test_the_loss_of_a_quadratic_rises_by_exactly_the_estimate():
    """Over a pair of antithetic copies the trapezoid rule is exact for it."""
    params = nearby(0.5)
    fn = smoothout_value_and_grad(quadratic, NOISE, loss_rise=RISE, **PAIR)
    (value, _), rise = jax.jit(fn)(init_loss_rise(), KEY, params)
    np.testing.assert_allclose(rise.noise_scale, 0.1)
    rose = np.float64(value) - np.float64(quadratic(params))
    np.testing.assert_allclose(rise.loss_rise_estimate, rose, rtol=2e-3)
    np.testing.assert_allclose(rise.rise_per_square, rose / 0.1**2, rtol=2e-3)


def hold(loss, noise, params, *, loss_rise=RISE):
    """The state of the rise after every step at parameters that stay."""
    fn = smoothout_value_and_grad(loss, noise, loss_rise=loss_rise, **PAIR)

    def step(rise, key):
        _, rise = fn(rise, key, params)
        return rise, rise

    keys = jax.random.split(KEY, 300)
    return jax.jit(lambda keys: jax.lax.scan(step, init_loss_rise(), keys)[1])(keys)


WELLS = {
    # The loss of one weight; where it is; its fourth derivative there.
    "double well": (lambda x: (x**2 - 1) ** 2, 1.0, 24.0),
    "cosine": (lambda x: 1 - jnp.cos(x), 0.0, -1.0),
}


@pytest.mark.parametrize(("fun", "at", "fourth"), WELLS.values(), ids=WELLS)
def test_the_scale_is_that_at_which_the_trapezoid_rule_gives_the_rise(fun, at, fourth):
    """½E⟨ε, f'(θ + ε)⟩ exceeds the rise by the quartic term, E[ε⁴] f'''' / 24."""
    levels = (2 * jnp.arange(400.0) + 1) / 400 - 1
    radius = 0.7
    slopes = jax.vmap(jax.grad(fun))(at + radius * levels)
    target = float(jnp.mean(radius * levels * slopes) / 2)
    rise = hold(
        lambda w: jnp.mean(fun(w)),
        # Every level of the box once, so that means are exact.
        lambda key, params, step=None: 2.0 * levels,
        jnp.full(400, at),
        loss_rise=target,
    )
    np.testing.assert_allclose(2.0 * rise.noise_scale[-1], radius, rtol=5e-3)
    np.testing.assert_allclose(rise.loss_rise_estimate[-1], target, rtol=5e-3)
    rose = np.float64(fun(at + radius * levels)).mean() - float(fun(at))
    np.testing.assert_allclose(target - rose, radius**4 / 5 * fourth / 24, rtol=0.2)


def test_the_rise_of_every_dtype_is_summed_in_float32():
    """That of a linear loss is half its difference, whose slope has no mean zero."""
    dtypes = ("float16", "bfloat16", "float32", "float64", "complex64")
    with jax.enable_x64(True):
        params = {dtype: jnp.linspace(1, 2, 400).astype(dtype) for dtype in dtypes}
        params |= {"count": jnp.arange(3), "none": None}
        slopes = optax.tree.scale(1.0, {d: params[d] for d in dtypes})
        slopes["complex64"] = slopes["complex64"] * jnp.complex64(1 - 2j)
        grads = slopes | {"count": jnp.zeros(3, int), "none": None}
        optimizer = wrapping(uniform(10.0), optax.set_to_zero(), loss_rise=1e6)
        update = jax.jit(optimizer.update)
        updates, state = update(grads, optimizer.init(params), params)
        noise = state.smoothout_noise
        params = optax.apply_updates(params, updates)
        _, state = update(grads, state, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    expected = 0.5 * sum(
        np.sum(np.complex128(noise[d]) * np.asarray(slopes[d], np.complex128)).real
        for d in dtypes
    )
    np.testing.assert_allclose(estimates(state), expected, rtol=1e-5)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.smoothout_rise)} == {
        jnp.dtype("float32"),
        jnp.dtype("int32"),
    }


# Several copies and devices


def batch_loss(params, batch):
    return quadratic(params) + jnp.sum(jnp.sin(batch[:, None] * params["kernel"][:1]))


batch_gradient = jax.jit(jax.grad(batch_loss))


def by_hand(key, params, batch, *, num_copies, antithetic, clean_weight):
    """The mean gradient, and ½⟨ε, ∇f(θ + ε)⟩ of each noisy copy, at a tenth."""
    total = num_copies + bool(clean_weight)
    keys = jax.random.split(key, total)
    grads, rises = [], []
    for copy in range(total):
        if copy == num_copies:
            factor, added = clean_weight, optax.tree.zeros_like(params)
        else:
            factor = (1 - clean_weight) / num_copies
            own = keys[copy // 2 if antithetic else copy]
            sign = -0.1 if antithetic and copy % 2 else 0.1
            added = optax.tree.scale(sign, NOISE(own, params))
        rows = batch[copy::total]
        grad = batch_gradient(optax.tree.add(params, added), rows)
        grads.append(optax.tree.scale(factor, grad))
        if copy < num_copies:
            rises.append(float(optax.tree.vdot(added, grad)) / 2)
    return functools.reduce(optax.tree.add, grads), np.mean(rises)


THREE = {"num_copies": 3, "antithetic": False, "clean_weight": 0.0}
PAIRS_AND_CLEAN = {"num_copies": 4, "antithetic": True, "clean_weight": 0.25}


@pytest.mark.parametrize(
    ("options", "execution"),
    [(THREE, "auto"), *((PAIRS_AND_CLEAN, how) for how in ("unroll", "scan", "vmap"))],
    ids=["3", "pairs, unroll", "pairs, scan", "pairs, vmap"],
)
def test_the_rise_is_the_mean_over_the_noisy_copies_however_they_run(
    options, execution
):
    """A clean copy, with its part of the gradient, sees no rise and weighs nothing."""
    key, params, batch = jax.random.key(2), nearby(0.4), jnp.linspace(0.3, 2.0, 15)
    grads, rise = by_hand(key, params, batch, **options)
    fn = smoothout_value_and_grad(
        batch_loss,
        NOISE,
        batch_argnums=1,
        loss_rise=RISE,
        execution=execution,
        **options,
    )
    (_, found), state = jax.jit(fn)(init_loss_rise(), key, params, batch)
    assert_close(found, grads)
    np.testing.assert_allclose(state.loss_rise_estimate, rise, rtol=1e-3)
    np.testing.assert_allclose(state.rise_per_square, rise / 0.1**2, rtol=1e-3)
    np.testing.assert_allclose(state.rise_weight, 0.1**2, rtol=1e-6)
    assert state.rise_step == 1


def test_devices_share_the_mean_of_the_rises_of_their_own_noise():
    mesh = jax.make_mesh((8,), ("d",), (AxisType.Auto,))
    key, params, batch = jax.random.key(2), nearby(0.4), jnp.linspace(0.3, 2.0, 32)
    options = {"num_copies": 1, "antithetic": False, "clean_weight": 0.5}
    fn = smoothout_value_and_grad(
        batch_loss, NOISE, batch_argnums=1, axis_name="d", loss_rise=RISE, **options
    )
    specs = (jax.P(), jax.P(), jax.P(), jax.P("d"))
    mapped = jax.shard_map(fn, mesh=mesh, in_specs=specs, out_specs=jax.P())
    (_, grads), rise = jax.jit(mapped)(init_loss_rise(), key, params, batch)
    keys, rows = jax.random.split(key, 8), batch.reshape(8, -1)
    each, rises = zip(
        *(
            by_hand(*own, **options)
            for own in zip(keys, [params] * 8, rows, strict=True)
        ),
        strict=True,
    )
    mean = optax.tree.scale(1 / 8, functools.reduce(optax.tree.add, each))
    assert_close(grads, mean, rtol=1e-4)
    np.testing.assert_allclose(rise.loss_rise_estimate, np.mean(rises), rtol=1e-3)


def all_reduces(program):
    """The shapes of all that is reduced over devices, and in how many calls."""
    found = re.findall(r"= (.*?) all-reduce(?:-start)?\(", program.as_text())
    shapes = re.findall(r"\w+\[[\d,]*\]", " ".join(found))
    return len(found), collections.Counter(shapes)


@both_kinds
def test_sharded_parameters_see_the_rise_of_one_device(kind):
    """For one more sum over devices, of a number for each leaf."""
    mesh = jax.make_mesh((4,), ("x",), (kind,), devices=jax.devices()[:4])
    specs = {"kernel": jax.P(None, "x"), "bias": jax.P("x")}
    shardings = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    programs = []

    def step(optimizer, params, state):
        grads = optax.tree.scale(0.5, params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for loss_rise in (None, RISE):
        key = jax.random.key(11)
        optimizer = smoothout(SGD, NOISE, key=key, loss_rise=loss_rise)
        update = jax.jit(functools.partial(step, optimizer))
        with jax.set_mesh(mesh):
            params = jax.device_put(CENTRE, shardings)
            state = optimizer.init(params)
            programs.append(update.lower(params, state).compile())
    expected, expected_state = CENTRE, optimizer.init(CENTRE)
    for _ in range(4):
        with jax.set_mesh(mesh):
            params, state = programs[-1](params, state)
        expected, expected_state = update(expected, expected_state)
    assert_close(params, expected)
    found, rise = state.smoothout_rise, expected_state.smoothout_rise
    assert_close(found, rise, rtol=1e-3, atol=1e-5)
    (calls, without), (calls_held, held) = map(all_reduces, programs)
    assert calls_held <= calls + 1
    more = held - without
    assert set(more) <= {"f32[]"}
    assert more.total() <= len(jax.tree.leaves(CENTRE))
