"""Optional dependencies: imported where used, or an error that names the extra."""

import importlib
from collections.abc import Callable, Iterable
from typing import Any

# Replacements for tqdm, of which the last is used; called like `progress`.
SHOWN_BY: list[Callable[..., Any]] = []


def require(module: str, extra: str) -> Any:
    """Imports a module, or raises ImportError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module.partition('.')[0]} is not installed; this needs the extra:"
            f' pip install "smoothout-jax[{extra}]"'
        ) from error


def progress(
    description: str, items: Iterable[Any] | None = None, total: int | None = None
) -> Any:
    """A progress bar that appears after two seconds, if tqdm is installed.

    Iterate over it or, without items, call its `update()` and `close()`.
    """
    if SHOWN_BY:
        return SHOWN_BY[-1](description, items, total)
    try:
        tqdm = importlib.import_module("tqdm")
    except ImportError:
        return _NoBar(items)
    return tqdm.tqdm(items, description, total, leave=False, delay=2, disable=None)


class _NoBar:
    """Shows nothing, in place of a progress bar."""

    def __init__(self, items: Iterable[Any] | None):
        self._items = () if items is None else items

    def __iter__(self):
        return iter(self._items)

    def update(self) -> None:
        pass

    close = update
