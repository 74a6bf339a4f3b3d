"""The published setting for one GPU: its network, its precision and its plan."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from smoothout_jax.experiments.commands import trials
from smoothout_jax.experiments.commands.compare import CompareSettings
from smoothout_jax.experiments.commands.trials import case_settings, try_strengths
from smoothout_jax.experiments.models import MODELS
from smoothout_jax.experiments.plans import EXPERIMENTS
from smoothout_jax.experiments.training.task import Task

pytestmark = pytest.mark.usefixtures("standard_promotion")


def test_the_network_is_resnet_18():
    """It has as many weights as the one that others train on CIFAR-10."""
    (case,) = EXPERIMENTS["lpf-sgd"]["gpu"]
    norm = functools.partial(nn.BatchNorm, use_running_average=False)
    settings = CompareSettings(data="mnist1d", network=case.network)
    network = MODELS[case.network].build(settings, 10, norm, lambda x: x)
    images = jnp.zeros((2, 32, 32, 3))
    params = jax.eval_shape(network.init, jax.random.key(0), images)["params"]
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == 11_173_962


@pytest.mark.parametrize("form", ["gpu", "smoke"])
def test_it_has_the_published_regime_and_no_trials(form, tmp_path, monkeypatch):
    (case,) = EXPERIMENTS["lpf-sgd"][form]
    settings = case_settings(case, tmp_path, held_out=False)
    assert (settings.learning_rate, settings.weight_decay) == (0.1, 5e-4)
    assert (settings.schedule, settings.milestones) == ("multistep", (0.5, 0.75))
    assert settings.precision == "bfloat16"
    assert (settings.shift, settings.flip) == (0, False)
    monkeypatch.setattr(trials, "Task", lambda settings, data=None: FakeTask(settings))
    monkeypatch.setattr(
        trials, "Trainer", lambda *_: pytest.fail("a strength was tried")
    )
    found = try_strengths(case, tmp_path, {})
    chosen = {name: trial["chosen"] for name, trial in found.items()}
    assert chosen == {"sgd": 0.1, "adasmoothout": 0.15, "sam": 0.05, "msam": 1.0}


class FakeTask:
    """A task with settings only."""

    data = None

    def __init__(self, settings):
        self.settings = settings


def test_gradients_are_computed_in_half_precision_and_weights_stay_whole():
    losses, grads = {}, {}
    for precision in ("float32", "bfloat16"):
        options = {"train_size": 40, "batch_size": 20, "hidden_sizes": (8,)}
        task = Task(CompareSettings(precision=precision, **options))
        params, stats = task.init(jax.random.key(0))
        batch = task.data.train_images[:20], task.data.train_labels[:20]
        grad = jax.grad(task.loss, has_aux=True)
        text = str(jax.make_jaxpr(grad)(params, stats, *batch))
        assert ("bf16[20,8]" in text) == (precision == "bfloat16")
        grads[precision], _ = grad(params, stats, *batch)
        losses[precision] = task.quantities(params, batch, stats)["loss"]
    for whole, half in zip(*map(jax.tree.leaves, grads.values()), strict=True):
        assert half.dtype == jnp.float32
        assert not np.array_equal(whole, half)
        np.testing.assert_allclose(whole, half, atol=0.02 * np.abs(whole).max())
    assert losses["bfloat16"] == losses["float32"]
