"""Implementations of the runtime that only a measurement on the device can choose between.

Each choice gives the same numbers up to rounding. Which one is faster depends on the GPU, its libraries and the shapes of the
model, so `s2d-profile` times them on the device and records the fastest, and a plan made from that profile runs with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from perfmodel.core.units import Seconds, Tokens

WeightLayout = Literal["input-major", "output-major"]
AttentionKernel = Literal["products", "varlen"]
NormKernel = Literal["two-step", "fused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """One choice for each part of a decoder that has several implementations."""

    weight_layout: WeightLayout
    """How a matrix [in, out] lies in memory: with its rows contiguous (input-major), or its columns (output-major), as
    `torch.nn.Linear` stores it."""
    attention: AttentionKernel
    """Of captured passes: batched products and a softmax over a padded context, or `torch.nn.attention.varlen`, which reads the
    length on the device. The latter needs a GPU and half precision."""
    norm: NormKernel
    """A length and a division, or PyTorch's fused RMS norm."""

    @property
    def label(self) -> str:
        """`output-major,varlen,fused`: as `--kernels` takes it."""
        return f"{self.weight_layout},{self.attention},{self.norm}"


STANDARD_KERNELS = Kernels(weight_layout="input-major", attention="products", norm="two-step")
"""Used where nothing was measured; they run on every device and in every dtype."""


def parse_kernels(label: str) -> Kernels:
    """The kernels of a label.

    Raises:
        ValueError: it is not one name of each kind, in order.
    """
    kinds = (get_args(WeightLayout), get_args(AttentionKernel), get_args(NormKernel))
    names = label.split(",")
    if len(names) != len(kinds) or any(name not in kind for name, kind in zip(names, kinds, strict=True)):
        expected = ", ".join(" or ".join(kind) for kind in kinds)
        raise ValueError(f"kernels {label!r}: expected three names joined by commas: {expected}")
    layout, attention, norm = names
    return Kernels(weight_layout=layout, attention=attention, norm=norm)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelTrial:
    """Seconds of one layer and of the head with some kernels, measured on the device that they are chosen for."""

    kernels: Kernels
    draft_layer_s: Seconds
    """A layer of the draft's shape, one row."""
    draft_head_s: Seconds
    """The draft's final norm and head, one row."""
    target_layer_s: Seconds
    """A layer of the target's shape, `TRIAL_ROWS` rows."""
    target_head_s: Seconds
    """The target's final norm and head, `TRIAL_ROWS` rows."""


TRIAL_ROWS: Tokens = 5
"""Of the verification in a trial."""


def trial_round_s(trial: KernelTrial, *, draft_layers: int, target_layers: int) -> Seconds:
    """The products of one round: `TRIAL_ROWS` - 1 drafted tokens at the draft's full depth, and their verification."""
    token_s = draft_layers * trial.draft_layer_s + trial.draft_head_s
    return (TRIAL_ROWS - 1) * token_s + target_layers * trial.target_layer_s + trial.target_head_s


def fastest_kernels(trials: Sequence[KernelTrial], *, draft_layers: int, target_layers: int) -> Kernels:
    """The kernels of the trial with the shortest round; of equals the first."""
    return min(trials, key=lambda one: trial_round_s(one, draft_layers=draft_layers, target_layers=target_layers)).kernels
