"""How strong the noise is where the rise of the loss under it is held."""

import collections
import functools
import re

import chex
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from scipy.optimize import brentq

from smoothout_jax import (
    exclude,
    gaussian,
    init_loss_rise,
    smooth_gradients,
    smoothout,
    smoothout_eval_params,
    smoothout_value_and_grad,
    uniform,
)
from smoothout_jax.transforms import SmoothoutState

# Draws of other keys than threefry's compile several times faster.
KEY = jax.random.key(11, impl="unsafe_rbg")
RISE = 0.02
# The minimum, away from the origin, and the curvatures there.
CENTRE = {
    "kernel": jnp.linspace(-1.5, 2.5, 400).reshape(20, 20),
    "bias": jnp.linspace(0.5, 2.0, 20),
}
CURVATURES = {
    "kernel": jnp.linspace(0.5, 2.0, 400).reshape(20, 20)[::-1],
    "bias": jnp.full(20, 3.0),
}
TRACE = sum(float(jnp.sum(leaf)) for leaf in jax.tree.leaves(CURVATURES))
# Of the noise under which the loss rises by RISE.
RADIUS = np.sqrt(6 * RISE / TRACE)
STD = np.sqrt(2 * RISE / TRACE)
NOISE = uniform(10 * RADIUS)
SGD = optax.sgd(0.1)
PAIR = {"num_copies": 2, "antithetic": True}

assert_close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-6)
one_copy_and_three = pytest.mark.parametrize("num_copies", [1, 3])
both_kinds = pytest.mark.parametrize(
    "kind", [AxisType.Auto, AxisType.Explicit], ids=lambda kind: kind.name
)


def quadratic(params):
    return 0.5 * sum(
        jnp.sum(curvatures.astype(jnp.float32) * jnp.square(jnp.abs(leaf - centre)))
        for curvatures, leaf, centre in zip(
            *map(jax.tree.leaves, (CURVATURES, params, CENTRE)), strict=True
        )
    )


def nearby(distance=0.1):
    return jax.tree.map(lambda leaf: leaf + distance, CENTRE)


def hold(loss, noise, steps, params=CENTRE, *, loss_rise=RISE, **options):
    """The state of the rise after every step at parameters that stay."""
    fn = smoothout_value_and_grad(loss, noise, loss_rise=loss_rise, **options)

    def step(rise, key):
        _, rise = fn(rise, key, params)
        return rise, rise

    keys = jax.random.split(KEY, steps)
    return jax.jit(lambda keys: jax.lax.scan(step, init_loss_rise(), keys)[1])(keys)


def user_step(optimizer, params, state, loss=quadratic):
    grad_fn = jax.grad(lambda params, copy: loss(params))
    updates, state = optax.with_extra_args_support(optimizer).update(
        grad_fn(params, 0), state, params, grad_fn=grad_fn
    )
    return optax.apply_updates(params, updates), state


@functools.cache
def compiled(optimizer, loss=quadratic):
    """Fifty steps in one program: parameters and state after each, stacked."""

    def body(carry, _):
        carry = user_step(optimizer, *carry, loss)
        return carry, carry

    return jax.jit(lambda carry: jax.lax.scan(body, carry, length=50))


def train(optimizer, steps, params=None, state=None, loss=quadratic):
    """Parameters and state after each of the steps, stacked."""
    params = nearby() if params is None else params
    carry = params, optimizer.init(params) if state is None else state
    run, parts = compiled(optimizer, loss), []
    for _ in range(0, steps, 50):
        carry, part = run(carry)
        parts.append(part)
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[:steps], *parts)


def last(history):
    return jax.tree.map(lambda leaf: leaf[-1], history)


def scales(state):
    return optax.tree.get(state, "noise_scale")


def estimates(state):
    return optax.tree.get(state, "loss_rise_estimate")


def wrapping(noise=NOISE, optimizer=SGD, *, loss_rise=RISE, **options):
    return smoothout(optimizer, noise, key=KEY, loss_rise=loss_rise, **options)


def replacing(noise=NOISE, optimizer=SGD, *, loss_rise=RISE, **options):
    link = smooth_gradients(noise, key=KEY, loss_rise=loss_rise, **options)
    return optax.chain(link, optimizer)


HELD = wrapping()
HELD_OF_3 = wrapping(num_copies=3)
UNKEPT = wrapping(keep_clean=False)
UNKEPT_OF_3 = wrapping(keep_clean=False, num_copies=3)
LINKED = replacing(**PAIR)
OPTIMIZERS = {
    "smoothout": HELD,
    "smoothout of 3": HELD_OF_3,
    "unkept": UNKEPT,
    "smooth_gradients": LINKED,
}
every_optimizer = pytest.mark.parametrize(
    "optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS
)


# Theory: the noise under which the loss rises by so much


@every_optimizer
def test_the_radius_of_a_quadratic_is_that_of_its_trace(optimizer):
    """δ = E½⟨ε, Hε⟩ = a² tr(H) / 6, and √(6δ / tr H) is the radius a."""
    _, state = train(optimizer, 400)
    found = 10 * RADIUS * jnp.mean(scales(state)[-150:])
    np.testing.assert_allclose(found, RADIUS, rtol=0.02)
    np.testing.assert_allclose(jnp.mean(estimates(state)[-150:]), RISE, rtol=0.03)


def test_the_deviation_of_gaussian_noise_is_that_of_the_trace():
    """δ = σ² tr(H) / 2."""
    rise = hold(quadratic, gaussian(10 * STD), 400, nearby(), **PAIR)
    found = 10 * STD * jnp.mean(rise.noise_scale[-150:])
    np.testing.assert_allclose(found, STD, rtol=0.02)


def test_the_loss_of_a_quadratic_rises_by_exactly_what_is_told():
    """Over a pair of antithetic copies the trapezoid rule is exact for it."""
    params = nearby(0.5)
    fn = smoothout_value_and_grad(quadratic, NOISE, loss_rise=RISE, **PAIR)
    (value, _), rise = jax.jit(fn)(init_loss_rise(), KEY, params)
    np.testing.assert_allclose(rise.noise_scale, 0.1)
    rose = np.float64(value) - np.float64(quadratic(params))
    np.testing.assert_allclose(rise.loss_rise_estimate, rose, rtol=2e-3)
    np.testing.assert_allclose(rise.rise_per_square, rose / 0.1**2, rtol=2e-3)


LEVELS = (2 * jnp.arange(400.0) + 1) / 400 - 1


def every_level(radius):
    """A user's own noise: every level of the box once, so that means are exact."""
    return lambda key, params, step=None: radius * LEVELS


WELLS = {
    # The loss of one weight; where it is; its second and fourth derivative there.
    "quartic": (lambda x: 1.5 * x**2 + 4 * x**4, 0.0, 3.0, 96.0),
    "double well": (lambda x: (x**2 - 1) ** 2, 1.0, 8.0, 24.0),
    "cosine": (lambda x: 1 - jnp.cos(x), 0.0, 1.0, -1.0),
}
every_well = pytest.mark.parametrize("well", WELLS.values(), ids=WELLS)


def trapezoid(fun, at, radius):
    """½E⟨ε, f'(θ + ε)⟩, by quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    slopes = jax.vmap(jax.grad(fun))(jnp.asarray(at + radius * nodes, jnp.float32))
    return np.sum(weights * radius * nodes * np.float64(slopes)) / 4


def exact_rise(fun, at, radius):
    """E f(θ + ε) - f(θ), by quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    values = np.float64(fun(jnp.asarray(at + radius * nodes, jnp.float32)))
    return np.sum(weights * values) / 2 - float(fun(jnp.float32(at)))


@every_well
def test_the_scale_is_that_at_which_the_trapezoid_rule_gives_the_rise(well):
    """It is short of the rise by the quartic term, E[ε⁴] f'''' / 24."""
    fun, at, second, fourth = well
    wanted = 0.7
    target = trapezoid(fun, at, wanted)
    rise = hold(
        lambda w: jnp.mean(fun(w)),
        every_level(2.0),
        300,
        jnp.full(400, at),
        loss_rise=target,
        **PAIR,
    )
    found = 2.0 * float(rise.noise_scale[-1])
    np.testing.assert_allclose(found, wanted, rtol=5e-3)
    np.testing.assert_allclose(rise.loss_rise_estimate[-1], target, rtol=5e-3)

    def misses(radius):
        return exact_rise(fun, at, radius) - target

    # Which is not where the loss has risen by as much, nor where a parabola would.
    assert abs(brentq(misses, 0.1, 2.0) / found - 1) > 0.004
    assert abs(np.sqrt(6 * target / second) / found - 1) > 0.007
    quartic_term = found**4 / 5 * fourth / 24
    rose = exact_rise(fun, at, found)
    np.testing.assert_allclose(target - rose, quartic_term, rtol=0.2)


@every_well
def test_the_error_of_the_trapezoid_rule_is_of_fourth_order(well):
    """The rule sees E[ε²] f'' / 2 + E[ε⁴] f'''' / 12: the quartic term twice."""
    fun, at, second, fourth = well

    def seen(radius):
        fn = smoothout_value_and_grad(
            lambda w: jnp.mean(fun(w)), every_level(10 * radius), loss_rise=1.0, **PAIR
        )
        _, rise = fn(init_loss_rise(), KEY, jnp.full(400, at))
        return rise.loss_rise_estimate

    radii = np.array([0.6, 0.3])
    found = np.float64(jax.jit(jax.vmap(seen))(radii.astype(np.float32)))
    errors = found - [exact_rise(fun, at, radius) for radius in radii]
    np.testing.assert_allclose(errors[0] / errors[1], 16, rtol=0.05)
    series = radii**2 / 6 * second + radii**4 / 60 * fourth
    np.testing.assert_allclose(found, series, rtol=2e-3)


# Where it starts, and what moves


@one_copy_and_three
def test_ten_times_too_large_or_small_a_start_is_mended_in_a_hundred_steps(num_copies):
    """The first noise is a tenth of the one given."""

    def run(radius):
        optimizer = wrapping(uniform(radius), num_copies=num_copies)
        state = optimizer.init(CENTRE)
        return scales(train(optimizer, 100 * num_copies, CENTRE, state)[1])

    radii = RADIUS * jnp.array([1.02, 100.0])
    found = jax.jit(jax.vmap(run))(radii)
    np.testing.assert_allclose(found[:, 0], 0.1, rtol=1e-6)
    np.testing.assert_allclose(radii * found[:, -1], RADIUS, rtol=0.1)


def test_noise_grows_to_the_one_given_in_fifty_steps_where_the_loss_bears_it():
    _, state = train(wrapping(uniform(RADIUS / 2)), 60, CENTRE)
    expected = np.clip(np.arange(1, 61) / 50, 0.1, 1)
    np.testing.assert_allclose(scales(state), expected, rtol=1e-6)
    np.testing.assert_allclose(estimates(state)[-1], RISE / 4, rtol=0.25)


@pytest.mark.parametrize("sign", [0.0, -1.0], ids=["flat", "hill"])
def test_noise_that_raises_no_loss_is_the_one_given(sign):
    rise = hold(lambda params: sign * quadratic(params), NOISE, 60, **PAIR)
    assert rise.noise_scale[-1] == 1
    assert rise.loss_rise_estimate[-1] * sign >= 0


def test_the_scale_follows_a_radius_that_changes():
    noise = uniform(lambda step: jnp.where(step < 150, 10.0, 40.0) * RADIUS)
    _, state = train(wrapping(noise), 300, CENTRE)
    np.testing.assert_allclose(jnp.mean(scales(state)[100:149]), 0.1, rtol=0.05)
    np.testing.assert_allclose(jnp.mean(scales(state)[250:]), 0.025, rtol=0.05)


def test_the_scale_follows_a_curvature_that_changes():
    def loss(params):
        return 4 * quadratic(params)

    params, state = train(HELD, 150, CENTRE)
    _, state = train(HELD, 150, last(params), last(state), loss)
    np.testing.assert_allclose(jnp.mean(scales(state)[100:]), 0.05, rtol=0.05)
