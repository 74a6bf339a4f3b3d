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
NINE = tuple(m for m in METHODS if m not in ("no-denoising", "sgd-split"))
SIX = (
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

    def settings(self, data_dir: Path, *, held_out: bool, **chosen: Any) -> Settings:
        """Settings of the comparison, or of trials on held-out images."""
        validation_size = self.validation_size if held_out else 0
        train_size = self.training["train_size"]
        noise = {"noise_samples": 10}
        return Settings(
            **noise | self.training | chosen,
            data=self.data,
            data_dir=data_dir,
            network=self.network,
            batch_size=self.batch_size or train_size - validation_size,
            validation_size=validation_size,
            methods=self.methods,
            seeds=self.seeds,
        )


def _cases(data, network, batches, methods, validation_size, seeds, **training):
    """Cases that differ in the batch size, and the steps that go with it."""
    trial_seeds = training.pop("trial_seeds", 1)
    return tuple(
        Case(
            data=data,
            network=network,
            batch_size=batch_size,
            methods=methods,
            validation_size=validation_size,
            seeds=seeds,
            trial_seeds=trial_seeds,
            training={**training, "steps": steps},
        )
        for batch_size, steps in batches.items()
    )


_DIGITS = _cases(
    *("digits", "mlp", {50: 1000, 0: 1000}, METHODS, 150, 20),
    train_size=500,
    copies=5,
    trial_seeds=5,
)
_CROPS = {"shift": 4, "flip": True, "weight_decay": 5e-4}

EXPERIMENTS = {
    "digits": {
        "cpu": _DIGITS,
        "full": _DIGITS,
        "smoke": _cases(
            *("digits", "f1", {20: 4}, ("sgd", "sam", "adasmoothout-split"), 20, 2),
            hidden_sizes=(8,),
            train_size=60,
        ),
    },
    "mnist1d": {
        "cpu": (
            *_cases(
                *("mnist1d", "mlp", {100: 1000, 1000: 400, 0: 400}, METHODS, 500, 10),
                train_size=2000,
                trial_seeds=2,
            ),
            *_cases(
                *("mnist1d", "cnet", {100: 300, 1000: 150, 0: 100}, METHODS, 500, 10),
                train_size=2000,
                width=8,
            ),
        ),
        "full": (
            *_cases(
                *("mnist1d", "mlp", dict.fromkeys((100, 1000, 0), 4000), METHODS),
                *(1000, 10),
                train_size=4000,
                trial_seeds=3,
            ),
            *_cases(
                *("mnist1d", "cnet", dict.fromkeys((100, 1000, 0), 4000), METHODS),
                *(1000, 10),
                train_size=4000,
                trial_seeds=3,
            ),
        ),
    },
    "fashion-mnist": {
        "cpu": (
            *_cases(
                *("fashion-mnist", "f1", {128: 640, 4096: 100}, NINE, 2048, 5),
                train_size=10_240,
                hidden_sizes=(128,) * 5,
            ),
            *_cases(
                *("fashion-mnist", "cnet", {128: 200, 1024: 40}, NINE, 1024, 3),
                train_size=5120,
                width=8,
            ),
        ),
        "full": tuple(
            case
            for network in ("f1", "cnet")
            for case in _cases(
                *("fashion-mnist", network, {128: 14_000, 4096: 3500}, NINE, 6000, 5),
                train_size=60_000,
                copies=32,
                trial_seeds=2,
            )
        ),
    },
    "cifar10": {
        "cpu": (
            *_cases(
                *("cifar10", "cnet", {128: 160, 1024: 32}, SIX, 1024, 3),
                train_size=5120,
                width=8,
            ),
            *_cases(
                *("cifar10", "resnet", {128: 60}, SIX, 1024, 3),
                train_size=5120,
                depth=44,
                width=4,
            ),
        ),
        "full": tuple(
            case
            for network in ("cnet", "resnet")
            for case in _cases(
                *("cifar10", network, {128: 78_000, 2048: 19_500}, SIX, 5000, 5),
                train_size=50_000,
                copies=16,
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
