"""The command `smoothout compare`: what it trains, writes and refuses."""

import csv
import dataclasses
import io
import json
from pathlib import Path

import chex
import jax
import numpy as np
import optax
import pytest
from rich.console import Console
from scipy import stats

from smoothout_jax import smoothout_eval_params
from smoothout_jax.experiments import cli, methods, report
from smoothout_jax.experiments.compare import Results, compare
from smoothout_jax.experiments.data import batch_indices, load
from smoothout_jax.experiments.networks import MLP
from smoothout_jax.experiments.settings import METHODS, Settings
from smoothout_jax.experiments.training import Problem, Trainer

TINY = "--seeds 2 --steps 6 --batch-size 25 --train-size 50 --noise-samples 2"


@pytest.fixture(autouse=True, scope="module")
def standard_promotion():
    """Optax's cosine schedule compares the int32 step with a Python float."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return Settings(
        methods=METHODS,
        copies=5,
        seeds=3,
        steps=100,
        batch_size=50,
        train_size=200,
        hidden_sizes=(64,),
        relative_radius=0.2,
        noise_samples=3,
        output=tmp_path_factory.mktemp("results"),
    )


@pytest.fixture(scope="module")
def results(settings):
    return compare(settings)


def test_every_method_learns_and_is_timed(results, settings):
    assert tuple(results.outcomes) == METHODS
    for name, outcome in results.outcomes.items():
        assert outcome.test_accuracy.shape == (settings.seeds,)
        assert outcome.test_accuracy.min() > 0.8
        assert len(set(outcome.test_loss.tolist())) == settings.seeds
        assert (results.seconds[name] > 0).all()
    assert results.relative_time("sgd") == 1.0


def test_the_baseline_is_plain_momentum_sgd(results, settings):
    """Seed 1, trained once more by a loop that knows Optax alone."""
    data = load("digits", settings.data_dir, settings.train_size)
    keys = jax.random.split(jax.random.key(1), 3)
    network = MLP(settings.hidden_sizes)
    params = network.init(keys[0], data.train_images[:1])
    optimizer = optax.sgd(
        optax.cosine_decay_schedule(settings.learning_rate, settings.steps),
        momentum=settings.momentum,
    )

    def loss(params, images, labels):
        logits = network.apply(params, images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    @jax.jit
    def step(params, state, images, labels):
        grads = jax.grad(loss)(params, images, labels)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    batches = batch_indices(
        keys[2], settings.train_size, settings.batch_size, settings.steps
    )
    for batch in batches:
        images, labels = data.train_images[batch], data.train_labels[batch]
        params, state = step(params, state, images, labels)
    np.testing.assert_allclose(
        results.outcomes["sgd"].test_loss[1],
        loss(params, data.test_images, data.test_labels),
        rtol=1e-4,
    )


def test_smoothout_is_evaluated_at_its_clean_parameters(settings):
    trainer = Trainer(methods.METHODS["smoothout"], Problem(settings))
    trainer.advance(0, 3)
    perturbed, state = trainer._state
    chex.assert_trees_all_equal(
        trainer.params(), smoothout_eval_params(state, perturbed)
    )
    distance = optax.tree.max(optax.tree.sub(trainer.params(), perturbed))
    assert 0.9 * settings.radius < distance <= settings.radius


@pytest.mark.parametrize("name", [name for name in METHODS if name != "sam"])
def test_without_noise_every_method_is_sgd(settings, name):
    """And so its copies take each image of the batch once between them."""
    silent = dataclasses.replace(settings, radius=0.0, relative_radius=0.0, std=0.0)
    problem = Problem(silent)
    trainers = [Trainer(methods.METHODS[each], problem) for each in ("sgd", name)]
    for trainer in trainers:
        trainer.advance(0, 2)
    sgd, ours = (trainer.params() for trainer in trainers)
    chex.assert_trees_all_close(ours, sgd, rtol=1e-4, atol=1e-6)
    assert optax.tree.norm(optax.tree.sub(sgd, problem.params)) > 0.1


def test_same_seeds_give_the_same_results(results, settings):
    trainer = Trainer(methods.METHODS["smoothout"], Problem(settings))
    trainer.advance(0, settings.steps)
    again = trainer._problem.evaluate(trainer.params())
    np.testing.assert_allclose(
        again.test_loss, results.outcomes["smoothout"].test_loss, rtol=1e-5
    )


def test_the_loss_curve_starts_from_the_trained_network(results):
    for outcome in results.outcomes.values():
        centre = outcome.loss_curve[:, outcome.loss_curve.shape[1] // 2]
        np.testing.assert_allclose(centre, outcome.train_loss, rtol=1e-5)
        assert (outcome.loss_curve[:, 0] > outcome.train_loss).all()


def test_the_split_is_fixed_disjoint_and_stratified():
    data, again = (load("digits", Path(), 500) for _ in range(2))
    assert data.train_images.shape == (500, 64)
    assert data.test_images.shape == (1297, 64)
    np.testing.assert_array_equal(data.train_images, again.train_images)
    train = {image.tobytes() for image in np.asarray(data.train_images)}
    test = {image.tobytes() for image in np.asarray(data.test_images)}
    assert not train & test
    assert np.ptp(np.bincount(data.train_labels)) <= 4
    assert data.train_images.min() == 0
    assert data.train_images.max() == 1


def test_an_epoch_shows_each_example_once():
    batches = batch_indices(jax.random.key(0), num_examples=12, batch_size=4, steps=5)
    assert batches.shape == (5, 4)
    np.testing.assert_array_equal(np.sort(batches[:3].ravel()), np.arange(12))
    assert not np.array_equal(batches[0], batches[3])
    with_rest = batch_indices(jax.random.key(0), 10, 4, 2)
    assert len(np.unique(with_rest)) == 8


def test_the_paired_interval_is_students():
    values, baseline = np.array([3.0, 5.0, 4.5, 6.0]), np.array([2.0, 3.5, 4.0, 4.0])
    mean, low, high = report.paired_difference(values, baseline)
    interval = stats.ttest_rel(values, baseline).confidence_interval()
    np.testing.assert_allclose(
        (mean, low, high), (1.25, interval.low, interval.high), rtol=1e-12
    )


def test_files_hold_what_was_found(results, settings):
    paths = report.write(results)
    assert sorted(settings.output.iterdir()) == sorted(paths)
    with (settings.output / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(METHODS) * settings.seeds
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


def test_the_table_fits_a_terminal_of_80_columns(results):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(report.table(results))
    text = console.export_text()
    assert "…" not in text
    for label in ("SGD", "SmoothOut", "AdaSmoothOut", "SAM"):
        (line,) = [line for line in text.splitlines() if line.split()[:1] == [label]]
        mean = 100 * results.outcomes[label.lower()].test_accuracy.mean()
        assert f"{mean:.2f}" in line


def test_the_command_runs_the_methods_it_is_told(tmp_path, capsys):
    cli.main(
        ["compare", *TINY.split(), "--methods", "sam", "--output", f"{tmp_path}/new"]
    )
    document = json.loads((tmp_path / "new" / "results.json").read_text())
    assert list(document["outcomes"]) == ["sgd", "sam"]
    assert document["settings"]["steps"] == 6
    assert "SAM" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--methods sgd adam",
            "methods must be one of 'sgd', 'smoothout', 'adasmoothout', 'sam', 'spl",
        ),
        (
            "--methods split --copies 3",
            "batch_size=100 does not divide into the 3 parts",
        ),
        ("--methods mix --batch-size 25", "does not divide into the 2 parts of mix"),
        ("--seeds 1", "seeds must be at least 2"),
        ("--steps 0", "steps must be at least 1, got 0"),
        ("--batch-size 501", "batch_size=501 is larger than train_size=500"),
        (
            "--train-size 1797",
            "train_size=1797 is more than the 1787 images that digits",
        ),
        ("--train-size 9 --batch-size 5", "train_size must be at least 10"),
        ("--hidden-sizes 10 0", "hidden_sizes must be at least 1"),
        ("--radius -0.1", "radius must be finite and at least 0, got -0.1"),
        ("--rho nan", "rho must be finite"),
        ("--noise-samples 0", "noise_samples must be at least 1"),
        ("--output /dev/null/results", "cannot write to /dev/null/results"),
        ("--steps many", "argument --steps: invalid int value: 'many'"),
    ],
)
def test_bad_options_are_told_before_training(options, message, monkeypatch, capsys):
    monkeypatch.setattr(cli, "_run", lambda *_: pytest.fail("it trained"))
    with pytest.raises(SystemExit, match="2"):
        cli.main(["compare", *options.split()])
    assert message in capsys.readouterr().err


def test_a_missing_package_is_told_with_the_command_that_installs_it(
    monkeypatch, capsys
):
    monkeypatch.setattr(cli, "EXTRA", ("a_package_nobody_has",))
    with pytest.raises(SystemExit, match="2"):
        cli.main(["compare"])
    message = capsys.readouterr().err
    assert "a_package_nobody_has is not installed" in message
    assert 'pip install "smoothout-jax[experiments]"' in message.replace("\n", " ")


def test_help_names_every_setting_and_its_default(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["compare", "--help"])
    shown = capsys.readouterr().out
    for option in ("--seeds", "--batch-size", "--relative-radius", "--output"):
        assert option in shown
    assert "(default: 0.1)" in shown


def test_relative_time_compares_rounds_of_one_load(settings):
    seconds = {"sgd": np.array([1.0, 5.0, 2.0]), "sam": np.array([2.0, 10.0, 4.2])}
    assert Results(settings, {}, {}, seconds).relative_time("sam") == 2.0
