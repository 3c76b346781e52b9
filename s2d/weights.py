"""A decoder's numbers as its arithmetic wants them: gains, scales and the rotation's interleaving folded in.

Symbols: S positions, D hidden, F mlp, N heads, K kv heads, H head dim, V vocab, U tokens the head can say.
"""

from dataclasses import dataclass

from torch import Tensor

from perfmodel.kernels import STANDARD_KERNELS, Kernels
from s2d.rotary import Rotary

PAD = 16
"""Components appended to a residual row: sqrt(D eps) and zeros, so that rows stay aligned."""


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
    said: Tensor | None = None  # int64 [U], the tokens of the head's columns; None where they are the vocabulary's, in order
    rotary: Rotary
    norm_eps: float
    kernels: Kernels = STANDARD_KERNELS
    """The implementations that the matrices are folded for."""
