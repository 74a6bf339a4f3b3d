"""What a case of an experiment is, and the strengths that methods try in it."""

import dataclasses
import json
from typing import Any

# Strengths that methods try, by the setting: from where nothing happens to where
# training breaks.
TRIALS: dict[str, tuple[float, ...]] = {
    "learning_rate": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
    "radius": (0.003, 0.01, 0.03, 0.1, 0.2, 0.5),
    "relative_radius": (0.02, 0.1, 0.2, 0.4, 0.6, 1.0),
    "rho": (0.03, 0.1, 0.3, 0.6, 1.0, 2.0),
    "msam_rho": (0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    "std": (0.002, 0.005, 0.01, 0.02, 0.05, 0.1),
    "momentum": (0.5, 0.8, 0.9, 0.95, 0.98, 0.99),
    "ema_decay": (0.8, 0.9, 0.95, 0.98, 0.99, 0.995),
    "weight_decay": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "label_smoothing": (0.02, 0.05, 0.1, 0.2, 0.3, 0.5),
    "dropout": (0.02, 0.05, 0.1, 0.2, 0.3, 0.5),
    "shift": (0, 1, 2, 3, 4, 6),
}
FIRST_TRIAL_SEED = 1000
# A case fits if SGD has this accuracy on its training images, in trials at its best
# learning rate.
FITS = 0.999


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
        trials: strengths that methods try, by the setting, if not `TRIALS`; a single
            one is taken without a trial.
        recipe: a setting that SGD tries next after its learning rate, in as many
            trials, and that all methods then share.
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
    recipe: str = ""
    label: str = ""
    holds_rise: bool = False

    @property
    def name(self) -> str:
        """What distinguishes it from the other cases of the experiment."""
        return self.label or f"{self.network}, batch {self.batch_size or 'full'}"

    def to_json(self) -> dict[str, Any]:
        """What JSON holds of it, without what is as in cases before it."""
        values = dataclasses.asdict(self)
        for name in ("trials", "recipe", "label", "holds_rise"):
            if not values[name]:
                del values[name]
        return json.loads(json.dumps(values))


def cases(
    methods: tuple[str, ...],
    *rows: tuple[Any, ...],
    suffix: str = "",
    training: dict[str, Any] | None = None,
    **fields: Any,
) -> tuple[Case, ...]:
    """Cases that hold the rise of the loss, with names that describe them.

    Args:
        methods: the methods.
        *rows: data set, network, batch size and steps of a case, its training images
            and how many of them are held out for the trials, the seeds of its
            comparison and of each trial, and, optionally, settings of its own.
        suffix: the end of their names.
        training: settings that they share.
        **fields: other fields of `Case`.
    """
    found = []
    for data, network, batch_size, steps, sizes, seeds, *own in rows:
        case = Case(
            data=data,
            network=network,
            batch_size=batch_size,
            methods=methods,
            validation_size=sizes[1],
            seeds=seeds[0],
            trial_seeds=seeds[1],
            training={"train_size": sizes[0], "steps": steps, "copies": 1}
            | (own[0] if own else {})
            | (training or {}),
        )
        label = f"{data}, {sizes[0]} images, {case.name}, {steps} steps{suffix}"
        changed = {"label": label, "holds_rise": True} | fields
        found.append(dataclasses.replace(case, **changed))
    return tuple(found)


def widened(setting: str, strengths: tuple[float, ...], low: bool) -> float | None:
    """The strength beyond the lower or the upper end of those tried, if there is one.

    Sizes continue their last ratio; probabilities and decays, that of their odds.
    """
    last, before = strengths[:2] if low else strengths[:-3:-1]
    if setting == "shift":
        return None if low and not last else 2 * last - before
    if setting in ("momentum", "ema_decay", "label_smoothing", "dropout"):
        odds, earlier = (each / (1 - each) for each in (last, before))
        odds *= odds / earlier
        return float(f"{odds / (1 + odds):.3g}")
    return float(f"{last * last / before:.2g}")
