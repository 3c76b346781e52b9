"""The folder of an unfinished training: one process at a time, and no foreign losses."""

from pathlib import Path

import pytest

from perfmodel.core.errors import BadFile, UserInputError
from perfmodel.core.lock import locked_folder
from s2d.training.resume import CHECKPOINT_NAME, LOSS_NAME, log_loss, training_folder


def losses(folder: Path) -> bytes:
    """Lines as a training writes them."""
    path = folder / LOSS_NAME
    for step in (0, 25):
        log_loss({"step": step, "loss_by_exit": {"2": 1.5}, "elapsed_s": 0.1}, folder)
    content = path.read_bytes()
    path.unlink()
    return content


@pytest.mark.parametrize(
    "content", [b'{"loss": 1.5}\n', b"step,loss\n1,1.5", b'{"a": 1}', b"[1]\n", b"\n", b'{"step": 0}\n{"a": 1}', b"\xff\xfe\n"]
)
def test_a_foreign_file_of_losses_is_refused_and_stays_unchanged(content: bytes, tmp_path: Path) -> None:
    (tmp_path / LOSS_NAME).write_bytes(content)
    with (
        pytest.raises(BadFile, match="these are not the losses of an unfinished training"),
        training_folder(tmp_path),
    ):
        pass
    assert (tmp_path / LOSS_NAME).read_bytes() == content


def test_losses_with_an_incomplete_last_line_are_accepted(tmp_path: Path) -> None:
    content = losses(tmp_path)
    (tmp_path / CHECKPOINT_NAME).touch()
    for end in range(len(content) + 1):
        (tmp_path / LOSS_NAME).write_bytes(content[:end])
        with training_folder(tmp_path):
            pass


def test_a_second_training_in_a_folder_is_refused_and_removes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "draft.partial"
    with training_folder(folder):
        (folder / LOSS_NAME).write_bytes(b'{"step": 0}\n')
        with pytest.raises(UserInputError, match="is in use by another process"), training_folder(folder):
            pass
        assert (folder / LOSS_NAME).exists()
    assert not folder.exists()
    with training_folder(folder), locked_folder(tmp_path):
        pass


def test_a_file_system_without_locks_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("perfmodel.core.lock.fcntl", None)
    with training_folder(tmp_path / "draft.partial"):
        pass
    assert "note: this file system has no locks: make sure that no other training writes to" in capsys.readouterr().err
