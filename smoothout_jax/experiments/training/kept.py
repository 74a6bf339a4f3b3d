"""Training in turns as far as it got, kept for a command that was interrupted."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smoothout_jax.experiments.options import InputError
from smoothout_jax.experiments.training.checkpoints import (
    load_about,
    load_trees,
    save_checkpoint,
)
from smoothout_jax.experiments.training.trainer import Trainer

FOLDER = "unfinished-training"


class KeptTraining:
    """The states of trainers between two turns, in a checkpoint.

    Args:
        output: the folder that holds it.
        whole: what is trained, as JSON holds it: the training of anything else is not
            continued.
    """

    def __init__(self, output: Path, whole: Any):
        self._path, self._whole = output / FOLDER, whole

    def save(
        self, trainers: Mapping[str, Trainer], done: int, seen: Mapping[str, Any]
    ) -> None:
        """Keeps the states after so many turns, and what was seen in them."""
        about = {"settings": self._whole, "done": done, "seen": seen}
        states = {name: trainer.state.trees() for name, trainer in trainers.items()}
        save_checkpoint(self._path, about, **states)

    def restore(self, trainers: Mapping[str, Trainer]) -> tuple[int, dict[str, Any]]:
        """Continues from what was kept: the turns done, and what was seen in them.

        Without any, or if it is damaged or of other training, those are 0 and nothing.
        """
        states = {name: trainer.state for name, trainer in trainers.items()}
        like = {name: state.trees() for name, state in states.items()}
        try:
            about = load_about(self._path)
            if about["settings"] != self._whole:
                return 0, {}
            trees = load_trees(self._path, **like)
        except InputError:
            return 0, {}
        for name, state in states.items():
            trainers[name].restore(type(state)(**trees[name]))
        return about["done"], about["seen"]


def remove_kept(output: Path) -> None:
    """Deletes what is kept in a folder, once all is done."""
    shutil.rmtree(output / FOLDER, ignore_errors=True)
