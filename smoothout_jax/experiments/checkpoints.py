"""Checkpoints: the parameters of a method's networks, and what they were trained on.

Orbax writes them, each a folder that appears whole or not at all.
"""

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from smoothout_jax._files import whole_file
from smoothout_jax.experiments.methods import METHODS
from smoothout_jax.experiments.settings import InputError, Settings
from smoothout_jax.experiments.task import Task


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The networks of one method.

    Attributes:
        path: the folder.
        method: the method's name.
        settings: the settings that they were trained on.
        params: their parameters, a tree with a leading axis of the seeds.
    """

    path: Path
    method: str
    settings: Settings
    params: Any

    def network(self, seed: int) -> Any:
        """The parameters of one network."""
        return jax.tree.map(lambda leaf: leaf[seed], self.params)


def save_checkpoint(path: Path, method: str, params: Any, settings: Settings) -> None:
    """Writes a checkpoint, in the place of an earlier one."""
    about = {
        "method": method,
        "settings": settings.to_json(),
        "digest": _digest(params),
    }
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(
            path.absolute(),
            ocp.args.Composite(
                about=ocp.args.JsonSave(about), params=ocp.args.StandardSave(params)
            ),
            force=True,
        )


def load_checkpoint(path: Path, data_dir: Path = Path("data")) -> Checkpoint:
    """Reads a checkpoint.

    Args:
        path: the checkpoint's folder.
        data_dir: the folder of the data that it was trained on.

    Raises:
        InputError: if there is none, if it is damaged, or holds another network than
            its settings say.
    """
    if not path.is_dir():
        raise InputError(f"checkpoint {path} does not exist")
    try:
        about, settings, params = _restore(path, data_dir)
    except InputError:
        raise
    except Exception as error:  # Orbax and its storage raise errors of any kind.
        raise InputError(
            f"checkpoint {path} is damaged, or not one of smoothout compare:"
            f" {str(error).splitlines()[0]}"
        ) from error
    if _digest(params) != about["digest"]:
        raise InputError(f"checkpoint {path} is damaged: its parameters have changed")
    return Checkpoint(path, about["method"], settings, params)


def _restore(path, data_dir):
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        about = checkpointer.restore(
            path.absolute(), ocp.args.Composite(about=ocp.args.JsonRestore())
        )["about"]
        settings = Settings.from_json(about["settings"], data_dir)
        params = checkpointer.restore(
            path.absolute(),
            ocp.args.Composite(params=ocp.args.StandardRestore(_like(settings))),
        )["params"]
    return about, settings, params


def _like(settings):
    """Shapes and dtypes of the parameters of all seeds."""
    keys = jax.random.split(jax.random.key(0), settings.seeds)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(jax.vmap(Task(settings).init), keys),
    )


def _digest(params) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
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
