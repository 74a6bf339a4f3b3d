"""What a command has done so far, saved until it ends.

A command that was interrupted continues from there when it is given again. What was
saved for other settings, or is damaged, is ignored.
"""

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smoothout_jax.experiments.options import InputError
from smoothout_jax.experiments.reporting.files import json_text, write_json
from smoothout_jax.experiments.training.checkpoints import (
    load_about,
    load_trees,
    save_checkpoint,
)
from smoothout_jax.experiments.training.trainer import Trainer


class SavedResults(dict[str, Any]):
    """Results by key, each of which is written to a JSON file at once.

    Args:
        folder: the folder of the file, `unfinished.json`.
        whole: what the results are of, for JSON.
    """

    def __init__(self, folder: Path, whole: Any):
        super().__init__()
        self._path = folder / "unfinished.json"
        self._whole = json.loads(json.dumps(whole))
        self._began = time.monotonic()
        try:
            document = json.loads(self._path.read_text())
            if document["whole"] == self._whole:
                self.update(document["results"])
                self._began -= float(document["seconds"])
        except (OSError, ValueError, LookupError, TypeError):
            pass  # missing or damaged

    @property
    def seconds(self) -> float:
        """Seconds spent so far, up to the last result of earlier processes."""
        return time.monotonic() - self._began

    def __setitem__(self, key: str, result: Any) -> None:
        """Saves a result as JSON holds it; numbers that are not finite are `None`."""
        super().__setitem__(key, json.loads(json_text(result)))
        document = {"whole": self._whole, "seconds": self.seconds, "results": self}
        write_json(self._path, document)

    def delete(self) -> None:
        """Deletes the file, once all is done."""
        self._path.unlink(missing_ok=True)


class SavedTraining:
    """The states of trainers that take turns, in a checkpoint.

    Args:
        output: the folder of the checkpoint, `unfinished-training`.
        whole: what is trained, as JSON holds it.
    """

    def __init__(self, output: Path, whole: Any):
        self._path, self._whole = output / "unfinished-training", whole

    def save(
        self, trainers: Mapping[str, Trainer], done: int, seen: Mapping[str, Any]
    ) -> None:
        """Saves the states after so many turns, and what was seen in these."""
        about = {"settings": self._whole, "done": done, "seen": seen}
        states = {name: trainer.state.trees() for name, trainer in trainers.items()}
        save_checkpoint(self._path, about, **states)

    def restore(self, trainers: Mapping[str, Trainer]) -> tuple[int, dict[str, Any]]:
        """Restores the states; the turns done, and what was seen in these."""
        states = {name: trainer.state for name, trainer in trainers.items()}
        try:
            about = load_about(self._path)
            if about["settings"] != self._whole:
                return 0, {}
            like = {name: state.trees() for name, state in states.items()}
            trees = load_trees(self._path, **like)
        except InputError:
            return 0, {}
        for name, state in states.items():
            trainers[name].restore(type(state)(**trees[name]))
        return about["done"], about["seen"]


def delete_saved_training(output: Path) -> None:
    """Deletes what is saved of training in a folder, once all is done."""
    shutil.rmtree(output / "unfinished-training", ignore_errors=True)
