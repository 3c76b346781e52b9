"""Files and folders are written whole or not at all, and errors name the path."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from perfmodel.core.disk import atomic_folder, check_new_folder, check_writable, find_os_error, translate_write_errors
from perfmodel.core.errors import BadFile, OutOfSpace


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_complete(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "made") as folder:
        (folder / "inside").mkdir()
        (folder / "inside" / "file").write_text("content")
        assert not (tmp_path / "made").exists()
    assert names_in(tmp_path) == ["made"]
    assert (tmp_path / "made" / "inside" / "file").read_text() == "content"


@pytest.mark.parametrize("error", [RuntimeError("any"), KeyboardInterrupt()])
def test_after_an_error_no_folder_appears(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), atomic_folder(tmp_path / "made") as folder:  # noqa: PT012
        (folder / "file").write_text("half")
        raise error
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "part"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
        shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")]),
        OSError("40960 requested and 13744 written"),
        OutOfSpace("part"),
    ],
    ids=["os", "rust", "shutil", "numpy", "ours"],
)
def test_a_full_disk_is_reported_for_the_folder_and_not_for_a_file_in_it(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(OutOfSpace, match=r"no space left to write .*made"), atomic_folder(tmp_path / "made"):
        raise error
    assert names_in(tmp_path) == []


def test_other_errors_pass_and_errors_of_the_system_name_the_path(tmp_path: Path) -> None:
    with pytest.raises(KeyError), translate_write_errors("x"):
        raise KeyError
    with pytest.raises(BadFile, match="'x': cannot be written: Read-only file system"), translate_write_errors("x"):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    assert find_os_error(BadFile("x", "damaged (os error 28)", "Fix it")) is None


def test_an_error_about_another_file_is_not_reported_for_the_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"), atomic_folder(tmp_path / "made") as folder:
        shutil.copyfile(tmp_path / "model" / "tokenizer.json", folder / "tokenizer.json")
    with pytest.raises(FileNotFoundError, match="missing"), atomic_folder(tmp_path / "made") as folder:
        (folder / "missing" / "file").write_text("content")
    assert names_in(tmp_path) == []


def test_an_error_about_a_link_names_the_path_as_the_user_wrote_it(tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to(tmp_path / "nowhere" / "real.json")
    with pytest.raises(BadFile, match=r"link\.json': its folder does not exist"):
        check_writable(tmp_path / "link.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(BadFile, match=r"file/inside': cannot be written: Not a directory"):
        check_writable(tmp_path / "file" / "inside")


def test_an_existing_path_is_not_replaced_and_no_parents_are_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("file", "dangling", "."):
        with pytest.raises(BadFile, match="exists already"):
            check_new_folder(tmp_path / name)
    with pytest.raises(BadFile, match="its folder does not exist"):
        check_new_folder(tmp_path / "nowhere" / "new")
    check_new_folder(tmp_path / "new")


def test_a_file_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    check_writable(tmp_path / "new.json")
    with pytest.raises(BadFile, match="expected a file"):
        check_writable(tmp_path)
    with pytest.raises(BadFile, match="its folder does not exist"):
        check_writable(tmp_path / "nowhere" / "new.json")
    assert names_in(tmp_path) == []
