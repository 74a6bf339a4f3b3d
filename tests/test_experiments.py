"""The command `smoothout compare`: what it trains, writes and refuses."""

import csv
import dataclasses
import functools
import io
import json
import re
from pathlib import Path

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import optax
import pytest
from command_line import untrained
from rich.console import Console
from scipy.stats import ttest_rel

from smoothout_jax import experiments
from smoothout_jax.experiments import cli, commands
from smoothout_jax.experiments.commands.compare import (
    CompareSettings,
    Results,
    compare,
    table,
    write,
)
from smoothout_jax.experiments.commands.train import TrainSettings
from smoothout_jax.experiments.data.batches import batch_indices
from smoothout_jax.experiments.data.datasets import load
from smoothout_jax.experiments.methods.table import METHODS, Context
from smoothout_jax.experiments.networks import MLP
from smoothout_jax.experiments.options import read_settings
from smoothout_jax.experiments.reporting.statistics import paired_difference
from smoothout_jax.experiments.training.comparison import Training
from smoothout_jax.experiments.training.task import Task
from smoothout_jax.experiments.training.trainer import Trainer

KEY = jax.random.key(0)
# Always the same examples, and none made smaller when one fails: they compile.
few = functools.partial(
    hypothesis.settings,
    derandomize=True,
    database=None,
    deadline=None,
    phases=(hypothesis.Phase.generate,),
)
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
    fixed = (
        "adasmoothout-fixed",
        "smoothout-fixed",
        "smoothout-gaussian",
        "lpf-sgd",
        "rwp",
        "no-denoising",
        "sgd-split",
    )
    for name in fixed:
        assert not METHODS[name].holds_rise(settings)
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
def test_how_strong_noise_was_is_told_and_drawn(loss_rise, settings, tmp_path):
    held = dataclasses.replace(
        settings,
        loss_rise=loss_rise,
        methods=("adasmoothout", "adasmoothout-fixed"),
        relative_radius=None,
        output=tmp_path,
    )
    results = compare(held)
    training = results.training["adasmoothout"]
    assert training.radius.shape == training.loss_rise.shape == (3, 20)
    assert (training.radius[:, -1 if loss_rise else 0 :] > 0).all()
    assert list(results.held) == ["adasmoothout"]
    paths = write(results)
    assert tmp_path / "noise.png" in paths
    noise = json.loads((tmp_path / "results.json").read_text())["noise"]
    for name, values in training.noise.items():
        assert noise["adasmoothout"][name] == values.tolist()
    (column,) = (each for each in table(results).columns if each.header == "radius")
    cells = list(column.cells)
    assert cells == ["", f"{training.radius[:, -1].mean():.2g}", ""]


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


@few(max_examples=6)
@hypothesis.given(st.data())
def test_batches_of_an_epoch_part_the_images(data):
    """And are the same wherever one begins."""
    images = data.draw(st.integers(1, 20), "images")
    size = data.draw(st.integers(1, images), "batch size")
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


def values(**strategies):
    return st.fixed_dictionaries({}, optional=strategies)


sizes = st.integers(1, 9)
amounts = st.floats(0, 1e9) | st.integers(0, 9)
TRAINING = values(
    data=st.sampled_from(("digits", "mnist1d")),
    hidden_sizes=st.lists(sizes, max_size=3).map(tuple),
    epochs=st.floats(1e-9, 1e9),
    learning_rate=st.floats(1e-9, 1e9),
    optimizer=st.sampled_from(("sgd", "adam", "adamw")),
    milestones=st.lists(st.floats(0, 1, exclude_max=True)).map(tuple),
    clip_norm=st.none() | st.floats(1e-9, 1e9),
    shift=sizes,
    flip=st.booleans(),
    radius=amounts,
)
SETTINGS = st.builds(
    lambda chosen, own: CompareSettings(**chosen, **own),
    TRAINING,
    values(
        seeds=st.integers(2, 9), methods=st.lists(st.sampled_from(list(METHODS)[:4]))
    ),
) | st.builds(
    lambda chosen, own: TrainSettings(**chosen, **own),
    TRAINING,
    values(seed=sizes, method=st.sampled_from(list(METHODS)[:4]), evaluate_every=sizes),
)


@few(max_examples=50)
@hypothesis.given(SETTINGS)
def test_settings_come_back_from_json(tmp_path_factory, chosen):
    """From a checkpoint, and from the file that a run writes."""
    written = json.dumps(chosen.to_json())
    kind = type(chosen)
    assert kind.from_json(json.loads(written), data_dir=chosen.data_dir) == chosen
    path = tmp_path_factory.getbasetemp() / "settings.json"
    path.write_text(written)
    assert kind(**read_settings(path, kind)) == chosen


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
        (
            "--methods sgd adam",
            "methods must be one of 'sgd', 'smoothout', 'adasmoothout', 'smoothout-fi",
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
        ("--momentum 1.5", "momentum must be in [0, 1), got 1.5"),
        ("--learning-rate 0", "learning_rate must be finite and above 0, got 0.0"),
        ("--output=", "a path must not be empty"),
        ("--clip-norm 0", "clip_norm must be finite and above 0, got 0.0"),
        ("--shift -1", "shift must be at least 0, got -1"),
        ("--depth 20", "depth does not apply to mlp: give hidden_sizes"),
        ("--width 20", "width does not apply to mlp: give hidden_sizes"),
        ("--network cnet --hidden-sizes 5", "hidden_sizes does not apply to cnet"),
        ("--network cnet --depth 5", "depth does not apply to cnet"),
        ("--hidden-sizes 10 0", "hidden_sizes must be at least 1"),
        ("--radius -0.1", "radius must be finite and at least 0, got -0.1"),
        ("--rho nan", "rho must be finite"),
        ("--noise-samples 0", "noise_samples must be at least 1"),
        ("--output /dev/null/results", "cannot write to /dev/null/results"),
    ],
)
def test_bad_options_are_told_before_training(options, message, monkeypatch, capsys):
    assert message in untrained(monkeypatch, capsys, "compare", *options.split())


def test_a_missing_package_is_told_with_the_command_that_installs_it(
    monkeypatch, capsys
):
    monkeypatch.setattr(cli, "EXTRA", ("a_package_nobody_has",))
    with pytest.raises(SystemExit, match="2"):
        cli.main(["compare"])
    message = capsys.readouterr().err
    assert "a_package_nobody_has is not installed" in message
    assert 'pip install "smoothout-jax[experiments]"' in message.replace("\n", " ")


def test_every_command_is_told_of_where_they_are_listed():
    page = (Path(__file__).parents[1] / "docs" / "command.md").read_text()
    for name in commands.COMMANDS:
        assert f"smoothout {name} " in experiments.__doc__
        assert f"{{command-options}} {name}\n" in page


def test_help_names_every_setting_and_its_default(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["compare", "--help"])
    shown = capsys.readouterr().out
    for option in ("--seeds", "--batch-size", "--relative-radius", "--output"):
        assert option in shown
    assert "(default: 0.3)" in shown


def test_relative_time_compares_rounds_of_one_load(settings):
    seconds = {"sgd": np.array([1.0, 5.0, 2.0]), "sam": np.array([2.0, 10.0, 4.2])}
    training = {
        name: Training(each, np.arange(3), *[np.empty(0)] * 6)
        for name, each in seconds.items()
    }
    assert Results(settings, {}, {}, training).relative_time("sam") == 2.0
