"""The plans of the experiments that ask when noise helps, how much, and what to set.

Stated before they were run: a case *fits* if SGD, at its best learning rate, classifies
99.9 % of its training images correctly in its trials. The prediction is that noise
brings accuracy where SGD fits, and nothing, or harm, where it does not.
"""

import dataclasses

from smoothout_jax.experiments.plans.case import Case, cases

_SIX = (
    "sgd", "adasmoothout", "adasmoothout-fixed", "smoothout-fixed", "sam", "msam",
)  # fmt: skip
_THREE = ("sgd", "adasmoothout", "adasmoothout-fixed")
_F1 = {"hidden_sizes": (128,) * 5}
# Learning rates that the training of convolutional networks bears.
_GENTLE = {"learning_rate": (0.003, 0.01, 0.03, 0.1, 0.3)}


def _named(
    *groups: tuple[Case, ...], suffix: str = "", holds_rise: bool = True, **changed
) -> tuple[Case, ...]:
    """Cases by names that tell them apart within an experiment."""
    return tuple(
        dataclasses.replace(
            case,
            label=f"{case.data}, {case.training['train_size']} images, {case.name},"
            f" {case.training['steps']} steps{suffix}",
            holds_rise=holds_rise,
            **changed,
        )
        for group in groups
        for case in group
    )


# Two cores need 2 to 8 minutes for a case of multilayer perceptrons, and 10 to 40 for a
# convolutional one.
BATCHES = _named(
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
) + _named(
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
        small = (
            cases("digits", "mlp", {100: (2000, 1)}, _SIX, (1000, 200), (10, 3)),
            cases("mnist1d", "mlp", {100: (2000, 1)}, _SIX, (2000, 400), (10, 3)),
            cases(
                "fashion-mnist", "f1", {100: (2000, 1)}, _SIX, (2000, 400), (10, 3),
                **_F1,
            ),
        )  # fmt: skip
        convolutional = cases(
            "cifar10", "cnet", {100: (400, 1)}, _SIX, (1000, 200), (5, 2), width=12
        )
        found += [
            dataclasses.replace(
                case,
                training=case.training | wrong | {"watch_size": case.validation_size},
            )
            for case in (
                *_named(*small, suffix=suffix),
                *_named(convolutional, suffix=suffix, trials=_GENTLE),
            )
        ]
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


def _recipes() -> tuple[Case, ...]:
    """A case without any recipe, and one on top of each, tuned as much as the noise."""
    bases = (
        (
            cases(
                "fashion-mnist", "f1", {128: (640, 1)}, _THREE, (1024, 256), (10, 3),
                **_F1,
            ),
            ("weight_decay", "label_smoothing", "shift", "dropout", "ema_decay"),
        ),
        (
            cases("mnist1d", "mlp", {100: (2000, 1)}, _THREE, (2000, 500), (10, 3)),
            ("weight_decay", "label_smoothing", "dropout", "ema_decay"),
        ),
    )  # fmt: skip
    found = []
    for base, recipes in bases:
        for recipe in ("", *recipes):
            name = recipe.replace("_", " ") + (" and flip" if recipe == "shift" else "")
            for case in _named(base, suffix=f", {name or 'no recipe'}", recipe=recipe):
                flip = {"flip": True} if recipe == "shift" else {}
                found.append(dataclasses.replace(case, training=case.training | flip))
    return tuple(found)


RECIPES = _recipes()

_EIGHT = (
    "sgd", "smoothout", "no-denoising", "smoothout-gaussian", "adasmoothout",
    "adasmoothout-split", "two-sided", "mix",
)  # fmt: skip
_FULL = (
    cases("digits", "mlp", {0: (1000, 5)}, _EIGHT, (500, 150), (10, 3)),
    cases("mnist1d", "mlp", {1000: (600, 4)}, _EIGHT, (2000, 500), (10, 3)),
    cases("fashion-mnist", "f1", {128: (640, 4)}, _EIGHT, (1024, 256), (10, 3), **_F1),
)


def _parts() -> tuple[Case, ...]:
    """What the method is made of: each part left out or replaced, radii fixed."""
    found = list(_named(*_FULL, holds_rise=False))
    two = ("sgd", "smoothout", "adasmoothout")
    changes = {
        ", radius rises": {"radius_schedule": "cosine"},
        ", noise late only": {"radius_schedule": "late"},
    }
    for suffix, change in changes.items():
        found += [
            dataclasses.replace(case, training=case.training | change)
            for case in _named(*_FULL, suffix=suffix, holds_rise=False, methods=two)
        ]
    found += [
        dataclasses.replace(
            case, training=case.training | {"noise_in_batch_norm": True}
        )
        for case in _named(
            _FULL[2], suffix=", noise in BatchNorm", holds_rise=False, methods=two
        )
    ]
    return tuple(found)


PARTS = _parts()

_NINE = (
    "sgd", "adasmoothout", "adasmoothout-fixed", "sam", "msam", "nesterov", "lpf-sgd",
    "rwp", "ema",
)  # fmt: skip
RIVALS = _named(
    cases("digits", "mlp", {50: (1000, 5)}, _NINE, (500, 150), (10, 3)),
    cases("mnist1d", "mlp", {1000: (600, 4)}, _NINE, (2000, 500), (10, 3)),
    cases("fashion-mnist", "f1", {128: (640, 4)}, _NINE, (1024, 256), (10, 3), **_F1),
)

NETWORKS = _named(
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
) + _named(
    cases("digit-pairs", "mlp", {100: (2000, 1)}, _SIX, (2000, 500), (10, 3)),
)  # fmt: skip
