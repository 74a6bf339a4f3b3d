"""The questions of the results that have one table and one picture each."""

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure

from pages.evidence import Result
from pages.panels import Mark, panels, strengths
from pages.pictures import label_of, paired
from smoothout_jax.experiments.methods.table import METHODS
from smoothout_jax.experiments.plans import TRIALS
from smoothout_jax.experiments.reporting.formats import with_error, with_interval
from smoothout_jax.experiments.reporting.tables import markdown

SWEPT = ("adasmoothout-fixed", "smoothout-fixed", "msam", "sam")


def cell(result: Result, method: str) -> str:
    """A difference to SGD with its interval, or what stands in its place."""
    if difference := result.difference(method):
        return with_interval(difference)
    return "diverged" if "diverged" in result.summary.get(method, {}) else ""


def accuracy(result: Result, method: str) -> str:
    """A test accuracy with its error."""
    return with_error(result.summary[method]["test_accuracy"])


def _by_recipe(results: list[Result]) -> Iterator[tuple[Result, Result, str, str]]:
    """Each case with the one without a recipe, its name without it, and the recipe."""
    plain = None
    for each in results:
        *_, recipe = each.name.split(", ")
        if recipe == "no recipe":
            plain = each
        if plain is not None:
            yield each, plain, each.label.removesuffix(f", {recipe}"), recipe


def recipes(results: list[Result]) -> Iterator[str]:
    """What noise adds to each recipe, and the recipe to plain SGD."""
    yield "![What noise adds to each recipe](results/recipes.png)"
    yield (
        "Each recipe is tuned like the noise, in six trials; then noise is added to it."
        " Differences in percent: of the recipe alone to plain SGD, of noise on top to"
        " the recipe alone, and of both to plain SGD."
    )
    rows = []
    for each, plain, case, recipe in _by_recipe(results):
        alone = "" if each is plain else with_interval(paired(each, "sgd", plain))
        cells = [case, recipe, accuracy(each, "sgd"), alone]
        for name in ("adasmoothout", "adasmoothout-fixed"):
            both = with_interval(paired(each, name, plain))
            cells += [cell(each, name), both]
        rows.append(tuple(cells))
    held, fixed = "no radius chosen", "radius chosen"
    yield markdown(
        (
            "case", "recipe", "accuracy, %", "recipe alone", f"+ noise, {held}",
            "both", f"+ noise, {fixed}", "both",
        ),
        rows,
    )  # fmt: skip


def picture_of_recipes(results: list[Result]) -> Figure:
    """Differences of noise on top of a recipe to the recipe alone."""
    groups: dict[str, dict[str, list[Mark]]] = {}
    for each, _, case, recipe in _by_recipe(results):
        groups.setdefault(case, {})[recipe] = [
            Mark(d, METHODS[name].color, label_of(name))
            for name in ("adasmoothout", "adasmoothout-fixed")
            if (d := each.difference(name))
        ]
    return panels(groups, "test accuracy minus that of SGD with the recipe")


def _changed(results: list[Result]) -> dict[tuple[str, str], dict[str, tuple]]:
    """Differences to SGD by method and what else is changed, by case."""
    whole = [each for each in results if "no-denoising" in each.summary]
    found: dict[tuple[str, str], dict[str, tuple]] = {}
    for base in whole:
        for each in results:
            if each is base or each.name.startswith(f"{base.name}, "):
                change = each.name.removeprefix(base.name)
                for name in METHODS:
                    if name != "sgd" and (d := each.difference(name)):
                        found.setdefault((name, change), {})[base.label] = d
    return found


def of_parts(results: list[Result]) -> Iterator[str]:
    """Each part left out or replaced."""
    yield "![Differences to SGD by what is changed](results/parts.png)"
    yield (
        "Radii are fixed here, by trials. *No de-noising* leaves the noise in the"
        " weights; *split* and *mix* divide the batch between copies; *two-sided*"
        " takes a pair of copies at opposite noises, two gradients a step."
    )
    changed = _changed(results)
    whole = list(dict.fromkeys(case for row in changed.values() for case in row))
    rows = [
        (
            METHODS[name].label + change,
            *(with_interval(of[case]) if case in of else "" for case in whole),
        )
        for (name, change), of in changed.items()
    ]
    yield markdown(("difference to SGD, %", *whole), rows)


def picture_of_parts(results: list[Result]) -> Figure:
    """Differences to SGD by what is changed, a panel for each case."""
    groups: dict[str, dict[str, list[Mark]]] = {}
    for (name, change), of in _changed(results).items():
        row, color = METHODS[name].label + change, METHODS[name].color
        for case, difference in of.items():
            groups.setdefault(case, {})[row] = [Mark(difference, color)]
    return panels(groups, "test accuracy minus SGD's")


def _fair(result: Result, method: str) -> tuple | None:
    """The difference at equal gradients, of a method that takes more than one."""
    if METHODS[method].gradients == 1:
        return None
    return result.difference(method, "equal_gradients")


def rivals(results: list[Result]) -> Iterator[str]:
    """Rivals at equal updates and at equal gradients, with their times."""
    yield "![Differences to SGD by rival](results/rivals.png)"
    yield (
        "Differences to SGD in percent, at equal updates; for methods that take two"
        " gradients a step, second at equal gradients, which is half the updates. Step"
        " times were measured in turns with SGD's, and are medians over the cases."
    )
    names = [n for n in METHODS if any(n in each.summary for each in results)]
    rows = []
    for name in names[1:]:
        times = [
            each.summary[name]["relative_step_time"]
            for each in results
            if name in each.summary
        ]
        cells = []
        for each in results:
            fair = _fair(each, name)
            text = f"; {with_interval(fair)}" if fair else ""
            cells.append(cell(each, name) + text)
        rows.append((label_of(name), *cells, f"{np.median(times):.2f}"))
    header = ("method", *(each.label for each in results), "step time / SGD's")
    yield markdown(header, rows)


def picture_of_rivals(results: list[Result]) -> Figure:
    """Differences to SGD, hollow at equal gradients."""
    groups = {}
    for each in results:
        rows = groups[each.label] = {}
        for name in each.summary:
            if name == "sgd" or not (d := each.difference(name)):
                continue
            color = METHODS[name].color
            rows[label_of(name)] = [Mark(d, color)]
            if fair := _fair(each, name):
                rows[label_of(name)].append(Mark(fair, color, hollow=True))
    return panels(groups, "test accuracy minus SGD's; hollow: at equal gradients")


ADVICE = (
    "Accuracy on held-out images less SGD's, in percent, at SGD's best learning rate,"
    " averaged over the cases that SGD fits: what a wrong radius costs. In parentheses:"
    " how many of the cases chose the strength."
)


def _fitting(results: list[Result]) -> list[Result]:
    """The cases of `batches` that SGD fits."""
    return [r for r in results if r.experiment == "batches" and r.group == "fits"]


def advice(results: list[Result]) -> Iterator[str]:
    """Gain of each strength over SGD on held-out images, and how often it won."""
    yield "![Gain by strength](results/strengths.png)"
    yield ADVICE
    rows = []
    for name, gains in mean_gains(results).items():
        trials = [each.case["trials"][name] for each in _fitting(results)]
        chosen = [trial["chosen"] for trial in trials]
        cells = [
            f"{strength:g}: {gain:+.1f} ({chosen.count(strength)})"
            for strength, gain in gains.items()
        ]
        rows.append((METHODS[name].label, *cells))
    header = ("method", *(f"strength {i + 1}" for i in range(len(rows[0]) - 1)))
    yield markdown(header, rows)


def mean_gains(results: list[Result]) -> dict[str, dict[float, float]]:
    """Mean gain over SGD on held-out images, by method and strength."""
    found = {}
    for name in SWEPT:
        tried = TRIALS[METHODS[name].strength]
        gains = np.mean([_gains(each, name, tried) for each in _fitting(results)], 0)
        found[name] = dict(zip(tried, gains.tolist(), strict=True))
    return found


def _gains(result: Result, name: str, strengths: tuple[float, ...]) -> np.ndarray:
    """Accuracy at each strength minus SGD's best, in percent; 0 % if one diverged."""
    trials = result.case["trials"]
    at_best = trials[name]["at_each_learning_rate"][0]
    reached = dict(zip(at_best["strengths"], at_best["accuracies"], strict=True))
    best = max(_mean(each) for each in trials["sgd"]["accuracies"])
    return 100 * np.array([_mean(reached[each]) - best for each in strengths])


def _mean(accuracies: list[float | None]) -> float:
    return float(np.nan_to_num(np.array(accuracies, float)).mean())


PICTURES = {
    "recipes": picture_of_recipes,
    "parts": picture_of_parts,
    "rivals": picture_of_rivals,
}


def pictures(results: list[Result]) -> Iterator[tuple[str, Figure]]:
    """The pictures that there are results for, by name."""
    for experiment, draw in PICTURES.items():
        here = [each for each in results if each.experiment == experiment]
        if here:
            yield experiment, draw(here)
    yield "strengths", strengths(mean_gains(results))
