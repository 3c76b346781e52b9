"""Notebooks run from top to bottom on shipped data, each in its own kernel, and are stored with their outputs."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
MAX_CELL_S = 120
MAX_BYTES = 700_000
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/<])/(?:home|root|tmp|work|usr|opt|mnt|Users|private)/")


def outputs_of(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def shows_a_figure_and_no_errors(notebook: nbformat.NotebookNode) -> bool:
    outputs = outputs_of(notebook)
    has_figure = any("image/png" in output.get("data", {}) for output in outputs)
    return has_figure and not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]


@pytest.mark.e2e
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_notebook_runs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=MAX_CELL_S, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    assert shows_a_figure_and_no_errors(notebook)


def test_every_notebook_is_stored_with_its_outputs() -> None:
    wrong = []
    for path in PATHS:
        notebook = nbformat.read(path, as_version=4)
        counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
        if counts != list(range(1, len(counts) + 1)) or not shows_a_figure_and_no_errors(notebook):
            wrong.append(path.name)
    assert not wrong


def test_every_notebook_starts_with_a_title() -> None:
    assert not [path.name for path in PATHS if not nbformat.read(path, as_version=4).cells[0].source.startswith("# ")]


def test_every_notebook_is_small_and_free_of_machine_paths_and_times() -> None:
    wrong = []
    for path in PATHS:
        notebook = nbformat.read(path, as_version=4)
        texts = [json.dumps({**output, "data": without_images(output)}) for output in outputs_of(notebook)]
        has_path = any(ABSOLUTE_PATH.search(text) for text in texts)
        if path.stat().st_size > MAX_BYTES or has_path or any(cell.metadata for cell in notebook.cells):
            wrong.append(path.name)
    assert not wrong


def without_images(output: nbformat.NotebookNode) -> dict[str, object]:
    return {kind: data for kind, data in output.get("data", {}).items() if not kind.startswith("image/")}


def test_the_quickstart_uses_the_public_api_only() -> None:
    cells = nbformat.read(NOTEBOOKS / "00_quickstart.ipynb", as_version=4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    assert "import s2d\n" in code
    assert not re.search(r"^\s*(?:from|import) (?:s2d\.|perfmodel|calibrate|profiler)", code, re.MULTILINE)
