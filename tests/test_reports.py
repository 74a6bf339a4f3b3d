"""Noise that follows the gap: its images, its reports and its plan."""

import dataclasses
import math
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from smoothout_jax import (
    heldout_gap,
    init_loss_rise,
    smoothout_metrics,
    smoothout_report,
)
from smoothout_jax.experiments.commands.compare import CompareSettings, compare
from smoothout_jax.experiments.commands.train import TrainSettings
from smoothout_jax.experiments.commands.trials import case_settings
from smoothout_jax.experiments.data.datasets import whole
from smoothout_jax.experiments.methods.table import METHODS
from smoothout_jax.experiments.plans import EXPERIMENTS
from smoothout_jax.experiments.reporting import figures
from smoothout_jax.experiments.training.comparison import train_in_turns
from smoothout_jax.experiments.training.task import Task
from smoothout_jax.experiments.training.trainer import Trainer

# A network with BatchNorm that soon memorises 40 images.
SMALL = {
    "network": "f1",
    "hidden_sizes": (16,),
    "train_size": 60,
    "heldout_size": 20,
    "batch_size": 20,
    "steps": 60,
    "learning_rate": 0.5,
    "loss_rise": "gap",
    "copies": 2,
}

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def task():
    return Task(TrainSettings(**SMALL))


def images(array):
    return {image.tobytes() for image in array}


def test_held_out_images_come_from_the_training_images(task):
    """Together they are the training images of a task that holds none out."""
    plain = dict(SMALL, loss_rise=None, heldout_size=None)
    whole = Task(TrainSettings(**plain)).data
    ours = task.data
    parts = images(ours.train_images), images(ours.heldout.images)
    assert [len(part) for part in parts] == [40, 20]
    assert set.union(*parts) == images(whole.train_images)
    np.testing.assert_array_equal(ours.test_images, whole.test_images)
    assert set(ours.heldout.labels) == set(range(10))
    assert whole.heldout is None


@pytest.mark.parametrize(
    ("changed", "size"),
    [
        ({"train_size": 500}, 50),
        ({"train_size": 405}, 41),
        ({"train_size": 60}, 10),  # one of each class
        ({"train_size": 400, "validation_size": 100}, 30),
    ],
)
def test_a_tenth_is_held_out_by_default(changed, size):
    settings = TrainSettings(**SMALL | {"heldout_size": None} | changed)
    assert len(Task(settings).data.heldout.labels) == size


def test_watched_images_replace_the_held_out_ones(task):
    settings = TrainSettings(**SMALL | {"heldout_size": None, "watch_size": 20})
    watching = Task(settings)
    assert watching.data.heldout is None
    for ours, theirs in zip(watching.arrays["gap"], task.arrays["gap"], strict=True):
        chex.assert_trees_all_equal(ours, theirs)


@pytest.mark.parametrize("method", ["adasmoothout", "adasmoothout-split"])
def test_losses_at_the_clean_parameters_are_reported_every_ten_steps(method, task):
    """For runs with different shares, side by side."""
    shares = 0.3, 0.9
    trainer = Trainer(METHODS[method], task, [0, 0], shares)
    expected = [init_loss_rise(heldout_gap(share)) for share in shares]
    for start in range(0, 60, 10):
        trainer.advance(start, start + 10)
        for run, network in enumerate(trainer.networks()):
            losses = task.evaluate(*network, only=["train", "heldout"])
            expected[run] = smoothout_report(
                expected[run],
                train_loss=losses["train loss"],
                heldout_loss=losses["heldout loss"],
                chance_loss=math.log(10),
            )
        found = trainer.noise()
        metrics = [smoothout_metrics(each) for each in expected]
        for name in ("loss_gap", "loss_rise_target"):
            wanted = [float(each[name]) for each in metrics]
            np.testing.assert_allclose(getattr(found, name), wanted, rtol=1e-4)
    assert (found.loss_rise_target > 0.05).all()
    assert (found.radius > 0.05).all()


def test_reports_do_not_depend_on_how_training_is_divided(task):
    divided, whole = (Trainer(METHODS["adasmoothout"], task, [0]) for _ in range(2))
    for start, stop in ((0, 7), (7, 14), (14, 21)):
        divided.advance(start, stop)
    whole.advance(0, 21)
    chex.assert_trees_all_close(divided.state, whole.state, rtol=1e-4, atol=1e-5)
    assert whole.noise().loss_gap[0] != 0


def test_runs_side_by_side_measure_no_losses_between_reports(task):
    """`vmap` does not turn the condition into a selection."""
    trainer = Trainer(METHODS["adasmoothout"], task, [0, 1])
    program = jax.vmap(trainer._step.train, (0, None, None))
    traced = str(jax.make_jaxpr(program)(trainer.state, np.arange(3), task.arrays))
    assert "cond[" in traced


def test_the_first_report_waits_for_a_whole_epoch(task):
    settings = TrainSettings(**SMALL | {"batch_size": 3})
    trainer = Trainer(METHODS["adasmoothout"], Task(settings, data=task.data), [0])
    trainer.advance(0, 12)
    assert trainer.noise().loss_gap[0] == 0
    trainer.advance(12, 13)
    assert trainer.noise().loss_gap[0] > 0


def test_methods_without_the_gap_record_no_noise(task):
    methods = "sgd", "adasmoothout", "adasmoothout-fixed"
    found = train_in_turns(
        {name: Trainer(METHODS[name], task, [0, 1], steps=20) for name in methods}
    )
    assert list(found["sgd"].noise) == list(found["adasmoothout-fixed"].noise) == []
    noise = found["adasmoothout"].noise
    assert list(noise) == ["radius", "loss_rise", "loss_rise_target", "loss_gap"]
    assert {each.shape for each in noise.values()} == {(2, 20)}
    at_end = found["adasmoothout"].noise_at_end
    assert at_end["loss_gap"] == pytest.approx(noise["loss_gap"][:, -1].mean())


def test_the_gap_has_a_panel_of_its_own_and_the_target_a_dashed_line():
    steps, runs = np.arange(3), np.array([[1.0, 2.0, 3.0]])
    plain = {"radius": runs, "loss_rise": runs}
    gap = plain | {"loss_rise_target": 2 * runs, "loss_gap": 4 * runs}
    drawn = {"adasmoothout": (steps, gap), "lpf-sgd": (steps, plain)}
    size, rise, last = figures.noises(drawn, "").axes
    assert last.get_ylabel() == "loss gap (nats)"
    np.testing.assert_array_equal(last.lines[0].get_ydata(), 4 * runs[0])
    dashed = [line for line in rise.lines if line.get_linestyle() == "--"]
    np.testing.assert_array_equal(dashed[0].get_ydata(), 2 * runs[0])
    assert len(size.lines) == 2
    drawn.pop("adasmoothout")
    assert len(figures.noises(drawn, "").axes) == 2


def test_the_plan_repeats_the_questions_with_another_rise():
    ours = EXPERIMENTS["gap"]["cpu"]
    asked = [*EXPERIMENTS["batches"]["cpu"], *EXPERIMENTS["wrong-labels"]["cpu"]]
    assert [case.name for case in ours] == [case.name for case in asked]
    for found, case in zip(ours, asked, strict=True):
        assert found.methods == ("sgd", "adasmoothout")
        for name in ("seeds", "trial_seeds", "trials", "holds_rise"):
            assert getattr(found, name) == getattr(case, name)
        held, final = (
            case_settings(found, Path(), held_out=each) for each in (True, False)
        )
        assert held.validation_size == case.validation_size
        size = None if final.watch_size else final.train_size // 10
        full = final.train_size - (size or 0)
        assert final == dataclasses.replace(
            case_settings(case, Path(), held_out=False),
            methods=found.methods,
            batch_size=case.batch_size or full,
            heldout_size=size,
            retrain=not final.watch_size,
            loss_rise="gap",
            rise_epochs=TrainSettings.rise_epochs,
        )


def test_retraining_on_all_images_repeats_the_recorded_rise(tmp_path):
    settings = CompareSettings(
        **SMALL, retrain=True, seeds=2, methods=("adasmoothout",), output=tmp_path
    )
    assert len(whole(settings).train_images) == settings.train_size
    again = compare(settings, curves=False).training["adasmoothout"]
    first = Trainer(METHODS["adasmoothout"], Task(settings), settings.all_seeds)
    recorded = train_in_turns({"first": first})["first"].noise["loss_rise_target"]
    assert recorded.max() > 0
    repeated = again.noise["loss_rise_target"]
    np.testing.assert_allclose(repeated, recorded, rtol=1e-4, atol=1e-6)
    assert "loss_gap" not in again.noise
