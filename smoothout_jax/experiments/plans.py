"""The experiments: data, networks, batches, seeds and methods, and what is tried.

Each has a form for a GPU, the whole of the paper's, and one for two CPU cores: fewer
training images and steps, and narrower convolutions, the same for every method.
"""

import dataclasses
from pathlib import Path
from typing import Any

from smoothout_jax import _checks
from smoothout_jax.experiments.options import argument, option
from smoothout_jax.experiments.settings import METHODS, Settings

FORMS = ("cpu", "full", "smoke")
# Four trials for each method, of the one setting that is its strength.
TRIALS = {
    "learning_rate": (0.03, 0.1, 0.3, 1.0),
    "radius": (0.01, 0.03, 0.1, 0.2),
    "relative_radius": (0.1, 0.2, 0.4, 0.8),
    "rho": (0.05, 0.1, 0.3, 0.6),
    "msam_rho": (0.1, 0.3, 1.0, 3.0),
    "std": (0.005, 0.01, 0.03, 0.1),
}
TEN = tuple(m for m in METHODS if m not in ("no-denoising", "sgd-split"))
SEVEN = (
    "sgd",
    "smoothout",
    "adasmoothout",
    "sam",
    "msam",
    "smoothout-split",
    "adasmoothout-split",
)
FIRST_TRIAL_SEED = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One network on one data set at one batch size.

    Attributes:
        data: the data set.
        network: the network.
        batch_size: training images in a batch, or 0 for all of them.
        methods: the methods, SGD among them.
        validation_size: training images held out while strengths are tried.
        seeds: seeds of the comparison.
        trial_seeds: seeds of each trial, none of them the comparison's.
        training: other settings of training.
    """

    data: str
    network: str
    batch_size: int
    methods: tuple[str, ...]
    validation_size: int
    seeds: int
    trial_seeds: int
    training: dict[str, Any]

    @property
    def name(self) -> str:
        """What tells it from the other cases of an experiment."""
        return f"{self.network}, batch {self.batch_size or 'full'}"

    def settings(self, data_dir: Path, *, held_out: bool) -> Settings:
        """Settings of the comparison, or of trials on held-out images."""
        validation_size = self.validation_size if held_out else 0
        whole = self.training["train_size"] - validation_size
        chosen: dict[str, Any] = self.training
        return Settings(
            **chosen,
            data=self.data,
            data_dir=data_dir,
            network=self.network,
            batch_size=self.batch_size or whole,
            validation_size=validation_size,
            methods=self.methods,
            seeds=self.seeds,
            noise_samples=10,
        )


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
        batches: steps, and copies of the split methods, by the batch size.
        methods: the methods.
        sizes: training images, and how many of them are held out for trials.
        seeds: number of seeds, and of those of each trial.
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
    "digits", "mlp", {50: (1000, 5), 0: (1000, 5)}, METHODS, (500, 150), (20, 5)
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
                METHODS,
                (2000, 500),
                (10, 2),
            ),
            *_cases(
                "mnist1d",
                "cnet",
                {100: (200, 4), 1000: (80, 4), 0: (50, 4)},
                METHODS,
                (2000, 500),
                (5, 1),
                width=8,
            ),
        ),
        "full": tuple(
            case
            for network in ("mlp", "cnet")
            for case in _cases(
                "mnist1d", network, _FULL_1D, METHODS, (4000, 1000), (10, 3)
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvidenceSettings:
    """Settings of `smoothout evidence`.

    Raises:
        ValueError: when one is out of its range.
    """

    experiment: str = argument(
        f"one of {', '.join(EXPERIMENTS)}", "EXPERIMENT", choices=tuple(EXPERIMENTS)
    )
    form: str = option(
        "cpu",
        "the whole experiment, for a GPU; a smaller one for two CPU cores; or smoke,"
        " where there is one, to see that it runs",
        choices=FORMS,
    )
    cases: tuple[str, ...] = option(
        (), "cases to run, such as 'mlp, batch full'; all if not given", "CASE"
    )
    data_dir: Path = option(
        Path("data"), "folder of the data sets, as for smoothout compare", "FOLDER"
    )
    output: Path = option(
        Path("smoothout-evidence"),
        "folder of the results, to which cases that are not in it yet are added",
        "FOLDER",
    )

    def __post_init__(self):
        _checks.choice(tuple(EXPERIMENTS), experiment=self.experiment)
        _checks.choice(tuple(EXPERIMENTS[self.experiment]), form=self.form)
        names = tuple(case.name for case in self.plan)
        for name in self.cases:
            _checks.choice(names, cases=name)

    @property
    def plan(self) -> tuple[Case, ...]:
        """The cases of the experiment in its form."""
        return EXPERIMENTS[self.experiment][self.form]
