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

from smoothout_jax import _trees, smoothout, smoothout_eval_params, uniform
from smoothout_jax.transforms import following

RADIUS = 0.25
NOISE = uniform(RADIUS)
RELATIVE = uniform(0.5, relative_to="filter")
KEY = jax.random.key(3)
PARAMS = {
    "kernel": jnp.linspace(-1.5, 2.5, 12).reshape(3, 4),
    "bias": jnp.array([0.5, -0.25, 1.0, 2.0]),
}
one_copy_and_three = pytest.mark.parametrize("num_copies", [1, 3])


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


def shift(params):
    return jax.tree.map(lambda p: p + jnp.asarray(0.125, p.dtype), params)


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
@pytest.mark.parametrize("keep_clean", [True, False])
def test_parameters_loaded_after_init_count_in_full(keep_clean, num_copies):
    optimizer = standing(keep_clean=keep_clean, num_copies=num_copies)
    loaded = jax.tree.map(lambda p: 100 * p + 7, PARAMS)
    state = optimizer.init(PARAMS)
    options = {} if keep_clean else {"noise": NOISE, "key": KEY}
    evaluated = smoothout_eval_params(state, loaded, **options)
    chex.assert_trees_all_equal(evaluated, loaded)
    params, state = train(optimizer, num_copies, loaded, state)
    assert not jnp.any(params["kernel"] == loaded["kernel"])
    options = {} if keep_clean else options | {"num_copies": num_copies}
    evaluated = smoothout_eval_params(state, params, **options)
    (chex.assert_trees_all_equal if keep_clean else chex.assert_trees_all_close)(
        evaluated, loaded
    )


@one_copy_and_three
@pytest.mark.parametrize("noise", [NOISE, RELATIVE], ids=["absolute", "relative"])
@pytest.mark.parametrize("transform", [jax.jit, lambda fn: fn], ids=["jit", "eager"])
def test_clean_parameters_follow_a_difference(transform, noise, num_copies):
    optimizer = standing(noise=noise, num_copies=num_copies)
    params, state = train(optimizer, 4)
    params = params | {"kernel": params["kernel"].at[1, 2].add(0.125)}
    expected = PARAMS | {"kernel": PARAMS["kernel"].at[1, 2].add(0.125)}
    exactly = transform(
        functools.partial(
            smoothout_eval_params, noise=noise, key=KEY, num_copies=num_copies
        )
    )
    chex.assert_trees_all_close(exactly(state, params), expected, rtol=1e-6)
    _, state = transform(optimizer.update)(params, state, params)
    chex.assert_trees_all_close(state.clean_params, expected, rtol=1e-6)
    unchanged = np.ones((3, 4), bool)
    unchanged[1, 2] = False
    chex.assert_trees_all_equal(
        state.clean_params["kernel"][unchanged], PARAMS["kernel"][unchanged]
    )
    chex.assert_trees_all_equal(state.clean_params["bias"], PARAMS["bias"])


def test_evaluation_takes_changed_leaves_as_they_are_and_the_others_clean():
    optimizer = standing()
    params, state = train(optimizer, 3)
    loaded = params | {"bias": jnp.full(4, 9.0)}
    expected = PARAMS | {"bias": loaded["bias"]}
    for transform in (jax.jit, lambda fn: fn):
        evaluated = transform(smoothout_eval_params)(state, loaded)
        chex.assert_trees_all_equal(evaluated, expected)


@one_copy_and_three
@pytest.mark.parametrize("keep_clean", [True, False])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "complex64"])
def test_changes_of_every_dtype_are_followed(dtype, keep_clean, num_copies):
    optimizer = standing(keep_clean=keep_clean, num_copies=num_copies)
    start = optax.tree.cast(PARAMS, jnp.dtype(dtype))
    params, state = start, optimizer.init(start)
    for _ in range(4):
        updates, state = jax.jit(optimizer.update)(params, state, params)
        params = shift(optax.apply_updates(params, updates))
    expected = functools.reduce(lambda p, _: shift(p), range(4), start)
    options = {"noise": NOISE, "key": KEY, "num_copies": num_copies}
    clean = smoothout_eval_params(state, params, **options)
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
    optimizer = smoothout(optax.sgd(0.1), NOISE, key=KEY)
    params, state = train(optimizer, 2)
    updates, state = optimizer.update(
        optax.tree.full_like(params, jnp.nan), state, params
    )
    assert jnp.all(jnp.isnan(state.clean_params["bias"]))
    assert jnp.all(jnp.isnan(optax.apply_updates(params, updates)["bias"]))
    updates, state = optimizer.update(optax.tree.zeros_like(PARAMS), state, PARAMS)
    chex.assert_trees_all_equal(state.clean_params, PARAMS)
    params = optax.apply_updates(PARAMS, updates)
    chex.assert_trees_all_equal(smoothout_eval_params(state, params), PARAMS)


# Where nothing changed: the same bits, and no noise drawn again


def counting(noise, draws):
    """The noise, counting how often a compiled program draws it."""

    def counted(key, params, step=None):
        jax.debug.callback(lambda: draws.append(1))
        return noise(key, params, step)

    return counted


@one_copy_and_three
@pytest.mark.parametrize("device", ["one CPU", "one GPU", "more devices"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_clean_parameters_keep_their_bits_and_noise_is_drawn_once(
    dtype, device, num_copies, monkeypatch
):
    monkeypatch.setattr(following, "on_one_cpu", lambda: device == "one CPU")
    monkeypatch.setattr(_trees, "on_one_gpu", lambda: device == "one GPU")
    noise = RELATIVE if num_copies == 1 else NOISE
    draws = []
    optimizer = standing(noise=counting(noise, draws), num_copies=num_copies)
    start = optax.tree.cast(PARAMS, jnp.dtype(dtype))
    params, state = train(optimizer, 30, start)
    jax.effects_barrier()
    # The program of `init` may sum to other last bits than that of the steps.
    assert len(draws) <= 31
    chex.assert_trees_all_equal(state.clean_params, start)
    chex.assert_trees_all_equal(smoothout_eval_params(state, params), start)


@one_copy_and_three
def test_a_state_without_a_fingerprint_goes_on_to_the_same_bits(num_copies):
    optimizer = standing(num_copies=num_copies)
    params, state = train(optimizer, 4)
    unknown = state._replace(
        smoothout_fingerprint=jnp.full_like(state.smoothout_fingerprint, jnp.nan)
    )
    chex.assert_trees_all_equal(
        smoothout_eval_params(unknown, params), smoothout_eval_params(state, params)
    )
    step = jitted_step(optimizer)
    batch = jnp.float32(4)
    chex.assert_trees_all_equal(
        step(params, unknown, batch), step(params, state, batch)
    )


def test_runs_under_vmap_draw_again_only_where_one_of_them_changed():
    draws = []
    optimizer = standing(noise=counting(NOISE, draws))
    params = jax.tree.map(lambda p: jnp.stack([p, 2 * p, p - 1]), PARAMS)
    states = jax.vmap(optimizer.init)(params)

    @jax.jit
    @jax.vmap
    def step(params, state):
        updates, state = optimizer.update(params, state, params)
        return optax.apply_updates(params, updates), state

    start = params
    # The first may draw twice: another program than init's may round otherwise.
    for most in (2, 1, 1):
        draws.clear()
        params, states = step(params, states)
        jax.effects_barrier()
        assert 1 <= len(draws) <= most
    draws.clear()
    params["bias"] = params["bias"].at[1].add(0.125)
    _, states = step(params, states)
    jax.effects_barrier()
    assert len(draws) == 2
    expected = start | {"bias": start["bias"].at[1].add(0.125)}
    chex.assert_trees_all_close(states.clean_params, expected, rtol=1e-6)
    for run in (0, 2):
        chex.assert_trees_all_equal(
            states.clean_params["bias"][run], start["bias"][run]
        )


@pytest.mark.parametrize("options", [{}, {"noise": NOISE, "key": KEY}])
def test_runs_side_by_side_are_evaluated_as_one_by_one(options):
    optimizer = standing()
    start = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), PARAMS)
    states = jax.vmap(optimizer.init)(start)
    updates, states = jax.vmap(optimizer.update)(start, states, start)
    params = optax.apply_updates(start, updates)
    chex.assert_trees_all_equal(smoothout_eval_params(states, params, **options), start)


def test_updates_can_be_differentiated():
    optimizer = smoothout(optax.sgd(0.1), NOISE, key=KEY)
    state = optimizer.init(PARAMS)

    def moved(grads):
        updates, after = optimizer.update(grads, state, PARAMS)
        return after.clean_params["bias"].sum() + updates["bias"].sum()

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


# Clean parameters that are not kept: the noise must be the one that was added


@pytest.mark.parametrize(
    "wrong",
    [{"noise": uniform(0.3)}, {"num_copies": 1}],
    ids=["radius", "num_copies"],
)
def test_another_noise_than_that_of_training_is_refused(wrong):
    optimizer = standing(keep_clean=False, num_copies=2)
    params, state = train(optimizer, 3)
    right = {"noise": NOISE, "key": KEY, "num_copies": 2}
    chex.assert_trees_all_close(
        smoothout_eval_params(state, params, **right), PARAMS, rtol=1e-5
    )
    with pytest.raises(ValueError, match="noise, key and num_copies must be those of"):
        smoothout_eval_params(state, params, **right | wrong)
    traced = jax.jit(functools.partial(smoothout_eval_params, **right | wrong))
    assert jnp.all(jnp.isnan(traced(state, params)["kernel"]))
