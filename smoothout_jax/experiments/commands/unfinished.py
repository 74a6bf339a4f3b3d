"""What a command has done so far, kept in a file until it has done all."""

import json
import time
from pathlib import Path
from typing import Any

from smoothout_jax.experiments.reporting.files import write_json
from smoothout_jax.experiments.reporting.formats import json_text


class Unfinished(dict[str, Any]):
    """Results by key, which the same command continues from if it was interrupted.

    Args:
        path: the file.
        whole: what the results are of, as JSON holds it: results of anything else are
            not continued from.
    """

    def __init__(self, path: Path, whole: Any):
        super().__init__()
        self._path, self._whole = path, json.loads(json.dumps(whole))
        self._began = time.monotonic()
        try:
            document = json.loads(path.read_text())
            if document["whole"] == self._whole:
                self.update(document["results"])
                self._began -= float(document["seconds"])
        except (OSError, ValueError, LookupError, TypeError):
            pass  # there is none, or it is damaged: all is done anew

    @property
    def seconds(self) -> float:
        """Seconds spent so far, up to the last result of earlier processes."""
        return time.monotonic() - self._began

    def __setitem__(self, key: str, result: Any) -> None:
        """Keeps a result as JSON holds it; numbers that are not finite are `None`."""
        super().__setitem__(key, json.loads(json_text(result)))
        document = {"whole": self._whole, "seconds": self.seconds, "results": self}
        write_json(self._path, document)

    def remove(self) -> None:
        """Deletes the file, once all is done."""
        self._path.unlink(missing_ok=True)
