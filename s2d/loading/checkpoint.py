"""Read the safetensors files of a model folder tensor by tensor, and hash them."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from perfmodel.core.errors import BadFile, UserInputError

ReadTensor = Callable[[str], Tensor]
"""Reads one tensor of a checkpoint by name."""
REFETCH = "Fetch or make the model again"
_IGNORED_IN_LAYERS = (".rotary_emb.inv_freq",)
"""Name suffixes of redundant tensors in old checkpoints: their values follow from the config."""


class BadTensor(UserInputError):
    """A tensor that the decoder cannot use. `load_model` adds the file name.

    Args:
        tensor: name of the tensor.
        problem: what is wrong and what was expected.
        fix: what to do now, as a sentence without its full stop.
    """

    def __init__(self, tensor: str, problem: str, fix: str = REFETCH) -> None:
        super().__init__(f"tensor {tensor!r} {problem}. {fix}.")
        self.tensor = tensor
        self.problem = problem
        self.fix = fix


class CheckpointTensors:
    """The tensors of a model folder, read one at a time.

    Args:
        folder: the model folder.
        files: the open file of every tensor and the path of that file, by tensor name.
    """

    def __init__(self, folder: Path, files: Mapping[str, tuple[Any, Path]]) -> None:
        self._folder = folder
        self._files = files
        self._unread = set(files)

    def __call__(self, name: str) -> Tensor:
        """Read one tensor, as a `ReadTensor`.

        Raises:
            BadFile: the checkpoint has no tensor of this name.
        """
        if name not in self._files:
            raise BadFile(self._folder, f"the weights lack {name!r}", REFETCH)
        self._unread.discard(name)
        return self._files[name][0].get_tensor(name)

    def with_file(self, err: BadTensor) -> BadFile:
        """The same error with the file of the tensor."""
        path = self._files[err.tensor][1]
        return BadFile(path, f"tensor {err.tensor!r} {err.problem}", err.fix)

    def check_all_layers_read(self, num_layers: int) -> None:
        """Refuse layer tensors that were not read: the checkpoint holds more than its config declares.

        Args:
            num_layers: number of layers in the config.

        Raises:
            BadFile: names the first unread tensor.
        """
        unread = sorted(name for name in self._unread if layer_index(name) >= 0 and not name.endswith(_IGNORED_IN_LAYERS))
        if not unread:
            return
        problem, fix = f"tensor {unread[0]!r} does not belong to the model in config.json", REFETCH
        if layer_index(unread[0]) >= num_layers:
            problem = f"{problem}, which has num_hidden_layers {num_layers}"
            fix = f"Correct the config.json; s2d-run --export-exit {num_layers} then writes the first {num_layers} layers alone"
        raise BadFile(self._files[unread[0]][1], problem, fix)


def layer_index(name: str) -> int:
    """The zero-based layer in a tensor's name; -1 for a tensor outside the layers."""
    parts = name.split(".")
    is_in_layer = parts[:2] == ["model", "layers"] and len(parts) > 2 and parts[2].isdecimal()
    return int(parts[2]) if is_in_layer else -1


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder: one file, or the shards listed in its index."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return [folder / "model.safetensors"]
    try:
        names = json.loads(index.read_text("utf-8"))["weight_map"].values()
    except (ValueError, KeyError) as err:
        raise BadFile(index, f"not a readable index ({err!r})", "Fetch the model again") from err
    return [folder / name for name in sorted(set(names))]


def tensor_names(folder: Path) -> list[str]:
    """The names of all tensors in a model folder."""
    names: list[str] = []
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            names += file.keys()
    return names


@contextmanager
def open_weights(folder: Path) -> Iterator[CheckpointTensors]:
    """Open all weight files of a model folder to read tensors by name."""
    files: dict[str, tuple[Any, Path]] = {}
    for path in weight_files(folder):
        try:
            file = safe_open(path, framework="pt")
        except (OSError, SafetensorError) as err:
            problem = "there is no such file" if not path.exists() else f"truncated or damaged ({err})"
            raise BadFile(path, problem, f"{REFETCH}; weights are read from safetensors only") from err
        files |= dict.fromkeys(file.keys(), (file, path))
    yield CheckpointTensors(folder, files)


def weights_sha256(folder: Path) -> str:
    """SHA-256 of the bytes of all weight files, in the order of their names.

    Raises:
        BadFile: a weight file is missing or cannot be read.
    """
    digest = hashlib.sha256()
    for path in weight_files(folder):
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as err:
            raise BadFile(path, f"cannot be read: {err.strerror}", REFETCH) from err
    return digest.hexdigest()
