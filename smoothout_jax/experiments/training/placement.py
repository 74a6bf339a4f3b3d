"""Where arrays lie: on one device, or over a mesh of the devices of many processes."""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding

from smoothout_jax.experiments.options import AXES, InputError, parse_mesh


class Placement:
    """Lays examples along the axis `data`, and filters along the axis `model`.

    Args:
        text: the mesh, as `parse_mesh` takes it; without one, all lies on the first
            device.

    Attributes:
        mesh: the mesh, or `None`.
        replicated: the sharding of arrays that every device holds, or `None`.

    Raises:
        InputError: if there are not so many devices.
    """

    def __init__(self, text: str | None = None):
        self.mesh: Any = None
        self.replicated: Any = None
        if text is None:
            return
        self._sizes = parse_mesh(text)
        needed = math.prod(self._sizes.values())
        if needed != jax.device_count():
            raise InputError(
                f"mesh {text} needs {needed} devices, but there are"
                f" {jax.device_count()}"
            )
        shape = tuple(self._sizes.values())
        self.mesh = jax.make_mesh(shape, AXES, (AxisType.Auto,) * 2)
        self.replicated = NamedSharding(self.mesh, jax.P())

    def check_batch(self, batch_size: int, copies: int) -> None:
        """Requires a batch, and each copy's part of it, that divides over the mesh.

        Raises:
            InputError: if not.
        """
        if self.mesh is None:
            return
        devices = self._sizes["data"]
        if batch_size % (copies * devices):
            parts = f" in {copies} copies" if copies > 1 else ""
            raise InputError(
                f"batch_size={batch_size}{parts} does not divide over the {devices}"
                " devices of the mesh's axis data"
            )

    def examples(self, array: np.ndarray) -> jax.Array:
        """An array of examples, each process holding those of its own devices.

        Zeros are appended that make the examples divide over the devices.
        """
        if self.mesh is None:
            return jax.numpy.asarray(array)
        rest = -len(array) % self._sizes["data"]
        padded = np.pad(array, [(0, rest)] + [(0, 0)] * (array.ndim - 1))
        return self._place(padded, self._over_data)

    def everywhere(self, array: Any) -> jax.Array:
        """An array that every device holds."""
        if self.mesh is None:
            return jax.numpy.asarray(array)
        return self._place(np.asarray(array), self.replicated)

    def shardings(self, tree: Any) -> Any:
        """Shardings of a training's state, by the shapes of its leaves.

        Along the last axis, that of the filters, leaves of two axes and more are laid
        over the model's axis, where they divide.
        """
        return self.mesh and jax.tree.map(self._sharding, tree)

    def over_data(self, array: jax.Array) -> jax.Array:
        """A batch, inside a compiled program, laid over the data's axis."""
        if self.mesh is None:
            return array
        return jax.lax.with_sharding_constraint(array, self._over_data)

    def _sharding(self, leaf):
        if leaf.ndim < 2 or leaf.shape[-1] % self._sizes["model"]:
            return self.replicated
        axes = (*[None] * (leaf.ndim - 1), "model")
        return self.replicated.update(spec=jax.P(*axes))

    @property
    def _over_data(self):
        return self.replicated.update(spec=jax.P("data"))

    def _place(self, array, sharding):
        return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)
