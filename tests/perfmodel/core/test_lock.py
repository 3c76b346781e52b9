"""Locks on files and folders: one process at a time, released when a process is killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from perfmodel.core.errors import BadFile, UserInputError
from perfmodel.core.lock import locked_file, locked_folder

HOLD = (
    "import sys, perfmodel.core.lock as lock\nwith lock.{0}(sys.argv[1]):\n    print('held', flush=True)\n    sys.stdin.read()"
)
Lock = Callable[[Path], AbstractContextManager[bool]]


@pytest.mark.parametrize("lock", [locked_file, locked_folder])
def test_a_second_process_is_refused_until_the_first_is_killed(lock: Lock, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl" if lock is locked_file else tmp_path
    command = [sys.executable, "-c", HOLD.format(lock.__name__), str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserInputError, match="is in use by another process, expected one process at a time"), lock(path):
            pass
        assert path.exists()
        os.kill(process.pid, signal.SIGKILL)
    with lock(path) as is_locked:
        assert is_locked


def test_a_new_file_that_stays_empty_is_removed_and_any_other_stays(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    with locked_file(path):
        assert path.read_bytes() == b""
    assert not path.exists()
    with locked_file(path):
        path.write_bytes(b"text")
    assert path.read_bytes() == b"text"
    (tmp_path / "empty").touch()
    with locked_file(tmp_path / "empty"):
        pass
    assert (tmp_path / "empty").exists()


def test_a_link_and_its_file_share_one_lock(tmp_path: Path) -> None:
    path, link = tmp_path / "texts.jsonl", tmp_path / "link"
    link.symlink_to(path)
    with locked_file(path), pytest.raises(UserInputError, match="in use"), locked_file(link):
        pass


def test_a_file_that_another_process_just_removed_is_not_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    path, real = tmp_path / "texts.jsonl", fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        path.unlink()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(UserInputError, match="in use"), locked_file(path):
        pass


def test_a_file_system_without_locks_is_not_a_file_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with locked_file(tmp_path / "texts.jsonl") as is_locked:
        assert not is_locked
    with locked_folder(tmp_path) as is_locked:
        assert not is_locked


def test_a_path_that_cannot_be_locked_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="its folder does not exist"), locked_file(tmp_path / "nowhere" / "texts.jsonl"):
        pass
    with pytest.raises(BadFile, match="this is a folder or a device, expected a file"), locked_file(tmp_path):
        pass
