"""The notebooks run, and are committed as they ran."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted(Path(__file__).parent.glob("*.ipynb"))
EXECUTE = "from nbclient.cli import main; main()"


def code_cells(path):
    notebook = nbformat.read(path, as_version=4)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell):
    """What came out, in order: a stream may arrive in one part or in several."""
    names = [output.get("name", output.output_type) for output in cell.outputs]
    return [name for name, _ in itertools.groupby(names)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_nothing(path, tmp_path):
    """In a process of its own, compiled as users compile it."""
    ours = ("XLA_FLAGS", "MPLBACKEND")
    environment = {name: v for name, v in os.environ.items() if name not in ours}
    output = tmp_path / "executed.ipynb"
    ended = subprocess.run(
        [sys.executable, "-c", EXECUTE, str(path), "--output", str(output)],
        check=False,
        capture_output=True,
        env=environment,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stderr
    committed, executed = code_cells(path), code_cells(output)
    assert [cell.execution_count for cell in committed] == [
        *range(1, len(committed) + 1)
    ]
    for kept, new in zip(committed, executed, strict=True):
        assert kinds(kept) == kinds(new)
        assert "stderr" not in kinds(new)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_are_short_and_pictures_have_alternative_texts(path):
    for cell in code_cells(path):
        assert len(cell.source.splitlines()) <= 20, cell.source
        if any("image/png" in output.get("data", {}) for output in cell.outputs):
            assert cell.metadata["mystnb"]["image"]["alt"]
        is_check = "np.testing." in cell.source or cell.source.startswith("assert")
        assert ("remove-cell" in cell.metadata.get("tags", [])) == is_check
