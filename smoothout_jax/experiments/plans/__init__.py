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
    widened,
)
from smoothout_jax.experiments.plans.published import LPF_SGD

__all__ = ["EXPERIMENTS", "FIRST_TRIAL_SEED", "FITS", "TRIALS", "Case", "widened"]

_SMOKE = Case(
    data="digits",
    network="f1",
    batch_size=20,
    methods=("sgd", "sam", "adasmoothout-split"),
    validation_size=20,
    seeds=2,
    trial_seeds=1,
    training={"hidden_sizes": (8,), "train_size": 60, "steps": 4, "copies": 2},
)
EXPERIMENTS = {
    "batches": {"cpu": questions.BATCHES, "smoke": (_SMOKE,)},
    "wrong-labels": {"cpu": questions.LABELS},
    "wrong-labels-rise": {"cpu": questions.RISES},
    "recipes": {"cpu": questions.RECIPES},
    "parts": {"cpu": questions.PARTS},
    "rivals": {"cpu": questions.RIVALS},
    "networks": {"cpu": questions.NETWORKS},
    "lpf-sgd": LPF_SGD,
    "gap": {"cpu": questions.GAP},
    "gap-others": {"cpu": questions.GAP_OTHERS},
    "gap-share": {"cpu": questions.GAP_SHARES},
    "gap-twentieth": {"cpu": questions.GAP_TWENTIETH},
    "loss-rise": {"cpu": questions.LOSS_RISE_CASES},
}
