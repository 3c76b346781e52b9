"""What a layer does head by head: norms of Q and K, the rotation, attention over the cache.

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
"""From here on the fused attention kernel is faster than three small products, and keeps no [T, S] scores."""

RotateFunction = Callable[[PassBuffers, Any, Tensor, Tensor], None]
"""Rotations the buffers's Q in place, and its K and V into where new rows are written, by the factors of their positions."""


class ScatterTarget(NamedTuple):
    """Rows of one layer's cache at places that are known to the device alone."""

    cached: Tensor  # [S, 2, K, H]
    places: Tensor  # int64 [T]
    fresh: Tensor  # [T, 2, K, H]
    written: Tensor  # the same memory, as a rotation writes it


def norm_heads(b: PassBuffers, gain: Tensor, floor: Tensor) -> None:
    """Every head's Q and K over their RMS, times their gain, in place.

    Args:
        b: holds them, unscaled.
        gain: [N + K, H].
        floor: sqrt(H eps), a scalar.
    """
    torch.linalg.vector_norm(b.qk, 2, -1, True, dtype=torch.float32, out=b.qk_norm)
    torch.hypot(b.qk_norm, floor, out=b.qk_norm)
    b.qk.div_(b.qk_norm).mul_(gain)


def rotate_complex(b: PassBuffers, write: Tensor, q_turn: Tensor, kv_turn: Tensor) -> None:
    """One product each."""
    b.q_turn.mul_(q_turn)
    torch.mul(b.kv_turn, kv_turn, out=write)


def rotate_real(b: PassBuffers, write: Tensor, q_turn: Tensor, kv_turn: Tensor) -> None:
    """The same in half precision, which has no complex numbers: (a, b) cos + (b, a) (-sin, sin)."""
    flipped = b.heads.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    num_heads = b.q_turn.shape[1]
    b.q_turn.mul_(q_turn[:, 0]).addcmul_(flipped[:, :num_heads], q_turn[:, 1])
    flipped_kv = flipped[:, num_heads:].view_as(b.kv_turn)
    torch.mul(b.kv_turn, kv_turn[:, 0], out=write)
    write.addcmul_(flipped_kv, kv_turn[:, 1])


def with_scatter(rotate: RotateFunction) -> RotateFunction:
    """The same rotation, its rows then scattered to their places."""

    def rotate_and_scatter(b: PassBuffers, slots: ScatterTarget, q_turn: Tensor, kv_turn: Tensor) -> None:
        rotate(b, slots.written, q_turn, kv_turn)
        slots.cached.index_copy_(0, slots.places, slots.fresh)

    return rotate_and_scatter


def attend(b: PassBuffers, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Causal attention of a few new rows over cached ones, as products and a softmax: [T, N H].

    Args:
        b: holds Q, scaled already.
        key: [K, H, S].
        value: [K, S, H].
        mask: [T, S] additive, None for one row.
    """
    if mask is None:
        torch.bmm(torch.softmax(torch.bmm(b.q_flat, key), -1), value, out=b.mixed)  # type: ignore[arg-type]
        return b.attn
    if b.q_flat is not None:
        scores = torch.baddbmm(mask, b.q_flat, key)
    else:
        scores = torch.bmm(b.q.flatten(1, 2), key)
        scores.unflatten(1, (-1, len(mask))).add_(mask)
    torch.bmm(torch.softmax(scores, -1), value, out=b.mixed)
    if len(mask) > 1:
        b.attn.view_as(b.mixed_by_row).copy_(b.mixed_by_row)
    return b.attn


def attend_fused(b: PassBuffers, key: Tensor, value: Tensor, cached_tokens: int) -> Tensor:
    """The same of `MIN_FUSED_ROWS` or more, by a fused kernel that keeps no [T, S] scores and, on a GPU, no mask.

    A mask or grouped heads can send PyTorch to a kernel that does keep the scores: flash attention takes no mask, and the
    memory-efficient kernel, the only fused one in fp32, takes no grouped heads. So causality is a flag, and in fp32 every KV
    head is repeated for its group.

    Args:
        b: holds Q, scaled already.
        key: [K, H, S].
        value: [K, S, H].
        cached_tokens: S less the new rows.
    """
    q, keys, values = b.q.flatten(0, 1)[None], key.mT[None], value[None]  # [1, N, T, H], and [1, K, S, H] twice
    group = q.shape[1] // keys.shape[1]
    if group > 1 and q.is_cuda and q.dtype == torch.float32:
        keys, values, group = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1), 1
    attention = partial(scaled_dot_product_attention, q, keys, values, scale=1.0, enable_gqa=group > 1)
    if not cached_tokens:
        mixed = attention(is_causal=True)
    elif q.is_cuda:
        from torch.nn.attention.bias import causal_lower_right  # imports torch's compiler, which takes seconds

        mixed = attention(causal_lower_right(q.shape[2], keys.shape[2]))
    else:
        mixed = attention(q.new_ones(q.shape[2], keys.shape[2], dtype=torch.bool).tril_(cached_tokens))
    return mixed[0].transpose(0, 1).flatten(1)


class VarlenLengths(NamedTuple):
    """Where the rows of one captured pass stand, as `attend_varlen` reads it on the device."""

    row_bounds: Tensor  # int32 [2]: 0 and T
    token_bounds: Tensor  # int32 [2]: 0 and S
    used_tokens: Tensor  # int32 [1]: tokens up to the last new row, that one included
    max_tokens: int
    """S, the room of the cache."""


def attend_varlen(b: PassBuffers, key: Tensor, value: Tensor, reach: VarlenLengths) -> Tensor:
    """The same of a few rows by flash attention over as much of the cache as is in use: [T, N H].

    Args:
        b: holds Q, scaled already.
        key: [S, K, H].
        value: [S, K, H].
        reach: the last row stands at the last token in use, the others before it.
    """
    from torch.nn.attention.varlen import varlen_attn_out  # absent before PyTorch 2.13

    queries = b.heads[:, : b.q_turn.shape[1]]  # [T, N, H]
    varlen_attn_out(
        b.attn.view_as(queries),
        queries,
        key,
        value,
        reach.row_bounds,
        reach.token_bounds,
        len(queries),
        reach.max_tokens,
        scale=1.0,
        window_size=(-1, 0),
        enable_gqa=queries.shape[1] != key.shape[1],
        seqused_k=reach.used_tokens,
    )
    return b.attn
