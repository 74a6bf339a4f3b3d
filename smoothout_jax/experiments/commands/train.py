"""`smoothout train`: one run, with checkpoints and logs, that can be resumed."""

import contextlib
import dataclasses
import json
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import jax
import numpy as np
from rich.table import Table

from smoothout_jax import _checks
from smoothout_jax.experiments import interruptions
from smoothout_jax.experiments.commands import Report
from smoothout_jax.experiments.folders import held
from smoothout_jax.experiments.methods.table import METHODS, METHODS_HELP
from smoothout_jax.experiments.options import InputError, option
from smoothout_jax.experiments.progress import Progress
from smoothout_jax.experiments.regime import learning_rate_schedule
from smoothout_jax.experiments.reporting import figures
from smoothout_jax.experiments.reporting.files import write_json
from smoothout_jax.experiments.reporting.tables import terminal_table
from smoothout_jax.experiments.settings import SharedSettings
from smoothout_jax.experiments.training.checkpoints import (
    delete_checkpoint,
    load_about,
    load_trees,
    naming_the_one_before,
    path_of,
    save_checkpoint,
    steps_of,
)
from smoothout_jax.experiments.training.logs import NOISE, Log, read_log
from smoothout_jax.experiments.training.outcome import Guessing
from smoothout_jax.experiments.training.placement import Placement
from smoothout_jax.experiments.training.processes import (
    ProcessSettings,
    any_process,
    is_first,
    processes,
)
from smoothout_jax.experiments.training.state import Noise
from smoothout_jax.experiments.training.task import Task
from smoothout_jax.experiments.training.trainer import Trainer


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings(ProcessSettings, SharedSettings):
    """Settings of `smoothout train`."""

    command: ClassVar[str] = "train"
    group: ClassVar[str] = "run"
    # What may be changed where a run is continued: the network does not depend on it.
    may_change: ClassVar[tuple[str, ...]] = ("keep", "checkpoint_minutes")

    method: str = option(
        "adasmoothout", METHODS_HELP, "NAME", choices=METHODS, common=True
    )
    seed: int = option(0, "fixes initial parameters, batches and noise", common=True)
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
        common=True,
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
        InputError: if the folder holds another run, or the loss is not finite.
    """
    with processes(settings, settings.output), contextlib.ExitStack() as stack:
        if settings.several_processes and is_first():
            stack.enter_context(held(settings.output))
        steps = steps_of(settings.output)
        if steps and not resume:
            raise InputError(
                f"output {settings.output} already holds a run, at step {steps[-1]}:"
                " continue it with --resume, or give another --output"
            )
        return Run(settings, steps[-1] if steps else None).finish()


class Run:
    """A run from its first step, or from the checkpoint of a later one."""

    def __init__(self, settings: TrainSettings, start: int | None):
        self._settings = settings
        self._method = METHODS[settings.method]
        placement = Placement(settings.mesh)
        placement.check_batch(settings.batch_size, self._method.num_parts(settings))
        self._task = Task(settings, placement)
        self._trainer = Trainer(self._method, self._task, settings.all_seeds)
        self._step = 0
        if start is not None:
            self._restore(start)
        if is_first():
            write_json(settings.output / "settings.json", settings.of_the_run())
        self._saved = time.monotonic()
        self._advise()
        if start is None:
            self._save()

    def finish(self) -> Report:
        """Trains to the end; the table to print, and the paths written."""
        settings, total = self._settings, self._task.steps
        reached = {}
        bar = Progress("training", total=total, done=self._step)
        with bar, Log(settings.output, self._step) as log:
            if self._step < total:
                bar.say("compiling the training step")
                bar.say(self._trainer.cost(range(self._step, self._next_stop())))
            seconds = log.earlier_seconds
            while self._step < total:
                before = self._step
                row, spent = self._advance()
                seconds += spent
                reached = self._evaluate()
                log.write(row | reached | {"seconds": seconds})
                accuracy = f"{100 * reached['test accuracy']:.1f} %"
                bar.postfix = f"{accuracy}, loss {row['loss']:.3g}"
                bar.update(self._step - before)
                waited = time.monotonic() - self._saved
                late = any_process(waited >= 60 * settings.checkpoint_minutes)
                if late or self._step == total:
                    self._save()
        reached = reached or self._evaluate()
        if not is_first():
            return Report(None, [])
        names = "settings.json", "log.csv", "tensorboard", "checkpoints"
        paths = [settings.output / name for name in names]
        table = self._table(reached, seconds)
        return Report(table, paths + self._picture(), warning=self._warning(reached))

    def _next_stop(self) -> int:
        """The step of the next evaluation."""
        task = self._task
        every = self._settings.evaluate_every or max(
            task.steps_per_epoch, -(-task.steps // 100)
        )
        return min(task.steps, (self._step // every + 1) * every)

    def _advance(self) -> tuple[dict[str, float], float]:
        """Trains to the next evaluation; what to log of these steps, and their time."""
        settings, task, stop = self._settings, self._task, self._next_stop()
        metrics, seconds = self._trainer.advance(self._step, stop)
        losses = metrics.loss[0]
        bad = np.flatnonzero(~np.isfinite(losses))
        if len(bad):
            raise self._diverged(self._step + int(bad[0]), float(losses[bad[0]]))
        self._step = stop
        rate = learning_rate_schedule(settings, settings.peak_learning_rate, task.steps)
        return {
            "step": self._step,
            "epoch": self._step / task.steps_per_epoch,
            "learning_rate": float(np.asarray(rate(self._step - 1))),
            "loss": float(losses.mean()),
            "accuracy": float(metrics.accuracy[0].mean()),
            **self._noise(),
        }, seconds

    def _noise(self) -> dict[str, float]:
        """How strong the noise is, if that is measured."""
        return {
            column: float(values[0])
            for column, values in zip(NOISE, self._trainer.noise(), strict=True)
            if values is not None
        }

    def _evaluate(self) -> dict[str, float]:
        reached = self._task.evaluate(*self._trainer.networks()[0])
        for loss in (reached["train loss"], reached["test loss"]):
            if not np.isfinite(loss):  # because of the last update
                raise self._diverged(self._step, loss)
        return reached

    def _diverged(self, step: int, loss: float) -> InputError:
        settings = self._settings
        last = path_of(settings.output, steps_of(settings.output)[-1])
        return InputError(
            f"the loss is {loss} at step {step}; the last good checkpoint is {last}:"
            f" {self._method.what_to_lower(settings)}, let it rise over a warmup, or"
            " clip gradients with clip_norm"
        )

    def _advise(self) -> None:
        """Sets what the run says if it is interrupted."""
        settings = self._settings
        # Not in settings.json, which --resume reads.
        options = {"output": settings.output, "mesh": settings.mesh}
        given = [
            f" --{name} {shlex.quote(str(value))}"
            for name, value in options.items()
            if value is not None
        ]
        interruptions.advise(
            f"interrupted, with a checkpoint at step {self._step} of"
            f" {self._task.steps}; to continue: smoothout train --resume"
            + "".join(given)
        )

    def _save(self) -> None:
        settings = self._settings
        ((params, stats),) = self._trainer.networks()
        params, stats = jax.tree.map(lambda leaf: leaf[None], (params, stats))
        about = {
            "command": settings.command,
            "method": settings.method,
            "settings": settings.to_json(),
            "data": self._task.about,
        }
        state = self._trainer.state.trees()
        path = path_of(settings.output, self._step)
        save_checkpoint(path, about, params=params, stats=stats, state=state)
        if is_first():
            for step in steps_of(settings.output)[: -settings.keep]:
                delete_checkpoint(path_of(settings.output, step))
        self._saved = time.monotonic()
        self._advise()

    def _restore(self, step: int) -> None:
        path = path_of(self._settings.output, step)
        with naming_the_one_before(self._settings.output, step):
            about = load_about(path)
            before = about["settings"]
        now = json.loads(json.dumps(self._settings.to_json()))
        different = [
            f"{name} was {before.get(name)!r}, not {value!r}"
            for name, value in now.items()
            if before.get(name) != value and name not in self._settings.may_change
        ]
        if about["data"]["digest"] != self._task.data.digest:
            different.append(f"files in {self._settings.data} have changed")
        if different:
            raise InputError(f"cannot resume {path}: {'; '.join(different)}")
        state = self._trainer.state
        with naming_the_one_before(self._settings.output, step):
            trees = load_trees(path, state=state.trees())
        self._trainer.restore(type(state)(**trees["state"]))
        self._step = step

    def _picture(self) -> list[Path]:
        """Draws how strong the noise was in the steps logged, if that is measured."""
        output = self._settings.output
        rows = [row for row in read_log(output / "log.csv") if row.get("radius")]
        if not rows:
            return []
        steps = np.array([float(row["step"]) for row in rows])
        noise = {
            name: np.array([[float(row[column]) for row in rows]])
            for name, column in zip(Noise._fields, NOISE, strict=True)
            if rows[-1].get(column)
        }
        drawn = {self._settings.method: (steps, noise)}
        figure = figures.noises(drawn, "How strong the noise was")
        return figures.save_figure(figure, output / "noise", ("png",))

    def _warning(self, reached: Mapping[str, float]) -> str:
        """Whether the network did not learn, and what to change."""
        guessing, loss = Guessing.on(self._task), reached["train loss"]
        if guessing.beaten_by(loss, reached["train accuracy"]):
            return ""
        reason = self._method.how_to_learn(self._settings, loss, guessing.loss)
        return f"{self._method.label} did not learn: {reason}"

    def _table(self, reached: Mapping[str, float], seconds: float) -> Table:
        settings, noise = self._settings, self._noise()
        judged = "validation" if settings.validation_size else "test"
        rows = [
            (f"{judged} accuracy", f"{100 * reached['test accuracy']:.2f} %"),
            ("train accuracy", f"{100 * reached['train accuracy']:.2f} %"),
            (f"{judged} loss", f"{reached['test loss']:.4g} nats"),
            ("train loss", f"{reached['train loss']:.4g} nats"),
        ]
        if settings.watch_size:
            watched = f"{100 * reached['watched accuracy']:.2f} %"
            rows.append(("accuracy on the watched images", watched))
        labels = {
            "radius": ("radius of the noise", ""),
            "loss rise": ("loss rise under it", " nats"),
            "loss gap": ("gap of the losses", " nats"),
        }
        rows += [
            (label, f"{noise[name]:.3g}{unit}")
            for name, (label, unit) in labels.items()
            if name in noise
        ]
        compiling = self._trainer.compile_seconds
        rows.append(("time", f"{seconds:.1f} s of steps, {compiling:.1f} s compiling"))
        title = f"{self._method.label}: {settings.data}, {settings.network}"
        return terminal_table(f"{title}, step {self._step}", rows)
