"""The page of which method and which setting to choose, from the results.

`python -m pages.choose` makes docs/choose.md from pages/choose.md and the figures of
docs/results; `Figures.claims` is what its advice rests on.
"""

import numpy as np

from pages import gap
from pages.evidence import CHOSEN, RISES, Result, read
from pages.pictures import label_of
from pages.results import MAIN, METHODS_SHOWN, certain_of, tally
from pages.source import DOCS, ROOT

OURS, SWEPT = "adasmoothout", "adasmoothout-fixed"
PARTS = "smoothout", "smoothout-gaussian", "no-denoising", "adasmoothout", "two-sided"


class Figures:
    """The figures of the page.

    Args:
        results: the results.
    """

    def __init__(self, results: list[Result]):
        main = [each for each in results if each.experiment in MAIN]
        self._certain = certain_of(main, OURS)
        self._of = {
            group: [each for each in main if each.group == group]
            for group in ("fits", "wrong", "short")
        }
        # Cases in which all methods were compared.
        self._common, self._common_short = (
            [e for e in self._of[group] if all(map(e.difference, METHODS_SHOWN))]
            for group in ("fits", "short")
        )
        self._rises = [each for each in results if each.experiment == RISES]
        names = [each.name.removesuffix(CHOSEN) for each in self._rises]
        self._not_chosen = [each for each in self._of["wrong"] if each.name in names]
        self._recipes = [
            each
            for each in results
            if each.experiment == "recipes" and not each.name.endswith("no recipe")
        ]
        self._parts = [
            each
            for each in results
            if each.experiment == "parts" and "no-denoising" in each.summary
        ]

    def mean(self, method: str, cases: list[Result]) -> float:
        """Mean difference to SGD."""
        return float(np.mean([each.difference(method)[0] for each in cases]))

    def lost(self, method: str) -> float:
        """Accuracy that rounding to 4 bits costs, where all was measured."""
        rows = [each.summary[method] for each in self._common]
        return float(np.mean([row["lost_at_4_bits"][0] for row in rows]))

    def by_batch(self, large: bool) -> list[Result]:
        """The cases that SGD fits, in batches of at least 500 or in smaller ones."""
        return [
            r for r in self._of["fits"] if (r.settings["batch_size"] >= 500) == large
        ]

    def wrong(self, fraction: float, kind: str = "symmetric") -> list[Result]:
        """The cases of which this part of the labels is wrong, in this way."""
        return [
            each
            for each in self._of["wrong"]
            if each.settings["label_noise"] == fraction
            and each.settings["label_noise_kind"] == kind
        ]

    def _rise_of(self, network: str) -> float:
        """The median of the rises that wrong labels chose for a network."""
        trials = [
            each.case["trials"][OURS]
            for each in self._rises
            if each.settings["network"] == network
        ]
        return float(np.median([trial["chosen"] for trial in trials]))

    def with_recipe(self, name: str) -> list[Result]:
        """The cases of a recipe."""
        return [each for each in self._recipes if each.name.endswith(f", {name}")]

    def texts(self) -> dict[str, str]:
        """What stands in the page, by name."""
        return {
            **{group: _counted(cases) for group, cases in self._of.items()},
            **gap.texts(),
            "large": f"{self.mean(OURS, self.by_batch(True)):+.1f}",
            "small": f"{self.mean(OURS, self.by_batch(False)):+.1f}",
            "swept": f"{self.mean(SWEPT, self._common):+.1f}",
            "unswept": f"{self.mean(OURS, self._common):+.1f}",
            "sam": f"{self.mean('sam', self._common):+.1f}",
            "msam": f"{self.mean('msam', self._common):+.1f}",
            "short_common": f"{len(self._common_short)}",
            "short_gained": "".join(
                f"; {each.label} gains {each.difference(OURS)[0]:+.1f}, though SGD has"
                f" {each.summary['sgd']['train_accuracy'][0]:.1f} % of its training"
                " images right, uncertain after Holm's correction"
                for each in self._short_gained
            ),
            "short_swept": "; ".join(
                f"{label_of(name)}, {self.mean(name, self._common_short):+.1f}"
                for name in METHODS_SHOWN[1:]
            ),
            "wrong_by_fraction": ", ".join(
                f"{self.mean(SWEPT, self.wrong(fraction)):+.1f} at {fraction:.0%}"
                for fraction in (0.2, 0.4, 0.6)
            ).replace("%", " %"),
            "rises": _counted(self._rises),
            "pairs": ", ".join(
                f"{each.difference(SWEPT)[0]:+.1f} ({each.difference(OURS)[0]:+.1f})"
                f" on {each.label.split()[0]}"
                for each in self.wrong(0.4, "pair")
            ),
            "recipes": _counted(self._recipes),
            "shift": f"{self.mean(OURS, self.with_recipe('shift and flip')):+.1f}",
            "dropout": f"{self.mean(OURS, self.with_recipe('dropout')):+.1f}",
            **{
                name.replace("-", "_"): f"{self.mean(name, self._parts):+.1f}"
                for name in PARTS
            },
            "sgd_4_bits": f"{self.lost('sgd'):.2f} %",
            "ours_4_bits": f"{self.lost(OURS):.2f} %",
        }

    @property
    def _short_gained(self) -> list[Result]:
        """The cases that SGD does not fit, and that gain all the same."""
        return [e for e in self._of["short"] if e.difference(OURS)[1] > 0]

    @property
    def claims(self) -> dict[str, bool]:
        """What the advice rests on, and whether the figures bear it."""
        fits, short = (tally(self._of[group], OURS) for group in ("fits", "short"))
        mean = self.mean
        return {
            "it helps where SGD fits": fits[0] > 0 and fits[1] > fits[2] + fits[3],
            "it harms no network that fits": fits[3] == 0,
            "it rarely helps where SGD does not fit": short[0] <= 0
            and short[1] < short[3],
            "no gain there is certain": not any(
                self._certain[each.name, each.experiment] for each in self._short_gained
            ),
            "large batches gain more": mean(OURS, self.by_batch(True))
            > mean(OURS, self.by_batch(False)),
            "a sweep gains more": mean(SWEPT, self._common) > mean(OURS, self._common),
            "MSAM is the one to beat": mean("msam", self._common)
            == max(mean(name, self._common) for name in METHODS_SHOWN),
            "SAM's second gradient does not pay": mean("sam", self._common)
            <= mean(OURS, self._common),
            "a radius does more for wrong labels than the rise": mean(
                SWEPT, self._of["wrong"]
            )
            > mean(OURS, self._of["wrong"]),
            "a chosen rise does more for wrong labels": mean(OURS, self._rises)
            > mean(OURS, self._not_chosen),
            "with BatchNorm it is mostly 1 nat or more": self._rise_of("f1") >= 1,
            "without, mostly 0.1 to 0.3": 0.1 <= self._rise_of("mlp") <= 0.3,
            "it adds to recipes": mean(OURS, self._recipes) > 0
            and not tally(self._recipes, OURS)[3],
            "de-noising carries the gain": mean("no-denoising", self._parts)
            <= 0
            < mean("smoothout", self._parts),
            "the shape of the noise does not matter": abs(
                mean("smoothout-gaussian", self._parts) - mean("smoothout", self._parts)
            )
            < 0.5,
            "dropout leaves least": mean(OURS, self.with_recipe("dropout"))
            == min(
                mean(OURS, self.with_recipe(each.name.split(", ")[-1]))
                for each in self._recipes
            ),
            "a second, opposite copy does hardly more": mean("two-sided", self._parts)
            < mean("adasmoothout", self._parts) + 0.5,
            "relative noise does more": mean("adasmoothout", self._parts)
            > mean("smoothout", self._parts),
            "pair flips may mislead a sweep": any(
                each.difference(SWEPT)[0] < each.difference(OURS)[0]
                for each in self.wrong(0.4, "pair")
            ),
            "rounding costs less": self.lost(OURS) < self.lost("sgd"),
        }


def _counted(cases: list[Result]) -> str:
    """The mean of a group, and how many of its cases are certain."""
    mean, better, undecided, worse = tally(cases, OURS)
    return (
        f"{mean:+.1f}: better in {better} of {len(cases)} cases, undecided in"
        f" {undecided}, worse in {worse}"
    )


def page(results: list[Result]) -> str:
    """The page."""
    text = (ROOT / "pages" / "choose.md").read_text()
    return text.format(**Figures(results).texts())


def main() -> None:
    """Writes the page."""
    (DOCS / "choose.md").write_text(page(read()))


if __name__ == "__main__":
    main()
