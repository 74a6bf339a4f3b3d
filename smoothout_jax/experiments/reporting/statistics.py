"""Statistics over the seeds: means, standard errors and intervals."""

import numpy as np
import scipy.stats


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Mean and its standard error."""
    return float(values.mean()), float(scipy.stats.sem(values))


def mean_and_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean, and the ends of its 95 % interval by Student's t.

    Equal values, such as a method's difference to itself, have an interval of width
    zero; SciPy's own intervals are NaN there.
    """
    mean, error = mean_and_error(values)
    half_width = float(scipy.stats.t.ppf(0.975, len(values) - 1) * error)
    return mean, mean - half_width, mean + half_width


def paired_difference(
    values: np.ndarray, baseline: np.ndarray
) -> tuple[float, float, float]:
    """Mean difference of pairs, and the ends of its 95 % interval by Student's t."""
    return mean_and_interval(values - baseline)
