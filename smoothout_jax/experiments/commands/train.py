"""`smoothout train`: one run, with checkpoints and logs, that can be gone on with."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from rich import box
from rich.table import Table

from smoothout_jax._extras import progress
from smoothout_jax._files import whole_file
from smoothout_jax.experiments.methods.table import METHODS
from smoothout_jax.experiments.options import InputError
from smoothout_jax.experiments.regime import learning_rate_schedule, peak_learning_rate
from smoothout_jax.experiments.train_settings import TrainSettings
from smoothout_jax.experiments.training.checkpoints import (
    delete_checkpoint,
    load_settings,
    load_trees,
    path_of,
    save_checkpoint,
    steps_of,
)
from smoothout_jax.experiments.training.logs import Log
from smoothout_jax.experiments.training.placement import Placement
from smoothout_jax.experiments.training.processes import (
    any_process,
    interruption,
    is_first,
    processes,
)
from smoothout_jax.experiments.training.task import Task
from smoothout_jax.experiments.training.trainer import Trainer, strength_of

CLOCKS = ("steps", "compilation", "input", "evaluation", "checkpoints")


class InterruptionError(InputError):
    """A run was interrupted: told in a line, with how to go on."""

    status = 130


def run(
    settings: TrainSettings, resume: bool = False
) -> tuple[Table | None, list[Path]]:
    """Runs `smoothout train`: the table to print, and the paths written.

    Args:
        settings: the settings.
        resume: whether to go on from the last checkpoint in the output folder.

    Raises:
        InputError: if the folder holds another run, the loss is not finite, or the run
            is interrupted.
    """
    with processes(settings):
        return _run(settings, resume)


def _run(settings: TrainSettings, resume: bool) -> tuple[Table | None, list[Path]]:
    steps = steps_of(settings.output)
    if steps and not resume:
        raise InputError(
            f"output {settings.output} holds a run already, at step {steps[-1]}: go on"
            " with it by --resume, or give another --output"
        )
    return Run(settings, steps[-1] if steps else None).finish()


class Run:
    """A run from its first step, or from a checkpoint.

    Args:
        settings: the settings.
        start: the step of the checkpoint to go on from, if any.
    """

    def __init__(self, settings: TrainSettings, start: int | None):
        self._settings = settings
        placement = Placement(settings.mesh)
        method = METHODS[settings.method]
        placement.check_batch(
            settings.batch_size,
            method.copies(settings).get("num_copies", 2) if method.splits else 1,
        )
        self._task = Task(settings, placement)
        self._trainer = Trainer(METHODS[settings.method], self._task, (settings.seed,))
        self._step = 0
        self._seconds: dict[str, float] = dict.fromkeys(CLOCKS, 0.0)
        self._saved = time.monotonic()
        if start is None:
            if is_first():
                with whole_file(settings.output / "settings.json") as path:
                    path.write_text(json.dumps(settings.to_json(), indent=1) + "\n")
            self._save()
        else:
            self._restore(start)

    def finish(self) -> tuple[Table | None, list[Path]]:
        """Trains to the end."""
        settings, total = self._settings, self._task.steps
        bar = progress("training", total=total)
        bar.initial = bar.n = self._step
        found = None
        with interruption() as interrupted, bar, Log(settings, self._step) as log:
            while self._step < total:
                before = self._step
                row = self._advance(interrupted)
                found = self._evaluate()
                if not np.isfinite(found["train loss"]):  # the last update spoilt it
                    raise InputError(self._advice(self._step, found["train loss"]))
                seconds = log.earlier_seconds + self._seconds["steps"]
                log.write(row | found | {"seconds": seconds})
                bar.set_postfix_str(
                    f"accuracy {100 * found['test accuracy']:.1f} %,"
                    f" loss {row['loss']:.4g}",
                    refresh=False,
                )
                bar.update(self._step - before)
                waited = time.monotonic() - self._saved
                late = waited >= 60 * settings.checkpoint_minutes
                stopping, late = any_process(interrupted(), late)
                if stopping or late or self._step == total:
                    self._save()
                if stopping and self._step < total:
                    raise InterruptionError(
                        f"interrupted at step {self._step} of {total}; to go on:"
                        f" smoothout train --resume --output {settings.output}"
                    )
        found = found or self._evaluate()
        if not is_first():
            return None, []
        return self._table(found), [
            settings.output / name
            for name in ("settings.json", "log.csv", "tensorboard", "checkpoints")
        ]

    @property
    def _every(self) -> int:
        """Steps between evaluations."""
        least = -(-self._task.steps // 100)
        return self._settings.evaluate_every or max(self._task.steps_per_epoch, least)

    @property
    def _evaluations(self) -> int:
        return self._step // self._every

    def _advance(self, interrupted) -> dict[str, float]:
        """Trains to the next evaluation; what is logged of these steps."""
        settings, task = self._settings, self._task
        stop = min(task.steps, (self._evaluations + 1) * self._every)
        began, compiling = time.perf_counter(), self._trainer.compile_seconds
        metrics, seconds = self._trainer.advance(self._step, stop, interrupted)
        compiling = self._trainer.compile_seconds - compiling
        self._seconds["steps"] += seconds
        self._seconds["compilation"] += compiling
        spent = time.perf_counter() - began
        self._seconds["input"] += spent - seconds - compiling
        losses = metrics.loss[0]
        if not np.isfinite(losses).all():
            bad = self._step + int(np.flatnonzero(~np.isfinite(losses))[0])
            raise InputError(self._advice(bad, losses[bad - self._step]))
        self._step += len(losses)
        rate = learning_rate_schedule(
            settings, peak_learning_rate(settings), task.steps
        )
        return {
            "step": self._step,
            "epoch": self._step / task.steps_per_epoch,
            "learning_rate": float(np.asarray(rate(self._step - 1))),
            "loss": float(losses.mean()),
            "accuracy": float(metrics.accuracy[0].mean()),
        }

    def _evaluate(self) -> dict[str, float]:
        with self._timed("evaluation"):
            return self._task.evaluate(*self._trainer.networks()[0])

    def _advice(self, step: int, loss: float) -> str:
        settings = self._settings
        method = METHODS[settings.method]
        last = path_of(settings.output, steps_of(settings.output)[-1])
        strength = (
            f" or {method.strength} ({strength_of(method, settings):g})"
            if method.strength != "learning_rate"
            else ""
        )
        return (
            f"the loss is {loss} at step {step}; the last good checkpoint is {last}."
            f" Lower the learning_rate ({peak_learning_rate(settings):g}){strength},"
            " let it rise over a warmup, or clip gradients by clip_norm"
        )

    def _save(self) -> None:
        settings = self._settings
        with self._timed("checkpoints"):
            ((params, stats),) = self._trainer.networks()
            params, stats = jax.tree.map(lambda leaf: leaf[None], (params, stats))
            save_checkpoint(
                path_of(settings.output, self._step),
                settings.method,
                settings,
                params=params,
                stats=stats,
                state=self._trainer.state._asdict(),
            )
            if is_first():
                for step in steps_of(settings.output)[: -settings.keep]:
                    delete_checkpoint(path_of(settings.output, step))
        self._saved = time.monotonic()

    def _restore(self, step: int) -> None:
        path = path_of(self._settings.output, step)
        kept, given = load_settings(path), self._settings.to_json()
        different = [
            f"{name} was {kept.get(name)!r}, not {value!r}"
            for name, value in json.loads(json.dumps(given)).items()
            if kept.get(name) != value
        ]
        if different:
            raise InputError(f"cannot resume {path}: {'; '.join(different)}")
        state = self._trainer.state
        found = load_trees(path, state=state._asdict())
        self._trainer.restore(type(state)(**found["state"]))
        self._step = step

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._seconds[what] += time.perf_counter() - began

    def _table(self, found: dict[str, float]) -> Table:
        settings = self._settings
        title = (
            f"{METHODS[settings.method].label}: {settings.data}, {settings.network},"
            f" step {self._step}"
        )
        table = Table(
            title=title,
            min_width=len(title),
            box=box.SIMPLE_HEAD,
            show_edge=False,
            show_header=False,
        )
        held_out = "validation" if settings.validation_size else "test"
        for name in ("test accuracy", "train accuracy"):
            label = name.replace("test", held_out)
            table.add_row(label, f"{100 * found[name]:.2f} %")
        for name in ("test loss", "train loss"):
            table.add_row(name.replace("test", held_out), f"{found[name]:.4g} nats")
        total = sum(self._seconds.values()) or 1.0
        for name, seconds in self._seconds.items():
            table.add_row(
                f"time of {name}", f"{seconds:.1f} s, {100 * seconds / total:.1f} %"
            )
        return table
