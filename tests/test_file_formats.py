"""Every file format is at version 1, and the shipped files are what their formats write."""

from importlib import import_module
from pathlib import Path

import pytest

from perfmodel.acceptance.trace import TRACE_FILE
from perfmodel.core.disk import EVIDENCE_FOLDER
from perfmodel.core.errors import BadFile
from perfmodel.core.files import ArraysFormat, FileFormat
from perfmodel.passes.latency_law import FIT_FILE
from s2d.loading.model_folder import FAMILY_FOLDER
from s2d.loading.sidecar import SIDECAR_FILE
from tests.test_layering import MODULES

SHIPPED: list[tuple[FileFormat | ArraysFormat, list[Path]]] = [
    (FIT_FILE, sorted(EVIDENCE_FOLDER.glob("*.latency-fit.json"))),
    (TRACE_FILE, sorted(EVIDENCE_FOLDER.glob("*.npz"))),
    (SIDECAR_FILE, sorted(FAMILY_FOLDER.glob("*/s2d.json"))),
]


def formats() -> list[FileFormat]:
    """The format of every JSON file and of every archive's header."""
    modules = [import_module(name) for name, path in MODULES.items() if "_FILE = " in path.read_text(encoding="utf-8")]
    values = {id(value): value for module in modules for value in vars(module).values()}.values()
    files = [value for value in values if isinstance(value, FileFormat)]
    return files + [value.header for value in values if isinstance(value, ArraysFormat)]


def test_every_format_has_a_schema_of_its_own_and_version_1() -> None:
    schemas = [file_format.schema for file_format in formats()]
    assert len(schemas) == len(set(schemas)) == 14
    assert {file_format.version for file_format in formats()} == {1}


def test_a_shipped_file_is_written_again_byte_by_byte(tmp_path: Path) -> None:
    num_files = 0
    for file_format, paths in SHIPPED:
        for path in paths:
            stored = file_format.read(path)
            file_format.write(tmp_path / path.name, stored.record, stored.provenance)
            assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path
            num_files += 1
    assert num_files == 7


@pytest.mark.parametrize("file_format", formats(), ids=lambda file_format: file_format.schema)
def test_a_file_of_another_schema_names_the_command_that_writes_the_right_one(file_format: FileFormat) -> None:
    path = next(paths[0] for other, paths in SHIPPED if isinstance(other, FileFormat) and other is not file_format)
    with pytest.raises(BadFile) as caught:
        file_format.read(path)
    assert str(caught.value).endswith(f"Give an {file_format.schema} file, written by {file_format.made_with}.")
