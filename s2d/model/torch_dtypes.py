"""Number types that the runtime computes in: our names for them, and torch's."""

import torch

from perfmodel.core.errors import UnknownName
from perfmodel.models.dtypes import Dtype

TORCH_DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_LABELS = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def torch_dtype(dtype: Dtype) -> torch.dtype:
    """The tensor type of a dtype's name.

    Raises:
        UnknownName: a dtype this runtime does not compute in.
    """
    if dtype not in TORCH_DTYPES:
        raise UnknownName("dtype", dtype, TORCH_DTYPES, listed_in="s2d-run --help")
    return TORCH_DTYPES[dtype]


def dtype_label(dtype: torch.dtype) -> str:
    """`fp16`; of a type that nothing is computed in, torch's name: `int8`."""
    return _LABELS.get(dtype, str(dtype).removeprefix("torch."))


def dtype_fix(dtype: torch.dtype) -> str | None:
    """What to do where numbers are too large for a type, without its full stop; None where no other type holds larger ones."""
    if dtype != torch.float16:
        return None
    return f"fp16 ends at {torch.finfo(dtype).max:g}: profile with --dtype bf16 or fp32, and run a plan made from that profile"
