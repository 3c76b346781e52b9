"""The safetensors files of a model folder: which they are, what they hold, and the hash that names them."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from perfmodel.errors import BadFile

ReadTensor = Callable[[str], Tensor]
"""Reads one tensor of a checkpoint by its name."""


def layer_of(name: str) -> int:
    """Zero-based layer of a tensor's name; -1 for those that belong to none."""
    parts = name.split(".")
    return int(parts[2]) if parts[:2] == ["model", "layers"] else -1


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder: one, or the shards that its index names."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return [folder / "model.safetensors"]
    try:
        names = json.loads(index.read_text("utf-8"))["weight_map"].values()
    except (ValueError, KeyError) as err:
        raise BadFile(index, f"not a readable index ({err!r})", "Fetch the model again") from err
    return [folder / name for name in sorted(set(names))]


def tensor_names(folder: Path) -> list[str]:
    """The names of all tensors in a folder."""
    names: list[str] = []
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            names += file.keys()
    return names


@contextmanager
def open_weights(folder: Path) -> Iterator[ReadTensor]:
    """A function that reads one tensor by its name from whichever file has it."""
    files: dict[str, Any] = {}
    for path in weight_files(folder):
        try:
            file = safe_open(path, framework="pt")
        except (OSError, SafetensorError) as err:
            problem = "there is no such file" if not path.exists() else f"truncated or damaged ({err})"
            raise BadFile(path, problem, "Fetch or make the model again; weights are read from safetensors only") from err
        files |= dict.fromkeys(file.keys(), file)

    def read(name: str) -> Tensor:
        if name not in files:
            raise BadFile(folder, f"the weights lack {name!r}", "Fetch or make the model again")
        return files[name].get_tensor(name)

    yield read


def weights_sha256(folder: Path) -> str:
    """One hash for the bytes of all weight files, in the order of their names.

    Raises:
        BadFile: one of them is missing or cannot be read.
    """
    digest = hashlib.sha256()
    for path in weight_files(folder):
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as err:
            raise BadFile(path, f"cannot be read: {err.strerror}", "Fetch or make the model again") from err
    return digest.hexdigest()
