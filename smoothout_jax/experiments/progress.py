"""Progress: one line that a terminal renews, and elsewhere a line now and then."""

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from smoothout_jax import _extras

# Seconds between two lines of a terminal, and elsewhere.
IN_A_TERMINAL, ELSEWHERE = 0.2, 10.0
# What takes less is not worth announcing.
WORTH_ANNOUNCING = 5.0


class Progress:
    """How much is done, and how long the rest takes.

    The first items are left out of the rate: programs are compiled during them.

    Args:
        description: what is under way.
        items: what to iterate over; without them, call `update`.
        total: number of items or updates, if it is known.
        done: number of those that were done before.
        compiling: number of items during which programs are compiled.
    """

    _last = 0.0  # when any of them showed a line

    def __init__(
        self,
        description: str,
        items: Iterable[Any] = (),
        total: int | None = None,
        *,
        done: int = 0,
        compiling: int = 1,
    ):
        if total is None and hasattr(items, "__len__"):
            total = len(items) or None  # pyright: ignore[reportArgumentType]
        self.description, self._items, self._total = description, items, total
        self._done, self._compiled = done, done + compiling
        self._began = time.monotonic()
        self._timed: tuple[int, float] | None = None  # what was done, and when
        self.postfix = ""

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def __iter__(self) -> Iterator[Any]:
        with self:
            for item in self._items:
                yield item
                self.update()

    def update(self, number: int = 1) -> None:
        """Counts items that are done."""
        self._done += number
        now = time.monotonic()
        if self._timed is None and self._done >= self._compiled:
            self._timed = self._done, now
        waits = IN_A_TERMINAL if sys.stderr.isatty() else ELSEWHERE
        if now - max(Progress._last, self._began) >= waits:
            Progress._last = now
            self._show(now)

    def say(self, text: str) -> None:
        """Shows a line at once, such as that a program is being compiled."""
        if sys.stderr.isatty():
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        else:
            print(text, flush=True)

    def _show(self, now: float) -> None:
        parts = [f"{self.description}: {self._done}"]
        if self._total is None:
            parts[0] += " so far"
        else:
            parts[0] += f" of {self._total}"
            first, began = self._timed or (self._done, now)
            if self._done > first:
                rate = (self._done - first) / (now - began)
                left = duration((self._total - self._done) / rate)
                parts.append(f"about {left} left")
        self.say(", ".join(filter(None, [*parts, self.postfix])))

    def close(self) -> None:
        """Removes the line from the terminal."""
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


@contextlib.contextmanager
def shown() -> Iterator[None]:
    """Shows the progress of the whole library so."""
    _extras.SHOWN_BY.append(Progress)
    try:
        yield
    finally:
        _extras.SHOWN_BY.pop()


def announce(what: str, seconds: float) -> None:
    """Says how long something will take, if it is long."""
    if seconds >= WORTH_ANNOUNCING:
        Progress("").close()
        print(f"{what} takes about {duration(seconds)} more", flush=True)


def duration(seconds: float) -> str:
    """A duration in a suitable unit: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
