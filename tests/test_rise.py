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

from smoothout_jax import (
    SmoothoutState,
    exclude,
    gaussian,
    init_loss_rise,
    smooth_gradients,
    smoothout,
    smoothout_eval_params,
    smoothout_value_and_grad,
    uniform,
)

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
# Whose clean parameters stay.
STANDING = wrapping(optimizer=optax.set_to_zero())
STANDING_OF_3 = wrapping(optimizer=optax.set_to_zero(), num_copies=3)
UNKEPT_STANDING = wrapping(optimizer=optax.set_to_zero(), keep_noise=False)
LINKED = replacing(**PAIR)
OPTIMIZERS = {
    "smoothout": HELD,
    "smoothout of 3": STANDING_OF_3,
    "unkept": UNKEPT_STANDING,
    "smooth_gradients": LINKED,
}
every_optimizer = pytest.mark.parametrize(
    "optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS
)


# Theory: the noise under which the loss rises by so much


@every_optimizer
def test_the_radius_of_a_quadratic_is_that_of_its_trace(optimizer):
    """δ = E½⟨ε, Hε⟩ = a² tr(H) / 6, and √(6δ / tr H) is the radius a."""
    _, state = train(optimizer, 400, CENTRE)
    found = 10 * RADIUS * jnp.mean(scales(state)[-150:])
    np.testing.assert_allclose(found, RADIUS, rtol=0.02)
    np.testing.assert_allclose(jnp.mean(estimates(state)[-150:]), RISE, rtol=0.03)


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
    fun, at, _, fourth = well
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


RADII = {"half": RADIUS / 2, "right": 1.02 * RADIUS, "too large": 100 * RADIUS}


@functools.cache
def scales_and_estimates_of_radii(num_copies):
    """At every gradient of 100 updates, for each radius of the noise given."""

    def run(radius):
        optimizer = wrapping(uniform(radius), num_copies=num_copies)
        state = optimizer.init(CENTRE)
        _, state = train(optimizer, 100 * num_copies, CENTRE, state)
        return scales(state), estimates(state)

    found = jax.jit(jax.vmap(run))(jnp.array([*RADII.values()]))
    return dict(zip(RADII, zip(*map(np.asarray, found), strict=True), strict=True))


@one_copy_and_three
def test_ten_times_too_large_or_small_a_start_is_mended_in_a_hundred_steps(num_copies):
    """The first noise is a tenth of the one given."""
    for name in ("right", "too large"):
        found, _ = scales_and_estimates_of_radii(num_copies)[name]
        np.testing.assert_allclose(found[0], 0.1, rtol=1e-6)
        np.testing.assert_allclose(RADII[name] * found[-1], RADIUS, rtol=0.1)


@one_copy_and_three
def test_noise_grows_by_five_percent_a_step_to_the_one_given_if_the_loss_bears_it(
    num_copies,
):
    """Which takes 48 updates, each copy of which grows by its share."""
    found, estimated = scales_and_estimates_of_radii(num_copies)["half"]
    updates = np.arange(len(found)) / num_copies
    expected = np.minimum(0.1 * 1.05**updates, 1)
    np.testing.assert_allclose(found, expected, rtol=2e-5)
    np.testing.assert_allclose(estimated[-5:], RISE / 4, rtol=0.16)


FACTORS = {"flat": 0.0, "hill": -1.0, "ninefold": 9.0}


@functools.cache
def held_under_multiples():
    """The rise after 300 steps of losses that are multiples of the same."""

    def run(factor):
        return last(hold(lambda p: factor * quadratic(p), NOISE, 300, **PAIR))

    found = jax.jit(jax.vmap(run))(jnp.array([*FACTORS.values()]))
    return {
        name: jax.tree.map(lambda leaf, row=row: leaf[row], found)
        for row, name in enumerate(FACTORS)
    }


def test_noise_that_raises_no_loss_is_the_one_given():
    flat, hill = (held_under_multiples()[name] for name in ("flat", "hill"))
    assert flat.noise_scale == hill.noise_scale == 1
    assert flat.loss_rise_estimate == 0 > hill.loss_rise_estimate


def test_a_rise_is_in_the_units_of_the_loss():
    """A sum over examples in the place of their mean, or a loss that is scaled."""
    found = held_under_multiples()["ninefold"].noise_scale
    np.testing.assert_allclose(found, 0.1 / 3, rtol=0.05)


def test_the_scale_follows_a_radius_that_changes():
    noise = uniform(lambda step: jnp.where(step < 150, 10.0, 40.0) * RADIUS)
    _, state = train(wrapping(noise), 450, CENTRE)
    np.testing.assert_allclose(jnp.mean(scales(state)[100:149]), 0.1, rtol=0.01)
    assert scales(state)[250] < 0.04
    np.testing.assert_allclose(jnp.mean(scales(state)[425:]), 0.025, rtol=0.05)


def test_the_scale_follows_a_curvature_that_changes_in_as_many_updates_of_any_copies():
    def run(num_copies):
        """The scale after every update, of a curvature four times as high from 100."""
        optimizer = wrapping(
            every_level(1.0),
            optax.set_to_zero(),
            loss_rise=1 / 600,
            num_copies=num_copies,
        )
        start = jnp.full(400, 0.7)

        def step(carry, _):
            params, state = carry
            factor = jnp.where(state.smoothout_step < 100, 1.0, 4.0)
            grads = factor * (params - start) / 400
            updates, state = optimizer.update(grads, state, params)
            carry = optax.apply_updates(params, updates), state
            return carry, scales(state)

        carry = start, optimizer.init(start)
        run = jax.jit(lambda c: jax.lax.scan(step, c, length=400 * num_copies)[1])
        return run(carry)[num_copies - 1 :: num_copies]

    one, three = run(1), run(3)
    for found in (one, three):
        np.testing.assert_allclose(found[98], 0.1, rtol=1e-5)
        np.testing.assert_allclose(found[-1], 0.05, rtol=0.01)
        assert 0.055 < found[130] < 0.085
    np.testing.assert_allclose(three[100:], one[100:], rtol=0.02)


# Every noise and every kind of parameter


LAWS = {
    # The noise, and the mean of its square for the weights of a leaf.
    "weight": (uniform(0.5, relative_to="weight"), lambda leaf: 0.5**2 / 3 * leaf**2),
    "filter": (
        uniform(0.5, relative_to="filter", mask=exclude("bias")),
        lambda leaf: (
            0.5**2 * jnp.mean(leaf**2, 0, keepdims=True) if leaf.ndim > 1 else 0.0
        ),
    ),
    "gaussian, layer": (
        gaussian(0.1, relative_to="layer"),
        lambda leaf: 0.1**2 * jnp.sum(leaf**2),
    ),
}


@pytest.mark.parametrize(("noise", "square"), LAWS.values(), ids=LAWS)
def test_noise_of_every_law_is_scaled_to_the_rise(noise, square):
    rise = hold(quadratic, noise, 300, **PAIR)
    found = jnp.mean(rise.noise_scale[-150:])
    at_full_scale = 0.5 * optax.tree.vdot(
        CURVATURES, jax.tree.map(lambda leaf: square(leaf) + 0 * leaf, CENTRE)
    )
    np.testing.assert_allclose(found, np.sqrt(RISE / at_full_scale), rtol=0.03)


@pytest.mark.parametrize("dtype", ["bfloat16", "complex64", "float64"])
def test_noise_on_parameters_of_every_dtype_is_scaled_to_the_rise(dtype):
    """Of Gaussian noise, the deviation: δ = σ² tr(H) / 2.

    The rise over a complex step is that over its real and imaginary part.
    """
    with jax.enable_x64(dtype == "float64"):
        centre = CENTRE["kernel"].astype(dtype)
        unit = 1 + 1j if dtype == "complex64" else 1
        start = {"w": centre * jnp.asarray(unit, dtype), "count": jnp.arange(3)}

        def loss(params):
            size = jnp.square(jnp.abs(params["w"] - start["w"]))
            return jnp.mean(size.astype(jnp.float32))

        noise = gaussian(1.0)
        optimizer = wrapping(noise, optax.set_to_zero(), loss_rise=0.04)

        def step(carry, _):
            params, state = carry
            grads = jax.grad(loss, allow_int=True)(params)
            grads["count"] = jnp.zeros(3, int)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), scales(state)

        @jax.jit
        def run(start):
            carry = start, optimizer.init(start)
            (params, state), found = jax.lax.scan(step, carry, length=150)
            return params, state, found, smoothout_eval_params(state, params)

        params, state, found, clean = run(start)
        # To the rounding of the parameters.
        chex.assert_trees_all_close(clean, start, rtol=0, atol=1e-6)
        chex.assert_trees_all_equal_shapes_and_dtypes(params, start)
        assert {leaf.dtype for leaf in jax.tree.leaves(state.smoothout_rise)} == {
            jnp.dtype("float32"),
            jnp.dtype("int32"),
        }
        np.testing.assert_allclose(jnp.mean(found[-50:]), 0.2, rtol=0.03)
        noise_in_use = params["w"] - start["w"]
        deviation = jnp.sqrt(jnp.mean(jnp.square(jnp.abs(noise_in_use))))
        np.testing.assert_allclose(float(deviation), 0.2, rtol=0.2)


def test_the_rise_in_half_precision_is_summed_in_float32():
    optimizer = wrapping(uniform(10.0), optax.set_to_zero(), loss_rise=1e6)
    start = CENTRE["kernel"].astype("float16")

    @jax.jit
    def run(start):
        updates, state = optimizer.update(start, optimizer.init(start), start)
        params = optax.apply_updates(start, updates)
        grads = params - start  # so that the products add up
        return params, grads, optimizer.update(grads, state, params)[1]

    params, grads, state = run(start)
    noise = np.float64(params) - np.float64(start)
    expected = 0.5 * np.sum(noise * np.float64(grads))
    np.testing.assert_allclose(estimates(state), expected, rtol=1e-5)


# Several copies


def batch_loss(params, batch):
    return quadratic(params) + jnp.sum(jnp.sin(batch[:, None] * params["kernel"][:1]))


batch_gradient = jax.jit(jax.grad(batch_loss))


def by_hand(noise, key, params, batch, *, num_copies, antithetic, clean_weight):
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
            added = optax.tree.scale(sign, noise(own, params))
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
    grads, rise = by_hand(NOISE, key, params, batch, **options)
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


def test_antithetic_copies_cancel_the_slope():
    """On a linear function there is no rise, but to rounding; one copy sees some."""
    slopes = jnp.linspace(-3.0, 5.0, 400)

    def loss(w):
        return jnp.sum(slopes * w)

    def seen(**options):
        rise = hold(loss, uniform(1.0), 20, jnp.zeros(400), **options)
        return jnp.abs(rise.loss_rise_estimate)

    assert jnp.min(seen()) > 1e-3
    assert jnp.max(seen(**PAIR)) < 1e-5


# Devices


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
    each = [
        by_hand(NOISE, own, params, rows, **options)
        for own, rows in zip(
            jax.random.split(key, 8), batch.reshape(8, -1), strict=True
        )
    ]
    mean = optax.tree.scale(
        1 / 8, functools.reduce(optax.tree.add, [grads for grads, _ in each])
    )
    assert_close(grads, mean, rtol=1e-4)
    expected = np.mean([rise for _, rise in each])
    np.testing.assert_allclose(rise.loss_rise_estimate, expected, rtol=1e-3)


EIGHT = functools.partial(
    smoothout_value_and_grad, quadratic, NOISE, num_copies=8, antithetic=True
)
# Once for both kinds of mesh.
vmapped_copies = jax.jit(EIGHT(execution="vmap", loss_rise=RISE))


@both_kinds
def test_copies_over_a_mesh_see_the_rise_of_the_copies(kind):
    arguments = init_loss_rise(), jax.random.key(2), nearby(0.4)
    expected = vmapped_copies(*arguments)
    laid = EIGHT(spmd_axis_name="d", loss_rise=RISE)
    mesh = jax.make_mesh((8,), ("d",), (kind,))
    with jax.set_mesh(mesh):
        arguments = jax.device_put(arguments, NamedSharding(mesh, jax.P()))
        assert_close(jax.jit(laid)(*arguments), expected, rtol=1e-4)


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
    key = jax.random.key(11)
    shardings = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    programs = []

    def step(optimizer, params, state):
        grads = optax.tree.sub(params, optax.tree.scale(0.5, params))
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for loss_rise in (None, RISE):
        optimizer = smoothout(SGD, NOISE, key=key, loss_rise=loss_rise)
        with jax.set_mesh(mesh):
            params = jax.device_put(CENTRE, shardings)
            state = optimizer.init(params)
            update = jax.jit(functools.partial(step, optimizer))
            programs.append(update.lower(params, state).compile())
    with jax.set_mesh(mesh):
        for _ in range(4):
            params, state = programs[-1](params, state)
    expected, expected_state = CENTRE, optimizer.init(CENTRE)
    update = jax.jit(functools.partial(step, optimizer))
    for _ in range(4):
        expected, expected_state = update(expected, expected_state)
    assert_close(params, expected)
    assert_close(
        state.smoothout_rise, expected_state.smoothout_rise, rtol=1e-3, atol=1e-5
    )
    for name, sharding in shardings.items():
        assert params[name].sharding.is_equivalent_to(sharding, params[name].ndim)
    (calls, without), (calls_held, held) = map(all_reduces, programs)
    assert calls_held <= calls + 1
    more = held - without
    assert set(more) <= {"f32[]"}
    assert more.total() <= len(jax.tree.leaves(CENTRE))


def test_runs_side_by_side_hold_rises_and_seeds_of_their_own():
    def run(seed, loss_rise):
        optimizer = smoothout(SGD, NOISE, key=jax.random.key(seed), loss_rise=loss_rise)

        def step(carry, _):
            carry = user_step(optimizer, *carry)
            return carry, scales(carry[1])

        return jax.lax.scan(step, (CENTRE, optimizer.init(CENTRE)), length=150)

    seeds, rises = jnp.array([0, 1, 0]), RISE * jnp.array([1.0, 1.0, 4.0])
    _, found = jax.jit(jax.vmap(run))(seeds, rises)
    np.testing.assert_allclose(
        jnp.mean(found[:, 100:], 1), np.array([0.1, 0.1, 0.2]), rtol=0.06
    )
    assert jnp.all(found[0, 1:] != found[1, 1:])
    _, alone = jax.jit(run)(0, RISE)
    np.testing.assert_allclose(found[0], alone, rtol=1e-3)


# The loop's parameters are the user's


evaluate = jax.jit(smoothout_eval_params)


def shift(params, by=0.125):
    return jax.tree.map(lambda leaf: leaf + by, params)


@pytest.mark.parametrize(
    "optimizer",
    [STANDING, STANDING_OF_3, UNKEPT_STANDING],
    ids=["1 copy", "3 copies", "drawn again"],
)
def test_clean_parameters_follow_a_difference_to_rounding(optimizer):
    """The noise that is drawn again has the scale of the noise that was added."""
    history = train(optimizer, 50, CENTRE)
    params, state = jax.tree.map(lambda leaf: leaf[20], history)
    assert 0 < scales(state) < 0.3
    clean = evaluate(state, params)
    assert_close(clean, CENTRE, rtol=1e-6)
    noise = optax.tree.sub(params, clean)
    largest = 10 * RADIUS * float(scales(state))
    assert 0.9 * largest < optax.tree.max(jax.tree.map(jnp.abs, noise)) < 1.1 * largest
    moved = shift(params)
    assert_close(evaluate(state, moved), shift(CENTRE), rtol=1e-6)
    history = train(optimizer, 50, moved, state)
    for step in (0, 1, 49):
        params, state = jax.tree.map(lambda leaf, step=step: leaf[step], history)
        assert_close(evaluate(state, params), shift(CENTRE), rtol=1e-5)


def test_noise_that_is_drawn_again_holds_the_rise_of_noise_that_is_kept():
    (params, state), (expected, expected_state) = (
        train(optimizer, 50) for optimizer in (wrapping(keep_noise=False), HELD)
    )
    assert_close(params, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scales(state), scales(expected_state), rtol=1e-3)


def means_of(state):
    return np.insert(optax.tree.get(state, "rise_per_square"), 0, 0)


@every_optimizer
def test_gradients_are_looked_at_in_every_step(optimizer):
    """But for the first of `smoothout`, which has no noise to see."""
    _, state = train(optimizer, 100, CENTRE)
    first = 0 if optimizer is LINKED else 1
    changed = np.flatnonzero(np.diff(means_of(state)))
    np.testing.assert_array_equal(changed, range(first, 100))
    steps = optax.tree.get(state, "rise_step")
    np.testing.assert_array_equal(steps, np.arange(1, 101))


# In a training that is saved, injected, compiled once


@pytest.mark.parametrize(
    "optimizer",
    [HELD, STANDING_OF_3, LINKED],
    ids=["smoothout", "smoothout of 3", "smooth_gradients"],
)
def test_training_resumes_bit_for_bit_from_what_was_saved_half_way(optimizer):
    history = train(optimizer, 100)
    half = jax.tree.map(lambda leaf: leaf[49], history)
    saved = flax.serialization.to_bytes(half)
    empty = nearby(), optimizer.init(nearby())
    params, state = flax.serialization.from_bytes(empty, saved)
    chex.assert_trees_all_equal((params, state), half)
    assert float(scales(state)) not in (0.0, 1.0)
    resumed = train(optimizer, 50, params, jax.tree.map(jnp.asarray, state))
    chex.assert_trees_all_equal(last(resumed), last(history))


@every_optimizer
def test_the_state_of_a_rise_is_numbers_that_optax_finds_and_no_parameters(optimizer):
    shapes = jax.eval_shape(lambda: CENTRE)
    state = optimizer.init(CENTRE)
    chex.assert_trees_all_equal_shapes_and_dtypes(optimizer.init(shapes), state)
    mapped = optax.tree.map_params(optimizer, lambda leaf: leaf + 1, state)
    fields = init_loss_rise()._asdict()
    assert fields.pop("gap_state") is None
    for field, expected in fields.items():
        for found in (optax.tree.get(state, field), optax.tree.get(mapped, field)):
            assert (found, found.dtype, found.shape) == (0, expected.dtype, ())


def counting(optimizer):
    """A compiled step that is traced once, whatever the numbers are."""
    traces = []

    @jax.jit
    def step(params, state):
        traces.append(1)
        assert len(traces) == 1
        with jax.numpy_dtype_promotion("standard"):  # as Optax's wrapper needs it
            return user_step(optimizer, params, state)

    return step


@pytest.mark.parametrize("make", [wrapping, replacing])
def test_an_injected_rise_may_change_without_a_retrace(make):
    injected = optax.inject_hyperparams(lambda loss_rise: make(loss_rise=loss_rise))
    optimizer = injected(loss_rise=RISE)
    step = counting(optimizer)
    params, state = CENTRE, optimizer.init(CENTRE)
    means = {}
    for factor in (1.0, 9.0, 0.0):
        state.hyperparams["loss_rise"] = jnp.float32(factor * RISE)
        found = []
        for _ in range(150):
            params, state = step(params, state)
            found.append(float(scales(state)))
        means[factor] = np.mean(found[100:])
    np.testing.assert_allclose(means[1.0], 0.1, rtol=0.06)
    np.testing.assert_allclose(means[9.0], 0.3, rtol=0.06)
    assert means[0.0] == 0


UPDATES = np.arange(401)
SCHEDULES = {
    "at first none": np.where(UPDATES < 30, 0, RISE),
    "in the end none": np.where(UPDATES < 120, RISE, 0),
    "to ninefold": RISE * (1 + 8 * np.minimum(UPDATES / 50, 1)),
    "a hundredfold": np.where(UPDATES < 300, 1, 100) * RISE,
    "nan": np.where(UPDATES == 60, np.nan, RISE),
    "inf": np.where(UPDATES == 60, np.inf, RISE),
}


@functools.cache
def scales_by_schedule(num_copies):
    """And the size of the noise, after every gradient of parameters that stay."""

    def run(schedule):
        optimizer = wrapping(
            optimizer=optax.set_to_zero(),
            loss_rise=lambda step: schedule[step],
            num_copies=num_copies,
        )

        def step(carry, _):
            carry = user_step(optimizer, *carry)
            noise = carry[1].smoothout_noise
            return carry, (scales(carry[1]), optax.tree.norm(noise))

        carry = CENTRE, optimizer.init(CENTRE)
        return jax.lax.scan(step, carry, length=400 * num_copies)[1]

    found = jax.jit(jax.vmap(run))(jnp.float32([*SCHEDULES.values()]))
    found = zip(*map(np.asarray, found), strict=True)
    return dict(zip(SCHEDULES, found, strict=True))


@one_copy_and_three
def test_a_rise_by_schedule_gets_the_number_of_updates(num_copies):
    """Without noise where it is 0, be it at first or in the end."""
    updates = np.arange(1, 400 * num_copies + 1) // num_copies
    for name, end in {"at first none": 0.1, "to ninefold": 0.3, "nan": 0.1}.items():
        found, _ = scales_by_schedule(num_copies)[name]
        np.testing.assert_allclose(np.mean(found[updates >= 300]), end, rtol=0.05)
    for name, schedule in SCHEDULES.items():
        found, noise = scales_by_schedule(num_copies)[name]
        # The noise after an update is that of its number.
        wanted = np.isfinite(schedule) & (schedule > 0)
        np.testing.assert_array_equal(found > 0, wanted[updates])
        np.testing.assert_array_equal(noise > 1e-5, found > 0)
        # It starts at a tenth, and grows by five percent an update.
        most = np.maximum(found[:-1] * 1.05 ** (1 / num_copies), 0.1)
        assert np.all(found[1:] <= 1.00001 * most)
    first, _ = scales_by_schedule(num_copies)["at first none"]
    np.testing.assert_allclose(first[first > 0][0], 0.1, rtol=1e-6)


@one_copy_and_three
def test_a_rise_that_becomes_a_hundred_times_larger_does_not_at_once_bring_its_noise(
    num_copies,
):
    """The noise that it asks for is ten times larger: that takes 48 updates."""
    found, _ = scales_by_schedule(num_copies)["a hundredfold"]
    first = 300 * num_copies - 1
    np.testing.assert_allclose(found[first - 1], 0.1, rtol=0.1)
    updates = np.arange(1, 100 * num_copies + 1) / num_copies
    expected = np.minimum(found[first - 1] * 1.05**updates, 1)
    np.testing.assert_allclose(
        found[first : first + 47 * num_copies], expected[: 47 * num_copies], rtol=2e-5
    )
    assert np.all(found[first + 55 * num_copies :] > 0.9)


@one_copy_and_three
@pytest.mark.parametrize("name", ["nan", "inf"])
def test_a_target_that_is_not_finite_is_none(name, num_copies):
    """For its update alone: what was known before it is kept."""
    found, noise = scales_by_schedule(num_copies)[name]
    updates = np.arange(1, 400 * num_copies + 1) // num_copies
    assert np.all(found[updates == 60] == 0)
    assert np.all(noise[updates == 60] <= 1e-5)
    np.testing.assert_allclose(found[(updates > 40) & (updates != 60)], 0.1, rtol=0.15)


def test_no_rise_is_no_noise():
    params, state = last(train(wrapping(loss_rise=0.0), 50))
    expected, _ = last(train(SGD, 50))
    assert_close(params, expected)
    assert_close(smoothout_eval_params(state, params), params, rtol=1e-6)
    assert scales(state) == estimates(state) == 0


# Gradients that are not those of a loss that behaves

BURSTS = {
    # What they are multiplied by, in how many steps, and after how many the scale is
    # again what it was, to 6 %.
    "nan": (np.nan, 20, 25),
    "inf": (np.inf, 20, 25),
    "zero": (0.0, 20, 200),
    "huge": (1e12, 1, 220),
    "huge, downhill": (-1e12, 1, 110),
    "none": (1.0, 1, 0),
}
FIRST = [1, 150]


@functools.cache
def scales_after_bursts():
    """Scales and estimates at every step of a burst from each of two steps on."""

    def run(first, factor, length):
        def step(carry, number):
            params, state = carry
            grads = jax.grad(quadratic)(params)
            bad = (number >= first) & (number < first + length)
            grads = optax.tree.scale(jnp.where(bad, factor, 1.0), grads)
            updates, state = STANDING.update(grads, state, params)
            carry = optax.apply_updates(params, updates), state
            return carry, (scales(state), estimates(state))

        carry = CENTRE, STANDING.init(CENTRE)
        return jax.lax.scan(step, carry, jnp.arange(500))[1]

    factors, lengths, _ = zip(*BURSTS.values(), strict=True)
    each = jax.vmap(jax.vmap(run, (0, None, None)), (None, 0, 0))
    found = jax.jit(each)(jnp.array(FIRST), jnp.array(factors), jnp.array(lengths))
    return dict(zip(BURSTS, zip(*map(np.asarray, found), strict=True), strict=True))


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("burst", BURSTS)
def test_the_scale_stays_finite_and_recovers_from_bad_gradients(burst, first):
    found = scales_after_bursts()[burst][0][FIRST.index(first)]
    assert np.all((found[1:] > 0) & (found[1:] <= 1))
    np.testing.assert_allclose(found[first + BURSTS[burst][2] :], 0.1, rtol=0.06)


def test_gradients_that_are_not_finite_leave_the_scale_and_its_estimate():
    usual_scales, usual_estimates = scales_after_bursts()["none"]
    for burst in ("nan", "inf"):
        found, estimated = scales_after_bursts()[burst]
        np.testing.assert_array_equal(found[1, 149:170], usual_scales[1, 149])
        np.testing.assert_array_equal(estimated[1, 149:170], usual_estimates[1, 149])


def test_what_shows_no_rise_leaves_the_means_which_weigh_less_with_every_step():
    """Neither a gradient that is not finite nor one without noise."""

    def schedule(step):
        return jnp.where(step < 20, RISE, 0.0)

    fn = jax.jit(smoothout_value_and_grad(quadratic, NOISE, loss_rise=schedule))
    known = init_loss_rise()
    for key in jax.random.split(KEY, 10):
        _, known = fn(known, key, CENTRE)
    assert known.rise_weight > 0
    _, bad = fn(known, KEY, optax.tree.full_like(CENTRE, jnp.nan))
    _, without = fn(known._replace(rise_step=jnp.int32(20)), KEY, nearby())
    assert (bad.rise_step, without.rise_step, without.noise_scale) == (11, 21, 0)
    for unseen in (bad, without):
        for field in ("loss_rise_estimate", "rise_per_square"):
            assert getattr(unseen, field) == getattr(known, field)
        expected = 0.98 * known.rise_weight
        np.testing.assert_allclose(unseen.rise_weight, expected, rtol=1e-6)


def test_a_rise_counts_as_a_hundred_times_the_target_at_most_and_minus_ten_at_least():
    fn = smoothout_value_and_grad(
        lambda params, factor: factor * quadratic(params), NOISE, loss_rise=RISE
    )

    def seen(factor):
        return fn(init_loss_rise(), KEY, CENTRE, factor)[1]

    rise = jax.jit(jax.vmap(seen))(jnp.array([1e-3, -1e-3, 1e9, -1e9]))
    within, bounds = np.split(rise.loss_rise_estimate / RISE, 2)
    # At a tenth of the noise under which the loss rises by a hundred times it.
    np.testing.assert_allclose(within, [1e-3, -1e-3], rtol=0.3)
    np.testing.assert_allclose(bounds, [100, -10], rtol=1e-6)
    np.testing.assert_allclose(
        rise.rise_per_square, rise.loss_rise_estimate / 0.1**2, rtol=1e-5
    )


def test_one_huge_gradient_does_not_silence_the_noise():
    """It counts as a rise by a hundred times the target, among the last steps'."""
    (at_once, later), (_, estimated) = scales_after_bursts()["huge"]
    weight = np.sum(0.98 ** np.arange(150))
    expected = 0.1 / np.sqrt(1 + (100 - 1) / weight)
    np.testing.assert_allclose(later[150], expected, rtol=0.01)
    assert np.all(later[310:] > 0.08)
    np.testing.assert_allclose(np.min(at_once[1:]), 0.01, rtol=0.01)
    assert np.all(at_once[180:] > 0.08)
    # And is gone from the estimate after three hundred steps.
    np.testing.assert_allclose(estimated[450:], RISE, rtol=0.05)


def test_one_huge_gradient_downhill_does_not_bring_the_largest_noise():
    """It counts as a fall by ten times the target, among the last steps'."""
    (_, later), _ = scales_after_bursts()["huge, downhill"]
    weight = np.sum(0.98 ** np.arange(150))
    np.testing.assert_allclose(later[150], 0.105, rtol=0.01)
    most = 0.1 / np.sqrt(1 - (10 + 1) / weight)
    np.testing.assert_allclose(np.max(later[150:250]), most, rtol=0.03)


# What is no rise of the loss under noise alone


def held_scale(optimizer):
    _, state = train(optimizer, 200, CENTRE)
    return float(jnp.mean(scales(state)[-100:]))


CLIP = optax.clip_by_global_norm(0.05)
DECAY = 4 * TRACE / 420


def test_what_the_wrapped_optimizer_does_to_the_gradients_is_not_seen():
    inside = CLIP, optax.add_decayed_weights(DECAY), optax.set_to_zero()
    found = held_scale(wrapping(optimizer=optax.chain(*inside)))
    np.testing.assert_allclose(found, 0.1, rtol=0.05)


def test_clipping_before_smoothout_hides_the_rise():
    assert held_scale(optax.chain(CLIP, STANDING)) > 0.2


def test_weight_decay_counts_where_it_is_in_the_gradients():
    """Of one copy, the slope of the decay would hide the rise."""

    def decayed(params):
        return quadratic(params) + 0.5 * DECAY * optax.tree.norm(params, squared=True)

    rise = hold(decayed, NOISE, 300, **PAIR)
    found = jnp.mean(rise.noise_scale[-100:])
    np.testing.assert_allclose(found, 0.1 / np.sqrt(5), rtol=0.05)


# Without a rise


def test_without_a_rise_the_state_has_no_leaf_of_it_and_steps_are_the_same():
    plain = smoothout(SGD, NOISE, key=KEY)
    state = plain.init(CENTRE)
    assert state.smoothout_rise is None
    held = len(jax.tree.leaves(HELD.init(CENTRE)))
    assert held - len(jax.tree.leaves(state)) == len(jax.tree.leaves(init_loss_rise()))
    before = SmoothoutState(*tuple(state)[:-1])
    step = jax.jit(functools.partial(user_step, plain))
    program = step.lower(CENTRE, before).as_text()
    assert step.lower(CENTRE, state).as_text() == program
    # One draw, which is not multiplied.
    params, state = step(CENTRE, state)
    added = NOISE(jax.random.fold_in(KEY, 1), CENTRE)
    clean = smoothout_eval_params(state, params)
    assert_close(params, optax.tree.add(clean, added))
    link = smooth_gradients(NOISE, key=KEY)
    assert link.init(CENTRE).smooth_gradients_rise is None


# Errors name the argument, and show what to do

WRONG = [
    (-0.1, ValueError, "loss_rise must be finite and at least 0, got -0.1"),
    (np.nan, ValueError, "loss_rise must be finite and at least 0, got nan"),
    (np.inf, ValueError, "loss_rise must be finite and at least 0, got inf"),
    ("0.1", TypeError, "loss_rise must be a number, got '0.1'"),
    (True, TypeError, "loss_rise must be a number, got True"),
    (jnp.ones(2), TypeError, "loss_rise must be a number, got an array"),
]


@pytest.mark.parametrize(("given", "error", "message"), WRONG)
def test_a_rise_that_is_no_number_of_at_least_zero_is_refused(given, error, message):
    for make in (wrapping, replacing, functools.partial(smoothout_value_and_grad, sum)):
        with pytest.raises(error, match=message):
            make(NOISE, loss_rise=given)


@pytest.mark.parametrize("make", [wrapping, replacing])
def test_a_schedule_that_gives_no_rise_is_refused_at_its_step(make):
    optimizer = make(
        optimizer=optax.identity(), loss_rise=lambda step: 0.1 - 0.2 * float(step)
    )
    params = jnp.ones(3)
    state = optimizer.init(params)
    if make is replacing:  # whose first update is at step 0
        state = optax.tree.set(state, rise_step=jnp.int32(1))
    with pytest.raises(ValueError, match=r"loss_rise at step 1 must be .*got -0.1"):
        user_step(optimizer, params, state, jnp.sum)


HELD_FUNCTION = smoothout_value_and_grad(quadratic, NOISE, loss_rise=RISE)
STATE = init_loss_rise()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((KEY, STATE, CENTRE), r"rise must be the state that init_.* array of key"),
        ((KEY, CENTRE, STATE), r"rise must be the state that init_.* array of key"),
        ((CENTRE, STATE, KEY), r"rise must be the state that init_.* a dict of 2"),
        ((STATE, CENTRE, KEY), r"key must be a single PRNG key.* a dict of 2"),
    ],
    ids=["key first", "state last", "parameters first", "key last"],
)
def test_a_state_or_key_that_is_not_in_its_place_is_named(arguments, message):
    with pytest.raises(TypeError, match=message):
        HELD_FUNCTION(*arguments)


def test_the_state_of_a_rise_is_not_taken_for_a_key_where_none_is_held():
    plain = smoothout_value_and_grad(quadratic, NOISE)
    with pytest.raises(TypeError, match=r"key must be .*LossRiseState"):
        plain(STATE, KEY, CENTRE)


@pytest.mark.parametrize(
    ("name", "make"), [("smoothout", wrapping), ("smooth_gradients", replacing)]
)
@pytest.mark.parametrize(
    ("made", "takes"),
    [((None, "without"), (RISE, "with")), ((RISE, "with"), (None, "without"))],
)
def test_a_state_of_a_training_without_the_rise_or_with_it_is_refused(
    name, make, made, takes
):
    (before, was_made), (now, is_given) = made, takes
    state = make(loss_rise=before).init(CENTRE)
    message = f"state was made {was_made} loss_rise, but {name} is {is_given} it"
    with pytest.raises(ValueError, match=message):
        user_step(make(loss_rise=now), CENTRE, state)


def test_per_example_gradients_have_no_rise():
    """Their product with the noise is the rise of all examples together."""
    optimizer = wrapping(optimizer=optax.set_to_zero())
    grads = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), CENTRE)
    with (
        jax.numpy_rank_promotion("allow"),
        pytest.raises(ValueError, match="loss_rise needs gradients like params"),
    ):
        jax.jit(optimizer.update)(grads, optimizer.init(CENTRE), CENTRE)
