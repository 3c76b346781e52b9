"""Torch types for the dtype names of this project."""

import torch

from perfmodel.core.errors import UnknownName
from perfmodel.models.dtypes import Dtype

TORCH_DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Types that the runtime computes in."""
_LABELS = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def torch_dtype(dtype: Dtype) -> torch.dtype:
    """The torch type of a dtype name.

    Raises:
        UnknownName: the runtime does not compute in this dtype.
    """
    if dtype not in TORCH_DTYPES:
        raise UnknownName("dtype", dtype, TORCH_DTYPES, listed_in="s2d-run --help")
    return TORCH_DTYPES[dtype]


def dtype_label(dtype: torch.dtype) -> str:
    """Our name, such as `fp16`; for other types torch's name, such as `int8`."""
    return _LABELS.get(dtype, str(dtype).removeprefix("torch."))


def dtype_fix(dtype: torch.dtype) -> str | None:
    """How to avoid overflow in a type, without a full stop; None if no other type holds larger numbers."""
    if dtype != torch.float16:
        return None
    return (
        f"The largest number in fp16 is {torch.finfo(dtype).max:g}: profile with --dtype bf16 or fp32, and run a plan made "
        "from that profile"
    )
