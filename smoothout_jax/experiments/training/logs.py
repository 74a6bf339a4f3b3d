"""Logs of a run: a CSV file, and event files for TensorBoard."""

import contextlib
import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorboardX

from smoothout_jax._files import whole_file
from smoothout_jax.experiments.options import InputError
from smoothout_jax.experiments.training.processes import is_first
from smoothout_jax.experiments.training.state import Noise

# How strong the noise was, where that is measured.
NOISE = tuple(name.replace("_", " ") for name in Noise._fields)
COLUMNS: tuple[str, ...] = (
    "step",
    "epoch",
    "learning_rate",
    "loss",
    "accuracy",
    *NOISE,
    "train loss",
    "train accuracy",
    "test loss",
    "test accuracy",
    "watched loss",
    "watched accuracy",
    "heldout loss",
    "heldout accuracy",
    "seconds",
)


class Log:
    """A context manager that writes a line for each evaluation.

    Only the first of several processes writes.

    Args:
        output: the folder of the run.
        start: the step that the run continues from; later lines are dropped.

    Attributes:
        earlier_seconds: seconds that the steps up to `start` took.
    """

    def __init__(self, output: Path, start: int):
        self.earlier_seconds = 0.0
        self._files = contextlib.ExitStack()
        if is_first():
            self._open(output, start)

    def _open(self, output: Path, start: int) -> None:
        path, rows = output / "log.csv", []
        if path.exists() and start:
            rows = [row for row in read_log(path) if int(row["step"]) <= start]
        if rows:
            self.earlier_seconds = float(rows[-1]["seconds"])
        with whole_file(path) as unfinished, unfinished.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        self._file = self._files.enter_context(path.open("a", newline=""))
        self._writer = tensorboardX.SummaryWriter(
            str(output / "tensorboard"), purge_step=start + 1
        )
        self._files.callback(self._writer.close)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *exception: Any) -> None:
        self._files.close()

    def write(self, row: Mapping[str, float]) -> None:
        """Writes the values of a step, by the names in `COLUMNS`, some of them."""
        if not is_first():
            return
        csv.DictWriter(self._file, COLUMNS).writerow(row)
        self._file.flush()
        for name in COLUMNS[2:]:
            if name in row:
                tag = name.replace(" ", "/")
                self._writer.add_scalar(tag, row[name], int(row["step"]))
        self._writer.flush()


def read_log(path: Path) -> list[dict[str, str]]:
    """Reads the complete lines of a log.

    Raises:
        InputError: if it is not a log.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        whole = [row for row in rows if None not in row and None not in row.values()]
        for row in whole:
            _ = int(row["step"]), float(row["seconds"])
            for name in NOISE:
                float(row.get(name) or 0)
    except (ValueError, KeyError, csv.Error) as error:
        raise InputError(
            f"{path} is damaged ({error!r}): move it away to continue with a new one;"
            " checkpoints hold all that training needs"
        ) from error
    return whole
