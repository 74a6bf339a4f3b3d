"""The rise of the loss, held: its controller, its state, and what it refuses."""

import collections
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from smoothout_jax import (
    init_loss_rise,
    smooth_gradients,
    smoothout,
    smoothout_eval_params,
    smoothout_value_and_grad,
    uniform,
)
from smoothout_jax.loss_rise import LossRise

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


def quadratic(params):
    return 0.5 * sum(
        jnp.sum(curvatures * jnp.square(leaf - centre))
        for curvatures, leaf, centre in zip(
            *map(jax.tree.leaves, (CURVATURES, params, CENTRE)), strict=True
        )
    )


def nearby(distance):
    return jax.tree.map(lambda leaf: leaf + distance, CENTRE)


def user_step(optimizer, params, state, loss=quadratic):
    grad_fn = jax.grad(lambda params, copy: loss(params))
    updates, state = optax.with_extra_args_support(optimizer).update(
        grad_fn(params, 0), state, params, grad_fn=grad_fn
    )
    return optax.apply_updates(params, updates), state


def scales(state):
    return optax.tree.get(state, "noise_scale")


def estimates(state):
    return optax.tree.get(state, "loss_rise_estimate")


def wrapping(noise=NOISE, optimizer=SGD, *, loss_rise=RISE, **options):
    return smoothout(optimizer, noise, key=KEY, loss_rise=loss_rise, **options)


def replacing(noise=NOISE, optimizer=SGD, *, loss_rise=RISE, **options):
    link = smooth_gradients(noise, key=KEY, loss_rise=loss_rise, **options)
    return optax.chain(link, optimizer)


both_makers = pytest.mark.parametrize("make", [wrapping, replacing])


# The controller, beside one written by hand


class ByHand:
    """Holds a rise in double precision; keeps all that was seen, and its weights."""

    def __init__(self, copies=1):
        self.copies, self.scale, self.step = copies, 0.0, 0
        self.weights, self.rises, self.per_square = np.zeros((3, 0))

    def means(self):
        """Of the rise, and of the rise over the square of the scale."""
        if not self.weights.sum():
            return 0.0, 0.0
        return tuple(
            np.average(seen, weights=self.weights)
            for seen in (self.rises, self.per_square)
        )

    def observe(self, rise, target):
        target = target if np.isfinite(target) else 0
        self.weights = self.weights * 0.98 ** (1 / self.copies)
        if self.scale > 0 and np.isfinite(rise):
            rise, square = np.clip(rise, -10 * target, 100 * target), self.scale**2
            self.weights = np.append(self.weights, square)
            self.rises = np.append(self.rises, rise)
            self.per_square = np.append(self.per_square, rise / square)
        self.step += 1

    def rescale(self, target):
        old, (_, per_square) = self.scale, self.means()
        target = target if np.isfinite(target) else 0
        most = np.clip(1.05 ** (1 / self.copies) * old, 0.1, 1)
        bears = np.sqrt(target / per_square) if per_square > target else 1
        self.scale = np.clip(bears, 1e-12, most) if target > 0 else 0.0
        if 0 < self.scale < old:
            self.weights = self.weights * (self.scale / old) ** 2


STEPS = np.arange(301)
BEARABLE = RISE / 0.1**2
# The targets in every update, and the rise over the square of the scale.
TARGETS_AND_RISES = {
    "constant": (np.full(301, RISE), BEARABLE * (1 + 0.5 * np.sin(STEPS))),
    "at first none": (np.where(STEPS < 30, 0, RISE), BEARABLE),
    "in the end none": (np.where(STEPS < 120, RISE, 0), BEARABLE),
    "to ninefold": (RISE * (1 + 8 * np.minimum(STEPS / 50, 1)), BEARABLE),
    "a hundredfold": (np.where(STEPS < 200, 1, 100) * RISE, BEARABLE),
    "target of nan": (np.where(STEPS == 60, np.nan, RISE), BEARABLE),
    "target of inf": (np.where(STEPS == 60, np.inf, RISE), BEARABLE),
    "curvature grows": (RISE, np.where(STEPS < 100, 1, 4) * BEARABLE),
    "flat": (RISE, 0.0),
    "hill": (RISE, -BEARABLE),
    "nan": (RISE, np.where((STEPS > 50) & (STEPS < 70), np.nan, BEARABLE)),
    "inf": (RISE, np.where(STEPS == 50, np.inf, BEARABLE)),
    "huge": (RISE, np.where(STEPS == 150, 1e12, BEARABLE)),
    "huge at once": (RISE, np.where(STEPS == 1, 1e12, BEARABLE)),
    "huge, downhill": (RISE, np.where(STEPS == 150, -1e12, BEARABLE)),
}


@functools.cache
def held(copies):
    """The states after every gradient, for each of the targets and rises."""
    targets, rises = (
        jnp.array(
            [np.broadcast_to(pair[i], 301) for pair in TARGETS_AND_RISES.values()]
        )
        for i in (0, 1)
    )

    def run(targets, rises):
        rule = LossRise(lambda step: targets[step], copies)

        def step(state, number):
            seen = rises[number // copies] * jnp.square(state.noise_scale)
            state = rule.scaled(rule.observed(state, seen))
            return state, state

        numbers = jnp.arange(300 * copies)
        return jax.lax.scan(step, init_loss_rise(), numbers)[1]

    return jax.jit(jax.vmap(run))(jnp.float32(targets), jnp.float32(rises))


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("name", TARGETS_AND_RISES)
def test_the_controller_equals_one_written_by_hand(name, copies):
    found = jax.tree.map(
        lambda leaf: leaf[[*TARGETS_AND_RISES].index(name)], held(copies)
    )
    targets, rises = (np.broadcast_to(part, 301) for part in TARGETS_AND_RISES[name])
    rule, expected = ByHand(copies), collections.defaultdict(list)
    for number in range(300 * copies):
        rise = rises[number // copies] * rule.scale**2
        rule.observe(rise, targets[number // copies])
        target = targets[rule.step // copies]
        rule.rescale(target)
        estimate, per_square = rule.means()
        expected["noise_scale"].append(rule.scale)
        expected["loss_rise_estimate"].append(estimate)
        expected["rise_per_square"].append(per_square)
        expected["rise_weight"].append(rule.weights.sum())
        expected["rise_step"].append(number + 1)
        expected["loss_rise_target"].append(target if np.isfinite(target) else 0)
    assert found.gap_state is None
    for field, values in expected.items():
        np.testing.assert_allclose(
            getattr(found, field), values, rtol=1e-3, atol=1e-6, err_msg=field
        )


@pytest.mark.parametrize(
    "name", ["nan", "inf", "huge", "huge at once", "huge, downhill"]
)
def test_the_scale_stays_positive_and_recovers_from_bad_gradients(name):
    for copies in (1, 3):
        found = held(copies).noise_scale[[*TARGETS_AND_RISES].index(name)]
        assert jnp.all((found > 0) & (found <= 1))
        np.testing.assert_allclose(found[-1], 0.1, rtol=0.06)


# The controller in a training, beside a loop written by hand


@pytest.mark.parametrize("num_copies", [1, 3])
@pytest.mark.parametrize("keep_noise", [True, False], ids=["kept", "drawn again"])
def test_smoothout_equals_the_loop_written_by_hand(num_copies, keep_noise):
    """It sees the gradients as given, whatever the wrapped optimizer does to them."""
    targets = RISE * np.array([1.0, 0.0, 2.0, 4.0, 1.0, 9.0, 1.0])
    inner = optax.chain(
        optax.clip_by_global_norm(0.05), optax.add_decayed_weights(0.1), SGD
    )
    optimizer = wrapping(
        optimizer=inner,
        loss_rise=lambda step: jnp.array(targets)[step],
        num_copies=num_copies,
        keep_noise=keep_noise,
    )
    step, gradient = (
        jax.jit(functools.partial(user_step, optimizer)),
        jax.grad(quadratic),
    )
    clean = params = loop = nearby(0.1)
    state, inner_state, noise = optimizer.init(params), inner.init(params), None
    rule, grads = ByHand(num_copies), []
    for number in range(1, 6 * num_copies + 1):
        grads.append(gradient(loop))
        rise = optax.tree.vdot(noise, grads[-1]) / 2 if noise is not None else 0.0
        rule.observe(float(rise), targets[(number - 1) // num_copies])
        rule.rescale(targets[number // num_copies])
        if len(grads) == num_copies:
            mean = optax.tree.scale(
                1 / num_copies, functools.reduce(optax.tree.add, grads)
            )
            updates, inner_state = inner.update(mean, inner_state, clean)
            clean, grads = optax.apply_updates(clean, updates), []
        drawn = NOISE(jax.random.fold_in(KEY, number), clean)
        noise = optax.tree.scale(rule.scale, drawn)
        loop = optax.tree.add(clean, noise)

        params, state = step(params, state)
        np.testing.assert_allclose(scales(state), rule.scale, rtol=1e-3)
        np.testing.assert_allclose(estimates(state), rule.means()[0], rtol=1e-3)
        assert optax.tree.get(state, "rise_step") == number
        assert_close(params, loop, rtol=1e-4, atol=1e-4)
        assert_close(smoothout_eval_params(state, params), clean, rtol=1e-4, atol=1e-4)


def test_smooth_gradients_equals_the_loop_with_smoothout_value_and_grad():
    def target(step):
        return jnp.where(step < 2, RISE, 4 * RISE)

    optimizer = replacing(loss_rise=target, **PAIR)
    step = jax.jit(functools.partial(user_step, optimizer))
    params = expected = nearby(0.1)
    state, rise, inner = optimizer.init(params), init_loss_rise(), SGD.init(params)
    fn = jax.jit(smoothout_value_and_grad(quadratic, NOISE, loss_rise=target, **PAIR))
    for number in range(4):
        params, state = step(params, state)
        (_, grads), rise = fn(rise, jax.random.fold_in(KEY, number), expected)
        updates, inner = SGD.update(grads, inner)
        expected = optax.apply_updates(expected, updates)
        assert_close(params, expected)
        assert_close(state[0].smooth_gradients_rise, rise)


# The state in Optax


@both_makers
def test_the_state_of_a_rise_is_numbers_that_optax_finds_and_no_parameters(make):
    optimizer = make()
    state = optimizer.init(CENTRE)
    shapes = optimizer.init(jax.eval_shape(lambda: CENTRE))
    chex.assert_trees_all_equal_shapes_and_dtypes(shapes, state)
    mapped = optax.tree.map_params(optimizer, lambda leaf: leaf + 1, state)
    fields = init_loss_rise()._asdict()
    assert fields.pop("gap_state") is None
    for field, expected in fields.items():
        for found in (optax.tree.get(state, field), optax.tree.get(mapped, field)):
            assert (found, found.dtype, found.shape) == (0, expected.dtype, ())


@both_makers
def test_an_injected_rise_may_change_without_a_retrace(make):
    injected = optax.inject_hyperparams(lambda loss_rise: make(loss_rise=loss_rise))
    optimizer, traces = injected(loss_rise=RISE), []

    @jax.jit
    def step(params, state):
        traces.append(1)
        with jax.numpy_dtype_promotion("standard"):  # as Optax's wrapper needs it
            return user_step(optimizer, params, state)

    params, state = CENTRE, optimizer.init(CENTRE)
    for loss_rise in (RISE, 9 * RISE, 0.0):
        state.hyperparams["loss_rise"] = jnp.float32(loss_rise)
        params, state = step(params, state)
        assert optax.tree.get(state, "loss_rise_target") == np.float32(loss_rise)
        assert (scales(state) > 0) == (loss_rise > 0)
    assert len(traces) == 1


# Errors name the argument, and show what to do


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (-0.1, ValueError, "loss_rise must be finite and at least 0, got -0.1"),
        (np.nan, ValueError, "loss_rise must be finite and at least 0, got nan"),
        (np.inf, ValueError, "loss_rise must be finite and at least 0, got inf"),
        ("0.1", TypeError, "loss_rise must be a number, got '0.1'"),
        (True, TypeError, "loss_rise must be a number, got True"),
        (jnp.ones(2), TypeError, "loss_rise must be a number, got an array"),
    ],
)
def test_a_rise_must_be_a_number_of_at_least_zero(given, error, message):
    for make in (wrapping, replacing, functools.partial(smoothout_value_and_grad, sum)):
        with pytest.raises(error, match=message):
            make(NOISE, loss_rise=given)


@both_makers
def test_a_schedule_must_give_a_rise_at_every_step(make):
    optimizer = make(
        optimizer=optax.identity(), loss_rise=lambda step: 0.1 - 0.2 * float(step)
    )
    params = jnp.ones(3)
    state = optimizer.init(params)
    if make is replacing:  # whose first update is at step 0
        state = optax.tree.set(state, rise_step=jnp.int32(1))
    with pytest.raises(ValueError, match=r"loss_rise at step 1 must be .*got -0.1"):
        user_step(optimizer, params, state, jnp.sum)


STATE = init_loss_rise()


@pytest.mark.parametrize(
    ("loss_rise", "arguments", "message"),
    [
        (RISE, (KEY, STATE, CENTRE), r"rise must be the state that init_.* of key"),
        (RISE, (CENTRE, STATE, KEY), r"rise must be the state that init_.* dict of 2"),
        (RISE, (STATE, CENTRE, KEY), r"key must be a single PRNG key.* a dict of 2"),
        (None, (STATE, KEY, CENTRE), r"key must be .*LossRiseState"),
    ],
    ids=["key first", "parameters first", "key last", "no rise"],
)
def test_a_state_or_key_must_be_in_its_place(loss_rise, arguments, message):
    with pytest.raises(TypeError, match=message):
        smoothout_value_and_grad(quadratic, NOISE, loss_rise=loss_rise)(*arguments)


@pytest.mark.parametrize(
    ("name", "make"), [("smoothout", wrapping), ("smooth_gradients", replacing)]
)
def test_a_state_must_hold_a_rise_where_the_training_does(name, make):
    for before, was_made, now, is_given in (
        (None, "without", RISE, "with"),
        (RISE, "with", None, "without"),
    ):
        state = make(loss_rise=before).init(CENTRE)
        message = f"state was made {was_made} loss_rise, but {name} is {is_given} it"
        with pytest.raises(ValueError, match=message):
            user_step(make(loss_rise=now), CENTRE, state)


def test_per_example_gradients_have_no_rise():
    """Their product with the noise is the rise of all examples together."""
    optimizer = wrapping()
    grads = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), CENTRE)
    with (
        jax.numpy_rank_promotion("allow"),
        pytest.raises(ValueError, match="loss_rise needs gradients like params"),
    ):
        jax.jit(optimizer.update)(grads, optimizer.init(CENTRE), CENTRE)
