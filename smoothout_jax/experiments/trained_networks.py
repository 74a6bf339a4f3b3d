"""Trained networks, read from their checkpoints."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from smoothout_jax.experiments.commands.compare import CompareSettings
from smoothout_jax.experiments.commands.train import TrainSettings
from smoothout_jax.experiments.data.datasets import DataSettings
from smoothout_jax.experiments.methods.table import METHODS, Method
from smoothout_jax.experiments.models import ModelSettings
from smoothout_jax.experiments.options import InputError, Settings, argument, option
from smoothout_jax.experiments.training.checkpoints import (
    load_about,
    load_networks,
    named_errors,
    naming_the_one_before,
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
        """The checkpoints, by the label of their method, or by path if two share it.

        Raises:
            InputError: if one is missing or damaged, or is given twice.
        """
        found = [load_checkpoint(path, self.data_dir) for path in self.checkpoints]
        names = [checkpoint.method.label for checkpoint in found]
        if len(set(names)) < len(names):
            paths = [checkpoint.path.absolute() for checkpoint in found]
            common = os.path.commonpath([path.parent for path in paths])
            names = [str(path.relative_to(common)) for path in paths]
            for path in paths:
                if paths.count(path) > 1:
                    raise InputError(f"checkpoint {path} is given twice")
        return dict(zip(names, found, strict=True))


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The networks of one method.

    Attributes:
        path: the folder.
        name: the name of the method.
        settings: the settings of their training.
        params: their parameters, a tree with a leading axis for the seeds.
        stats: their BatchNorm statistics, likewise.
        digest: a hash of these networks.
        data: what the use of the networks needs to know of their data, see
            `Task.about`.
    """

    path: Path
    name: str
    settings: CompareSettings | TrainSettings
    params: Any
    stats: Any
    digest: str
    data: dict[str, Any]

    @property
    def method(self) -> Method:
        """The method that trained them."""
        return METHODS[self.name]

    def network(self, seed: int) -> tuple[Any, Any]:
        """The parameters and statistics of the network trained from a seed.

        Raises:
            InputError: if they are not finite.
        """
        index = self.settings.all_seeds.index(seed)
        network = jax.tree.map(lambda leaf: leaf[index], (self.params, self.stats))
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(network)):
            raise InputError(
                f"checkpoint {self.path}: training from seed {seed} diverged, and its"
                " parameters are not finite"
            )
        return network


class Tasks:
    """The tasks that networks were trained on.

    Networks of the same data and architecture share one, so that data are loaded and
    losses compiled once.
    """

    def __init__(self):
        self._tasks: dict[tuple, Task] = {}

    def of(self, checkpoint: Checkpoint) -> Task:
        """The task of a checkpoint.

        Raises:
            InputError: if the data cannot be read, or are not those of its networks.
        """
        settings = checkpoint.settings
        fields = *dataclasses.fields(DataSettings), *dataclasses.fields(ModelSettings)
        key = *(getattr(settings, each.name) for each in fields), settings.needs_heldout
        if key not in self._tasks:
            self._tasks[key] = Task(settings)
        task = self._tasks[key]
        keys = jax.random.split(jax.random.key(0), len(settings.all_seeds))
        expected = jax.eval_shape(jax.vmap(task.init), keys)
        if expected != jax.eval_shape(lambda: (checkpoint.params, checkpoint.stats)):
            raise InputError(
                f"checkpoint {checkpoint.path} does not hold the networks of its"
                f" settings for the data {settings.data} in {settings.data_dir}"
            )
        return task


def load_checkpoint(path: Path, data_dir: Path = Path("data")) -> Checkpoint:
    """Reads the networks of a checkpoint, or of the last one of a run.

    Raises:
        InputError: if there is none, or if it is damaged.
    """
    if not path.is_dir():
        wrong = "is not a folder" if path.exists() else "does not exist"
        raise InputError(f"checkpoint {path} {wrong}")
    if steps := steps_of(path):
        with naming_the_one_before(path, steps[-1]):
            return _load(path_of(path, steps[-1]), data_dir)
    if (path / "about").is_dir():
        return _load(path, data_dir)
    if (path / "params").is_dir():
        raise InputError(f"checkpoint {path} is damaged: it has lost its folder about")
    inside = sorted(path.glob("checkpoints/*/about")) or sorted(path.glob("*/about"))
    if inside:
        raise InputError(
            f"{path} is not a checkpoint, but holds some: give {inside[0].parent}"
        )
    raise InputError(f"{path} is not a checkpoint of smoothout")


def _load(path: Path, data_dir: Path) -> Checkpoint:
    about = load_about(path)
    with named_errors(path):
        kind = SETTINGS[about["command"]]
        networks = load_networks(path)
        return Checkpoint(
            path,
            about["method"],
            kind.from_json(about["settings"], data_dir=data_dir),
            **networks,
            digest="".join(about["digests"][name] for name in networks),
            data=about.get("data", {}),
        )


def colors(checkpoints: dict[str, Checkpoint]) -> dict[str, str] | None:
    """The colours of the methods by label, unless two checkpoints share a method."""
    if len({checkpoint.name for checkpoint in checkpoints.values()}) < len(checkpoints):
        return None
    return {label: each.method.color for label, each in checkpoints.items()}
