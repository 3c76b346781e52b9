"""Alternative kernels of the runtime, and the trials that choose among them.

All alternatives compute the same numbers up to rounding. The fastest one depends on the GPU, its libraries and the model's
shapes. `s2d-profile` therefore times them on the device and records the fastest; a plan from that profile runs with it.
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
    """The chosen implementation of each decoder part that has several."""

    weight_layout: WeightLayout
    """Memory layout of a matrix [in, out]: contiguous rows (input-major), or contiguous columns (output-major) as in
    `torch.nn.Linear`."""
    attention: AttentionKernel
    """Attention of captured passes: batched products and a softmax over a padded context, or `torch.nn.attention.varlen`, which
    reads the length on the device and needs a GPU and half precision."""
    norm: NormKernel
    """RMS norm in two steps (norm, division), or PyTorch's fused kernel."""

    @property
    def label(self) -> str:
        """`output-major,varlen,fused`, the format of `--kernels`."""
        return f"{self.weight_layout},{self.attention},{self.norm}"


STANDARD_KERNELS = Kernels(weight_layout="input-major", attention="products", norm="two-step")
"""Used without a measurement. They run on every device and in every dtype."""


def parse_kernels(label: str) -> Kernels:
    """The kernels of a label such as `output-major,varlen,fused`.

    Raises:
        ValueError: the label is not one name of each kind, in order.
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
    """Seconds of one layer and of the head with some kernels, measured on the device."""

    kernels: Kernels
    draft_layer_s: Seconds
    """One layer of the draft's shape, one row."""
    draft_head_s: Seconds
    """The draft's final norm and head, one row."""
    target_layer_s: Seconds
    """One layer of the target's shape, `TRIAL_ROWS` rows."""
    target_head_s: Seconds
    """The target's final norm and head, `TRIAL_ROWS` rows."""


TRIAL_ROWS: Tokens = 5
"""Rows of the verification in a trial."""


def trial_round_s(trial: KernelTrial, *, draft_layers: int, target_layers: int) -> Seconds:
    """Seconds of one round: `TRIAL_ROWS` - 1 tokens drafted at full depth, and their verification."""
    token_s = draft_layers * trial.draft_layer_s + trial.draft_head_s
    return (TRIAL_ROWS - 1) * token_s + target_layers * trial.target_layer_s + trial.target_head_s


def fastest_kernels(trials: Sequence[KernelTrial], *, draft_layers: int, target_layers: int) -> Kernels:
    """The kernels of the trial with the shortest round; the first of equal ones."""
    return min(trials, key=lambda trial: trial_round_s(trial, draft_layers=draft_layers, target_layers=target_layers)).kernels
