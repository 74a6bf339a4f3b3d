"""Files that are written whole or not at all."""

import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# What reading an archive of arrays raises if it is damaged, or holds others.
DAMAGED = AttributeError, KeyError, TypeError, ValueError, EOFError
DAMAGED += zipfile.BadZipFile, zlib.error
# How the names of files and folders begin that are being written or deleted.
UNFINISHED = ".unfinished-"


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a path to write to, which replaces `path` once all went well."""
    unfinished = path.with_name(f"{UNFINISHED}{path.name}")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def check_writable(path: Any) -> Path:
    """The path of a file; raises OSError if it cannot be written there."""
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path={str(path)!r}: there is no folder {path.parent}")
    if path.is_dir():
        raise IsADirectoryError(f"path={str(path)!r} is a folder")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"path={str(path)!r}: {path.parent} cannot be written to")
    return path
