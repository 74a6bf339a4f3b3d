"""Logs of a run: a CSV file, and event files for TensorBoard."""

import contextlib
import csv
from typing import Any

import tensorboardX

from smoothout_jax._files import whole_file
from smoothout_jax.experiments.train_settings import TrainSettings
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

    Args:
        settings: the settings of the run.
        start: the step that the run goes on from; what was logged of later steps,
            which are trained again, is dropped.

    Only the first of several processes writes.

    Attributes:
        earlier_seconds: seconds that the steps before took.
    """

    def __init__(self, settings: TrainSettings, start: int):
        self.earlier_seconds = 0.0
        self._files = contextlib.ExitStack()
        self._writes = is_first()
        if self._writes:
            self._open(settings, start)

    def _open(self, settings, start) -> None:
        path = settings.output / "log.csv"
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
            str(settings.output / "tensorboard"), purge_step=start + 1
        )
        self._files.callback(self._writer.close)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *exception: Any) -> None:
        self._files.close()

    def write(self, row: dict[str, float]) -> None:
        """Writes what was found at a step, by the names of `COLUMNS`."""
        if not self._writes:
            return
        csv.writer(self._file).writerow([row[name] for name in COLUMNS])
        self._file.flush()
        for name in COLUMNS[2:]:
            self._writer.add_scalar(name.replace(" ", "/"), row[name], int(row["step"]))
        self._writer.flush()
