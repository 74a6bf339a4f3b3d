"""The rise that follows the gap between held-out and training loss."""

import functools

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx, serialization
from flax.training.train_state import TrainState
from jax.sharding import AxisType

from smoothout_jax import (
    heldout_gap,
    init_loss_rise,
    smooth_gradients,
    smoothout,
    smoothout_eval_params,
    smoothout_metrics,
    smoothout_report,
    smoothout_value_and_grad,
    uniform,
)

KEY = jax.random.key(3, impl="unsafe_rbg")
PARAMS = {"kernel": jnp.linspace(-1.0, 2.0, 12).reshape(4, 3), "bias": jnp.ones(3)}
SGD, NOISE = optax.sgd(0.1), uniform(1.0)
GAP = smoothout(SGD, NOISE, key=KEY, loss_rise=heldout_gap())


def loss(params):
    return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params))


@functools.partial(jax.jit, static_argnums=0)
def step(optimizer, params, state):
    updates, state = optimizer.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state


def report(state, train_loss=0.2, heldout_loss=1.0, **losses):
    return smoothout_report(
        state, train_loss=train_loss, heldout_loss=heldout_loss, **losses
    )


def learned(state):
    """The state of a network whose held-out loss no longer falls."""
    return report(state, train_loss=5.0, heldout_loss=0.0)


def by_hand(share, losses, target=0.0):
    """The targets after each pair of training and held-out loss."""
    least, targets = np.inf, []
    for train, heldout in losses:
        wanted = share * max(0.0, heldout - train)
        if wanted < target or heldout >= least:
            target += 0.2 * (wanted - target)
        least = min(least, heldout)
        targets.append(target)
    return targets


@pytest.mark.parametrize("share", [0.25, 1.0])
@pytest.mark.parametrize("start", [0.0, 0.7])
def test_the_target_approaches_a_share_of_the_gap_once_the_heldout_loss_stops_falling(
    share, start
):
    losses = [(2.0, 2.2), (1.5, 2.0), (1.0, 1.9), (0.8, 1.9), (0.5, 2.4), (0.4, 1.8)]
    losses += [(0.3, 2.6), (1.0, 2.0), (1.7, 1.9), (2.0, 1.7), (1.9, 1.7)]
    optimizer = smoothout(SGD, NOISE, key=KEY, loss_rise=heldout_gap(share, start))
    state, targets = optimizer.init(PARAMS), []
    assert float(smoothout_metrics(state)["loss_rise_target"]) == pytest.approx(start)
    for train_loss, heldout_loss in losses:
        state = report(state, train_loss, heldout_loss)
        _, state = step(optimizer, PARAMS, state)
        targets.append(float(smoothout_metrics(state)["loss_rise_target"]))
    np.testing.assert_allclose(targets, by_hand(share, losses, start), rtol=1e-5)


@pytest.mark.parametrize(
    ("losses", "gap"),
    [
        ({"train_loss": 1.0, "heldout_loss": 0.4}, 0.0),
        ({"heldout_loss": 7.9, "chance_loss": 2.3}, 2.1),
        ({"heldout_loss": 1.0, "chance_loss": 2.3}, 0.8),
        ({"train_loss": 3.0, "heldout_loss": 7.9, "chance_loss": 2.3}, 0.0),
        ({"train_loss": jnp.bfloat16(0.5), "heldout_loss": np.float64(2.5)}, 2.0),
        ({"train_loss": 0, "heldout_loss": 2}, 2.0),
    ],
)
def test_a_gap_is_between_zero_and_the_loss_of_guessing(losses, gap):
    metrics = smoothout_metrics(report(GAP.init(PARAMS), **losses))
    assert float(metrics["loss_gap"]) == pytest.approx(gap)


def test_noise_stops_without_a_gap_and_returns_with_it():
    params, state = PARAMS, learned(GAP.init(PARAMS))
    for _ in range(3):
        params, state = step(GAP, params, state)
    chex.assert_trees_all_equal(smoothout_eval_params(state, params), params)
    for _ in range(3):
        state = report(state)
        params, state = step(GAP, params, state)
    assert smoothout_metrics(state)["noise_scale"] > 0
    assert np.isfinite(float(loss(params)))


@pytest.mark.parametrize(
    "bad",
    [
        {"train_loss": np.nan},
        {"train_loss": np.inf, "chance_loss": 2.3},
        {"train_loss": -np.inf},
        {"heldout_loss": np.nan, "chance_loss": 2.3},
        {"heldout_loss": np.inf},
        {"heldout_loss": np.inf, "chance_loss": 2.3},
        {"heldout_loss": -np.inf},
        {"chance_loss": np.nan},
        {"chance_loss": -np.inf},
    ],
    ids=str,
)
def test_a_loss_that_is_not_finite_is_ignored(bad):
    state = report(GAP.init(PARAMS))
    chex.assert_trees_all_equal(report(state, **bad), state)


def in_nnx(optimizer):
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    return nnx.Optimizer(model, optimizer, wrt=nnx.Param)


def in_equinox(optimizer):
    model = eqx.filter(eqx.nn.Linear(4, 3, key=jax.random.key(0)), eqx.is_array)
    return {"model": model, "state": optimizer.init(model)}


PLACES = {
    "chain": lambda: optax.chain(optax.clip(1.0), GAP).init(PARAMS),
    "masked": lambda: optax.masked(GAP, {"kernel": True, "bias": False}).init(PARAMS),
    "inject_hyperparams": lambda: optax.inject_hyperparams(
        lambda rate: optax.chain(GAP, optax.scale(rate))
    )(rate=1.0).init(PARAMS),
    "TrainState": lambda: TrainState.create(apply_fn=None, params=PARAMS, tx=GAP),
    "nnx.Optimizer": lambda: in_nnx(GAP),
    "its state": lambda: in_nnx(GAP).opt_state,
    "Equinox": lambda: in_equinox(GAP),
    "copies": lambda: init_loss_rise(heldout_gap()),
    "smooth_gradients": lambda: smooth_gradients(
        NOISE, key=KEY, loss_rise=heldout_gap()
    ).init(PARAMS),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("how", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_a_report_finds_its_state_wherever_it_is(place, how):
    before = PLACES[place]()
    after = how(report)(before)
    chex.assert_trees_all_equal_structs(after, before)
    assert float(smoothout_metrics(after)["loss_gap"]) == pytest.approx(0.8)
    changed = [
        new is not old and bool(jnp.any(new != old))
        for new, old in zip(*map(jax.tree.leaves, (after, before)), strict=True)
    ]
    assert sum(changed) == 2  # the gap and the least loss on held-out data


def test_every_rise_of_a_state_gets_the_report():
    optimizer = optax.multi_transform(
        {"a": GAP, "b": GAP}, {"kernel": "a", "bias": "b"}
    )
    state = report(optimizer.init(PARAMS))
    gaps = [value for _, value in optax.tree.get_all_with_path(state, "loss_gap")]
    np.testing.assert_allclose(gaps, [0.8, 0.8], rtol=1e-6)


def test_parallel_runs_have_separate_gaps_inside_vmap_and_outside():
    losses = jnp.array([0.5, 0.2, jnp.nan]), jnp.array([1.0, 1.0, 1.0])
    states = jax.vmap(lambda _: GAP.init(PARAMS))(jnp.arange(3))
    outside = report(states, *losses)
    inside = jax.jit(jax.vmap(report))(states, *losses)
    chex.assert_trees_all_equal(outside, inside)
    gaps = smoothout_metrics(outside)["loss_gap"]
    np.testing.assert_allclose(gaps, [0.5, 0.8, 0.0], rtol=1e-6)
    chex.assert_trees_all_equal(report(states, 0.2, losses[1]), report(states))


def test_shares_train_side_by_side():
    def target(share):
        optimizer = smoothout(SGD, NOISE, key=KEY, loss_rise=heldout_gap(share))
        state = report(learned(optimizer.init(PARAMS)))
        _, state = optimizer.update(PARAMS, state, PARAMS)
        return smoothout_metrics(state)["loss_rise_target"]

    targets = jax.jit(jax.vmap(target))(jnp.array([0.25, 0.5, 1.0]))
    np.testing.assert_allclose(targets, [0.04, 0.08, 0.16], rtol=1e-6)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_state_on_a_mesh_stays_there(kind):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    whole = jax.NamedSharding(mesh, jax.P())
    state = jax.device_put(learned(GAP.init(PARAMS)), whole)
    params = jax.device_put(PARAMS, whole)
    for losses in (
        (0.2, 1.0),
        jax.device_put((jnp.float32(0.2), jnp.float32(1)), whole),
    ):
        reported = jax.jit(report)(state, *losses)
        assert smoothout_metrics(reported)["loss_gap"].sharding == whole
        moved = step(GAP, params, reported)[1]
        target = smoothout_metrics(moved)["loss_rise_target"]
        assert float(target) == pytest.approx(0.08)


def test_a_donated_or_saved_state_continues_bit_for_bit():
    donating = jax.jit(lambda state, params: step(GAP, params, state), donate_argnums=0)

    def go(params, state, times):
        for number in range(times):
            params, state = donating(state, params)
            state = report(state, 0.1 * number, 2.0 + 0.1 * number)
        return params, state

    half = go(PARAMS, GAP.init(PARAMS), 3)
    saved = serialization.to_bytes(half)
    whole = go(*half, 4)
    template = jax.tree.map(jnp.zeros_like, (PARAMS, GAP.init(PARAMS)))
    restored = jax.tree.map(jnp.asarray, serialization.from_bytes(template, saved))
    chex.assert_trees_all_equal(go(*restored, 4), whole)


@pytest.mark.parametrize("copies", [1, 2])
def test_copies_hold_a_share_of_the_gap(copies):
    gap = heldout_gap()
    fn = jax.jit(
        smoothout_value_and_grad(
            lambda w: jnp.sum(jnp.square(w)), NOISE, num_copies=copies, loss_rise=gap
        )
    )
    rise = learned(init_loss_rise(gap))
    for _ in range(40):
        rise = report(rise, heldout_loss=0.6)
    for key in jax.random.split(KEY, 150):
        _, rise = fn(rise, key, jnp.zeros(50))
    metrics = smoothout_metrics(rise)
    assert float(metrics["loss_rise_target"]) == pytest.approx(0.2, rel=1e-3)
    np.testing.assert_allclose(metrics["loss_rise_estimate"], 0.2, rtol=0.1)


def test_without_arguments_noise_is_relative_to_filters_and_follows_the_gap():
    network = linen.Sequential([linen.Dense(64), linen.relu, linen.Dense(10)])
    params = network.init(jax.random.key(0), jnp.ones((1, 8)))
    spelled = smoothout(
        SGD,
        uniform(1.0, relative_to="filter", filter_axis=-1),
        key=KEY,
        loss_rise=heldout_gap(0.5, 0.0),
    )

    def trained(optimizer):
        state, now = report(learned(optimizer.init(params))), params
        for _ in range(3):
            updates, state = optimizer.update(now, state, now)
            now = optax.apply_updates(now, updates)
        return now, state

    chex.assert_trees_all_equal(trained(smoothout(SGD, key=KEY)), trained(spelled))
    fixed = smoothout(SGD, key=KEY, loss_rise=0.3).init(params)
    assert smoothout_metrics(fixed).keys() == {
        "noise_scale", "loss_rise_target", "loss_rise_estimate",
    }  # fmt: skip


def test_a_report_to_no_gap_says_what_to_do():
    for state in (
        optax.adam(1e-3).init(PARAMS),
        smoothout(SGD, NOISE, key=0).init(PARAMS),
        smoothout(SGD, NOISE, key=0, loss_rise=0.1).init(PARAMS),
        init_loss_rise(),
    ):
        with pytest.raises(ValueError, match=r"pass loss_rise=heldout_gap\(\)"):
            report(state)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ({"train_loss": "0.1"}, "train_loss must be a real number, got '0.1'"),
        ({"train_loss": None}, "train_loss must be a real number, got None"),
        ({"heldout_loss": 1j}, "heldout_loss must be a real number"),
        ({"heldout_loss": [1.0]}, "heldout_loss must be a real number"),
        ({"chance_loss": True}, "chance_loss must be a real number"),
        ({"train_loss": jnp.ones(3)}, r"train_loss must be .*\(3,\)"),
    ],
)
def test_an_invalid_loss_is_refused(losses, message):
    with pytest.raises((TypeError, ValueError), match=message):
        report(GAP.init(PARAMS), **losses)


@pytest.mark.parametrize("name", ["share", "start"])
@pytest.mark.parametrize("value", [-0.1, np.nan, "half"])
def test_an_invalid_share_is_refused(name, value):
    with pytest.raises((ValueError, TypeError), match=f"{name} must be"):
        heldout_gap(**{name: value})


def test_a_state_of_another_rise_is_refused():
    held = smoothout(SGD, uniform(1.0), key=KEY, loss_rise=0.1)
    for optimizer, state in ((GAP, held.init(PARAMS)), (held, GAP.init(PARAMS))):
        with pytest.raises(ValueError, match="state was made for another loss_rise"):
            optimizer.update(PARAMS, state, PARAMS)
    fn = smoothout_value_and_grad(loss, NOISE, loss_rise=heldout_gap())
    with pytest.raises(ValueError, match=r"from init_loss_rise\(loss_rise\)"):
        fn(init_loss_rise(), KEY, PARAMS)


def test_metrics_need_one_rise():
    none = smoothout(SGD, NOISE, key=0).init(PARAMS)
    for number, state in ((0, none), (2, (GAP.init(PARAMS), GAP.init(PARAMS)))):
        with pytest.raises(ValueError, match=f"one loss_rise, .* but has {number}"):
            smoothout_metrics(state)
