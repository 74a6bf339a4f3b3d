"""The committed results of `smoothout evidence`, case by case."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from pages.source import DOCS
from smoothout_jax.experiments.plans import EXPERIMENTS, FITS

# What each experiment asks.
QUESTIONS = {
    "batches": "Does it help, from small to large batches?",
    "wrong-labels": "What if labels are wrong?",
    "wrong-labels-rise": "Which rise, if labels are wrong?",
    "recipes": "Does it add to what you do already?",
    "parts": "What is it made of?",
    "rivals": "And its rivals?",
    "networks": "Other networks",
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
# Cases by what the prediction says of them.
GROUPS = {
    "fits": "SGD fits its training images",
    "wrong": "Some training labels are wrong",
    "short": "SGD does not fit its training images",
}


BATCHES = "batches"
# The experiment that chooses the rise, and what it adds to the names of the cases.
RISES, CHOSEN = "wrong-labels-rise", ", rise chosen"
# The experiment whose cases are shown beside those of `batches`, where these are not
# among them. It had five radii and fewer learning rates to try.
RISE = "loss-rise"


class Result(NamedTuple):
    """The result of one case.

    Attributes:
        experiment: its experiment's name.
        name: its name in the experiment.
        case: its figures.
    """

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
        images = f"{int(images.split()[0]):,}"
        batch = batch.removeprefix("batch ")
        parts = f"{DATA[data]} {images}", NETWORKS[network], f"batch {batch}"
        mark = " †" if self.experiment == RISE else ""
        steps = f"{int(steps.split()[0]):,} steps{mark}"
        return ", ".join([*parts, steps, *rest])

    @property
    def machine(self) -> str:
        """What trained its networks."""
        machine = self.case["machine"]
        if machine["backend"] == "cpu":
            return f"{machine['cores']} cores"
        return f"one {machine['device']}"

    @property
    def fits(self) -> bool:
        """Whether SGD fits its images in the trials, at its best learning rate."""
        trial = self.case["trials"]["sgd"]
        if self.experiment == RISE:  # which did not keep that
            return self.summary["sgd"]["train_accuracy"][0] >= 100 * FITS
        reached = trial["train_accuracies"][trial["strengths"].index(trial["chosen"])]
        return float(np.mean(reached)) >= FITS

    @property
    def group(self) -> str:
        """Which of `GROUPS` it belongs to."""
        if self.settings.get("label_noise"):
            return "wrong"
        return "fits" if self.fits else "short"

    def accuracies(self, method: str, equal: str = "equal_updates") -> np.ndarray:
        """Test accuracies in percent, by seed."""
        outcome = self.case[equal]["outcomes"][method]["test_accuracy"]
        return 100 * np.array(outcome, float)

    def difference(self, method: str, equal: str = "equal_updates") -> tuple | None:
        """Mean difference to SGD in percent with its interval, if it was compared."""
        row = self.case[equal]["summary"].get(method, {})
        difference = row.get("difference_to_sgd")
        return None if difference is None else tuple(difference)

    def p_value(self, method: str) -> float:
        """Of the paired t-test of no difference to SGD, two-sided."""
        differences = self.accuracies(method) - self.accuracies("sgd")
        if not np.ptp(differences):
            return 1.0
        return float(scipy.stats.ttest_1samp(differences, 0.0).pvalue)


def holm(p_values: list[float], level: float = 0.05) -> list[bool]:
    """Which of several hypotheses Holm's procedure rejects.

    Reference:
        Holm, `A Simple Sequentially Rejective Multiple Test Procedure
        <https://www.jstor.org/stable/4615733>`_, 1979.
    """
    rejected = [False] * len(p_values)
    for rank, index in enumerate(np.argsort(p_values)):
        if p_values[index] > level / (len(p_values) - rank):
            break
        rejected[index] = True
    return rejected


def read(form: str = "cpu") -> list[Result]:
    """Reads the committed results of all cases, in the order of the experiments."""
    results: list[Result] = []
    for experiment in (*QUESTIONS, RISE):
        folder = "rise" if experiment == RISE else "results"
        path = DOCS / folder / f"{experiment}-{form}.json"
        if path.exists():
            batches = [each.name for each in results if each.experiment == BATCHES]
            there = batches if experiment == RISE else []
            cases = json.loads(path.read_text())["cases"]
            results += [
                Result(experiment, case.name, cases[case.name])
                for case in EXPERIMENTS[experiment][form]
                if case.name in cases and case.name not in there
            ]
    return results


def missing(form: str = "cpu") -> list[str]:
    """The cases of the plans that have no results yet."""
    there = {(each.experiment, each.name) for each in read(form)}
    return [
        f"{experiment}: {case.name}"
        for experiment in QUESTIONS
        for case in EXPERIMENTS[experiment][form]
        if (experiment, case.name) not in there
    ]
