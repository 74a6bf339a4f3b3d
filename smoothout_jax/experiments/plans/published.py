"""The plan of a published setting, sized to one GPU.

LPF-SGD's comparison on CIFAR-10: ResNet-18 without augmentation, batches of 128, and a
learning rate of 0.1 that falls to a tenth twice. Strengths are the published ones, or
the defaults here, so that there are no trials. 20 epochs replace the 200 of the
original. An interrupted run continues where it stopped:

    timeout --signal INT 8m smoothout evidence lpf-sgd --form gpu

Reference:
    Bisla et al., `Low-Pass Filtering SGD for Recovering Flat Optima in the Deep
    Learning Optimization Landscape <https://arxiv.org/abs/2201.08025>`_, 2022.
"""

import dataclasses
from typing import Any

from smoothout_jax.experiments.plans.case import Case

_REGIME: dict[str, Any] = {
    "schedule": "multistep",
    "milestones": (0.5, 0.75),
    "weight_decay": 5e-4,
    "precision": "bfloat16",
    "train_size": 50_000,
}
_GPU = Case(
    data="cifar10",
    network="resnet18",
    batch_size=128,
    methods=("sgd", "adasmoothout", "sam", "msam"),
    validation_size=0,
    seeds=2,
    trial_seeds=1,
    training=_REGIME | {"epochs": 20.0},
    trials={
        "learning_rate": (0.1,),
        "rho": (0.05,),
        "msam_rho": (1.0,),
    },
    label="CIFAR-10, resnet18, batch 128, 20 epochs, no augmentation",
    holds_rise=True,
)
# The same in miniature: digits in the place of CIFAR-10, 10 layers and two channels.
_MINIATURE = {"train_size": 64, "epochs": 1.0, "depth": 10, "width": 2}
_SMOKE = dataclasses.replace(
    _GPU,
    data="digits",
    batch_size=32,
    training=_REGIME | _MINIATURE,
    label="digits, 10 layers, batch 32, 1 epoch",
)
LPF_SGD = {"gpu": (_GPU,), "smoke": (_SMOKE,)}
