"""One run of `smoothout train`, from its first step or from a checkpoint."""

import json
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from rich.table import Table

from smoothout_jax._extras import progress
from smoothout_jax._files import whole_file
from smoothout_jax.experiments import interruptions
from smoothout_jax.experiments.commands import Report, advice
from smoothout_jax.experiments.methods.table import METHODS
from smoothout_jax.experiments.options import InputError
from smoothout_jax.experiments.progress import Forecast
from smoothout_jax.experiments.regime import learning_rate_schedule
from smoothout_jax.experiments.reporting import figures
from smoothout_jax.experiments.reporting.tables import terminal_table
from smoothout_jax.experiments.training.checkpoints import (
    delete_checkpoint,
    load_about,
    load_trees,
    naming_the_one_before,
    path_of,
    save_checkpoint,
    steps_of,
)
from smoothout_jax.experiments.training.guessing import Guessing
from smoothout_jax.experiments.training.logs import NOISE, Log, read_log
from smoothout_jax.experiments.training.placement import Placement
from smoothout_jax.experiments.training.processes import any_process, is_first
from smoothout_jax.experiments.training.state import Noise
from smoothout_jax.experiments.training.task import Task
from smoothout_jax.experiments.training.trainer import Trainer

if TYPE_CHECKING:
    from smoothout_jax.experiments.commands.train import TrainSettings

CLOCKS = ("steps", "compilation", "input", "evaluation", "checkpoints")


class Run:
    """A run from its first step, or from a checkpoint.

    Args:
        settings: the settings.
        start: the step of the checkpoint to continue from, if any.
    """

    def __init__(self, settings: "TrainSettings", start: int | None):
        self._settings = settings
        self._method = METHODS[settings.method]
        placement = Placement(settings.mesh)
        placement.check_batch(settings.batch_size, self._method.num_parts(settings))
        self._task = Task(settings, placement)
        self._trainer = Trainer(self._method, self._task, settings.all_seeds)
        self._step = 0
        self._seconds: dict[str, float] = dict.fromkeys(CLOCKS, 0.0)
        self._saved = time.monotonic()
        if start is not None:
            self._restore(start)
        if is_first():
            with whole_file(settings.output / "settings.json") as path:
                path.write_text(json.dumps(settings.to_json(), indent=1) + "\n")
        self._advise()
        if start is None:
            self._save()

    def finish(self) -> Report:
        """Trains to the end; the table to print, and the paths written."""
        settings, total = self._settings, self._task.steps
        reached, forecast = None, Forecast("training")
        self._prepare()
        bar = self._bar()
        with (
            interruptions.deferred() as interrupted,
            bar,
            Log(settings.output, self._step) as log,
        ):
            while self._step < total:
                before = self._step
                row = self._advance(interrupted)
                reached = self._evaluate()
                for loss in (reached["train loss"], reached["test loss"]):
                    if not np.isfinite(loss):  # because of the last update
                        raise InputError(self._advice(self._step, loss))
                seconds = log.earlier_seconds + self._seconds["steps"]
                log.write(row | reached | {"seconds": seconds})
                accuracy = f"{100 * reached['test accuracy']:.1f} %"
                bar.set_postfix_str(f"{accuracy}, loss {row['loss']:.3g}", False)
                bar.update(self._step - before)
                if is_first():
                    forecast.update(self._step, total)
                waited = time.monotonic() - self._saved
                late = waited >= 60 * settings.checkpoint_minutes
                stopping, late = any_process(interrupted(), late)
                if stopping or late or self._step == total:
                    self._save()
                if stopping and self._step < total:
                    interruptions.end()
        reached = reached or self._evaluate()
        if not is_first():
            return Report(None, [])
        names = "settings.json", "log.csv", "tensorboard", "checkpoints"
        paths = [settings.output / name for name in names]
        warning = self._warning(reached["train loss"], reached["train accuracy"])
        return Report(self._table(reached), paths + self._picture(), warning=warning)

    def _bar(self) -> Any:
        bar = progress("training", total=self._task.steps)
        bar.initial = bar.n = self._step
        # Short enough for a terminal of 80 columns.
        bar.bar_format = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}" + (
            " [{elapsed}<{remaining}{postfix}]"
        )
        return bar

    def _advise(self) -> None:
        """Sets what the run says if it is interrupted."""
        interruptions.advise(
            f"interrupted at step {self._step} of {self._task.steps}; to continue:"
            f" smoothout train --resume{self._machine}"
        )

    @property
    def _machine(self) -> str:
        """The options of a run that its settings.json does not hold."""
        settings = self._settings
        options = {"output": settings.output, "mesh": settings.mesh}
        if settings.data_dir != type(settings).data_dir:
            options["data-dir"] = settings.data_dir
        return "".join(
            f" --{name} {shlex.quote(str(value))}"
            for name, value in options.items()
            if value is not None
        )

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

    @property
    def _every(self) -> int:
        """Steps between evaluations."""
        least = -(-self._task.steps // 100)
        return self._settings.evaluate_every or max(self._task.steps_per_epoch, least)

    @property
    def _next(self) -> int:
        """The step of the next evaluation."""
        return min(self._task.steps, (self._step // self._every + 1) * self._every)

    def _prepare(self) -> None:
        """Compiles the next steps, while an interruption can end the process at once.

        Nothing would be lost: there is no step that is not in a checkpoint.
        """
        if self._step < self._task.steps:
            compiling = self._trainer.compile_seconds
            self._trainer.prepare(self._step, self._next)
            self._seconds["compilation"] += self._trainer.compile_seconds - compiling

    def _advance(self, interrupted: Callable[[], bool]) -> dict[str, float]:
        """Trains to the next evaluation; what to log of these steps."""
        settings, task = self._settings, self._task
        began, compiling = time.perf_counter(), self._trainer.compile_seconds
        metrics, seconds = self._trainer.advance(self._step, self._next, interrupted)
        compiling = self._trainer.compile_seconds - compiling
        self._seconds["steps"] += seconds
        self._seconds["compilation"] += compiling
        spent = time.perf_counter() - began
        self._seconds["input"] += spent - seconds - compiling
        losses = metrics.loss[0]
        if not np.isfinite(losses).all():
            bad = self._step + int(np.flatnonzero(~np.isfinite(losses))[0])
            raise InputError(self._advice(bad, float(losses[bad - self._step])))
        self._step += len(losses)
        rate = learning_rate_schedule(settings, settings.peak_learning_rate, task.steps)
        return {
            "step": self._step,
            "epoch": self._step / task.steps_per_epoch,
            "learning_rate": float(np.asarray(rate(self._step - 1))),
            "loss": float(losses.mean()),
            "accuracy": float(metrics.accuracy[0].mean()),
            **self._noise(),
        }

    def _noise(self) -> dict[str, float]:
        """How strong the noise is, if that is measured."""
        return {
            column: float(values[0])
            for column, values in zip(NOISE, self._trainer.noise(), strict=True)
            if values is not None
        }

    def _evaluate(self) -> dict[str, float]:
        with self._timed("evaluation"):
            return self._task.evaluate(*self._trainer.networks()[0])

    def _advice(self, step: int, loss: float) -> str:
        settings = self._settings
        last = path_of(settings.output, steps_of(settings.output)[-1])
        return (
            f"the loss is {loss} at step {step}; the last good checkpoint is {last}:"
            f" {advice.lower(self._method, settings)}, let it rise over a warmup, or"
            " clip gradients with clip_norm"
        )

    def _warning(self, loss: float, accuracy: float) -> str:
        """Whether the network did not learn, and what to change."""
        guessing = Guessing.on(self._task)
        if guessing.beaten_by(loss, accuracy):
            return ""
        reason = advice.to_learn(self._method, self._settings, loss, guessing.loss)
        return f"{self._method.label} did not learn: {reason}"

    def _save(self) -> None:
        settings = self._settings
        with self._timed("checkpoints"):
            ((params, stats),) = self._trainer.networks()
            params, stats = jax.tree.map(lambda leaf: leaf[None], (params, stats))
            save_checkpoint(
                path_of(settings.output, self._step),
                {
                    "command": settings.command,
                    "method": settings.method,
                    "settings": settings.to_json(),
                },
                params=params,
                stats=stats,
                state=self._trainer.state.trees(),
            )
            if is_first():
                for step in steps_of(settings.output)[: -settings.keep]:
                    delete_checkpoint(path_of(settings.output, step))
        self._saved = time.monotonic()
        self._advise()

    def _restore(self, step: int) -> None:
        path = path_of(self._settings.output, step)
        with naming_the_one_before(self._settings.output, step):
            before = load_about(path)["settings"]
        now = json.loads(json.dumps(self._settings.to_json()))
        different = [
            f"{name} was {before.get(name)!r}, not {value!r}"
            for name, value in now.items()
            if before.get(name) != value and name not in self._settings.may_change
        ]
        if different:
            raise InputError(f"cannot resume {path}: {'; '.join(different)}")
        state = self._trainer.state
        with naming_the_one_before(self._settings.output, step):
            trees = load_trees(path, state=state.trees())
        self._trainer.restore(type(state)(**trees["state"]))
        self._step = step

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._seconds[what] += time.perf_counter() - began

    def _table(self, reached: Mapping[str, float]) -> Table:
        settings = self._settings
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
        noise = self._noise()
        if noise:
            rows += [
                ("radius of the noise", f"{noise['radius']:.3g}"),
                ("loss rise under it", f"{noise['loss rise']:.3g} nats"),
            ]
        if "loss gap" in noise:
            rows.append(("gap of the losses", f"{noise['loss gap']:.3g} nats"))
        total = sum(self._seconds.values()) or 1.0
        for name, seconds in self._seconds.items():
            share = 100 * seconds / total
            rows.append((f"time of {name}", f"{seconds:.1f} s, {share:.1f} %"))
        title = f"{self._method.label}: {settings.data}, {settings.network}"
        return terminal_table(f"{title}, step {self._step}", rows)
