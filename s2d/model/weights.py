"""A decoder's numbers as its arithmetic wants them: gains, scales and the rotation's interleaving folded in.

Symbols: S positions, D hidden, F mlp, N heads, K kv heads, H head dim, V vocab, U tokens the head can say.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from perfmodel.passes.kernels import STANDARD_KERNELS, Kernels, WeightLayout
from s2d.model.rotary import Rotary

PAD = 16
"""Components appended to a residual row: sqrt(D eps) and zeros, so that rows stay aligned."""
ROW_ALIGNMENT = 16
"""Rows of a matrix start at multiples of this many numbers: 32 bytes in half precision. Products of unaligned rows are slow."""
_HEAD_ALIGNMENT = 64


def row_stride(outputs: int) -> int:
    """Distance of a matrix's rows in memory, in numbers."""
    return _rounded_up(outputs, ROW_ALIGNMENT)


def head_stride(outputs: int) -> int:
    """Distance of a head's rows in memory, in numbers: aligned, and never a power of two.

    Rows a power of two apart fall into the same few cache sets: at [128, 2048] a product with 5 rows takes 82 µs, and 53 µs
    with this gap.
    """
    return _rounded_up(outputs, _HEAD_ALIGNMENT) + PAD


def new_matrix(
    inputs: int, outputs: int, dtype: torch.dtype, device: torch.device | str, layout: WeightLayout = "input-major"
) -> Tensor:
    """Uninitialised memory for a matrix that is applied from the right: [inputs, outputs].

    Every matrix of a decoder is made here, so that this function alone decides how they lie in memory.
    """
    if layout == "output-major":
        return torch.empty(outputs, row_stride(inputs), dtype=dtype, device=device)[:, :inputs].t()
    return torch.empty(inputs, row_stride(outputs), dtype=dtype, device=device)[:, :outputs]


def new_head(
    inputs: int, outputs: int, dtype: torch.dtype, device: torch.device | str, layout: WeightLayout = "input-major"
) -> Tensor:
    """Uninitialised memory for a head, [D, U]; input-major rows are `head_stride` apart."""
    if layout == "output-major":
        return new_matrix(inputs, outputs, dtype, device, layout)
    return new_matrix(inputs, head_stride(outputs), dtype, device)[:, :outputs]


def layout_of(matrix: Tensor) -> WeightLayout:
    """How a matrix of `new_matrix` lies in memory."""
    return "output-major" if matrix.stride(0) == 1 else "input-major"


def new_embedding(tokens: int, width: int, norm_eps: float, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Memory for the residual rows of all tokens, [V, D + PAD], with the components after D set."""
    rows = torch.empty(tokens, width + PAD, dtype=dtype, device=device)
    rows[:, width:] = 0
    rows[:, width] = math.sqrt(width * norm_eps)
    return rows


def _rounded_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """One layer: matrices applied from the right. What may be None is None where the family has no such thing."""

    qkv: Tensor  # [D, (N + 2K) H]; Q scaled by 1 / sqrt(H) unless normed; Q and K interleaved for the complex rotation
    qkv_bias: Tensor | None = None  # [(N + 2K) H], scaled and interleaved alike
    qk_gain: Tensor | None = None  # [N + K, H], of the norm of every head's Q and K; Q's scale is in it
    attn_out: Tensor  # [N H, D]
    attn_out_bias: Tensor | None = None  # [D]
    gate_up: Tensor  # [D, 2F]
    gate_up_bias: Tensor | None = None  # [2F]
    down: Tensor  # [F, D]
    down_bias: Tensor | None = None  # [D]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderWeights:
    """All of a decoder's numbers."""

    embedding: Tensor  # [V, D + PAD], the components after D already set
    layers: tuple[LayerWeights, ...]
    head: Tensor  # [D, U], the final norm's gain folded in; shared by every exit
    head_token_ids: Tensor | None = (
        None  # int64 [U], the tokens of the head's columns; None where they are the vocabulary's, in order
    )
    rotary: Rotary
    norm_eps: float
    kernels: Kernels = STANDARD_KERNELS
    """The implementations that the matrices are folded for."""
