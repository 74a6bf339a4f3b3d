"""The committed results of `smoothout evidence`, case by case."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from pages.source import DOCS

TITLES = {
    "digits": "Digits",
    "mnist1d": "MNIST-1D",
    "fashion-mnist": "Fashion-MNIST",
    "fashion-mnist-1k": "1,024 images of Fashion-MNIST",
    "cifar10": "CIFAR-10",
}
FORMS = {"cpu": "CPU form", "full": "Full form"}


class Result(NamedTuple):
    """The result of one case.

    Attributes:
        experiment: its experiment's name.
        form: `"cpu"` or `"full"`.
        name: its name in the experiment.
        case: its figures.
    """

    experiment: str
    form: str
    name: str
    case: Mapping[str, Any]

    @property
    def label(self) -> str:
        """Data, network and batch size."""
        return f"{TITLES[self.experiment]}, {self.name}"

    def difference(self, method: str, equal: str = "equal_updates") -> tuple | None:
        """Mean difference to SGD in percent with its interval, if it was compared."""
        row = self.case[equal]["summary"].get(method)
        return row and tuple(row["difference_to_sgd"])


def read() -> list[Result]:
    """Reads the committed results of all cases, in the order of the experiments."""
    results = []
    for form in FORMS:
        for experiment in TITLES:
            path = DOCS / "results" / f"{experiment}-{form}.json"
            if path.exists():
                document = json.loads(path.read_text())
                results += [
                    Result(experiment, form, name, document["cases"][name])
                    for name in document["plan"]
                    if name in document["cases"]
                ]
    return results
