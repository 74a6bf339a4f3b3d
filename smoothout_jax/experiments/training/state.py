"""The state of training, and what is measured of it."""

from typing import Any, NamedTuple

import jax
import numpy as np

from smoothout_jax import LossRiseState


class State(NamedTuple):
    """State of a run, from which it continues bit for bit.

    Attributes:
        step: updates so far, int32.
        params: parameters of the training loop.
        stats: BatchNorm's running statistics.
        opt_state: state of the transformation.
        noise_key: data of the PRNG key for noise.
        batch_key: data of the PRNG key for batches and their augmentation.
        strength: the method's strength, such as a radius.
        rise: how strong the noise of copies is, if the rise of the loss is held.
    """

    step: jax.Array
    params: Any
    stats: Any
    opt_state: Any
    noise_key: jax.Array
    batch_key: jax.Array
    strength: jax.Array
    rise: LossRiseState | None = None

    def trees(self) -> dict[str, Any]:
        """What a checkpoint of it contains, by name."""
        return {name: tree for name, tree in self._asdict().items() if tree is not None}


class Metrics(NamedTuple):
    """Loss (nats) and accuracy of the batch of a step."""

    loss: jax.Array
    accuracy: jax.Array


class Noise(NamedTuple):
    """How strong the noise of each run is, (runs,); `None` where it is not measured.

    Attributes:
        radius: its size.
        loss_rise: the rise of the loss under it, in nats.
        loss_rise_target: what this rise is held at, if that follows the gap.
        loss_gap: the gap between held-out and training loss when last measured, in
            nats.
    """

    radius: np.ndarray | None = None
    loss_rise: np.ndarray | None = None
    loss_rise_target: np.ndarray | None = None
    loss_gap: np.ndarray | None = None


def stack(trees: list[Any]) -> Any:
    """Stacks trees of arrays along a new leading axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def unstack(state: State) -> list[State]:
    """Splits a state of several runs into the state of each."""
    return [
        jax.tree.map(lambda leaf, run=run: leaf[run], state)
        for run in range(len(state.step))
    ]
