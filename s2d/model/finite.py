"""Checks for NaN and infinity, and the refusal of a model that computes them.

Logits that are NaN or +inf leave the largest logit of their row not finite, and a confidence of NaN. -inf is the logit of a
token that a reduced head lacks or that sampling forbids.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from perfmodel.core.errors import UserInputError
from s2d.model.decoder import Decoder
from s2d.model.torch_dtypes import dtype_fix, dtype_label

Role = Literal["target", "draft"]


class NotFinite(UserInputError):
    """A model's logits are not finite, so that what it writes or accepts means nothing.

    Args:
        role: of the model.
        decoder: of the model.
        prompt: the name of the prompt that was decoded; None where it is not known.
    """

    def __init__(self, role: Role, decoder: Decoder, prompt: str | None = None) -> None:
        where = "" if prompt is None else f" on prompt {prompt!r}"
        fix = dtype_fix(decoder.dtype) or "Weights or config.json are damaged: fetch the model again, or leave the prompt out"
        super().__init__(
            f"the logits of {role} {decoder.geometry.name!r} are NaN or infinite in {dtype_label(decoder.dtype)}{where}, "
            f"expected finite numbers. {fix}."
        )
        self.role: Role = role
        self.decoder = decoder


@contextmanager
def naming_prompt(name: str) -> Iterator[None]:
    """Name the prompt in what is raised about logits."""
    try:
        yield
    except NotFinite as err:
        raise NotFinite(err.role, err.decoder, name) from err


def check_logits(logits: Tensor, role: Role, decoder: Decoder) -> None:
    """Refuse logits that are not finite; the host waits for them.

    Args:
        logits: [T, V], at least one row.
        role: of the model that they are of.
        decoder: of that model.

    Raises:
        NotFinite: one is NaN or +inf, or all of a row are -inf.
    """
    if not is_finite(logits.amax(-1)):
        raise NotFinite(role, decoder)


def check_states(states: Tensor, role: Role, decoder: Decoder) -> None:
    """Refuse residual rows that are not finite, whose logits are not either: [T, D + PAD]; the host waits for them.

    Raises:
        NotFinite: one is NaN or infinite.
    """
    if not is_finite(states):
        raise NotFinite(role, decoder)


def check_confidence(confidence: float, decoder: Decoder) -> float:
    """A draft's confidence in its token, which is NaN where its logits are not finite.

    Raises:
        NotFinite: it is NaN.
    """
    if math.isnan(confidence):
        raise NotFinite("draft", decoder)
    return confidence


def is_finite(numbers: Tensor) -> bool:
    """Whether all of some numbers are finite. One pass over them, without a copy; the host waits for it.

    Args:
        numbers: of any shape, at least one.
    """
    low, high = torch.stack(torch.aminmax(numbers)).tolist()  # both are NaN where one number is
    return math.isfinite(low) and math.isfinite(high)


def count_non_finite(numbers: Tensor) -> int:
    """How many of some numbers are NaN or infinite. Where none is, one pass over them without a copy."""
    return 0 if is_finite(numbers) else int((~numbers.isfinite()).sum())
