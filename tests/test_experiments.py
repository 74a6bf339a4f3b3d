"""The command `smoothout compare`: what it trains and writes."""

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
from rich.console import Console
from scipy.stats import ttest_rel

from smoothout_jax import experiments
from smoothout_jax.experiments import cli, commands
from smoothout_jax.experiments.commands.compare import CompareSettings, compare
from smoothout_jax.experiments.commands.train import TrainSettings
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


def test_a_seed_gives_the_same_network_alone_and_beside_others(results, settings):
    task = Task(settings)
    trainer = Trainer(METHODS["smoothout"], task, [2])
    for start in range(0, settings.steps, 20):
        trainer.advance(start, start + 20)
    again = task.evaluate(*trainer.networks()[0])
    np.testing.assert_allclose(
        again["test loss"], results.outcomes["smoothout"].test_loss[2], rtol=1e-4
    )


def test_strengths_train_side_by_side(settings):
    settings = dataclasses.replace(settings, relative_radius=0.2)
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
    ("given", "strength", "largest"),
    [
        ({}, ("loss_rise", 0.15), 1.0),
        ({"loss_rise": 0.1}, ("loss_rise", 0.1), 1.0),
        ({"relative_radius": 0.4}, ("relative_radius", 0.4), 0.4),
        ({"relative_radius": 0.4, "loss_rise": 0.1}, ("loss_rise", 0.1), 0.4),
        ({"radius": 0.4}, ("loss_rise", 0.15), 1.0),
        ({"loss_rise": "gap"}, ("gap_share", 0.5), 1.0),
        ({"loss_rise": "gap", "gap_share": 1.0}, ("gap_share", 1.0), 1.0),
    ],
)
def test_the_loss_rise_sets_the_noise_unless_its_size_is_given(
    given, strength, largest
):
    settings = CompareSettings(**given)
    for name in ("adasmoothout", "adasmoothout-split", "two-sided", "mix"):
        method = METHODS[name]
        assert method.strength_of(settings) == strength
        assert method.holds_rise(settings) == (strength[0] != "relative_radius")
        assert method.largest(settings) == largest


def test_fixed_methods_have_noise_of_fixed_size():
    settings = CompareSettings(loss_rise=0.1, relative_radius=0.4)
    fixed = {
        "smoothout-fixed": ("radius", 0.1),
        "adasmoothout-fixed": ("relative_radius", 0.4),
        "smoothout-gaussian": ("radius", 0.1),
        "no-denoising": ("radius", 0.1),
        "lpf-sgd": ("std", 0.02),
        "rwp": ("std", 0.02),
    }
    for name, method in METHODS.items():
        holds = method.noise is not None and name not in fixed
        assert method.holds_rise(settings) == holds
        if name in fixed:
            assert method.strength_of(settings) == fixed[name]


def test_the_rise_grows_over_epochs_and_by_the_schedule():
    settings = CompareSettings(radius_schedule="cosine", rise_epochs=20)
    context = Context(settings, 1000, METHODS["adasmoothout"], steps_per_epoch=20)
    _, rise = context.noise_and_rise(0.2)
    for step in (0, 100, 400, 1000):
        cosine = (1 + 19 * (1 - np.cos(np.pi * step / 1000)) / 2) / 20
        expected = 0.2 * cosine * min(1, step / 400)
        assert float(rise(step)) == pytest.approx(expected, rel=1e-5)


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
    settings = CompareSettings(**chosen, equal_gradients=True)
    with pytest.raises(TrainingError):
        compare(settings, {"sam": 0.7}, {"sam": 0.1})
    assert found == {
        "SGD": (0.5, None, 6),
        "SAM": (0.1, [0.7, 0.7], 3),
        "MSAM": (0.5, None, 6),
    }


def test_the_loss_curve_starts_from_the_trained_network(results):
    for outcome in results.outcomes.values():
        centre = outcome.loss_curve[:, outcome.loss_curve.shape[1] // 2]
        np.testing.assert_allclose(centre, outcome.train_loss, rtol=1e-5)
        assert (outcome.loss_curve[:, 0] > outcome.train_loss).all()


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


def test_the_files_contain_the_results(results, settings):
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
    for name in ("accuracy.png", "landscape.png", "noise.png"):
        assert (settings.output / name).read_bytes().startswith(b"\x89PNG")
    (held,) = document["noise"]  # the size of the other noise is fixed
    noise = results.training[held].noise
    assert noise["radius"].shape == noise["loss_rise"].shape == (3, 20)
    assert (noise["radius"] > 0).all()
    for name, values in noise.items():
        assert document["noise"][held][name] == values.tolist()
    (column,) = (each for each in table(results).columns if each.header == "radius")
    assert list(column.cells) == [*[""] * 3, f"{noise['radius'][:, -1].mean():.2g}"]


def test_every_method_has_a_label_and_a_colour_of_its_own():
    assert len({method.color for method in METHODS.values()}) == len(METHODS)
    assert len({method.label for method in METHODS.values()}) == len(METHODS)


def test_the_table_fits_a_terminal_of_80_columns(results):
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


def test_every_command_is_in_the_lists_of_commands():
    page = (Path(__file__).parents[1] / "docs" / "command.md").read_text()
    for name in commands.COMMANDS:
        assert f"smoothout {name} " in experiments.__doc__
        assert f"{{command-options}} {name}\n" in page


def test_help_names_every_setting_and_its_default(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["compare", "--help-all"])
    shown = capsys.readouterr().out
    for option in ("--seeds", "--batch-size", "--relative-radius", "--output"):
        assert option in shown
    assert "(default: 0.3)" in shown


def test_relative_time_compares_rounds_of_one_load(settings, results):
    seconds = {"sgd": np.array([1.0, 5.0, 2.0]), "sam": np.array([2.0, 10.0, 4.2])}
    training = {
        name: Training(each, np.arange(3), noise={}) for name, each in seconds.items()
    }
    outcomes = {name: results.outcomes[name] for name in seconds}
    found = summary(Results(settings, {}, outcomes, training))
    assert found["sam"]["relative_step_time"] == 2.0
