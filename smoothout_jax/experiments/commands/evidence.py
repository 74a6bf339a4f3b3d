"""`smoothout evidence`: an experiment, from its trials to its results.

First the trials, on held-out training images; then all methods are compared, with what
they chose, on the test images, which played no part in the choice.
"""

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any, Literal

from smoothout_jax import _checks
from smoothout_jax._files import whole_file
from smoothout_jax.experiments import interruptions
from smoothout_jax.experiments.commands import Report
from smoothout_jax.experiments.commands.compare import (
    Results,
    compare,
    summary,
)
from smoothout_jax.experiments.commands.table import fault_of
from smoothout_jax.experiments.commands.trials import (
    RECIPE,
    case_settings,
    try_strengths,
)
from smoothout_jax.experiments.commands.unfinished import Unfinished
from smoothout_jax.experiments.methods.table import METHODS
from smoothout_jax.experiments.options import InputError, Settings, argument, option
from smoothout_jax.experiments.plans import EXPERIMENTS, Case
from smoothout_jax.experiments.reporting.formats import json_text, with_error
from smoothout_jax.experiments.reporting.provenance import provenance
from smoothout_jax.experiments.reporting.tables import terminal_tables
from smoothout_jax.experiments.training.kept import remove_kept

EQUAL = "equal_updates"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvidenceSettings(Settings):
    """Settings of `smoothout evidence`.

    Raises:
        ValueError: if the experiment, its form or a case does not exist.
    """

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
    """Runs `smoothout evidence`: the table to print, and the path written."""
    path = settings.output / f"{settings.experiment}-{settings.form}.json"
    document = _read(path, settings)
    chosen = [
        case
        for case in settings.plan
        if not settings.cases or case.name in settings.cases
    ]
    for case in chosen:
        if case.name in document["cases"]:
            continue
        trials = Unfinished(settings.output / "unfinished.json", case.to_json())
        interruptions.advise(partial(_interrupted, document, chosen, trials))
        with trials.timed():
            document["cases"][case.name] = examine(
                case, settings.data_dir, trials, settings.output
            )
        with whole_file(path) as unfinished:
            unfinished.write_text(json_text(document))
        trials.remove()
        remove_kept(settings.output)
    diverged, unlearned = (
        _told(document, fault) for fault in ("diverged", "did not learn")
    )
    return Report(_tables(document), [path], diverged, unlearned)


def _interrupted(document: dict[str, Any], chosen: list[Case], trials: Unfinished):
    done = sum(case.name in document["cases"] for case in chosen)
    if not done and not trials:
        return "interrupted: nothing was done yet"
    return (
        f"interrupted: {done} of {len(chosen)} cases and the trials of"
        f" {sum(name in METHODS for name in trials)} methods of the next are done; to"
        " continue, run the same command again"
    )


def _told(document: dict[str, Any], fault: str) -> str:
    """Which methods have a fault; empty if none has."""
    told = [
        f"{METHODS[name].label} {fault} in {case}"
        for case, found in document["cases"].items()
        for name, row in found[EQUAL]["summary"].items()
        if fault_of(row) == fault
    ]
    return "; ".join(told)


def examine(
    case: Case, data_dir: Path, kept: Unfinished, output: Path
) -> dict[str, Any]:
    """Tries strengths and compares the methods; the results, as JSON holds them.

    Args:
        case: the case.
        data_dir: the folder of the data sets.
        kept: what is done of it, the trials by method; the rest is added.
        output: the folder where unfinished training is kept.
    """
    trials = try_strengths(case, data_dir, kept)
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
    if EQUAL not in kept:
        kept[EQUAL] = _to_json(compare(settings, chosen, rates, curves=False))
    twice = tuple(name for name in case.methods if METHODS[name].gradients == 2)
    fair = kept[EQUAL]
    if twice:
        halved = dataclasses.replace(settings, methods=twice, equal_gradients=True)
        fair = _to_json(compare(halved, chosen, rates, curves=False))
    return provenance() | {
        "settings": settings.to_json(),
        "trials": trials,
        EQUAL: kept[EQUAL],
        "equal_gradients": fair,
        "minutes": kept.seconds / 60,
    }


def _to_json(results: Results) -> dict[str, Any]:
    return {
        "summary": summary(results),
        "outcomes": {
            name: {key: values.tolist() for key, values in outcome.scalars.items()}
            for name, outcome in results.outcomes.items()
        },
    }


def _read(path: Path, settings: EvidenceSettings) -> dict[str, Any]:
    """Reads the results so far."""
    plan = {case.name: case.to_json() for case in settings.plan}
    if not path.exists():
        return {
            "experiment": settings.experiment,
            "form": settings.form,
            "plan": plan,
            "cases": {},
        }
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


def _tables(document: dict[str, Any]) -> Any:
    return terminal_tables(
        f"{document['experiment']}, {document['form']} form: test accuracy (%) minus"
        " SGD's",
        _cells(document["cases"]),
        header=("", *document["cases"]),
    )


def _cells(cases: dict[str, Any]) -> list[list[str]]:
    """Accuracy of SGD, then the differences to it: a row for each method."""
    return [
        [METHODS[name].label, *(_cell(case, name) for case in cases.values())]
        for name in METHODS
        if any(name in case["trials"] for case in cases.values())
    ]


def _cell(case: dict[str, Any], name: str) -> str:
    summary = case["equal_updates"]["summary"]
    if name not in summary:
        return ""
    if fault := fault_of(summary[name]):
        return fault
    if name == "sgd":
        return with_error(summary[name]["test_accuracy"])
    if fault_of(summary["sgd"]):
        return ""
    difference = summary[name]["difference_to_sgd"]
    return "" if difference is None else f"{difference[0]:+.2f}"
