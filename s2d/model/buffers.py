"""Preallocated buffers of a pass with a fixed number of rows. All layers share them.

Symbols: T new tokens, D hidden, F mlp, N heads, K kv heads, H head dim.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from perfmodel.models.geometry import ModelGeometry


@dataclass(frozen=True, slots=True, kw_only=True)
class PassBuffers:
    """Buffers of a pass, and the views that a layer uses."""

    norm: Tensor  # [T, 1]
    normed: Tensor  # [T, D]
    qkv: Tensor  # [T, (N + 2K) H]
    heads: Tensor  # [T, N + 2K, H], the same memory
    gate_up: Tensor  # [T, 2F]
    gate: Tensor  # [T, F]
    up: Tensor  # [T, F]
    qk: Tensor  # [T, N + K, H], the same memory as heads
    qk_norm: Tensor  # [T, N + K, 1]
    rotary_q: Tensor  # Q as the rotation takes it: complex [T, N, H / 2], or [T, N, H] in half precision
    rotary_kv: Tensor  # K and V likewise: complex [T, 2, K, H / 2], or [T, 2, K, H]
    q: Tensor  # [K, N / K, T, H], the same memory as heads
    q_flat: Tensor | None  # [K, (N / K) T, H], the same memory; None where the strides do not allow this view
    attn_by_head: Tensor  # [K, (N / K) T, H]
    attn_by_row: Tensor  # [T, N, H], the same memory
    attn: Tensor  # [T, N H]; for one row the same memory as attn_by_head


def new_buffers(geometry: ModelGeometry, rows: int, dtype: torch.dtype, device: torch.device) -> PassBuffers:
    """Buffers for passes with this number of rows through a decoder of this geometry."""

    def empty(*shape: int) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device=device)

    g = geometry
    is_complex, group = dtype == torch.float32, g.num_heads // g.num_kv_heads
    heads = empty(rows, g.num_heads + 2 * g.num_kv_heads, g.head_dim)
    kv = heads[:, g.num_heads :].unflatten(1, (2, g.num_kv_heads))
    q = heads[:, : g.num_heads].unflatten(1, (g.num_kv_heads, group)).permute(1, 2, 0, 3)
    attn_by_head = empty(g.num_kv_heads, group * rows, g.head_dim)
    gate_up = empty(rows, 2 * g.intermediate_size)
    return PassBuffers(
        norm=torch.empty(rows, 1, dtype=torch.float32, device=device),
        normed=empty(rows, g.hidden_size),
        qkv=heads.flatten(1),
        heads=heads,
        gate_up=gate_up,
        gate=gate_up[:, : g.intermediate_size],
        up=gate_up[:, g.intermediate_size :],
        qk=heads[:, : g.num_heads + g.num_kv_heads],
        qk_norm=torch.empty(rows, g.num_heads + g.num_kv_heads, 1, dtype=torch.float32, device=device),
        rotary_q=_as_complex(heads[:, : g.num_heads]) if is_complex else heads[:, : g.num_heads],
        rotary_kv=_as_complex(kv) if is_complex else kv,
        q=q,
        q_flat=q.flatten(1, 2) if rows == 1 or group == 1 else None,
        attn_by_head=attn_by_head,
        attn_by_row=attn_by_head.view(g.num_heads, rows, g.head_dim).transpose(0, 1),
        attn=attn_by_head.view(1, -1) if rows == 1 else empty(rows, g.num_heads * g.head_dim),
    )


def _as_complex(x: Tensor) -> Tensor:
    """[..., H] -> complex [..., H / 2], the same memory."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))
