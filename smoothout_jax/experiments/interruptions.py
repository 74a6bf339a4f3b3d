"""How a command ends when it is interrupted: at once, with one line.

Nothing needs tidying up, as after `kill -9`: files are written whole, the lock of a
folder ends with its process, and the next command deletes leftovers. So a thread ends
the process wherever the main thread is: during a compilation, Python handles no signal.
"""

import os
import signal
import socket
import sys
import threading

NUMBERS = signal.SIGINT, signal.SIGTERM

_advice = ""


def advise(text: str) -> None:
    """Sets what an interrupted command says: what is kept, and how to continue."""
    global _advice
    _advice = text


def line() -> str:
    """What an interrupted command says."""
    return _advice or "interrupted: nothing was done yet"


def say(message: str) -> None:
    """Writes one line to the standard error, over a progress bar."""
    clear = "\r\x1b[K" if sys.stderr.isatty() else ""
    text = " ".join(message.splitlines())
    sys.stderr.write(f"{clear}smoothout: error: {text}\n")
    sys.stderr.flush()


def install() -> None:
    """Ends the process with one line at Ctrl-C (code 130) or SIGTERM (code 143)."""
    end, wakeup = socket.socketpair()  # Windows cannot wait for pipes
    wakeup.setblocking(False)
    for number in NUMBERS:
        signal.signal(number, lambda number, frame: None)
    signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_wait, args=(end, wakeup), daemon=True).start()


def _wait(end: socket.socket, wakeup: socket.socket) -> None:
    del wakeup  # the thread's arguments keep it open
    while (number := end.recv(1)[0]) not in NUMBERS:
        pass
    say(line())
    os._exit(128 + number)
