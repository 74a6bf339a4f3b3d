"""The plans of the experiments: data, networks, batches, methods, seeds and trials.

The full form of an experiment is that of the paper, for a GPU; the CPU form, for two
cores, has fewer training images and steps and narrower convolutions, the same for every
method. A plan names its methods, so that a new method does not change it.
"""

import dataclasses
import json
from typing import Any

# Four trials for each method, of the setting that is its strength.
TRIALS = {
    "learning_rate": (0.03, 0.1, 0.3, 1.0),
    "radius": (0.01, 0.03, 0.1, 0.2),
    "relative_radius": (0.1, 0.2, 0.4, 0.8),
    "rho": (0.05, 0.1, 0.3, 0.6),
    "msam_rho": (0.1, 0.3, 1.0, 3.0),
    "std": (0.005, 0.01, 0.03, 0.1),
}
SEVEN = (
    "sgd",
    "smoothout",
    "adasmoothout",
    "sam",
    "msam",
    "smoothout-split",
    "adasmoothout-split",
)
TEN = (*SEVEN, "two-sided", "mix", "gaussian")
TWELVE = (*TEN, "no-denoising", "sgd-split")
FIRST_TRIAL_SEED = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One network on one data set at one batch size.

    Attributes:
        data: the data set.
        network: the network.
        batch_size: training images in a batch, or 0 for all of them.
        methods: the methods, SGD among them.
        validation_size: training images to hold out for the trials.
        seeds: seeds of the comparison.
        trial_seeds: seeds of each trial, all different from those of the comparison.
        training: other settings of training.
        trials: strengths that methods try, by the setting, if not `TRIALS`.
        label: its name, if not that of its network and batch.
        holds_rise: whether methods with noise hold the rise of the loss, as they do by
            default, unless their name says that their noise is fixed.
    """

    data: str
    network: str
    batch_size: int
    methods: tuple[str, ...]
    validation_size: int
    seeds: int
    trial_seeds: int
    training: dict[str, Any]
    trials: dict[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    label: str = ""
    holds_rise: bool = False

    @property
    def name(self) -> str:
        """What distinguishes it from the other cases of the experiment."""
        return self.label or f"{self.network}, batch {self.batch_size or 'full'}"

    def to_json(self) -> dict[str, Any]:
        """What JSON holds of it, without what is as in cases before it."""
        values = dataclasses.asdict(self)
        for name in ("trials", "label", "holds_rise"):
            if not values[name]:
                del values[name]
        return json.loads(json.dumps(values))


def _cases(
    data: str,
    network: str,
    batches: dict[int, tuple[int, int]],
    methods: tuple[str, ...],
    sizes: tuple[int, int],
    seeds: tuple[int, int],
    **training: Any,
) -> tuple[Case, ...]:
    """Cases that differ in the batch size.

    Args:
        data: the data set.
        network: the network.
        batches: steps, and copies of the split methods, by batch size.
        methods: the methods.
        sizes: training images, and how many of them to hold out for the trials.
        seeds: number of seeds of the comparison, and of each trial.
        **training: other settings of training.
    """
    return tuple(
        Case(
            data=data,
            network=network,
            batch_size=batch_size,
            methods=methods,
            validation_size=sizes[1],
            seeds=seeds[0],
            trial_seeds=seeds[1],
            training=training
            | {"train_size": sizes[0], "steps": steps, "copies": copies},
        )
        for batch_size, (steps, copies) in batches.items()
    )


_DIGITS = _cases(
    "digits", "mlp", {50: (1000, 5), 0: (1000, 5)}, TWELVE, (500, 150), (20, 5)
)
# So few images that F1 fits them all.
_FEW = _cases(
    "fashion-mnist",
    "f1",
    {128: (640, 4), 0: (150, 8)},
    TEN,
    (1024, 256),
    (5, 2),
    hidden_sizes=(128,) * 5,
)


def _held(*groups: tuple[Case, ...], **trials: tuple[float, ...]) -> tuple[Case, ...]:
    """Cases in which the rise of the loss stands against five fixed radii."""
    return tuple(
        dataclasses.replace(
            case,
            label=f"{case.data}, {case.training['train_size']} images, {case.name},"
            f" {case.training['steps']} steps",
            methods=("sgd", "adasmoothout", "adasmoothout-fixed"),
            trials={"relative_radius": (0.05, 0.1, 0.2, 0.4, 0.8)} | trials,
            holds_rise=True,
        )
        for cases in groups
        for case in cases
    )


_F1 = {"hidden_sizes": (128,) * 5}
# Networks that fit their images, and, of the same kinds, some that have not the time.
_RISE = _held(
    _cases("digits", "mlp", {50: (1000, 1), 0: (1000, 1)}, (), (500, 150), (10, 4)),
    _cases("mnist1d", "mlp", {100: (2000, 1)}, (), (2000, 500), (8, 2)),
    _cases("mnist1d", "mlp", {1000: (600, 1), 0: (600, 1)}, (), (2000, 500), (8, 2)),
    _cases("fashion-mnist", "f1", {128: (640, 1)}, (), (1024, 256), (8, 4), **_F1),
    _cases("fashion-mnist", "f1", {0: (400, 1)}, (), (1024, 256), (8, 4), **_F1),
    _cases("mnist1d", "cnet", {100: (1000, 1)}, (), (1000, 250), (5, 1), width=8),
    _cases(
        "fashion-mnist", "resnet", {100: (300, 1)}, (), (600, 150), (5, 1), depth=8,
        width=8,
    ),
    _cases("cifar10", "cnet", {200: (200, 1)}, (), (1000, 250), (5, 1), width=12),
    _cases("mnist1d", "mlp", {100: (300, 1)}, (), (2000, 500), (8, 2)),
    _cases("fashion-mnist", "f1", {128: (640, 1)}, (), (10_240, 2048), (5, 2), **_F1),
    _cases("mnist1d", "cnet", {100: (200, 1)}, (), (2000, 500), (5, 1), width=8),
    _cases("cifar10", "cnet", {128: (100, 1)}, (), (3000, 600), (5, 1), width=8),
)  # fmt: skip
# Convolutional networks with the time to fit, at learning rates below the edge of what
# their training bears.
_RISE += _held(
    _cases("digits", "cnet", {50: (1000, 1)}, (), (500, 150), (8, 2), width=8),
    _cases("digits", "cnet", {0: (300, 1)}, (), (500, 150), (5, 1), width=8),
    _cases(
        "digits", "resnet", {50: (1000, 1)}, (), (500, 150), (5, 2), depth=8, width=8
    ),
    _cases("mnist1d", "cnet", {100: (2000, 1)}, (), (2000, 500), (5, 2), width=8),
    _cases("mnist1d", "cnet", {1000: (400, 1)}, (), (2000, 500), (5, 1), width=8),
    learning_rate=(0.01, 0.03, 0.1, 0.3),
)
_FULL_1D = {100: (4000, 4), 1000: (4000, 8), 0: (4000, 8)}
_CROPS = {"shift": 4, "flip": True, "weight_decay": 5e-4}

EXPERIMENTS = {
    "digits": {
        "cpu": _DIGITS,
        "full": _DIGITS,
        "smoke": _cases(
            "digits",
            "f1",
            {20: (4, 2)},
            ("sgd", "sam", "adasmoothout-split"),
            (60, 20),
            (2, 1),
            hidden_sizes=(8,),
        ),
    },
    "mnist1d": {
        "cpu": (
            *_cases(
                "mnist1d",
                "mlp",
                {100: (600, 4), 1000: (300, 4), 0: (200, 4)},
                TWELVE,
                (2000, 500),
                (10, 2),
            ),
            *_cases(
                "mnist1d",
                "cnet",
                {100: (200, 4), 1000: (80, 4), 0: (50, 4)},
                TWELVE,
                (2000, 500),
                (5, 1),
                width=8,
            ),
        ),
        "full": tuple(
            case
            for network in ("mlp", "cnet")
            for case in _cases(
                "mnist1d", network, _FULL_1D, TWELVE, (4000, 1000), (10, 3)
            )
        ),
    },
    "fashion-mnist": {
        "cpu": (
            *_cases(
                "fashion-mnist",
                "f1",
                {128: (640, 4), 4096: (60, 32)},
                TEN,
                (10_240, 2048),
                (5, 1),
                hidden_sizes=(128,) * 5,
            ),
            *_cases(
                "fashion-mnist",
                "cnet",
                {128: (150, 4), 1024: (24, 8)},
                TEN,
                (5120, 1024),
                (3, 1),
                width=8,
            ),
        ),
        "full": tuple(
            case
            for network in ("f1", "cnet")
            for case in _cases(
                "fashion-mnist",
                network,
                {128: (14_000, 4), 4096: (3500, 32)},
                TEN,
                (60_000, 6000),
                (5, 2),
            )
        ),
    },
    "loss-rise": {"cpu": _RISE},
    "fashion-mnist-1k": {"cpu": _FEW, "full": _FEW},
    "cifar10": {
        "cpu": (
            *_cases(
                "cifar10",
                "cnet",
                {128: (120, 4), 1024: (20, 8)},
                SEVEN,
                (5120, 1024),
                (3, 1),
                width=8,
            ),
            *_cases(
                "cifar10",
                "resnet",
                {128: (60, 4)},
                SEVEN,
                (5120, 1024),
                (3, 1),
                depth=44,
                width=4,
            ),
        ),
        "full": tuple(
            case
            for network in ("cnet", "resnet")
            for case in _cases(
                "cifar10",
                network,
                {128: (78_000, 4), 2048: (19_500, 16)},
                SEVEN,
                (50_000, 5000),
                (5, 1),
                **_CROPS,
            )
        ),
    },
}
