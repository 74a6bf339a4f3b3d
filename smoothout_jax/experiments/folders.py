"""The folder that a command writes to: one process at a time, and no leftovers."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import filelock

from smoothout_jax._files import UNFINISHED
from smoothout_jax.experiments.options import InputError

LOCK = ".smoothout.lock"


def prepare_folder(path: Path) -> None:
    """Creates a folder, and checks that files can be written to it.

    Raises:
        InputError: if not.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(
            f"output: cannot write to {error.filename}: {error.strerror}"
        ) from error


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Keeps other processes from a folder, and deletes what a killed one left there.

    Raises:
        InputError: if another process holds the folder.
    """
    lock = filelock.FileLock(path / LOCK, blocking=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise InputError(
            f"output {path} is in use by another smoothout command: wait for it, or"
            " give another --output"
        ) from error
    with lock:
        for leftover in [*path.glob(f"{UNFINISHED}*"), *path.glob(f"*/{UNFINISHED}*")]:
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()
        try:
            yield
        finally:
            with contextlib.suppress(PermissionError):  # Windows deletes no open file
                (path / LOCK).unlink()
