"""The page of results, from the raw results of the experiments.

`python -m pages.results` makes docs/results.md and docs/cases.md, with their pictures,
from the JSON files of docs/results, which `smoothout evidence` writes.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from pages import cases, pictures, published, sections
from pages.evidence import (
    CHOSEN,
    GROUPS,
    QUESTIONS,
    RISE,
    RISES,
    Result,
    holm,
    missing,
    read,
)
from pages.pictures import MAIN
from pages.sections import accuracy, cell
from pages.source import DOCS, ROOT
from smoothout_jax.experiments.reporting.formats import with_error
from smoothout_jax.experiments.reporting.tables import markdown

METHODS_SHOWN = (
    "adasmoothout", "adasmoothout-fixed", "smoothout-fixed", "msam", "sam",
)  # fmt: skip


def page(results: list[Result]) -> str:
    """The page."""
    main = [each for each in results if each.experiment in MAIN]
    asked = {
        name: [each for each in results if each.experiment == name]
        for name in QUESTIONS
    }
    asked["batches"] += [each for each in results if each.experiment == RISE]
    asked["wrong-labels"] += asked[RISES]
    parts = [(ROOT / "pages" / "results.md").read_text().rstrip()]
    parts += [verdict(main), "![Differences to SGD by group](results/groups.png)"]
    parts += [groups(main), OVER_GROUPS, exceptions(main), published.verdict(), MORE]
    asking = {
        "batches": batches,
        "wrong-labels": wrong_labels,
        "recipes": sections.recipes,
        "parts": sections.of_parts,
        "rivals": sections.rivals,
        "networks": batches,
    }
    for name, section in asking.items():
        if asked[name]:
            parts += [f"## {QUESTIONS[name]}", *section(asked[name])]
    parts += ["## Which radius, if you choose one?", *sections.advice(results)]
    parts += ["## What else do flat minima give?", *robustness(main)]
    parts.append((ROOT / "pages" / "results_method.md").read_text().rstrip())
    if left := missing():
        parts += ["### Planned, and not run yet", "\n".join(f"- {n}" for n in left)]
    return "\n\n".join(parts) + "\n"


def main_cases() -> list[Result]:
    """The committed cases that the groups are made of."""
    return [each for each in read() if each.experiment in MAIN]


def _of_group(results: list[Result], group: str) -> list[Result]:
    return [each for each in results if each.group == group]


def tally(results: list[Result], method: str) -> tuple[float, int, int, int] | None:
    """Mean difference to SGD, and the cases won, undecided and lost."""
    found = [d for each in results if (d := each.difference(method))]
    if not found:
        return None
    return (
        float(np.mean([mean for mean, _, _ in found])),
        sum(low > 0 for _, low, _ in found),
        sum(low <= 0 <= high for _, low, high in found),
        sum(high < 0 for _, _, high in found),
    )


def verdict(main: list[Result]) -> str:
    """Three sentences: one for each group of cases."""
    sentences = []
    says = {
        "fits": "Where SGD fits its training images",
        "wrong": "Where training labels are wrong",
        "short": "Where SGD does not fit",
    }
    for group, start in says.items():
        here = _of_group(main, group)
        if counted := tally(here, "adasmoothout"):
            mean, better, undecided, worse = counted
            sentences.append(
                f"**{start}**, AdaSmoothOut, with no radius chosen, changes test"
                f" accuracy by {mean:+.1f} % on average: better in {better} of"
                f" {len(here)} cases, undecided in {undecided}, worse in {worse}."
            )
    return "\n".join(f"- {each}" for each in sentences)


def groups(main: list[Result]) -> str:
    """Each method in each group: mean difference; won, undecided and lost."""
    certain = {
        method: certain_of(main, method)
        for method in METHODS_SHOWN
        if any(each.difference(method) for each in main)
    }
    rows = []
    for group, title in GROUPS.items():
        here = _of_group(main, group)
        common = [each for each in here if all(map(each.difference, certain))]
        for part, name in ((here, title), (common, "of these, by all methods")):
            if part and not (part is common and len(common) == len(here)):
                cells = [_group_cell(part, *each) for each in certain.items()]
                rows.append((f"{name} ({len(part)})", *cells))
    return markdown(("cases", *map(pictures.label_of, certain)), rows)


def _group_cell(
    cases: list[Result], method: str, rejected: dict[tuple[str, str], bool]
) -> str:
    """A method in a group; empty where it was not in all of its cases."""
    if not all(each.difference(method) for each in cases):
        return ""
    mean, *counts = tally(cases, method) or ()
    sure = sum(rejected[each.name, each.experiment] for each in cases)
    return f"{mean:+.1f}: {'/'.join(map(str, counts))} ({sure})"


def exceptions(main: list[Result]) -> str:
    """The cases that went against the prediction: worse, or better, by an interval."""
    found = [
        f"{each.label}: {pictures.label_of(method)}, {cell(each, method)}"
        for group, is_against in AGAINST.items()
        for method in METHODS_SHOWN[:3]  # those of this library
        for each in _of_group(main, group)
        if (difference := each.difference(method)) and is_against(*difference[1:])
    ]
    listed = "; ".join(found) or "no case"
    return (
        "Predicted was that noise brings accuracy where SGD fits, and nothing, or harm,"
        " where it does not. Against it went, by a 95 % interval, of this library's"
        f" methods: {listed}."
    )


def certain_of(results: list[Result], method: str) -> dict[tuple[str, str], bool]:
    """In which cases a difference stands after Holm's correction."""
    there = [each for each in results if each.difference(method)]
    rejected = holm([each.p_value(method) for each in there])
    found = {(each.name, each.experiment): False for each in results}
    for each, is_rejected in zip(there, rejected, strict=True):
        found[each.name, each.experiment] = is_rejected
    return found


# Whether an interval goes against the prediction, by the group of the case.
AGAINST = {"fits": lambda low, high: high < 0, "short": lambda low, high: low > 0}

OVER_GROUPS = (
    "Test accuracy minus SGD's in percent, averaged over the cases of the group:"
    " better / undecided / worse (certain after Holm's correction). All but the first"
    " method chose their strength on held-out images."
)


MORE = (
    "What to make of it: [how to choose](choose.md). All figures: [case by"
    " case](cases.md). What others published: [reproductions](reproductions.md)."
)


def _differences(results: list[Result], methods: tuple[str, ...]) -> str:
    """SGD's accuracy, and differences to it."""
    methods = tuple(n for n in methods if any(n in r.summary for r in results))
    rows = [
        (
            each.label,
            accuracy(each, "sgd"),
            *(cell(each, name) for name in methods),
        )
        for each in results
    ]
    return markdown(("case", "SGD, %", *map(pictures.label_of, methods)), rows)


def batches(results: list[Result]) -> Iterator[str]:
    """Differences case by case, those that fit first."""
    if results[0].experiment == "batches":
        yield "![Differences to SGD, case by case](results/cases.png)"
    for group in ("fits", "short"):
        if here := _of_group(results, group):
            yield f"{GROUPS[group]}:"
            yield _differences(here, METHODS_SHOWN)


def wrong_labels(results: list[Result]) -> Iterator[str]:
    """Accuracy at the end, at its best, and what was memorised."""
    chosen = {
        each.name.removesuffix(CHOSEN): each
        for each in results
        if each.experiment == RISES
    }
    results = [each for each in results if each.experiment != RISES]
    if pictures.at_several_fractions(results):
        yield "![Accuracy by the part of wrong labels](results/wrong-labels.png)"
    yield (
        "Some training labels are wrong, held-out ones too; the test labels are right."
        " *Early stopping*: the test accuracy at the time when the accuracy on held-out"
        " images was highest. *Memorised*: which part of the wrong labels the network"
        " repeats at the end."
    )
    yield rises(list(chosen.values()))
    methods = ("sgd", "adasmoothout", CHOSEN, *METHODS_SHOWN[1:])
    for quantity, title in (
        ("test_accuracy", "Test accuracy at the end, %"),
        ("best_accuracy", "With early stopping, %"),
        ("memorised", "Memorised, %"),
    ):
        rows = [
            (
                each.label,
                *(
                    with_error(row[quantity], ".1f") if quantity in row else ""
                    for row in (_row(each, name, chosen) for name in methods)
                ),
            )
            for each in results
        ]
        yield f"{title}:"
        yield markdown(("case", *map(pictures.label_of, methods)), rows)


def _row(
    each: Result, name: str, chosen: Mapping[str, Result]
) -> Mapping[str, tuple[float, float]]:
    """The figures of a method in a case, or of AdaSmoothOut with its rise chosen."""
    if name != CHOSEN:
        return each.summary.get(name, {})
    return chosen[each.name].summary["adasmoothout"] if each.name in chosen else {}


def rises(results: list[Result]) -> str:
    """Which rises of the loss were chosen, and where."""
    found: dict[float, list[str]] = {}
    for each in results:
        strength = each.case["trials"]["adasmoothout"]["chosen"]
        found.setdefault(strength, []).append(each.label.split(", ")[1])
    told = (
        f"{strength:g} ({', '.join(f'{names.count(n)} {n}' for n in sorted({*names}))})"
        for strength, names in sorted(found.items())
    )
    return (
        "*No radius chosen*: a rise of 0.3 nats. *Rise chosen*: of six, from 0.1 to 4"
        " nats, and beyond an end that is best, the one that held-out labels prefer;"
        f" chosen were {', '.join(told)}."
    )


# What is measured of trained networks, by the column's heading.
LOST = {
    "at 8 bits": "lost_at_8_bits",
    "at 4 bits": "lost_at_4_bits",
    "under noise": "lost_under_noise",
}


def lost(results: list[Result]) -> dict[str, dict[str, float]]:
    """Mean accuracy lost in the cases that all methods fit, by cause and method."""
    methods = ("sgd", *METHODS_SHOWN)
    here = [
        each
        for each in _of_group(results, "fits")
        if all(LOST["at 4 bits"] in each.summary.get(name, {}) for name in methods)
    ]
    return {
        cause: {
            name: float(np.mean([each.summary[name][quantity][0] for each in here]))
            for name in methods
        }
        for cause, quantity in LOST.items()
    }


def robustness(results: list[Result]) -> Iterator[str]:
    """Accuracy lost by rounding and by noise, of the same networks."""
    yield (
        "The networks of these comparisons, without training them again: how much test"
        " accuracy they lose, in percent, when the weights of a filter are rounded to 8"
        " or 4 bits, or get uniform noise of half their norm. Means over the cases that"
        " SGD fits and in which all methods were compared."
    )
    yield "![Accuracy lost by rounding and by noise](results/robustness.png)"
    found = lost(results)
    rows = [
        (pictures.label_of(name), *(f"{found[cause][name]:.2f}" for cause in LOST))
        for name in ("sgd", *METHODS_SHOWN)
    ]
    yield markdown(("method", *LOST), rows)


def main() -> None:
    """Writes the pages and their pictures."""
    results = read()
    (DOCS / "results.md").write_text(page(results))
    (DOCS / "cases.md").write_text(cases.page(results))
    pictures.save(results)
    for name, figure in sections.pictures(results):
        figure.savefig(DOCS / "results" / f"{name}.png", dpi=pictures.DPI)
    causes = lost([each for each in results if each.experiment in MAIN])
    shown = {cause: causes[cause] for cause in ("at 4 bits", "under noise")}
    pictures.robustness(shown).savefig(
        DOCS / "results" / "robustness.png", dpi=pictures.DPI
    )


if __name__ == "__main__":
    main()
