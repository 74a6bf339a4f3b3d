"""Every method of the experiments, against its steps written out by hand."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from smoothout_jax import gaussian, uniform
from smoothout_jax.experiments.commands.train import TrainSettings
from smoothout_jax.experiments.data.batches import batch_indices
from smoothout_jax.experiments.methods.table import METHODS, Context
from smoothout_jax.experiments.training.task import Task
from smoothout_jax.experiments.training.trainer import Trainer

SEED, STEPS, TOTAL = 3, 3, 4
AVERAGING = 0.99  # the default
RATE, MOMENTUM, DECAY = 0.2, 0.8, 0.05
RADIUS, RELATIVE, STD, RHO, MSAM_RHO, COPIES = 0.1, 0.3, 0.04, 0.5, 0.7, 2


@pytest.fixture(autouse=True, scope="module")
def standard_promotion():
    """Optax's cosine schedule compares the int32 step with a Python float."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def task():
    """A network with BatchNorm, so that it matters how a batch is divided."""
    return Task(
        TrainSettings(
            network="f1",
            hidden_sizes=(8,),
            train_size=40,
            batch_size=20,
            steps=TOTAL,
            learning_rate=RATE,
            momentum=MOMENTUM,
            weight_decay=DECAY,
            radius=RADIUS,
            relative_radius=RELATIVE,
            radius_schedule="cosine",
            std=STD,
            rho=RHO,
            msam_rho=MSAM_RHO,
            copies=COPIES,
        )
    )


@pytest.fixture(scope="module")
def gradient(task):
    """The gradient of the loss on the given rows."""
    images, labels = task.arrays["train"]
    stats = task.init(jax.random.key(0))[1]

    @jax.jit
    def of_rows(params, rows):
        return jax.grad(lambda p: task.loss(p, stats, images[rows], labels[rows])[0])(
            params
        )

    return of_rows


def add(params, noise, factor=1.0):
    return jax.tree.map(lambda p, n: p + factor * n, params, noise)


def rising(end, step):
    """From a twentieth to the full value, along half a cosine."""
    return end / 20 * (1 + 19 * (1 - np.cos(np.pi * step / TOTAL)) / 2)


def draw(law, key, params, scaled, but_for=()):
    """Unit noise scaled leaf by leaf, except in the layers named."""
    layers = {n: p for n, p in params["params"].items() if not n.startswith(but_for)}
    noise = jax.tree.map(scaled, layers, law(1.0)(key, layers))
    silent = jax.tree.map(jnp.zeros_like, params["params"])
    return {"params": silent | noise}


def norm(leaf):
    """The norm of each filter: all weights with the same last index."""
    return jnp.sqrt(jnp.sum(leaf**2, axis=tuple(range(leaf.ndim - 1)), keepdims=True))


def box(key, params, step):
    radius = rising(RADIUS, step)
    return draw(uniform, key, params, lambda w, u: radius * u, "BatchNorm")


def filters(key, params, step):
    radius = rising(RELATIVE, step)

    def scaled(w, u):
        return radius * norm(w) * u / norm(u)

    return draw(uniform, key, params, scaled, "BatchNorm")


def normal(key, params, step):
    """With the variance of the uniform noise."""
    std = rising(RADIUS, step) / np.sqrt(3)
    return draw(gaussian, key, params, lambda w, z: std * z, "BatchNorm")


def low_pass(key, params, step):
    """In BatchNorm too; a leaf of one axis counts as one filter."""
    std = rising(STD, step)

    def scaled(w, z):
        return std * (norm(w) if w.ndim > 1 else jnp.linalg.norm(w)) * z

    return draw(gaussian, key, params, scaled, ())


def silence(key, params, step):
    return jax.tree.map(jnp.zeros_like, params)


def once(law):
    """One copy, perturbed after each update, so not before the first."""

    def copies(key, params, step, **_):
        noise = law(jax.random.fold_in(key, step), params, step)
        return [(1, noise if step else silence(key, params, step), slice(None))]

    return copies


def split(law):
    def copies(key, params, step, **_):
        keys = jax.random.split(jax.random.fold_in(key, step), COPIES)
        return [
            (1 / COPIES, law(each, params, step), slice(part, None, COPIES))
            for part, each in enumerate(keys)
        ]

    return copies


def mix(law):
    def copies(key, params, step, **_):
        noisy, _ = jax.random.split(jax.random.fold_in(key, step))
        return [
            (0.5, law(noisy, params, step), slice(0, None, 2)),
            (0.5, silence(key, params, step), slice(1, None, 2)),
        ]

    return copies


def two_sided(key, params, step, **_):
    first, _ = jax.random.split(jax.random.fold_in(key, step))
    noise = filters(first, params, step)
    opposite = jax.tree.map(jnp.negative, noise)
    return [(0.5, each, slice(None)) for each in (noise, opposite)]


def ahead(params, tree, length):
    """A step of that length along a tree; none if the tree is zero."""
    size = optax.tree.norm(tree)
    return jax.tree.map(lambda leaf: length * leaf / size if size else leaf, tree)


def sam(key, params, step, gradient, rows, **_):
    return [(1, ahead(params, gradient(params, rows), RHO), slice(None))]


def msam(key, params, step, velocity, **_):
    return [(1, ahead(params, velocity, -MSAM_RHO), slice(None))]


BY_HAND = {
    "sgd": once(silence),
    "smoothout": once(box),
    "adasmoothout": once(filters),
    "smoothout-fixed": once(box),
    "adasmoothout-fixed": once(filters),
    "sam": sam,
    "msam": msam,
    "smoothout-split": split(box),
    "adasmoothout-split": split(filters),
    "two-sided": two_sided,
    "mix": mix(filters),
    "lpf-sgd": split(low_pass),
    "rwp": mix(low_pass),
    "smoothout-gaussian": once(normal),
    "ema": once(silence),
    "nesterov": once(silence),
    "no-denoising": once(silence),
}


def by_hand(name, task, gradient):
    """The clean parameters after `STEPS` steps of momentum SGD."""
    params_key, key, batch_key = jax.random.split(jax.random.key(SEED), 3)
    params, _ = task.init(params_key)
    velocity = mean = jax.tree.map(jnp.zeros_like, params)
    for step, rows in enumerate(batch_indices(batch_key, 40, 20, 0, STEPS)):
        copies = BY_HAND[name](
            key, params, step, gradient=gradient, rows=rows, velocity=velocity
        )
        decayed = add(params, copies[0][1]) if name == "msam" else params
        before = velocity
        velocity = jax.tree.map(
            lambda v, p: MOMENTUM * v + DECAY * p, velocity, decayed
        )
        for weight, noise, part in copies:
            velocity = add(velocity, gradient(add(params, noise), rows[part]), weight)
        rate = RATE * (1 + np.cos(np.pi * step / TOTAL)) / 2
        direction = velocity
        if name == "nesterov":  # the gradient, and the velocity after it
            direction = add(add(velocity, before, -MOMENTUM), velocity, MOMENTUM)
        params = add(params, direction, -rate)
        mean = jax.tree.map(lambda m, p: AVERAGING * m + p, mean, params)
        if name == "no-denoising":
            params = add(params, box(jax.random.fold_in(key, step), params, step))
    if name == "ema":
        weight = sum(AVERAGING**step for step in range(STEPS))
        return jax.tree.map(lambda m: m / weight, mean)
    return params


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_matches_its_definition(name, task, gradient):
    trainer = Trainer(METHODS[name], task, [SEED])
    trainer.advance(0, STEPS)
    ((evaluated, _),) = trainer.networks()
    expected = by_hand(name, task, gradient)
    chex.assert_trees_all_close(evaluated, expected, rtol=1e-4, atol=1e-5)


def msam_of_adamw(p, gradient, rate, decay, rho, steps):
    """The authors' AdamW_MSAM, which decays the clean weights.

    Theirs decays after the step, like their AdamW; this one before it, like Optax's.
    """
    m, s, factor = np.zeros_like(p), np.zeros_like(p), 0.0
    for step in range(1, steps + 1):
        g = gradient(p)
        clean = p + factor * m
        m = 0.9 * m + 0.1 * g
        s = 0.999 * s + 0.001 * g**2
        root = np.sqrt(s) / np.sqrt(1 - 0.999**step) + 1e-8
        clean = (1 - rate * decay) * clean - rate / (1 - 0.9**step) * m / root
        factor = rho / np.linalg.norm(m)
        p = clean - factor * m
        yield p, clean


def test_msam_on_adamw_matches_its_authors_program():
    """Over several leaves, in double precision."""
    settings = TrainSettings(
        optimizer="adamw",
        learning_rate=0.1,
        weight_decay=0.3,
        msam_rho=0.4,
        schedule="constant",
    )

    def gradient(p):
        return np.array([3.0, 1.0, 0.5]) * p + np.sin(p)

    start, steps = np.array([1.0, -2.0, 0.5]), 6
    with jax.enable_x64(True):
        method = METHODS["msam"]
        context = Context(settings, steps, method)
        transformation = method.transform(context, settings.msam_rho, None)
        held = {"a": jnp.asarray(start[:2]), "b": jnp.asarray(start[2:])}
        state = transformation.init(held)
        for perturbed, clean in msam_of_adamw(start, gradient, 0.1, 0.3, 0.4, steps):
            grads = gradient(np.concatenate([held["a"], held["b"]]))
            grads = {"a": jnp.asarray(grads[:2]), "b": jnp.asarray(grads[2:])}
            updates, state = transformation.update(grads, state, held)
            held = optax.apply_updates(held, updates)
            for tree, values in (
                (held, perturbed),
                (method.eval_params(state, held), clean),
            ):
                found = np.concatenate([tree["a"], tree["b"]])
                np.testing.assert_allclose(found, values, rtol=1e-12)


def test_nesterov_on_adam_is_nadam():
    settings = TrainSettings(optimizer="adam", learning_rate=0.1, steps=4)
    method = METHODS["nesterov"]
    ours = method.transform(Context(settings, 4, method), 0.7, None)
    theirs = optax.nadam(optax.cosine_decay_schedule(0.1, 4), b1=0.7)
    found = []
    for transformation in (ours, theirs):
        params = {"w": jnp.array([1.0, -2.0, 0.5])}
        state = transformation.init(params)
        for _ in range(3):
            grads = jax.tree.map(lambda w: 3 * w + jnp.sin(w), params)
            updates, state = transformation.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        found.append(params)
    chex.assert_trees_all_close(*found, rtol=1e-6)
