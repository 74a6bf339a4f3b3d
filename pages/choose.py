"""The figures behind the choice of a method and its setting: docs/choose.md."""

import functools
import re

import numpy as np

from pages import evidence, gap
from pages.evidence import OURS, SHOWN, SWEPT, Result, Tally, of_experiment, tally
from pages.results import compared, main_cases
from pages.source import ROOT


def total(name: str, method: str = OURS) -> Tally:
    """The tally of a method in the cases of a name."""
    return tally(cases()[name], method)


def gained(group: str) -> Tally:
    """The tally of noise that follows the gap in a group of cases."""
    return tally(evidence.grouped(gap.cases())[group], evidence.GAP)


def mean(name: str, method: str = OURS) -> float:
    """The mean difference of a method to SGD in the cases of a name."""
    return total(name, method).mean


@functools.cache
def cases() -> dict[str, list[Result]]:
    """The cases that each figure is a mean over, by name."""
    found = evidence.grouped(main_cases())
    fits, wrong = found["fits"], found["wrong"]
    rises = of_experiment(evidence.RISES)
    names = [each.name.removesuffix(evidence.CHOSEN) for each in rises]
    recipes = [e for e in of_experiment("recipes") if not e.name.endswith("no recipe")]
    for fraction in (0.2, 0.4, 0.6):
        found[f"wrong_{100 * fraction:.0f}"] = [
            each
            for each in wrong
            if each.settings["label_noise"] == fraction
            and each.settings["label_noise_kind"] == "symmetric"
        ]
    return found | {
        "large": [each for each in fits if each.settings["batch_size"] >= 500],
        "small": [each for each in fits if each.settings["batch_size"] < 500],
        "common": compared(fits),
        "common_short": compared(found["short"]),
        "short_gained": [e for e in found["short"] if e.difference(OURS)[1] > 0],
        "pairs": [e for e in wrong if e.settings["label_noise_kind"] == "pair"],
        "rises": rises,
        "not_chosen": [each for each in wrong if each.name in names],
        "recipes": recipes,
        "shift": [e for e in recipes if e.name.endswith(", shift and flip")],
        "dropout": [e for e in recipes if e.name.endswith(", dropout")],
        "parts": [e for e in of_experiment("parts") if "no-denoising" in e.summary],
    }


def lost(method: str) -> float:
    """Accuracy that rounding to 4 bits costs, in percent."""
    rows = [each.summary[method] for each in cases()["common"]]
    return float(np.mean([row["lost_at_4_bits"][0] for row in rows]))


def lora(place: str, case: int = 0) -> str:
    """What noise gains with LoRA, in one of the cases that the last notebook prints."""
    text = (ROOT / "notebooks" / "8-transformers-and-lora.ipynb").read_text()
    gains = re.findall(rf"noise on the {place} .*?(\S+) \[(\S+), (\S+)\], ", text)
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*map(float, gains[case]))


def short_gained() -> str:
    """The cases that gain although SGD does not fit."""
    return "; ".join(
        f"{each.label} gains {each.difference(OURS)[0]:+.1f}, though SGD has"
        f" {each.summary['sgd']['train_accuracy'][0]:.1f} % of its training images"
        " right"
        for each in cases()["short_gained"]
    )


def short_swept() -> str:
    """What sweeps gain where SGD does not fit."""
    return "; ".join(
        f"{evidence.label_of(name)}, {mean('common_short', name):+.1f}"
        for name in SHOWN[1:]
    )


def pairs() -> str:
    """What a radius from a sweep gains where labels flip in pairs, and a rise."""
    return ", ".join(
        f"{each.difference(SWEPT)[0]:+.1f} ({each.difference(OURS)[0]:+.1f}) on"
        f" {each.label.split()[0]}"
        for each in cases()["pairs"]
    )
