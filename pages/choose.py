"""The figures behind the choice of a method and its setting: docs/choose.md."""

import json
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from pages import gap
from pages.evidence import (
    CHOSEN,
    OURS,
    RISES,
    SHOWN,
    SWEPT,
    Result,
    grouped,
    label_of,
    of_experiment,
    tally,
)
from pages.results import at_the_edge, compared, main_cases
from pages.source import ROOT

PARTS = "smoothout", "smoothout-gaussian", "no-denoising", "adasmoothout", "two-sided"


def mean(cases: Iterable[Result], method: str = OURS) -> float:
    """Mean difference to SGD."""
    return tally(list(cases), method).mean


def cases() -> dict[str, list[Result]]:
    """The cases that each figure is a mean over, by name."""
    found = grouped(main_cases())
    fits, wrong = found["fits"], found["wrong"]
    rises = of_experiment(RISES)
    names = [each.name.removesuffix(CHOSEN) for each in rises]
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


def lora() -> dict[str, str]:
    """The gains of noise with LoRA, which the last notebook prints."""
    text = (ROOT / "notebooks" / "8-transformers-and-lora.ipynb").read_text()
    printed = "".join(
        line
        for cell in json.loads(text)["cells"]
        for output in cell.get("outputs", ())
        for line in output.get("text", ())
    )
    rows = re.findall(r"noise on the (\w+) .*?([+-]\S+) \[(\S+), (\S+)\]", printed)
    return {
        f"lora_{place}": "{:+.1f} [{:+.1f}, {:+.1f}]".format(*map(float, gain))
        for place, *gain in rows
    }


def values() -> dict[str, Any]:
    """What the page says, by name."""
    found = cases()
    common, short = found["common"], found["common_short"]
    edge = at_the_edge()
    groups = ("fits", "wrong", "short", "rises", "recipes")
    return {
        **{group: tally(found[group]) for group in groups},
        **{name: mean(found[name]) for name in ("large", "small", "shift", "dropout")},
        **{f"wrong_{p}": mean(found[f"wrong_{p}"], SWEPT) for p in (20, 40, 60)},
        **{name.replace("-", "_"): mean(found["parts"], name) for name in PARTS},
        **gap.against_sweeps(),
        **lora(),
        "swept": mean(common, SWEPT),
        "unswept": mean(common),
        "sam": mean(common, "sam"),
        "msam": mean(common, "msam"),
        "short_common": len(short),
        "short_gained": "; ".join(
            f"{each.label} gains {each.difference(OURS)[0]:+.1f}, though SGD has"
            f" {each.summary['sgd']['train_accuracy'][0]:.1f} % of its training images"
            " right"
            for each in found["short_gained"]
        ),
        "short_swept": "; ".join(
            f"{label_of(name)}, {mean(short, name):+.1f}" for name in SHOWN[1:]
        ),
        "pairs": ", ".join(
            f"{each.difference(SWEPT)[0]:+.1f} ({each.difference(OURS)[0]:+.1f}) on"
            f" {each.label.split()[0]}"
            for each in found["pairs"]
        ),
        "edge": edge.difference(OURS)[0],
        "edge_rate": edge.case["trials"]["sgd"]["chosen"],
        "sgd_4_bits": lost("sgd"),
        "ours_4_bits": lost(OURS),
    }
