"""`smoothout evidence`: an experiment, from its trials to its results.

First the trials, on held-out training images; then all methods are compared, with what
they chose, on the test images, which played no part in the choice.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

from rich.console import Group

from smoothout_jax import _checks
from smoothout_jax.experiments import interruptions
from smoothout_jax.experiments.commands import Report
from smoothout_jax.experiments.commands.compare import compare
from smoothout_jax.experiments.commands.trials import (
    RECIPE,
    case_settings,
    try_strengths,
)
from smoothout_jax.experiments.methods.table import METHODS
from smoothout_jax.experiments.options import InputError, Settings, argument, option
from smoothout_jax.experiments.plans import EXPERIMENTS, Case
from smoothout_jax.experiments.reporting.comparison import (
    Results,
    difference_to_sgd,
    fault_of,
    summary,
)
from smoothout_jax.experiments.reporting.files import provenance, write_json
from smoothout_jax.experiments.reporting.statistics import with_error
from smoothout_jax.experiments.reporting.tables import terminal_tables
from smoothout_jax.experiments.training.resuming import (
    SavedResults,
    delete_saved_training,
)

EQUAL = "equal_updates"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvidenceSettings(Settings):
    """Settings of `smoothout evidence`."""

    experiment: str = argument(
        f"one of {', '.join(EXPERIMENTS)}", "EXPERIMENT", choices=EXPERIMENTS
    )
    form: Literal["cpu", "gpu", "smoke"] = option(
        "cpu",
        "its size: for two CPU cores, for one GPU, or, to check that it runs, smoke;"
        " not every experiment has each",
    )
    cases: tuple[str, ...] = option(
        (), "cases to run, such as 'mlp, batch full'; by default all", "CASE"
    )
    data_dir: Path = option(
        Path("data"), "folder of the data sets, as for smoothout compare", "FOLDER"
    )
    output: Path = option(
        Path("smoothout-evidence"),
        "folder of the results; a run adds the cases that are missing there",
        "FOLDER",
    )

    def __post_init__(self):
        super().__post_init__()
        _checks.choice(tuple(EXPERIMENTS[self.experiment]), form=self.form)
        names = tuple(case.name for case in self.plan)
        for name in self.cases:
            _checks.choice(names, cases=name)

    @property
    def plan(self) -> tuple[Case, ...]:
        """The cases of the experiment in its form."""
        return EXPERIMENTS[self.experiment][self.form]


def run(settings: EvidenceSettings) -> Report:
    """Runs the experiment: the table to print, and the path written."""
    path = settings.output / f"{settings.experiment}-{settings.form}.json"
    document = _read(path, settings)
    interruptions.advise(
        "interrupted: cases and trials that are done are kept; to continue, run the"
        " same command again"
    )
    for case in settings.plan:
        chosen = not settings.cases or case.name in settings.cases
        if case.name in document["cases"] or not chosen:
            continue
        saved = SavedResults(settings.output, case.to_json())
        found = examine(case, settings.data_dir, saved, settings.output)
        document["cases"][case.name] = found
        write_json(path, document)
        saved.delete()
        delete_saved_training(settings.output)
    faults = (_named(document, each) for each in ("diverged", "did not learn"))
    return Report(_table(document), [path], *faults)


def _named(document: dict[str, Any], fault: str) -> str:
    """Which methods have a fault; empty if none has."""
    return "; ".join(
        f"{METHODS[name].label} {fault} in {case}"
        for case, found in document["cases"].items()
        for name, row in found[EQUAL]["summary"].items()
        if fault_of(row) == fault
    )


def examine(
    case: Case, data_dir: Path, saved: SavedResults, output: Path
) -> dict[str, Any]:
    """Tries strengths and compares the methods; the results, as JSON holds them.

    Trials that are in `saved`, and training saved in `output`, are continued.
    """
    trials = try_strengths(case, data_dir, saved)
    chosen = {name: trial["chosen"] for name, trial in trials.items()}
    recipe = {case.recipe: chosen.pop(RECIPE)} if case.recipe else {}
    rates = {name: trials[name]["learning_rate"] for name in case.methods}
    rates["sgd"] = chosen["sgd"]
    settings = dataclasses.replace(
        case_settings(case, data_dir, held_out=False),
        learning_rate=chosen["sgd"],
        output=output,
        **recipe,
    )
    if EQUAL not in saved:
        saved[EQUAL] = _to_json(compare(settings, chosen, rates, curves=False))
    fair = saved[EQUAL]
    if twice := tuple(name for name in case.methods if METHODS[name].gradients == 2):
        halved = dataclasses.replace(settings, methods=twice, equal_gradients=True)
        fair = _to_json(compare(halved, chosen, rates, curves=False))
    return provenance() | {
        "settings": settings.to_json(),
        "trials": trials,
        EQUAL: saved[EQUAL],
        "equal_gradients": fair,
        "minutes": saved.seconds / 60,
    }


def _to_json(results: Results) -> dict[str, Any]:
    outcomes = {name: outcome.scalars for name, outcome in results.outcomes.items()}
    return {"summary": summary(results), "outcomes": outcomes}


def _read(path: Path, settings: EvidenceSettings) -> dict[str, Any]:
    """Reads the results so far."""
    plan = {case.name: case.to_json() for case in settings.plan}
    if not path.exists():
        names = {"experiment": settings.experiment, "form": settings.form}
        return names | {"plan": plan, "cases": {}}
    try:
        document = json.loads(path.read_text())
        for name, case in document["cases"].items():
            if plan.get(name) != document["plan"][name]:
                raise InputError(
                    f"{path} holds case {name!r} of another plan; give another --output"
                )
            _ = case["trials"], case[EQUAL]["summary"]["sgd"]
    except InputError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is damaged, or not of smoothout evidence: {error!r}; move it away,"
            " or give another --output"
        ) from error
    return document | {"plan": plan}


def _table(document: dict[str, Any]) -> Group:
    """Accuracy of SGD, and the differences to it: a row for each case."""
    found = {name: case[EQUAL]["summary"] for name, case in document["cases"].items()}
    methods = [name for name in METHODS if any(name in rows for rows in found.values())]
    return terminal_tables(
        f"{document['experiment']}, {document['form']} form: test accuracy (%) minus"
        " SGD's",
        [[case, *(_cell(rows, n) for n in methods)] for case, rows in found.items()],
        header=("", *(METHODS[name].label for name in methods)),
        at_once=4,
    )


def _cell(rows: dict[str, Any], name: str) -> str:
    if name not in rows:
        return ""
    if fault := fault_of(rows[name]):
        return fault
    if name == "sgd":
        return with_error(rows[name]["test_accuracy"])
    difference = difference_to_sgd(rows, name)
    return f"{difference[0]:+.2f}" if difference else ""
