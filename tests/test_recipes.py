"""Label smoothing, dropout, averaged weights and watched images."""

import dataclasses
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from command_line import copied, digests, logged, run

from smoothout_jax import smoothout_eval_params
from smoothout_jax.experiments.commands.compare import CompareSettings
from smoothout_jax.experiments.commands.train import TrainSettings
from smoothout_jax.experiments.data.datasets import load
from smoothout_jax.experiments.methods.table import METHODS
from smoothout_jax.experiments.reporting.comparison import Results, summary
from smoothout_jax.experiments.reporting.statistics import mean_and_error
from smoothout_jax.experiments.trained_networks import load_checkpoint
from smoothout_jax.experiments.training import comparison
from smoothout_jax.experiments.training.comparison import Training, train_in_turns
from smoothout_jax.experiments.training.outcome import Outcome
from smoothout_jax.experiments.training.resuming import SavedTraining
from smoothout_jax.experiments.training.state import Noise
from smoothout_jax.experiments.training.task import Task
from smoothout_jax.experiments.training.trainer import Trainer
from smoothout_jax.rivals import msam_eval_params

TINY = {"train_size": 40, "batch_size": 20, "steps": 4, "hidden_sizes": (8,)}

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return load("digits", tmp_path_factory.getbasetemp(), 40)


def logits_of(params, images):
    """The logits of an MLP with one hidden layer."""
    layers = jax.tree.map(np.asarray, params["params"])
    hidden, last = layers["Dense_0"], layers["Dense_1"]
    units = images.reshape(len(images), -1) @ hidden["kernel"] + hidden["bias"]
    return np.maximum(units, 0) @ last["kernel"] + last["bias"]


def accuracy_of(params, images, labels):
    return (logits_of(params, images).argmax(-1) == labels).mean()


def test_label_smoothing_is_optax_s_and_applies_to_training_only(digits):
    task = Task(TrainSettings(label_smoothing=0.3, **TINY), data=digits)
    params = jax.tree.map(lambda leaf: 3 * leaf, task.init(jax.random.key(1))[0])
    images, labels = digits.train_images, digits.train_labels
    logits = logits_of(params, images)
    smooth = optax.smooth_labels(jax.nn.one_hot(labels, 10), 0.3)
    smoothed = optax.softmax_cross_entropy(logits, smooth).mean()
    plain = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    assert abs(smoothed - plain) > 0.01
    loss, (_, accuracy) = task.loss(params, {}, images, labels)
    np.testing.assert_allclose(loss, smoothed, rtol=1e-5)
    np.testing.assert_allclose(accuracy, accuracy_of(params, images, labels))
    found = task.evaluate(params, {}, ["train"])["train loss"]
    np.testing.assert_allclose(found, plain, rtol=1e-5)


@pytest.mark.parametrize("network", ["mlp", "f1"])
def test_dropout_applies_to_training_only(network, digits):
    whole, dropping = (
        Task(TrainSettings(network=network, dropout=each, **TINY), data=digits)
        for each in (0.0, 0.5)
    )
    params, stats = dropping.init(jax.random.key(1))
    chex.assert_trees_all_equal((params, stats), whole.init(jax.random.key(1)))
    batch = digits.train_images[:20], digits.train_labels[:20]
    losses = [
        float(dropping.loss(params, stats, *batch, jax.random.key(key))[0])
        for key in (1, 1, 2)
    ]
    assert losses[0] == losses[1]
    plain = float(whole.loss(params, stats, *batch, jax.random.key(1))[0])
    assert len({losses[0], losses[2], plain}) == 3
    chex.assert_trees_all_equal(
        dropping.quantities(params, batch, stats),
        whole.quantities(params, batch, stats),
    )


def test_dropout_drops_hidden_units_with_its_probability():
    """The others are scaled up, so that the mean stays."""
    units = jnp.ones((4, 5000))
    drop = Task(TrainSettings(dropout=0.2, **TINY))._training.drop
    dropped = drop.apply({}, units, rngs={"dropout": jax.random.key(0)})
    assert float((dropped == 0).mean()) == pytest.approx(0.2, abs=0.01)
    np.testing.assert_allclose(dropped[dropped > 0], 1.25, rtol=1e-6)


def test_each_step_drops_other_units_and_a_seed_the_same(digits):
    """Every step has the same image, and a learning rate too small to move weights."""
    first = np.zeros(40, int)
    repeated = digits._replace(
        train_images=digits.train_images[first], train_labels=digits.train_labels[first]
    )
    settings = TrainSettings(dropout=0.5, learning_rate=1e-30, **TINY)
    trainer = Trainer(METHODS["sgd"], Task(settings, data=repeated), (0, 0))
    first = jax.tree.map(np.asarray, trainer.state.params)
    metrics, _ = trainer.advance(0, 3)
    chex.assert_trees_all_close(trainer.state.params, first, atol=1e-20)
    ours, again = metrics.loss
    assert np.ptp(ours) > 1e-3
    assert len(np.unique(ours)) == 3
    np.testing.assert_allclose(ours, again, rtol=1e-6)


@pytest.mark.parametrize("method", ["sam", "two-sided"])
def test_the_gradients_of_a_step_drop_the_same_units(method, digits):
    """Without ascent or noise, two gradients on the same units are equal."""
    settings = TrainSettings(dropout=0.5, rho=0.0, relative_radius=0.0, **TINY)
    task = Task(settings, data=digits)
    networks = []
    for name in ("sgd", method):
        trainer = Trainer(METHODS[name], task, (0,))
        trainer.advance(0, 3)
        networks.append(trainer.networks()[0][0])
    chex.assert_trees_all_close(*networks, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "clean"),
    [
        ("sam", lambda state, params: params),
        ("msam", msam_eval_params),
        ("adasmoothout", smoothout_eval_params),
    ],
)
def test_weights_are_averaged_without_their_noise(method, clean, digits):
    settings = TrainSettings(ema_decay=0.8, relative_radius=0.3, msam_rho=0.5, **TINY)
    trainer = Trainer(METHODS[method], Task(settings, data=digits), (0,))
    held, found = [], []
    for step in range(3):
        trainer.advance(step, step + 1)
        state = jax.tree.map(lambda leaf: leaf[0], trainer.state)
        found.append(clean(state.opt_state, state.params))
        held.append(state.params)
    weights = np.array([0.64, 0.8, 1]) / 2.44

    def mean(trees):
        return jax.tree.map(
            lambda *leaves: sum(map(np.multiply, weights, leaves)), *trees
        )

    ((evaluated, _),) = trainer.networks()
    chex.assert_trees_all_close(evaluated, mean(found), rtol=1e-4, atol=1e-6)
    moved = float(optax.tree.norm(optax.tree.sub(mean(held), evaluated)))
    assert (moved > 0.01) == (method in ("msam", "adasmoothout"))
    last = float(optax.tree.norm(optax.tree.sub(found[-1], evaluated)))
    assert last > 0.01


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with every recipe, whose noise follows the gap on the watched images."""
    output = tmp_path_factory.mktemp("whole")
    options = (
        "--steps 48 --evaluate-every 6 --train-size 60 --watch-size 20 --batch-size 20"
        " --network f1 --hidden-sizes 16 --learning-rate 0.5 --label-noise 0.2"
        " --label-smoothing 0.1 --dropout 0.2 --ema-decay 0.9 --loss-rise gap"
        " --checkpoint-minutes 0 --keep 3 --method adasmoothout"
    )
    run("train", *options.split(), output=output)
    return output


def test_train_logs_and_draws_the_watched_accuracy_and_the_gap(whole):
    kept = load_checkpoint(whole)
    task = Task(kept.settings)
    assert len(task.data.watched.labels) == 20
    rows = logged(whole)
    assert [int(row["step"]) for row in rows] == list(range(6, 54, 6))
    found = task.evaluate(*kept.network(0))
    for name in ("watched accuracy", "watched loss", "test accuracy"):
        assert float(rows[-1][name]) == pytest.approx(found[name], abs=1e-6)
    gaps = [float(row["loss gap"]) for row in rows]
    assert gaps[0] == 0 < gaps[1] == gaps[2] != gaps[3]
    for name in ("loss rise target", "radius"):
        assert float(rows[-1][name]) > 0
    assert (whole / "noise.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_with_every_recipe_resumes_to_the_same_bits(whole, tmp_path):
    half = copied(whole, tmp_path / "half")
    for step in (42, 48):  # the gap is measured after step 40
        shutil.rmtree(half / "checkpoints" / str(step))
    run("train", "--resume", output=half)
    assert digests(half) == digests(whole)
    assert logged(half) == logged(whole)


WATCHED = CompareSettings(
    methods=("sgd",),
    seeds=2,
    watch_size=20,
    learning_rate=0.5,
    schedule="constant",
    **TINY | {"train_size": 60, "steps": 6},
)


class Watching:
    """A trainer that can restart, to save a second compilation."""

    def __init__(self):
        self.task = Task(WATCHED)
        self.trainer = Trainer(METHODS["sgd"], self.task, WATCHED.all_seeds)
        self._first = jax.tree.map(np.asarray, self.trainer.state)

    def restarted(self):
        self.trainer.restore(jax.tree.map(jnp.asarray, self._first))
        return {"sgd": self.trainer}


@pytest.fixture(scope="module")
def watching():
    return Watching()


@pytest.fixture(scope="module")
def training(watching):
    return train_in_turns(watching.restarted())["sgd"]


def test_the_test_accuracy_is_measured_when_the_watched_one_is_best(watching, training):
    (trainer,) = watching.restarted().values()
    data, found = watching.task.data, []
    for step in range(6):
        trainer.advance(step, step + 1)
        found.append(
            [
                [accuracy_of(params, *part) for params, _ in trainer.networks()]
                for part in (data.watched[:2], (data.test_images, data.test_labels))
            ]
        )
    watched, tested = np.transpose(found, (1, 2, 0))
    np.testing.assert_allclose(training.watched_accuracy, watched, atol=1e-6)
    highest = np.maximum.accumulate(watched, -1)
    improved = np.diff(highest, prepend=-1) > 0
    assert 2 < improved.sum() < improved.size
    seen = np.where(improved, tested, np.nan)
    np.testing.assert_allclose(training.test_accuracy, seen, atol=1e-6)
    best = [tested[run, watched[run].argmax()] for run in range(2)]
    np.testing.assert_allclose(training.best_accuracy, best, atol=1e-6)


def test_the_watched_images_choose_the_best_round():
    """Of equal rounds the first; rounds that diverged do not count."""
    watched = np.array([[0.2, 0.7, 0.7], [0.9, 0.1, 0.2], [np.nan, 0.3, np.nan]])
    test = np.arange(9.0).reshape(3, 3)
    training = Training(np.ones(3), np.arange(3), {}, watched, test)
    np.testing.assert_array_equal(training.best_accuracy, [1, 3, 7])


def test_the_summary_has_the_accuracy_of_the_best_round(training):
    numbers = np.array([0.3, 0.5])
    outcome = Outcome(*[numbers] * len(Outcome._fields))
    one = dataclasses.replace(
        training,
        watched_accuracy=np.array([[0.9, 0.1], [0.1, 0.9]]),
        test_accuracy=np.array([[0.6, 0.2], [0.1, 0.8]]),
    )
    results = Results(WATCHED, {}, {"sgd": outcome}, {"sgd": one})
    row = summary(results)["sgd"]
    assert row["best_accuracy"] == mean_and_error(np.array([60.0, 80.0]))
    assert row["best_difference_to_sgd"][0] == 0
    assert row["test_accuracy"] == mean_and_error(100 * numbers)
    unwatched = CompareSettings(methods=("sgd",), seeds=2)
    row = summary(Results(unwatched, {}, {"sgd": outcome}, {"sgd": one}))["sgd"]
    assert "best_accuracy" not in row


class StoppedError(Exception):
    """Stops training in the middle."""


def test_training_that_is_continued_keeps_what_was_watched(
    watching, training, tmp_path, monkeypatch
):
    monkeypatch.setattr(comparison, "SECONDS_BETWEEN_SAVES", 0.0)
    advance, advanced = watching.trainer.advance, []

    def stopping(start, stop):
        advanced.append((start, stop))
        if len(advanced) == 5:
            raise StoppedError
        return advance(start, stop)

    monkeypatch.setattr(watching.trainer, "advance", stopping)
    kept = SavedTraining(tmp_path, ["all"])
    with pytest.raises(StoppedError):
        train_in_turns(watching.restarted(), kept)
    continued = train_in_turns(watching.restarted(), kept)["sgd"]
    assert advanced[5:] == [(4, 5), (5, 6)]
    for name in ("steps", "watched_accuracy", "test_accuracy"):
        np.testing.assert_array_equal(getattr(continued, name), getattr(training, name))


class Clocked:
    """Stands in for trainer and saves: turns take 30 s, saves as long as given."""

    steps = 20
    method = METHODS["sgd"]

    def __init__(self, monkeypatch, seconds_of_a_save):
        self.now, self.saves, self._takes = 0.0, [], seconds_of_a_save
        monkeypatch.setattr(comparison.time, "monotonic", lambda: self.now)

    def advance(self, start, stop):
        self.now += 30.0
        return None, 30.0

    def noise(self):
        return Noise()

    def watched(self, best):
        return {}

    def restore(self, trainers):
        return 0, {}

    def save(self, trainers, done, seen):
        self.now += self._takes
        self.saves.append(done)


@pytest.mark.parametrize(
    ("seconds", "saves"),
    [(3.0, [3, 6, 9, 12, 15, 18, 20]), (9.0, [3, 10, 17, 20])],
)
def test_saves_that_take_long_are_rare(seconds, saves, monkeypatch):
    both = Clocked(monkeypatch, seconds)
    train_in_turns({"sgd": both}, both)
    assert both.saves == saves
