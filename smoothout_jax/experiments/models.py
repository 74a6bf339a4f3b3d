"""The table of networks: how to build each, and what the experiments know of it.

`MODELS` is that table: a new network is a new row.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from flax import linen as nn

from smoothout_jax import _checks
from smoothout_jax.experiments.networks import (
    MLP,
    AlexNet,
    CNet,
    Dropout,
    Norm,
    ResNet,
    ViT,
)
from smoothout_jax.experiments.options import InputError, Settings, option


class Model(NamedTuple):
    """A row of the table: a network, and what the experiments know of it.

    Attributes:
        help: what it is, in a few words.
        build: function of (settings, number of classes, norm, dropout) to the module.
        drops: whether it has dropout.
        convolves: whether it has convolutions, which are slow under vmap.
        hidden_sizes: default widths of its hidden layers; empty if it has none to
            choose.
        depth: default depth; `None` if it has none to choose.
        depth_form: form of the depths that it accepts, if it does not accept all.
        width: default width; `None` if it has none to choose.
        dimensions: accepted numbers of dimensions of an image, its channels apart;
            `None` for images of any shape.
        patch: what the sides of an image must be a multiple of, sequences apart.
        least: how many pixels each side of an image must have at least.
    """

    help: str
    build: Callable[["ModelSettings", int, Norm, Dropout], nn.Module]
    drops: bool = False
    convolves: bool = True
    hidden_sizes: tuple[int, ...] = ()
    depth: int | None = None
    depth_form: str = ""
    width: int | None = None
    dimensions: tuple[int, ...] | None = None
    patch: int = 1
    least: int = 1

    def check_images(self, name: str, shape: tuple[int, ...], data: str) -> None:
        """Requires a shape of images, (…, channels), that the network accepts."""
        dimensions = len(shape) - 1
        if self.dimensions is not None and dimensions not in self.dimensions:
            accepted = " or ".join(map(str, self.dimensions))
            needed = f"images of {accepted} dimensions, with channels"
        elif dimensions > 1 and any(side % self.patch for side in shape[:-1]):
            needed = f"images with a multiple of {self.patch} pixels on each side"
        elif any(side < self.least for side in shape[:-1]):
            needed = f"images with at least {self.least} pixels on each side"
        else:
            return
        raise InputError(
            f"network {name} needs {needed}; those of {data} have shape {shape}"
        )


MODELS = {
    "mlp": Model(
        "a multilayer perceptron",
        lambda settings, classes, norm, drop: MLP(
            settings.chosen("hidden_sizes"), classes, drop=drop
        ),
        drops=True,
        convolves=False,
        hidden_sizes=(100, 100),
    ),
    "f1": Model(
        "the paper's F1, with BatchNorm",
        lambda settings, classes, norm, drop: MLP(
            settings.chosen("hidden_sizes"), classes, norm, drop
        ),
        drops=True,
        convolves=False,
        hidden_sizes=(512,) * 5,
    ),
    "cnet": Model(
        "the shallow convolutional C net",
        lambda settings, classes, norm, drop: CNet(
            settings.chosen("width"), classes, norm, drop
        ),
        drops=True,
        width=64,
        dimensions=(1, 2, 3),
        least=4,
    ),
    "resnet": Model(
        "a residual network",
        lambda settings, classes, norm, drop: ResNet(
            settings.chosen("depth"), classes, norm, settings.chosen("width")
        ),
        depth=44,
        depth_form="6n + 2",
        width=16,
        dimensions=(2,),
    ),
    "alexnet": Model(
        "AlexNet, for large images",
        lambda settings, classes, norm, drop: AlexNet(
            settings.chosen("width"), classes, drop
        ),
        drops=True,
        width=64,
        dimensions=(2,),
        least=63,
    ),
    "resnet18": Model(
        "ResNet-18, for small images or large ones",
        lambda settings, classes, norm, drop: ResNet(
            settings.chosen("depth"), classes, norm, settings.chosen("width"), stages=4
        ),
        depth=18,
        depth_form="8n + 2",
        width=64,
        dimensions=(2,),
    ),
    "resnet50": Model(
        "ResNet-50",
        lambda settings, classes, norm, drop: ResNet(
            50, classes, norm, settings.chosen("width"), 4, (3, 4, 6, 3), True
        ),
        width=64,
        dimensions=(2,),
    ),
    "vit": Model(
        "a vision transformer; also accepts sequences",
        lambda settings, classes, norm, drop: ViT(
            settings.chosen("depth"), settings.chosen("width"), classes
        ),
        convolves=False,
        depth=6,
        width=192,
        dimensions=(1, 2),
        patch=4,
    ),
}


def _defaults(name: str) -> str:
    """The defaults of a size, by network, for a help text."""
    texts = []
    for network, model in MODELS.items():
        size = getattr(model, name)
        form = f" ({model.depth_form})" if name == "depth" and model.depth_form else ""
        if isinstance(size, tuple):
            size = " ".join(map(str, size))
        if size:
            texts.append(f"{size} in {network}{form}")
    return ", ".join(texts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSettings(Settings):
    """Settings that choose the network."""

    group: ClassVar[str] = "network"

    network: str = option(
        "mlp",
        f"network: {'; '.join(f'{name}: {row.help}' for name, row in MODELS.items())}",
        "NAME",
        choices=MODELS,
        common=True,
    )
    hidden_sizes: tuple[int, ...] = option(
        (),
        f"widths of the hidden layers; by default {_defaults('hidden_sizes')}",
        "WIDTH",
    )
    depth: int | None = option(
        None, f"layers; by default {_defaults('depth')}", common=True
    )
    width: int | None = option(
        None,
        "channels of the first stage, or size of the embedding; by default"
        f" {_defaults('width')}",
    )
    dropout: float = option(
        0.0,
        "probability with which a hidden unit is dropped in a step of training; in"
        f" {', '.join(name for name, row in MODELS.items() if row.drops)}",
    )

    def __post_init__(self):
        super().__post_init__()
        _checks.count(**self._given("depth", "width"))
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if self.dropout and not self.model.drops:
            raise ValueError(f"dropout does not apply to {self.network}")
        for size in self.hidden_sizes:
            _checks.count(hidden_sizes=size)
        for name in ("hidden_sizes", "depth", "width"):
            if getattr(self, name) and not getattr(self.model, name):
                instead = ": give hidden_sizes" if self.model.hidden_sizes else ""
                raise ValueError(f"{name} does not apply to {self.network}{instead}")

    @property
    def model(self) -> Model:
        """The network's row in the table."""
        return MODELS[self.network]

    def chosen(self, name: str) -> Any:
        """A size, by its name, or the network's default."""
        return getattr(self, name) or getattr(self.model, name) or 0
