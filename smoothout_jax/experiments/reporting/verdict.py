"""Whether noise helps, in one sentence, from a comparison of a few seeds."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.stats

from smoothout_jax.experiments.reporting.statistics import mean_and_interval

# SGD fits if it classifies this part of its training images right.
FITS = 0.99
# What the sentence is about: noise at one gradient a step.
OURS = "adasmoothout", "smoothout"


def verdict(
    accuracies: Mapping[str, np.ndarray], train_accuracy: float, labels: Mapping
) -> str:
    """The sentence, for SGD and the better of SmoothOut and AdaSmoothOut.

    Args:
        accuracies: test accuracies in percent, (seeds,), by the method's name.
        train_accuracy: mean of SGD's on the training images, a fraction.
        labels: how to write the names.

    Returns:
        The sentence; empty if SGD, or both of the others, were not compared.
    """
    tried = [name for name in OURS if name in accuracies]
    if not tried or "sgd" not in accuracies:
        return ""
    name = max(tried, key=lambda each: np.nan_to_num(accuracies[each], nan=-1).mean())
    differences = accuracies[name] - accuracies["sgd"]
    if not np.isfinite(differences).all():
        return ""
    mean, low, high = mean_and_interval(differences)
    fits = train_accuracy >= FITS
    if low > 0:
        advice = "use it, by smoothout(optimizer, key=0)"
    elif not fits:
        advice = "leave it, or train longer"
    elif high < 0:
        advice = "leave it"
    else:
        advice = f"too few seeds to tell; about {_seeds(differences)} would do"
    share = f"{'' if fits else 'only '}{100 * train_accuracy:.1f} %"
    interval = f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"
    return (
        f"SGD fits {share} of its training images; {labels[name]} is {interval}:"
        f" {advice}"
    )


def _seeds(differences: np.ndarray) -> Any:
    """How many seeds make the 95 % interval exclude zero, if mean and spread stay."""
    mean, spread = abs(differences.mean()), differences.std(ddof=1)
    for number in range(len(differences) + 1, 1000):
        if scipy.stats.t.ppf(0.975, number - 1) * spread < mean * np.sqrt(number):
            return number
    return "a thousand"
