"""The radius at every step, in closed form, and every error."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smoothout_jax import anneal_schedule, cosine_schedule, rise_schedule, tanh_schedule

STEPS = np.array([0, 1, 7, 20, 39, 40, 41, 1000])
ARGUMENTS = {
    anneal_schedule: {"init_value": 0.3, "decay": 0.8},
    tanh_schedule: {"end_value": 0.3, "transition_steps": 40, "steepness": 6.0},
    cosine_schedule: {"init_value": 0.3, "growth": 5.0, "transition_steps": 40},
    rise_schedule: {"steps_per_epoch": 8, "loss_rise": 0.3, "epochs": 50.0},
}
CLOSED_FORMS = {
    anneal_schedule: 0.3 * (1.0 + STEPS) ** -0.4,
    tanh_schedule: 0.3 * (1 + np.tanh(6 * (STEPS / 40 - 0.5))) / 2,
    cosine_schedule: 0.3 * (1 + 2 * (1 - np.cos(np.pi * np.minimum(STEPS / 40, 1)))),
    rise_schedule: 0.3 * np.minimum(STEPS / 400, 1),
}
INTEGERS = "transition_steps", "steps_per_epoch"


def given(schedule, **changed):
    return schedule(**ARGUMENTS[schedule] | changed)


@pytest.mark.parametrize("schedule", ARGUMENTS, ids=lambda schedule: schedule.__name__)
def test_a_schedule_follows_its_closed_form(schedule):
    """At steps of every type of number, with arguments that are NumPy scalars too."""
    expected, traces = CLOSED_FORMS[schedule], []
    scalars = {
        name: np.int64(value) if name in INTEGERS else np.float32(value)
        for name, value in ARGUMENTS[schedule].items()
    }

    @jax.jit
    def compiled(step):
        traces.append(step)
        return given(schedule)(step)

    for radius in (given(schedule), schedule(**scalars), compiled):
        for number in (int, np.int64, jnp.int32, jnp.float32):
            if radius is not compiled or number is jnp.int32:
                values = [radius(number(step)) for step in STEPS]
                assert {value.dtype for value in values} == {jnp.dtype("float32")}
                np.testing.assert_allclose(values, expected, rtol=1e-5)
    assert len(traces) == 1
    with jax.enable_x64(True):
        values = jax.vmap(given(schedule))(jnp.asarray(STEPS))
    assert values.dtype == jnp.float64
    np.testing.assert_allclose(values, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("schedule", "step", "value"),
    [
        (anneal_schedule(0.3), 99, 0.3 * 100**-0.275),
        (anneal_schedule(0.3, decay=0.0), 99, 0.3),
        (tanh_schedule(0.3, 40), 40, 0.3 / (1 + math.exp(-10))),
        (tanh_schedule(0.3, 40, steepness=0.0), 40, 0.15),
        (cosine_schedule(0.3, 0.0, 40), 40, 0.0),
        (rise_schedule(100), 2500, 0.075),
        (rise_schedule(100), 50_000, 0.15),
        (rise_schedule(1), 100, 0.075),  # fifty steps are too few: 200 at least
        (rise_schedule(10, loss_rise=0.3, epochs=0), 100, 0.15),
    ],
)
def test_a_schedule_passes_its_landmarks(schedule, step, value):
    np.testing.assert_allclose(schedule(step), value, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("schedule", "name"),
    [(schedule, name) for schedule, names in ARGUMENTS.items() for name in names],
)
def test_an_invalid_argument_is_named(schedule, name):
    if name in INTEGERS:
        out_of_range, wrong_types = (0, -3), (40.0, "40", True, None, jnp.int32(40))
        bound, kind = "at least 1", "a Python integer"
    else:
        out_of_range = (-0.1, math.nan, math.inf)
        wrong_types = ("0.1", None, True, 0.1j, [0.1])
        bound, kind = "finite and at least 0", "a number"
    for value in out_of_range:
        with pytest.raises(ValueError, match=f"^{name} must be {bound}, got {value}"):
            given(schedule, **{name: value})
    for value in wrong_types:
        shown = re.escape(str(value) if isinstance(value, jax.Array) else repr(value))
        with pytest.raises(TypeError, match=f"^{name} must be {kind}, got {shown}"):
            given(schedule, **{name: value})
