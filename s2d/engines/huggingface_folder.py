"""Writes a model folder with its weights in another dtype, one file of weights at a time."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from perfmodel.core.disk import PathLike, atomic_folder
from perfmodel.core.errors import BadFile
from perfmodel.models.config_file import read_config_file
from perfmodel.models.hub import CONFIG
from s2d.loading.checkpoint import weight_files

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
"""Dtypes of the weights that are written, by our word for them."""
_COPIED = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.jinja",
    "model.safetensors.index.json",
)
"""Files that are copied unchanged, beside the config and the weights."""


def write_huggingface(source: PathLike, weights: str, out: PathLike) -> Path:
    """Write a model folder with all weights in one dtype, completely or not at all.

    Args:
        source: a model folder.
        weights: a key of `DTYPES`.
        out: the new folder.

    Raises:
        BadFile: `out` exists or cannot be made, or a number does not fit the dtype.
        OutOfSpace: the disk is full.
    """
    folder, dtype = Path(source), DTYPES[weights]
    config = read_config_file(folder / CONFIG)
    key = "torch_dtype" if "torch_dtype" in config else "dtype"
    config = {**config, key: str(dtype).removeprefix("torch.")}
    with atomic_folder(out) as new:
        (new / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        for file in {file for pattern in _COPIED for file in folder.glob(pattern) if file.is_file()}:
            shutil.copyfile(file, new / file.name)
        for path in weight_files(folder):
            save_file(_converted(path, dtype), new / path.name, metadata={"format": "pt"})
    return Path(out)


def _converted(path: Path, dtype: torch.dtype) -> dict[str, Any]:
    """The tensors of one file in a dtype. Integers stay as they are."""
    tensors = {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118, the file is no mapping
            stored = file.get_tensor(name)
            converted = stored.to(dtype) if stored.is_floating_point() else stored
            if not torch.isfinite(converted).all():
                label = str(dtype).removeprefix("torch.")
                fix = "Convert to bf16 or f32, or fetch the model again"
                raise BadFile(path, f"tensor {name!r} holds numbers that are too large for {label}, or not finite", fix)
            tensors[name] = converted.contiguous()
    return tensors
