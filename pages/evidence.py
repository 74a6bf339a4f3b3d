"""The committed results of `smoothout evidence`, case by case."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from pages.source import DOCS, figures, table
from smoothout_jax.experiments.methods.table import METHODS
from smoothout_jax.experiments.plans import EXPERIMENTS, FITS
from smoothout_jax.experiments.reporting.statistics import with_error, with_interval

BATCHES, WRONG_LABELS, GAP = "batches", "wrong-labels", "gap"
# The experiment that chooses the rise, and what it adds to the names of the cases.
RISES, CHOSEN = "wrong-labels-rise", ", rise chosen"
# An earlier plan, with five radii and fewer learning rates to try. Cases that `batches`
# repeats are left out.
RISE = "loss-rise"
# What each experiment asks.
QUESTIONS = {
    BATCHES: "Does it help, from small to large batches?",
    WRONG_LABELS: "What if labels are wrong?",
    RISES: "Which rise, if labels are wrong?",
    "recipes": "Does it add to what you do already?",
    "parts": "What is it made of?",
    "rivals": "And its rivals?",
    "networks": "Other networks",
}
# The experiments whose cases make up the groups.
MAIN = (BATCHES, WRONG_LABELS, "networks", RISE)
# Cases by what the prediction says of them.
GROUPS = {
    "fits": "SGD fits its training images",
    "wrong": "Some training labels are wrong",
    "short": "SGD does not fit its training images",
}
DATA = {
    "digits": "Digits",
    "digit-pairs": "Pairs of digits",
    "text": "Text",
    "mnist1d": "MNIST-1D",
    "fashion-mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
}
NETWORKS = {
    "mlp": "MLP", "f1": "F1", "cnet": "C net", "resnet": "ResNet", "vit": "ViT",
}  # fmt: skip
OURS, SWEPT = "adasmoothout", "adasmoothout-fixed"
SHOWN = (OURS, SWEPT, "smoothout-fixed", "msam", "sam")
LABELS = {
    OURS: "AdaSmoothOut, no radius chosen",
    CHOSEN: f"AdaSmoothOut{CHOSEN}",
    GAP: "half the gap, none chosen",
}


class Result(NamedTuple):
    """The figures of one case, with the names of its experiment and its own."""

    experiment: str
    name: str
    case: Mapping[str, Any]

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings of its comparison."""
        return self.case["settings"]

    @property
    def summary(self) -> Mapping[str, Any]:
        """Its figures at equal updates, by method."""
        return self.case["equal_updates"]["summary"]

    @property
    def label(self) -> str:
        """Data, images, network, batch size and steps, and what else is special."""
        data, images, network, batch, steps, *rest = self.name.split(", ")
        images, steps = (f"{int(each.split()[0]):,}" for each in (images, steps))
        mark = " †" if self.experiment == RISE else ""
        parts = f"{DATA[data]} {images}", NETWORKS[network], batch, f"{steps} steps"
        return ", ".join(parts) + mark + "".join(f", {each}" for each in rest)

    @property
    def rate(self) -> float:
        """SGD's best learning rate."""
        return self.case["trials"]["sgd"]["chosen"]

    @property
    def fits(self) -> bool:
        """Whether SGD fits its images in the trials, at its best learning rate."""
        trial = self.case["trials"]["sgd"]
        if self.experiment == RISE:  # its trials did not record this
            return self.summary["sgd"]["train_accuracy"][0] >= 100 * FITS
        reached = trial["train_accuracies"][trial["strengths"].index(trial["chosen"])]
        return float(np.mean(reached)) >= FITS

    @property
    def group(self) -> str:
        """Which of `GROUPS` it belongs to."""
        if self.settings.get("label_noise"):
            return "wrong"
        return "fits" if self.fits else "short"

    def accuracies(self, method: str) -> np.ndarray:
        """Test accuracies in percent, by seed."""
        outcome = self.case["equal_updates"]["outcomes"][method]["test_accuracy"]
        return 100 * np.array(outcome, float)

    def difference(self, method: str, equal: str = "equal_updates") -> tuple | None:
        """Mean difference to SGD in percent with its interval, if it was compared."""
        row = self.case[equal]["summary"].get(method, {})
        difference = row.get("difference_to_sgd")
        return None if difference is None else tuple(difference)

    def p_value(self, method: str) -> float:
        """Of the paired t-test of no difference to SGD, two-sided."""
        ours, sgd = self.accuracies(method), self.accuracies("sgd")
        return (
            float(scipy.stats.ttest_rel(ours, sgd).pvalue)
            if np.ptp(ours - sgd)
            else 1.0
        )


class Tally(NamedTuple):
    """Mean difference to SGD over cases, and how many were won and lost."""

    mean: float
    better: int
    undecided: int
    worse: int

    def __str__(self) -> str:
        cases = sum(self[1:])
        return (
            f"{self.mean:+.1f}: better in {self.better} of {cases} cases, undecided in"
            f" {self.undecided}, worse in {self.worse}"
        )


def tally(results: list[Result], method: str = OURS) -> Tally:
    """The tally of a method in cases where it was compared."""
    found = np.array([each.difference(method) for each in results])
    mean, low, high = found.T
    better, worse = int((low > 0).sum()), int((high < 0).sum())
    return Tally(mean.mean(), better, len(found) - better - worse, worse)


def holm(p_values: list[float], level: float = 0.05) -> list[bool]:
    """Which of several hypotheses Holm's sequential procedure rejects."""
    rejected = [False] * len(p_values)
    for rank, index in enumerate(np.argsort(p_values)):
        if p_values[index] > level / (len(p_values) - rank):
            break
        rejected[index] = True
    return rejected


def certain(results: list[Result], method: str) -> set[tuple[str, str]]:
    """Experiments and names of the cases certain after Holm's correction."""
    there = [each for each in results if each.difference(method)]
    rejected = holm([each.p_value(method) for each in there])
    return {each[:2] for each, is_sure in zip(there, rejected, strict=True) if is_sure}


@functools.cache
def read() -> tuple[Result, ...]:
    """The committed results of all cases, in the order of the experiments."""
    results = [each for name in QUESTIONS for each in of_experiment(name)]
    batches = {each.name for each in results if each.experiment == BATCHES}
    return *results, *(e for e in of_experiment(RISE) if e.name not in batches)


def of_experiment(name: str, form: str = "cpu") -> list[Result]:
    """The committed results of an experiment, in the order of its plan."""
    folder = "rise" if name == RISE else "results"
    path = f"{folder}/{name}-{form}.json"
    cases = figures(path)["cases"] if (DOCS / path).exists() else {}
    plan = EXPERIMENTS[name][form]
    return [Result(name, c.name, cases[c.name]) for c in plan if c.name in cases]


def missing(experiments: Iterable[str]) -> list[str]:
    """The planned cases that have no results yet."""
    return [
        f"{name}: {case.name}"
        for name in experiments
        for case in EXPERIMENTS[name]["cpu"]
        if case.name not in {each.name for each in of_experiment(name)}
    ]


def grouped(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Cases by group, without empty groups."""
    groups: dict[str, list[Result]] = {name: [] for name in GROUPS}
    for each in results:
        groups[each.group].append(each)
    return {name: here for name, here in groups.items() if here}


def label_of(method: str) -> str:
    """A method's name in tables and pictures."""
    return LABELS.get(method) or METHODS[method].label


def cell(result: Result, method: str, equal: str = "equal_updates") -> str:
    """A difference to SGD with its interval, or what stands in its place."""
    if difference := result.difference(method, equal):
        return with_interval(difference)
    return "diverged" if "diverged" in result.summary.get(method, {}) else ""


def accuracy(result: Result) -> str:
    """SGD's test accuracy with its error."""
    return with_error(result.summary["sgd"]["test_accuracy"])


def differences(results: Iterable[Result], methods: Iterable[str] = SHOWN) -> str:
    """A table of SGD's accuracy, and of differences to it."""
    return table(
        {"case": each.label, "SGD, %": accuracy(each)}
        | {label_of(name): text for name in methods if (text := cell(each, name))}
        for each in results
    )
