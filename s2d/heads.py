"""What a layer does head by head: norms of Q and K, the rotation, attention over the cache.

Symbols: T new tokens, S cached and new, N heads, K kv heads, H head dim.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from s2d.scratch import Scratch

MANY_ROWS = 64
"""From here on the fused attention kernel is faster than three small products, and keeps no [T, S] scores."""

Rotate = Callable[[Scratch, Any, Tensor, Tensor], None]
"""Turns the scratch's Q in place, and its K and V into where new rows are written, by the factors of their positions."""


class Slots(NamedTuple):
    """Rows of one layer's cache at places that are known to the device alone."""

    cached: Tensor  # [S, 2, K, H]
    places: Tensor  # int64 [T]
    fresh: Tensor  # [T, 2, K, H]
    written: Tensor  # the same memory, as a rotation writes it


def real_turn(turn: Tensor, dtype: torch.dtype) -> Tensor:
    """Factors for the two products of a real rotation: complex [..., H / 2] -> [2, ..., H] moved to [S, 2, ..., H]."""
    cos = turn.real.repeat_interleave(2, -1)
    sin = torch.stack((-turn.imag, turn.imag), dim=-1).flatten(-2)
    return torch.stack((cos, sin), dim=1).to(dtype)


def norm_heads(b: Scratch, gain: Tensor, floor: Tensor) -> None:
    """Every head's Q and K over their RMS, times their gain, in place.

    Args:
        b: holds them, unscaled.
        gain: [N + K, H].
        floor: sqrt(H eps), a scalar.
    """
    torch.linalg.vector_norm(b.qk, 2, -1, True, dtype=torch.float32, out=b.qk_norm)
    torch.hypot(b.qk_norm, floor, out=b.qk_norm)
    b.qk.div_(b.qk_norm).mul_(gain)


def rotate_complex(b: Scratch, write: Tensor, q_turn: Tensor, kv_turn: Tensor) -> None:
    """One product each."""
    b.q_turn.mul_(q_turn)
    torch.mul(b.kv_turn, kv_turn, out=write)


def rotate_real(b: Scratch, write: Tensor, q_turn: Tensor, kv_turn: Tensor) -> None:
    """The same in half precision, which has no complex numbers: (a, b) cos + (b, a) (-sin, sin)."""
    flipped = b.heads.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    num_heads = b.q_turn.shape[1]
    b.q_turn.mul_(q_turn[:, 0]).addcmul_(flipped[:, :num_heads], q_turn[:, 1])
    flipped_kv = flipped[:, num_heads:].view_as(b.kv_turn)
    torch.mul(b.kv_turn, kv_turn[:, 0], out=write)
    write.addcmul_(flipped_kv, kv_turn[:, 1])


def into_slots(rotate: Rotate) -> Rotate:
    """The same rotation, its rows then scattered to their places."""

    def rotate_and_scatter(b: Scratch, slots: Slots, q_turn: Tensor, kv_turn: Tensor) -> None:
        rotate(b, slots.written, q_turn, kv_turn)
        slots.cached.index_copy_(0, slots.places, slots.fresh)

    return rotate_and_scatter


def attend(b: Scratch, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Causal attention of the scratch's new rows over cached ones: [T, N H].

    Args:
        b: holds Q, scaled already.
        key: [K, H, S].
        value: [K, S, H].
        mask: [T, S] additive, None for one row.
    """
    if mask is None:
        torch.bmm(torch.softmax(torch.bmm(b.q_flat, key), -1), value, out=b.mixed)  # type: ignore[arg-type]
        return b.attn
    if len(mask) >= MANY_ROWS:
        return _attend_many(b, key, value, mask)
    if b.q_flat is not None:
        scores = torch.baddbmm(mask, b.q_flat, key)
    else:
        scores = torch.bmm(b.q.flatten(1, 2), key)
        scores.unflatten(1, (-1, len(mask))).add_(mask)
    torch.bmm(torch.softmax(scores, -1), value, out=b.mixed)
    if len(mask) > 1:
        b.attn.view_as(b.mixed_by_row).copy_(b.mixed_by_row)
    return b.attn


def _attend_many(b: Scratch, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """The same by the fused kernel, which keeps no scores."""
    q = b.q.flatten(0, 1)[None]
    mixed = scaled_dot_product_attention(q, key.mT[None], value[None], mask, scale=1.0, enable_gqa=q.shape[1] != len(key))
    return mixed[0].transpose(0, 1).flatten(1)
