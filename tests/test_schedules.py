"""The radius at every step, in closed form, and every error."""

import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smoothout_jax import (
    anneal_schedule,
    cosine_schedule,
    rise_schedule,
    tanh_schedule,
    uniform,
)

STEPS = np.array([0, 1, 7, 20, 39, 40, 41, 1000])
ARGUMENTS = {
    anneal_schedule: {"init_value": 0.3, "decay": 0.8},
    tanh_schedule: {"end_value": 0.3, "transition_steps": 40, "steepness": 6.0},
    cosine_schedule: {"init_value": 0.3, "growth": 5.0, "transition_steps": 40},
}
CLOSED_FORMS = {
    anneal_schedule: 0.3 * (1.0 + STEPS) ** -0.4,
    tanh_schedule: 0.3 * (1 + np.tanh(6 * (STEPS / 40 - 0.5))) / 2,
    cosine_schedule: 0.3 * (1 + 2 * (1 - np.cos(np.pi * np.minimum(STEPS / 40, 1)))),
}

every_schedule = pytest.mark.parametrize(
    "schedule", ARGUMENTS, ids=lambda schedule: schedule.__name__
)


def with_arguments(schedule, **changed):
    return schedule(**ARGUMENTS[schedule] | changed)


@every_schedule
def test_a_schedule_follows_its_closed_form(schedule):
    radius = with_arguments(schedule)
    values = [float(radius(int(step))) for step in STEPS]
    np.testing.assert_allclose(values, CLOSED_FORMS[schedule], rtol=1e-5)


@every_schedule
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.float32, np.int64])
def test_a_schedule_takes_steps_of_any_number_type(schedule, dtype):
    values = [with_arguments(schedule)(dtype(step)) for step in STEPS]
    chex.assert_type(values, jnp.float32)
    np.testing.assert_allclose(values, CLOSED_FORMS[schedule], rtol=1e-5)


@every_schedule
def test_a_schedule_is_compiled_once_for_all_steps(schedule):
    chex.clear_trace_counter()
    radius = jax.jit(chex.assert_max_traces(with_arguments(schedule), n=1))
    values = [float(radius(jnp.int32(step))) for step in STEPS]
    np.testing.assert_allclose(values, CLOSED_FORMS[schedule], rtol=1e-5)


@every_schedule
def test_a_schedule_works_in_double_precision(schedule):
    with jax.enable_x64(True):
        values = jax.vmap(with_arguments(schedule))(jnp.asarray(STEPS))
    assert values.dtype == jnp.float64
    np.testing.assert_allclose(values, CLOSED_FORMS[schedule], rtol=1e-12)


@pytest.mark.parametrize(
    ("schedule", "changed", "direction"),
    [
        (anneal_schedule, {}, -1),
        (anneal_schedule, {"decay": 0.0}, 0),
        (tanh_schedule, {}, 1),
        (tanh_schedule, {"steepness": 0.0}, 0),
        (cosine_schedule, {}, 1),
        (cosine_schedule, {"growth": 0.2}, -1),
        (cosine_schedule, {"growth": 1.0}, 0),
    ],
)
def test_a_schedule_is_monotone(schedule, changed, direction):
    values = jax.vmap(with_arguments(schedule, **changed))(jnp.arange(40))
    np.testing.assert_array_equal(np.sign(np.diff(values)), np.full(39, direction))


@pytest.mark.parametrize(
    ("schedule", "step", "radius"),
    [
        (anneal_schedule(0.3), 0, 0.3),
        (anneal_schedule(0.3), 99, 0.3 * 100**-0.275),
        (tanh_schedule(0.3, 40), 20, 0.15),
        (tanh_schedule(0.3, 40), 40, 0.3 / (1 + math.exp(-10))),
        (tanh_schedule(0.3, 40), 10**6, 0.3),
        (cosine_schedule(0.3, 5.0, 40), 0, 0.3),
        (cosine_schedule(0.3, 5.0, 40), 20, 0.9),
        (cosine_schedule(0.3, 5.0, 40), 40, 1.5),
        (cosine_schedule(0.3, 5.0, 40), 10**6, 1.5),
        (cosine_schedule(0.3, 0.0, 40), 40, 0.0),
    ],
)
def test_a_schedule_passes_its_landmarks(schedule, step, radius):
    np.testing.assert_allclose(schedule(step), radius, rtol=1e-6, atol=1e-9)


@every_schedule
def test_arguments_may_be_numpy_scalars(schedule):
    arguments = {
        name: np.int64(value) if isinstance(value, int) else np.float32(value)
        for name, value in ARGUMENTS[schedule].items()
    }
    values = [schedule(**arguments)(int(step)) for step in STEPS]
    np.testing.assert_allclose(values, CLOSED_FORMS[schedule], rtol=1e-5)


@every_schedule
def test_a_schedule_is_a_radius_of_noise(schedule):
    key = jax.random.key(1, impl="unsafe_rbg")
    params = jnp.array([0.5, -2.0, 1.5])
    noise = jax.jit(uniform(with_arguments(schedule)))
    for step in (0, 7, 40):
        radius = CLOSED_FORMS[schedule][list(STEPS).index(step)]
        drawn = noise(key, params, jnp.int32(step))
        np.testing.assert_allclose(drawn, uniform(radius)(key, params), rtol=1e-5)


SIZES = [
    (schedule, name)
    for schedule, arguments in ARGUMENTS.items()
    for name in arguments
    if name != "transition_steps"
]


@pytest.mark.parametrize(("schedule", "name"), SIZES)
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_an_argument_out_of_range_is_an_error(schedule, name, value):
    with pytest.raises(ValueError, match=f"^{name} must be .* at least 0, got {value}"):
        with_arguments(schedule, **{name: value})


@pytest.mark.parametrize(("schedule", "name"), SIZES)
@pytest.mark.parametrize("value", ["0.1", None, True, 0.1j, [0.1]], ids=repr)
def test_an_argument_that_is_no_number_is_an_error(schedule, name, value):
    value_given = re.escape(repr(value))
    with pytest.raises(TypeError, match=f"^{name} must be a number, got {value_given}"):
        with_arguments(schedule, **{name: value})


@pytest.mark.parametrize("schedule", [tanh_schedule, cosine_schedule])
@pytest.mark.parametrize("value", [0, -3])
def test_a_transition_of_no_steps_is_an_error(schedule, value):
    with pytest.raises(ValueError, match=f"^transition_steps must .* got {value}"):
        with_arguments(schedule, transition_steps=value)


@pytest.mark.parametrize("schedule", [tanh_schedule, cosine_schedule])
@pytest.mark.parametrize(
    ("value", "given"),
    [
        (40.0, "40.0"),
        ("40", "'40'"),
        (True, "True"),
        (None, "None"),
        (jnp.int32(40), 40),
    ],
)
def test_a_transition_of_no_whole_number_of_steps_is_an_error(schedule, value, given):
    with pytest.raises(TypeError, match=f"^transition_steps must be .* got {given};"):
        with_arguments(schedule, transition_steps=value)


@pytest.mark.parametrize("schedule", [tanh_schedule, cosine_schedule])
def test_a_traced_transition_is_an_error(schedule):
    with pytest.raises(
        TypeError, match=r"^transition_steps must be .* got a traced array"
    ):
        jax.jit(lambda steps: with_arguments(schedule, transition_steps=steps)(3))(40)


@pytest.mark.parametrize(
    ("steps_per_epoch", "options", "step", "rise"),
    [
        (100, {}, 0, 0.0),
        (100, {}, 2500, 0.075),
        (100, {}, 5000, 0.15),
        (100, {}, 50_000, 0.15),
        (1, {}, 100, 0.075),  # fifty steps are too few: 200 at least
        (1, {}, 200, 0.15),
        (10, {"loss_rise": 0.3, "epochs": 30}, 100, 0.1),
        (10, {"loss_rise": 0.3, "epochs": 0}, 100, 0.15),
    ],
)
def test_the_rise_grows_with_the_epochs_but_not_within_200_steps(
    steps_per_epoch, options, step, rise
):
    schedule = rise_schedule(steps_per_epoch, **options)
    for each in (step, jnp.int32(step)):
        assert float(schedule(each)) == pytest.approx(rise, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"steps_per_epoch": 0}, ValueError, "steps_per_epoch must be at least 1"),
        ({"steps_per_epoch": 2.5}, TypeError, "steps_per_epoch must be a Python integ"),
        (
            {"steps_per_epoch": 1, "loss_rise": -1},
            ValueError,
            "loss_rise must be finite",
        ),
        ({"steps_per_epoch": 1, "epochs": -1}, ValueError, "epochs must be finite"),
    ],
)
def test_a_rise_that_cannot_grow_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        rise_schedule(**arguments)
