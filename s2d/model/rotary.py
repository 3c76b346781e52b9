"""Rotary position embedding: the angles of a model, and tables of rotations by position.

A table is as long as the longest text of a session, not as the model's context: for 131,072 positions the tables of one decoder
would take hundreds of megabytes.

Symbols: S positions, H head dim.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotary:
    """Angles of a model's rotary embedding, and a factor on every rotation (YaRN's attention scaling)."""

    frequencies: Tensor  # float32 [H / 2], on the CPU: angle per position
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationTable:
    """Rotation factors of the first S positions, in the form that `s2d.model.attention` takes."""

    num_positions: int
    query: Tensor  # complex64 [S, 1, H / 2]; in half precision [S, 2, 1, H]
    key_value: Tensor  # complex64 [S, 2, 1, H / 2]; in half precision [S, 2, 2, 1, H]
    """V is not rotated: its factor is 1. With it, one product writes both halves of a cache row."""


def complex_rotations(rotary: Rotary, num_positions: int) -> Tensor:
    """exp(i m theta) times the scale for every position m: complex64 [S, H / 2], on the CPU."""
    angles = torch.outer(torch.arange(num_positions).float(), rotary.frequencies.float())
    return torch.polar(torch.full_like(angles, rotary.scale), angles)


def new_rotation_table(rotary: Rotary, num_positions: int, dtype: torch.dtype, device: torch.device) -> RotationTable:
    """A table for the first positions.

    Args:
        rotary: the angles of the model.
        num_positions: S.
        dtype: the dtype of the decoder. fp32 rotates by complex products, half precision by real ones.
        device: where the table is stored.
    """
    rotation = complex_rotations(rotary, num_positions)
    key_value = torch.stack((rotation, torch.ones_like(rotation)), dim=1)  # [S, 2, H / 2]
    if dtype == torch.float32:
        query, key_value = rotation[:, None], key_value[:, :, None]
    else:
        query, key_value = real_rotation(rotation, dtype)[:, :, None], real_rotation(key_value, dtype)[:, :, :, None]
    return RotationTable(num_positions=num_positions, query=query.to(device), key_value=key_value.to(device))


def real_rotation(rotation: Tensor, dtype: torch.dtype) -> Tensor:
    """Factors for the two products of a real rotation: complex [S, ..., H / 2] -> [S, 2, ..., H]."""
    cos = rotation.real.repeat_interleave(2, -1)
    sin = torch.stack((-rotation.imag, rotation.imag), dim=-1).flatten(-2)
    return torch.stack((cos, sin), dim=1).to(dtype)
