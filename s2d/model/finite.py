"""Checks for NaN and infinity in weights, hidden states and logits.

If a logit of a row is NaN or +inf, its largest logit is not finite and its confidence is NaN. A logit of -inf is legal: it
belongs to a token that a reduced head lacks or that sampling excludes.
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
    """The logits of a model are not finite, so its tokens and its acceptance are meaningless.

    Args:
        role: whether the model is the target or the draft.
        decoder: the decoder of the model.
        prompt: name of the decoded prompt; None if unknown.
    """

    def __init__(self, role: Role, decoder: Decoder, prompt: str | None = None) -> None:
        on_prompt = "" if prompt is None else f" on prompt {prompt!r}"
        fix = dtype_fix(decoder.dtype) or (
            "The weights or config.json are damaged: download the model again, or leave out the prompt"
        )
        super().__init__(
            f"the logits of {role} {decoder.geometry.name!r} are NaN or infinite in {dtype_label(decoder.dtype)}{on_prompt}, "
            f"expected finite numbers. {fix}."
        )
        self.role: Role = role
        self.decoder = decoder


@contextmanager
def naming_prompt(name: str) -> Iterator[None]:
    """Add the name of the prompt to a `NotFinite` error."""
    try:
        yield
    except NotFinite as err:
        raise NotFinite(err.role, err.decoder, name) from err


def check_logits(logits: Tensor, role: Role, decoder: Decoder) -> None:
    """Check that logits are finite. The host waits for them.

    Args:
        logits: [T, V], at least one row.
        role: whether the target or the draft computed them.
        decoder: the decoder that computed them.

    Raises:
        NotFinite: a logit is NaN or +inf, or all logits of a row are -inf.
    """
    if not is_finite(logits.amax(-1)):
        raise NotFinite(role, decoder)


def check_states(states: Tensor, role: Role, decoder: Decoder) -> None:
    """Check that hidden states are finite: otherwise their logits are not. The host waits for them.

    Args:
        states: [T, D + PAD].
        role: whether the target or the draft computed them.
        decoder: the decoder that computed them.

    Raises:
        NotFinite: a number is NaN or infinite.
    """
    if not is_finite(states):
        raise NotFinite(role, decoder)


def check_confidence(confidence: float, decoder: Decoder) -> float:
    """Check a draft's confidence, which is NaN if its logits are not finite; returns the confidence.

    Raises:
        NotFinite: it is NaN.
    """
    if math.isnan(confidence):
        raise NotFinite("draft", decoder)
    return confidence


def is_finite(numbers: Tensor) -> bool:
    """Whether all numbers are finite. Reads them once, without a copy; the host waits.

    Args:
        numbers: a tensor of any shape with at least one element.
    """
    low, high = torch.stack(torch.aminmax(numbers)).tolist()  # both are NaN if any number is
    return math.isfinite(low) and math.isfinite(high)


def count_non_finite(numbers: Tensor) -> int:
    """The number of NaN or infinite elements. If there are none, the tensor is read once, without a copy."""
    return 0 if is_finite(numbers) else int((~numbers.isfinite()).sum())
