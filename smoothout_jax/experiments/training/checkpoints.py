"""Checkpoints: the networks of a method, and what they were trained on.

Orbax writes them, each a folder that appears whole or not at all.
"""

import contextlib
import dataclasses
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from smoothout_jax._files import whole_file
from smoothout_jax.experiments.methods.table import METHODS
from smoothout_jax.experiments.options import InputError
from smoothout_jax.experiments.settings import Settings
from smoothout_jax.experiments.train_settings import TrainSettings
from smoothout_jax.experiments.training.task import Task

COMMANDS = {"compare": Settings, "train": TrainSettings}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The networks of one method.

    Attributes:
        path: the folder.
        method: the method's name.
        settings: the settings that they were trained on.
        params: their parameters, a tree with a leading axis of the seeds.
        stats: their BatchNorm statistics, likewise.
    """

    path: Path
    method: str
    settings: Settings | TrainSettings
    params: Any
    stats: Any

    def network(self, seed: int) -> tuple[Any, Any]:
        """The parameters and statistics of the network trained from a seed."""
        index = self.settings.all_seeds.index(seed)
        return jax.tree.map(lambda leaf: leaf[index], (self.params, self.stats))


def save_checkpoint(path: Path, method: str, settings: Any, **trees: Any) -> None:
    """Writes a checkpoint, in the place of an earlier one.

    Args:
        path: its folder.
        method: the method's name.
        settings: the settings of the command.
        **trees: `params`, `stats` and, of a run that can go on, its `state`.
    """
    (command,) = (name for name, each in COMMANDS.items() if type(settings) is each)
    about = {
        "command": command,
        "method": method,
        "settings": settings.to_json(),
        "digests": {name: _digest(tree) for name, tree in trees.items()},
    }
    # Orbax takes no tree without arrays.
    items: dict[str, Any] = {
        name: ocp.args.StandardSave(tree)
        for name, tree in trees.items()
        if jax.tree.leaves(tree)
    }
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(
            path.absolute(),
            ocp.args.Composite(about=ocp.args.JsonSave(about), **items),
            force=True,
        )


def load_checkpoint(path: Path, data_dir: Path = Path("data")) -> Checkpoint:
    """Reads the networks of a checkpoint.

    Args:
        path: the checkpoint's folder, or that of a run of `smoothout train`, for the
            last of its checkpoints.
        data_dir: the folder of the data that it was trained on.

    Raises:
        InputError: if there is none, if it is damaged, or holds another network than
            its settings say.
    """
    if not path.is_dir():
        raise InputError(f"checkpoint {path} does not exist")
    if steps := steps_of(path):
        path = path_of(path, steps[-1])
    with _told_by_name(path):
        about = _restore(path, about=ocp.args.JsonRestore())["about"]
        settings = COMMANDS[about["command"]].from_json(about["settings"], data_dir)
        shapes = jax.eval_shape(
            jax.vmap(Task(settings).init),
            jax.random.split(jax.random.key(0), len(settings.all_seeds)),
        )
    like = dict(zip(("params", "stats"), shapes, strict=True))
    return Checkpoint(path, about["method"], settings, **load_trees(path, **like))


def load_trees(path: Path, **like: Any) -> dict[str, Any]:
    """Reads trees of a checkpoint.

    Args:
        path: the checkpoint's folder.
        **like: for each of them a tree of the same structure, shapes and dtypes.

    Raises:
        InputError: if the checkpoint is damaged, or holds something else.
    """
    shapes = jax.tree.map(_placed, like)
    items = {
        name: ocp.args.StandardRestore(tree)
        for name, tree in shapes.items()
        if jax.tree.leaves(tree)
    }
    with _told_by_name(path):
        found = _restore(path, about=ocp.args.JsonRestore(), **items)
        trees = {name: found.get(name, like[name]) for name in like}
        for name, tree in trees.items():
            if _digest(tree) != found["about"]["digests"][name]:
                raise InputError(f"checkpoint {path} is damaged: {name} has changed")
    return trees


def steps_of(run: Path) -> list[int]:
    """The steps, rising, that a run of `smoothout train` has checkpoints of."""
    folder = run / "checkpoints"
    if not folder.is_dir():
        return []
    return sorted(int(each.name) for each in folder.iterdir() if each.name.isdecimal())


def load_settings(path: Path) -> dict[str, Any]:
    """The settings that a checkpoint was trained on, as JSON holds them."""
    with _told_by_name(path):
        return _restore(path, about=ocp.args.JsonRestore())["about"]["settings"]


def delete_checkpoint(path: Path) -> None:
    """Deletes a checkpoint, which is none any more before the first file goes."""
    going = path.with_name(f"{path.name}.going")
    path.rename(going)
    shutil.rmtree(going)


def path_of(run: Path, step: int) -> Path:
    """The folder of a run's checkpoint."""
    return run / "checkpoints" / str(step)


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape, dtype and place of a leaf, which is the first device if it has none."""
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    sharding = getattr(leaf, "sharding", None) or first
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _restore(path: Path, **items: Any) -> Any:
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        return checkpointer.restore(path.absolute(), ocp.args.Composite(**items))


@contextlib.contextmanager
def _told_by_name(path: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # Orbax and its storage raise errors of any kind.
        raise InputError(
            f"checkpoint {path} is damaged, or not one of smoothout:"
            f" {str(error).splitlines()[0]}"
        ) from error


def _digest(tree: Any) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        if not getattr(leaf, "is_fully_addressable", True):
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def labels(checkpoints: list[Checkpoint]) -> dict[str, Checkpoint]:
    """The checkpoints by the name of their method, or by path where two share it."""
    names = [METHODS[checkpoint.method].label for checkpoint in checkpoints]
    if len(set(names)) < len(names):
        paths = [checkpoint.path.absolute() for checkpoint in checkpoints]
        common = os.path.commonpath([path.parent for path in paths])
        names = [str(path.relative_to(common)) for path in paths]
        for path in paths:
            if paths.count(path) > 1:
                raise InputError(f"checkpoint {path} is given twice")
    return dict(zip(names, checkpoints, strict=True))


def save_figure(figure: Any, stem: Path) -> list[Path]:
    """Writes a picture as PNG and as PDF."""
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "pdf")]
    for path in paths:
        with whole_file(path) as unfinished:
            figure.savefig(unfinished, format=path.suffix[1:], dpi=150)
    return paths
