"""What a comparison says in the end."""

import numpy as np
import pytest

from smoothout_jax.experiments.reporting.verdict import verdict

SGD = np.array([90.0, 91.0, 90.5, 89.5])
LABELS = {"sgd": "SGD", "smoothout": "SmoothOut", "adasmoothout": "AdaSmoothOut"}
EVENLY = np.array([0.9, 1.1, 1.0, 1.0])
# The interval of four is 3.18 standard errors, that of n seeds t(n − 1) of them.
WIDELY = np.array([2.2, -0.2, 1.6, 0.4])


@pytest.mark.parametrize(
    ("difference", "fit", "expected"),
    [
        (EVENLY, 1.0, "fits 100.0 %… is +1.0 [+0.9, +1.1]: use it, by smoothout(opti"),
        (-EVENLY, 0.999, "fits 99.9 %… is -1.0 [-1.1, -0.9]: leave it"),
        (-EVENLY, 0.8, "fits only 80.0 %… is -1.0 [-1.1, -0.9]: leave it, or train lo"),
        (WIDELY, 0.8, "fits only 80.0 %… is +1.0 [-0.7, +2.7]: leave it, or train"),
        (WIDELY, 1.0, "fits 100.0 %… +2.7]: too few seeds to tell; about 8 would do"),
        (0 * SGD, 1.0, "+0.0 [+0.0, +0.0]: too few seeds to tell; about a thousand"),
        (np.nan * SGD, 1.0, ""),
    ],
)
def test_the_sentence_follows_from_fit_and_interval(difference, fit, expected):
    worse = SGD + difference - 9
    accuracies = {"sgd": SGD, "smoothout": worse, "adasmoothout": SGD + difference}
    found = verdict(accuracies, fit, LABELS)
    for part in expected.split("…"):
        assert part in found
    assert bool(found) == bool(expected)
    if expected:
        assert "AdaSmoothOut is" in found


def test_nothing_is_said_where_nothing_is_compared():
    assert verdict({"sgd": SGD}, 1.0, LABELS) == ""
    assert verdict({"sgd": SGD, "sam": SGD}, 1.0, LABELS) == ""
