"""Files of arrays: whole, finite, never pickled, and told from what is not ours."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perfmodel.core.errors import BadFile
from perfmodel.core.files import read_arrays, write_arrays
from tests.perfmodel.core.file_samples import ARRAYS, NOTE, PROVENANCE, REMAKE, SCHEMA, Note, write


def write_npz(path: Path, arrays: dict[str, np.ndarray] = ARRAYS) -> Path:
    write_arrays(path, NOTE, arrays, schema=SCHEMA, version=1, provenance=PROVENANCE)
    return path


def read_npz(path: Path, names: tuple[str, ...] = tuple(ARRAYS)) -> Any:
    return read_arrays(path, Note, schema=SCHEMA, version=1, since=dict.fromkeys(names, 1))


def test_an_archive_of_another_schema_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_arrays(path, NOTE, ARRAYS, schema="s2d/trace", version=1, provenance=PROVENANCE)
    with pytest.raises(BadFile, match=r"this is an s2d/trace, expected s2d/test. Give an s2d/test file\.$"):
        read_npz(path)


def test_arrays_come_back_as_they_were_and_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    first = write_npz(tmp_path / "a.npz")
    stored = read_npz(first)
    second = write_npz(tmp_path / "b.npz", stored.arrays)
    assert stored.record == NOTE
    assert stored.sha256 == read_npz(second).sha256
    assert first.read_bytes() == second.read_bytes()
    for name, array in ARRAYS.items():
        assert stored.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(stored.arrays[name], array)


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
    expected = f"{str(path)!r}: expected the arrays confidence, token, found token. {REMAKE}"
    assert str(caught.value) == expected


def test_an_archive_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, token=ARRAYS["token"])
    with pytest.raises(BadFile, match=r"this archive has no header\.json, expected an s2d/test\. Give a file that s2d wrote\."):
        read_npz(path)


def test_a_json_file_where_arrays_belong_is_told_from_them(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="expected the arrays confidence, token, found none"):
        read_npz(write(tmp_path / "a.json"))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([0.0, np.nan]), r"array 'x' holds nan at \(1,\), expected finite numbers"),
        (np.array([[1.0, -np.inf]]), r"array 'x' holds -inf at \(0, 1\), expected finite numbers"),
        (np.array([object()]), "array 'x' is of object, expected numbers or text"),
    ],
)
def test_arrays_that_no_file_may_hold_are_not_written(tmp_path: Path, array: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_npz(tmp_path / "a.npz", {"x": array})
    assert list(tmp_path.iterdir()) == []


def test_an_array_of_pickles_is_never_loaded(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", {})
    with zipfile.ZipFile(path, "a") as archive, archive.open("x.npy", "w") as member:
        np.save(member, np.array([object()]), allow_pickle=True)
    with pytest.raises(BadFile, match="Object arrays cannot be loaded when allow_pickle=False"):
        read_npz(path, names=("x",))
