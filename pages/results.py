"""The tables and pictures of the results: docs/results.md."""

from collections.abc import Iterable, Iterator

import numpy as np

from pages import evidence
from pages.evidence import OURS, SHOWN, SWEPT, Result, cell, label_of, of_experiment
from pages.source import table
from smoothout_jax.experiments.methods.table import METHODS
from smoothout_jax.experiments.plans import TRIALS
from smoothout_jax.experiments.reporting.statistics import (
    paired_difference,
    with_error,
    with_interval,
)

# The methods whose strength is chosen, in the order of the advice.
STRONG = (SWEPT, "smoothout-fixed", "msam", "sam")
# What is measured of trained networks, by the column's heading.
LOST = {
    "at 8 bits": "lost_at_8_bits",
    "at 4 bits": "lost_at_4_bits",
    "under noise": "lost_under_noise",
}
# Whether an interval goes against the prediction, by the group of the case.
AGAINST = {"fits": lambda low, high: high < 0, "short": lambda low, high: low > 0}


def main_cases() -> list[Result]:
    """The cases that the groups are made of."""
    return [each for each in evidence.read() if each.experiment in evidence.MAIN]


def at_the_edge() -> Result:
    """The case that noise harms most, at the largest learning rate tried."""
    cases = evidence.grouped(main_cases())["short"]
    return min(cases, key=lambda each: each.difference(OURS))


def compared(results: list[Result], methods: tuple[str, ...] = SHOWN) -> list[Result]:
    """The cases in which all methods were compared."""
    return [each for each in results if all(map(each.difference, methods))]


def differences(experiments: Iterable[str], group: str) -> str:
    """The differences to SGD in a group of cases of some experiments."""
    cases = [each for each in evidence.read() if each.experiment in experiments]
    return evidence.differences(evidence.grouped(cases)[group])


def groups() -> str:
    """Each method in each group: mean difference; won, undecided and lost."""
    rows, main = [], main_cases()
    sure = {method: evidence.certain(main, method) for method in SHOWN}
    for group, here in evidence.grouped(main).items():
        parts = {evidence.GROUPS[group]: here}
        if (common := compared(here)) != here:
            parts["of these, by all methods"] = common
        for name, part in parts.items():
            row = {"cases": f"{name} ({len(part)})"}
            for method in SHOWN:
                if compared(part, (method,)) == part:
                    mean, *counts = evidence.tally(part, method)
                    certain = sum(each[:2] in sure[method] for each in part)
                    won = "/".join(map(str, counts))
                    row[label_of(method)] = f"{mean:+.1f}: {won} ({certain})"
            rows.append(row)
    return table(rows)


def exceptions(main: list[Result]) -> str:
    """The cases that went against the prediction: worse, or better, by an interval."""
    found = [
        f"{each.label}: {label_of(method)}, {cell(each, method)}"
        for group, here in evidence.grouped(main).items()
        for method in SHOWN[:3]  # those of this library
        for each in here
        if (difference := each.difference(method))
        and group in AGAINST
        and AGAINST[group](*difference[1:])
    ]
    return "; ".join(found) or "no case"


def rises() -> str:
    """Which rises of the loss were chosen, and where."""
    found: dict[float, list[str]] = {}
    for each in of_experiment(evidence.RISES):
        strength = each.case["trials"][OURS]["chosen"]
        found.setdefault(strength, []).append(each.label.split(", ")[1])
    return ", ".join(
        f"{strength:g} ({', '.join(f'{names.count(n)} {n}' for n in sorted({*names}))})"
        for strength, names in sorted(found.items())
    )


def wrong_labels(quantity: str) -> str:
    """A quantity of every method, AdaSmoothOut with its rise chosen among them."""
    chosen = {
        e.name.removesuffix(evidence.CHOSEN): e for e in of_experiment(evidence.RISES)
    }
    methods = ("sgd", OURS, evidence.CHOSEN, *SHOWN[1:])
    rows = []
    for each in of_experiment(evidence.WRONG_LABELS):
        found = dict(each.summary)
        if each.name in chosen:
            found[evidence.CHOSEN] = chosen[each.name].summary[OURS]
        there = [name for name in methods if quantity in found.get(name, {})]
        cells = {n: with_error(found[n][quantity], ".1f") for n in there}
        rows.append({"case": each.label} | {label_of(n): t for n, t in cells.items()})
    return table(rows)


def by_recipe() -> Iterator[tuple[Result, Result, str, str]]:
    """Each case with the one without a recipe, its name without it, and the recipe."""
    plain = None
    for each in of_experiment("recipes"):
        *_, recipe = each.name.split(", ")
        plain = each if recipe == "no recipe" else plain
        if plain is not None:
            yield each, plain, each.label.removesuffix(f", {recipe}"), recipe


def recipes() -> str:
    """What noise adds to each recipe, and the recipe to plain SGD."""
    rows = []
    for each, plain, case, recipe in by_recipe():
        alone, ours, swept = (
            with_interval(
                paired_difference(each.accuracies(name), plain.accuracies("sgd"))
            )
            for name in ("sgd", OURS, SWEPT)
        )
        rows.append(
            {
                "case": case,
                "recipe": recipe,
                "accuracy, %": evidence.accuracy(each),
                "recipe alone": "" if each is plain else alone,
                "+ noise, no radius chosen": cell(each, OURS),
                "both, no radius chosen": ours,
                "+ noise, radius chosen": cell(each, SWEPT),
                "both, radius chosen": swept,
            }
        )
    return table(rows)


def changed() -> dict[tuple[str, str], dict[str, tuple]]:
    """Differences to SGD by method and what else is changed, by case."""
    results = of_experiment("parts")
    found: dict[tuple[str, str], dict[str, tuple]] = {}
    for base in (each for each in results if "no-denoising" in each.summary):
        for each in results:
            if each is base or each.name.startswith(f"{base.name}, "):
                change = each.name.removeprefix(base.name)
                for name in METHODS:
                    if name != "sgd" and (d := each.difference(name)):
                        found.setdefault((name, change), {})[base.label] = d
    return found


def of_parts() -> str:
    """Each part left out or replaced."""
    return table(
        {"difference to SGD, %": METHODS[name].label + change}
        | {case: with_interval(difference) for case, difference in of.items()}
        for (name, change), of in changed().items()
    )


def fair(result: Result, method: str) -> tuple | None:
    """The difference at equal gradients, of a method that takes more than one."""
    if METHODS[method].gradients == 1:
        return None
    return result.difference(method, "equal_gradients")


def rivals() -> str:
    """Rivals at equal updates and at equal gradients, with their times."""
    results, rows = of_experiment("rivals"), []
    for name in METHODS:
        there = [each.summary[name] for each in results if name in each.summary]
        if name == "sgd" or not there:
            continue
        row = {"method": label_of(name)}
        for each in results:
            second = fair(each, name)
            text = f"; {with_interval(second)}" if second else ""
            row[each.label] = cell(each, name) + text
        time = np.median([row["relative_step_time"] for row in there])
        rows.append(row | {"step time / SGD's": f"{time:.2f}"})
    return table(rows)


def mean_gains() -> dict[str, dict[float, float]]:
    """Mean gain over SGD on held-out images, by method and strength."""
    cases = evidence.grouped(of_experiment(evidence.BATCHES))["fits"]
    found = {}
    for name in STRONG:
        tried = TRIALS[METHODS[name].strength]
        gains = np.mean([_gains(each, name, tried) for each in cases], 0)
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


def strengths() -> str:
    """Gain of each strength over SGD on held-out images, and how often it won."""
    cases, rows = evidence.grouped(of_experiment(evidence.BATCHES))["fits"], []
    for name, gains in mean_gains().items():
        chosen = [each.case["trials"][name]["chosen"] for each in cases]
        row = {"method": METHODS[name].label}
        for number, (strength, gain) in enumerate(gains.items(), start=1):
            count = chosen.count(strength)
            row[f"strength {number}"] = f"{strength:g}: {gain:+.1f} ({count})"
        rows.append(row)
    return table(rows)


def lost() -> dict[str, dict[str, float]]:
    """Mean accuracy lost in the cases that all methods fit, by cause and method."""
    methods = ("sgd", *SHOWN)
    here = [
        each
        for each in evidence.grouped(main_cases())["fits"]
        if all("lost_at_4_bits" in each.summary.get(name, {}) for name in methods)
    ]
    return {
        cause: {
            name: float(np.mean([each.summary[name][quantity][0] for each in here]))
            for name in methods
        }
        for cause, quantity in LOST.items()
    }


def robustness() -> str:
    """Accuracy lost by rounding and by noise, of the same networks."""
    found = lost()
    return table(
        {"method": label_of(name)} | {c: f"{found[c][name]:.2f}" for c in LOST}
        for name in ("sgd", *SHOWN)
    )
