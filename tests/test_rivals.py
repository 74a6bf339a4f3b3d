"""Momentum-SAM: its steps, and its use wherever Optax's optimizers are used."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding

from smoothout_jax.rivals import msam, msam_eval_params

RHO = 0.4
OPTIMIZERS = {
    "sgd": optax.sgd(0.1, momentum=0.9),
    "nesterov": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adamw": optax.adamw(0.1),
    "lion": optax.lion(0.1),
    "clipped": optax.chain(optax.clip(1.0), optax.trace(0.9), optax.scale(-0.1)),
}
SGD = OPTIMIZERS["sgd"]
assert_close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-6)
pytestmark = pytest.mark.usefixtures("standard_promotion")


def params_of(dtype=jnp.float32):
    # Names that are fields of states, too.
    return {
        "mu": jnp.linspace(-2.0, 3.0, 6, dtype=dtype).reshape(2, 3),
        "trace": jnp.array([0.5, -1.0], dtype),
    }


def loss(params):
    terms = (
        jnp.sum(jnp.abs(p) ** 2 + jnp.sin(p.real)) for p in jax.tree.leaves(params)
    )
    return sum(term.astype(jnp.float32) for term in terms)


def gradient(params):
    return jax.tree.map(jnp.conj, jax.grad(loss)(params))


def step(optimizer, params, state):
    updates, state = optimizer.update(gradient(params), state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    return optax.apply_updates(params, updates), state


def trained(optimizer, params, steps=4):
    """In a scan, which refuses a state whose structure or dtypes change."""
    carry = params, optimizer.init(params)
    return jax.lax.scan(
        lambda carry, _: (step(optimizer, *carry), None), carry, length=steps
    )[0]


def by_hand(params, steps=4, rho=RHO, decay=0.0):
    """Algorithm 1 with SGD: the clean and the perturbed parameters."""
    held, velocity = params, optax.tree.zeros_like(params)
    for _ in range(steps):
        grads = optax.tree.add_scale(gradient(held), decay, params)
        velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, grads)
        params = jax.tree.map(lambda p, v: p - 0.1 * v, params, velocity)
        factor = -rho / np.sqrt(
            sum(np.sum(np.abs(v) ** 2) for v in jax.tree.leaves(velocity))
        )
        held = optax.tree.add_scale(params, factor, velocity)
    return params, held


SCHEDULED = optax.inject_hyperparams(optax.sgd)(0.1, momentum=0.9)
NOISY = optax.chain(SGD, optax.add_noise(0.0, 1.0, jax.random.key(0)))
# Optimizers, and what makes their steps others than those of SGD.
STEPS = {
    "alone": (msam(SGD, RHO), {}),
    "weight decay": (
        msam(optax.chain(optax.add_decayed_weights(0.5), SGD), RHO),
        {"decay": 0.5},
    ),
    "chain": (optax.chain(optax.identity(), msam(SGD, RHO)), {}),
    "scheduled": (optax.inject_hyperparams(msam)(SGD, rho=lambda step: RHO), {}),
    "scheduled inside": (msam(SCHEDULED, RHO), {}),
    "keys in the state": (msam(NOISY, RHO), {}),
    # Four gradients, each pair of which is taken at the same parameters.
    "multi steps": (optax.MultiSteps(msam(SGD, RHO), 2), {"steps": 2}),
}


@pytest.mark.parametrize("name", STEPS)
def test_its_steps_are_those_of_the_algorithm(name):
    optimizer, options = STEPS[name]
    held, state = trained(optimizer, params_of())
    clean = msam_eval_params(state, held)
    assert_close((clean, held), by_hand(params_of(), **options))


def test_complex_parameters_are_perturbed_by_their_modulus():
    params = jax.tree.map(lambda p: p * (1 + 0.5j), params_of())
    held, state = trained(msam(SGD, RHO), params)
    assert_close((msam_eval_params(state, held), held), by_hand(params))


@pytest.mark.parametrize("other", [True, False], ids=["multi_transform", "masked"])
def test_it_trains_some_parameters_only(other):
    params = params_of()
    optimizer = optax.masked(msam(SGD, RHO), {"mu": True, "trace": False})
    if other:
        labels = {name: name for name in params}
        transforms = {"mu": msam(SGD, RHO), "trace": msam(OPTIMIZERS["adamw"], RHO)}
        optimizer = optax.multi_transform(transforms, labels)
    held, state = trained(optimizer, params)
    clean = msam_eval_params(state, held)
    expected = by_hand({"mu": params["mu"]})
    assert_close((clean["mu"], held["mu"]), tuple(p["mu"] for p in expected))
    assert jnp.allclose(clean["trace"], held["trace"]) != other


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, jnp.bfloat16) for name in OPTIMIZERS]
    + [("adamw", jnp.float32), ("lion", jnp.float32), ("adamw", jnp.float16)],
)
def test_state_is_stable_and_the_loss_falls(name, dtype):
    optimizer, params = msam(OPTIMIZERS[name], RHO), params_of(dtype)
    held, state = trained(optimizer, params)
    clean = msam_eval_params(state, held)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, optimizer.init(params))
    chex.assert_trees_all_equal_shapes_and_dtypes(clean, held, params)
    distance = optax.tree.norm(
        jax.tree.map(lambda c, h: (c - h).astype(jnp.float32), clean, held)
    )
    np.testing.assert_allclose(distance, RHO, rtol=2e-2 if dtype != "float32" else 1e-5)
    assert loss(clean) < loss(params) - 0.1


def test_large_momentum_in_half_precision_does_not_overflow():
    params = {"w": jnp.array([1.0, 2.0], jnp.float16)}
    optimizer = msam(SGD, RHO)
    grads = {"w": jnp.array([3e3, -4e3], jnp.float16)}
    updates, state = optimizer.update(grads, optimizer.init(params), params)
    held = optax.apply_updates(params, updates)
    clean = msam_eval_params(state, held)
    np.testing.assert_allclose(clean["w"] - held["w"], [0.24, -0.32], atol=0.25)
    assert not jnp.array_equal(clean["w"], held["w"])


def test_a_gradient_of_zero_perturbs_nothing():
    params, optimizer = params_of(), msam(SGD, RHO)
    zeros = optax.tree.zeros_like(params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    chex.assert_trees_all_equal(updates, zeros)


def test_integers_and_none_stay_as_they_are():
    params = {"w": jnp.ones(2), "count": jnp.arange(3), "none": None}
    grads = params | {"count": jnp.zeros(3, jnp.int32)}
    optimizer = msam(SGD, RHO)
    updates, state = optimizer.update(grads, optimizer.init(params), params)
    held = optax.apply_updates(params, updates)
    exact = {"w": jnp.full(2, 1 - 0.1 - RHO / np.sqrt(2)), "count": jnp.arange(3)}
    assert_close(held, exact | {"none": None})
    chex.assert_trees_all_equal_dtypes(updates, held, params)
    assert msam_eval_params(state, held)["none"] is None


def test_runs_with_several_strengths_train_side_by_side():
    strengths = jnp.array([0.1, RHO])
    held, states = jax.vmap(lambda rho: trained(msam(SGD, rho), params_of()))(strengths)
    clean = msam_eval_params(states, held)
    for index, rho in enumerate([0.1, RHO]):
        found = jax.tree.map(lambda leaf, index=index: leaf[index], (clean, held))
        assert_close(found, by_hand(params_of(), rho=rho))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_updates_lie_as_the_parameters(kind):
    mesh = jax.make_mesh((2,), ("x",), (kind,), devices=jax.devices()[:2])
    optimizer = msam(SGD, RHO)
    with jax.set_mesh(mesh):
        params = jax.device_put(params_of(), NamedSharding(mesh, jax.P("x")))
        state, held = jax.jit(optimizer.init)(params), params
        for _ in range(4):
            held, state = jax.jit(functools.partial(step, optimizer))(held, state)
        clean = msam_eval_params(state, held)
    assert_close((clean, held), by_hand(params_of()))
    for leaf in jax.tree.leaves((clean, held)):
        assert leaf.sharding.spec[0] == "x"


def test_it_trains_in_an_nnx_optimizer():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    start = nnx.state(model, nnx.Param)
    optimizer = nnx.Optimizer(model, msam(SGD, RHO), wrt=nnx.Param)
    expected = by_hand(jax.tree.map(jnp.copy, start))
    for _ in range(4):
        optimizer.update(model, nnx.grad(loss)(model))
    held = nnx.state(model, nnx.Param)
    clean = msam_eval_params(optimizer.opt_state, held)
    chex.assert_trees_all_equal_structs(clean, held)
    assert_close((clean, held), expected)


def test_extra_arguments_reach_the_optimizer():
    def update(updates, state, params=None, *, factor):
        return optax.tree.scale(factor, updates), state

    scale = optax.GradientTransformationExtraArgs(optax.identity().init, update)
    optimizer, params = msam(optax.chain(SGD, scale), RHO), params_of()
    state = optimizer.init(params)
    _, state = optimizer.update(gradient(params), state, params, factor=0.0)
    chex.assert_trees_all_equal(msam_eval_params(state, params), params)


def init(optimizer, params=None):
    return msam(optimizer, 1).init(params or params_of())


HALF = optax.masked(SGD, {"mu": True, "trace": False})


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: msam(SGD.update, RHO), TypeError, "optimizer must be an optax"),
        (lambda: msam(SGD, "1"), TypeError, "rho must be a number, got '1'"),
        (lambda: msam(SGD, lambda step: 1.0), TypeError, "rho must be a number"),
        (lambda: msam(SGD, -1), ValueError, "rho must be finite and at least 0"),
        (lambda: init(optax.sgd(1)), ValueError, "found 0"),
        (
            lambda: init(optax.chain(SGD, OPTIMIZERS["adamw"])),
            ValueError,
            "one momentum.*momentum=0.9.*found 2",
        ),
        (lambda: init(HALF), ValueError, "tree like params, but 'trace' is missing"),
        (lambda: init(SGD, {"w": "a"}), TypeError, "leaf 'w' is 'a'"),
        (
            lambda: msam(SGD, 1).update(params_of(), init(SGD)),
            ValueError,
            "msam needs params: call update",
        ),
        (
            lambda: msam_eval_params(SGD.init(params_of()), params_of()),
            ValueError,
            "must contain the state of msam",
        ),
        (
            lambda: msam_eval_params(init(SGD), {"mu": 1.0}),
            ValueError,
            "'mu' is of shape",
        ),
    ],
)
def test_invalid_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
