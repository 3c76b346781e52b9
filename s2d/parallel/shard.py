"""One rank's share of a decoder: groups of heads, a stretch of the MLP and of the head, and rows as wide as the residual's.

What a layer adds to the residual is the sum of what the ranks' shares add: each has the columns of its heads and of its part of
the MLP in the matrices after a norm, and the same rows of the matrices before the residual. These get columns of zeros for the
rows' padding, so that a whole row is what is summed: it lies in one piece in memory.

The LM head is dealt out by its columns, as many to every rank, so that what they say can be gathered: where that leaves a
remainder, the last ranks' are filled up with zeros, and rank 0 cuts off what these say.

Symbols: D hidden, F mlp, N heads, K kv heads, H head dim, U tokens the head can say, R ranks.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from perfmodel.models.geometry import ModelGeometry, check_degree
from s2d.model.weights import PAD, LayerWeights, layout_of, new_head, new_matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Which part of every layer a rank holds.

    Args:
        rank: zero-based; the first also adds the biases that follow the sum.
        num_ranks: R.
    """

    rank: int
    num_ranks: int

    def check(self, geometry: ModelGeometry, *, otherwise: str) -> None:
        """Refuse a model whose layers cannot be dealt out evenly.

        Args:
            geometry: of the whole model.
            otherwise: what to do then, a whole sentence without its full stop.

        Raises:
            UserInputError: says which number of processes could.
        """
        check_degree(geometry, self.num_ranks, noun="processes", fix=otherwise)

    def geometry(self, whole: ModelGeometry) -> ModelGeometry:
        """The shapes of the share."""
        return replace(
            whole,
            num_heads=whole.num_heads // self.num_ranks,
            num_kv_heads=whole.num_kv_heads // self.num_ranks,
            intermediate_size=whole.intermediate_size // self.num_ranks,
        )

    def layer(self, whole: LayerWeights, geometry: ModelGeometry) -> LayerWeights:
        """The share of one layer, in memory of its own.

        Args:
            whole: as it was folded.
            geometry: of the whole model.
        """
        g = geometry
        heads = (g.num_heads, g.num_kv_heads)
        qkv = [count * g.head_dim for count in (*heads, g.num_kv_heads)]
        halves = [g.intermediate_size] * 2
        is_first = self.rank == 0
        return LayerWeights(
            qkv=self._matrix_columns(whole.qkv, qkv),
            qkv_bias=None if whole.qkv_bias is None else self._columns(whole.qkv_bias, qkv),
            qk_gain=None if whole.qk_gain is None else self._columns(whole.qk_gain.t(), heads).t().contiguous(),
            attn_out=self._rows(whole.attn_out),
            attn_out_bias=_widened(whole.attn_out_bias) if is_first and whole.attn_out_bias is not None else None,
            gate_up=self._matrix_columns(whole.gate_up, halves),
            gate_up_bias=None if whole.gate_up_bias is None else self._columns(whole.gate_up_bias, halves),
            down=self._rows(whole.down),
            down_bias=_widened(whole.down_bias) if is_first and whole.down_bias is not None else None,
        )

    def head(self, whole: Tensor) -> Tensor:
        """The share of the head, in memory of its own: [D, U] -> [D, ceil(U / R)].

        Args:
            whole: as it was folded.
        """
        num_columns = -(-whole.shape[1] // self.num_ranks)
        first = self.rank * num_columns
        own = whole[:, first : first + num_columns]
        head = new_head(len(whole), num_columns, whole.dtype, whole.device, layout_of(whole)).zero_()
        head[:, : own.shape[1]] = own
        return head

    def _matrix_columns(self, whole: Tensor, blocks: list[int]) -> Tensor:
        """This rank's stretch of every block of a matrix's columns, one after the other."""
        stretches = self._stretches(whole, blocks)
        num_columns = sum(one.shape[1] for one in stretches)
        out = new_matrix(len(whole), num_columns, whole.dtype, whole.device, layout_of(whole))
        for place, stretch in zip(out.split([one.shape[1] for one in stretches], 1), stretches, strict=True):
            place.copy_(stretch)
        return out

    def _columns(self, whole: Tensor, blocks: list[int] | tuple[int, ...]) -> Tensor:
        """The same of a bias or a gain."""
        return torch.cat(self._stretches(whole, blocks), -1)

    def _stretches(self, whole: Tensor, blocks: list[int] | tuple[int, ...]) -> list[Tensor]:
        return [block.chunk(self.num_ranks, -1)[self.rank] for block in whole.split(list(blocks), -1)]

    def _rows(self, whole: Tensor) -> Tensor:
        """This rank's rows, with zeros for a residual row's padding: [rows / R, D + PAD]."""
        own = whole.chunk(self.num_ranks)[self.rank]
        rows = new_matrix(len(own), own.shape[1] + PAD, whole.dtype, whole.device, layout_of(whole))
        rows[:, : own.shape[1]] = own
        rows[:, own.shape[1] :] = 0
        return rows


def _widened(x: Tensor) -> Tensor:
    """Zeros for the padding of a residual row: [..., D] -> [..., D + PAD]."""
    return pad(x, (0, PAD))
