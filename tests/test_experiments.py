"""The command `smoothout compare`: what it trains, writes and refuses."""

import csv
import dataclasses
import io
import json
import re
from pathlib import Path

import chex
import jax
import numpy as np
import optax
import pytest
from command_line import untrained
from rich.console import Console
from scipy.stats import ttest_rel

from smoothout_jax import experiments
from smoothout_jax.experiments import commands
from smoothout_jax.experiments.commands.compare import CompareSettings, compare
from smoothout_jax.experiments.commands.train import TrainSettings
from smoothout_jax.experiments.data.batches import batch_indices
from smoothout_jax.experiments.data.datasets import load
from smoothout_jax.experiments.methods.table import METHODS, Context
from smoothout_jax.experiments.options import read_settings
from smoothout_jax.experiments.reporting.comparison import (
    Results,
    summary,
    table,
    write,
)
from smoothout_jax.experiments.reporting.statistics import paired_difference
from smoothout_jax.experiments.training.comparison import Training
from smoothout_jax.experiments.training.task import Task
from smoothout_jax.experiments.training.trainer import Trainer

KEY = jax.random.key(0)
COMPARED = ("sgd", "smoothout", "sam", "adasmoothout-split")

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return CompareSettings(
        methods=COMPARED,
        copies=2,
        seeds=3,
        steps=100,
        batch_size=50,
        train_size=200,
        hidden_sizes=(64,),
        relative_radius=0.2,
        radius=0.02,
        noise_samples=3,
        output=tmp_path_factory.mktemp("results"),
    )


@pytest.fixture(scope="module")
def results(settings):
    return compare(settings)


@pytest.mark.slow
def test_methods_learn_and_are_timed(results, settings):
    assert tuple(results.outcomes) == COMPARED
    for name, outcome in results.outcomes.items():
        assert outcome.test_accuracy.shape == (settings.seeds,)
        assert outcome.test_accuracy.min() > 0.8
        assert len(set(outcome.test_loss.tolist())) == settings.seeds
        assert (results.training[name].seconds > 0).all()
    assert summary(results)["sgd"]["relative_step_time"] == 1.0


def test_a_seed_trains_alike_alone_and_beside_others(results, settings):
    task = Task(settings)
    trainer = Trainer(METHODS["smoothout"], task, [2])
    for start in range(0, settings.steps, 20):
        trainer.advance(start, start + 20)
    again = task.evaluate(*trainer.networks()[0])
    np.testing.assert_allclose(
        again["test loss"], results.outcomes["smoothout"].test_loss[2], rtol=1e-4
    )


def test_strengths_train_side_by_side(settings):
    task = Task(settings)
    method = METHODS["adasmoothout"]
    together = Trainer(method, task, [0, 0], [0.1, 0.4])
    together.advance(0, 5)
    alone = Trainer(
        method, Task(dataclasses.replace(settings, relative_radius=0.4)), [0]
    )
    alone.advance(0, 5)
    weaker, ours = together.networks()
    chex.assert_trees_all_close(ours, alone.networks()[0], rtol=1e-4, atol=1e-6)
    assert optax.tree.norm(optax.tree.sub(ours[0], weaker[0])) > 0.01


@pytest.mark.parametrize(
    ("given", "strength", "rise", "largest"),
    [
        ({}, ("loss_rise", 0.15), True, 1.0),
        ({"loss_rise": 0.1}, ("loss_rise", 0.1), True, 1.0),
        ({"relative_radius": 0.4}, ("relative_radius", 0.4), False, 0.4),
        ({"relative_radius": 0.4, "loss_rise": 0.1}, ("loss_rise", 0.1), True, 0.4),
        ({"radius": 0.4}, ("loss_rise", 0.15), True, 1.0),
        ({"loss_rise": "gap"}, ("gap_share", 0.5), True, 1.0),
        ({"loss_rise": "gap", "gap_share": 1.0}, ("gap_share", 1.0), True, 1.0),
    ],
)
def test_noise_is_held_by_the_rise_unless_its_size_is_given(
    given, strength, rise, largest
):
    settings = CompareSettings(**given)
    for name in ("adasmoothout", "adasmoothout-split", "two-sided", "mix"):
        assert METHODS[name].strength_of(settings) == strength
        assert METHODS[name].holds_rise(settings) is rise
        assert METHODS[name].largest(settings) == largest


def test_noise_is_fixed_where_the_name_says_so():
    settings = CompareSettings(loss_rise=0.1, relative_radius=0.4)
    for name, method in METHODS.items():
        fixed = name.endswith("-fixed") or name in (
            "smoothout-gaussian", "lpf-sgd", "rwp", "no-denoising",
        )  # fmt: skip
        assert method.holds_rise(settings) == (method.noise is not None and not fixed)
    for name in ("lpf-sgd", "rwp"):
        assert METHODS[name].strength_of(settings) == ("std", 0.02)
    assert METHODS["adasmoothout-fixed"].strength_of(settings)[1] == 0.4
    assert METHODS["smoothout-fixed"].strength_of(settings)[1] == 0.1


def test_the_rise_grows_over_epochs_and_by_the_schedule():
    settings = CompareSettings(radius_schedule="cosine", rise_epochs=20)
    context = Context(settings, 1000, METHODS["adasmoothout"], steps_per_epoch=20)
    _, rise = context.noise_and_rise(0.2)
    for step in (0, 100, 400, 1000):
        cosine = (1 + 19 * (1 - np.cos(np.pi * step / 1000)) / 2) / 20
        expected = 0.2 * cosine * min(1, step / 400)
        assert float(rise(step)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("loss_rise", [None, "gap"])
def test_how_strong_noise_was_is_written_and_drawn(loss_rise, settings, tmp_path):
    held = dataclasses.replace(
        settings,
        loss_rise=loss_rise,
        methods=("adasmoothout", "adasmoothout-fixed"),
        relative_radius=None,
        output=tmp_path,
    )
    results = compare(held)
    training = results.training["adasmoothout"]
    radius = training.noise["radius"]
    assert radius.shape == training.noise["loss_rise"].shape == (3, 20)
    assert (radius[:, -1 if loss_rise else 0 :] > 0).all()
    paths = write(results)
    assert tmp_path / "noise.png" in paths
    noise = json.loads((tmp_path / "results.json").read_text())["noise"]
    assert list(noise) == ["adasmoothout"]
    for name, values in training.noise.items():
        assert noise["adasmoothout"][name] == values.tolist()
    (column,) = (each for each in table(results).columns if each.header == "radius")
    cells = list(column.cells)
    assert cells == ["", f"{radius[:, -1].mean():.2g}", ""]


def test_methods_are_compared_at_rates_and_strengths_of_their_own(monkeypatch):
    class TrainingError(Exception):
        """Ends the comparison where training would begin."""

    def fake_trainer(method, task, seeds, strengths, steps):
        found[method.label] = task.settings.learning_rate, strengths, steps

    def fake_training(trainers, kept):
        raise TrainingError

    found = {}
    monkeypatch.setattr(commands.compare, "Trainer", fake_trainer)
    monkeypatch.setattr(commands.compare, "train_in_turns", fake_training)
    chosen = {"methods": ("sam", "msam"), "learning_rate": 0.5, "seeds": 2, "steps": 6}
    with pytest.raises(TrainingError):
        compare(CompareSettings(**chosen), {"sam": 0.7}, {"sam": 0.1})
    assert found == {
        "SGD": (0.5, None, 6),
        "SAM": (0.1, [0.7, 0.7], 6),
        "MSAM": (0.5, None, 6),
    }


def test_the_loss_curve_starts_from_the_trained_network(results):
    for outcome in results.outcomes.values():
        centre = outcome.loss_curve[:, outcome.loss_curve.shape[1] // 2]
        np.testing.assert_allclose(centre, outcome.train_loss, rtol=1e-5)
        assert (outcome.loss_curve[:, 0] > outcome.train_loss).all()


def test_the_split_is_fixed_disjoint_and_stratified():
    data, again = (load("digits", Path(), 500) for _ in range(2))
    assert data.train_images.shape == (500, 8, 8, 1)
    assert data.test_images.shape == (1297, 8, 8, 1)
    np.testing.assert_array_equal(data.train_images, again.train_images)
    train = {image.tobytes() for image in np.asarray(data.train_images)}
    test = {image.tobytes() for image in np.asarray(data.test_images)}
    assert not train & test
    assert np.ptp(np.bincount(data.train_labels)) <= 4
    assert data.train_images.min() == 0
    assert data.train_images.max() == 1


@pytest.mark.parametrize(
    ("images", "size"), [(20, 1), (20, 7), (12, 4), (5, 5), (1, 1)]
)
def test_batches_of_an_epoch_part_the_images(images, size):
    """And are the same wherever one begins."""
    whole = np.asarray(batch_indices(KEY, images, size, start=0, steps=12))
    assert whole.min() >= 0
    assert whole.max() < images
    epoch = images // size
    for first in range(0, 12, epoch):
        shown = whole[first : first + epoch].ravel()
        assert len(set(shown.tolist())) == len(shown)
    starts = np.arange(10)
    parts = jax.vmap(lambda start: batch_indices(KEY, images, size, start, 3))(starts)
    np.testing.assert_array_equal(parts, whole[starts[:, None] + np.arange(3)])


def test_every_epoch_has_an_order_of_its_own():
    batches = batch_indices(KEY, num_examples=12, batch_size=12, start=0, steps=3)
    assert len({tuple(batch.tolist()) for batch in batches}) == 3


@pytest.mark.parametrize(
    "chosen",
    [
        CompareSettings(
            methods=("sam",),
            seeds=3,
            hidden_sizes=(5, 4),
            epochs=0.5,
            milestones=(0.1, 0.7),
            loss_rise="gap",
            flip=True,
        ),
        TrainSettings(
            data="mnist1d",
            optimizer="adam",
            clip_norm=1,
            radius=3,
            loss_rise=0.1,
            evaluate_every=7,
        ),
    ],
)
def test_settings_come_back_from_json(tmp_path, chosen):
    """From a checkpoint, and from the file that a run writes."""
    written = json.dumps(chosen.to_json())
    kind = type(chosen)
    assert kind.from_json(json.loads(written), data_dir=chosen.data_dir) == chosen
    (tmp_path / "settings.json").write_text(written)
    assert kind(**read_settings(tmp_path / "settings.json", kind)) == chosen


def test_the_paired_interval_is_students():
    values, baseline = np.array([3.0, 5.0, 4.5, 6.0]), np.array([2.0, 3.5, 4.0, 4.0])
    mean, low, high = paired_difference(values, baseline)
    interval = ttest_rel(values, baseline).confidence_interval()
    np.testing.assert_allclose(
        (mean, low, high), (1.25, interval.low, interval.high), rtol=1e-12
    )


def test_files_hold_what_was_found(results, settings):
    paths = write(results)
    assert sorted(settings.output.iterdir()) == sorted(paths)
    with (settings.output / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(COMPARED) * settings.seeds
    row = next(r for r in rows if r["method"] == "sam" and r["seed"] == "2")
    assert float(row["loss_rise"]) == results.outcomes["sam"].loss_rise[2]
    document = json.loads((settings.output / "results.json").read_text())
    assert document["settings"]["learning_rate"] == settings.learning_rate
    assert document["versions"]["jax"] == jax.__version__
    assert document["seeds"] == [0, 1, 2]
    assert document["machine"]["cores"] > 0
    assert document["outcomes"]["sgd"]["test_accuracy"] == pytest.approx(
        results.outcomes["sgd"].test_accuracy.tolist()
    )
    for name in ("accuracy.png", "landscape.png"):
        assert (settings.output / name).read_bytes().startswith(b"\x89PNG")


def test_every_method_has_a_label_and_a_colour_of_its_own():
    assert len({method.color for method in METHODS.values()}) == len(METHODS)
    assert len({method.label for method in METHODS.values()}) == len(METHODS)


def test_the_table_fits_a_terminal_of_80_columns(results):
    """The longest name among them."""
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table(results))
    text = console.export_text()
    assert "…" not in text
    for name, outcome in results.outcomes.items():
        label = METHODS[name].label
        (line,) = [
            line for line in text.splitlines() if re.match(rf"{label} +\d", line)
        ]
        mean = 100 * outcome.test_accuracy.mean()
        assert f"{mean:.2f}" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--methods sgd adam", "methods must be one of 'sgd', 'smoothout', 'adasmooth"),
        (
            "--methods smoothout-split --copies 3",
            "batch_size=100 does not divide into the 3 parts",
        ),
        ("--seeds 1", "seeds must be at least 2"),
        ("--steps 0", "steps must be at least 1, got 0"),
        ("--batch-size 501", "batch_size=501 is larger than train_size=500"),
        ("--train-size 1797", "train_size=1797 is more than the 1787 images that dig"),
        ("--train-size 9 --batch-size 5", "train_size must be at least 10"),
        ("--validation-size 495", "validation_size=495 must leave at least 10"),
        ("--steps 5 --epochs 1", "steps=5 and epochs=1.0 exclude each other"),
        ("--epochs nan", "epochs must be finite and above 0, got nan"),
        ("--milestones 0.5 1", "milestones must be in [0, 1), got 1.0"),
        ("--momentum 1.5", "momentum must be in [0, 1), got 1.5"),
        ("--learning-rate 0", "learning_rate must be finite and above 0, got 0.0"),
        ("--output=", "a path must not be empty"),
        ("--shift -1", "shift must be at least 0, got -1"),
        ("--depth 20", "depth does not apply to mlp: give hidden_sizes"),
        ("--network cnet --hidden-sizes 5", "hidden_sizes does not apply to cnet"),
        ("--hidden-sizes 10 0", "hidden_sizes must be at least 1"),
        ("--radius -0.1", "radius must be finite and at least 0, got -0.1"),
        ("--noise-samples 0", "noise_samples must be at least 1"),
        ("--output /dev/null/results", "cannot write to /dev/null/results"),
    ],
)
def test_bad_options_are_refused_before_training(options, message, monkeypatch, capsys):
    assert message in untrained(monkeypatch, capsys, "compare", *options.split())


def test_every_command_is_in_the_lists_of_commands():
    page = (Path(__file__).parents[1] / "docs" / "command.md").read_text()
    for name in commands.COMMANDS:
        assert f"smoothout {name} " in experiments.__doc__
        assert f"{{command-options}} {name}\n" in page


def test_relative_time_compares_rounds_of_one_load(settings, results):
    seconds = {"sgd": np.array([1.0, 5.0, 2.0]), "sam": np.array([2.0, 10.0, 4.2])}
    training = {
        name: Training(each, np.arange(3), noise={}) for name, each in seconds.items()
    }
    outcomes = {name: results.outcomes[name] for name in seconds}
    found = summary(Results(settings, {}, outcomes, training))
    assert found["sam"]["relative_step_time"] == 2.0
