"""Progress: a bar in a terminal, and elsewhere a line now and then."""

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from smoothout_jax import _extras
from smoothout_jax._extras import require

SECONDS_BETWEEN_LINES = 10.0
# Nobody needs to know that a command will take less.
WORTH_TELLING = 5.0
# How long to look before telling.
SECONDS_OF_A_FORECAST = 1.0


class Lines:
    """Stands in for a bar of tqdm, and prints lines to the standard output.

    Args:
        description: what is under way.
        items: what to iterate over; without them, call `update`.
        total: number of items or updates, if it is known.
    """

    _last = 0.0  # when any of them printed a line

    def __init__(
        self,
        description: str,
        items: Iterable[Any] | None = None,
        total: int | None = None,
    ):
        self._description, self._items = description, items
        if total is None and items is not None and hasattr(items, "__len__"):
            total = len(items)  # pyright: ignore[reportArgumentType]
        self._total, self._postfix = total, ""
        self.n = self.initial = 0
        self._began = time.monotonic()

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def __iter__(self) -> Iterator[Any]:
        for item in () if self._items is None else self._items:
            yield item
            self.update()

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """Sets what the next line tells besides."""
        del refresh
        self._postfix = text

    def update(self, number: int = 1) -> None:
        """Counts items that are done, and prints a line if the last is long ago."""
        self.n += number
        now = time.monotonic()
        if now - max(Lines._last, self._began) < SECONDS_BETWEEN_LINES:
            return
        Lines._last = now
        parts = [f"{self._description}: {self.n}"]
        if not self._total:
            parts[0] += " so far"
        else:
            rate = (self.n - self.initial) / (now - self._began)
            left = duration((self._total - self.n) / rate)
            parts[0] += f" of {self._total}"
            parts.append(f"about {left} left")
        print(*parts, *filter(None, [self._postfix]), sep=", ", flush=True)

    def close(self) -> None:
        """Closes nothing."""


@contextlib.contextmanager
def shown() -> Iterator[None]:
    """Shows progress by lines, unless the standard error is a terminal."""
    if sys.stderr.isatty():
        yield
        return
    _extras.SHOWN_BY.append(Lines)
    try:
        yield
    finally:
        _extras.SHOWN_BY.pop()


def announce(what: str, seconds: float) -> None:
    """Says how long something will take, if it is long."""
    if seconds < WORTH_TELLING:
        return
    text = f"{what} takes about {duration(seconds)} more on this machine"
    if sys.stderr.isatty():
        require("tqdm", "experiments").tqdm.write(text)
    else:
        print(text, flush=True)


class Forecast:
    """Says once how long something will take, from how long its parts take.

    It leaves out the first part, during which programs are compiled.

    Args:
        what: what is under way.
    """

    def __init__(self, what: str):
        self._what, self._told = what, False
        self._first: tuple[float, int] | None = None

    def update(self, done: int, total: int) -> None:
        """Tells how many parts of all are done."""
        now = time.monotonic()
        began, start = self._first = self._first or (now, done)
        if not self._told and now - began >= SECONDS_OF_A_FORECAST and done > start:
            self._told = True
            announce(self._what, (now - began) / (done - start) * (total - done))

    @contextlib.contextmanager
    def watching(self, later: int = 0) -> Iterator[None]:
        """Counts the items of each bar of the block, after which `later` more follow.

        The first item is counted as compiled already.
        """

        def counted(bar: Any, total: int) -> Iterator[Any]:
            self._first = None
            for number, item in enumerate(bar):
                self.update(number, total)
                yield item

        def show(description: str, items: Any = None, total: int | None = None) -> Any:
            _extras.SHOWN_BY.remove(show)
            try:
                bar = _extras.progress(description, items, total)
            finally:
                _extras.SHOWN_BY.append(show)
            return bar if items is None else counted(bar, len(items) + later)

        _extras.SHOWN_BY.append(show)
        try:
            yield
        finally:
            _extras.SHOWN_BY.remove(show)


def duration(seconds: float) -> str:
    """A duration in the largest unit that tells it: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
