"""What noise that follows the gap gains: docs/gap.md."""

import functools
from typing import Any

from pages import evidence
from pages.evidence import (
    GAP,
    GROUPS,
    OURS,
    SWEPT,
    Result,
    differences,
    grouped,
    of_experiment,
    tally,
)
from smoothout_jax.experiments.reporting.statistics import paired_difference

METHODS = (GAP, SWEPT, "msam")


@functools.cache
def cases() -> tuple[Result, ...]:
    """The cases of the sweeps, with what noise that follows the gap reached in them."""
    asked, found = (evidence.BATCHES, evidence.WRONG_LABELS), []
    swept = {each.name: each for each in evidence.read() if each.experiment in asked}
    for each in of_experiment(GAP):
        case = swept[each.name].case
        accuracies = each.accuracies(OURS), swept[each.name].accuracies("sgd")
        row = {"difference_to_sgd": paired_difference(*accuracies)}
        equal = case["equal_updates"]
        equal = equal | {"summary": equal["summary"] | {GAP: row}}
        found.append(swept[each.name]._replace(case=case | {"equal_updates": equal}))
    return tuple(found)


def against_sweeps() -> dict[str, str]:
    """The mean differences without a strength to choose, and of sweeps, by group."""
    found = {}
    for group, here in grouped(cases()).items():
        ours, fixed, rival = (tally(here, method).mean for method in METHODS)
        found[f"gap_{group}"] = (
            f"{ours:+.1f} with no strength chosen, {fixed:+.1f} by the best of six"
            f" radii, {rival:+.1f} by MSAM's best of six"
        )
    return found


def readme() -> str:
    """The sentence in the README."""
    found = against_sweeps()
    return (
        "Points of test accuracy over SGD: where it fits, trained twice to use the"
        f" held-out images too, {found['gap_fits']}; where labels are wrong,"
        f" {found['gap_wrong']} ([all cases](docs/gap.md))."
    )


def section(group: str, here: list[Result]) -> str:
    """A group of cases: their mean, which harm, and each of them."""
    below = [each.label for each in here if each.difference(GAP)[2] < 0]
    mean = [f"{tally(here, method).mean:+.2f}" for method in METHODS]
    return (
        f"## {GROUPS[group]}\n\n"
        f"Mean of {len(here)} cases: {against_sweeps()[f'gap_{group}']}. Certainly"
        f" below SGD: {'; '.join(below) or 'none'}.\n\n"
        f"{differences(here, METHODS)}\n| mean |  | {' | '.join(mean)} |"
    )


def values() -> dict[str, Any]:
    """What the page says, by name."""
    sections = [section(*each) for each in grouped(cases()).items()]
    missing = evidence.missing([GAP])
    return {"groups": "\n\n".join(sections), "missing": len(missing)}
