"""The commands `smoothout sharpness` and `smoothout landscape`, on checkpoints."""

import contextlib
import csv
import io
import json
import re

import chex
import jax
import numpy as np
import pytest
from command_line import copied, refused, run
from scipy import stats

from smoothout_jax import uniform
from smoothout_jax.experiments import cli
from smoothout_jax.experiments.commands.compare import CompareSettings
from smoothout_jax.experiments.commands.landscape import LandscapeSettings
from smoothout_jax.experiments.trained_networks import load_checkpoint
from smoothout_jax.experiments.training.checkpoints import save_checkpoint
from smoothout_jax.experiments.training.task import Task
from smoothout_jax.landscape import Landscape

TRAINING = (
    "--seeds 2 --steps 60 --batch-size 25 --train-size 100 --hidden-sizes 8"
    " --methods smoothout"
)

QUICK = "--noise-samples 5 --repetitions 2 --probes 3"

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    output = tmp_path_factory.mktemp("results")
    cli.main(["compare", *TRAINING.split(), "--output", str(output)])
    return output / "checkpoints"


def measure(command, checkpoints, output, options=""):
    run(command, *checkpoints, *options.split(), output=output)


@pytest.mark.slow
def test_compare_keeps_the_networks_that_it_evaluated(checkpoints):
    kept = load_checkpoint(checkpoints / "smoothout")
    document = json.loads((checkpoints.parent / "results.json").read_text())
    for seed, accuracy in enumerate(document["outcomes"]["smoothout"]["test_accuracy"]):
        quantities = Task(kept.settings).evaluate(*kept.network(seed))
        assert quantities["test accuracy"] == pytest.approx(accuracy)
    assert kept.settings == CompareSettings.from_json(
        document["settings"], data_dir=kept.settings.data_dir
    )
    assert sorted(path.name for path in checkpoints.iterdir()) == ["sgd", "smoothout"]


def about(settings):
    return {"command": "compare", "method": "sgd", "settings": settings.to_json()}


def test_a_checkpoint_replaces_an_earlier_one(checkpoints, tmp_path):
    kept = load_checkpoint(checkpoints / "sgd")
    twice = jax.tree.map(lambda leaf: 2 * leaf, kept.params)
    for params in (kept.params, twice):
        save_checkpoint(
            tmp_path / "it", about(kept.settings), params=params, stats=kept.stats
        )
    chex.assert_trees_all_equal(load_checkpoint(tmp_path / "it").params, twice)


@pytest.fixture(scope="module")
def measured(checkpoints, tmp_path_factory):
    """The files of `smoothout sharpness`, and what it printed."""
    output, shown = tmp_path_factory.mktemp("sharpness"), io.StringIO()
    both = checkpoints / "sgd", checkpoints / "smoothout"
    with contextlib.redirect_stdout(shown):
        measure("sharpness", both, output, f"{QUICK} --per-layer")
    return output, shown.getvalue()


@pytest.mark.slow
def test_sharpness_measures_every_network_and_layer(measured):
    output, shown = measured
    with (output / "sharpness.csv").open() as file:
        rows = list(csv.DictReader(file))
    layers = "whole", "params/Dense_0", "params/Dense_1"
    assert [(row["network"], row["seed"], row["layer"]) for row in rows] == [
        (network, seed, layer)
        for network in ("SGD", "SmoothOut")
        for seed in "01"
        for layer in layers
    ]
    document = json.loads((output / "sharpness.json").read_text())
    assert document["settings"]["probes"] == 3
    assert document["versions"]["scipy"]
    for row, written in zip(rows, document["rows"], strict=True):
        for name, (value, error) in written["measures"].items():
            assert float(row[name]) == value > 0
            assert float(row[f"{name}_error"]) == error
    whole, first, _ = rows[:3]
    assert float(first["eigenvalue"]) < float(whole["eigenvalue"])
    assert (output / "density.png").read_bytes().startswith(b"\x89PNG")
    assert (output / "density.pdf").read_bytes().startswith(b"%PDF")
    assert "params/Dense_1" in shown
    assert_table_agrees(shown, rows, "noise (nats)", "expected")


def assert_table_agrees(shown, rows, label, name):
    """Means and standard errors by network, and the rank correlation."""
    whole = [row for row in rows if row["layer"] == "whole"]
    values = np.array([float(row[name]) for row in whole]).reshape(2, 2)
    (line, *_) = [line for line in shown.splitlines() if label in line]
    numbers = [float(number) for number in re.findall(r"[-+]?\d+\.?\d*", line)]
    expected = np.stack([values.mean(1), stats.sem(values, axis=1)], 1).ravel()
    np.testing.assert_allclose(numbers[:4], expected, rtol=0.5, atol=0)
    np.testing.assert_allclose(numbers[:4:2], expected[::2], rtol=0.1, atol=0)
    errors = [float(row["test_error"]) for row in whole]
    tau = stats.kendalltau(values.ravel(), errors).statistic
    assert numbers[4] == pytest.approx(tau, abs=0.006)


@pytest.mark.slow
def test_sharpness_measures_what_the_library_does(measured, checkpoints):
    """The rise of the loss under noise, by a plain loop."""
    output, _ = measured
    (row, *_) = json.loads((output / "sharpness.json").read_text())["rows"]
    kept = load_checkpoint(checkpoints / "sgd")
    params, statistics = kept.network(0)
    task, noise = Task(kept.settings), uniform(0.5, relative_to="filter")
    (batch,) = task.sets["train"]

    def loss(params):
        return task.quantities(params, batch, statistics)["loss"]

    rises = [
        loss(jax.tree.map(jax.numpy.add, params, noise(key, params))) - loss(params)
        for key in jax.random.split(jax.random.key(0), 5)
    ]
    value, error = row["measures"]["expected"]
    np.testing.assert_allclose(value, np.mean(rises), rtol=1e-4)
    np.testing.assert_allclose(error, stats.sem(rises), rtol=1e-3)


def test_landscape_draws_surfaces_of_any_grid(checkpoints, tmp_path):
    options = "--points 3 4 --range -0.5 1 --exclude bias --kind surface --seed 1"
    measure(
        "landscape", [checkpoints / "sgd", checkpoints / "smoothout"], tmp_path, options
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "contours.pdf",
        "contours.png",
        "surface-sgd.npz",
        "surface-smoothout.npz",
        "surface.pdf",
        "surface.png",
    ]
    surface = Landscape.load(tmp_path / "surface-sgd.npz")
    np.testing.assert_allclose(surface.points[0], [-0.5, 0.25, 1])
    assert surface.values["test accuracy"].shape == (3, 4)
    kept = load_checkpoint(checkpoints / "sgd")
    quantities = Task(kept.settings).evaluate(*kept.network(1))
    np.testing.assert_allclose(
        surface.values["train loss"][:, 1].min(), quantities["train loss"], rtol=0.5
    )


def test_landscape_draws_the_line_between_two_networks(checkpoints, tmp_path):
    pair = checkpoints / "sgd", checkpoints / "smoothout"
    measure("landscape", pair, tmp_path, "--points 5 --range 0 1")
    line = Landscape.load(tmp_path / "between-sgd-smoothout.npz")
    for end, path in zip((0, -1), pair, strict=True):
        kept = load_checkpoint(path)
        for name, value in Task(kept.settings).evaluate(*kept.network(0)).items():
            np.testing.assert_allclose(line.values[name][end], value, rtol=1e-4)


def test_landscape_draws_curves_along_eigenvectors_and_names_them_by_path(
    checkpoints, tmp_path
):
    pair = [copied(checkpoints / "sgd", tmp_path / each / "sgd") for each in "ab"]
    options = "--kind curve --directions eigenvectors --points 3"
    measure("landscape", pair, tmp_path / "output", options)
    names = sorted(path.name for path in (tmp_path / "output").iterdir())
    assert names == ["curve-a-sgd.npz", "curve-b-sgd.npz", "curve.pdf", "curve.png"]
    loss = Landscape.load(tmp_path / "output" / names[0]).values["train loss"]
    assert loss[0] > loss[1] < loss[2]


def test_networks_of_different_shapes_have_no_line_between(
    checkpoints, tmp_path, capsys
):
    settings = CompareSettings(seeds=2, hidden_sizes=(9,))
    keys = jax.random.split(jax.random.key(0), 2)
    params, stats = jax.vmap(Task(settings).init)(keys)
    save_checkpoint(tmp_path / "wider", about(settings), params=params, stats=stats)
    paths = [checkpoints / "sgd", tmp_path / "wider"]
    message = refused(capsys, "landscape", *paths, output=tmp_path / "output")
    assert f"checkpoint {paths[1]} holds another network than {paths[0]}" in message


def test_the_kind_drawn_follows_from_the_number_of_checkpoints():
    kinds = [LandscapeSettings(checkpoints=("a",) * n).kind for n in (1, 2, 3)]
    assert kinds == ["surface", "between", "surface"]


@pytest.fixture(scope="module")
def batch_normed(tmp_path_factory):
    """Runs of `smoothout train`, of networks with BatchNorm."""
    options = (
        "--network f1 --hidden-sizes 8 --steps 30 --train-size 60 --batch-size 20"
        " --evaluate-every 30 --relative-radius 0.2 --method"
    )
    runs = []
    for method in ("sgd", "adasmoothout"):
        output = tmp_path_factory.mktemp(method)
        cli.main(["train", *options.split(), method, "--output", str(output)])
        runs.append(output)
    return runs


def evaluated(run):
    kept = load_checkpoint(run)
    return Task(kept.settings).evaluate(*kept.network(0))


@pytest.mark.slow
def test_sharpness_reads_runs_and_keeps_their_statistics(batch_normed, tmp_path):
    measure("sharpness", batch_normed, tmp_path, f"{QUICK} --measures sam")
    rows = json.loads((tmp_path / "sharpness.json").read_text())["rows"]
    assert [row["network"] for row in rows] == ["SGD", "AdaSmoothOut"]
    for row, folder in zip(rows, batch_normed, strict=True):
        error = 1 - evaluated(folder)["test accuracy"]
        assert row["test_error"] == pytest.approx(error, abs=1e-6)
        assert row["measures"]["sam"][0] > 0


@pytest.mark.parametrize("statistics", ["kept", "re-estimated"])
def test_landscapes_name_the_statistics_that_they_show(
    statistics, batch_normed, tmp_path
):
    options = f"--kind curve --points 3 --statistics {statistics}"
    measure("landscape", batch_normed[:1], tmp_path, options)
    curve = Landscape.load(tmp_path / "curve-sgd.npz")
    assert curve.note == f"BatchNorm statistics {statistics}"
    for name, value in evaluated(batch_normed[0]).items():
        np.testing.assert_allclose(curve.values[name][1], value, rtol=1e-4)


def test_statistics_cannot_be_kept_between_two_networks(batch_normed, tmp_path, capsys):
    options = "--statistics", "kept", "--points", 3
    message = refused(capsys, "landscape", *batch_normed, *options, output=tmp_path)
    assert "statistics cannot be kept: give --statistics re-estimated" in message
    measure("landscape", batch_normed, tmp_path, "--points 3 --range 0 1")
    line = Landscape.load(tmp_path / "between-sgd-adasmoothout.npz")
    for end, folder in zip((0, -1), batch_normed, strict=True):
        for name, value in evaluated(folder).items():
            np.testing.assert_allclose(line.values[name][end], value, rtol=1e-4)
