"""The state: arrays of one kind for ever, found inside Optax's wrappers."""

import dataclasses
import functools
import sys

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from flax.training.train_state import TrainState
from test_transforms import (
    FACTORIES,
    KEY,
    MOMENTUM,
    NOISE,
    PARAMS,
    TRANSFORMATIONS,
    assert_close,
    assert_equal,
    every_factory,
    gradient,
    jitted_step,
    kept_and_not,
    mean,
    one_copy_and_three,
    promoting,
    train,
    user_step,
)

from smoothout_jax import (
    SmoothGradientsState,
    SmoothoutState,
    by_path,
    smoothout,
    smoothout_eval_params,
    uniform,
)


@every_factory
def test_state_is_plain_arrays_of_one_kind_for_ever(name):
    optimizer = TRANSFORMATIONS[name]
    with jax.enable_x64(True):
        params = {
            dtype: optax.tree.cast(PARAMS, jnp.dtype(dtype))
            for dtype in ("float16", "bfloat16", "float32", "float64")
        }
        shapes = jax.eval_shape(lambda: params)
        state = optimizer.init(params)
        step = functools.partial(user_step, optimizer)
        start, end = (params, state), jax.eval_shape(step, params, state, 0.0)
        chex.assert_trees_all_equal_shapes_and_dtypes(optimizer.init(shapes), state)
    chex.assert_trees_all_equal_structs(start, end)
    chex.assert_trees_all_equal_shapes_and_dtypes(start, end)
    for leaf in jax.tree.leaves(start):
        assert isinstance(leaf, jax.Array)
        assert not leaf.weak_type
        assert not jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
    for field in ("smoothout_noise", "gradient_mean"):
        kept = optax.tree.get(state, field)
        for dtype, tree in kept.items() if isinstance(kept, dict) else ():
            wide = dtype if dtype == "float64" else "float32"
            assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype(wide)}


@pytest.mark.parametrize(
    ("name", "counts"),
    [
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
def test_state_shares_no_buffer_with_parameters_key_or_another_state(name, make_key):
    """So that it can be donated."""
    key = make_key(1)
    optimizer = FACTORIES[name](key)
    trees = PARAMS, jax.random.key_data(key), *map(optimizer.init, [PARAMS, PARAMS])
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(trees)]
    assert len(set(buffers)) == len(buffers)


@every_factory
def test_runs_under_vmap_over_seeds_equal_single_runs(name):
    def run(seed):
        optimizer = FACTORIES[name](jax.random.key(seed))
        step = functools.partial(user_step, optimizer)
        carry = PARAMS, optimizer.init(PARAMS)
        batches = jnp.arange(5.0)
        return jax.lax.scan(lambda carry, b: (step(*carry, b), None), carry, batches)[0]

    def first(tree):
        return jax.tree.map(lambda leaf: leaf[0], tree)

    params, states = jax.jit(jax.vmap(run))(jnp.arange(2))
    alone, state = train(TRANSFORMATIONS[name], 5)[-1]
    assert_close(first((params, states)), (alone, state))
    assert jnp.all(params["bias"][0] != params["bias"][1])
    if name != "smooth_gradients":
        clean = smoothout_eval_params(states, params)
        assert_close(first(clean), smoothout_eval_params(state, alone))


@every_factory
def test_noise_follows_the_key_in_the_state(name):
    optimizer, another = TRANSFORMATIONS[name], FACTORIES[name](jax.random.key(7))
    batch, state = jnp.float32(0), optimizer.init(PARAMS)
    assert_equal(
        user_step(another, PARAMS, state, batch),
        user_step(optimizer, PARAMS, state, batch),
    )


@pytest.mark.parametrize(
    ("noise", "keep_noise"),
    [
        (uniform(0.1, mask={"kernel": True, "bias": False}), True),
        (by_path({"kernel": uniform(0.1)}), True),
        (by_path({"kernel": uniform(0.1)}), False),
    ],
    ids=["mask", "by_path", "by_path, drawn again"],
)
def test_map_params_finds_the_trees_like_the_parameters(noise, keep_noise):
    options = {"key": KEY, "num_copies": 3, "keep_noise": keep_noise}
    optimizer = smoothout(MOMENTUM, noise, **options)
    params, state = train(optimizer, 4)[-1]
    mapped = optax.tree.map_params(
        optimizer, lambda leaf: 2 * leaf, state, transform_non_params=lambda _: None
    )
    for field in ("gradient_mean", "trace", *(["smoothout_noise"] * keep_noise)):
        doubled = optax.tree.scale(2.0, optax.tree.get(state, field))
        assert_equal(optax.tree.get(mapped, field), doubled)
    assert mapped.smoothout_step is mapped.smoothout_key_data is None
    same = optax.tree.map_params(optimizer, lambda leaf: leaf, state)
    clean = smoothout_eval_params(state, params)
    assert_equal(smoothout_eval_params(same, params), clean)
    assert jnp.all(clean["kernel"] != params["kernel"])
    assert_equal(clean["bias"], params["bias"])
    assert jnp.all(clean["bias"] != PARAMS["bias"])


@one_copy_and_three
@pytest.mark.parametrize(
    "make", [optax.adam, optax.lion, optax.adafactor, optax.contrib.muon]
)
def test_state_and_updates_keep_their_dtypes_whatever_the_gradients(make, num_copies):
    params = optax.tree.cast(PARAMS, jnp.bfloat16)
    wrapped = smoothout(make(0.1), NOISE, key=KEY, num_copies=num_copies)
    state = wrapped.init(params)
    updates, after = jax.eval_shape(promoting(wrapped).update, PARAMS, state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)


# Inside Optax's wrappers

WRAPPERS = {
    "chain": lambda t: optax.chain(optax.identity(), t, optax.identity()),
    "named_chain": lambda t: optax.named_chain(("a", optax.identity()), ("b", t)),
    "masked": lambda t: optax.masked(t, True),
    "apply_if_finite": lambda t: optax.apply_if_finite(t, 3),
    "conditionally_transform": lambda t: optax.conditionally_transform(
        t, lambda step: step >= 0
    ),
    "conditionally_mask": lambda t: optax.conditionally_mask(t, lambda step: step >= 0),
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
def test_eval_params_merge_two_smoothouts_and_leave_what_neither_trains(keep_noise):
    """And a label that no leaf of this network has."""
    start = PARAMS | {"plain": jnp.ones(2)}
    parts = {
        name: smoothout(MOMENTUM, NOISE, key=number, keep_noise=keep_noise)
        for number, name in enumerate(("kernel", "bias", "nowhere"))
    }
    labels = {name: name for name in start}
    optimizer = optax.partition(parts | {"plain": MOMENTUM}, labels)
    params, state = train(optimizer, 3, start)[-1]
    clean = smoothout_eval_params(state, params)
    assert_equal(clean["plain"], params["plain"])
    for name in PARAMS:
        alone, alone_state = train(parts[name], 3, {name: PARAMS[name]})[-1]
        assert_close(params[name], alone[name])
        assert_close(clean[name], smoothout_eval_params(alone_state, alone)[name])


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


VARIABLES = {"params": PARAMS, "_overwrite_with_gradient": {"scale": jnp.ones(2)}}
IN_PARAMS = r"no leaf 'bias'.*pass params\['params'\]"


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("smooth_gradients", PARAMS, "state holds no state of smoothout"),
        (
            "smoothout",
            {"kernel": PARAMS["kernel"]},
            "other parameters: params has no leaf 'bias'",
        ),
        ("smoothout", PARAMS | {"bias": jnp.ones(5)}, "other parameters.*bias"),
        ("smoothout", VARIABLES, IN_PARAMS),
        ("smoothout-unkept", VARIABLES, IN_PARAMS),
    ],
    ids=[
        *("no smoothout", "fewer leaves", "other shapes"),
        *("all variables", "all variables, drawn again"),
    ],
)
def test_eval_params_refuse_a_state_that_does_not_fit(name, params, message):
    with pytest.raises(ValueError, match=message):
        smoothout_eval_params(TRANSFORMATIONS[name].init(PARAMS), params)
