"""The loop's parameters are the user's: what changes them outside is honoured."""

import functools

import chex
import flax.training.train_state
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from smoothout_jax import smoothout, smoothout_eval_params, uniform

RADIUS = 0.25
NOISE = uniform(RADIUS)
RELATIVE = uniform(0.5, relative_to="filter")
KEY = jax.random.key(3)
PARAMS = {
    "kernel": jnp.linspace(-1.5, 2.5, 12).reshape(3, 4),
    "bias": jnp.array([0.5, -0.25, 1.0, 2.0]),
}
one_copy_and_three = pytest.mark.parametrize("num_copies", [1, 3])
kept_and_not = pytest.mark.parametrize(
    "keep_noise", [True, False], ids=["kept", "drawn again"]
)


def loss(params, batch):
    """Curved little enough that training does not enlarge what rounding differs by."""
    factor = jnp.asarray(1 + batch / 8, params["bias"].dtype)
    logits = factor * params["kernel"].sum(0) + params["bias"]
    return jnp.sum(jnp.sin(logits) + 0.1 * logits**2)


@functools.cache
def jitted_step(optimizer, change=lambda params: params):
    def step(params, state, batch):
        grads = jax.grad(loss)(params, batch)
        updates, state = optimizer.update(grads, state, params)
        return change(optax.apply_updates(params, updates)), state

    return jax.jit(step)


def train(optimizer, steps, params=PARAMS, state=None, change=lambda params: params):
    state = optimizer.init(params) if state is None else state
    for batch in range(steps):
        step = jitted_step(optimizer, change)
        params, state = step(params, state, jnp.float32(batch))
    return params, state


def standing(**options):
    """A smoothout whose clean parameters do not move by themselves."""
    return smoothout(optax.sgd(0.0), options.pop("noise", NOISE), key=KEY, **options)


# As with any other optimizer


CHANGES = {
    "nothing": lambda params: params,
    "projection": lambda params: jax.tree.map(lambda p: p.clip(-0.75, 0.75), params),
    "decay": lambda params: jax.tree.map(lambda p: p * 0.99, params),
    "a frozen leaf": lambda params: params | {"bias": PARAMS["bias"]},
    "a reset row": lambda params: params | {"kernel": params["kernel"].at[1].set(0.5)},
}


@jax.numpy_dtype_promotion("standard")  # which Optax's wrappers need
@one_copy_and_three
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_without_noise_whatever_is_done_to_the_parameters_counts(change, num_copies):
    plain = optax.sgd(0.1, momentum=0.9)
    if num_copies > 1:
        plain = optax.MultiSteps(plain, num_copies)
    inner = optax.sgd(0.1, momentum=0.9)
    wrapped = smoothout(inner, uniform(0.0), key=KEY, num_copies=num_copies)
    expected, _ = train(plain, 7, change=change)
    params, state = train(wrapped, 7, change=change)
    chex.assert_trees_all_close(params, expected, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(
        smoothout_eval_params(state, params), expected, rtol=1e-5, atol=1e-6
    )


WRAPPERS = {
    "schedule_free": lambda inner: optax.contrib.schedule_free(inner, 0.1),
    "mechanize": optax.contrib.mechanize,
    "apply_if_finite": lambda inner: optax.apply_if_finite(inner, 3),
}


@jax.numpy_dtype_promotion("standard")
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrappers_that_move_the_parameters_are_exact_without_noise(wrap):
    expected, _ = train(wrap(optax.sgd(0.1)), 5)
    inner = smoothout(optax.sgd(0.1), uniform(0.0), key=KEY)
    params, _ = train(wrap(inner), 5)
    chex.assert_trees_all_close(params, expected, rtol=1e-5, atol=1e-6)


@jax.numpy_dtype_promotion("standard")
def test_lookahead_around_it_is_exact_without_noise():
    def trained(fast):
        optimizer = optax.lookahead(fast, sync_period=2, slow_step_size=0.5)
        params = optax.LookaheadParams.init_synced(PARAMS)
        state = optimizer.init(params)
        for batch in range(5):
            grads = jax.grad(loss)(params.fast, float(batch))
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        return params

    expected = trained(optax.sgd(0.1))
    params = trained(smoothout(optax.sgd(0.1), uniform(0.0), key=KEY))
    chex.assert_trees_all_close(params, expected, rtol=1e-5, atol=1e-6)


# With noise: the clean parameters move by the same difference


@one_copy_and_three
@kept_and_not
def test_parameters_loaded_after_init_count_in_full(keep_noise, num_copies):
    optimizer = standing(keep_noise=keep_noise, num_copies=num_copies)
    loaded = jax.tree.map(lambda p: 100 * p + 7, PARAMS)
    state = optimizer.init(PARAMS)
    chex.assert_trees_all_equal(smoothout_eval_params(state, loaded), loaded)
    params, state = train(optimizer, num_copies, loaded, state)
    assert not jnp.any(params["kernel"] == loaded["kernel"])
    clean = smoothout_eval_params(state, params)
    chex.assert_trees_all_close(clean, loaded, rtol=1e-6)


@one_copy_and_three
@pytest.mark.parametrize("noise", [NOISE, RELATIVE], ids=["absolute", "relative"])
@pytest.mark.parametrize("transform", [jax.jit, lambda fn: fn], ids=["jit", "eager"])
def test_clean_parameters_move_by_what_the_loop_s_do(transform, noise, num_copies):
    optimizer = standing(noise=noise, num_copies=num_copies)
    params, state = train(optimizer, 4)
    moved = params | {"kernel": params["kernel"].at[1, 2].add(0.125)}
    expected = PARAMS | {"kernel": PARAMS["kernel"].at[1, 2].add(0.125)}
    evaluate, update = map(transform, (smoothout_eval_params, optimizer.update))
    for _ in range(3):
        clean = evaluate(state, moved)
        chex.assert_trees_all_close(clean, expected, rtol=1e-6)
        updates, state = update(moved, state, moved)
        moved = optax.apply_updates(moved, updates)


@kept_and_not
def test_what_is_overwritten_counts_without_the_noise_that_was_in_it(keep_noise):
    params, state = train(standing(keep_noise=keep_noise), 3)
    noise = params["bias"] - PARAMS["bias"]
    loaded = params | {"bias": jnp.full(4, 9.0)}
    expected = PARAMS | {"bias": 9.0 - noise}
    for transform in (jax.jit, lambda fn: fn):
        clean = transform(smoothout_eval_params)(state, loaded)
        chex.assert_trees_all_close(clean, expected, rtol=1e-6)


@one_copy_and_three
@kept_and_not
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "complex64"])
def test_changes_of_every_dtype_are_followed(dtype, keep_noise, num_copies):
    optimizer = standing(keep_noise=keep_noise, num_copies=num_copies)

    def shift(params):
        return jax.tree.map(lambda p: p + jnp.asarray(0.125, p.dtype), params)

    start = optax.tree.cast(PARAMS, jnp.dtype(dtype))
    params, state = start, optimizer.init(start)
    for _ in range(4):
        updates, state = jax.jit(optimizer.update)(params, state, params)
        params = shift(optax.apply_updates(params, updates))
    expected = functools.reduce(lambda p, _: shift(p), range(4), start)
    clean = smoothout_eval_params(state, params)
    eps = float(jnp.finfo(dtype).eps)
    chex.assert_trees_all_close(clean, expected, rtol=0, atol=24 * eps)


def test_integers_are_those_of_the_loop():
    optimizer = smoothout(optax.set_to_zero(), NOISE, key=KEY)
    start = {"w": jnp.ones(3), "count": jnp.arange(3)}
    params, state = start, optimizer.init(start)
    grads = {"w": jnp.ones(3), "count": jnp.zeros(3, jnp.int32)}
    for _ in range(3):
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        params["count"] += 1
        evaluated = smoothout_eval_params(state, params)
        np.testing.assert_array_equal(evaluated["count"], params["count"])
    np.testing.assert_array_equal(params["count"], np.arange(3) + 3)


def test_not_a_number_can_be_overwritten():
    """What is overwritten then has no noise in it, so that it counts in full."""
    optimizer = smoothout(optax.sgd(0.1), NOISE, key=KEY)
    params, state = train(optimizer, 2)
    nans = optax.tree.full_like(params, jnp.nan)
    updates, state = optimizer.update(nans, state, params)
    params = optax.apply_updates(params, updates)
    for tree in (params, smoothout_eval_params(state, params)):
        assert jnp.all(jnp.isnan(tree["bias"]))
    chex.assert_trees_all_equal(smoothout_eval_params(state, PARAMS), PARAMS)
    updates, state = optimizer.update(optax.tree.zeros_like(PARAMS), state, PARAMS)
    params = optax.apply_updates(PARAMS, updates)
    clean = smoothout_eval_params(state, params)
    chex.assert_trees_all_close(clean, PARAMS, rtol=1e-6)
    assert not jnp.any(params["bias"] == PARAMS["bias"])


def test_updates_can_be_differentiated():
    optimizer = smoothout(optax.sgd(0.1), NOISE, key=KEY)
    state = optimizer.init(PARAMS)

    def moved(grads):
        updates, after = optimizer.update(grads, state, PARAMS)
        params = optax.apply_updates(PARAMS, updates)
        clean = smoothout_eval_params(after, params)
        return clean["bias"].sum() + updates["bias"].sum()

    slope = jax.grad(moved)(optax.tree.ones_like(PARAMS))
    np.testing.assert_allclose(slope["bias"], -0.2, rtol=1e-6)


# In the frameworks


@jax.numpy_dtype_promotion("standard")  # which Optax's Adam needs
def test_weights_loaded_into_a_train_state_count():
    state = flax.training.train_state.TrainState.create(
        apply_fn=None,
        params=PARAMS,
        tx=smoothout(optax.adam(1e-3), uniform(0.01), key=jax.random.key(0)),
    )
    loaded = optax.tree.full_like(PARAMS, 100.0)
    state = state.replace(params=loaded)
    state = state.apply_gradients(grads=optax.tree.ones_like(PARAMS))
    clean = smoothout_eval_params(state, state.params)
    expected = optax.tree.full_like(PARAMS, 99.999)
    chex.assert_trees_all_close(clean, expected, rtol=1e-6)


@pytest.mark.parametrize("before", [0, 3])
def test_weights_set_in_an_nnx_module_count(before):
    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    transformation = smoothout(optax.sgd(0.0), NOISE, key=KEY)
    optimizer = nnx.Optimizer(model, transformation, wrt=nnx.Param)
    grads = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    for _ in range(before):
        optimizer.update(model, grads)
    model.kernel[...] = jnp.full((3, 4), 7.0)
    optimizer.update(model, grads)
    clean = smoothout_eval_params(optimizer.opt_state, nnx.state(model, nnx.Param))
    tolerance = RADIUS if before else 0
    np.testing.assert_allclose(clean["kernel"][...], 7.0, rtol=1e-6, atol=tolerance)
