"""Save and resume a training: its state, its record and its losses."""

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from perfmodel.core.codec import decode_record, encode_record
from perfmodel.core.console import print_err
from perfmodel.core.disk import read_bytes, sync_to_disk, translate_write_errors, write_atomically
from perfmodel.core.errors import BadFile
from perfmodel.core.lock import locked_folder
from s2d.training.training_record import TrainingRecord, check_same_training

CHECKPOINT_NAME = "checkpoint.safetensors"
LOSS_NAME = "loss.jsonl"
_PARTIAL_NAME = "checkpoint.partial"
_LOSS_BEGIN = '{"step": '


@contextlib.contextmanager
def training_folder(folder: Path) -> Iterator[None]:
    """Make and lock the folder of an unfinished training. A folder without a checkpoint is removed at the end.

    Raises:
        OutOfSpace: the disk is full.
        BadFile: the folder cannot be made, or has a file of losses that s2d-train did not write.
        UserInputError: another process uses the folder.
    """
    with translate_write_errors(folder):
        folder.mkdir(exist_ok=True)
    with locked_folder(folder) as is_locked:
        if not is_locked:
            print_err(f"note: this file system has no locks: make sure that no other training writes to {folder}")
        _check_losses(folder / LOSS_NAME)
        try:
            yield
        finally:
            if not (folder / CHECKPOINT_NAME).exists():
                remove_training(folder)


def _check_losses(path: Path) -> None:
    """Refuse a file of losses that s2d-train did not write: resuming would drop its lines.

    Raises:
        BadFile: s2d-train did not write the file.
    """
    if not path.exists():
        return
    *lines, last = read_bytes(path).decode("utf-8", errors="replace").split("\n")
    is_incomplete_loss = last.startswith(_LOSS_BEGIN) or _LOSS_BEGIN.startswith(last)
    if not is_incomplete_loss or any(_loss_step(line) == math.inf for line in lines):
        problem = "these are not the losses of an unfinished training"
        raise BadFile(path, problem, "Move the file away, or give another folder with -o")


def remove_training(folder: Path) -> None:
    """Remove the files of an unfinished training, and the folder if that empties it."""
    for name in (CHECKPOINT_NAME, _PARTIAL_NAME, LOSS_NAME):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def save_checkpoint(
    model: PreTrainedModel, optimizers: Sequence[torch.optim.Optimizer], step: int, training: TrainingRecord, folder: Path
) -> None:
    """Save weights, optimizer state and the training record as safetensors, atomically.

    Raises:
        OutOfSpace: the disk is full. The previous checkpoint stays.
    """
    tensors = {f"model.{name}": value.detach().contiguous() for name, value in model.named_parameters()}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
    metadata = {"step": str(step), "training": json.dumps(encode_record(training), sort_keys=True)}
    partial = folder / _PARTIAL_NAME
    try:
        with translate_write_errors(folder / CHECKPOINT_NAME):
            save_file(tensors, partial, metadata=metadata)
            sync_to_disk(partial)
            partial.replace(folder / CHECKPOINT_NAME)
    finally:
        partial.unlink(missing_ok=True)


def load_checkpoint(
    model: PreTrainedModel, optimizers: Sequence[torch.optim.Optimizer], training: TrainingRecord, folder: Path
) -> int:
    """Restore the state that `save_checkpoint` wrote. Returns the next step; 0 without a checkpoint.

    Raises:
        Mismatch: the checkpoint belongs to another training.
        BadFile: the checkpoint is damaged or has no training record.
    """
    path = folder / CHECKPOINT_NAME
    if not path.exists():
        return 0
    stored, step, tensors = _read_checkpoint(path)
    fix = f"Repeat its command to resume it, delete {str(folder)!r} to start again, or give another folder with -o"
    check_same_training(f"the unfinished training in {str(folder)!r}", stored, training, fix=fix)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(tensors[f"model.{name}"])
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            kind, *rest = key.split(".")
            if kind == "optimizer" and int(rest[0]) == number:
                state.setdefault(int(rest[1]), {})[rest[2]] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return step


def _read_checkpoint(path: Path) -> tuple[TrainingRecord, int, dict[str, Tensor]]:
    """The training record of a checkpoint, its next step, and all tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        training = decode_record(json.loads(metadata["training"]), TrainingRecord)
        return training, int(metadata["step"]), load_file(path)
    except Exception as err:  # damage raises errors of many types
        problem = f"this checkpoint is damaged, or of another version of s2d ({err})"
        raise BadFile(path, problem, "Delete it to start the training again") from err


def keep_losses_before(first_step: int, folder: Path) -> None:
    """Drop the losses of steps after the last checkpoint, which a resumed run repeats."""
    path = folder / LOSS_NAME
    lines = path.read_text("utf-8", errors="replace").splitlines(keepends=True) if path.exists() else []
    write_atomically(path, "".join(line for line in lines if _loss_step(line) < first_step).encode())


def log_loss(record: dict[str, object], folder: Path) -> None:
    """Append one line of losses.

    Raises:
        OutOfSpace: the disk is full.
    """
    path = folder / LOSS_NAME
    with translate_write_errors(path), path.open("a", encoding="utf-8") as log:
        log.write(json.dumps(record) + "\n")


def _loss_step(line: str) -> float:
    """The step of a line of losses; infinity for an incomplete line, which is never kept."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
