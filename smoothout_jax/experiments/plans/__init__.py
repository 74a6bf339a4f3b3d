"""The plans of the experiments: data, networks, batches, methods, seeds and trials.

An experiment answers a question, and has several forms: `cpu`, sized to two cores,
`gpu`, sized to one GPU, and `smoke`, to check that it runs. A plan names its methods,
so that a new method does not change it.
"""

from smoothout_jax.experiments.plans import questions
from smoothout_jax.experiments.plans.case import (
    FIRST_TRIAL_SEED,
    FITS,
    TRIALS,
    Case,
    cases,
    widened,
)
from smoothout_jax.experiments.plans.gap import (
    GAP,
    GAP_OTHERS,
    GAP_SHARES,
    GAP_TWENTIETH,
)
from smoothout_jax.experiments.plans.published import LPF_SGD
from smoothout_jax.experiments.plans.rise import LOSS_RISE_CASES

__all__ = ["EXPERIMENTS", "FIRST_TRIAL_SEED", "FITS", "TRIALS", "Case", "widened"]

_SMOKE = cases(
    "digits",
    "f1",
    {20: (4, 2)},
    ("sgd", "sam", "adasmoothout-split"),
    (60, 20),
    (2, 1),
    hidden_sizes=(8,),
)

EXPERIMENTS = {
    "batches": {"cpu": questions.BATCHES, "smoke": _SMOKE},
    "wrong-labels": {"cpu": questions.LABELS},
    "wrong-labels-rise": {"cpu": questions.RISES},
    "recipes": {"cpu": questions.RECIPES},
    "parts": {"cpu": questions.PARTS},
    "rivals": {"cpu": questions.RIVALS},
    "networks": {"cpu": questions.NETWORKS},
    "lpf-sgd": LPF_SGD,
    "gap": {"cpu": GAP},
    "gap-others": {"cpu": GAP_OTHERS},
    "gap-share": {"cpu": GAP_SHARES},
    "gap-twentieth": {"cpu": GAP_TWENTIETH},
    "loss-rise": {"cpu": LOSS_RISE_CASES},
}
