"""An unfinished training on disk: the state to go on from, whose state it is, and the losses so far."""

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
from s2d.training.training import Training, check_same_training

CHECKPOINT_NAME = "checkpoint.safetensors"
LOSS_NAME = "loss.jsonl"
_PARTIAL_NAME = "checkpoint.partial"
_LOSS_BEGIN = '{"step": '


@contextlib.contextmanager
def training_folder(folder: Path) -> Iterator[None]:
    """A folder for an unfinished training, for one process at a time; left without a checkpoint in it, it goes again.

    Raises:
        OutOfSpace: the disk is full.
        BadFile: it cannot be made, or has losses that no training of ours wrote.
        UserInputError: another process trains in it.
    """
    with translate_write_errors(folder):
        folder.mkdir(exist_ok=True)
    with locked_folder(folder) as is_locked:
        if not is_locked:
            print_err(f"note: no file locks here: take care that no other training writes to {folder}")
        _check_losses(folder / LOSS_NAME)
        try:
            yield
        finally:
            if not (folder / CHECKPOINT_NAME).exists():
                remove_training(folder)


def _check_losses(path: Path) -> None:
    """Refuse a foreign file of the name of ours, whose lines would be dropped.

    Raises:
        BadFile: it is one.
    """
    if not path.exists():
        return
    *whole, cut_off = read_bytes(path).decode("utf-8", errors="replace").split("\n")
    is_cut_off = cut_off.startswith(_LOSS_BEGIN) or _LOSS_BEGIN.startswith(cut_off)
    if not is_cut_off or any(_step_of(line) == math.inf for line in whole):
        problem = "these are not the losses of an unfinished training"
        raise BadFile(path, problem, "Move the file away, or give another place with -o")


def remove_training(folder: Path) -> None:
    """Remove what a training keeps while it is unfinished, and the folder unless something else is in it."""
    for name in (CHECKPOINT_NAME, _PARTIAL_NAME, LOSS_NAME):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def save_checkpoint(
    model: PreTrainedModel, optimizers: Sequence[torch.optim.Optimizer], step: int, training: Training, folder: Path
) -> None:
    """Weights and optimizer state as safetensors, and whose they are: written whole, then renamed.

    Raises:
        OutOfSpace: the disk is full; the checkpoint before this one is still there.
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
    model: PreTrainedModel, optimizers: Sequence[torch.optim.Optimizer], training: Training, folder: Path
) -> int:
    """Restore what `save_checkpoint` wrote, if anything; returns the step to go on with, 0 without a checkpoint.

    Raises:
        Mismatch: the checkpoint is of another training.
        BadFile: it is damaged, or does not say of which.
    """
    path = folder / CHECKPOINT_NAME
    if not path.exists():
        return 0
    found, step, tensors = _read_checkpoint(path)
    fix = f"Repeat the command that began it to go on, delete {str(folder)!r} to begin anew, or give another place with -o"
    check_same_training(f"the unfinished training in {str(folder)!r}", found, training, fix=fix)
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


def _read_checkpoint(path: Path) -> tuple[Training, int, dict[str, Tensor]]:
    """Whose state it is, the step to go on with, and every tensor."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        training = decode_record(json.loads(metadata["training"]), Training)
        return training, int(metadata["step"]), load_file(path)
    except Exception as err:  # safetensors has an error of its own, and every kind of damage another
        problem = f"this checkpoint is damaged, or of another version of s2d ({err})"
        raise BadFile(path, problem, "Delete it to begin the training anew") from err


def keep_losses_before(first_step: int, folder: Path) -> None:
    """Drop the losses of steps that will be taken again: a killed run had gone on after its last checkpoint."""
    path = folder / LOSS_NAME
    lines = path.read_text("utf-8", errors="replace").splitlines(keepends=True) if path.exists() else []
    write_atomically(path, "".join(line for line in lines if _step_of(line) < first_step).encode())


def log_loss(record: dict[str, object], folder: Path) -> None:
    """One more line of losses.

    Raises:
        OutOfSpace: the disk is full.
    """
    path = folder / LOSS_NAME
    with translate_write_errors(path), path.open("a", encoding="utf-8") as log:
        log.write(json.dumps(record) + "\n")


def _step_of(line: str) -> float:
    """The step of a line of losses; of one that a kill cut off, a step that is never kept."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
