"""Training loops of Flax Linen and NNX, and their checkpoints."""

import functools
import pickle
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint
import pytest
from flax import linen, nnx, serialization
from flax.training.train_state import TrainState

from smoothout_jax import (
    smooth_gradients,
    smoothout,
    smoothout_eval_params,
    smoothout_value_and_grad,
    uniform,
)

KEY = jax.random.key(0)
NOISE = uniform(0.1)
SGD = optax.sgd(0.1, momentum=0.9)
X = jax.random.normal(jax.random.key(1), (64, 8))
Y = jnp.argmax(X[:, :3] + X[:, 3:6], axis=1)

assert_equal = chex.assert_trees_all_equal
assert_close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-6)


def cross_entropy(logits):
    return optax.softmax_cross_entropy_with_integer_labels(logits, Y).mean()


# Flax Linen


class Network(linen.Module):
    """A perceptron with batch normalisation and dropout."""

    @linen.compact
    def __call__(self, x, train):
        x = linen.Dense(16)(x)
        x = linen.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = linen.Dropout(0.2, deterministic=not train)(linen.relu(x))
        return linen.Dense(3)(x)


class State(TrainState):
    """A train state with the running statistics."""

    batch_stats: Any


NETWORK = Network()
VARIABLES = NETWORK.init(jax.random.key(2), X, train=False)


def create(optimizer):
    """A train state of its own, which can be donated."""
    variables = jax.tree.map(jnp.copy, VARIABLES)
    return State.create(apply_fn=NETWORK.apply, tx=optimizer, **variables)


def loss_and_batch_stats(params, batch_stats, dropout_key):
    logits, updated = NETWORK.apply(
        {"params": params, "batch_stats": batch_stats},
        X,
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": dropout_key},
    )
    return cross_entropy(logits), updated["batch_stats"]


def linen_step(state, dropout_key):
    """The step of a loop that knows nothing of SmoothOut."""
    grads, batch_stats = jax.grad(loss_and_batch_stats, has_aux=True)(
        state.params, state.batch_stats, dropout_key
    )
    return state.apply_gradients(grads=grads, batch_stats=batch_stats)


# One trace for each of the three: a step that is traced anew fails.
SMOOTHOUTS = {m: smoothout(SGD, NOISE, key=KEY, num_copies=m) for m in (1, 2)}
DRAWN_AGAIN = smoothout(SGD, NOISE, key=KEY, num_copies=2, keep_noise=False)
donating_step = jax.jit(
    chex.assert_max_traces(linen_step, n=len(SMOOTHOUTS) + 1), donate_argnames="state"
)
one_copy_and_two = pytest.mark.parametrize("num_copies", SMOOTHOUTS)


def linen_train(state, calls):
    """The state after so many calls, from one after fewer."""
    for call in range(int(state.step), calls):
        state = donating_step(state, jax.random.fold_in(KEY, call))
    return state


@jax.jit
def evaluation_loss(params, batch_stats):
    variables = {"params": params, "batch_stats": batch_stats}
    return cross_entropy(NETWORK.apply(variables, X, train=False))


@jax.jit
def moved_batch_stats(params, batch_stats, dropout_key):
    return loss_and_batch_stats(params, batch_stats, dropout_key)[1]


@one_copy_and_two
def test_linen_train_state_trains_in_its_unchanged_loop(num_copies):
    state = linen_train(create(SMOOTHOUTS[num_copies]), 30 * num_copies)
    clean = smoothout_eval_params(state.opt_state, state.params)
    assert_equal(smoothout_eval_params(state, state.params), clean)
    before = evaluation_loss(**VARIABLES)
    assert evaluation_loss(clean, state.batch_stats) < before / 3
    noise = optax.tree.sub(state.params, clean)
    assert 0.05 < optax.tree.max(jax.tree.map(jnp.abs, noise)) < 0.1001


def test_batch_statistics_move_once_a_step_whatever_the_number_of_copies():
    value_and_grad = jax.jit(
        smoothout_value_and_grad(
            loss_and_batch_stats,
            NOISE,
            num_copies=3,
            clean_weight=0.4,
            has_aux=True,
            copy_argnums=2,
            execution="scan",
        )
    )
    state = create(SGD)
    for step in range(2):
        noise_key, dropout_key = jax.random.split(jax.random.fold_in(KEY, step))
        dropout_keys = jax.random.split(dropout_key, 4)
        (_, batch_stats), grads = value_and_grad(
            noise_key, state.params, state.batch_stats, dropout_keys
        )
        networks = [
            optax.apply_updates(state.params, NOISE(key, state.params))
            for key in jax.random.split(noise_key, 3)
        ]
        *noisy, clean = (
            moved_batch_stats(params, state.batch_stats, key)
            for params, key in zip([*networks, state.params], dropout_keys, strict=True)
        )
        expected = jax.tree.map(lambda c, *n: 0.4 * c + 0.2 * sum(n), clean, *noisy)
        assert_close(batch_stats, expected)
        state = state.apply_gradients(grads=grads, batch_stats=batch_stats)


# Checkpoints


def through_msgpack(saved, template, path):
    path.write_bytes(serialization.to_bytes(saved))
    return serialization.from_bytes(template, path.read_bytes())


def through_pickle(saved, template, path):
    path.write_bytes(pickle.dumps(saved))
    return pickle.loads(path.read_bytes())


def through_orbax(saved, template, path):
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, saved)
        checkpointer.wait_until_finished()
        # On the host, as the others: the step is not compiled for committed arrays.
        return jax.device_get(checkpointer.restore(path, template))


@pytest.mark.parametrize(
    ("optimizer", "through"),
    [
        (SMOOTHOUTS[1], through_msgpack),
        (SMOOTHOUTS[2], through_pickle),
        (SMOOTHOUTS[2], through_orbax),
        (DRAWN_AGAIN, through_orbax),
    ],
)
def test_training_resumes_bit_for_bit_from_a_checkpoint(optimizer, through, tmp_path):
    def saved(state):
        return state.params, state.batch_stats, state.opt_state

    stopped = linen_train(create(optimizer), 3)
    assert stopped.opt_state.smoothout_copy == (0 if optimizer is SMOOTHOUTS[1] else 1)

    template = create(optimizer)
    restored = through(saved(stopped), saved(template), tmp_path / "checkpoint")
    assert_equal(restored, saved(stopped))
    params, batch_stats, opt_state = restored
    resumed = template.replace(
        step=3, params=params, batch_stats=batch_stats, opt_state=opt_state
    )
    assert_equal(
        saved(linen_train(resumed, 7)), saved(linen_train(create(optimizer), 7))
    )


# Flax NNX


class Model(nnx.Module):
    """The same network."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.hidden = nnx.Linear(8, 16, rngs=rngs)
        self.bn = nnx.BatchNorm(16, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.out = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x):
        return self.out(self.dropout(nnx.relu(self.bn(self.hidden(x)))))


def nnx_loss(model):
    return cross_entropy(model(X))


def nnx_train(transformation, steps=30, grad_fn_of=lambda model: {}):
    """The model and the optimizer after a loop, and the evaluation loss before."""
    model = Model()
    optimizer = nnx.Optimizer(model, transformation, wrt=nnx.Param)
    before = nnx_loss(evaluation_model(model))

    @nnx.jit
    def step(model, optimizer):
        extra_args = grad_fn_of(model)
        optimizer.update(model, nnx.grad(nnx_loss)(model), **extra_args)

    for _ in range(steps):
        step(model, optimizer)
    return model, optimizer, before


def evaluation_model(model):
    model = nnx.clone(model)
    model.eval()
    return model


def clean_params(model, optimizer):
    return smoothout_eval_params(optimizer.opt_state, nnx.state(model, nnx.Param))


def test_nnx_optimizer_trains_in_its_unchanged_loop():
    model, optimizer, before = nnx_train(smoothout(SGD, NOISE, key=KEY))
    clean = clean_params(model, optimizer)
    chex.assert_trees_all_equal_structs(clean, nnx.state(model, nnx.Param))

    updated = evaluation_model(model)
    nnx.update(updated, clean)
    assert nnx_loss(updated) < before / 3

    graph, _, rest = nnx.split(evaluation_model(model), nnx.Param, ...)
    assert_equal(nnx_loss(nnx.merge(graph, clean, rest)), nnx_loss(updated))
    assert nnx_loss(updated) != nnx_loss(evaluation_model(model))


def test_smooth_gradients_take_their_grad_fn_through_the_optimizer_of_nnx():
    def grad_fn_of(model):
        graph, _, rest = nnx.split(model, nnx.Param, ...)

        def copy_loss(params, copy):
            return nnx_loss(nnx.merge(graph, params, rest, copy=True))

        return {"grad_fn": jax.grad(copy_loss)}

    transformation = optax.chain(smooth_gradients(NOISE, key=KEY, num_copies=2), SGD)
    model, optimizer, before = nnx_train(transformation, grad_fn_of=grad_fn_of)
    assert nnx_loss(evaluation_model(model)) < before / 3
    assert optax.tree.get(optimizer.opt_state, "smooth_gradients_step") == 30
