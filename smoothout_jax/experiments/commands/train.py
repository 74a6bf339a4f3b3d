"""`smoothout train`: one run, with checkpoints and logs, that can be resumed."""

import contextlib
import dataclasses
from pathlib import Path
from typing import ClassVar

from smoothout_jax import _checks
from smoothout_jax.experiments.commands import Report
from smoothout_jax.experiments.commands.running import Run
from smoothout_jax.experiments.folders import held
from smoothout_jax.experiments.methods.table import METHODS, METHODS_HELP
from smoothout_jax.experiments.options import InputError, option
from smoothout_jax.experiments.settings import SharedSettings
from smoothout_jax.experiments.training.checkpoints import steps_of
from smoothout_jax.experiments.training.processes import (
    ProcessSettings,
    is_first,
    processes,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings(ProcessSettings, SharedSettings):
    """Settings of `smoothout train`.

    Raises:
        TypeError, ValueError: if a value is out of its range, or two values conflict.
    """

    command: ClassVar[str] = "train"
    # What may be changed where a run is continued: the network does not depend on it.
    may_change: ClassVar[tuple[str, ...]] = ("keep", "checkpoint_minutes")

    method: str = option("adasmoothout", METHODS_HELP, choices=METHODS)
    seed: int = option(0, "fixes initial parameters, batches and noise")
    evaluate_every: int | None = option(
        None,
        "steps between evaluations, each a line of the log; by default an epoch, or a"
        " hundredth of training if that is longer",
    )
    checkpoint_minutes: float = option(
        1.0, "least minutes between checkpoints, which follow evaluations"
    )
    keep: int = option(2, "number of checkpoints to keep, the last ones")
    output: Path = option(
        Path("smoothout-run"),
        "folder for checkpoints, logs and settings",
        "FOLDER",
        machine=True,
    )

    def __post_init__(self):
        super().__post_init__()
        _checks.count(keep=self.keep, **self._given("evaluate_every"))
        _checks.nonnegative(checkpoint_minutes=self.checkpoint_minutes)
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed must be in [0, 2³¹), got {self.seed}")
        self.check_parts(self.method)

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """The seed that the network is trained from."""
        return (self.seed,)


def run(settings: TrainSettings, resume: bool = False) -> Report:
    """Runs `smoothout train`: the table to print, and the paths written.

    Args:
        settings: the settings.
        resume: whether to continue from the last checkpoint in the output folder.

    Raises:
        InputError: if the folder holds another run, the loss is not finite, or the run
            is interrupted.
    """
    with processes(settings, settings.output), contextlib.ExitStack() as stack:
        if settings.several_processes and is_first():
            stack.enter_context(held(settings.output, settings.command))
        return _run(settings, resume)


def _run(settings: TrainSettings, resume: bool) -> Report:
    steps = steps_of(settings.output)
    if steps and not resume:
        raise InputError(
            f"output {settings.output} already holds a run, at step {steps[-1]}:"
            " continue it with --resume, or give another --output"
        )
    return Run(settings, steps[-1] if steps else None).finish()
