"""What noise that follows the gap gains: docs/gap.md."""

import functools

from pages import evidence
from pages.evidence import GAP, OURS, SWEPT, Result, grouped, of_experiment, tally
from pages.source import table
from smoothout_jax.experiments.reporting.statistics import paired_difference

METHODS = (GAP, SWEPT, "msam")
# What the README calls the groups of cases.
README = {
    "wrong": "20 to 60 % of the labels are wrong",
    "fits": "labels are right, and SGD fits all images",
    "short": "SGD does not fit its images",
}


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
    """The README's table: the mean difference in each group, and how often certain."""
    rows, here = [], grouped(cases())
    for group, cause in README.items():
        mean, better, undecided, worse = tally(here[group], GAP)
        row = {"cases in which": cause, "points gained, mean": f"{mean:+.1f}"}
        rows.append(row | {"better in": f"{better} of {better + undecided + worse}"})
    return table(rows)


def rivals() -> str:
    """The README's sentence on methods whose strength a sweep chooses."""
    wrong, short = (grouped(cases())[group] for group in ("wrong", "short"))
    fixed, rival = (f"{tally(wrong, method).mean:+.1f}" for method in METHODS[1:])
    worse = tally(wrong, GAP).worse
    return (
        f"In {worse} of {len(wrong)} cases with wrong labels, it is certainly worse."
        f" There, the best of six strengths gains {fixed} for noise of a fixed"
        f" radius, and {rival} for MSAM. Where SGD does not fit, the gain over"
        f" the SGD of the same runs is only {tally(own(short)).mean:+.1f}."
    )


def own(cases: list[Result]) -> list[Result]:
    """The same cases, compared with SGD of their own run."""
    names = [each.name for each in cases]
    return [each for each in of_experiment(GAP) if each.name in names]


def to_own_sgd(group: str) -> str:
    """The mean difference to SGD of the same run in a group."""
    return f"{tally(own(grouped(cases())[group])).mean:+.1f} to SGD of its own run"


def section(group: str) -> str:
    """A group of cases: their mean, which harm, and each of them."""
    here = grouped(cases())[group]
    below = [each.label for each in here if each.difference(GAP)[2] < 0]
    mean = [f"{tally(here, method).mean:+.2f}" for method in METHODS]
    return (
        f"Mean of {len(here)} cases: {against_sweeps(group)}; {to_own_sgd(group)}."
        f" Certainly below SGD: {'; '.join(below) or 'none'}.\n\n"
        f"{evidence.differences(here, METHODS)}\n| mean |  | {' | '.join(mean)} |"
    )


def others() -> str:
    """A row for each case with a recipe, or of another kind of network."""
    return table(
        {
            "case": each.label,
            "without noise, %": evidence.accuracy(each),
            evidence.label_of(GAP): evidence.cell(each, OURS),
        }
        for each in of_experiment("gap-others")
    )


def held_out() -> str:
    """A row for each case of which a twentieth was held out, and one for the mean."""
    twentieth = {each.name: each for each in of_experiment("gap-twentieth")}
    tenth = {e.name: e for e in of_experiment(GAP) if e.name in twentieth}
    columns = {"a tenth held out": tenth, "a twentieth": twentieth}
    rows = [
        {"case": each.label}
        | {column: evidence.cell(of[name], OURS) for column, of in columns.items()}
        for name, each in twentieth.items()
    ]
    means = {name: tally(list(of.values())).mean for name, of in columns.items()}
    row = {"case": "mean"} | {name: f"{mean:+.2f}" for name, mean in means.items()}
    return table([*rows, row])
