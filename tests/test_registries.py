"""The tables of the experiments: one row adds a data set, a network or a method."""

import ast
import graphlib
import json
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from command_line import refused
from flax import linen as nn

import smoothout_jax
from smoothout_jax.experiments import cli
from smoothout_jax.experiments.data.datasets import DATA_SETS, Source
from smoothout_jax.experiments.data.readers import Split
from smoothout_jax.experiments.methods.table import METHODS, Method
from smoothout_jax.experiments.models import MODELS, Model
from smoothout_jax.experiments.trained_networks import load_checkpoint
from smoothout_jax.experiments.training.task import Task

pytestmark = pytest.mark.usefixtures("standard_promotion")


def read_stripes(data_dir):
    """Images with one bright column; its index is the class."""
    labels = np.arange(60, dtype=np.int32) % 3
    images = np.tile(
        np.eye(3, dtype=np.float32)[labels][:, None, :, None], (1, 2, 1, 1)
    )
    return Split(images[:45], labels[:45]), Split(images[45:], labels[45:])


class Linear(nn.Module):
    """Logistic regression."""

    num_classes: int

    @nn.compact
    def __call__(self, images):
        return nn.Dense(self.num_classes)(images.reshape(len(images), -1))


@pytest.fixture
def registered(monkeypatch):
    """A data set, a network and a method, each added by one row of its table."""
    monkeypatch.setitem(DATA_SETS, "stripes", Source(read_stripes, 45))
    monkeypatch.setitem(
        MODELS,
        "linear",
        Model(
            "logistic regression",
            lambda settings, classes, norm, drop: Linear(classes),
            convolves=False,
            dimensions=(2,),
        ),
    )
    monkeypatch.setitem(
        METHODS,
        "signs",
        Method(
            label="sign descent",
            color="#123456",
            help="steps along the signs of the gradient",
            strength="learning_rate",
            transform=lambda context, strength, key: optax.sign_sgd(strength),
        ),
    )


NEW = "--data stripes --network linear --batch-size 15 --steps 30 --learning-rate 0.1"


def test_train_accepts_a_new_row(registered, tmp_path):
    options = [*NEW.split(), "--method", "signs", "--output", str(tmp_path)]
    cli.main(["train", *options])
    trained = load_checkpoint(tmp_path)
    task = Task(trained.settings)
    assert task.data.train_images.shape == (45, 2, 3, 1)
    params, stats = trained.network(0)
    assert task.evaluate(params, stats)["test accuracy"] == 1.0
    start, _ = task.init(jax.random.split(jax.random.key(0), 3)[0])
    moved = jax.tree.map(lambda now, first: (now - first) / 0.1, params, start)
    for leaf in jax.tree.leaves(moved):  # every step moves a weight by the rate
        np.testing.assert_allclose(leaf, np.round(leaf), atol=1e-4)
        assert np.abs(leaf).max() > 5


def test_compare_accepts_a_new_row(registered, tmp_path, capsys):
    options = [*NEW.split(), "--seeds", "2", "--methods", "signs"]
    cli.main(["compare", *options, "--noise-samples", "2", "--output", str(tmp_path)])
    assert "sign descent" in capsys.readouterr().out
    summary = json.loads((tmp_path / "results.json").read_text())["summary"]
    assert list(summary) == ["sgd", "signs"]
    assert summary["signs"]["test_accuracy"] == [100, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--data mnist1d", "network linear needs images of 2 dimensions"),
        ("--depth 3", "depth does not apply to linear"),
    ],
)
def test_a_row_states_what_its_network_needs(
    options, message, registered, tmp_path, capsys
):
    words = "train", "--network", "linear", *options.split()
    assert message in refused(capsys, *words, output=tmp_path / "output")


ROOT = Path(smoothout_jax.__file__).parent
# Layers, from the top to the bottom: a layer may not import from those above it.
LAYERS = (
    ("cli",),
    ("commands", "inference", "trained_networks"),
    ("reporting", "training"),
    ("settings", "plans"),
    ("methods",),
    ("regime", "models"),
    ("averaging", "data", "networks"),
    ("failures", "folders", "interruptions", "options", "progress"),
)
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}
PREFIX = "smoothout_jax.experiments."


def imported(path):
    """The modules that a file imports, by their dotted names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_imports_run_downward():
    folder = ROOT / "experiments"
    for path in folder.rglob("*.py"):
        own = path.relative_to(folder).parts[0].removesuffix(".py")
        for name in imported(path):
            if name.startswith(PREFIX) and own != "__init__":
                room = name.removeprefix(PREFIX).split(".")[0]
                assert LEVELS[own] <= LEVELS[room], f"{path} imports {name}"


def test_the_library_does_not_import_the_experiments():
    for path in ROOT.rglob("*.py"):
        if "experiments" not in path.relative_to(ROOT).parts:
            assert not [each for each in imported(path) if each.startswith(PREFIX[:-1])]


def module_of(path):
    """The dotted name of a file's module."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_files_import_one_another_in_a_circle():
    """Neither as they are imported, nor inside functions or for type checkers."""
    modules = {module_of(path): path for path in ROOT.rglob("*.py")}

    def needed(path):
        for name in imported(path):
            while name and name not in modules:
                name = name.rpartition(".")[0]
            if name and name != module_of(path):
                yield name

    graph = {name: set(needed(path)) for name, path in modules.items()}
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert len(order) == len(modules)
    for name in "smoothout_jax.experiments.cli", "smoothout_jax.smoothout":
        assert graph[name]


def test_modules_and_functions_of_the_experiments_are_short():
    for path in (ROOT / "experiments").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 350, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path}: {node.name}"
