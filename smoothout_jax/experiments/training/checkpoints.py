"""Checkpoints: trees of arrays, and what they were trained on.

Orbax writes them, each a folder that appears whole or not at all.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from smoothout_jax._files import UNFINISHED
from smoothout_jax.experiments.options import InputError


def save_checkpoint(path: Path, about: Mapping[str, Any], **trees: Any) -> None:
    """Writes a checkpoint, which replaces an earlier one.

    Args:
        path: its folder.
        about: what it contains, for JSON.
        **trees: `params`, `stats` and, of a run that can continue, its `state`.
    """
    digests = {name: _digest(tree) for name, tree in trees.items()}
    digests["about"] = _digest_of_json(about)
    # Orbax does not take a tree without arrays.
    items: dict[str, Any] = {
        name: ocp.args.StandardSave(tree)
        for name, tree in trees.items()
        if jax.tree.leaves(tree)
    }
    items["about"] = ocp.args.JsonSave({**about, "digests": digests})
    # Orbax would delete an earlier one before it writes.
    whole = path.with_name(f"{UNFINISHED}{path.name}")
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(whole.absolute(), ocp.args.Composite(**items), force=True)
    if jax.process_index() == 0:
        if path.exists():
            delete_checkpoint(path)
        whole.rename(path)


def load_about(path: Path) -> dict[str, Any]:
    """Reads what a checkpoint contains, as `save_checkpoint` wrote it.

    Raises:
        InputError: if the checkpoint is damaged.
    """
    with named_errors(path):
        about = _restore(path, about=ocp.args.JsonRestore())["about"]
        written = {name: value for name, value in about.items() if name != "digests"}
        if about["digests"]["about"] != _digest_of_json(written):
            raise InputError(f"checkpoint {path} is damaged: about has changed")
        return about


def load_networks(path: Path) -> dict[str, Any]:
    """Reads parameters and statistics of a checkpoint, in the shapes that it has.

    Raises:
        InputError: if the checkpoint is damaged.
    """
    like: dict[str, Any] = {"params": {}, "stats": {}}
    handlers: Any = {name: ocp.StandardCheckpointHandler() for name in like}
    with (
        named_errors(path),
        ocp.Checkpointer(ocp.CompositeCheckpointHandler(**handlers)) as checkpointer,
    ):
        found: Any = checkpointer.metadata(path.absolute()).item_metadata
        for name in like:
            if found.get(name) is not None:
                like[name] = jax.tree.map(
                    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
                    found[name].tree,
                    is_leaf=lambda node: hasattr(node, "dtype"),
                )
    return load_trees(path, **like)


def load_trees(path: Path, **like: Any) -> dict[str, Any]:
    """Reads trees of a checkpoint, of the structures, shapes and dtypes of `like`.

    Raises:
        InputError: if the checkpoint is damaged, or holds other trees.
    """
    with named_errors(path):
        items = {
            name: ocp.args.StandardRestore(tree)
            for name, tree in jax.tree.map(_placed, like).items()
            if jax.tree.leaves(tree)
        }
        restored = _restore(path, about=ocp.args.JsonRestore(), **items)
        trees = {name: restored.get(name, like[name]) for name in like}
        for name, tree in trees.items():
            if _digest(tree) != restored["about"]["digests"][name]:
                raise InputError(f"checkpoint {path} is damaged: {name} has changed")
        return trees


def steps_of(run: Path) -> list[int]:
    """The steps at which a run of `smoothout train` has checkpoints, in order."""
    folder = run / "checkpoints"
    if not folder.is_dir():
        return []
    return sorted(int(each.name) for each in folder.iterdir() if each.name.isdecimal())


@contextlib.contextmanager
def naming_the_one_before(run: Path, step: int) -> Iterator[None]:
    """Adds the checkpoint before it to the error of a damaged one."""
    try:
        yield
    except InputError as error:
        earlier = [each for each in steps_of(run) if each < step]
        if not earlier:
            raise
        raise InputError(
            f"{error}; the one before it is {path_of(run, earlier[-1])}: remove"
            f" {path_of(run, step)} to go on from there"
        ) from error


def delete_checkpoint(path: Path) -> None:
    """Deletes a checkpoint, renamed first, so that no part of it is taken for one.

    Orbax's `CheckpointManager` deletes in place.
    """
    doomed = path.with_name(f"{UNFINISHED}{path.name}.deleted")
    path.rename(doomed)
    shutil.rmtree(doomed)


def path_of(run: Path, step: int) -> Path:
    """The folder of the checkpoint that a run has at a step."""
    return run / "checkpoints" / str(step)


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape, dtype and sharding of a leaf, by default on the first device."""
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    sharding = getattr(leaf, "sharding", None) or first
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _restore(path: Path, **items: Any) -> Any:
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        return checkpointer.restore(path.absolute(), ocp.args.Composite(**items))


@contextlib.contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Reports errors of Orbax as errors that name the checkpoint."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # Orbax and its storage raise errors of any kind.
        raise InputError(
            f"checkpoint {path} is damaged, or not one of smoothout:"
            f" {str(error).splitlines()[0]}"
        ) from error


def _digest_of_json(document: Any) -> str:
    text = json.dumps(json.loads(json.dumps(document)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(tree: Any) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        if not getattr(leaf, "is_fully_addressable", True):
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()
