"""The settings that all training shares: data, network, regime and method."""

import dataclasses
from typing import Any, ClassVar, Literal

from smoothout_jax.experiments.data.datasets import HELD_OUT, DataSettings
from smoothout_jax.experiments.methods.settings import MethodSettings
from smoothout_jax.experiments.methods.table import METHODS
from smoothout_jax.experiments.models import ModelSettings
from smoothout_jax.experiments.options import option


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharedSettings(MethodSettings, ModelSettings, DataSettings):
    """Settings that `smoothout train` and `smoothout compare` share.

    Each group of them is next to what it sets.

    Raises:
        TypeError, ValueError: if a value is out of its range, or two values conflict.
    """

    group: ClassVar[str] = "training"

    precision: Literal["float32", "bfloat16"] = option(
        "float32",
        "what gradients are computed in; weights and what is evaluated are float32",
    )

    def __post_init__(self):
        super().__post_init__()
        self._check_heldout()
        if self.train_size is None:
            return
        sizes = {name: getattr(self, name) or 0 for name in HELD_OUT}
        if self.batch_size > self.train_size - sum(sizes.values()):
            less = "".join(f" less {k}={size}" for k, size in sizes.items() if size)
            raise ValueError(
                f"batch_size={self.batch_size} is larger than"
                f" train_size={self.train_size}{less}"
            )

    def of_the_run(self) -> dict[str, Any]:
        """The settings to repeat the run by, with the folder of the data."""
        return self.to_json() | {"data_dir": str(self.data_dir.resolve())}

    def _check_heldout(self) -> None:
        """Requires images held out for the gap where it is measured, and once."""
        size = self.heldout_size
        if size and self.loss_rise != "gap":
            raise ValueError(f"heldout_size={size} needs loss_rise=gap")
        if size and self.watch_size:
            raise ValueError(
                f"heldout_size={size} and watch_size={self.watch_size} exclude each"
                " other: the gap is measured on the watched images"
            )
        if size == 0 and self.needs_heldout:
            raise ValueError(
                "heldout_size must be at least 10 with loss_rise=gap, unless watch_size"
                " is given; got 0"
            )

    @property
    def needs_heldout(self) -> bool:
        """Whether images are held out to measure the gap; watched ones serve too."""
        return self.loss_rise == "gap" and not self.watch_size

    def check_parts(self, *methods: str) -> None:
        """Requires that the batch divides between the copies of each method."""
        for method in methods:
            parts = METHODS[method].num_parts(self)
            if self.accumulate > 1 and METHODS[method].copies is not None:
                raise ValueError(
                    f"accumulate={self.accumulate} does not apply to {method}, which"
                    " takes several copies"
                )
            if self.batch_size % parts:
                raise ValueError(
                    f"batch_size={self.batch_size} does not divide into the {parts}"
                    f" parts of {method}"
                )
