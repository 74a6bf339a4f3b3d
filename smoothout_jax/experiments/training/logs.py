"""Logs of a run: a CSV file, and event files for TensorBoard."""

import contextlib
import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorboardX

from smoothout_jax._files import whole_file
from smoothout_jax.experiments.training.processes import is_first

COLUMNS = (
    "step",
    "epoch",
    "learning_rate",
    "loss",
    "accuracy",
    "train loss",
    "train accuracy",
    "test loss",
    "test accuracy",
    "seconds",
)


class Log:
    """A context manager that writes a line for each evaluation.

    Only the first of several processes writes.

    Args:
        output: the folder of the run.
        start: the step that the run continues from; lines of later steps, which are
            trained again, are dropped.

    Attributes:
        earlier_seconds: seconds that the steps up to `start` took.
    """

    def __init__(self, output: Path, start: int):
        self.earlier_seconds = 0.0
        self._files = contextlib.ExitStack()
        self._writes = is_first()
        if self._writes:
            self._open(output, start)

    def _open(self, output, start) -> None:
        path = output / "log.csv"
        lines = [COLUMNS]
        if path.exists() and start:
            with path.open(newline="") as file:
                rows = list(csv.reader(file))[1:]
            whole = [row for row in rows if len(row) == len(COLUMNS)]
            lines += [row for row in whole if int(row[0]) <= start]
        if len(lines) > 1:
            self.earlier_seconds = float(lines[-1][-1])
        with whole_file(path) as unfinished, unfinished.open("w", newline="") as file:
            csv.writer(file).writerows(lines)
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
        """Writes the values of a step, by the names in `COLUMNS`."""
        if not self._writes:
            return
        csv.writer(self._file).writerow([row[name] for name in COLUMNS])
        self._file.flush()
        for name in COLUMNS[2:]:
            self._writer.add_scalar(name.replace(" ", "/"), row[name], int(row["step"]))
        self._writer.flush()
