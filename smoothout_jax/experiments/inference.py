"""Trained networks, to use: from images to the probabilities of their classes."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from smoothout_jax.experiments.data.images import centre, open_image
from smoothout_jax.experiments.networks import keep
from smoothout_jax.experiments.options import InputError
from smoothout_jax.experiments.trained_networks import Checkpoint, load_checkpoint
from smoothout_jax.experiments.training.task import in_deviations


@dataclasses.dataclass(frozen=True)
class TrainedNetwork:
    """A network that `smoothout train` or `compare` trained, at its clean parameters.

    Attributes:
        network: the Flax module: `network.apply(variables, images)` gives logits of
            images as `standardize` returns them.
        variables: its parameters, and BatchNorm statistics if it has any.
        classes: names of the classes, in the order of the logits; their numbers, as
            strings, if they have none.
        shape: shape of one image.
        scaling: mean and deviation of each channel; `None` if images are taken as they
            are.
    """

    network: nn.Module
    variables: Any
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    scaling: Any

    def standardize(self, images: Any) -> jax.Array:
        """Images with the values of the files, as the network takes them."""
        images = jnp.asarray(images)
        if images.shape[1:] != self.shape:
            raise ValueError(
                f"images must have shape (images, {', '.join(map(str, self.shape))}),"
                f" got {images.shape}"
            )
        return images if self.scaling is None else in_deviations(images, self.scaling)

    def probabilities(self, images: Any) -> jax.Array:
        """The probability of each class, float32, (images, classes).

        Args:
            images: with the values of the files, such as 0 to 255, of `shape`.

        Raises:
            ValueError: if they have another shape.
        """
        return self._probabilities(self.standardize(images))

    @functools.cached_property
    def _probabilities(self):
        network: Any = self.network
        return jax.jit(
            lambda images: jax.nn.softmax(network.apply(self.variables, images))
        )

    def read(self, paths: Sequence[Path | str]) -> np.ndarray:
        """Reads image files, as those of training were, uint8, (images, *shape).

        Raises:
            InputError: if one cannot be read, or the network is not one of images of
                three channels and equal sides.
        """
        size = self.shape[0]
        if self.shape != (size, size, 3):
            raise InputError(f"the network takes no image files, but {self.shape}")
        return np.stack([centre(open_image(Path(path)), size) for path in paths])


def load_network(folder: Path | str, seed: int | None = None) -> TrainedNetwork:
    """Loads what `smoothout train` or `smoothout compare` trained.

    Args:
        folder: the output folder of `smoothout train`, or a checkpoint in that of
            `smoothout compare`, such as `smoothout-results/checkpoints/sgd`.
        seed: which of a checkpoint's networks, by its seed; by default the first.

    Raises:
        InputError: if there is none, it is damaged, or has no such seed.
    """
    checkpoint = load_checkpoint(Path(folder))
    seeds = checkpoint.settings.all_seeds
    if seed is not None and seed not in seeds:
        raise InputError(f"{folder} holds the networks of seeds {seeds}, not {seed}")
    params, stats = checkpoint.network(seeds[0] if seed is None else seed)
    return _built(checkpoint, params | stats)


def _built(checkpoint: Checkpoint, variables: Any) -> TrainedNetwork:
    settings, data = checkpoint.settings, checkpoint.data
    number = data["num_classes"]
    norm = functools.partial(nn.BatchNorm, use_running_average=True)
    return TrainedNetwork(
        network=settings.model.build(settings, number, norm, keep),
        variables=variables,
        classes=tuple(data["classes"]) or tuple(map(str, range(number))),
        shape=tuple(data["shape"]),
        scaling=data["scaling"],
    )
