"""How it trains: beside loops written by hand, and inside Optax's wrappers."""

import dataclasses
import functools
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

from smoothout_jax import (
    SmoothGradientsState,
    SmoothoutState,
    by_path,
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
    """No parabola: its gradient differs in every copy and batch."""
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


def scan(optimizer, step, params, calls):
    """The parameters and the state after steps in one compiled loop."""
    carry = (params, optimizer.init(params))
    batches = jnp.arange(calls, dtype=jnp.float32)
    return jax.jit(
        lambda carry: jax.lax.scan(lambda c, b: (step(*c, b), None), carry, batches)[0]
    )(carry)


def mean(trees):
    return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *trees)


def promoting(optimizer):
    """Optax's bias corrections and wrappers promote dtypes; nothing of ours may."""
    optimizer = optax.with_extra_args_support(optimizer)

    def update(updates, state, params=None, **extra_args):
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


def recorder():
    """An optimizer that records what it is given, and moves all parameters by one."""

    def init(params):
        zeros = optax.tree.zeros_like(params)
        return {"calls": jnp.zeros([], jnp.int32), "grads": zeros, "params": zeros}

    def update(updates, state, params=None):
        record = {"calls": state["calls"] + 1, "grads": updates, "params": params}
        return optax.tree.ones_like(updates), record

    return optax.GradientTransformation(init, update)


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

every_factory = pytest.mark.parametrize("make", FACTORIES.values(), ids=FACTORIES)
every_transformation = pytest.mark.parametrize(
    "optimizer", TRANSFORMATIONS.values(), ids=TRANSFORMATIONS
)
one_copy_and_three = pytest.mark.parametrize("num_copies", [1, 3])
kept_and_not = pytest.mark.parametrize(
    "keep_noise", [True, False], ids=["kept", "drawn again"]
)


@pytest.fixture
def params_of_every_dtype():
    with jax.enable_x64(True):
        yield {
            dtype: optax.tree.cast(PARAMS, jnp.dtype(dtype))
            for dtype in ("float16", "bfloat16", "float32", "float64")
        }


# smoothout: the loop of perturbing, gradient, de-noising and update


def smoothout_by_hand(optimizer, num_copies, calls):
    """The perturbed and the clean parameters after every call."""
    clean = perturbed = PARAMS
    state, update, grads, step = optimizer.init(clean), jax.jit(optimizer.update), [], 0
    for call in range(calls):
        grads.append(gradient(perturbed, float(call)))
        if len(grads) == num_copies:
            updates, state = update(mean(grads), state, clean)
            clean = optax.apply_updates(clean, updates)
            step, grads = step + 1, []
        key = jax.random.fold_in(KEY, step * num_copies + len(grads))
        perturbed = optax.apply_updates(clean, GROWING_NOISE(key, clean, step))
        yield perturbed, clean


@one_copy_and_three
@pytest.mark.parametrize(
    "optimizer",
    [
        MOMENTUM,
        promoting(optax.adamw(0.1, weight_decay=0.5)),
        promoting(optax.lamb(0.1)),
    ],
    ids=["momentum", "adamw", "lamb"],
)
def test_smoothout_equals_the_loop_written_by_hand(optimizer, num_copies):
    calls = 2 * num_copies + 2
    wrapped = smoothout(optimizer, GROWING_NOISE, key=KEY, num_copies=num_copies)
    assert_close(
        [(p, smoothout_eval_params(state, p)) for p, state in train(wrapped, calls)],
        [*smoothout_by_hand(optimizer, num_copies, calls)],
    )


@one_copy_and_three
def test_optimizer_sees_clean_params_and_the_mean_gradient_once_a_round(num_copies):
    optimizer = smoothout(recorder(), NOISE, key=KEY, num_copies=num_copies)
    history = train(optimizer, 2 * num_copies)
    for call, (params, state) in enumerate(history, start=1):
        rounds = call // num_copies
        assert state.smoothed_state["calls"] == state.smoothout_step == rounds
        assert state.smoothout_copy == call % num_copies
        moved = optax.tree.add(PARAMS, optax.tree.full_like(PARAMS, rounds))
        assert_close(smoothout_eval_params(state, params), moved)

    second_round = range(num_copies, 2 * num_copies)
    grads = [gradient(history[call - 1][0], float(call)) for call in second_round]
    record = history[-1][1].smoothed_state
    assert_close(record["grads"], mean(grads))
    before, state = history[-2]
    assert_close(record["params"], smoothout_eval_params(state, before))


@one_copy_and_three
def test_first_gradient_is_at_the_parameters_themselves(num_copies):
    optimizer = smoothout(recorder(), NOISE, key=KEY, num_copies=num_copies)
    assert_equal(smoothout_eval_params(optimizer.init(PARAMS), PARAMS), PARAMS)
    [(_, state)] = train(optimizer, 1)
    taken = state.smoothed_state["grads"] if num_copies == 1 else state.gradient_mean
    assert_close(taken, gradient(PARAMS, 0.0))


@one_copy_and_three
def test_noise_that_is_drawn_again_trains_as_noise_that_is_kept(num_copies):
    options = {"key": KEY, "num_copies": num_copies}
    kept, drawn_again = (
        train(smoothout(MOMENTUM, GROWING_NOISE, keep_noise=keep, **options), 7)
        for keep in (True, False)
    )
    for (params, state), (other, other_state) in zip(kept, drawn_again, strict=True):
        assert_close(other, params)
        clean = smoothout_eval_params(state, params)
        assert_close(smoothout_eval_params(other_state, other), clean)
    assert not jax.tree.leaves(other_state.smoothout_noise)


@pytest.mark.parametrize("relative_to", ["weight", "filter", "layer"])
@pytest.mark.parametrize("transform", [lambda init: init, jax.jit])
def test_noise_that_cannot_be_drawn_again_must_be_kept(relative_to, transform):
    noise = uniform(0.1, relative_to=relative_to)
    optimizer = smoothout(MOMENTUM, noise, key=KEY, keep_noise=False)
    with pytest.raises(ValueError, match="keep_noise=False draws the noise again"):
        transform(optimizer.init)(PARAMS)


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
        assert "cond" not in str(
            jax.make_jaxpr(optimizer.update)(PARAMS, state, PARAMS)
        )


KEYED = {
    "noisy_sgd": lambda: optax.noisy_sgd(0.1, key=0),
    "private": lambda: optax.chain(
        optax.contrib.differentially_private_aggregate(1.0, 0.1, key=0), optax.sgd(0.1)
    ),
}


@jax.numpy_dtype_promotion("standard")
@pytest.mark.parametrize("transform", [jax.jit, lambda fn: fn], ids=["jit", "eager"])
@pytest.mark.parametrize(
    ("name", "num_copies"), [("noisy_sgd", 1), ("noisy_sgd", 3), ("private", 1)]
)
def test_the_optimizer_may_hold_a_typed_key(name, transform, num_copies):
    """Its noise is that of the optimizer alone."""
    make = KEYED[name]

    def trained(optimizer, calls):
        params, state = PARAMS, optimizer.init(PARAMS)
        grads = optax.tree.scale(0.1, PARAMS)
        if name == "private":
            grads = jax.tree.map(lambda leaf: jnp.stack([leaf, -leaf / 2]), grads)
        update = transform(optimizer.update)
        for _ in range(calls):
            updates, state = update(grads, state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    expected, _ = trained(make(), 2)
    wrapped = smoothout(make(), NOISE, key=KEY, num_copies=num_copies)
    params, state = trained(wrapped, 2 * num_copies)
    assert_close(smoothout_eval_params(state, params), expected)


@one_copy_and_three
@pytest.mark.parametrize(
    "optimizer",
    [
        optax.polyak_sgd(max_learning_rate=0.1),
        optax.chain(MOMENTUM, optax.contrib.reduce_on_plateau(patience=1)),
    ],
    ids=["polyak_sgd", "reduce_on_plateau"],
)
def test_further_arguments_reach_the_optimizer(optimizer, num_copies):
    optimizer = promoting(optimizer)
    grads = gradient(PARAMS, 0.0)
    with pytest.raises(TypeError, match="value"):
        optimizer.update(grads, optimizer.init(PARAMS), PARAMS)

    def trained(optimizer, calls):
        params, state = PARAMS, optimizer.init(PARAMS)
        update = jax.jit(optimizer.update)
        for _ in range(calls):
            updates, state = update(grads, state, params, value=jnp.float32(0.2))
            params = optax.apply_updates(params, updates)
        return params

    noiseless = smoothout(optimizer, uniform(0.0), key=KEY, num_copies=num_copies)
    assert_close(trained(noiseless, 4 * num_copies), trained(optimizer, 4))


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
def test_none_and_integer_leaves_stay_as_they_are(num_copies):
    params = PARAMS | {"none": None, "count": jnp.array([3, 4])}
    floating = {"kernel": True, "bias": True, "none": None, "count": False}
    optimizer = smoothout(
        optax.masked(MOMENTUM, floating), NOISE, key=KEY, num_copies=num_copies
    )
    state, perturbed = optimizer.init(params), params
    for _ in range(num_copies):
        grads = optax.tree.ones_like(params) | {"count": jnp.zeros(2, jnp.int32)}
        updates, state = optimizer.update(grads, state, perturbed)
        perturbed = optax.apply_updates(perturbed, updates)
    for result in (perturbed, smoothout_eval_params(state, perturbed)):
        assert result["none"] is None
        assert_equal(result["count"], params["count"])
        assert jnp.all(result["bias"] != params["bias"])


@pytest.mark.parametrize(
    "key",
    [
        jax.random.key(1),
        jax.random.key(1, impl="rbg"),
        jax.random.key(1, impl="unsafe_rbg"),
        jax.random.PRNGKey(1),
    ],
    ids=["threefry", "rbg", "unsafe_rbg", "raw"],
)
def test_keys_of_every_kind_draw_their_own_noise(key):
    optimizer = smoothout(optax.set_to_zero(), NOISE, key=key)
    updates, _ = optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)
    noise_key = jax.random.fold_in(key, 1)
    assert_close(updates, NOISE(noise_key, PARAMS))


def test_smoothout_finds_the_wide_minimum_where_sgd_stays_in_a_deeper_narrow_one():
    narrow, rim, wide = (jnp.full(8, w) for w in (1.0, 1.04, 2.0))

    def double_well(w):
        dip = 1.2 * jnp.exp(-jnp.sum((w - narrow) ** 2) / (2 * 0.1**2))
        return jnp.sum((w - wide) ** 2) / 8 - dip

    def descend(optimizer):
        def step(params, state, _):
            grads = jax.grad(double_well)(params)
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        return scan(optimizer, step, rim, 2000)

    by_sgd, _ = descend(optax.sgd(0.01))
    perturbed, state = descend(smoothout(optax.sgd(0.01), NOISE, key=KEY))
    by_smoothout = smoothout_eval_params(state, perturbed)
    assert double_well(narrow) < double_well(wide)
    chex.assert_trees_all_close(by_sgd, narrow, atol=0.05)
    chex.assert_trees_all_close(by_smoothout, wide, atol=0.05)


# smooth_gradients: a link that takes the gradients of perturbed copies


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_copies": 3, "execution": "vmap"},
        {"num_copies": 3, "execution": "scan", "clean_weight": 0.25},
        {"num_copies": 2, "execution": "unroll", "antithetic": True},
        {"num_copies": 4, "chunk_size": 2, "antithetic": True},
    ],
    ids=lambda options: ",".join(f"{name}={o}" for name, o in options.items()),
)
def test_smooth_gradients_equals_the_loop_with_smoothout_value_and_grad(options):
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
    for step, (ours, _) in enumerate(train(optax.chain(link, MOMENTUM), 3)):
        params, state = by_hand(params, state, jnp.int32(step))
        assert_close(ours, params)


def test_smooth_gradients_folds_step_and_copy_and_drops_what_comes_in():
    optimizer = smooth_gradients(NOISE, key=KEY, num_copies=2)
    grad_fn = jax.grad(lambda params, copy: loss(params, jnp.float32(copy)))
    state = optimizer.init(PARAMS)
    for step in range(2):
        nans = optax.tree.full_like(PARAMS, jnp.nan)
        updates, state = optimizer.update(nans, state, PARAMS, grad_fn=grad_fn)
        grads = []
        for copy in range(2):
            key = jax.random.split(jax.random.fold_in(KEY, step))[copy]
            perturbed = optax.apply_updates(PARAMS, NOISE(key, PARAMS))
            grads.append(grad_fn(perturbed, copy))
        assert_close(updates, mean(grads))


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
    for first, second in zip(*map(jax.tree.leaves, [*seen.values()][:2]), strict=True):
        assert jnp.any(first != second)


def test_devices_draw_noise_of_their_own_and_share_the_mean():
    mesh = jax.make_mesh((2,), ("devices",))
    optimizer = optax.chain(
        smooth_gradients(NOISE, key=KEY, num_copies=2, axis_name="devices"),
        optax.sgd(1.0),
    )
    batches = jax.device_put(
        jnp.array([0.5, 2.0]), jax.NamedSharding(mesh, jax.P("devices"))
    )
    params, _ = jax.jit(
        jax.shard_map(
            lambda params, state, batch: user_step(optimizer, params, state, batch[0]),
            mesh=mesh,
            in_specs=(jax.P(), jax.P(), jax.P("devices")),
            out_specs=jax.P(),
        )
    )(PARAMS, optimizer.init(PARAMS), batches)

    value_and_grad = smoothout_value_and_grad(loss, NOISE, num_copies=2, copy_argnums=1)
    key = jax.random.fold_in(KEY, 0)
    grads = [
        value_and_grad(own_key, PARAMS, batch + jnp.arange(2.0))
        for own_key, batch in zip(
            jax.random.split(key, len(batches)), batches, strict=True
        )
    ]
    assert_close(params, optax.tree.sub(PARAMS, mean([g for _, g in grads])))


def test_further_arguments_pass_smooth_gradients_to_later_links():
    polyak = promoting(optax.polyak_sgd(max_learning_rate=0.1))
    optimizer = optax.chain(smooth_gradients(NOISE, key=KEY), polyak)
    update = functools.partial(
        optimizer.update,
        PARAMS,
        optimizer.init(PARAMS),
        PARAMS,
        grad_fn=jax.grad(lambda params, copy: loss(params, 0.0)),
    )
    with pytest.raises(TypeError, match="value"):
        update()
    (small, _), (large, _) = (update(value=jnp.float32(v)) for v in (0.01, 0.02))
    assert_close(optax.tree.scale(2.0, small), large)


# The state: arrays of one kind for ever, and nobody else's


@every_transformation
def test_state_is_plain_arrays_of_one_kind_for_ever(optimizer, params_of_every_dtype):
    def step(params, state, batch):
        return jax.lax.cond(
            batch != 1,
            lambda: user_step(optimizer, params, state, batch),
            lambda: (params, state),
        )

    start = params_of_every_dtype, optimizer.init(params_of_every_dtype)
    end = scan(optimizer, step, params_of_every_dtype, 4)
    chex.assert_trees_all_equal_structs(start, end)
    chex.assert_trees_all_equal_shapes_and_dtypes(start, end)
    for leaf in jax.tree.leaves(start):
        assert isinstance(leaf, jax.Array)
        assert not leaf.weak_type
        assert not jnp.issubdtype(leaf.dtype, jax.dtypes.extended)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("smoothout", {"smoothout_step": 4, "smoothout_copy": 0}),
        ("smoothout-of-3", {"smoothout_step": 1, "smoothout_copy": 1}),
        ("smooth_gradients", {"smooth_gradients_step": 4}),
    ],
)
def test_optax_finds_int32_counts_by_name_that_never_overflow(name, counts):
    optimizer = TRANSFORMATIONS[name]
    params, state = train(optimizer, 4)[-1]
    for field, expected in counts.items():
        count = optax.tree.get(state, field)
        assert (count, count.dtype, count.shape) == (expected, jnp.int32, ())

    step_field, most = next(iter(counts)), jnp.iinfo(jnp.int32).max
    state = optax.tree.set(state, **{step_field: jnp.int32(most)})
    for _ in range(2):
        _, state = jitted_step(optimizer)(params, state, jnp.float32(0))
    assert optax.tree.get(state, step_field) == most


def test_gradients_average_in_float32_at_least(params_of_every_dtype):
    optimizer = smoothout(optax.sgd(1.0), uniform(0.0), key=KEY, num_copies=3)
    params = optax.tree.zeros_like(params_of_every_dtype)
    gradient_mean = optimizer.init(params).gradient_mean
    for leaf, average in zip(
        *map(jax.tree.leaves, (params, gradient_mean)), strict=True
    ):
        wide = jnp.float64 if leaf.dtype == jnp.float64 else jnp.float32
        assert average.dtype == wide


def test_no_other_state_has_our_field_names():
    def fields(cls):
        if dataclasses.is_dataclass(cls):
            return {field.name for field in dataclasses.fields(cls)}
        return set(getattr(cls, "_fields", ()))

    classes = [
        value
        for name, module in sys.modules.items()
        if name.partition(".")[0] == "optax"
        for value in vars(module).values()
        if isinstance(value, type)
    ]
    others = set().union(*map(fields, [*classes, TrainState]))
    assert {"mini_step", "steps_since_sync", "opt_state"} <= others
    ours = [*SmoothoutState._fields, *SmoothGradientsState._fields]
    assert len(set(ours)) == len(ours)
    assert not others & set(ours)


@every_factory
@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
def test_state_shares_no_buffer_with_parameters_key_or_another_state(make, make_key):
    key = make_key(1)
    optimizer = make(key)
    trees = PARAMS, jax.random.key_data(key), *map(optimizer.init, [PARAMS, PARAMS])
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(trees)]
    assert len(set(buffers)) == len(buffers)


@every_transformation
def test_parameters_and_state_can_be_donated_and_begun_anew(optimizer):
    step = jax.jit(
        functools.partial(user_step, optimizer), donate_argnames=("params", "state")
    )

    def run():
        params = jax.tree.map(jnp.copy, PARAMS)
        state = optimizer.init(params)
        for call in range(4):
            given = params
            params, state = step(params, state, jnp.float32(call))
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))
        return params, state

    assert_close(run(), train(optimizer, 4)[-1])
    assert_equal(run(), run())


@every_transformation
def test_step_is_traced_once_even_after_a_new_start(optimizer):
    train(optimizer, 4)
    train(optimizer, 2)


@pytest.mark.parametrize("name", FACTORIES)
def test_noise_follows_the_key_in_the_state(name):
    optimizer = TRANSFORMATIONS[name]
    another = FACTORIES[name](jax.random.key(7))
    batch, state = jnp.float32(0), optimizer.init(PARAMS)
    assert_equal(
        jitted_step(another)(PARAMS, state, batch),
        jitted_step(optimizer)(PARAMS, state, batch),
    )


@pytest.mark.parametrize("name", FACTORIES)
def test_runs_under_vmap_over_seeds_equal_single_runs(name):
    def run(seed):
        optimizer = FACTORIES[name](jax.random.key(seed))
        return scan(optimizer, functools.partial(user_step, optimizer), PARAMS, 5)

    runs = jax.vmap(run)(jnp.arange(2))
    first_run = jax.tree.map(lambda leaf: leaf[0], runs)
    assert_close(first_run, train(TRANSFORMATIONS[name], 5)[-1])
    first, second = runs[0]["bias"]
    assert jnp.all(first != second)


@one_copy_and_three
@kept_and_not
@pytest.mark.parametrize("law", ["uniform", "by_path"])
def test_map_params_takes_noise_of_some_leaves(law, num_copies, keep_noise):
    noise = uniform(0.1, mask={"kernel": True, "bias": False})
    if law == "by_path":
        noise = by_path({"kernel": uniform(0.1)})
    options = {"key": KEY, "num_copies": num_copies, "keep_noise": keep_noise}
    optimizer = smoothout(MOMENTUM, noise, **options)
    params, state = train(optimizer, 2)[-1]
    mapped = optax.tree.map_params(optimizer, lambda leaf: 2 * leaf, state)
    trace = optax.tree.get(state, "trace")
    assert_equal(optax.tree.get(mapped, "trace"), optax.tree.scale(2.0, trace))
    same = optax.tree.map_params(optimizer, lambda leaf: leaf, state)
    clean = smoothout_eval_params(state, params)
    if num_copies == 1:
        assert jnp.all(clean["kernel"] != params["kernel"])
    assert_equal(smoothout_eval_params(same, params), clean)


@one_copy_and_three
def test_parameters_may_be_numbers(num_copies):
    optimizer = smoothout(optax.sgd(0.1), uniform(0.0), key=KEY, num_copies=num_copies)
    params = {"slope": 2.0, "shift": np.float32(3.0)}
    state = optimizer.init(params)
    for _ in range(num_copies):
        updates, state = optimizer.update({"slope": 1.0, "shift": 2.0}, state, params)
        params = optax.apply_updates(params, updates)
    assert_close(params, {"slope": np.float32(1.9), "shift": np.float32(2.8)})


def test_map_params_finds_the_trees_like_the_parameters():
    optimizer = TRANSFORMATIONS["smoothout-of-3"]
    _, state = train(optimizer, 4)[-1]
    mapped = optax.tree.map_params(
        optimizer, lambda leaf: 2 * leaf, state, transform_non_params=lambda _: None
    )
    for field in ("smoothout_noise", "gradient_mean", "trace"):
        doubled = optax.tree.scale(2.0, optax.tree.get(state, field))
        assert_equal(optax.tree.get(mapped, field), doubled)
    assert mapped.smoothout_step is mapped.smoothout_key_data is None


# Inside Optax's wrappers

WRAPPERS = {
    "chain, last": lambda t: optax.chain(optax.clip_by_global_norm(1e6), t),
    "chain, first": lambda t: optax.chain(t, optax.identity()),
    "named_chain": lambda t: optax.named_chain(("a", optax.identity()), ("b", t)),
    "inject_hyperparams": lambda t: optax.inject_hyperparams(
        lambda factor: optax.chain(optax.scale(factor), t)
    )(factor=1.0),
    "masked": lambda t: optax.masked(t, True),
    "partition": lambda t: optax.partition({"all": t}, "all"),
    "apply_if_finite": lambda t: optax.apply_if_finite(t, 3),
    "conditionally_transform": lambda t: optax.conditionally_transform(
        t, lambda step: step >= 0
    ),
    "conditionally_mask": lambda t: optax.conditionally_mask(t, lambda step: step >= 0),
    "MultiSteps": lambda t: optax.MultiSteps(t, 1).gradient_transformation(),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_eval_params_are_found_inside_wrappers(wrap):
    optimizer = TRANSFORMATIONS["smoothout"]
    params, state = train(optimizer, 4)[-1]
    wrapped_params, wrapped_state = train(promoting(wrap(optimizer)), 4)[-1]
    assert_close(wrapped_params, params)
    clean = smoothout_eval_params(state, params)
    assert_close(smoothout_eval_params(wrapped_state, wrapped_params), clean)


@kept_and_not
def test_eval_params_merge_two_smoothouts_side_by_side(keep_noise):
    parts = {
        name: smoothout(
            MOMENTUM, NOISE, key=jax.random.fold_in(KEY, number), keep_noise=keep_noise
        )
        for number, name in enumerate(PARAMS)
    }
    optimizer = optax.partition(parts, {name: name for name in PARAMS})
    params, state = train(optimizer, 3)[-1]
    clean = smoothout_eval_params(state, params)
    chex.assert_trees_all_equal_structs(clean, params)
    for name, part in parts.items():
        alone, alone_state = train(part, 3, {name: PARAMS[name]})[-1]
        assert_close(params[name], alone[name])
        alone = smoothout_eval_params(alone_state, alone)
        assert_close(clean[name], alone[name])


@kept_and_not
def test_eval_params_leave_what_smoothout_does_not_train(keep_noise):
    optimizer = optax.masked(
        smoothout(optax.set_to_zero(), NOISE, key=KEY, keep_noise=keep_noise),
        {"kernel": True, "bias": False},
    )
    params, state = train(optimizer, 3)[-1]
    clean = smoothout_eval_params(state, params)
    assert_equal(clean["bias"], params["bias"])
    assert_close(clean["kernel"], PARAMS["kernel"])
    assert jnp.all(clean["kernel"] != params["kernel"])


@kept_and_not
@one_copy_and_three
def test_runs_side_by_side_are_evaluated_as_one_by_one(num_copies, keep_noise):
    optimizer = smoothout(
        optax.sgd(0.0), NOISE, key=KEY, num_copies=num_copies, keep_noise=keep_noise
    )
    start = params = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), PARAMS)
    states = jax.vmap(optimizer.init)(start)
    assert_equal(smoothout_eval_params(states, params), start)
    for _ in range(2):
        updates, states = jax.jit(jax.vmap(optimizer.update))(start, states, params)
        params = optax.apply_updates(params, updates)
        assert_close(smoothout_eval_params(states, params), start)


def test_clipping_before_smoothout_clips_every_gradient():
    optimizer = optax.chain(
        optax.clip_by_global_norm(0.1), smoothout(recorder(), NOISE, key=KEY)
    )
    _, state = train(optimizer, 2)[-1]
    assert_close(optax.tree.norm(optax.tree.get(state, "grads")), jnp.float32(0.1))


def largest_noise(params, state):
    noise = optax.tree.sub(params, smoothout_eval_params(state, params))
    return optax.tree.max(jax.tree.map(jnp.abs, noise))


def test_injected_radius_changes_without_a_retrace():
    optimizer = optax.inject_hyperparams(
        lambda radius, learning_rate: smoothout(
            optax.sgd(learning_rate), uniform(radius), key=KEY
        )
    )(radius=0.1, learning_rate=0.1)
    step = jitted_step(optimizer)
    params, state = PARAMS, optimizer.init(PARAMS)
    for radius in (0.1, 10.0, 0.001):
        state.hyperparams["radius"] = jnp.float32(radius)
        params, state = step(params, state, jnp.float32(0))
        assert radius / 2 < largest_noise(params, state) < 1.001 * radius


def test_injected_radius_may_be_a_schedule():
    optimizer = optax.inject_hyperparams(
        lambda radius: smoothout(optax.sgd(0.1), uniform(radius), key=KEY)
    )(radius=lambda count: 0.1 * 10.0**count)
    for call, (params, state) in enumerate(train(promoting(optimizer), 3)):
        assert 0.05 * 10**call < largest_noise(params, state) < 0.1001 * 10**call


def test_multi_steps_hold_the_noise_for_their_micro_steps():
    optimizer = smoothout(MOMENTUM, NOISE, key=KEY)
    multi_steps = optax.MultiSteps(optimizer, every_k_schedule=3)
    history = train(promoting(multi_steps.gradient_transformation()), 6)
    perturbed = [params for params, _ in history]
    params, state = PARAMS, optimizer.init(PARAMS)
    for first in (0, 3):
        calls = range(first, first + 3)
        grads = [gradient(params, float(call)) for call in calls]
        assert_equal(perturbed[first : first + 2], [params] * 2)
        updates, state = optimizer.update(mean(grads), state, params)
        params = optax.apply_updates(params, updates)
        assert_close(perturbed[first + 2], params)
        params = perturbed[first + 2]


def test_apply_if_finite_keeps_parameters_and_state_at_a_nan_gradient():
    optimizer = optax.apply_if_finite(TRANSFORMATIONS["smoothout-of-3"], 3)
    params, state = train(optimizer, 2)[-1]
    kept, rejected = jitted_step(optimizer)(params, state, jnp.float32(jnp.nan))
    assert rejected.total_notfinite == 1
    assert_equal(kept, params)
    assert_equal(rejected.inner_state, state.inner_state)


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_copies": 3, "antithetic": True}, "must be even; got num_copies=3"),
        ({"clean_weight": 1.0}, "clean_weight must be in .* got 1.0"),
        ({"execution": "pmap"}, "execution must be one of .*; got 'pmap'"),
        ({"num_copies": 3, "chunk_size": 2}, "chunk_size=2 does not divide the 3"),
        (
            {"axis_name": "a", "spmd_axis_name": "b"},
            "spmd_axis_name .* excludes .* axis_name='a'",
        ),
    ],
)
def test_smooth_gradients_refuses_what_its_copies_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        smooth_gradients(NOISE, key=KEY, **options)


@pytest.mark.parametrize(
    "make",
    [
        lambda noise: smoothout(MOMENTUM, noise, key=KEY),
        lambda noise: smoothout(MOMENTUM, noise, key=KEY, keep_noise=False),
        lambda noise: smooth_gradients(noise, key=KEY),
    ],
    ids=["smoothout", "smoothout-unkept", "smooth_gradients"],
)
def test_a_schedule_gets_whole_steps_from_the_start(make):
    radii = jnp.array([0.1, 0.3])
    noise = uniform(lambda step: radii[step])  # which no other number may index
    params = optax.tree.cast(PARAMS, jnp.bfloat16)
    optimizer = make(noise)
    state = optimizer.init(params)
    grad_fn = {"grad_fn": lambda params, copy: params}
    optimizer.update(params, state, params, **grad_fn)


@pytest.mark.parametrize("transform", [lambda init: init, jax.jit], ids=["", "jit"])
def test_injected_num_copies_must_be_static(transform):
    def inject(*static_args):
        inner = optax.inject_hyperparams(smoothout, static_args=static_args)
        return inner(optax.sgd(0.1), NOISE, key=KEY, num_copies=2)

    with pytest.raises(TypeError, match=r"num_copies must be.*static_args"):
        transform(inject("noise").init)(PARAMS)
    optimizer = inject("noise", "num_copies")
    state = transform(optimizer.init)(PARAMS)
    assert_equal(smoothout_eval_params(state, PARAMS), PARAMS)


@every_transformation
def test_update_without_parameters_says_how_to_call_it(optimizer):
    with pytest.raises(ValueError, match=r"update\(grads, state, params"):
        optimizer.update(PARAMS, optimizer.init(PARAMS))


@pytest.mark.parametrize(
    "grad_fn",
    [lambda params, _: loss(params, 1.0), jax.value_and_grad(loss)],
    ids=["loss", "value and gradient"],
)
def test_smooth_gradients_takes_gradients_alone(grad_fn):
    optimizer = smooth_gradients(NOISE, key=KEY)
    with pytest.raises(ValueError, match="what grad_fn returns must be a tree like"):
        optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS, grad_fn=grad_fn)


def test_a_leaf_that_is_no_array_is_named_and_filtering_suggested():
    params = {"w": jnp.ones(2), "activation": jax.nn.relu}
    for optimizer in TRANSFORMATIONS.values():
        with pytest.raises(TypeError, match=r"'activation' is <.*eqx\.filter\(model"):
            optimizer.init(params)
    optimizer = TRANSFORMATIONS["smoothout"]
    state = optimizer.init({"w": params["w"]})
    with pytest.raises(TypeError, match=r"params must hold arrays.*'activation'"):
        optimizer.update(params, state, params)


def test_per_example_gradients_are_not_averaged_over_copies():
    optimizer = smoothout(optax.sgd(0.1), NOISE, key=KEY, num_copies=2)
    grads = jax.tree.map(lambda p: jnp.stack([p, p]), PARAMS)
    with pytest.raises(
        ValueError, match=r"updates must be gradients like params.*shape"
    ):
        optimizer.update(grads, optimizer.init(PARAMS), PARAMS)


def test_update_is_given_the_state_of_smoothout():
    optimizer = smoothout(optax.sgd(0.1), NOISE, key=KEY)
    with pytest.raises(TypeError, match=r"state must be the state of smoothout.*tuple"):
        optimizer.update(PARAMS, (optimizer.init(PARAMS),), PARAMS)


@pytest.mark.parametrize("num_copies", [1, 2])
def test_init_takes_shapes_as_other_optimizers_do(num_copies):
    shapes = jax.eval_shape(lambda: PARAMS)
    for optimizer in (
        smoothout(MOMENTUM, NOISE, key=KEY, num_copies=num_copies),
        smooth_gradients(NOISE, key=KEY),
    ):
        chex.assert_trees_all_equal_shapes_and_dtypes(
            optimizer.init(shapes), optimizer.init(PARAMS)
        )


def test_a_seed_is_the_key_made_of_it():
    seeded, keyed = (
        smoothout(MOMENTUM, NOISE, key=key) for key in (5, jax.random.key(5))
    )
    assert_equal(train(seeded, 2)[-1], train(keyed, 2)[-1])


@jax.numpy_dtype_promotion("standard")
@one_copy_and_three
@pytest.mark.parametrize(
    "optimizer",
    [
        *(optax.adam(0.1), optax.lion(0.1), optax.lamb(0.1), optax.radam(0.1)),
        *(optax.adafactor(0.1), optax.contrib.muon(0.1)),
    ],
    ids=["adam", "lion", "lamb", "radam", "adafactor", "muon"],
)
def test_state_and_updates_keep_their_dtypes_whatever_the_gradients(
    optimizer, num_copies
):
    params = optax.tree.cast(PARAMS, jnp.bfloat16)
    grads = optax.tree.cast(PARAMS, jnp.float32)
    wrapped = smoothout(optimizer, NOISE, key=KEY, num_copies=num_copies)
    state = wrapped.init(params)
    updates, after = jax.jit(wrapped.update)(grads, state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)


def test_smooth_gradients_without_grad_fn_shows_the_call():
    optimizer = optax.chain(smooth_gradients(NOISE, key=KEY), MOMENTUM)
    call = r"(?s)grad_fn = jax\.grad\(.*update\(grads, state, params, grad_fn=grad_fn\)"
    with pytest.raises(ValueError, match=call):
        optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)


VARIABLES = {"params": PARAMS, "_overwrite_with_gradient": {"scale": jnp.ones(2)}}


@pytest.mark.parametrize(
    ("optimizer", "params", "message"),
    [
        (MOMENTUM, PARAMS, "state holds no state of smoothout"),
        (TRANSFORMATIONS["smooth_gradients"], PARAMS, "holds no state of smoothout"),
        (
            TRANSFORMATIONS["smoothout"],
            {"kernel": PARAMS["kernel"]},
            "other parameters: params has no leaf 'bias'",
        ),
        (
            TRANSFORMATIONS["smoothout"],
            PARAMS | {"bias": jnp.ones(5)},
            "other parameters.*bias",
        ),
        *(
            (
                TRANSFORMATIONS[name],
                VARIABLES,
                r"no leaf 'bias'.*pass params\['params'\]",
            )
            for name in ("smoothout", "smoothout-unkept")
        ),
    ],
    ids=[
        "no smoothout",
        "only smooth_gradients",
        "fewer leaves",
        "other shapes",
        "all variables",
        "all variables, drawn again",
    ],
)
def test_eval_params_refuse_a_state_that_does_not_fit(optimizer, params, message):
    with pytest.raises(ValueError, match=message):
        smoothout_eval_params(optimizer.init(PARAMS), params)


@pytest.mark.parametrize("name", ["smoothout", "smoothout-unkept"])
def test_a_state_in_another_memory_must_be_moved_first(name):
    """As optimizers' states are that are kept on the host."""
    on_host = jax.sharding.SingleDeviceSharding(
        jax.devices()[0], memory_kind="pinned_host"
    )
    params, state = train(TRANSFORMATIONS[name], 2)[-1]
    moved = jax.device_put(state, on_host)
    with pytest.raises(ValueError, match=r"in memory 'pinned_host'.*move the state"):
        smoothout_eval_params(moved, params)
    back = jax.device_put(moved, jax.tree.map(lambda leaf: leaf.sharding, state))
    clean = smoothout_eval_params(state, params)
    assert_equal(smoothout_eval_params(back, params), clean)


@kept_and_not
def test_a_group_without_parameters_is_evaluated_as_none(keep_noise):
    """As a label is in `optax.partition` that no leaf of this network has."""
    part = smoothout(optax.sgd(0.0), NOISE, key=KEY, keep_noise=keep_noise)
    optimizer = optax.partition(
        {"some": part, "none": part}, jax.tree.map(lambda _: "some", PARAMS)
    )
    params, state = train(optimizer, 2)[-1]
    assert_close(smoothout_eval_params(state, params), PARAMS)
