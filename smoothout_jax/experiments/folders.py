"""The folder that a command writes to: one process at a time, and no leftovers."""

import contextlib
import datetime
import importlib
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from smoothout_jax.experiments import interruptions
from smoothout_jax.experiments.options import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl: Any = None

LOCK = ".smoothout.lock"
# Windows locks bytes, which nobody else can read: one far behind what the file says.
LOCKED_BYTE = 2**30
# What a process leaves that ended while it wrote, or deleted, a file or a checkpoint.
LEFTOVERS = (
    ".unfinished-*",
    "*.orbax-checkpoint-tmp*",
    "checkpoints/*.going",
    "checkpoints/.unfinished-*",
    "checkpoints/*.orbax-checkpoint-tmp*",
)


def prepare_folder(path: Path) -> None:
    """Creates a folder, and checks that files can be written to it.

    Raises:
        OSError: if not.
    """
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path):
        pass


@contextlib.contextmanager
def held(path: Path, command: str) -> Iterator[None]:
    """Keeps other processes from a folder, and removes what earlier ones left there.

    The lock is that of the operating system on a file that names the process, so that
    it is free once the process is gone, however that ended.

    Raises:
        InputError: if another process holds the folder.
    """
    lock = path / LOCK
    file = _acquire(lock)
    if file is None:
        raise InputError(
            f"output {path} is in use by {_holder(lock)}: wait for it, or give another"
            " --output"
        )
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    holder = {"process": os.getpid(), "machine": platform.node(), "command": command}
    with contextlib.suppress(OSError):  # on a full disk
        file.write(json.dumps(holder | {"since": now}))
        file.flush()
    _tidy(path)

    def release() -> None:
        if file.closed:
            return
        _tidy(path)
        with contextlib.suppress(PermissionError):  # Windows deletes no open file
            lock.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            file.close()
        if fcntl is None:
            with contextlib.suppress(PermissionError):  # another process has it now
                lock.unlink(missing_ok=True)

    with interruptions.before_the_end(release):
        yield


def _acquire(lock: Path) -> TextIO | None:
    """Opens and locks the file; `None` if another process has locked it."""
    while True:
        file = lock.open("a+")
        try:
            _lock(file)
        except BlockingIOError:
            file.close()
            return None
        except OSError:  # a file system without locks
            pass
        # The process that held it may have deleted it in the meantime.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                file.truncate(0)
                return file
        file.close()


def _lock(file: TextIO) -> None:
    """Locks a file.

    Raises:
        BlockingIOError: if another process has locked it.
        OSError: if its file system has no locks.
    """
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    msvcrt: Any = importlib.import_module("msvcrt")
    os.lseek(file.fileno(), LOCKED_BYTE, os.SEEK_SET)
    try:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except PermissionError as error:
        raise BlockingIOError from error


def _holder(lock: Path) -> str:
    try:
        told = json.loads(lock.read_text())
        place = "" if told["machine"] == platform.node() else f" on {told['machine']}"
        return (
            f"process {told['process']}{place} (smoothout {told['command']}, since"
            f" {told['since']})"
        )
    except (OSError, ValueError, LookupError, TypeError):
        return "another process"


def _tidy(path: Path) -> None:
    for pattern in LEFTOVERS:
        for leftover in path.glob(pattern):
            if leftover.is_file():
                leftover.unlink(missing_ok=True)
            _remove(leftover)


def _remove(folder: Path) -> None:
    """Deletes a folder until it stays away, for five seconds at most.

    Threads of Orbax may still write to it when their command has failed.
    """
    absent = 0
    for _ in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        absent = 0 if folder.exists() else absent + 1
        if absent == 5:
            break
        time.sleep(0.05)
