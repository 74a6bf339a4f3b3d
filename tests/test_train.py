"""The command `smoothout train`: what it writes, how it resumes, how it trains."""

import subprocess
import sys
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from command_line import checked, digests, logged, refused

from smoothout_jax.experiments import cli, regime
from smoothout_jax.experiments.commands.train import TrainSettings
from smoothout_jax.experiments.data.batches import batch_indices
from smoothout_jax.experiments.methods.settings import radius_schedule
from smoothout_jax.experiments.methods.table import METHODS, Context
from smoothout_jax.experiments.models import MODELS
from smoothout_jax.experiments.trained_networks import load_checkpoint
from smoothout_jax.experiments.training import checkpoints
from smoothout_jax.experiments.training.checkpoints import steps_of
from smoothout_jax.experiments.training.task import Task
from smoothout_jax.experiments.training.trainer import Trainer

SMALL = (
    "--steps 40 --evaluate-every 5 --train-size 100 --batch-size 20 --network f1"
    " --hidden-sizes 16 --shift 1 --flip --checkpoint-minutes 0"
    " --method adasmoothout-split --rise-epochs 2 --loss-rise 0.1 --copies 2"
)

TINY = {"train_size": 40, "batch_size": 20, "steps": 4}

pytestmark = pytest.mark.usefixtures("standard_promotion")


def train(output, options=""):
    cli.main(["train", *SMALL.split(), *options.split(), "--output", str(output)])
    return output


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    return train(tmp_path_factory.mktemp("whole"))


def test_a_run_learns_and_writes_what_it_did(whole, capsys):
    assert sorted(path.name for path in whole.iterdir()) == [
        "checkpoints",
        "log.csv",
        "noise.png",
        "settings.json",
        "tensorboard",
    ]
    rows = logged(whole)
    assert [int(row["step"]) for row in rows] == list(range(5, 45, 5))
    assert [float(row["epoch"]) for row in rows] == list(range(1, 9))
    assert float(rows[-1]["loss"]) < 0.85 * float(rows[0]["loss"])
    assert float(rows[-1]["test accuracy"]) > 0.3
    assert steps_of(whole) == [35, 40]
    kept = load_checkpoint(whole)
    found = Task(kept.settings).evaluate(*kept.network(0))
    for name, value in found.items():
        assert float(rows[-1][name]) == pytest.approx(value, rel=1e-6)
    (events,) = (whole / "tensorboard").iterdir()
    for tag in (b"test/accuracy", b"radius", b"loss/rise"):
        assert tag in events.read_bytes()


def test_the_log_reports_the_strength_of_the_noise(whole):
    settings = load_checkpoint(whole).settings
    trainer = Trainer(METHODS[settings.method], Task(settings), settings.all_seeds)
    restore(trainer, whole / "checkpoints" / "40")
    radius, rise = (float(logged(whole)[-1][name]) for name in ("radius", "loss rise"))
    assert 0 < rise < 0.1
    assert 0.05 < radius < 1
    found = trainer.noise()
    assert (radius, rise) == pytest.approx((found.radius[0], found.loss_rise[0]), 1e-6)


def restore(trainer, path):
    trees = checkpoints.load_trees(path, state=trainer.state.trees())
    trainer.restore(type(trainer.state)(**trees["state"]))


def test_noise_continues_from_a_checkpoint_to_the_same_bits(tmp_path):
    sizes = {"radius": 1e-4, "loss_rise": 0.1}
    task = Task(TrainSettings(hidden_sizes=(8,), network="f1", **TINY, **sizes))
    whole, half = (Trainer(METHODS["smoothout"], task, (0,)) for _ in range(2))
    whole.advance(0, 4)
    half.advance(0, 2)
    checkpoints.save_checkpoint(tmp_path / "half", {}, state=half.state.trees())
    restore(half, tmp_path / "half")
    half.advance(2, 4)
    chex.assert_trees_all_equal(half.state.trees(), whole.state.trees())
    assert 0 < half.noise().radius[0] <= 1e-4


@pytest.mark.slow
def test_a_run_that_was_killed_resumes_to_the_same_bits(whole, tmp_path):
    command = [sys.executable, "-m", "smoothout_jax.experiments.cli", "train"]
    command += [*SMALL.split(), "--output", str(tmp_path)]
    with subprocess.Popen(command) as process:
        while len(steps_of(tmp_path)) < 2 and process.poll() is None:
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -9
    assert max(steps_of(tmp_path)) < 40
    cli.main(["train", "--resume", "--output", str(tmp_path)])
    assert digests(tmp_path) == digests(whole)
    assert logged(tmp_path) == logged(whole)


def test_a_run_killed_before_its_first_checkpoint_restarts(whole, tmp_path):
    (tmp_path / "settings.json").write_text((whole / "settings.json").read_text())
    (tmp_path / "checkpoints" / "0.orbax-checkpoint-tmp").mkdir(parents=True)
    cli.main(["train", "--resume", "--output", str(tmp_path)])
    assert digests(tmp_path) == digests(whole)


def test_a_run_is_neither_overwritten_nor_resumed_with_other_settings(
    whole, tmp_path, capsys
):
    for options, output, message in (
        (SMALL, whole, f"output {whole} already holds a run, at step 40"),
        ("--resume --seed 1", whole, "seed was 0, not 1"),
        ("--resume", tmp_path / "none", "settings.json: No such file"),
    ):
        line = refused(capsys, "train", *options.split(), output=output)
        assert message in line
    assert digests(whole)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        train(tmp_path, "--learning-rate 1e30")
    line = checked(capsys.readouterr().err, ended.value.code)
    assert "the loss is nan at step" in line
    assert f"the last good checkpoint is {tmp_path}/checkpoints/0" in line
    assert "lower the learning_rate (1e+30) or loss_rise (0.1)" in line
    assert steps_of(tmp_path) == [0]


@pytest.mark.slow
@pytest.mark.parametrize("network", sorted(MODELS.keys() - {"alexnet", "resnet50"}))
def test_every_network_learns(network):
    depths = {"resnet": 8, "resnet18": 10, "vit": 1}
    widths = {"cnet": 4, "resnet": 4, "resnet18": 2, "vit": 12}
    settings = TrainSettings(
        network=network,
        **TINY | {"steps": 10},
        depth=depths.get(network),
        width=widths.get(network),
        hidden_sizes=(16,) if network in ("mlp", "f1") else (),
        optimizer="adam",
        learning_rate=0.01,
        schedule="constant",
        relative_radius=0.05,
    )
    task = Task(settings)
    trainer = Trainer(METHODS["adasmoothout"], task, (0,))
    assert task.batch_norm == (network not in ("mlp", "vit"))
    metrics, _ = trainer.advance(0, 10)
    (losses,) = metrics.loss
    assert losses.shape == (10,)
    assert losses[-3:].mean() < 0.95 * losses[:3].mean()


def batch_statistics(params, images):
    """Mean and variance that enter the first BatchNorm, by hand."""
    layer = jax.tree.map(np.asarray, params["params"]["Dense_0"])
    hidden = (
        np.asarray(images).reshape(len(images), -1) @ layer["kernel"] + layer["bias"]
    )
    return hidden.mean(0), hidden.var(0)


def running(stats):
    return (stats["batch_stats"]["BatchNorm_0"][name][0] for name in ("mean", "var"))


@pytest.mark.parametrize(
    ("method", "copies"), [("sgd", 1), ("adasmoothout-split", 4), ("sam", 1)]
)
def test_running_statistics_are_updated_once_a_step(method, copies):
    """By the batch at clean parameters, or by the mean over ghost batches."""
    changed = {"relative_radius": 0.0, "copies": copies}
    task = Task(TrainSettings(network="f1", hidden_sizes=(8,), **TINY, **changed))
    trainer = Trainer(METHODS[method], task, (0,))
    state = jax.tree.map(lambda leaf: leaf[0], trainer.state)
    key = jax.random.wrap_key_data(state.batch_key)
    (indices,) = batch_indices(key, 40, 20, 0, 1)
    trainer.advance(0, 1)
    images = task.data.train_images[indices]
    parts = [images[copy::copies] for copy in range(copies)]
    each = [batch_statistics(state.params, part) for part in parts]
    mean, var = (sum(values) / copies for values in zip(*each, strict=True))
    new_mean, new_var = running(trainer.state.stats)
    np.testing.assert_allclose(new_mean, 0.1 * mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(new_var, 0.9 + 0.1 * var, rtol=1e-4)


@pytest.mark.parametrize("in_batch_norm", [False, True])
def test_noise_spares_batch_norm_unless_set_and_is_removed_to_evaluate(in_batch_norm):
    settings = TrainSettings(
        network="f1", hidden_sizes=(8,), noise_in_batch_norm=in_batch_norm, **TINY
    )
    task = Task(settings)
    trainer = Trainer(METHODS["adasmoothout-fixed"], task, (0,))
    trainer.advance(0, 1)
    ((clean, stats),) = trainer.networks()
    held = jax.tree.map(lambda leaf: leaf[0], trainer.state.params)
    noise = optax.tree.sub(held, clean)
    for layer, name in (("Dense_0", "kernel"), ("BatchNorm_0", "scale")):
        added, weights = (tree["params"][layer][name] for tree in (noise, clean))
        ratio = optax.tree.norm(added) / optax.tree.norm(weights)
        noisy = layer == "Dense_0" or in_batch_norm
        assert float(ratio) == pytest.approx(0.2 * noisy, rel=1e-3)
    mean, var = batch_statistics(clean, task.data.train_images)
    found = stats["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(found["mean"], mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["var"], var, rtol=1e-4)


def test_sam_is_built_on_any_optimizer():
    settings = TrainSettings(optimizer="adam", hidden_sizes=(8,), clip_norm=1.0, **TINY)
    task = Task(settings)
    trainer = Trainer(METHODS["sam"], task, (0,))
    before = task.evaluate(*trainer.networks()[0])["train loss"]
    trainer.advance(0, 4)
    assert task.evaluate(*trainer.networks()[0])["train loss"] < before


def make(**options):
    return TrainSettings(train_size=100, batch_size=20, **options)


def rates(settings, steps=100):
    schedule = regime.learning_rate_schedule(
        settings, settings.peak_learning_rate, steps
    )
    return np.array([schedule(step) for step in range(steps)])


def test_learning_rates_follow_their_schedules():
    cosine = rates(make(learning_rate=0.2))
    expected = 0.1 * (1 + np.cos(np.pi * np.arange(100) / 100))
    np.testing.assert_allclose(cosine, expected, atol=1e-6)
    steps = rates(make(schedule="multistep", milestones=(0.5, 0.9)))
    np.testing.assert_allclose(
        steps[[0, 49, 51, 89, 91]], [0.1, 0.1, 0.01, 0.01, 0.001]
    )
    rising = rates(make(schedule="constant", warmup=0.1))
    np.testing.assert_allclose(rising[:11], 0.1 * np.minimum(np.arange(1, 12) / 10, 1))


DECAY = optax.add_decayed_weights(0.1)
OPTIMIZERS = {
    "sgd": lambda rate: optax.chain(DECAY, optax.sgd(rate, momentum=0.8)),
    "adam": lambda rate: optax.chain(DECAY, optax.adam(rate, b1=0.8)),
    "adamw": lambda rate: optax.adamw(rate, b1=0.8, weight_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_optimizer_is_optax_s(name):
    settings = make(
        optimizer=name,
        learning_rate=0.02,
        weight_decay=0.1,
        clip_norm=0.5,
        momentum=0.8,
    )
    ours = regime.make_optimizer(settings, 10)
    schedule = optax.cosine_decay_schedule(0.02, 10)
    theirs = optax.chain(optax.clip_by_global_norm(0.5), OPTIMIZERS[name](schedule))
    params, grads = {"w": jnp.arange(3.0)}, {"w": jnp.array([1.0, -2.0, 3.0])}
    found = []
    for optimizer in (ours, theirs):
        state, held = optimizer.init(params), params
        for _ in range(3):
            updates, state = optimizer.update(grads, state, held)
            held = optax.apply_updates(held, updates)
        found.append(held)
    chex.assert_trees_all_close(*found, rtol=1e-6)


@pytest.mark.parametrize("name", ["anneal", "tanh", "cosine", "late"])
def test_the_radius_follows_its_schedule(name):
    schedule = radius_schedule(make(radius_schedule=name), 0.4, 100)
    first, last = float(schedule(0)), float(schedule(99))
    zero_first = {"tanh": (0, 0.4), "late": (0, 0.4)}
    expected = {"anneal": (0.4, 0.4 * 100**-0.275)} | zero_first
    np.testing.assert_allclose(
        (first, last), expected.get(name, (0.02, 0.4)), rtol=2e-3, atol=1e-4
    )


def test_augmentation_shifts_and_flips_each_image_independently():
    images = jnp.zeros((64, 6, 6, 1)).at[:, 2, 1].set(1.0)
    settings = make(shift=1, flip=True)
    moved = regime.augment(settings, jax.random.key(0), images)
    places = {tuple(np.argwhere(image)[0][:2].tolist()) for image in moved}
    rows, columns = zip(*places, strict=True)
    assert set(rows) == {1, 2, 3}
    assert set(columns) == {0, 1, 2, 3, 4, 5}
    assert float(moved.sum()) == 64
    unmoved = regime.augment(make(), jax.random.key(0), images)
    assert unmoved is images


def test_noise_that_is_not_removed_accumulates():
    """Each update adds noise of variance 1/3; the gradient is zero."""
    settings = make(radius=1.0)
    method = METHODS["no-denoising"]
    noise = method.transform(Context(settings, 10, method), 1.0, jax.random.key(0))
    params = {"kernel": jnp.zeros((50, 100))}
    state, still = noise.init(params), params
    for step in range(1, 10):
        updates, state = noise.update(still, state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params["kernel"].var(), step / 3, rtol=0.1)
