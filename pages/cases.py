"""All figures behind the results, case by case: docs/cases.md."""

from collections.abc import Mapping
from typing import Any

from pages.commands import measured
from pages.evidence import QUESTIONS, Result, read
from pages.source import table
from smoothout_jax.experiments.methods.table import METHODS


def every() -> str:
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
    on = f"{machine['cores']} cores" if cpu else f"one {machine['device']}"
    return (
        f"Network {settings['network']}{width}, batches of {settings['batch_size']},"
        f" {settings['seeds']} seeds; {each.case['minutes']:.0f} minutes on {on}."
        f' Repeat it with `smoothout evidence {each.experiment} --cases "{each.name}"`.'
    )


def details(each: Result) -> str:
    """All measurements of one case."""
    rows = []
    for name, row in each.summary.items():
        trial, is_sgd = each.case["trials"][name], name == "sgd"
        rate = trial["chosen" if is_sgd else "learning_rate"]
        cells = {
            "method": METHODS[name].label,
            "learning rate": f"{rate:g}",
            "strength": "" if is_sgd else _strength(trial),
        }
        rows.append(cells | measured(name, row, ".3g", ".1g"))
    return table(rows)


def _strength(trial: Mapping[str, Any]) -> str:
    """The chosen strength, with a star at an end of those tried."""
    strengths, chosen = trial["strengths"], trial["chosen"]
    star = len(strengths) > 1 and chosen in (strengths[0], strengths[-1])
    return f"{chosen:g}{'*' if star else ''}"
