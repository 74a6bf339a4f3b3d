"""What a command has done so far, kept in a file until it has done all."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smoothout_jax._files import whole_file
from smoothout_jax.experiments.reporting.formats import json_text


class Unfinished:
    """Results by key, in a file that an interrupted command continues from.

    Args:
        path: the file.
        whole: what the results are of, as JSON holds it: results of anything else are
            not continued from.
    """

    def __init__(self, path: Path, whole: Any):
        self._path, self._whole = path, json.loads(json.dumps(whole))
        self._results: dict[str, Any] = {}
        self._earlier, self._began = 0.0, time.monotonic()
        try:
            document = json.loads(path.read_text())
            if document["whole"] == self._whole:
                self._results = dict(document["results"])
                self._earlier = float(document["seconds"])
        except (OSError, ValueError, LookupError, TypeError):
            pass  # there is none, or it is damaged: all is done anew

    def __iter__(self) -> Iterator[str]:
        return iter(self._results)

    def __len__(self) -> int:
        return len(self._results)

    def __contains__(self, key: str) -> bool:
        return key in self._results

    def __getitem__(self, key: str) -> Any:
        return self._results[key]

    def __setitem__(self, key: str, result: Any) -> None:
        """Keeps a result; numbers that are not finite become `None`."""
        self._results[key] = json.loads(json_text(result))
        self._write()

    @property
    def seconds(self) -> float:
        """Seconds spent so far, those before an interruption included."""
        return self._earlier + time.monotonic() - self._began

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Keeps the seconds that were spent, if an interruption ends the block."""
        try:
            yield
        except KeyboardInterrupt:
            if self._results:
                self._write()
            raise

    def _write(self) -> None:
        with whole_file(self._path) as unfinished:
            unfinished.write_text(
                json_text(
                    {
                        "whole": self._whole,
                        "seconds": self.seconds,
                        "results": self._results,
                    }
                )
            )

    def remove(self) -> None:
        """Deletes the file, once all is done."""
        self._path.unlink(missing_ok=True)
