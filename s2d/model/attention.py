"""Attention of one layer: norms of Q and K, rotation, and attention over the cache.

Symbols: T new tokens, S cached and new, N heads, K kv heads, H head dim.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from s2d.model.buffers import PassBuffers

MIN_FUSED_ROWS = 64
"""From this number of rows on, fused attention is faster than three small products. It also keeps no [T, S] scores."""

RotateFunction = Callable[[PassBuffers, Any, Tensor, Tensor], None]
"""Rotates Q in place and writes K and V to the cache. Arguments: buffers, destination, factors for Q, factors for K and V."""


class ScatterTarget(NamedTuple):
    """Where a captured pass writes K and V of one layer: at positions that are stored on the device."""

    cached: Tensor  # [S, 2, K, H], the cache of the layer
    positions: Tensor  # int64 [T]
    staging: Tensor  # [T, 2, K, H]
    staging_view: Tensor  # the same memory, as the rotation writes it


class VarlenLengths(NamedTuple):
    """Lengths of the only sequence in a captured pass. `attend_varlen` reads them on the device."""

    query_bounds: Tensor  # int32 [2]: 0 and T
    key_bounds: Tensor  # int32 [2]: 0 and S
    used_tokens: Tensor  # int32 [1]: tokens up to and including the last new row
    max_tokens: int
    """S, the capacity of the cache."""


def norm_heads(buffers: PassBuffers, gain: Tensor, eps_length: Tensor) -> None:
    """Divide Q and K by their RMS per head and multiply by the gain, in place.

    Args:
        buffers: hold Q and K, unscaled.
        gain: [N + K, H].
        eps_length: sqrt(H eps), a scalar.
    """
    torch.linalg.vector_norm(buffers.qk, 2, -1, True, dtype=torch.float32, out=buffers.qk_norm)
    torch.hypot(buffers.qk_norm, eps_length, out=buffers.qk_norm)
    buffers.qk.div_(buffers.qk_norm).mul_(gain)


def rotate_complex(buffers: PassBuffers, out: Tensor, q_factors: Tensor, kv_factors: Tensor) -> None:
    """Rotate by one complex product for Q and one for K and V."""
    buffers.rotary_q.mul_(q_factors)
    torch.mul(buffers.rotary_kv, kv_factors, out=out)


def rotate_real(buffers: PassBuffers, out: Tensor, q_factors: Tensor, kv_factors: Tensor) -> None:
    """Rotate in half precision, which has no complex numbers: (a, b) cos + (b, a) (-sin, sin)."""
    swapped = buffers.heads.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    num_heads = buffers.rotary_q.shape[1]
    buffers.rotary_q.mul_(q_factors[:, 0]).addcmul_(swapped[:, :num_heads], q_factors[:, 1])
    swapped_kv = swapped[:, num_heads:].view_as(buffers.rotary_kv)
    torch.mul(buffers.rotary_kv, kv_factors[:, 0], out=out)
    out.addcmul_(swapped_kv, kv_factors[:, 1])


def with_scatter(rotate: RotateFunction) -> RotateFunction:
    """A rotation that writes to a staging buffer and then scatters the rows to their positions in the cache."""

    def rotate_and_scatter(buffers: PassBuffers, target: ScatterTarget, q_factors: Tensor, kv_factors: Tensor) -> None:
        rotate(buffers, target.staging_view, q_factors, kv_factors)
        target.cached.index_copy_(0, target.positions, target.staging)

    return rotate_and_scatter


def attend(buffers: PassBuffers, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Causal attention of fewer than `MIN_FUSED_ROWS` rows, as matrix products and a softmax: [T, N H].

    Args:
        buffers: hold Q, already scaled.
        key: [K, H, S].
        value: [K, S, H].
        mask: [T, S], additive; None for a single row.
    """
    if mask is None:
        torch.bmm(torch.softmax(torch.bmm(buffers.q_flat, key), -1), value, out=buffers.attn_by_head)  # type: ignore[arg-type]
        return buffers.attn
    if buffers.q_flat is not None:
        scores = torch.baddbmm(mask, buffers.q_flat, key)
    else:
        scores = torch.bmm(buffers.q.flatten(1, 2), key)
        scores.unflatten(1, (-1, len(mask))).add_(mask)
    torch.bmm(torch.softmax(scores, -1), value, out=buffers.attn_by_head)
    if len(mask) > 1:
        buffers.attn.view_as(buffers.attn_by_row).copy_(buffers.attn_by_row)
    return buffers.attn


def attend_fused(buffers: PassBuffers, key: Tensor, value: Tensor, cached_tokens: int) -> Tensor:
    """Causal attention of `MIN_FUSED_ROWS` or more rows, by a fused kernel that stores no [T, S] scores: [T, N H].

    On a GPU no dense mask is built either. A mask or grouped heads can make PyTorch choose a kernel that does store the
    scores: flash attention accepts no mask, and the memory-efficient kernel, the only fused one in fp32, accepts no grouped
    heads. So causality is a flag, and in fp32 each KV head is repeated for its group.

    Args:
        buffers: hold Q, already scaled.
        key: [K, H, S].
        value: [K, S, H].
        cached_tokens: S minus the new rows.
    """
    q, keys, values = buffers.q.flatten(0, 1)[None], key.mT[None], value[None]  # [1, N, T, H], and [1, K, S, H] twice
    group = q.shape[1] // keys.shape[1]
    if group > 1 and q.is_cuda and q.dtype == torch.float32:
        keys, values, group = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1), 1
    attention = partial(scaled_dot_product_attention, q, keys, values, scale=1.0, enable_gqa=group > 1)
    if not cached_tokens:
        out = attention(is_causal=True)
    elif q.is_cuda:
        from torch.nn.attention.bias import causal_lower_right  # imports torch's compiler, which takes seconds

        out = attention(causal_lower_right(q.shape[2], keys.shape[2]))
    else:
        out = attention(q.new_ones(q.shape[2], keys.shape[2], dtype=torch.bool).tril_(cached_tokens))
    return out[0].transpose(0, 1).flatten(1)


def attend_varlen(buffers: PassBuffers, key: Tensor, value: Tensor, lengths: VarlenLengths) -> Tensor:
    """Causal attention of a few rows by flash attention, over the used part of the cache: [T, N H].

    Args:
        buffers: hold Q, already scaled.
        key: [S, K, H].
        value: [S, K, H].
        lengths: the new rows are the last T of the used tokens.
    """
    from torch.nn.attention.varlen import varlen_attn_out  # absent before PyTorch 2.13

    queries = buffers.heads[:, : buffers.rotary_q.shape[1]]  # [T, N, H]
    varlen_attn_out(
        buffers.attn.view_as(queries),
        queries,
        key,
        value,
        lengths.query_bounds,
        lengths.key_bounds,
        len(queries),
        lengths.max_tokens,
        scale=1.0,
        window_size=(-1, 0),
        enable_gqa=queries.shape[1] != key.shape[1],
        seqused_k=lengths.used_tokens,
    )
    return buffers.attn
