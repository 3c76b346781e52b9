"""CUDA-only operations, computed on CPU tensors. A replay calls them again, and they read their tensors again."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tests.gpu_simulator import active

MAX_HEAD_DIM = 256
"""Limit of the flash attention kernels."""


def mm_as(left: Tensor, right: Tensor, out_dtype: torch.dtype) -> Tensor:
    """`torch.mm(left, right, out_dtype=...)`: accumulated in fp32, rounded once."""
    _check_out_dtype(left, out_dtype)
    return torch.mm(left.float(), right.float()).to(out_dtype)


def mm_as_out(left: Tensor, right: Tensor, out_dtype: torch.dtype, *, out: Tensor) -> Tensor:
    """`torch.mm(left, right, out_dtype=..., out=out)`."""
    if out.dtype != out_dtype:
        raise RuntimeError(f"out_dtype {out_dtype} must be the dtype of out, which is {out.dtype}")
    return out.copy_(mm_as(left, right, out_dtype))


def bmm_as(left: Tensor, right: Tensor, out_dtype: torch.dtype) -> Tensor:
    """`torch.bmm(left, right, out_dtype=...)`."""
    _check_out_dtype(left, out_dtype)
    return torch.bmm(left.float(), right.float()).to(out_dtype)


def addmm_as(
    added: Tensor, left: Tensor, right: Tensor, out_dtype: torch.dtype, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    """`torch.addmm(added, left, right, out_dtype=...)`."""
    _check_out_dtype(left, out_dtype)
    return torch.addmm(added.float(), left.float(), right.float(), beta=beta, alpha=alpha).to(out_dtype)


def _check_out_dtype(left: Tensor, out_dtype: torch.dtype) -> None:
    is_widened = out_dtype == torch.float32 and left.dtype in (torch.float16, torch.bfloat16)
    if out_dtype != left.dtype and not is_widened:
        raise RuntimeError(
            f"out_dtype {out_dtype} of a product of {left.dtype}: expected the same type, or fp32 for fp16 and bf16"
        )


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *more: Any,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """`torch.ops.torch_attn._varlen_attn`."""
    out = torch.zeros_like(query)
    lse = varlen_attention_out(out, query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *more, **options)
    return out, lse, torch.zeros(2, dtype=torch.uint64)


def varlen_attention_out(
    out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    is_causal: bool = False,
    scale: float | None = None,
    window_size: list[int] | None = None,
    enable_gqa: bool = False,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> Tensor:
    """`torch.ops.torch_attn._varlen_attn_out`: attention of packed sequences, whose lengths are read from tensors.

    Causal attention is aligned to the bottom right: query i of T sees the keys up to `seqused_k - T + i`. Keys and values
    beyond `seqused_k` are never read.

    Returns:
        the log-sum-exp of the scores, [N, T].
    """
    _check_varlen(query, key, value, cu_seq_q, cu_seq_k, seqused_k, block_table)
    left, right = window_size or (-1, -1)
    right = 0 if is_causal else right
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    lse = torch.full((query.shape[1], query.shape[0]), torch.inf)
    begins = cu_seq_q.tolist()
    for number, (begin, end) in enumerate(pairwise(begins)):
        if end - begin > max_q:
            raise RuntimeError(f"sequence {number} has {end - begin} queries, expected at most max_q = {max_q}")
        keys, values = _used_keys_and_values(number, key, value, cu_seq_k, seqused_k, block_table)
        rows = slice(begin, end)
        out[rows], lse[:, rows] = _attend(query[rows].float(), keys.float(), values.float(), scale, left, right)
    return lse


def _used_keys_and_values(
    number: int, key: Tensor, value: Tensor, cu_seq_k: Tensor | None, seqused_k: Tensor | None, block_table: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The used keys and values of a sequence: [S, K, H] each."""
    if block_table is not None:
        pages = block_table[number].tolist()
        key, value = (torch.cat([x[page] for page in pages if page >= 0]) for x in (key, value))
        begin, end = 0, len(key)
    else:
        assert cu_seq_k is not None
        begin, end = cu_seq_k[number : number + 2].tolist()
    if seqused_k is not None:
        used = int(seqused_k[number])
        if not 0 <= used <= end - begin:
            raise RuntimeError(f"seqused_k[{number}] is {used}, expected 0 to {end - begin}, the number of keys")
        end = begin + used
    return key[begin:end], value[begin:end]


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, left: int, right: int) -> tuple[Tensor, Tensor]:
    """Attention of a sequence: [T, N, H] and [N, T], zero where a query attends to nothing."""
    num_rows, num_keys = len(q), len(k)
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = torch.einsum("tnh,snh->nts", q, k) * scale
    ahead = torch.arange(num_keys) - (
        torch.arange(num_rows)[:, None] + num_keys - num_rows
    )  # distance to the query's own position
    is_hidden = torch.zeros(num_rows, num_keys, dtype=torch.bool)
    if right >= 0:
        is_hidden |= ahead > right
    if left >= 0:
        is_hidden |= ahead < -left
    scores = scores.masked_fill(is_hidden, -torch.inf)
    is_empty = is_hidden.all(-1)
    weights = scores.softmax(-1).masked_fill(is_empty[:, None], 0)
    lse = scores.logsumexp(-1).masked_fill(is_empty, torch.inf)
    return torch.einsum("nts,snh->tnh", weights, v), lse


def _check_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    seqused_k: Tensor | None,
    block_table: Tensor | None,
) -> None:
    """Raise the errors of the flash attention kernel."""
    properties = active.simulator().properties
    if properties.major < 8:
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")
    if query.dtype not in (torch.float16, torch.bfloat16) or not query.dtype == key.dtype == value.dtype:
        raise RuntimeError(
            f"FlashAttention only support fp16 and bf16 data type, got {query.dtype}, {key.dtype}, {value.dtype}"
        )
    if query.shape[-1] % 8 or query.shape[-1] > MAX_HEAD_DIM:
        raise RuntimeError(f"head_size must be a multiple of 8 of at most {MAX_HEAD_DIM}, got {query.shape[-1]}")
    if any(x.stride(-1) != 1 for x in (query, key, value)):
        raise RuntimeError("Input tensor must have contiguous last dimension")
    for name, lengths in (("cu_seq_q", cu_seq_q), ("cu_seq_k", cu_seq_k), ("seqused_k", seqused_k)):
        if lengths is not None and lengths.dtype != torch.int32:
            raise RuntimeError(f"{name} must have dtype int32, got {lengths.dtype}")
    if cu_seq_k is None and block_table is None:
        raise RuntimeError("cu_seq_k must be given without a block_table")


aten = torch.ops.aten


def emulations() -> dict[Any, Callable[..., Any]]:
    """Replacements of operations that the CPU lacks."""
    replacements: dict[Any, Callable[..., Any]] = {
        aten.mm.dtype: mm_as,
        aten.mm.dtype_out: mm_as_out,
        aten.bmm.dtype: bmm_as,
        aten.addmm.dtype: addmm_as,
    }
    try:
        import torch.nn.attention.varlen
    except ImportError:
        return replacements
    operations = torch.ops.torch_attn
    replacements[operations._varlen_attn.default] = varlen_attention
    if hasattr(operations, "_varlen_attn_out"):
        replacements[operations._varlen_attn_out.default] = varlen_attention_out
    return replacements
