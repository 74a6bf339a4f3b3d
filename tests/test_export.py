"""Training steps lower for GPUs and TPUs, in the branches that those devices take.

`jax.export` lowers for a device that this machine does not have.
"""

import functools

import jax
import jax.export
import jax.numpy as jnp
import optax
import pytest

from smoothout_jax import (
    gaussian,
    init_loss_rise,
    smooth_gradients,
    smoothout,
    smoothout_value_and_grad,
    uniform,
)

PARAMS = {"kernel": jnp.ones((300, 300)), "bias": jnp.ones(300)}
BATCH = jnp.ones((8, 300))
KEY = jax.random.key(0)
NOISES = {
    "uniform": uniform(0.1),
    "32 bits": uniform(0.1, bits=32),
    "relative": uniform(0.1, relative_to="filter"),
    "gaussian": gaussian(0.1),
}


def loss(params, x):
    x = x.astype(params["kernel"].dtype)
    hidden = jnp.tanh(x @ params["kernel"] + params["bias"].reshape(1, -1))
    return jnp.mean(hidden.astype(jnp.float32) ** 2)


def copies(noise=NOISES["uniform"], **options):
    options = {"num_copies": 4, "batch_argnums": 1} | options
    return smoothout_value_and_grad(loss, noise, **options), (KEY, PARAMS, BATCH)


def wrapped(noise=NOISES["relative"], **options):
    optimizer = smoothout(optax.sgd(0.1, momentum=0.9), noise, key=0, **options)

    def step(params, state, x):
        grads = jax.grad(loss)(params, x)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step, (PARAMS, optimizer.init(PARAMS), BATCH)


def link():
    optimizer = smooth_gradients(NOISES["uniform"], key=0, num_copies=2)

    def step(params, state, x):
        grad_fn = jax.grad(lambda params, copy: loss(params, x))
        return optimizer.update(params, state, params, grad_fn=grad_fn)

    return step, (PARAMS, optimizer.init(PARAMS), BATCH)


def held():
    fn = smoothout_value_and_grad(loss, NOISES["relative"], loss_rise=0.1)
    return fn, (init_loss_rise(), KEY, PARAMS, BATCH)


WAYS = {
    **{
        f"one copy, {name}": functools.partial(copies, noise, num_copies=1)
        for name, noise in NOISES.items()
    },
    **{
        f"split copies, {how}": functools.partial(copies, execution=how)
        for how in ("auto", "vmap", "scan", "unroll")
    },
    "pairs in half precision": functools.partial(
        copies, antithetic=True, compute_dtype=jnp.bfloat16
    ),
    "the rise held": held,
    "smoothout": wrapped,
    "smoothout, the rise held": functools.partial(wrapped, loss_rise=0.1),
    "smoothout, drawn again": functools.partial(
        wrapped, NOISES["uniform"], keep_noise=False
    ),
    "smoothout, four copies": functools.partial(wrapped, num_copies=4),
    "a link of a chain": link,
}


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("way", WAYS)
def test_it_lowers_for_an_accelerator(way, platform, monkeypatch):
    backend = {"cuda": "gpu"}.get(platform, platform)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    fn, arguments = WAYS[way]()
    program = jax.export.export(jax.jit(fn), platforms=[platform])(*arguments)
    assert program.platforms == (platform,)
    text = program.mlir_module()
    assert "optimization_barrier" in text  # the noise is drawn once,
    assert "inlineable" not in text  # and not as on CPU
