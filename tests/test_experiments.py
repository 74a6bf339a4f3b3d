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
from rich.console import Console
from scipy import stats

from smoothout_jax import smoothout_eval_params
from smoothout_jax.experiments import cli, report
from smoothout_jax.experiments.compare import Results, compare
from smoothout_jax.experiments.data import batch_indices, load
from smoothout_jax.experiments.methods import METHODS as METHODS_BY_NAME
from smoothout_jax.experiments.networks import MLP
from smoothout_jax.experiments.settings import METHODS, Settings
from smoothout_jax.experiments.task import Task
from smoothout_jax.experiments.training import Trainer

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
        radius=0.02,
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
        if name != "no-denoising":
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
        keys[2], settings.train_size, settings.batch_size, 0, settings.steps
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
    trainer = Trainer(METHODS_BY_NAME["smoothout"], Task(settings), [7])
    trainer.advance(0, 3)
    state = jax.tree.map(lambda leaf: leaf[0], trainer.state)
    ((clean, _),) = trainer.networks()
    chex.assert_trees_all_equal(
        clean, smoothout_eval_params(state.opt_state, state.params)
    )
    distance = optax.tree.max(optax.tree.sub(clean, state.params))
    assert 0.9 * settings.radius < distance <= settings.radius


@pytest.mark.parametrize("name", METHODS)
def test_without_noise_every_method_is_sgd(settings, name):
    """And so its copies take each image of the batch once between them."""
    silent = dataclasses.replace(
        settings, radius=0.0, relative_radius=0.0, std=0.0, rho=0.0, msam_rho=0.0
    )
    task = Task(silent)
    trainers = [Trainer(METHODS_BY_NAME[each], task, [3]) for each in ("sgd", name)]
    for trainer in trainers:
        trainer.advance(0, 2)
    (sgd, _), (ours, _) = (trainer.networks()[0] for trainer in trainers)
    chex.assert_trees_all_close(ours, sgd, rtol=1e-4, atol=1e-6)
    initial = Trainer(METHODS_BY_NAME["sgd"], task, [3]).networks()[0][0]
    assert optax.tree.norm(optax.tree.sub(sgd, initial)) > 0.1


def test_a_seed_trains_alike_alone_and_beside_others(results, settings):
    task = Task(settings)
    trainer = Trainer(METHODS_BY_NAME["smoothout"], task, [2])
    for start in range(0, settings.steps, 20):
        trainer.advance(start, start + 20)
    again = task.evaluate(*trainer.networks()[0])
    np.testing.assert_allclose(
        again["test loss"], results.outcomes["smoothout"].test_loss[2], rtol=1e-4
    )


def test_strengths_train_side_by_side(settings):
    task = Task(settings)
    method = METHODS_BY_NAME["adasmoothout"]
    together = Trainer(method, task, [0, 0], [0.1, 0.4])
    together.advance(0, 5)
    for network, radius in zip(together.networks(), (0.1, 0.4), strict=True):
        settings_of = dataclasses.replace(settings, relative_radius=radius)
        alone = Trainer(method, Task(settings_of), [0])
        alone.advance(0, 5)
        chex.assert_trees_all_close(network, alone.networks()[0], rtol=1e-4, atol=1e-6)


def test_the_loss_curve_starts_from_the_trained_network(results):
    for name, outcome in results.outcomes.items():
        centre = outcome.loss_curve[:, outcome.loss_curve.shape[1] // 2]
        np.testing.assert_allclose(centre, outcome.train_loss, rtol=1e-5)
        if name != "no-denoising":
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


def test_an_epoch_shows_each_example_once():
    key = jax.random.key(0)
    batches = batch_indices(key, num_examples=12, batch_size=4, start=0, steps=5)
    assert batches.shape == (5, 4)
    np.testing.assert_array_equal(np.sort(batches[:3].ravel()), np.arange(12))
    assert not np.array_equal(batches[0], batches[3])
    with_rest = batch_indices(key, 10, 4, 0, 2)
    assert len(np.unique(with_rest)) == 8


def test_batches_are_the_same_wherever_one_begins():
    key = jax.random.key(0)
    whole = batch_indices(key, 13, 4, 0, 12)
    for start in range(11):
        part = batch_indices(key, 13, 4, jax.numpy.int32(start), 1 + start % 2)
        np.testing.assert_array_equal(part, whole[start : start + 1 + start % 2])


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
    for name, outcome in results.outcomes.items():
        label = METHODS_BY_NAME[name].label
        (line,) = [
            line for line in text.splitlines() if re.match(rf"{label} +\d", line)
        ]
        mean = 100 * outcome.test_accuracy.mean()
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
            "methods must be one of 'sgd', 'smoothout', 'adasmoothout', 'sam', 'msam",
        ),
        (
            "--methods smoothout-split --copies 3",
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
        ("--validation-size 495", "validation_size=495 must leave at least 10"),
        (
            "--validation-size 450",
            "batch_size=100 is larger than train_size=500 less validation_size=450",
        ),
        ("--steps 5 --epochs 1", "steps=5 and epochs=1.0 exclude each other"),
        ("--epochs nan", "epochs must be finite and above 0, got nan"),
        ("--learning-rate-rule sqrt", "learning_rate_rule and adapt_epochs need base_"),
        ("--adapt-epochs --base-batch-size 50", "adapt_epochs needs epochs"),
        ("--milestones 0.5 1", "milestones must be in [0, 1), got 1.0"),
        ("--warmup -0.1", "warmup must be in [0, 1), got -0.1"),
        ("--clip-norm 0", "clip_norm must be finite and above 0, got 0.0"),
        ("--shift -1", "shift must be at least 0, got -1"),
        ("--depth 20", "depth: mlp has none to choose"),
        ("--width 20", "width: give hidden_sizes of mlp"),
        (
            "--network cnet --hidden-sizes 5",
            "hidden_sizes are of mlp and f1, not of cn",
        ),
        ("--network lenet", "invalid choice: 'lenet'"),
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
