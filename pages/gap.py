"""What noise that follows the gap gains: docs/gap.md."""

import functools

from pages import evidence
from pages.evidence import GAP, OURS, SWEPT, Result, grouped, of_experiment, tally
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


def against_sweeps(group: str) -> str:
    """The mean differences without a strength to choose, and of sweeps, in a group."""
    here = grouped(cases())[group]
    ours, fixed, rival = (tally(here, method).mean for method in METHODS)
    return (
        f"{ours:+.1f} with no strength chosen, {fixed:+.1f} by the best of six radii,"
        f" {rival:+.1f} by MSAM's best of six"
    )


def readme() -> str:
    """The sentence in the README."""
    return (
        "Points of test accuracy over SGD: where it fits, trained twice to use the"
        f" held-out images too, {against_sweeps('fits')}; where labels are wrong,"
        f" {against_sweeps('wrong')} ([all cases](docs/gap.md))."
    )


def section(group: str) -> str:
    """A group of cases: their mean, which harm, and each of them."""
    here = grouped(cases())[group]
    below = [each.label for each in here if each.difference(GAP)[2] < 0]
    mean = [f"{tally(here, method).mean:+.2f}" for method in METHODS]
    return (
        f"Mean of {len(here)} cases: {against_sweeps(group)}. Certainly below SGD:"
        f" {'; '.join(below) or 'none'}.\n\n"
        f"{evidence.differences(here, METHODS)}\n| mean |  | {' | '.join(mean)} |"
    )
