"""How a command ends when it is interrupted: one line, and nothing half-written.

An exception from Python's own handler would be raised wherever the program is, such as
in a callback of JAX, which swallows it or crashes. So an interruption is a flag: loops
call `check`, and end where it suits them. Where none does within `PATIENCE` seconds,
such as during a compilation, a thread ends the process; and so does a second
interruption.
"""

import contextlib
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

from smoothout_jax import _files

STATUS = 130
PATIENCE = 1.0
NUMBERS = signal.SIGINT, signal.SIGTERM


class _Watch:
    """What is known of interruptions of this process.

    Attributes:
        advice: what an interrupted program says, if it has said so before.
        arrived: signals that arrived and were not acted upon yet.
        deferred: whether a loop ends by itself, however long that takes.
        ending: whether the program is ending already.
        at_once: whether a thread is ending the process.
        cleanups: functions to call before the process ends at once.
        ended: the exit code, once the program has said why it ends.
        saying: held while it says so.
    """

    def __init__(self):
        self.advice: str | Callable[[], str] = ""
        self.arrived: list[int] = []
        self.deferred = self.ending = self.installed = self.at_once = False
        self.cleanups: list[Callable[[], object]] = []
        self.ended: int | None = None
        self.saying = threading.Lock()

    def note(self, number: int, frame: object) -> None:
        """Handles a signal."""
        del frame
        self.arrived.append(number)

    def install(self) -> None:
        """Handles interruptions, with a thread that can end the process."""
        self.installed = True
        signal.signal(signal.SIGINT, self.note)
        self._start()
        if hasattr(os, "register_at_fork"):  # threads do not survive a fork
            os.register_at_fork(after_in_child=self._start)

    def _start(self) -> None:
        end, self._wakeup = socket.socketpair()  # Windows cannot select pipes
        self._wakeup.setblocking(False)
        signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._wait, args=(end,), daemon=True).start()

    def _wait(self, end: socket.socket) -> None:
        """Ends the process if the program does not, at the second signal at once."""
        seen = 0
        while True:
            ready, _, _ = select.select([end], [], [], PATIENCE if seen else None)
            if ready:
                seen += end.recv(1)[0] in NUMBERS
            elif not (self.deferred or self.ending):
                break
            if seen > 1:
                break
        end_at_once()

    @property
    def line(self) -> str:
        """What an interrupted program says."""
        told = self.advice() if callable(self.advice) else self.advice
        return told or "interrupted: nothing was done yet"


_watch = _Watch()
install = _watch.install


def say(message: str) -> None:
    """Writes one line to the standard error, in the place of a progress bar."""
    clear = "\r\x1b[K" if sys.stderr.isatty() else ""
    text = " ".join(message.splitlines())
    sys.stderr.write(f"{clear}smoothout: error: {text}\n")
    sys.stderr.flush()


def say_at_the_end(message: str, status: int) -> int:
    """Says why the program ends, unless it has said so: the first reason stands.

    Returns:
        The exit code that belongs to what was said.
    """
    with _watch.saying:
        if _watch.ended is None:
            _watch.ended = status
            say(message)
        return _watch.ended


def line() -> str:
    """What an interrupted program says."""
    return _watch.line


def advise(text: str | Callable[[], str]) -> None:
    """Sets what an interrupted program says: what is kept, and how to continue.

    Args:
        text: the line, or a function to it that is called in the end.
    """
    _watch.advice = text


def check() -> None:
    """Ends the program here if it was interrupted.

    Raises:
        KeyboardInterrupt: if it was.
    """
    if _watch.arrived and not _watch.deferred:
        end()


def end() -> NoReturn:
    """Ends the program as an interruption does, in the order of its own.

    Raises:
        KeyboardInterrupt: always.
    """
    _watch.ending = True
    raise KeyboardInterrupt


def reset() -> None:
    """Forgets what earlier commands of this process left."""
    _watch.advice, _watch.ending, _watch.ended = "", False, None
    _watch.arrived.clear()


@contextlib.contextmanager
def before_the_end(cleanup: Callable[[], object]) -> Iterator[None]:
    """Calls a function in the end, even if the process ends at once.

    Twice, if the process ends while the function runs.
    """
    _watch.cleanups.append(cleanup)
    try:
        yield
    finally:
        cleanup()
        _watch.cleanups.remove(cleanup)


def end_at_once(status: int = STATUS) -> None:
    """Ends the process without what Python does in the end, which waits for JAX."""
    _watch.at_once = True
    for path in list(_files.UNFINISHED):
        path.unlink(missing_ok=True)
    for cleanup in reversed(list(_watch.cleanups)):
        with contextlib.suppress(Exception):
            cleanup()
    with contextlib.suppress(Exception):
        status = say_at_the_end(_watch.line, status)
    os._exit(status)


@contextlib.contextmanager
def giving_way() -> Iterator[None]:
    """Says nothing of what fails because a thread is ending the process: it waits."""
    try:
        yield
    except BaseException:
        if _watch.at_once:
            threading.Event().wait()
        raise


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Catches SIGINT and SIGTERM; a second SIGINT ends the program at once.

    Yields:
        A function that says whether one of them arrived.
    """
    check()

    def handle(number, frame):
        _watch.note(number, frame)
        if not _watch.installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, handle) for number in NUMBERS}
    _watch.deferred = True
    try:
        yield lambda: bool(_watch.arrived)
    finally:
        _watch.deferred = False
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_to_child() -> None:
    """Leaves interruptions to the process that this one forked."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
