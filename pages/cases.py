"""The page of all figures, case by case."""

from collections.abc import Mapping
from typing import Any

from pages.evidence import QUESTIONS, Result
from smoothout_jax.experiments.methods.table import METHODS
from smoothout_jax.experiments.reporting.formats import with_error, with_interval
from smoothout_jax.experiments.reporting.tables import markdown

HEAD = """<!-- Made by python -m pages.results; do not edit. -->

# Case by case

All figures behind [the results](results.md). A star marks a strength at an end of those
tried, after two of its neighbours beyond were tried too."""
HEADER = (
    "method", "learning rate", "strength", "test, %", "minus SGD, paired [95 %]",
    "train, %", "loss rise under noise, nats", "step time / SGD's",
)  # fmt: skip


def page(results: list[Result]) -> str:
    """The page."""
    parts = [HEAD]
    for experiment, question in QUESTIONS.items():
        here = [each for each in results if each.experiment == experiment]
        if here:
            parts.append(f"## {question}")
        for each in here:
            parts += [f"### {each.label}", _description(each), details(each)]
    return "\n\n".join(parts) + "\n"


def _description(each: Result) -> str:
    settings = each.settings
    width = f" of width {settings['width']}" if settings["width"] else ""
    hidden = settings["hidden_sizes"]
    if hidden:
        width = f" with hidden layers {' '.join(map(str, hidden))}"
    return (
        f"Network {settings['network']}{width}, batches of {settings['batch_size']},"
        f" {settings['seeds']} seeds; {each.case['minutes']:.0f} minutes on"
        f" {each.machine}. Repeat it with `smoothout evidence"
        f' {each.experiment} --cases "{each.name}"`.'
    )


def details(each: Result) -> str:
    """All measurements of one case."""
    rows = []
    for name, row in each.summary.items():
        trial = each.case["trials"][name]
        rate = trial["chosen"] if name == "sgd" else trial["learning_rate"]
        cells = [
            METHODS[name].label,
            f"{rate:g}",
            "" if name == "sgd" else _strength(trial),
        ]
        if "test_accuracy" in row:
            cells += [
                with_error(row["test_accuracy"]),
                "" if name == "sgd" else with_interval(row["difference_to_sgd"]),
                "{:.2f}".format(row["train_accuracy"][0]),
                with_error(row["loss_rise"], ".3g", ".1g"),
            ]
        else:
            cells += ["diverged", "", "", ""]
        rows.append((*cells, "{:.2f}".format(row["relative_step_time"])))
    return markdown(HEADER, rows)


def _strength(trial: Mapping[str, Any]) -> str:
    """The chosen strength, with a star at an end of those tried."""
    ends = trial["strengths"][0], trial["strengths"][-1]
    several = len(trial["strengths"]) > 1
    star = "*" if several and trial["chosen"] in ends else ""
    return f"{trial['chosen']:g}{star}"
