"""Networks for large images: as published, trained a step, and by parts of a batch."""

import re

import jax
import numpy as np
import pytest

from smoothout_jax.experiments.commands.train import TrainSettings
from smoothout_jax.experiments.data.parts import Dataset
from smoothout_jax.experiments.methods.table import METHODS
from smoothout_jax.experiments.options import InputError
from smoothout_jax.experiments.regime import (
    PUBLISHED,
    gradient_rule,
    learning_rate_schedule,
)
from smoothout_jax.experiments.training.task import Task
from smoothout_jax.experiments.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("standard_promotion")


def made(settings, size, classes=1000, number=8):
    """A task on noise of a size."""
    images = np.random.default_rng(0).integers(
        0, 256, (number, size, size, 3), np.uint8
    )
    labels = np.arange(number, dtype=np.int32) % classes
    labels[-1] = classes - 1
    scaling = np.full(3, 128, np.float32), np.full(3, 60, np.float32)
    data = Dataset(images, labels, images, labels, labels, scaling=scaling)
    return Task(settings, data=data)


@pytest.mark.parametrize(
    ("network", "parameters"),
    [("alexnet", 61_100_840), ("resnet18", 11_689_512), ("resnet50", 25_557_032)],
)
def test_networks_have_as_many_parameters_as_published(network, parameters):
    task = made(TrainSettings(network=network, batch_size=4), 224)
    params, _ = jax.eval_shape(task.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters


@pytest.mark.slow
@pytest.mark.parametrize("method", ["smoothout", "adasmoothout"])
@pytest.mark.parametrize("network", ["alexnet", "resnet18", "resnet50"])
def test_networks_take_a_step(network, method):
    width = {"alexnet": 4, "resnet18": 4, "resnet50": 2}[network]
    given = PUBLISHED[network] | {"width": width, "batch_size": 4}
    task = made(TrainSettings(**given, method=method), 96, classes=3)
    trainer = Trainer(METHODS[method], task, (0,))
    metrics, _ = trainer.advance(0, 2)
    assert np.isfinite(metrics.loss).all()
    cost = trainer.cost(range(2, 4))
    assert re.fullmatch(r"\S+ M parameters, \S+ GFLOP a step, \S+ MB of memory", cost)


def test_small_images_are_not_for_alexnet():
    with pytest.raises(InputError, match="at least 63 pixels on each side"):
        made(TrainSettings(network="alexnet", batch_size=4), 62)


@pytest.mark.parametrize("method", ["sgd", "adasmoothout", "sam"])
def test_gradients_of_parts_are_those_of_the_batch(method):
    states = []
    for parts in (1, 4):
        settings = TrainSettings(
            method=method, hidden_sizes=(8,), batch_size=8, accumulate=parts
        )
        trainer = Trainer(METHODS[method], made(settings, 6, 3, 24), (0,))
        trainer.advance(0, 5)
        states.append(trainer.state.params)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6),
        *states,
    )


def test_the_cost_of_a_step_counts_every_part():
    flops = []
    for parts in (1, 8):
        settings = TrainSettings(method="sgd", batch_size=256, accumulate=parts)
        trainer = Trainer(METHODS["sgd"], made(settings, 6, 3, 256), (0,))
        flops.append(float(trainer.cost(range(1)).split()[3]))
    assert flops[1] == pytest.approx(flops[0], rel=0.15)


def test_the_regime_of_residual_networks_is_that_of_the_papers():
    """Linear scaling and warm-up; decay in kernels alone."""
    settings = TrainSettings(
        **PUBLISHED["resnet50"] | {"batch_size": 512}, data="cifar10"
    )
    rate = learning_rate_schedule(settings, settings.peak_learning_rate, 9000)
    steps = np.array([0, 250, 499, 2999, 3000, 6000, 8999])
    expected = 0.2 * np.array([1 / 500, 251 / 500, 1, 1, 0.1, 0.01, 0.001])
    np.testing.assert_allclose([rate(step) for step in steps], expected, rtol=1e-5)
    params = {"kernel": np.ones((2, 3)), "scale": np.ones(3)}
    rule = gradient_rule(settings)
    zeros = jax.tree.map(np.zeros_like, params)
    decayed, _ = rule.update(zeros, rule.init(params), params)
    np.testing.assert_allclose(decayed["kernel"], 1e-4)
    assert not np.any(decayed["scale"])
