"""Files of records: the same bytes for the same record, whole or not at all, and a clear error for anything else."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfmodel.core.errors import BadFile, OutOfSpace, UserInputError
from tests.perfmodel.core.file_samples import NOTE, NOTE_FILE, PROVENANCE, REMAKE, Note, Pass, write


def edited(path: Path, **changes: Any) -> Path:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


def message_of(path: Path) -> str:
    """The error of reading a file, with the file's name in place of its path."""
    with pytest.raises(BadFile) as caught:
        NOTE_FILE.read(path)
    return str(caught.value).replace(str(path), path.name)


OTHER = "Give an s2d/test file, written by s2d-test -o FILE."
finite = st.floats(allow_nan=False, allow_infinity=False)


@given(st.builds(Note, name=st.text(), passes=st.lists(st.builds(Pass, cost_s=finite)).map(tuple)))
def test_a_file_read_and_written_again_has_the_same_bytes(tmp_path_factory: pytest.TempPathFactory, note: Note) -> None:
    folder = tmp_path_factory.mktemp("files")
    first = write(folder / "a.json", note)
    stored = NOTE_FILE.read(first)
    second = write(folder / "b.json", stored.record)
    assert (stored.record, stored.provenance) == (note, PROVENANCE)
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes().endswith(b"}\n")


def test_the_text_of_a_record_is_its_file(tmp_path: Path) -> None:
    text = NOTE_FILE.text(NOTE, PROVENANCE)
    assert write(tmp_path / "a.json").read_text() == text
    assert list(json.loads(text)) == ["body", "provenance", "schema", "version"]
    assert "0.1\n" in text


def test_the_hash_depends_on_the_body_and_not_on_the_provenance(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json")
    before = NOTE_FILE.read(path).sha256
    assert NOTE_FILE.read(edited(path, provenance=json.loads(path.read_text())["provenance"] | {"seed": 7})).sha256 == before
    assert NOTE_FILE.read(write(path, Note(name="other", passes=()))).sha256 != before


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert message_of(tmp_path / "a.json") == "'a.json': no such file. Check the name."


def test_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert message_of(tmp_path / "a") == "'a': this is a folder, expected a file. Give a file inside it."


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json")
    path.write_bytes(path.read_bytes()[:-20])
    message = message_of(path)
    assert message.startswith("'a.json': the file is truncated or is not JSON (")
    assert message.endswith(REMAKE)


@given(st.data())
def test_no_prefix_of_a_file_is_accepted(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    whole = NOTE_FILE.text(NOTE, PROVENANCE).encode()
    path = tmp_path_factory.mktemp("files") / "a.json"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 2))])
    with pytest.raises(BadFile):
        NOTE_FILE.read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", f"'a.json': the file is empty. {REMAKE}"),
        (b"\xff\xfe", f"'a.json': this is not a text file, expected JSON. {OTHER}"),
        (
            b'{"a": 1, "a": 2}',
            f"'a.json': the file is truncated or is not JSON (the key 'a' is repeated). {REMAKE}",
        ),
        (
            b"[1]",
            "'a.json': s2d did not write this file, expected an object with the keys body, provenance, schema, version. "
            f"{OTHER}",
        ),
        (b"[" * 200_000, None),
    ],
)
def test_a_file_that_s2d_did_not_write_is_refused(tmp_path: Path, content: bytes, message: str | None) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    actual = message_of(path)
    assert message is None or actual == message


def test_a_file_of_another_schema_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    replace(NOTE_FILE, schema="s2d/trace").write(path, NOTE, PROVENANCE)
    assert message_of(path) == f"'a.json': this is a file of schema 's2d/trace', expected 's2d/test'. {OTHER}"


@pytest.mark.parametrize(("version", "text"), [(0, "0"), (3, "3"), (True, "true"), ("1", "'1'"), (1.0, "1.0"), (None, "null")])
def test_a_file_of_another_version_names_the_command_that_makes_it_again(tmp_path: Path, version: Any, text: str) -> None:
    path = edited(write(tmp_path / "a.json"), version=version)
    assert message_of(path) == f"'a.json': this s2d/test file has version {text}, expected 1. {REMAKE}"


def test_an_unknown_key_is_refused_with_its_position(tmp_path: Path) -> None:
    body = {"name": "a", "passes": [{"cost_s": 1.0, "cost": 2.0}]}
    path = edited(write(tmp_path / "a.json"), body=body)
    assert message_of(path) == f"'a.json': body.passes[0]: unknown key 'cost' (did you mean 'cost_s'?). {REMAKE}"


def test_nan_is_refused_with_its_position(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json")
    path.write_text(path.read_text().replace("1e-300", "NaN"))
    assert message_of(path) == f"'a.json': body.passes[1].cost_s: expected a finite number, got nan. {REMAKE}"


def test_a_damaged_provenance_is_refused(tmp_path: Path) -> None:
    path = edited(write(tmp_path / "a.json"), provenance={})
    assert message_of(path) == f"'a.json': provenance: missing key 'utc_time'. {REMAKE}"


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.json")
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutOfSpace) as caught:
        write(path, Note(name="new", passes=()))
    assert str(caught.value) == (
        f"no space left to write {str(path)!r}: nothing was written, and the old file is unchanged. "
        "Free some space, or give another path with -o."
    )
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_device_is_not_replaced_by_a_file() -> None:
    with pytest.raises(UserInputError, match=r"^'/dev/full': this is a folder or a device, expected a file\. Give the name"):
        write(Path("/dev/full"))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "no" / "a.json"
    with pytest.raises(BadFile) as caught:
        write(path)
    assert str(caught.value) == f"{str(path)!r}: its folder does not exist. Make the folder first, or give another path."


def test_a_link_is_followed_and_stays_a_link(tmp_path: Path) -> None:
    link = tmp_path / "link.json"
    link.symlink_to(write(tmp_path / "a.json"))
    write(link, Note(name="new", passes=()))
    assert link.is_symlink()
    assert NOTE_FILE.read(tmp_path / "a.json").record.name == "new"
