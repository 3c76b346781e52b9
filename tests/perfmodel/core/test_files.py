import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfmodel.core.errors import BadFile, OutOfSpace, UserInputError
from perfmodel.core.files import Stored, read_record, record_text
from tests.perfmodel.core.file_samples import NOTE, PROVENANCE, REMAKE, SCHEMA, Note, Pass, write


def read(path: Path, **options: Any) -> Stored[Note]:
    return read_record(path, Note, schema=SCHEMA, **({"version": 1} | options))


def edited(path: Path, **changes: Any) -> Path:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(BadFile) as caught:
        read(path, **options)
    return str(caught.value).replace(str(path), path.name)


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(st.builds(Note, name=st.text(), passes=st.lists(st.builds(Pass, cost_s=finite)).map(tuple)))
def test_a_file_read_and_written_again_has_the_same_bytes(tmp_path_factory: pytest.TempPathFactory, note: Note) -> None:
    folder = tmp_path_factory.mktemp("files")
    first = write(folder / "a.json", note)
    stored = read(first)
    second = write(folder / "b.json", stored.record)
    assert (stored.record, stored.provenance) == (note, PROVENANCE)
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes().endswith(b"}\n")


def test_the_text_of_a_record_is_its_file(tmp_path: Path) -> None:
    text = record_text(NOTE, schema=SCHEMA, version=1, provenance=PROVENANCE)
    assert write(tmp_path / "a.json").read_text() == text
    assert list(json.loads(text)) == ["body", "provenance", "schema", "version"]
    assert "0.1\n" in text


def test_the_hash_names_the_body_and_ignores_where_it_came_from(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json")
    before = read(path).sha256
    assert read(edited(path, provenance=json.loads(path.read_text())["provenance"] | {"seed": 7})).sha256 == before
    assert read(write(path, Note(name="other", passes=()))).sha256 != before


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "a.json") == "'a.json': no such file. Check the name."


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert refusal(tmp_path / "a") == "'a': this is a folder, expected a file. Give a file inside it."


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json")
    path.write_bytes(path.read_bytes()[:-20])
    message = refusal(path)
    assert message.startswith("'a.json': the file is truncated or is not JSON (")
    assert message.endswith(REMAKE)


@given(st.data())
def test_no_prefix_of_a_file_is_accepted(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    whole = record_text(NOTE, schema=SCHEMA, version=1, provenance=PROVENANCE).encode()
    path = tmp_path_factory.mktemp("files") / "a.json"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 2))])
    with pytest.raises(BadFile):
        read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", f"'a.json': the file is empty. {REMAKE}"),
        (b"\xff\xfe", "'a.json': this is not a text file, expected JSON. Give a file that s2d wrote."),
        (
            b'{"a": 1, "a": 2}',
            f"'a.json': the file is truncated or is not JSON (the key 'a' is repeated). {REMAKE}",
        ),
        (
            b"[1]",
            "'a.json': this is no file of s2d, expected an object with the keys body, provenance, schema, version. "
            "Give an s2d/test file.",
        ),
        (b"[" * 200_000, None),
    ],
)
def test_what_is_not_ours_is_refused(tmp_path: Path, content: bytes, message: str | None) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    refused = refusal(path)
    assert message is None or refused == message


def test_a_file_of_another_schema_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", schema="s2d/trace")
    assert refusal(path) == "'a.json': this is an s2d/trace, expected s2d/test. Give an s2d/test file."


def test_a_newer_file_asks_for_an_upgrade(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", version=3)
    assert refusal(path) == (
        "'a.json': s2d/test version 3 was written by a newer s2d, this one reads up to version 1. "
        "Upgrade with pip install -U s2d."
    )


@pytest.mark.parametrize("version", [0, True, "1", 1.0, None])
def test_a_version_that_is_no_whole_number_is_refused(tmp_path: Path, version: Any) -> None:
    path = edited(write(tmp_path / "a.json"), version=version)
    expected = f"'a.json': version {version!r} is no version, expected a whole number from 1 to 1. {REMAKE}"
    assert refusal(path) == expected


def test_an_unknown_key_is_refused_with_its_place(tmp_path: Path) -> None:
    body = {"name": "a", "passes": [{"cost_s": 1.0, "cost": 2.0}]}
    path = edited(write(tmp_path / "a.json"), body=body)
    assert refusal(path) == f"'a.json': body.passes[0]: unknown key 'cost' (did you mean 'cost_s'?). {REMAKE}"


def test_nan_is_refused_with_its_place(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json")
    path.write_text(path.read_text().replace("1e-300", "NaN"))
    assert refusal(path) == f"'a.json': body.passes[1].cost_s: expected a finite number, got nan. {REMAKE}"


def test_a_damaged_provenance_is_refused(tmp_path: Path) -> None:
    path = edited(write(tmp_path / "a.json"), provenance={})
    assert refusal(path) == f"'a.json': provenance: missing key 'utc_time'. {REMAKE}"


def test_an_older_file_is_upgraded_step_by_step_and_keeps_its_hash(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", Pass(cost_s=2.0), version=1)
    upgrades = {
        1: lambda body: {"costs": [body["cost_s"]]},
        2: lambda body: {"name": "old", "passes": [{"cost_s": cost} for cost in body["costs"]]},
    }
    as_written = read_record(path, Pass, schema=SCHEMA, version=1)
    stored = read(path, version=3, upgrades=upgrades)
    assert stored.record == Note(name="old", passes=(Pass(cost_s=2.0),))
    assert stored.sha256 == as_written.sha256
    assert refusal(path, version=3) == f"'a.json': s2d/test version 1 is too old to be read. {REMAKE}"
    said = f"'a.json': no whole s2d/test of version 1 (KeyError('cost_s')). {REMAKE}"
    assert refusal(edited(path, body={}), version=3, upgrades=upgrades) == said


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.json")
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutOfSpace) as caught:
        write(path, Note(name="new", passes=()))
    assert str(caught.value) == (
        f"no space left to write {str(path)!r}: nothing was written and what was there is untouched. "
        "Free some space, or give another place with -o."
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


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    path = tmp_path / "no" / "a.json"
    with pytest.raises(BadFile) as caught:
        write(path)
    assert str(caught.value) == f"{str(path)!r}: its folder does not exist. Make the folder first, or give another place."


def test_a_link_is_followed_and_kept(tmp_path: Path) -> None:
    link = tmp_path / "link.json"
    link.symlink_to(write(tmp_path / "a.json"))
    write(link, Note(name="new", passes=()))
    assert link.is_symlink()
    assert read(tmp_path / "a.json").record.name == "new"
