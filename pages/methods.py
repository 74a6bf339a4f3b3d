"""What was measured of each method: in all cases, by commands, and on a GPU."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pages.evidence import QUESTIONS, Result, cell, of_experiment, read
from pages.source import figures, table
from smoothout_jax.experiments.commands.sharpness import WHOLE, Row, cells
from smoothout_jax.experiments.methods.table import METHODS
from smoothout_jax.experiments.plans import EXPERIMENTS
from smoothout_jax.experiments.reporting.statistics import with_error, with_interval
from smoothout_jax.experiments.reporting.tables import markdown
from smoothout_jax.experiments.reporting.verdict import verdict

# A published setting, on a GPU.
(CASE,) = EXPERIMENTS["lpf-sgd"]["gpu"]
(RESULT,) = of_experiment("lpf-sgd", "gpu")


def measured(name: str, row: Mapping[str, Any], *forms: str) -> dict[str, str]:
    """What was measured of one method, with the formats of its loss rise."""
    time = {"step time / SGD's": f"{row['relative_step_time']:.2f}"}
    if "test_accuracy" not in row:
        return {"test, %": "diverged"} | time
    difference = "" if name == "sgd" else with_interval(row["difference_to_sgd"])
    return {
        "test, %": with_error(row["test_accuracy"]),
        "minus SGD, paired [95 %]": difference,
        "train, %": f"{row['train_accuracy'][0]:.2f}",
        "loss rise under noise, nats": with_error(row["loss_rise"], *forms),
    } | time


def compared(summary: Mapping[str, Any]) -> str:
    """Results of `smoothout compare`, by method."""
    return table(
        {"method": METHODS[name].label} | measured(name, row, ".3f")
        for name, row in summary.items()
    )


def conclusion(path: str) -> str:
    """The sentence that a comparison ends with."""
    document = figures(path)
    outcomes = document["outcomes"]
    accuracies = {
        name: 100 * np.array(each["test_accuracy"]) for name, each in outcomes.items()
    }
    labels = {name: METHODS[name].label for name in outcomes}
    return verdict(accuracies, np.mean(outcomes["sgd"]["train_accuracy"]), labels)


def sharpness() -> str:
    """Results of `smoothout sharpness` for whole networks."""
    document = figures("sharpness/sharpness.json")
    rows = [Row(**row) for row in document["rows"]]
    whole = [row for row in rows if row.layer == WHOLE]
    header, *lines = cells(document["settings"]["measures"], whole)
    return markdown(header, lines)


def cases() -> str:
    """The description and all measurements of each case."""
    parts = []
    for experiment, question in QUESTIONS.items():
        parts.append(f"## {question}")
        for each in read():
            if each.experiment == experiment:
                parts += [f"### {each.label}", _description(each), details(each)]
    return "\n\n".join(parts)


def _description(each: Result) -> str:
    settings, machine = each.settings, each.case["machine"]
    width = f" of width {settings['width']}" if settings["width"] else ""
    if hidden := settings["hidden_sizes"]:
        width = f" with hidden layers {' '.join(map(str, hidden))}"
    cpu = machine["backend"] == "cpu"
    device = f"{machine['cores']} cores" if cpu else f"one {machine['device']}"
    return (
        f"Network {settings['network']}{width}, batches of {settings['batch_size']},"
        f" {settings['seeds']} seeds; {each.case['minutes']:.0f} minutes on {device}."
        f' Repeat it with `smoothout evidence {each.experiment} --cases "{each.name}"`.'
    )


def details(each: Result) -> str:
    """All measurements of one case."""
    rows = []
    for name, row in each.summary.items():
        trial, is_sgd = each.case["trials"][name], name == "sgd"
        rate = trial["chosen" if is_sgd else "learning_rate"]
        chosen = {
            "method": METHODS[name].label,
            "learning rate": f"{rate:g}",
            "strength": "" if is_sgd else _strength(trial),
        }
        rows.append(chosen | measured(name, row, ".3g", ".1g"))
    return table(rows)


def _strength(trial: Mapping[str, Any]) -> str:
    """The chosen strength, with a star at an end of those tried."""
    strengths, chosen = trial["strengths"], trial["chosen"]
    star = len(strengths) > 1 and chosen in (strengths[0], strengths[-1])
    return f"{chosen:g}{'*' if star else ''}"


def published_setting() -> str:
    """The network and its batches, and what trained it."""
    return (
        f"a ResNet-18 on CIFAR-10, batch {CASE.batch_size},"
        f" {CASE.training['precision']}, one {RESULT.case['machine']['device']}"
    )


def published_step_times() -> str:
    """A sentence of the time of a step by SGD's."""
    times = ", ".join(
        f"{METHODS[name].label} {row['relative_step_time']:.2f}"
        for name, row in RESULT.summary.items()
        if name != "sgd"
    )
    return f"Step time / SGD's of {published_setting()}: {times}."


def published_differences() -> str:
    """The differences of all methods to SGD."""
    names = (name for name in RESULT.summary if name != "sgd")
    return ", ".join(f"{METHODS[name].label} {cell(RESULT, name)}" for name in names)
