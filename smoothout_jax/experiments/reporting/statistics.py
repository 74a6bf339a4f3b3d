"""Statistics over the seeds, with their errors and intervals, and how to write them."""

from collections.abc import Sequence

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


def with_error(pair: Sequence[float], form: str = ".2f", error_form: str = "") -> str:
    """A mean with its standard error, such as `97.41 ± 0.09`."""
    mean, error = pair
    return f"{mean:{form}} ± {error:{error_form or form}}"


def with_interval(triple: Sequence[float]) -> str:
    """A difference with its interval, such as `+0.31 [+0.12, +0.50]`."""
    mean, low, high = triple
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def to_first_digit(mean: float, error: float) -> str:
    """A mean with its standard error, both to the first digit of the error."""
    if not 0 < error < np.inf:
        return f"{mean:.3g}"
    if abs(mean) < 1e-3:
        return f"{mean:.1e} ± {error:.0e}".replace("e-0", "e-")
    return with_error((mean, error), f".{max(0, -int(np.floor(np.log10(error))))}f")
