"""`smoothout evidence`: an experiment, from its trials to its results.

First SGD tries learning rates on held-out training images; then every method tries as
many strengths at the best of them. Then all methods are compared, with what they chose,
on the test images, which played no part in the choice.
"""

import dataclasses
import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from smoothout_jax import _checks
from smoothout_jax._extras import progress
from smoothout_jax._files import whole_file
from smoothout_jax.experiments import interruptions
from smoothout_jax.experiments.commands import Report
from smoothout_jax.experiments.commands.compare import (
    CompareSettings,
    Results,
    compare,
    summary,
)
from smoothout_jax.experiments.commands.compared import fault_of
from smoothout_jax.experiments.commands.unfinished import Unfinished
from smoothout_jax.experiments.methods.table import METHODS
from smoothout_jax.experiments.options import InputError, Settings, argument, option
from smoothout_jax.experiments.plans import (
    EXPERIMENTS,
    FIRST_TRIAL_SEED,
    TRIALS,
    Case,
)
from smoothout_jax.experiments.progress import announce
from smoothout_jax.experiments.reporting.formats import json_text, with_error
from smoothout_jax.experiments.reporting.provenance import provenance
from smoothout_jax.experiments.reporting.tables import terminal_tables
from smoothout_jax.experiments.training.kept import remove_kept
from smoothout_jax.experiments.training.task import Task
from smoothout_jax.experiments.training.trainer import Trainer

EQUAL = "equal_updates"
# Any will do: where the size of the noise is given, it is fixed, and the trials choose.
_FIXED_SIZES: dict[str, Any] = {"radius": 0.1, "relative_radius": 0.5, "std": 0.05}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvidenceSettings(Settings):
    """Settings of `smoothout evidence`.

    Raises:
        ValueError: if the experiment, its form or a case does not exist.
    """

    experiment: str = argument(
        f"one of {', '.join(EXPERIMENTS)}", "EXPERIMENT", choices=EXPERIMENTS
    )
    form: Literal["cpu", "full", "smoke"] = option(
        "cpu",
        "the full experiment, for a GPU; a smaller one for two CPU cores; or smoke,"
        " where there is one, to check that it runs",
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
    settings = dataclasses.replace(
        case_settings(case, data_dir, held_out=False),
        learning_rate=chosen["sgd"],
        output=output,
    )
    if EQUAL not in kept:
        kept[EQUAL] = _to_json(compare(settings, chosen, curves=False))
    twice = tuple(name for name in case.methods if METHODS[name].gradients == 2)
    fair = kept[EQUAL]
    if twice:
        halved = dataclasses.replace(settings, methods=twice, equal_gradients=True)
        fair = _to_json(compare(halved, chosen, curves=False))
    return provenance() | {
        "settings": settings.to_json(),
        "trials": trials,
        EQUAL: kept[EQUAL],
        "equal_gradients": fair,
        "minutes": kept.seconds / 60,
    }


def case_settings(case: Case, data_dir: Path, *, held_out: bool) -> CompareSettings:
    """Settings of the comparison, or of the trials on held-out images."""
    validation_size = case.validation_size if held_out else 0
    whole = case.training["train_size"] - validation_size
    return CompareSettings(
        **case.training,
        data=case.data,
        data_dir=data_dir,
        network=case.network,
        batch_size=case.batch_size or whole,
        validation_size=validation_size,
        methods=case.methods,
        seeds=case.seeds,
        noise_samples=10,
        **({} if case.holds_rise else _FIXED_SIZES),
    )


def try_strengths(case: Case, data_dir: Path, kept: Unfinished) -> dict[str, Any]:
    """Accuracy on held-out images at each strength, and the best, by method."""
    settings = case_settings(case, data_dir, held_out=True)
    began = time.monotonic()
    if "sgd" not in kept:
        kept["sgd"] = _try("sgd", Task(settings), case)
        _announce(case, settings, time.monotonic() - began)
    best = dataclasses.replace(settings, learning_rate=kept["sgd"]["chosen"])
    others = [name for name in settings.methods if name not in kept]
    task = Task(best) if others else None
    for name in progress("trials", others):
        kept[name] = _try(name, task, case)
    return {name: kept[name] for name in ("sgd", *settings.methods)}


def _announce(case: Case, settings: CompareSettings, seconds: float) -> None:
    """Says how long a case will take, from how long the trials of SGD took.

    Time goes by the number of runs, times the gradients of a step.
    """

    def trials(name: str) -> int:
        strengths = _strengths(name, settings, case)
        return METHODS[name].gradients * len(strengths) * case.trial_seeds

    gradients = [METHODS[name].gradients for name in case.methods]
    halved = sum(number == 2 for number in gradients)
    compared = case.seeds * (sum(gradients) + halved + bool(halved))
    tried = sum(trials(name) for name in case.methods if name != "sgd")
    announce(case.name, seconds * (tried + compared) / trials("sgd"))


def _strengths(name: str, settings: CompareSettings, case: Case) -> Sequence[float]:
    """The strengths that a method tries; none where it holds the rise of the loss."""
    setting, _ = METHODS[name].strength_of(settings)
    return () if setting == "loss_rise" else case.trials.get(setting, TRIALS[setting])


def _try(name: str, task: Any, case: Case) -> dict[str, Any]:
    strengths = _strengths(name, task.settings, case)
    if not strengths:
        _, default = METHODS[name].strength_of(task.settings)
        return {"strengths": [default], "accuracies": [], "chosen": default}
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
    # Of equally good strengths, the weakest; one that diverges has no accuracy.
    best = int(np.nan_to_num(accuracies.mean(1), nan=-1.0).argmax())
    return {
        "strengths": strengths,
        "accuracies": accuracies.tolist(),
        "chosen": strengths[best],
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
