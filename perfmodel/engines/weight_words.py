"""The number type behind an engine's word for its weights."""

from typing import get_args

from perfmodel.core.errors import UserInputError
from perfmodel.models.dtypes import Dtype

_FLOATS: dict[str, Dtype] = {
    "f32": "fp32",
    "float32": "fp32",
    "bfloat16": "bf16",
    "f16": "fp16",
    "float16": "fp16",
}
_TORCH_NAMES: dict[Dtype, str] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def find_dtype(word: str) -> Dtype | None:
    """The number type of an engine's word for its weights: fp32 for `f32`, q8_0 for `q8_0`; None if its size is not known."""
    return _known().get(word.casefold())


def weights_dtype(word: str) -> Dtype:
    """The number type of an engine's word for its weights.

    Raises:
        UserInputError: no number type is known by that word, so the memory of the weights is unknown.
    """
    dtype = find_dtype(word)
    if dtype is None:
        raise UserInputError(
            f"weights {word!r}: expected a type whose size is known, one of {', '.join(_known())}. Profile with one of these: "
            "s2d-profile engine --weights."
        )
    return dtype


def torch_dtype_name(word: str) -> str | None:
    """PyTorch's name of an engine's word for plain weights: `bfloat16` for `bf16`; None for quantised weights."""
    dtype = find_dtype(word)
    return None if dtype is None else _TORCH_NAMES.get(dtype)


def _known() -> dict[str, Dtype]:
    return {dtype: dtype for dtype in get_args(Dtype)} | _FLOATS
