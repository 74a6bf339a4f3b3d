"""The plans of the experiments that ask when noise helps, how much, and what to set.

Stated before they were run: a case *fits* if SGD, at its best learning rate, classifies
99.9 % of its training images correctly in its trials. The prediction is that noise
brings accuracy where SGD fits, and nothing, or harm, where it does not.
"""

import dataclasses
from typing import Any

from smoothout_jax.experiments.plans.case import Case, cases, named

_SIX = (
    "sgd", "adasmoothout", "adasmoothout-fixed", "smoothout-fixed", "sam", "msam",
)  # fmt: skip
_THREE = ("sgd", "adasmoothout", "adasmoothout-fixed")
_F1 = {"hidden_sizes": (128,) * 5}
# Learning rates at which convolutional networks train without diverging.
_GENTLE = {"learning_rate": (0.003, 0.01, 0.03, 0.1, 0.3)}


# Two cores need 2 to 8 minutes for a case of multilayer perceptrons, and 10 to 40 for a
# convolutional one.
BATCHES = named(
    cases("digits", "mlp", {50: (1000, 1), 0: (1000, 1)}, _SIX, (500, 150), (10, 3)),
    cases("mnist1d", "mlp", {100: (2000, 1)}, _SIX, (2000, 500), (10, 3)),
    cases("mnist1d", "mlp", {1000: (600, 1), 0: (600, 1)}, _SIX, (2000, 500), (10, 3)),
    cases("fashion-mnist", "f1", {128: (640, 1)}, _SIX, (1024, 256), (10, 3), **_F1),
    cases("fashion-mnist", "f1", {0: (400, 1)}, _SIX, (1024, 256), (10, 3), **_F1),
    cases("fashion-mnist", "f1", {128: (1600, 1)}, _SIX, (4096, 1024), (10, 3), **_F1),
    cases("fashion-mnist", "f1", {1024: (500, 1)}, _SIX, (4096, 1024), (10, 3), **_F1),
    cases("digits", "mlp", {50: (60, 1)}, _SIX, (500, 150), (10, 3)),
    cases("mnist1d", "mlp", {100: (300, 1)}, _SIX, (2000, 500), (10, 3)),
    cases("fashion-mnist", "f1", {128: (640, 1)}, _SIX, (10_240, 2048), (10, 3), **_F1),
) + named(
    cases("mnist1d", "cnet", {100: (2000, 1)}, _SIX, (2000, 500), (5, 3), width=8),
    cases("mnist1d", "cnet", {1000: (400, 1)}, _SIX, (2000, 500), (5, 3), width=8),
    cases("cifar10", "cnet", {100: (300, 1)}, _SIX, (1000, 250), (5, 2), width=12),
    cases("cifar10", "cnet", {0: (150, 1)}, _SIX, (1000, 250), (5, 2), width=12),
    cases("cifar10", "cnet", {100: (600, 1)}, _SIX, (2000, 500), (5, 2), width=16),
    cases(
        "cifar10", "resnet", {100: (600, 1)}, _SIX, (2000, 500), (5, 2), depth=8,
        width=8,
    ),
    cases("mnist1d", "cnet", {100: (200, 1)}, _SIX, (2000, 500), (5, 3), width=8),
    cases("cifar10", "cnet", {100: (100, 1)}, _SIX, (3000, 600), (5, 2), width=12),
    trials=_GENTLE,
)  # fmt: skip


def _wrong_labels() -> tuple[Case, ...]:
    """Cases at each amount of wrong labels; held-out labels are wrong as well.

    The rise of the loss is larger and comes sooner than by default, chosen before.
    """
    rise = {"loss_rise": 0.3, "rise_epochs": 30.0}
    kinds = [(0.2, "symmetric"), (0.4, "symmetric"), (0.6, "symmetric"), (0.4, "pair")]
    found = []
    for noise, kind in kinds:
        wrong = rise | {"label_noise": noise, "label_noise_kind": kind}
        suffix = f", {100 * noise:.0f} % wrong labels" + (
            " (pair flip)" if kind == "pair" else ""
        )
        found += named(
            cases("digits", "mlp", {100: (2000, 1)}, _SIX, (1000, 200), (10, 3)),
            suffix=suffix,
            training=wrong | {"watch_size": 200},
        ) + named(
            cases("mnist1d", "mlp", {100: (2000, 1)}, _SIX, (2000, 400), (10, 3)),
            cases(
                "fashion-mnist", "f1", {100: (2000, 1)}, _SIX, (2000, 400), (10, 3),
                **_F1,
            ),
            suffix=suffix,
            training=wrong | {"watch_size": 400},
        ) + named(
            cases(
                "cifar10", "cnet", {100: (400, 1)}, _SIX, (1000, 200), (5, 2), width=12
            ),
            suffix=suffix,
            training=wrong | {"watch_size": 200},
            trials=_GENTLE,
        )  # fmt: skip
    return tuple(sorted(found, key=lambda case: case.network == "cnet"))


LABELS = _wrong_labels()
# Which rise of the loss wrong labels want: of these, the one that held-out labels
# prefer. A first look at 40 % wrong labels had found 0.3 nats best for most MLPs, and 1
# to 2 for F1; larger ones changed little.
RISES = tuple(
    dataclasses.replace(
        case,
        label=f"{case.label}, rise chosen",
        methods=("sgd", "adasmoothout"),
        trials={"loss_rise": (0.1, 0.3, 0.6, 1.0, 2.0, 4.0)},
    )
    for case in LABELS
    if case.network != "cnet"
)


def _recipes(base: tuple[Case, ...], *recipes: str) -> tuple[Case, ...]:
    """A case without any recipe, and one on top of each, tuned as much as the noise."""
    found = []
    for recipe in ("", *recipes):
        flip = {"flip": True} if recipe == "shift" else {}
        name = recipe.replace("_", " ") + (" and flip" if flip else "")
        suffix = f", {name or 'no recipe'}"
        found += named(base, suffix=suffix, recipe=recipe, training=flip)
    return tuple(found)


RECIPES = _recipes(
    cases("fashion-mnist", "f1", {128: (640, 1)}, _THREE, (1024, 256), (10, 3), **_F1),
    "weight_decay", "label_smoothing", "shift", "dropout", "ema_decay",
) + _recipes(
    cases("mnist1d", "mlp", {100: (2000, 1)}, _THREE, (2000, 500), (10, 3)),
    "weight_decay", "label_smoothing", "dropout", "ema_decay",
)  # fmt: skip

_EIGHT = (
    "sgd", "smoothout", "no-denoising", "smoothout-gaussian", "adasmoothout",
    "adasmoothout-split", "two-sided", "mix",
)  # fmt: skip
_FULL = (
    cases("digits", "mlp", {0: (1000, 5)}, _EIGHT, (500, 150), (10, 3)),
    cases("mnist1d", "mlp", {1000: (600, 4)}, _EIGHT, (2000, 500), (10, 3)),
    cases("fashion-mnist", "f1", {128: (640, 4)}, _EIGHT, (1024, 256), (10, 3), **_F1),
)


# What the method is made of: each part left out or replaced, radii fixed.
_ALONE = {"methods": ("sgd", "smoothout", "adasmoothout"), "holds_rise": False}
PARTS = (
    named(*_FULL, holds_rise=False)
    + named(
        *_FULL, suffix=", radius rises", training={"radius_schedule": "cosine"},
        **_ALONE,
    )
    + named(
        *_FULL, suffix=", noise late only", training={"radius_schedule": "late"},
        **_ALONE,
    )
    + named(
        _FULL[2], suffix=", noise in BatchNorm",
        training={"noise_in_batch_norm": True}, **_ALONE,
    )
)  # fmt: skip

_NINE = (
    "sgd", "adasmoothout", "adasmoothout-fixed", "sam", "msam", "nesterov", "lpf-sgd",
    "rwp", "ema",
)  # fmt: skip
RIVALS = named(
    cases("digits", "mlp", {50: (1000, 5)}, _NINE, (500, 150), (10, 3)),
    cases("mnist1d", "mlp", {1000: (600, 4)}, _NINE, (2000, 500), (10, 3)),
    cases("fashion-mnist", "f1", {128: (640, 4)}, _NINE, (1024, 256), (10, 3), **_F1),
)

NETWORKS = named(
    cases(
        "fashion-mnist", "vit", {128: (400, 1)}, _THREE, (1024, 256), (5, 2), depth=2,
        width=48, optimizer="adamw", warmup=0.1,
    ),
    cases(
        "text", "vit", {100: (800, 1)}, _THREE, (1000, 250), (5, 3), depth=2, width=24,
        optimizer="adamw", warmup=0.1,
    ),
    cases(
        "digits", "vit", {50: (1000, 1)}, _THREE, (500, 150), (5, 3), depth=2, width=24,
        optimizer="adamw", warmup=0.1,
    ),
    trials={"learning_rate": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)},
) + named(
    cases("digit-pairs", "mlp", {100: (2000, 1)}, _SIX, (2000, 500), (10, 3)),
)  # fmt: skip

# Whether holding the rise of the loss stands against five fixed radii: networks that
# fit their images, and, of the same kinds, some that have not the time.
_FIVE = {
    "learning_rate": (0.03, 0.1, 0.3, 1.0),
    "relative_radius": (0.05, 0.1, 0.2, 0.4, 0.8),
}
LOSS_RISE_CASES = named(
    cases("digits", "mlp", {50: (1000, 1), 0: (1000, 1)}, _THREE, (500, 150), (10, 4)),
    cases("mnist1d", "mlp", {100: (2000, 1)}, _THREE, (2000, 500), (8, 2)),
    cases("mnist1d", "mlp", {1000: (600, 1), 0: (600, 1)}, _THREE, (2000, 500), (8, 2)),
    cases("fashion-mnist", "f1", {128: (640, 1)}, _THREE, (1024, 256), (8, 4), **_F1),
    cases("fashion-mnist", "f1", {0: (400, 1)}, _THREE, (1024, 256), (8, 4), **_F1),
    cases("mnist1d", "cnet", {100: (1000, 1)}, _THREE, (1000, 250), (5, 1), width=8),
    cases(
        "fashion-mnist", "resnet", {100: (300, 1)}, _THREE, (600, 150), (5, 1), depth=8,
        width=8,
    ),
    cases("cifar10", "cnet", {200: (200, 1)}, _THREE, (1000, 250), (5, 1), width=12),
    cases("mnist1d", "mlp", {100: (300, 1)}, _THREE, (2000, 500), (8, 2)),
    cases(
        "fashion-mnist", "f1", {128: (640, 1)}, _THREE, (10_240, 2048), (5, 2), **_F1
    ),
    cases("mnist1d", "cnet", {100: (200, 1)}, _THREE, (2000, 500), (5, 1), width=8),
    cases("cifar10", "cnet", {128: (100, 1)}, _THREE, (3000, 600), (5, 1), width=8),
    trials=_FIVE,
) + named(
    cases("digits", "cnet", {50: (1000, 1)}, _THREE, (500, 150), (8, 2), width=8),
    cases("digits", "cnet", {0: (300, 1)}, _THREE, (500, 150), (5, 1), width=8),
    cases(
        "digits", "resnet", {50: (1000, 1)}, _THREE, (500, 150), (5, 2), depth=8,
        width=8,
    ),
    cases("mnist1d", "cnet", {100: (2000, 1)}, _THREE, (2000, 500), (5, 2), width=8),
    cases("mnist1d", "cnet", {1000: (400, 1)}, _THREE, (2000, 500), (5, 1), width=8),
    # Below the rates at which convolutional networks diverge.
    trials=_FIVE | {"learning_rate": (0.01, 0.03, 0.1, 0.3)},
)  # fmt: skip


def _by_gap(case: Case) -> Case:
    """A case whose noise follows the gap.

    A tenth of the training images is held out to measure it, and trained on the second
    time, with the rise that the first time had; with wrong labels, the images that are
    watched serve.
    """
    training: dict[str, Any] = case.training | {"loss_rise": "gap"}
    training.pop("rise_epochs", None)
    if "watch_size" not in training:
        training |= {"heldout_size": training["train_size"] // 10, "retrain": True}
    return dataclasses.replace(case, methods=("sgd", "adasmoothout"), training=training)


# Stated before they were run, except for seven cases trained once: without any choice,
# noise that follows the gap gains as much as the best of six fixed radii where SGD fits
# its images, and nine tenths of it where labels are wrong, is not certainly below SGD
# in any such case, and is nowhere more than 0.3 points below it where SGD does not fit.
GAP = tuple(map(_by_gap, (*BATCHES, *LABELS)))
# The same beside other recipes, and by transformers, text and a hundred classes.
GAP_OTHERS = tuple(
    _by_gap(case) for case in (*NETWORKS, *RECIPES) if "no recipe" not in case.name
)
# A twentieth held out instead of a tenth.
GAP_TWENTIETH = tuple(
    dataclasses.replace(
        case,
        training=case.training | {"heldout_size": case.training["train_size"] // 20},
    )
    for case in GAP
    if "label_noise" not in case.training and case.network in ("mlp", "f1")
)
# The share of the gap that the accuracy on held-out images prefers, of three.
GAP_SHARES = tuple(
    dataclasses.replace(case, trials=case.trials | {"gap_share": (0.25, 0.5, 1.0)})
    for case in GAP
    if "label_noise" in case.training and case.network != "cnet"
)
