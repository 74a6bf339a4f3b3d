"""How it trains: beside loops written by hand, and inside Optax's wrappers."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from smoothout_jax import (
    smooth_gradients,
    smoothout,
    smoothout_eval_params,
    smoothout_value_and_grad,
    uniform,
)

KEY = jax.random.key(0)
NOISE = uniform(0.3)
GROWING_NOISE = uniform(lambda step: 0.05 * jnp.float32(step + 1))
MOMENTUM = optax.sgd(0.1, momentum=0.9)
PARAMS = {
    "kernel": jnp.array([[1.5, -2.0, 0.7], [0.4, 3.0, -1.1]]),
    "bias": jnp.array([-0.6, 2.2, 1.3]),
}

assert_equal = chex.assert_trees_all_equal
assert_close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-6)


def loss(params, batch):
    """Not a parabola: its gradient differs in every copy and batch."""
    return sum(
        jnp.sum(jnp.cos(leaf + jnp.asarray(batch, leaf.dtype)) + leaf**2 / 8).astype(
            jnp.float32
        )
        for leaf in jax.tree.leaves(params)
    )


gradient = jax.jit(jax.grad(loss))


def user_step(optimizer, params, state, batch):
    """The training step that every user has; the batch of copy m is batch + m."""

    def copy_loss(params, copy):
        return loss(params, batch + jnp.float32(copy))

    updates, state = optax.with_extra_args_support(optimizer).update(
        gradient(params, batch), state, params, grad_fn=jax.grad(copy_loss)
    )
    return optax.apply_updates(params, updates), state


@functools.cache
def jitted_step(optimizer):
    """The compiled step, which fails when it is traced a second time."""
    traces = []

    @jax.jit
    def step(params, state, batch):
        traces.append(batch)
        assert len(traces) == 1, "the step is traced anew"
        return user_step(optimizer, params, state, batch)

    return step


def train(optimizer, calls, params=PARAMS):
    """The parameters and the state after every call of a training loop."""
    step, state, history = jitted_step(optimizer), optimizer.init(params), []
    for call in range(calls):
        params, state = step(params, state, jnp.float32(call))
        history.append((params, state))
    return history


def mean(trees):
    return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *trees)


def promoting(optimizer):
    """Optax's bias corrections and wrappers promote dtypes; nothing of ours may."""
    optimizer = optax.with_extra_args_support(optimizer)

    def update(updates, state, params=None, **extra_args):
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


FACTORIES = {
    "smoothout": lambda key: smoothout(MOMENTUM, NOISE, key=key),
    "smoothout-of-3": lambda key: smoothout(MOMENTUM, NOISE, key=key, num_copies=3),
    "smoothout-unkept": lambda key: smoothout(
        MOMENTUM, NOISE, key=key, num_copies=2, keep_noise=False
    ),
    "smoothout-held": lambda key: smoothout(
        MOMENTUM, NOISE, key=key, num_copies=2, loss_rise=0.1
    ),
    "smooth_gradients": lambda key: optax.chain(
        smooth_gradients(NOISE, key=key, num_copies=2), MOMENTUM
    ),
}
TRANSFORMATIONS = {name: make(KEY) for name, make in FACTORIES.items()}

every_factory = pytest.mark.parametrize("name", FACTORIES)
one_copy_and_three = pytest.mark.parametrize("num_copies", [1, 3])
kept_and_not = pytest.mark.parametrize(
    "keep_noise", [True, False], ids=["kept", "drawn again"]
)


# smoothout: the loop of perturbing, gradient, de-noising and update


def smoothout_by_hand(optimizer, key, num_copies, calls):
    """The perturbed and the clean parameters after every call."""
    clean = perturbed = PARAMS
    state, update, grads, step = optimizer.init(clean), jax.jit(optimizer.update), [], 0
    for call in range(calls):
        grads.append(gradient(perturbed, float(call)))
        if len(grads) == num_copies:
            updates, state = update(mean(grads), state, clean)
            clean = optax.apply_updates(clean, updates)
            step, grads = step + 1, []
        copy_key = jax.random.fold_in(key, step * num_copies + len(grads))
        perturbed = optax.apply_updates(clean, GROWING_NOISE(copy_key, clean, step))
        yield perturbed, clean


@pytest.mark.parametrize(
    ("optimizer", "key", "options"),
    [
        (MOMENTUM, KEY, {}),
        (MOMENTUM, KEY, {"num_copies": 3}),
        (MOMENTUM, KEY, {"keep_noise": False}),
        (MOMENTUM, KEY, {"keep_noise": False, "num_copies": 3}),
        (promoting(optax.adamw(0.1, weight_decay=0.5)), KEY, {"num_copies": 3}),
        (promoting(optax.lamb(0.1)), KEY, {}),
        (MOMENTUM, 5, {}),
        (MOMENTUM, jax.random.PRNGKey(1), {}),
        (MOMENTUM, jax.random.key(1, impl="rbg"), {}),
    ],
    ids=[
        *("momentum", "3 copies", "drawn again", "3 copies drawn again", "adamw"),
        *("lamb", "seed", "raw key", "rbg key"),
    ],
)
def test_smoothout_equals_the_loop_written_by_hand(optimizer, key, options):
    """The first gradient is at the parameters themselves."""
    copies = options.get("num_copies", 1)
    calls = 2 * copies + 2
    wrapped = smoothout(optimizer, GROWING_NOISE, key=key, **options)
    assert_equal(smoothout_eval_params(wrapped.init(PARAMS), PARAMS), PARAMS)
    key = jax.random.key(5) if isinstance(key, int) else key
    history = train(wrapped, calls)
    assert_close(
        [(params, smoothout_eval_params(state, params)) for params, state in history],
        [*smoothout_by_hand(optimizer, key, copies, calls)],
    )
    state = history[-1][1]
    assert (state.smoothout_step, state.smoothout_copy) == divmod(calls, copies)
    kept = jax.tree.leaves(state.smoothout_noise)
    assert bool(kept) == options.get("keep_noise", True)


@pytest.mark.parametrize("relative_to", ["weight", "filter", "layer"])
def test_noise_that_cannot_be_drawn_again_must_be_kept(relative_to):
    noise = uniform(0.1, relative_to=relative_to)
    optimizer = smoothout(MOMENTUM, noise, key=KEY, keep_noise=False)
    for init in (optimizer.init, jax.jit(optimizer.init)):
        with pytest.raises(ValueError, match="keep_noise=False draws the noise again"):
            init(PARAMS)


@kept_and_not
def test_noise_is_drawn_once_a_step_under_no_condition(keep_noise):
    """And once more where it is drawn again."""
    draws = []

    def counted(key, params, step=None):
        jax.debug.callback(lambda: draws.append(1))
        return NOISE(key, params, step)

    for options in ({}, {"loss_rise": 0.1}):
        draws.clear()
        optimizer = smoothout(
            MOMENTUM, counted, key=KEY, keep_noise=keep_noise, **options
        )
        train(optimizer, 3)
        jax.effects_barrier()
        assert len(draws) == (3 if keep_noise else 6)
        state = optimizer.init(PARAMS)
        program = jax.make_jaxpr(optimizer.update)(PARAMS, state, PARAMS)
        assert "cond" not in str(program)


def trained_on(grads, optimizer, calls, **extra_args):
    """Parameters and state after updates by the same gradients."""
    optimizer = promoting(optimizer)
    params, state = PARAMS, optimizer.init(PARAMS)
    update = jax.jit(optimizer.update)
    for _ in range(calls):
        updates, state = update(grads, state, params, **extra_args)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize(
    ("name", "num_copies"), [("noisy_sgd", 1), ("noisy_sgd", 3), ("private", 1)]
)
def test_the_optimizer_may_hold_a_typed_key(name, num_copies):
    """Its noise is that of the optimizer alone."""
    grads = optax.tree.scale(0.1, PARAMS)
    optimizer = optax.noisy_sgd(0.1, key=0)
    if name == "private":
        grads = jax.tree.map(lambda leaf: jnp.stack([leaf, -leaf / 2]), grads)
        private = optax.contrib.differentially_private_aggregate(1.0, 0.1, key=0)
        optimizer = optax.chain(private, optax.sgd(0.1))
    wrapped = smoothout(optimizer, NOISE, key=KEY, num_copies=num_copies)
    params, state = trained_on(grads, wrapped, 2 * num_copies)
    expected, _ = trained_on(grads, optimizer, 2)
    assert_close(smoothout_eval_params(state, params), expected)


@one_copy_and_three
def test_further_arguments_reach_the_optimizer(num_copies):
    polyak, value = optax.polyak_sgd(max_learning_rate=0.1), jnp.float32(0.2)
    noiseless = smoothout(polyak, uniform(0.0), key=KEY, num_copies=num_copies)
    grads = gradient(PARAMS, 0.0)
    params, _ = trained_on(grads, noiseless, 4 * num_copies, value=value)
    assert_close(params, trained_on(grads, polyak, 4, value=value)[0])
    with pytest.raises(TypeError, match="value"):
        trained_on(grads, noiseless, 1)


def test_round_with_a_nan_gradient_does_not_poison_the_next():
    skipping = optax.apply_if_finite(MOMENTUM, max_consecutive_errors=5)
    optimizer = smoothout(skipping, NOISE, key=KEY, num_copies=2)
    ones, nans = (optax.tree.full_like(PARAMS, fill) for fill in (1.0, jnp.nan))
    update = jax.jit(optimizer.update)

    def clean_after(*gradients):
        params, state = PARAMS, optimizer.init(PARAMS)
        for grads in gradients:
            updates, state = update(grads, state, params)
            params = optax.apply_updates(params, updates)
        return smoothout_eval_params(state, params)

    assert_close(clean_after(nans, ones), PARAMS)
    assert_close(clean_after(nans, ones, ones, ones), clean_after(ones, ones))


@one_copy_and_three
def test_none_and_integers_stay_as_they_are_and_numbers_are_trained(num_copies):
    params = {"w": PARAMS["bias"], "none": None, "count": jnp.array([3, 4])}
    params |= {"slope": 2.0, "shift": np.float32(3.0)}
    floating = {"w": True, "none": None, "count": False, "slope": True, "shift": True}
    optimizer = smoothout(
        optax.masked(optax.sgd(0.1), floating), NOISE, key=KEY, num_copies=num_copies
    )
    state, perturbed = optimizer.init(params), params
    grads = optax.tree.ones_like(params) | {"count": jnp.zeros(2, jnp.int32)}
    for _ in range(num_copies):
        updates, state = optimizer.update(grads, state, perturbed)
        perturbed = optax.apply_updates(perturbed, updates)
    clean = smoothout_eval_params(state, perturbed)
    for result in (perturbed, clean):
        assert result["none"] is None
        assert_equal(result["count"], params["count"])
    trained = {name: clean[name] for name in ("w", "slope", "shift")}
    moved = {"w": params["w"] - 0.1, "slope": jnp.float32(1.9), "shift": 2.9}
    assert_close(trained, jax.tree.map(jnp.float32, moved))
    assert all(jnp.all(perturbed[name] != clean[name]) for name in trained)


# smooth_gradients: a link that takes the gradients of perturbed copies


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_copies": 3, "execution": "scan", "clean_weight": 0.25},
        {"num_copies": 4, "chunk_size": 2, "antithetic": True},
    ],
    ids=lambda options: ",".join(f"{name}={o}" for name, o in options.items()),
)
def test_smooth_gradients_equals_the_loop_with_smoothout_value_and_grad(options):
    """Whatever gradients come in."""
    poison = optax.stateless(lambda grads, _: optax.tree.full_like(grads, jnp.nan))
    link = smooth_gradients(GROWING_NOISE, key=KEY, **options)
    total = options.get("num_copies", 1) + ("clean_weight" in options)

    @jax.jit
    def by_hand(params, state, step):
        noise = functools.partial(GROWING_NOISE, step=step)
        value_and_grad = smoothout_value_and_grad(
            loss, noise, copy_argnums=1, **options
        )
        batches = step.astype(jnp.float32) + jnp.arange(total, dtype=jnp.float32)
        _, grads = value_and_grad(jax.random.fold_in(KEY, step), params, batches)
        updates, state = MOMENTUM.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, MOMENTUM.init(PARAMS)
    for step, (ours, _) in enumerate(train(optax.chain(poison, link, MOMENTUM), 3)):
        params, state = by_hand(params, state, jnp.int32(step))
        assert_close(ours, params)


def test_unrolled_copies_are_numbered_by_integers_the_clean_one_last():
    batches, seen = ["first", "second", "clean"], {}

    def grad_fn(params, copy):
        seen[batches[copy]] = params
        return params

    optimizer = smooth_gradients(
        NOISE, key=KEY, num_copies=2, clean_weight=0.5, execution="unroll"
    )
    optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS, grad_fn=grad_fn)
    assert list(seen) == batches
    assert_equal(seen["clean"], PARAMS)
    assert jnp.all(seen["first"]["bias"] != seen["second"]["bias"])


def test_further_arguments_pass_smooth_gradients_to_later_links():
    polyak = promoting(optax.polyak_sgd(max_learning_rate=0.1))
    optimizer = optax.chain(smooth_gradients(NOISE, key=KEY), polyak)
    grad_fn = jax.grad(lambda params, copy: loss(params, 0.0))
    (small, _), (large, _) = (
        optimizer.update(
            PARAMS,
            optimizer.init(PARAMS),
            PARAMS,
            grad_fn=grad_fn,
            value=jnp.float32(value),
        )
        for value in (0.01, 0.02)
    )
    assert_close(optax.tree.scale(2.0, small), large)


# Errors name the argument, and show what to do


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"optimizer": optax.sgd}, TypeError, "optimizer must be .*optax.sgd"),
        ({"optimizer": NOISE}, TypeError, "optimizer must be"),
        ({"noise": 0.1}, TypeError, "noise must be a function.*uniform.*0.1"),
        ({"noise": MOMENTUM}, TypeError, "noise must be a function"),
        ({"key": 0.5}, TypeError, "key must be a single PRNG key.*got 0.5"),
        ({"key": jax.random.split(KEY)}, TypeError, "key must be a single PRNG key"),
        ({"num_copies": 0}, ValueError, "num_copies must be at least 1, got 0"),
        ({"num_copies": 1.5}, TypeError, "num_copies must be .*integer, got 1.5"),
        ({"num_copies": True}, TypeError, "num_copies must be .*integer, got True"),
    ],
)
def test_wrong_arguments_are_refused_by_name_when_built(arguments, error, message):
    given = {"noise": NOISE, "key": KEY} | arguments
    with pytest.raises(error, match=message):
        smoothout(**{"optimizer": MOMENTUM} | given)
    if "optimizer" not in arguments:
        with pytest.raises(error, match=message):
            smooth_gradients(**given)


def test_a_schedule_gets_whole_steps_from_the_start():
    radii = jnp.array([0.1, 0.3])
    noise = uniform(lambda step: radii[step])  # which no other number may index
    params = optax.tree.cast(PARAMS, jnp.bfloat16)
    for optimizer in (
        smoothout(MOMENTUM, noise, key=KEY),
        smoothout(MOMENTUM, noise, key=KEY, keep_noise=False),
        smooth_gradients(noise, key=KEY),
    ):
        state = optax.with_extra_args_support(optimizer).init(params)
        optimizer.update(params, state, params, grad_fn=lambda params, copy: params)


def test_injected_num_copies_must_be_static():
    def inject(*static_args):
        inner = optax.inject_hyperparams(smoothout, static_args=static_args)
        return inner(optax.sgd(0.1), NOISE, key=KEY, num_copies=2)

    with pytest.raises(TypeError, match=r"num_copies must be.*static_args"):
        inject("noise").init(PARAMS)
    state = inject("noise", "num_copies").init(PARAMS)
    assert_equal(smoothout_eval_params(state, PARAMS), PARAMS)


@every_factory
def test_update_says_how_to_call_it(name):
    optimizer = TRANSFORMATIONS[name]
    state = optimizer.init(PARAMS)
    with pytest.raises(ValueError, match=r"update\(grads, state, params"):
        optimizer.update(PARAMS, state)
    params = {"w": jnp.ones(2), "activation": jax.nn.relu}
    with pytest.raises(TypeError, match=r"'activation' is <.*eqx\.filter\(model"):
        optimizer.init(params)
    if name == "smooth_gradients":
        call = r"(?s)grad_fn = jax\.grad\(.*update\(grads, state, params, grad_fn=gra"
        with pytest.raises(ValueError, match=call):
            optimizer.update(PARAMS, state, PARAMS)
    else:
        with pytest.raises(TypeError, match=r"params must hold arrays.*'activation'"):
            optimizer.update(params, state, params)
        with pytest.raises(TypeError, match=r"must be the state of smoothout.*tuple"):
            optimizer.update(PARAMS, (state,), PARAMS)


@pytest.mark.parametrize(
    "grad_fn",
    [lambda params, _: loss(params, 1.0), jax.value_and_grad(loss)],
    ids=["loss", "value and gradient"],
)
def test_smooth_gradients_takes_gradients_alone(grad_fn):
    optimizer = smooth_gradients(NOISE, key=KEY)
    with pytest.raises(ValueError, match="what grad_fn returns must be a tree like"):
        optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS, grad_fn=grad_fn)


def test_per_example_gradients_are_not_averaged_over_copies():
    optimizer = TRANSFORMATIONS["smoothout-of-3"]
    grads = jax.tree.map(lambda p: jnp.stack([p, p]), PARAMS)
    with pytest.raises(ValueError, match=r"updates must be gradients like .*shape"):
        optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
