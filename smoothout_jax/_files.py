"""Files that are written whole or not at all."""

import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from smoothout_jax import _checks

# What reading an archive of arrays raises if it is damaged, or holds others.
DAMAGED = (
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
)
# Files being written, to delete if the process ends at once.
UNFINISHED: set[Path] = set()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a path to write to, which replaces `path` once all went well."""
    unfinished = path.with_name(f".unfinished-{path.name}")
    UNFINISHED.add(unfinished)
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
        UNFINISHED.discard(unfinished)


def check_writable(path: Any) -> Path:
    """Returns the path of a file; raises an error if it cannot be written there.

    Raises:
        OSError: if its folder is missing or cannot be written to, or it is a folder.
        TypeError: if it is not a path.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be that of a file, got {_checks.describe(path)}")
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path={str(path)!r}: there is no folder {path.parent}")
    if path.is_dir():
        raise IsADirectoryError(f"path={str(path)!r} is a folder")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"path={str(path)!r}: {path.parent} cannot be written to")
    return path
