"""The commands `smoothout sharpness` and `smoothout landscape`, on checkpoints."""

import contextlib
import csv
import io
import json
import re
import shutil
import subprocess
import sys

import chex
import jax
import numpy as np
import pytest
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


def run(command, checkpoints, output, options=""):
    paths = [str(path) for path in checkpoints]
    cli.main([command, *paths, *options.split(), "--output", str(output)])


def refused(command, checkpoints, output, options, capsys):
    """The message of a command that ends in an error, with nothing written."""
    with pytest.raises(SystemExit, match="2"):
        run(command, checkpoints, output, options)
    assert not output.exists() or not list(output.iterdir())
    return capsys.readouterr().err


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
        run("sharpness", both, output, f"{QUICK} --per-layer")
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
    """The rise under noise, once more by a plain loop."""
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
    run(
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
    run("landscape", pair, tmp_path, "--points 5 --range 0 1")
    line = Landscape.load(tmp_path / "between-sgd-smoothout.npz")
    for end, path in zip((0, -1), pair, strict=True):
        kept = load_checkpoint(path)
        for name, value in Task(kept.settings).evaluate(*kept.network(0)).items():
            np.testing.assert_allclose(line.values[name][end], value, rtol=1e-4)


def test_landscape_draws_curves_along_eigenvectors(checkpoints, tmp_path):
    options = "--kind curve --directions eigenvectors --points 3"
    run("landscape", [checkpoints / "sgd"], tmp_path, options)
    loss = Landscape.load(tmp_path / "curve-sgd.npz").values["train loss"]
    assert loss[0] > loss[1] < loss[2]
    assert (tmp_path / "curve.pdf").exists()


def test_checkpoints_of_one_method_are_told_apart_by_path(
    checkpoints, tmp_path, capsys
):
    pair = tmp_path / "one" / "sgd", tmp_path / "two" / "sgd"
    for path in pair:
        shutil.copytree(checkpoints / "sgd", path)
    run("landscape", pair, tmp_path / "output", "--kind curve --points 3")
    names = sorted(path.name for path in (tmp_path / "output").glob("*.npz"))
    assert names == ["curve-one-sgd.npz", "curve-two-sgd.npz"]
    message = refused("sharpness", [pair[0]] * 2, tmp_path / "other", "", capsys)
    assert "sgd is given twice" in message


@pytest.mark.parametrize("command", ["sharpness", "landscape"])
def test_a_missing_checkpoint_is_told_before_anything_is_written(
    command, checkpoints, tmp_path, capsys
):
    paths = [checkpoints / "sgd", tmp_path / "missing"]
    message = refused(command, paths, tmp_path / "output", "", capsys)
    assert f"checkpoint {tmp_path / 'missing'} does not exist" in message


def largest_file(path):
    files = [file for file in path.rglob("*") if file.is_file()]
    return max(files, key=lambda file: file.stat().st_size)


def truncate(path):
    file = largest_file(path)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_a_bit(path):
    content = bytearray(largest_file(path).read_bytes())
    content[len(content) // 2] ^= 1
    largest_file(path).write_bytes(content)


def lose_the_settings(path):
    shutil.rmtree(path / "about")


def lose_the_parameters(path):
    shutil.rmtree(path / "params")


def tell_of_another_network(path):
    about = path / "about" / "metadata"
    about.write_text(
        about.read_text().replace('"hidden_sizes": [8]', '"hidden_sizes": [9]')
    )
    assert "[9]" in about.read_text()


DAMAGES = (
    truncate,
    flip_a_bit,
    lose_the_settings,
    lose_the_parameters,
    tell_of_another_network,
)

LOAD = """
import pathlib, sys
from smoothout_jax.experiments import options
from smoothout_jax.experiments import trained_networks
for path in sys.argv[1:]:
    try:
        trained_networks.load_checkpoint(pathlib.Path(path))
    except options.InputError as error:
        print(error)
"""


@pytest.mark.slow
def test_a_damaged_checkpoint_is_told_by_name(checkpoints, tmp_path):
    """In a process of its own, as Orbax leaves tasks behind when its storage fails."""
    paths = [tmp_path / damage.__name__ for damage in DAMAGES]
    for path, damage in zip(paths, DAMAGES, strict=True):
        shutil.copytree(checkpoints / "sgd", path)
        damage(path)
    command = [sys.executable, "-c", LOAD, checkpoints / "sgd", *paths]
    ended = subprocess.run(command, check=True, capture_output=True, text=True)
    told = ended.stdout.splitlines()
    assert len(told) == len(paths), ended
    for line, path in zip(told, paths, strict=True):
        assert line.startswith(f"checkpoint {path} is damaged")


def test_networks_of_different_shapes_have_no_line_between(
    checkpoints, tmp_path, capsys
):
    settings = CompareSettings(seeds=2, hidden_sizes=(9,))
    keys = jax.random.split(jax.random.key(0), 2)
    params, stats = jax.vmap(Task(settings).init)(keys)
    save_checkpoint(tmp_path / "wider", about(settings), params=params, stats=stats)
    paths = [checkpoints / "sgd", tmp_path / "wider"]
    message = refused("landscape", paths, tmp_path / "output", "", capsys)
    assert f"checkpoint {paths[1]} holds another network than {paths[0]}" in message


def test_arrays_of_another_network_are_not_overwritten(checkpoints, tmp_path, capsys):
    options = "--kind curve --points 3"
    run("landscape", [checkpoints / "sgd"], tmp_path, options)
    written = (tmp_path / "curve-sgd.npz").read_bytes()
    with pytest.raises(SystemExit, match="2"):
        run("landscape", [checkpoints / "sgd"], tmp_path, f"{options} --seed 1")
    assert "curve-sgd.npz holds another landscape" in capsys.readouterr().err
    assert (tmp_path / "curve-sgd.npz").read_bytes() == written


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("landscape", "--points 1", "points must be at least 2, got 1"),
        (
            "landscape",
            "--points 3 3 3",
            "points: kind='surface' needs one number or two",
        ),
        (
            "landscape",
            "--kind curve --points 3 3",
            "kind='curve' needs one number, got 2",
        ),
        ("landscape", "--kind between", "kind='between' needs two checkpoints, got 1"),
        ("landscape", "--range 1 -1", "range must increase, got 1.0 -1.0"),
        ("landscape", "--range 1", "range must be two numbers, got 1"),
        ("landscape", "--range nan 1", "range must increase"),
        ("landscape", "--seed -1", "seed must be at least 0, got -1"),
        ("landscape", "--seed 2", "holds the networks of seeds 0 to 1"),
        ("landscape", "--exclude [", "is not a valid regular expression"),
        ("sharpness", "--measures flatness", "measures must be one of"),
        ("sharpness", "--probes 0", "probes must be at least 1, got 0"),
        ("sharpness", "--rho 0", "rho must be finite and above 0, got 0.0"),
        ("sharpness", "--noise-radius nan", "noise_radius must be finite and above 0"),
        ("sharpness", "--epsilon -1", "epsilon must be finite and above 0, got -1.0"),
    ],
)
def test_bad_options_are_told_before_any_work(
    command, options, message, checkpoints, tmp_path, capsys
):
    shown = refused(command, [checkpoints / "sgd"], tmp_path / "x", options, capsys)
    assert message in shown


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
    run("sharpness", batch_normed, tmp_path, f"{QUICK} --measures sam")
    rows = json.loads((tmp_path / "sharpness.json").read_text())["rows"]
    assert [row["network"] for row in rows] == ["SGD", "AdaSmoothOut"]
    for row, folder in zip(rows, batch_normed, strict=True):
        error = 1 - evaluated(folder)["test accuracy"]
        assert row["test_error"] == pytest.approx(error, abs=1e-6)
        assert row["measures"]["sam"][0] > 0


@pytest.mark.parametrize("statistics", ["kept", "re-estimated"])
def test_landscapes_say_what_statistics_they_show(statistics, batch_normed, tmp_path):
    options = f"--kind curve --points 3 --statistics {statistics}"
    run("landscape", batch_normed[:1], tmp_path, options)
    curve = Landscape.load(tmp_path / "curve-sgd.npz")
    assert curve.note == f"BatchNorm statistics {statistics}"
    for name, value in evaluated(batch_normed[0]).items():
        np.testing.assert_allclose(curve.values[name][1], value, rtol=1e-4)


def test_statistics_cannot_be_kept_between_two_networks(batch_normed, tmp_path, capsys):
    options = "--statistics kept --points 3"
    message = refused("landscape", batch_normed, tmp_path, options, capsys)
    assert "statistics cannot be kept: give --statistics re-estimated" in message
    run("landscape", batch_normed, tmp_path, "--points 3 --range 0 1")
    line = Landscape.load(tmp_path / "between-sgd-adasmoothout.npz")
    for end, folder in zip((0, -1), batch_normed, strict=True):
        for name, value in evaluated(folder).items():
            np.testing.assert_allclose(line.values[name][end], value, rtol=1e-4)
