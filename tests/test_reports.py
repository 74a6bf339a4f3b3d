"""Noise of the command that follows the gap: its images, reports, logs and plan."""

import csv
import dataclasses
import json
import math
import shutil
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from command_line import untrained

from smoothout_jax import (
    heldout_gap,
    init_loss_rise,
    smoothout_metrics,
    smoothout_report,
)
from smoothout_jax.experiments import cli
from smoothout_jax.experiments.commands.compare import CompareSettings, compare
from smoothout_jax.experiments.commands.train import TrainSettings
from smoothout_jax.experiments.commands.trials import case_settings
from smoothout_jax.experiments.data.datasets import whole
from smoothout_jax.experiments.methods.table import METHODS
from smoothout_jax.experiments.options import read_settings
from smoothout_jax.experiments.plans import EXPERIMENTS
from smoothout_jax.experiments.reporting import figures
from smoothout_jax.experiments.training.comparison import train_in_turns
from smoothout_jax.experiments.training.task import Task
from smoothout_jax.experiments.training.trainer import Trainer

# A network with BatchNorm that soon learns 40 images by heart.
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


def test_held_out_images_leave_the_training_images_alone(task):
    """The training images are those of a task that holds none out, less these."""
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


def test_watched_images_serve(task):
    settings = TrainSettings(**SMALL | {"heldout_size": None, "watch_size": 20})
    watching = Task(settings)
    assert watching.data.heldout is None
    for ours, theirs in zip(watching.arrays["gap"], task.arrays["gap"], strict=True):
        chex.assert_trees_all_equal(ours, theirs)


@pytest.mark.parametrize("method", ["adasmoothout", "adasmoothout-split"])
def test_losses_at_the_clean_parameters_are_reported_every_ten_steps(method, task):
    """Of runs with several shares, side by side; between reports nothing changes."""
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
        told = trainer.noise()
        metrics = [smoothout_metrics(each) for each in expected]
        for name in ("loss_gap", "loss_rise_target"):
            wanted = [float(each[name]) for each in metrics]
            np.testing.assert_allclose(getattr(told, name), wanted, rtol=1e-4)
    assert (told.loss_rise_target > 0.05).all()
    assert (told.radius > 0.05).all()


@pytest.mark.parametrize("network", ["f1", "cnet"])
def test_reports_do_not_depend_on_how_training_is_divided(network, task):
    if network == "cnet":
        changed = {"network": network, "hidden_sizes": (), "width": 2}
        task = Task(TrainSettings(**SMALL | changed), data=task.data)
    divided, whole = (Trainer(METHODS["adasmoothout"], task, [0]) for _ in range(2))
    for start, stop in ((0, 7), (7, 14), (14, 21)):
        divided.advance(start, stop)
    whole.advance(0, 21)
    chex.assert_trees_all_close(divided.state, whole.state, rtol=1e-4, atol=1e-5)
    assert whole.noise().loss_gap[0] != 0


def test_runs_side_by_side_measure_no_losses_between_reports(task):
    """The condition stays one under `vmap`."""
    trainer = Trainer(METHODS["adasmoothout"], task, [0, 1])
    program = jax.vmap(trainer._train, (0, None, None))
    traced = str(jax.make_jaxpr(program)(trainer.state, np.arange(3), task.arrays))
    assert "cond[" in traced


def test_an_epoch_longer_than_ten_steps_is_waited_for(task):
    settings = TrainSettings(**SMALL | {"batch_size": 3})
    trainer = Trainer(METHODS["adasmoothout"], Task(settings, data=task.data), [0])
    trainer.advance(0, 12)
    assert trainer.noise().loss_gap[0] == 0
    trainer.advance(12, 13)
    assert trainer.noise().loss_gap[0] > 0


def test_methods_without_the_gap_train_beside_it(task):
    methods = "sgd", "adasmoothout", "adasmoothout-fixed"
    told = train_in_turns(
        {name: Trainer(METHODS[name], task, [0, 1], steps=20) for name in methods}
    )
    assert list(told["sgd"].noise) == list(told["adasmoothout-fixed"].noise) == []
    noise = told["adasmoothout"].noise
    assert list(noise) == ["radius", "loss_rise", "loss_rise_target", "loss_gap"]
    assert {each.shape for each in noise.values()} == {(2, 20)}
    at_end = told["adasmoothout"].noise_at_end
    assert at_end["loss_gap"] == pytest.approx(noise["loss_gap"][:, -1].mean())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    output = tmp_path_factory.mktemp("gap")
    path = output / "given.json"
    path.write_text(json.dumps(SMALL | {"steps": 48}))
    options = "--evaluate-every 6 --checkpoint-minutes 0 --keep 3 --settings"
    cli.main(["train", *options.split(), str(path), "--output", str(output)])
    return output


def rows_of(run):
    with (run / "log.csv").open() as file:
        return [{**row, "seconds": None} for row in csv.DictReader(file)]


def test_train_logs_losses_and_gap_and_draws_them(run):
    rows = rows_of(run)
    gaps = [float(row["loss gap"]) for row in rows]
    assert gaps[0] == 0 < gaps[1] == gaps[2] != gaps[3]
    for name in ("heldout loss", "heldout accuracy", "loss rise target", "radius"):
        assert float(rows[-1][name]) > 0
    assert (run / "noise.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_follows_the_gap_goes_on_to_the_same_bits(run, tmp_path):
    half = tmp_path / "half"
    shutil.copytree(run, half)
    for step in (42, 48):  # a report comes after step 40
        shutil.rmtree(half / "checkpoints" / str(step))
    cli.main(["train", "--resume", "--output", str(half)])
    assert rows_of(half) == rows_of(run)
    digests = [
        json.loads((each / "checkpoints/48/about/metadata").read_text())["digests"]
        for each in (half, run)
    ]
    assert digests[0] == digests[1]


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--loss-rise gaps", "argument --loss-rise: must be float or gap, got 'gaps'"),
        ("--loss-rise -1", "loss_rise must be finite and at least 0, got -1"),
        ("--gap-share 0.3", "gap_share=0.3 needs loss_rise=gap"),
        ("--loss-rise gap --gap-share -1", "gap_share must be finite and at least 0"),
        (
            "--loss-rise gap --rise-epochs 3",
            "rise_epochs=3.0 does not apply to loss_rise=gap",
        ),
        (
            "--loss-rise gap --radius-schedule tanh",
            "radius_schedule=tanh does not apply to loss_rise=gap",
        ),
        ("--heldout-size 20", "heldout_size=20 needs loss_rise=gap"),
        (
            "--loss-rise gap --heldout-size 20 --watch-size 30",
            "heldout_size=20 and watch_size=30 exclude each other",
        ),
        (
            "--loss-rise gap --heldout-size 0",
            "heldout_size must be at least 10 with loss_rise=gap",
        ),
        (
            "--loss-rise gap --heldout-size 5",
            "heldout_size=5 must leave at least 10 of 500 training images",
        ),
        (
            "--loss-rise gap --heldout-size 50 --batch-size 451",
            "batch_size=451 is larger than train_size=500 less heldout_size=50",
        ),
    ],
)
def test_bad_values_are_told_by_name(options, message, monkeypatch, capsys):
    assert message in untrained(monkeypatch, capsys, "train", *options.split())


def test_settings_hold_a_number_or_the_word(tmp_path):
    path = tmp_path / "settings.json"
    for value in (0.1, "gap", None):
        path.write_text(json.dumps({"loss_rise": value}))
        assert read_settings(path, TrainSettings) == {"loss_rise": value}
    path.write_text('{"loss_rise": "gaps"}')
    with pytest.raises(ValueError, match="loss_rise must be float or gap, got 'gaps'"):
        read_settings(path, TrainSettings)
    with pytest.raises(ValueError, match="loss_rise must be one of 'gap'; got 'gaps'"):
        TrainSettings(loss_rise="gaps")


def test_the_plan_is_that_of_the_questions_but_for_the_rise():
    ours = {case.name: case for case in EXPERIMENTS["gap"]["cpu"]}
    asked = [*EXPERIMENTS["batches"]["cpu"], *EXPERIMENTS["wrong-labels"]["cpu"]]
    assert list(ours) == [case.name for case in asked]
    for case in asked:
        found = ours[case.name]
        assert found.methods == ("sgd", "adasmoothout")
        same = "data", "batch_size", "seeds", "trial_seeds", "trials", "holds_rise"
        for name in same:
            assert getattr(found, name) == getattr(case, name)
        held, final = (
            case_settings(found, Path(), held_out=each) for each in (True, False)
        )
        assert held.validation_size == case.validation_size
        assert final.loss_rise == "gap"
        assert final.heldout_size == (
            None if final.watch_size else final.train_size // 10
        )
        assert METHODS["adasmoothout"].strength_of(final) == ("gap_share", 0.5)
        full = final.train_size - (final.heldout_size or 0)
        assert final.batch_size == (case.batch_size or full)
        theirs = case_settings(case, Path(), held_out=False)
        assert final == dataclasses.replace(
            theirs,
            methods=found.methods,
            batch_size=final.batch_size,
            heldout_size=final.heldout_size,
            retrain=not final.watch_size,
            loss_rise="gap",
            rise_epochs=TrainSettings.rise_epochs,
        )


def test_a_second_training_on_all_images_has_the_rise_of_the_first(tmp_path):
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


@pytest.mark.parametrize("changed", [{"loss_rise": 0.1}, {"watch_size": 20}])
def test_a_second_training_needs_images_held_out_for_the_gap(changed):
    with pytest.raises(ValueError, match="retrain needs loss_rise=gap"):
        CompareSettings(**SMALL | {"heldout_size": None, "retrain": True} | changed)
