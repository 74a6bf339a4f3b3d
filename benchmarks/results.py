"""The page of results and its pictures, from the raw results of the experiments.

`python -m benchmarks.results` makes docs/results.md and the pictures beside it anew
from docs/results/*.json, which `smoothout evidence` wrote.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from benchmarks.report import markdown
from smoothout_jax.experiments.methods.table import METHODS
from smoothout_jax.experiments.plans import EXPERIMENTS

DOCS = Path(__file__).parents[1] / "docs"
TITLES = {
    "digits": "Digits",
    "mnist1d": "MNIST-1D",
    "fashion-mnist": "Fashion-MNIST",
    "fashion-mnist-1k": "1,024 images of Fashion-MNIST",
    "cifar10": "CIFAR-10",
}
FORMS = {"cpu": "CPU form", "full": "Full form"}


class Found(NamedTuple):
    """What one case found.

    Attributes:
        experiment: its experiment's name.
        form: `"cpu"` or `"full"`.
        name: its name in the experiment.
        case: its results.
    """

    experiment: str
    form: str
    name: str
    case: Mapping[str, Any]

    @property
    def label(self) -> str:
        """Data, network and batch size."""
        return f"{TITLES[self.experiment]}, {self.name}"

    def difference(self, method: str, held: str = "equal_updates") -> tuple | None:
        """Mean difference to SGD in percent with its interval, if it was compared."""
        row = self.case[held]["summary"].get(method)
        return row and tuple(row["difference_to_sgd"])


def read() -> list[Found]:
    """All cases of the committed results, in the order of the experiments."""
    found = []
    for form in FORMS:
        for experiment in TITLES:
            path = DOCS / "results" / f"{experiment}-{form}.json"
            if path.exists():
                document = json.loads(path.read_text())
                found += [
                    Found(experiment, form, name, document["cases"][name])
                    for name in document["plan"]
                    if name in document["cases"]
                ]
    return found


def page(found: list[Found]) -> str:
    """The page."""
    parts = [INTRODUCTION]
    for form, title in FORMS.items():
        here = [each for each in found if each.form == form]
        parts.append(f"## {title}")
        if here:
            parts.append(f"![Differences to SGD](results/differences-{form}.png)")
            parts += _form(here)
        if missing := _missing(form, here):
            parts += ["### Not run yet", f"{'; '.join(missing)}."]
    return "\n\n".join(parts) + "\n"


def _missing(form: str, found: list[Found]) -> list[str]:
    """The cases of the plans that have no results yet."""
    there = {(each.experiment, each.name) for each in found}
    return [
        f"{title}, {case.name}"
        for experiment, title in TITLES.items()
        for case in EXPERIMENTS[experiment][form]
        if (experiment, case.name) not in there
    ]


def _form(found: list[Found]) -> Iterator[str]:
    yield "### Does it help, and how much?"
    yield overview(found)
    yield from _verdicts(found)
    yield "### Small and large batches"
    yield batches(found)
    yield "### Which radius?"
    yield RADII
    yield chosen(found)
    yield lost(found)
    yield "### At what cost, against SAM and MSAM?"
    yield COSTS
    yield costs(found)
    yield "### Case by case"
    for each in found:
        yield f"#### {each.label}"
        yield _description(each)
        yield details(each)


def _methods(found: list[Found]) -> list[str]:
    """The methods compared, without SGD."""
    return [
        name
        for name in METHODS
        if name != "sgd" and any(name in each.case["trials"] for each in found)
    ]


def overview(found: list[Found]) -> str:
    """Each method over all cases: mean difference, cases won, lost and undecided."""
    rows = []
    for name in _methods(found):
        differences = [d for each in found if (d := each.difference(name))]
        rows.append(
            (
                METHODS[name].label,
                f"{np.mean([mean for mean, _, _ in differences]):+.2f}",
                str(sum(low > 0 for _, low, _ in differences)),
                str(sum(low <= 0 <= high for _, low, high in differences)),
                str(sum(high < 0 for _, _, high in differences)),
            )
        )
    header = ("method", "mean difference, %", "better", "undecided", "worse")
    return markdown(header, rows)


def _verdicts(found: list[Found]) -> Iterator[str]:
    """Where the paper's methods did not win."""
    for name in ("smoothout", "adasmoothout"):
        losing = [
            f"{each.label} ({d[0]:+.2f} [{d[1]:+.2f}, {d[2]:+.2f}])"
            for each in found
            if (d := each.difference(name)) and d[1] <= 0
        ]
        if losing:
            yield (
                f"{METHODS[name].label} was not certainly better than SGD in"
                f" {len(losing)} of {len(found)} cases: {'; '.join(losing)}."
            )
        else:
            yield f"{METHODS[name].label} was better than SGD in every case."


def batches(found: list[Found]) -> str:
    """Differences to SGD by case: columns are the methods."""
    names = ("smoothout", "adasmoothout", "adasmoothout-split", "sam", "msam")
    rows = [
        (
            each.label,
            "{:.2f} ± {:.2f}".format(
                *each.case["equal_updates"]["summary"]["sgd"]["test_accuracy"]
            ),
            *(
                "{:+.2f} [{:+.2f}, {:+.2f}]".format(*d)
                if (d := each.difference(name))
                else ""
                for name in names
            ),
        )
        for each in found
    ]
    return markdown(("case", "SGD, %", *(METHODS[n].label for n in names)), rows)


def chosen(found: list[Found]) -> str:
    """The strength that each method chose in each case."""
    names = _methods(found)
    rows = []
    for each in found:
        trials = each.case["trials"]
        cells = [
            _strength(trials[name]) if name in trials else ""
            for name in ("sgd", *names)
        ]
        rows.append((each.label, *cells))
    return markdown(("case", "SGD", *(METHODS[name].label for name in names)), rows)


def _strength(trial: Mapping[str, Any]) -> str:
    """The chosen strength, with a star at an end of those tried."""
    ends = trial["strengths"][0], trial["strengths"][-1]
    return f"{trial['chosen']:g}{'*' if trial['chosen'] in ends else ''}"


def lost(found: list[Found]) -> str:
    """Validation accuracy at each strength less SGD's best, averaged over cases."""
    rows = []
    for name in _methods(found):
        trials = [
            (each.case["trials"][name], each.case["trials"]["sgd"])
            for each in found
            if name in each.case["trials"]
        ]
        gains = [
            100 * (np.mean(trial["accuracies"], 1) - _best(sgd))
            for trial, sgd in trials
        ]
        strengths = trials[0][0]["strengths"]
        cells = [
            f"{strength:g}: {gain:+.2f}"
            for strength, gain in zip(strengths, np.mean(gains, 0), strict=True)
        ]
        rows.append((METHODS[name].label, *cells))
    header = ("method", *(f"trial {i}" for i in range(1, 5)))
    return markdown(header, rows)


def advice(found: list[Found]) -> str:
    """Of each strength: its gain over SGD on held-out images, and how often chosen."""
    rows = []
    for name in ("adasmoothout", "smoothout", "sam", "msam"):
        cases = [each.case["trials"] for each in found]
        strengths = cases[0][name]["strengths"]
        gains = np.mean([_gains(trials, name) for trials in cases], 0)
        picked = [trials[name]["chosen"] for trials in cases]
        cells = [
            f"{strength:g}: {gain:+.1f} ({picked.count(strength)})"
            for strength, gain in zip(strengths, gains, strict=True)
        ]
        rows.append((METHODS[name].label, *cells))
    header = ("method", *(f"strength {i}" for i in range(1, 5)))
    return markdown(header, rows)


def _gains(trials: Mapping[str, Any], name: str) -> np.ndarray:
    """Accuracy at each strength less SGD's best, in percent."""
    return 100 * (np.mean(trials[name]["accuracies"], 1) - _best(trials["sgd"]))


def _best(trial: Mapping[str, Any]) -> float:
    return float(np.mean(trial["accuracies"], 1).max())


def costs(found: list[Found]) -> str:
    """Step times, and differences to SGD at equal numbers of gradients."""
    rows = []
    for name in _methods(found):
        times = [
            each.case["equal_updates"]["summary"][name]["relative_step_time"]
            for each in found
            if name in each.case["trials"]
        ]
        held = "equal_gradients" if METHODS[name].gradients > 1 else "equal_updates"
        equal = [d[0] for each in found if (d := each.difference(name, held))]
        updates = [d[0] for each in found if (d := each.difference(name))]
        rows.append(
            (
                METHODS[name].label,
                str(METHODS[name].gradients),
                f"{np.median(times):.2f}",
                f"{np.min(times):.2f} to {np.max(times):.2f}",
                f"{np.mean(updates):+.2f}",
                f"{np.mean(equal):+.2f}",
            )
        )
    header = (
        "method",
        "gradients a step",
        "step time / SGD's, median",
        "range",
        "difference at equal updates, %",
        "at equal gradients, %",
    )
    return markdown(header, rows)


def _description(each: Found) -> str:
    settings, machine = each.case["settings"], each.case["machine"]
    width = f", width {settings['width']}" if settings["width"] else ""
    hidden = settings["hidden_sizes"]
    if hidden:
        width = f", hidden layers {' '.join(map(str, hidden))}"
    return (
        f"{settings['train_size']:,} training images, network {settings['network']}"
        f"{width}, batches of {settings['batch_size']}, {settings['steps']:,} steps,"
        f" {settings['seeds']} seeds, {settings['copies']} copies where split, learning"
        f" rate {settings['learning_rate']:g};"
        f" {each.case['minutes']:.0f} minutes on {machine['cores']} cores"
        f" ({machine['device']})."
    )


def details(each: Found) -> str:
    """All that was measured in one case."""
    rows = [
        (
            METHODS[name].label,
            _strength(each.case["trials"][name]),
            "{:.2f} ± {:.2f}".format(*row["test_accuracy"]),
            ""
            if name == "sgd"
            else "{:+.2f} [{:+.2f}, {:+.2f}]".format(*row["difference_to_sgd"]),
            "{:.2f}".format(row["train_accuracy"][0]),
            "{:.3g} ± {:.1g}".format(*row["loss_rise"]),
            "{:.2f}".format(row["relative_step_time"]),
        )
        for name, row in each.case["equal_updates"]["summary"].items()
    ]
    header = (
        "method",
        "strength",
        "test accuracy, %",
        "minus SGD, paired [95 % interval]",
        "train, %",
        "loss rise under noise, nats",
        "step time / SGD's",
    )
    return markdown(header, rows)


def draw(found: list[Found]) -> Figure:
    """Differences to SGD with their intervals: a panel for each case."""
    names = _methods(found)
    columns = min(4, len(found))
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(3.6 * columns + 1, 3.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for ax, each in zip(panels, found, strict=False):
        differences = {name: d for name in names if (d := each.difference(name))}
        # A method that fails would leave no scale for the others: it is written out.
        least = -2 * max(high for _, _, high in differences.values())
        for name, (mean, low, high) in differences.items():
            row = names.index(name)
            if mean > least:
                bar = [[mean - low], [high - mean]]
                style = {
                    "fmt": "o",
                    "color": METHODS[name].color,
                    "capsize": 3,
                    "lw": 1.5,
                }
                ax.errorbar(mean, row, xerr=bar, **style)
            else:
                place = {"xycoords": ("axes fraction", "data"), "va": "center"}
                ax.annotate(
                    f"← {mean:.1f}", (0.02, row), color=METHODS[name].color, **place
                )
        ax.axvline(0, color="black", lw=0.8)
        ax.set_title(each.label.replace(", batch", "\nbatch"), fontsize=9)
        ax.grid(axis="x", alpha=0.3)
        ax.set_yticks(range(len(names)), [METHODS[name].label for name in names])
    panels[0].invert_yaxis()
    for ax in panels[len(found) :]:
        ax.remove()
    figure.supxlabel(
        "test accuracy minus SGD's (%), paired, 95 % interval", fontsize=10
    )
    return figure


INTRODUCTION = """<!-- Made by python -m benchmarks.results; do not edit. -->

# Results

What SmoothOut and its rivals do on real data, from the raw results in
[docs/results](results). `smoothout evidence EXPERIMENT --form cpu` (or `full`, meant
for a GPU) repeats each experiment, and `python -m benchmarks.results` this page. The
two forms are never mixed: the CPU form trains on a fixed subset of the training images,
for fewer steps, and with narrower convolutions.

First SGD tries four learning rates on images held out from the training set; then each
method tries four strengths (radius, ρ or standard deviation) at the best of them, from
seeds of its own. Then each trains at its choice on all the training images from the
same seeds, and is judged on the test images, on which nothing was chosen. Momentum SGD
with a cosine to zero is underneath; every method takes the same number of updates.
Intervals are Student's, of 95 %, of differences paired by the seed; *better* and
*worse* mean that the interval does not hold zero. With many cases some intervals miss
zero by chance, one in twenty. A star marks a strength at an end of those tried.

BatchNorm's parameters get no noise, and its statistics are re-estimated at the clean
weights before a network is judged. *Split* methods divide the batch between copies
that normalise it apart (ghost batches), of which *split SGD* shows the effect without
noise. *No de-noising* is the authors' ablation."""
RADII = (
    "The strength that each method chose, on held-out images; for SGD and split SGD"
    " the learning rate, for *rising Gaussian* the standard deviation at the end.\n\n"
    "Second, the accuracy on held-out images at each strength less SGD's at its best"
    " learning rate, in percent, averaged over the cases: what a wrong radius costs."
)
COSTS = (
    "Step times were measured in turns with SGD's. At equal gradients, methods that"
    " take two a step get half the steps, and so about SGD's time."
)


def main() -> None:
    """Writes the page and its pictures."""
    found = read()
    (DOCS / "results.md").write_text(page(found))
    for form in FORMS:
        if here := [each for each in found if each.form == form]:
            picture = DOCS / "results" / f"differences-{form}.png"
            draw(here).savefig(picture, dpi=110)


if __name__ == "__main__":
    main()
