"""The page of results and its pictures, from the raw results of the experiments.

`python -m pages.results` makes docs/results.md and the figures of docs/results from the
JSON files there, which `smoothout evidence` writes, and the text in pages/results.md.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pages.evidence import FORMS, TITLES, Result, read
from pages.source import DOCS, ROOT
from smoothout_jax.experiments.methods.table import METHODS
from smoothout_jax.experiments.plans import EXPERIMENTS
from smoothout_jax.experiments.reporting.formats import with_error, with_interval
from smoothout_jax.experiments.reporting.tables import markdown


def page(results: list[Result]) -> str:
    """The page."""
    parts = [(ROOT / "pages" / "results.md").read_text().rstrip()]
    for form, title in FORMS.items():
        here = [each for each in results if each.form == form]
        parts.append(f"## {title}")
        if here:
            parts.append(f"![Differences to SGD](results/differences-{form}.png)")
            parts += _form(here)
        if missing := _missing(form, here):
            parts += ["### Not run yet", f"{'; '.join(missing)}."]
    return "\n\n".join(parts) + "\n"


def _missing(form: str, results: list[Result]) -> list[str]:
    """The cases of the plans that have no results yet."""
    there = {(each.experiment, each.name) for each in results}
    return [
        f"{title}, {case.name}"
        for experiment, title in TITLES.items()
        for case in EXPERIMENTS[experiment][form]
        if (experiment, case.name) not in there
    ]


def _form(results: list[Result]) -> Iterator[str]:
    yield "### Does it help, and how much?"
    yield overview(results)
    yield from _verdicts(results)
    yield "### Small and large batches"
    yield batches(results)
    yield "### Which radius?"
    yield RADII
    yield chosen(results)
    yield lost(results)
    yield "### At what cost, against SAM and MSAM?"
    yield COSTS
    yield costs(results)
    yield "### Case by case"
    for each in results:
        yield f"#### {each.label}"
        yield _description(each)
        yield details(each)


def _methods(results: list[Result]) -> list[str]:
    """The methods compared, without SGD."""
    return [
        name
        for name in METHODS
        if name != "sgd" and any(name in each.case["trials"] for each in results)
    ]


def overview(results: list[Result]) -> str:
    """Each method over all cases: mean difference, cases won, lost and undecided."""
    rows = []
    for name in _methods(results):
        differences = [d for each in results if (d := each.difference(name))]
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


def _verdicts(results: list[Result]) -> Iterator[str]:
    """Where the paper's methods did not win."""
    for name in ("smoothout", "adasmoothout"):
        losing = [
            f"{each.label} ({with_interval(d)})"
            for each in results
            if (d := each.difference(name)) and d[1] <= 0
        ]
        if losing:
            yield (
                f"{METHODS[name].label} was not certainly better than SGD in"
                f" {len(losing)} of {len(results)} cases: {'; '.join(losing)}."
            )
        else:
            yield f"{METHODS[name].label} was better than SGD in every case."


def batches(results: list[Result]) -> str:
    """Differences to SGD by case: columns are the methods."""
    names = ("smoothout", "adasmoothout", "adasmoothout-split", "sam", "msam")
    rows = [
        (
            each.label,
            with_error(each.case["equal_updates"]["summary"]["sgd"]["test_accuracy"]),
            *(
                with_interval(d) if (d := each.difference(name)) else ""
                for name in names
            ),
        )
        for each in results
    ]
    return markdown(("case", "SGD, %", *(METHODS[n].label for n in names)), rows)


def chosen(results: list[Result]) -> str:
    """The strength that each method chose in each case."""
    names = _methods(results)
    rows = []
    for each in results:
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


def lost(results: list[Result]) -> str:
    """Validation accuracy at each strength minus SGD's best, averaged over cases."""
    rows = []
    for name in _methods(results):
        trials = [
            each.case["trials"] for each in results if name in each.case["trials"]
        ]
        gains = [_gains(each, name) for each in trials]
        strengths = trials[0][name]["strengths"]
        cells = [
            f"{strength:g}: {gain:+.2f}"
            for strength, gain in zip(strengths, np.mean(gains, 0), strict=True)
        ]
        rows.append((METHODS[name].label, *cells))
    header = ("method", *(f"trial {i}" for i in range(1, 5)))
    return markdown(header, rows)


def advice(results: list[Result]) -> str:
    """Gain of each strength over SGD on held-out images, and how often it won."""
    rows = []
    for name in ("adasmoothout", "smoothout", "sam", "msam"):
        cases = [each.case["trials"] for each in results]
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
    """Accuracy at each strength minus SGD's best, in percent."""
    return 100 * (np.mean(trials[name]["accuracies"], 1) - _best(trials["sgd"]))


def _best(trial: Mapping[str, Any]) -> float:
    return float(np.mean(trial["accuracies"], 1).max())


def costs(results: list[Result]) -> str:
    """Step times, and differences to SGD at equal numbers of gradients."""
    rows = []
    for name in _methods(results):
        times = [
            each.case["equal_updates"]["summary"][name]["relative_step_time"]
            for each in results
            if name in each.case["trials"]
        ]
        equal = "equal_gradients" if METHODS[name].gradients > 1 else "equal_updates"
        gradients = [d[0] for each in results if (d := each.difference(name, equal))]
        updates = [d[0] for each in results if (d := each.difference(name))]
        rows.append(
            (
                METHODS[name].label,
                str(METHODS[name].gradients),
                f"{np.median(times):.2f}",
                f"{np.min(times):.2f} to {np.max(times):.2f}",
                f"{np.mean(updates):+.2f}",
                f"{np.mean(gradients):+.2f}",
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


def _description(each: Result) -> str:
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


def details(each: Result) -> str:
    """All measurements of one case."""
    rows = [
        (
            METHODS[name].label,
            _strength(each.case["trials"][name]),
            with_error(row["test_accuracy"]),
            "" if name == "sgd" else with_interval(row["difference_to_sgd"]),
            "{:.2f}".format(row["train_accuracy"][0]),
            with_error(row["loss_rise"], ".3g", ".1g"),
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


def draw(results: list[Result]) -> Figure:
    """Differences to SGD with their intervals: a panel for each case."""
    names = _methods(results)
    columns = min(4, len(results))
    rows = -(-len(results) // columns)
    figure = Figure(figsize=(3.6 * columns + 1, 3.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for ax, each in zip(panels, results, strict=False):
        differences = {name: d for name in names if (d := each.difference(name))}
        # A method that fails would leave no scale for the others: write its value.
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
    for ax in panels[len(results) :]:
        ax.remove()
    figure.supxlabel(
        "test accuracy minus SGD's (%), paired, 95 % interval", fontsize=10
    )
    return figure


RADII = (
    "The strength that each method chose, on held-out images; for SGD and split SGD"
    " the learning rate, for *rising Gaussian* the standard deviation at the end. Its"
    " runs here scaled the noise of biases to each weight and left BatchNorm out;"
    " LPF-SGD, and the method as it is now, scale it to the whole bias, and perturb"
    " BatchNorm too.\n\n"
    "Second, the accuracy on held-out images at each strength less SGD's at its best"
    " learning rate, in percent, averaged over the cases: what a wrong radius costs."
)
COSTS = (
    "Step times were measured in turns with SGD's. At equal gradients, methods that"
    " take two a step get half the steps, and so about SGD's time."
)


def main() -> None:
    """Writes the page and its figures."""
    results = read()
    (DOCS / "results.md").write_text(page(results))
    for form in FORMS:
        if here := [each for each in results if each.form == form]:
            picture = DOCS / "results" / f"differences-{form}.png"
            draw(here).savefig(picture, dpi=110)


if __name__ == "__main__":
    main()
