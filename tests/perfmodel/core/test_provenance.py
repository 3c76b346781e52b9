"""Provenance names versions and inputs, and no person, machine or folder."""

import re
from pathlib import Path

import pytest

from perfmodel.core.files import FileFormat
from perfmodel.core.provenance import Provenance, command_text, library_versions, make_provenance


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["/a/bin/s2d-plan", "--target", "llama-70b"], "s2d-plan --target llama-70b"),
        (["s2d-plan", "--output=/home/me/plan.json", "-o", "../plan.json"], "s2d-plan --output=plan.json -o plan.json"),
        (["s2d-run", "~/models/tiny/"], "s2d-run tiny"),
        (["s2d-run", "/my models/tiny"], "s2d-run tiny"),
        (["s2d-run", "--prompt", "return a / b"], "s2d-run --prompt 'return a / b'"),
    ],
)
def test_a_command_is_stored_without_its_folders(argv: list[str], text: str) -> None:
    assert command_text(argv) == text


def test_a_library_that_is_not_installed_is_left_out() -> None:
    assert set(library_versions(["numpy", "no-such-library"])) == {"python", "numpy"}


def test_provenance_has_a_time_and_a_host_and_is_read_back(tmp_path: Path) -> None:
    made = make_provenance(argv=["s2d-plan"], libraries=["numpy"], seed=3, inputs={"trace": "ab"})
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", made.utc_time)
    assert re.fullmatch(r"\S+, \d+ cores, \S+", made.host)
    assert made.git_commit is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", made.git_commit)
    file_format = FileFormat(record=Provenance, schema="s2d/test", made_with="s2d-test")
    file_format.write(tmp_path / "a.json", made, made)
    assert file_format.read(tmp_path / "a.json").record == made
