"""`smoothout evidence`: an experiment from its trials to its results.

First SGD tries learning rates on held-out training images, then every method as many
strengths at the best of them. Then all are compared, at what they chose, on the test
images, which nothing was chosen on.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from smoothout_jax._extras import progress
from smoothout_jax._files import whole_file
from smoothout_jax.experiments.commands.compare import Results, compare
from smoothout_jax.experiments.methods.table import METHODS
from smoothout_jax.experiments.options import InputError
from smoothout_jax.experiments.plans import (
    FIRST_TRIAL_SEED,
    TRIALS,
    Case,
    EvidenceSettings,
)
from smoothout_jax.experiments.reporting.figures import scalars, summary
from smoothout_jax.experiments.reporting.provenance import provenance
from smoothout_jax.experiments.training.task import Task
from smoothout_jax.experiments.training.trainer import Trainer


def run(settings: EvidenceSettings) -> tuple[Table, list[Path]]:
    """Runs `smoothout evidence`: the table to print, and the path written."""
    path = settings.output / f"{settings.experiment}-{settings.form}.json"
    document = _read(path, settings)
    for case in settings.plan:
        wanted = not settings.cases or case.name in settings.cases
        if wanted and case.name not in document["cases"]:
            document["cases"][case.name] = examine(case, settings.data_dir)
            with whole_file(path) as unfinished:
                unfinished.write_text(json.dumps(document, indent=1) + "\n")
    return _table(document), [path]


def examine(case: Case, data_dir: Path) -> dict[str, Any]:
    """Tries strengths and compares the methods; what was found, as JSON holds it."""
    began = time.monotonic()
    trials = try_strengths(case, data_dir)
    chosen = {name: trial["chosen"] for name, trial in trials.items()}
    settings = dataclasses.replace(
        case.settings(data_dir, held_out=False), learning_rate=chosen["sgd"]
    )
    results = compare(settings, chosen, curves=False)
    twice = tuple(name for name in case.methods if METHODS[name].gradients == 2)
    halved = dataclasses.replace(settings, methods=twice, equal_gradients=True)
    return provenance() | {
        "settings": settings.to_json(),
        "trials": trials,
        "equal_updates": _found(results),
        "equal_gradients": _found(compare(halved, chosen, curves=False)),
        "minutes": (time.monotonic() - began) / 60,
    }


def try_strengths(case: Case, data_dir: Path) -> dict[str, Any]:
    """Accuracy on held-out images at each strength, and the best, by method."""
    settings = case.settings(data_dir, held_out=True)
    trials = {"sgd": _try("sgd", Task(settings), case)}
    best = dataclasses.replace(settings, learning_rate=trials["sgd"]["chosen"])
    task = Task(best)
    others = [name for name in settings.methods if name != "sgd"]
    for name in progress("trials", others):
        trials[name] = _try(name, task, case)
    return trials


def _try(name: str, task: Task, case: Case) -> dict[str, Any]:
    strengths = TRIALS[METHODS[name].strength]
    seeds = range(FIRST_TRIAL_SEED, FIRST_TRIAL_SEED + case.trial_seeds)
    trainer = Trainer(
        METHODS[name],
        task,
        [seed for _ in strengths for seed in seeds],
        [strength for strength in strengths for _ in seeds],
    )
    trainer.advance(0, trainer.steps)
    accuracies = np.reshape(
        [task.evaluate(*network)["test accuracy"] for network in trainer.networks()],
        (len(strengths), len(seeds)),
    )
    # Of equally good strengths, the weakest.
    best = int(accuracies.mean(1).argmax())
    return {
        "strengths": strengths,
        "accuracies": accuracies.tolist(),
        "chosen": strengths[best],
    }


def _found(results: Results) -> dict[str, Any]:
    return {
        "summary": summary(results),
        "outcomes": {
            name: {key: values.tolist() for key, values in scalars(outcome).items()}
            for name, outcome in results.outcomes.items()
        },
    }


def _read(path: Path, settings: EvidenceSettings) -> dict[str, Any]:
    """The results so far."""
    plan = json.loads(
        json.dumps({case.name: dataclasses.asdict(case) for case in settings.plan})
    )
    if not path.exists():
        return {
            "experiment": settings.experiment,
            "form": settings.form,
            "plan": plan,
            "cases": {},
        }
    try:
        document = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}") from error
    for name in document.get("cases", {}):
        if plan.get(name) != document["plan"].get(name):
            raise InputError(
                f"{path} holds case {name!r} of another plan; give another --output"
            )
    return document | {"plan": plan}


def _table(document: dict[str, Any]) -> Table:
    table = Table(
        title=f"{document['experiment']}, {document['form']} form: test accuracy (%)"
        " minus SGD's",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=0,
    )
    table.add_column("", no_wrap=True)
    for name in document["cases"]:
        table.add_column(name, justify="right")
    for row in cells(document["cases"], short=True):
        table.add_row(*row)
    return table


def cells(cases: dict[str, Any], *, short: bool = False) -> list[list[str]]:
    """Accuracy of SGD, then the differences to it, a line for each method.

    Args:
        cases: the cases' results, by name.
        short: whether to leave the intervals out.
    """
    methods = [
        name
        for name in METHODS
        if any(name in case["trials"] for case in cases.values())
    ]
    return [
        [METHODS[name].label, *(_cell(case, name, short) for case in cases.values())]
        for name in methods
    ]


def _cell(case: dict[str, Any], name: str, short: bool) -> str:
    summary = case["equal_updates"]["summary"]
    if name not in summary:
        return ""
    if name == "sgd":
        return "{:.2f} ± {:.2f}".format(*summary[name]["test_accuracy"])
    form = "{:+.2f}" if short else "{:+.2f} [{:+.2f}, {:+.2f}]"
    return form.format(*summary[name]["difference_to_sgd"])
