"""Notebooks run from top to bottom on what ships, in a kernel of their own."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.e2e

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
LONGEST_CELL_S = 120


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_notebook_runs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    told = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    assert told[0].source.startswith("# ")
    client = NotebookClient(notebook, timeout=LONGEST_CELL_S, resources={"metadata": {"path": str(NOTEBOOKS)}})
    client.execute()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in shown)
    assert not [output for output in shown if output.output_type == "stream" and output.name == "stderr"]
