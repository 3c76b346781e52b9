"""Whether numbers are finite, and the refusal of a model whose logits are not."""

import math

import torch
from torch import Tensor


def is_finite(numbers: Tensor) -> bool:
    """Whether all of some numbers are finite. One pass over them, without a copy; the host waits for it.

    Args:
        numbers: of any shape, at least one.
    """
    low, high = torch.aminmax(numbers)  # both are NaN where one number is
    return math.isfinite(float(low)) and math.isfinite(float(high))


def num_not_finite(numbers: Tensor) -> int:
    """How many of some numbers are NaN or infinite. Where none is, one pass over them without a copy."""
    return 0 if is_finite(numbers) else int((~numbers.isfinite()).sum())
