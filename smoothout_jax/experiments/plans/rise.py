"""The plan of the experiment on holding the rise of the loss."""

import dataclasses

from smoothout_jax.experiments.plans.case import Case, cases

_F1 = {"hidden_sizes": (128,) * 5}
_FIVE = {
    "learning_rate": (0.03, 0.1, 0.3, 1.0),
    "relative_radius": (0.05, 0.1, 0.2, 0.4, 0.8),
}


def held(*groups: tuple[Case, ...], **trials: tuple[float, ...]) -> tuple[Case, ...]:
    """Cases in which the rise of the loss stands against five fixed radii."""
    return tuple(
        dataclasses.replace(
            case,
            label=f"{case.data}, {case.training['train_size']} images, {case.name},"
            f" {case.training['steps']} steps",
            methods=("sgd", "adasmoothout", "adasmoothout-fixed"),
            trials=_FIVE | trials,
            holds_rise=True,
        )
        for group in groups
        for case in group
    )


# Networks that fit their images, and, of the same kinds, some that have not the time.
LOSS_RISE_CASES = held(
    cases("digits", "mlp", {50: (1000, 1), 0: (1000, 1)}, (), (500, 150), (10, 4)),
    cases("mnist1d", "mlp", {100: (2000, 1)}, (), (2000, 500), (8, 2)),
    cases("mnist1d", "mlp", {1000: (600, 1), 0: (600, 1)}, (), (2000, 500), (8, 2)),
    cases("fashion-mnist", "f1", {128: (640, 1)}, (), (1024, 256), (8, 4), **_F1),
    cases("fashion-mnist", "f1", {0: (400, 1)}, (), (1024, 256), (8, 4), **_F1),
    cases("mnist1d", "cnet", {100: (1000, 1)}, (), (1000, 250), (5, 1), width=8),
    cases(
        "fashion-mnist", "resnet", {100: (300, 1)}, (), (600, 150), (5, 1), depth=8,
        width=8,
    ),
    cases("cifar10", "cnet", {200: (200, 1)}, (), (1000, 250), (5, 1), width=12),
    cases("mnist1d", "mlp", {100: (300, 1)}, (), (2000, 500), (8, 2)),
    cases("fashion-mnist", "f1", {128: (640, 1)}, (), (10_240, 2048), (5, 2), **_F1),
    cases("mnist1d", "cnet", {100: (200, 1)}, (), (2000, 500), (5, 1), width=8),
    cases("cifar10", "cnet", {128: (100, 1)}, (), (3000, 600), (5, 1), width=8),
)  # fmt: skip
# Convolutional networks with the time to fit, at learning rates below the edge of what
# their training bears.
LOSS_RISE_CASES += held(
    cases("digits", "cnet", {50: (1000, 1)}, (), (500, 150), (8, 2), width=8),
    cases("digits", "cnet", {0: (300, 1)}, (), (500, 150), (5, 1), width=8),
    cases(
        "digits", "resnet", {50: (1000, 1)}, (), (500, 150), (5, 2), depth=8, width=8
    ),
    cases("mnist1d", "cnet", {100: (2000, 1)}, (), (2000, 500), (5, 2), width=8),
    cases("mnist1d", "cnet", {1000: (400, 1)}, (), (2000, 500), (5, 1), width=8),
    learning_rate=(0.01, 0.03, 0.1, 0.3),
)
