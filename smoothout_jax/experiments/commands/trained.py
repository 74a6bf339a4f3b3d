"""Trained networks that a command reads: those of checkpoints."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax

from smoothout_jax.experiments.commands.compare import CompareSettings
from smoothout_jax.experiments.commands.train import TrainSettings
from smoothout_jax.experiments.methods.table import METHODS, Method
from smoothout_jax.experiments.options import InputError, Settings, argument, option
from smoothout_jax.experiments.training.checkpoints import (
    load_about,
    load_trees,
    named_errors,
    path_of,
    steps_of,
)
from smoothout_jax.experiments.training.task import Task

# The settings of the commands that write checkpoints.
SETTINGS = {each.command: each for each in (CompareSettings, TrainSettings)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedSettings(Settings):
    """Settings of commands that look at trained networks."""

    checkpoints: tuple[Path, ...] = argument(
        "checkpoints of smoothout compare, or folders of smoothout train",
        "CHECKPOINT",
        machine=True,
    )
    data_dir: Path = option(
        Path("data"),
        "folder of the data that the networks were trained on",
        "FOLDER",
        machine=True,
    )

    def load(self) -> dict[str, "Checkpoint"]:
        """The checkpoints, by label.

        Raises:
            InputError: if one is missing or damaged, or is given twice.
        """
        return labels(
            [load_checkpoint(path, self.data_dir) for path in self.checkpoints]
        )


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The networks of one method.

    Attributes:
        path: the folder.
        name: the name of the method.
        settings: the settings of their training.
        params: their parameters, a tree with a leading axis for the seeds.
        stats: their BatchNorm statistics, with that axis too.
    """

    path: Path
    name: str
    settings: CompareSettings | TrainSettings
    params: Any
    stats: Any

    @property
    def method(self) -> Method:
        """The method that trained them."""
        return METHODS[self.name]

    def network(self, seed: int) -> tuple[Any, Any]:
        """The parameters and statistics of the network trained from a seed."""
        index = self.settings.all_seeds.index(seed)
        return jax.tree.map(lambda leaf: leaf[index], (self.params, self.stats))


def load_checkpoint(path: Path, data_dir: Path = Path("data")) -> Checkpoint:
    """Reads the networks of a checkpoint.

    Args:
        path: the folder of the checkpoint, or that of a run of `smoothout train`, which
            stands for its last checkpoint.
        data_dir: the folder of the data that it was trained on.

    Raises:
        InputError: if there is none, if it is damaged, or if it does not hold the
            network of its settings.
    """
    if not path.is_dir():
        raise InputError(f"checkpoint {path} does not exist")
    if steps := steps_of(path):
        path = path_of(path, steps[-1])
    about = load_about(path)
    with named_errors(path):
        settings = SETTINGS[about["command"]].from_json(
            about["settings"], data_dir=data_dir
        )
        shapes = jax.eval_shape(
            jax.vmap(Task(settings).init),
            jax.random.split(jax.random.key(0), len(settings.all_seeds)),
        )
    like = dict(zip(("params", "stats"), shapes, strict=True))
    return Checkpoint(path, about["method"], settings, **load_trees(path, **like))


def labels(checkpoints: list[Checkpoint]) -> dict[str, Checkpoint]:
    """Names checkpoints by the label of their method, or by path if two share it."""
    names = [checkpoint.method.label for checkpoint in checkpoints]
    if len(set(names)) < len(names):
        paths = [checkpoint.path.absolute() for checkpoint in checkpoints]
        common = os.path.commonpath([path.parent for path in paths])
        names = [str(path.relative_to(common)) for path in paths]
        for path in paths:
            if paths.count(path) > 1:
                raise InputError(f"checkpoint {path} is given twice")
    return dict(zip(names, checkpoints, strict=True))


def colors(checkpoints: dict[str, Checkpoint]) -> dict[str, str] | None:
    """The colour of each checkpoint's method by label, unless two share a method."""
    if len({checkpoint.name for checkpoint in checkpoints.values()}) < len(checkpoints):
        return None
    return {label: each.method.color for label, each in checkpoints.items()}
