"""Which devices hold arrays: one, or a mesh of the devices of many processes."""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding

from smoothout_jax.experiments.options import InputError

AXES = ("data", "model")


def parse_mesh(text: str) -> dict[str, int]:
    """The sizes of the axes of a mesh, from a text such as `data=4,model=2`."""
    sizes = {}
    for part in text.split(","):
        name, _, size = part.partition("=")
        if name not in AXES or name in sizes or not size.isdecimal() or int(size) < 1:
            raise ValueError(
                "mesh must give sizes of at least 1 to the axes data and model, such"
                f" as data=4,model=2; got {text!r}"
            )
        sizes[name] = int(size)
    return {axis: sizes.get(axis, 1) for axis in AXES}


class Placement:
    """Shards examples over the axis `data`, and filters over the axis `model`.

    Args:
        text: the mesh, as `parse_mesh` takes it; without one, the first device holds
            everything.

    Attributes:
        mesh: the mesh, if there is one.
        replicated: the sharding of arrays that every device holds, if there is a mesh.

    Raises:
        InputError: if the number of devices is not that of the mesh.
    """

    def __init__(self, text: str | None = None):
        self.mesh: Mesh | None = None
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

    def check_batch(self, batch_size: int, parts: int = 1) -> None:
        """Raises InputError unless each part of a batch divides over the mesh."""
        if self.mesh is None:
            return
        devices = self._sizes["data"]
        if batch_size % (parts * devices):
            split = f" in {parts} parts" if parts > 1 else ""
            raise InputError(
                f"batch_size={batch_size}{split} does not divide over the {devices}"
                " devices of the mesh's axis data"
            )

    def examples(self, array: np.ndarray) -> jax.Array:
        """Shards an array of examples, with zeros appended so that they divide."""
        if self.mesh is None:
            return jax.numpy.asarray(array)
        rest = -len(array) % self._sizes["data"]
        padded = np.pad(array, [(0, rest)] + [(0, 0)] * (array.ndim - 1))
        return self._place(padded, self._over_data)

    def batch(self, array: np.ndarray) -> Any:
        """Shards a batch, of which each process has its own part."""
        if self.mesh is None:
            return array
        return jax.make_array_from_process_local_data(self._over_data, array)

    def everywhere(self, array: Any) -> jax.Array:
        """Copies an array to every device."""
        if self.mesh is None:
            return jax.numpy.asarray(array)
        return self._place(np.asarray(array), self.replicated)

    def shardings(self, tree: Any) -> Any:
        """The shardings of a training state, by the shapes of its leaves.

        Leaves of two or more axes are sharded over the mesh's axis `model` along their
        last axis, that of the filters, where it divides.
        """
        return self.mesh and jax.tree.map(self._sharding, tree)

    def over_data(self, array: jax.Array) -> jax.Array:
        """Shards a batch over the axis `data`, inside a compiled program."""
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
