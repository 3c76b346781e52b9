"""Files of arrays: whole, finite, never pickled, and a clear error for anything else."""

import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from perfmodel.core.errors import BadFile
from perfmodel.core.files import ArraysFormat, Stored
from tests.perfmodel.core.file_samples import (
    ARRAYS,
    ARRAYS_FILE,
    NOTE,
    NOTE_FILE,
    PROVENANCE,
    REMAKE,
    NoteWithArrays,
    write,
)


def format_for(arrays: Mapping[str, np.ndarray]) -> ArraysFormat[NoteWithArrays]:
    return replace(ARRAYS_FILE, dtypes={name: str(array.dtype) for name, array in arrays.items()})


def write_npz(path: Path, arrays: Mapping[str, np.ndarray] = ARRAYS) -> Path:
    format_for(arrays).write(path, NoteWithArrays(header=NOTE, columns=arrays), PROVENANCE)
    return path


def read_npz(path: Path) -> Stored[NoteWithArrays]:
    return ARRAYS_FILE.read(path)


def test_an_archive_of_another_schema_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    other = replace(ARRAYS_FILE, header=replace(NOTE_FILE, schema="s2d/trace"))
    other.write(path, NoteWithArrays(header=NOTE, columns=ARRAYS), PROVENANCE)
    with pytest.raises(BadFile, match=r"this is a file of schema 's2d/trace', expected 's2d/test'\. Give an s2d/test file, "):
        read_npz(path)


def test_arrays_come_back_as_they_were_and_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    first = write_npz(tmp_path / "a.npz")
    stored = read_npz(first)
    second = write_npz(tmp_path / "b.npz", stored.record.columns)
    assert stored.record.header == NOTE
    assert stored.sha256 == read_npz(second).sha256
    assert first.read_bytes() == second.read_bytes()
    for name, array in ARRAYS.items():
        assert stored.record.columns[name].dtype == array.dtype
        np.testing.assert_array_equal(stored.record.columns[name], array)


def test_layout_and_byte_order_of_an_array_do_not_change_its_file(tmp_path: Path) -> None:
    other = {"confidence": np.asfortranarray(ARRAYS["confidence"]).astype(">f4"), "token": ARRAYS["token"]}
    assert write_npz(tmp_path / "a.npz").read_bytes() == write_npz(tmp_path / "b.npz", other).read_bytes()


def test_the_hash_of_arrays_sees_a_changed_number(tmp_path: Path) -> None:
    changed = write_npz(tmp_path / "b.npz", ARRAYS | {"token": ARRAYS["token"] + 1})
    assert read_npz(write_npz(tmp_path / "a.npz")).sha256 != read_npz(changed).sha256


def test_numpy_itself_can_open_the_arrays(tmp_path: Path) -> None:
    with np.load(write_npz(tmp_path / "a.npz"), allow_pickle=False) as opened:
        np.testing.assert_array_equal(opened["token"], ARRAYS["token"])


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.99])
def test_truncated_arrays_are_refused(tmp_path: Path, kept: float) -> None:
    path = write_npz(tmp_path / "a.npz")
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(BadFile, match=r"the archive is truncated or damaged \(.*\)\. Make it again"):
        read_npz(path)


def test_a_flipped_bit_in_an_array_is_noticed(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz")
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo("token.npy").header_offset + 60
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadFile, match="the archive is truncated or damaged"):
        read_npz(path)


def test_missing_arrays_are_named(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", {"token": ARRAYS["token"]})
    with pytest.raises(BadFile) as caught:
        read_npz(path)
    expected = f"{str(path)!r}: it holds the arrays token: expected confidence, token. {REMAKE}"
    assert str(caught.value) == expected


def test_an_archive_that_s2d_did_not_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, token=ARRAYS["token"])
    with pytest.raises(
        BadFile, match=r"s2d did not write this archive, expected a member header\.json\. Give an s2d/test file"
    ):
        read_npz(path)


def test_a_json_file_in_place_of_an_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="it holds the arrays none: expected confidence, token"):
        read_npz(write(tmp_path / "a.json"))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([0.0, np.nan]), r"array 'x' holds nan at \(1,\), expected finite numbers"),
        (np.array([[1.0, -np.inf]]), r"array 'x' holds -inf at \(0, 1\), expected finite numbers"),
        (np.array([object()]), "array 'x' has dtype object, expected numbers or text"),
    ],
)
def test_objects_and_infinities_are_not_written(tmp_path: Path, array: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_npz(tmp_path / "a.npz", {"x": array})
    assert list(tmp_path.iterdir()) == []


def test_an_array_of_pickles_is_never_loaded(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", {"confidence": ARRAYS["confidence"]})
    with zipfile.ZipFile(path, "a") as archive, archive.open("token.npy", "w") as member:
        np.save(member, np.array([object()]), allow_pickle=True)
    with pytest.raises(BadFile, match="Object arrays cannot be loaded when allow_pickle=False"):
        read_npz(path)


def test_an_array_of_another_dtype_is_refused(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", ARRAYS | {"token": ARRAYS["token"].astype(np.int64)})
    with pytest.raises(BadFile, match=r"array 'token' has dtype int64, expected int32\. Make it again with s2d-test"):
        read_npz(path)


def test_arrays_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", ARRAYS | {"token": ARRAYS["token"][:2]})
    with pytest.raises(BadFile, match=r"columns of different lengths\. Make it again with s2d-test"):
        read_npz(path)
