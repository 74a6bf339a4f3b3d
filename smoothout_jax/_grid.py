"""Quantities on a grid of points, and the file that stores them."""

import dataclasses
import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smoothout_jax._extras import progress
from smoothout_jax._files import DAMAGED, check_writable, whole_file

SECONDS_BETWEEN_SAVES = 5.0


@dataclasses.dataclass(frozen=True)
class Landscape:
    """The loss, and other quantities, on a line or plane through the parameters.

    Attributes:
        points: the coordinates, float64: one array for a line, two for a plane.
        values: quantities by name, such as `"loss"` or `"test accuracy"`, float64, in
            the shape of the grid: (points,) or (points, points). NaN where they are
            not finite.
        note: text that plots show.
    """

    points: tuple[np.ndarray, ...]
    values: dict[str, np.ndarray]
    note: str = ""

    def save(self, path: Any) -> None:
        """Writes it to an `.npz` file, completely or not at all."""
        _write(Path(path), self, np.ones(_shape(self.points), bool), "")

    @classmethod
    def load(cls, path: Any) -> "Landscape":
        """Reads a file that `save`, `loss_curve` or `loss_surface` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is not a landscape, damaged or unfinished.
        """
        landscape, done, _ = _read(Path(path))
        if not done.all():
            raise ValueError(
                f"{path} is unfinished: {done.sum()} of {done.size} points;"
                " continue with the call that wrote it"
            )
        return landscape


def evaluate_grid(
    evaluate: Callable[[Any], dict[str, float]],
    points: Sequence[Any],
    note: str,
    path: Any,
    place: Any,
) -> Landscape:
    """Evaluates quantities at each point of a grid, in order.

    Args:
        evaluate: function of a point's coordinates to the quantities by name.
        points: coordinates along each axis, finite and increasing.
        note: text that plots show.
        path: file that stores finished points, to continue from; or `None`.
        place: tree of arrays that, with the points, identify this grid.

    Raises:
        OSError: if no file can be written there.
        ValueError: if the points are invalid, or the file is damaged or belongs to
            another landscape.
    """
    points = tuple(_check_points(axis) for axis in points)
    path = None if path is None else check_writable(path)
    fingerprint = _fingerprint(place, points)
    first = evaluate([axis[0] for axis in points])
    done = np.zeros(_shape(points), bool)
    values = {name: np.full(done.shape, np.nan) for name in first}
    landscape = Landscape(points, values, note)
    if path and path.exists():
        landscape, done = _resume(path, landscape, first, fingerprint)

    def keep(where, evaluated):
        for name, value in evaluated.items():
            landscape.values[name][where] = value if np.isfinite(value) else np.nan
        done[where] = True

    keep((0,) * done.ndim, first)
    saved = time.monotonic()
    try:
        for index in progress("points", np.argwhere(~done)):
            where = tuple(index)
            coordinates = [axis[i] for axis, i in zip(points, where, strict=True)]
            keep(where, evaluate(coordinates))
            if path and time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                _write(path, landscape, done, fingerprint)
                saved = time.monotonic()
    except KeyboardInterrupt:
        if path:
            _write(path, landscape, done, fingerprint)
        raise
    if path:
        _write(path, landscape, done, fingerprint)
    return landscape


def _resume(path, blank, first, fingerprint):
    """Reads the file; raises ValueError if it belongs to another landscape."""
    landscape, done, written = _read(path)
    corner = (0,) * done.ndim
    start = {name: values[corner] for name, values in landscape.values.items()}
    known = {name: v if np.isfinite(v) else np.nan for name, v in first.items()}
    same_values = start.keys() == known.keys() and np.allclose(
        list(start.values()), list(known.values()), rtol=1e-3, equal_nan=True
    )
    if written != fingerprint or not (same_values or not done[corner]):
        raise ValueError(
            f"path: {path} holds another landscape; remove it, or choose another path"
        )
    return dataclasses.replace(landscape, note=blank.note), done


def _fingerprint(place, points) -> str:
    digest = hashlib.sha256()
    for leaf in (*jax.tree.leaves(place), *points):
        is_key = jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)
        array = jax.random.key_data(leaf) if is_key else leaf
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _write(path: Path, landscape: Landscape, done, fingerprint: str) -> None:
    arrays: dict[str, Any] = {
        "done": done,
        "fingerprint": fingerprint,
        "note": landscape.note,
    }
    arrays |= {f"points {i}": axis for i, axis in enumerate(landscape.points)}
    arrays |= {f"values {name}": array for name, array in landscape.values.items()}
    with whole_file(path) as unfinished, unfinished.open("wb") as file:
        np.savez(file, **arrays)


def _read(path: Path) -> tuple[Landscape, np.ndarray, str]:
    """The landscape of a file, which of its points are done, and its fingerprint."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = dict(archive)
        done, fingerprint = arrays.pop("done"), str(arrays.pop("fingerprint"))
        note = str(arrays.pop("note"))
        points = tuple(arrays.pop(f"points {i}") for i in range(done.ndim))
        values = {name.removeprefix("values "): array for name, array in arrays.items()}
        if {done.shape} != {_shape(points), *(v.shape for v in values.values())}:
            raise ValueError("its arrays differ in shape")
    except DAMAGED as error:
        raise ValueError(
            f"{path} is not a landscape, or is damaged: {error}"
        ) from error
    return Landscape(points, values, note), done, fingerprint


def _check_points(points) -> np.ndarray:
    array = np.asarray(points, np.float64)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"points must be one or more numbers in a row; got {points!r}")
    if not np.isfinite(array).all() or not (np.diff(array) > 0).all():
        raise ValueError(f"points must be finite and increasing; got {points!r}")
    return array


def _shape(points) -> tuple[int, ...]:
    return tuple(map(len, points))
