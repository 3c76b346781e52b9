"""Weights of a decoder in its own layout, with gains and scales merged in.

Symbols: D hidden, F mlp, N heads, K kv heads, H head dim, V vocab, U tokens in the head.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from perfmodel.passes.kernels import STANDARD_KERNELS, Kernels, WeightLayout
from s2d.model.rotary import Rotary

PAD = 16
"""Components appended to a residual row: sqrt(D eps), and zeros that keep rows aligned."""
ROW_ALIGNMENT = 16
"""Rows of a matrix start at multiples of 16 numbers: 32 bytes in half precision. Products with unaligned rows are slow."""
_HEAD_ALIGNMENT = 64


def row_stride(outputs: int) -> int:
    """Distance between the rows of a matrix in memory, in numbers."""
    return _rounded_up(outputs, ROW_ALIGNMENT)


def head_stride(outputs: int) -> int:
    """Distance between the rows of a head in memory, in numbers: aligned, and never a power of two.

    Rows that are a power of two apart map to the same few cache sets: at [128, 2048] a product with 5 rows takes 82 µs, and
    53 µs with this distance.
    """
    return _rounded_up(outputs, _HEAD_ALIGNMENT) + PAD


def new_matrix(
    inputs: int, outputs: int, dtype: torch.dtype, device: torch.device | str, layout: WeightLayout = "input-major"
) -> Tensor:
    """Uninitialised memory for a matrix that is applied from the right: [inputs, outputs].

    Every matrix of a decoder is allocated here: only this function decides the memory layout.
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


def matrix_layout(matrix: Tensor) -> WeightLayout:
    """The memory layout of a matrix made by `new_matrix`."""
    return "output-major" if matrix.stride(0) == 1 else "input-major"


def new_embedding(tokens: int, width: int, norm_eps: float, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Memory for the residual rows of all tokens, [V, D + PAD], with the components after D already set."""
    rows = torch.empty(tokens, width + PAD, dtype=dtype, device=device)
    rows[:, width:] = 0
    rows[:, width] = math.sqrt(width * norm_eps)
    return rows


def _rounded_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """One layer: matrices applied from the right. Optional tensors are None in families without them."""

    qkv: Tensor  # [D, (N + 2K) H]; Q scaled by 1 / sqrt(H) unless it is normed; Q and K interleaved for the rotation
    qkv_bias: Tensor | None = None  # [(N + 2K) H], scaled and interleaved likewise
    qk_gain: Tensor | None = None  # [N + K, H], gain of the norms of Q and K per head; includes Q's scale
    attn_out: Tensor  # [N H, D]
    attn_out_bias: Tensor | None = None  # [D]
    gate_up: Tensor  # [D, 2F]
    gate_up_bias: Tensor | None = None  # [2F]
    down: Tensor  # [F, D]
    down_bias: Tensor | None = None  # [D]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderWeights:
    """All weights of a decoder."""

    embedding: Tensor  # [V, D + PAD], the components after D already set
    layers: tuple[LayerWeights, ...]
    head: Tensor  # [D, U], the final norm's gain merged in; shared by every exit
    head_token_ids: Tensor | None = None  # int64 [U], tokens of the head's columns; None if they are the vocabulary in order
    rotary: Rotary
    norm_eps: float
    kernels: Kernels = STANDARD_KERNELS
    """The kernels that the matrices are laid out for."""
