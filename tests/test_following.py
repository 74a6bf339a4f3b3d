"""The loop's parameters are the user's: what changes them outside is honoured."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from smoothout_jax import smoothout, smoothout_eval_params, uniform

RADIUS = 0.25
NOISE = uniform(RADIUS)
KEY = jax.random.key(3)
PARAMS = {
    "kernel": jnp.linspace(-1.5, 2.5, 12).reshape(3, 4),
    "bias": jnp.array([0.5, -0.25, 1.0, 2.0]),
}
one_copy_and_three = pytest.mark.parametrize("num_copies", [1, 3])
assert_close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-6)


def loss(params, batch):
    """Curved little enough that training does not enlarge what rounding differs by."""
    factor = jnp.asarray(1 + batch / 8, params["bias"].dtype)
    logits = factor * params["kernel"].sum(0) + params["bias"]
    return jnp.sum(jnp.sin(logits) + 0.1 * logits**2)


def train(optimizer, steps, params=PARAMS, change=lambda params: params):
    @jax.jit
    def step(params, state, batch):
        grads = jax.grad(loss)(params, batch)
        updates, state = optimizer.update(grads, state, params)
        return change(optax.apply_updates(params, updates)), state

    state = optimizer.init(params)
    for batch in range(steps):
        params, state = step(params, state, jnp.float32(batch))
    return params, state


# Without noise it is as with any other optimizer

CHANGES = {
    "projection": lambda params: jax.tree.map(lambda p: p.clip(-0.75, 0.75), params),
    "decay": lambda params: jax.tree.map(lambda p: p * 0.99, params),
    "a frozen leaf": lambda params: params | {"bias": PARAMS["bias"]},
    "a reset row": lambda params: params | {"kernel": params["kernel"].at[1].set(0.5)},
}


@jax.numpy_dtype_promotion("standard")  # which Optax's wrappers need
@one_copy_and_three
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_without_noise_whatever_is_done_to_the_parameters_counts(change, num_copies):
    plain = inner = optax.sgd(0.1, momentum=0.9)
    if num_copies > 1:
        plain = optax.MultiSteps(plain, num_copies)
    wrapped = smoothout(inner, uniform(0.0), key=KEY, num_copies=num_copies)
    expected, _ = train(plain, 7, change=change)
    params, state = train(wrapped, 7, change=change)
    assert_close(params, expected)
    assert_close(smoothout_eval_params(state, params), expected)


def lookahead(fast):
    """Wrapped so that it trains like the other optimizers."""
    optimizer = optax.lookahead(fast, sync_period=2, slow_step_size=0.5)

    def init(params):
        both = optax.LookaheadParams.init_synced(params)
        return both, optimizer.init(both)

    def update(grads, state, params):
        both, inner = state
        updates, inner = optimizer.update(grads, inner, both)
        both = optax.apply_updates(both, updates)
        return optax.tree.sub(both.fast, params), (both, inner)

    return optax.GradientTransformation(init, update)


WRAPPERS = {
    "schedule_free": lambda inner: optax.contrib.schedule_free(inner, 0.1),
    "mechanize": optax.contrib.mechanize,
    "lookahead": lookahead,
}


@jax.numpy_dtype_promotion("standard")
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrappers_that_move_the_parameters_are_exact_without_noise(wrap):
    expected, _ = train(wrap(optax.sgd(0.1)), 5)
    params, _ = train(wrap(smoothout(optax.sgd(0.1), uniform(0.0), key=KEY)), 5)
    assert_close(params, expected)


# With noise the clean parameters move by the same difference


@one_copy_and_three
@pytest.mark.parametrize(
    ("noise", "keep_noise"),
    [(NOISE, True), (NOISE, False), (uniform(0.5, relative_to="filter"), True)],
    ids=["kept", "drawn again", "relative"],
)
def test_changes_of_every_dtype_are_followed(noise, keep_noise, num_copies):
    """Weights loaded after `init` too; integers are those of the loop."""
    options = {"key": KEY, "num_copies": num_copies, "keep_noise": keep_noise}
    optimizer = smoothout(optax.set_to_zero(), noise, **options)
    dtypes = ("float16", "bfloat16", "float32", "complex64")
    start = {dtype: {"kernel": PARAMS["kernel"].astype(dtype)} for dtype in dtypes}
    start["count"] = jnp.arange(3)
    loaded = jax.tree.map(lambda p: 2 * p + jnp.ones_like(p), start)
    state = optimizer.init(start)
    chex.assert_trees_all_equal(smoothout_eval_params(state, loaded), loaded)

    update, evaluate = jax.jit(optimizer.update), jax.jit(smoothout_eval_params)
    params = expected = loaded
    grads = params | {"count": jnp.zeros(3, int)}
    for _ in range(4):
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        assert all(
            jnp.all(params[d]["kernel"] != expected[d]["kernel"]) for d in dtypes
        )
        params, expected = (
            jax.tree.map(lambda p: (8 * p + jnp.ones_like(p)) / 8, tree | {"count": 0})
            | {"count": tree["count"] + 1}
            for tree in (params, expected)
        )
        for clean in (smoothout_eval_params(state, params), evaluate(state, params)):
            np.testing.assert_array_equal(clean["count"], params["count"])
            for dtype in dtypes:
                chex.assert_trees_all_close(
                    clean[dtype],
                    expected[dtype],
                    rtol=0,
                    atol=24 * float(jnp.finfo(dtype).eps),
                )


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
    assert_close(smoothout_eval_params(state, params), PARAMS)
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
