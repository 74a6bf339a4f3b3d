"""Steps that are taken one by one, as of convolutional networks on CPU."""

import jax
import numpy as np
import pytest

from smoothout_jax.experiments.commands.train import TrainSettings
from smoothout_jax.experiments.methods.table import METHODS
from smoothout_jax.experiments.training import trainer
from smoothout_jax.experiments.training.task import Task

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.mark.parametrize("method", ["sgd", "adasmoothout"])
def test_steps_one_by_one_are_those_of_the_loop(method, monkeypatch):
    settings = TrainSettings(
        network="cnet", width=2, train_size=60, batch_size=15, loss_rise="gap"
    )
    task, states = Task(settings), []
    for backend in ("cpu", "gpu"):
        monkeypatch.setattr(trainer.jax, "default_backend", lambda name=backend: name)
        runs = trainer.Trainer(METHODS[method], task, (0, 1))
        assert runs._loops == (backend == "gpu")
        metrics = [runs.advance(start, start + 6)[0] for start in (0, 6)]
        assert metrics[0].loss.shape == (2, 6)
        states.append((runs.state.trees(), metrics))
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=2e-3, atol=1e-5),
        *states,
    )
