"""One rank's shard of a decoder: its attention heads, and its parts of MLP and LM head.

The contribution of a layer to the residual is the sum of the contributions of the shards. In the matrices after a norm a shard
has the columns of its heads and of its part of the MLP; in the matrices before the residual it has the same rows. The latter
get columns of zeros for the padding of a row. Sums then run over whole rows, which are contiguous in memory.

The LM head is split by columns, equally many per rank, because rank 0 gathers the logits. If there is a remainder, the last
shards are filled with zeros, and rank 0 removes their logits.

Symbols: D hidden, F mlp, N heads, K kv heads, H head dim, U tokens in the head, R ranks.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from perfmodel.models.geometry import ModelGeometry, check_degree
from s2d.model.weights import PAD, LayerWeights, matrix_layout, new_head, new_matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Which part of every layer a rank holds.

    Args:
        rank: zero-based. Rank 0 also adds the biases that follow the sum.
        num_ranks: R.
    """

    rank: int
    num_ranks: int

    def check(self, geometry: ModelGeometry, *, fix: str) -> None:
        """Check that the layers of a model can be split evenly.

        Args:
            geometry: shapes of the whole model.
            fix: what to do otherwise, a sentence without its full stop.

        Raises:
            UserInputError: they cannot; the message lists the possible numbers of processes.
        """
        check_degree(geometry, self.num_ranks, noun="processes", fix=fix)

    def geometry(self, whole: ModelGeometry) -> ModelGeometry:
        """The geometry of the shard."""
        return replace(
            whole,
            num_heads=whole.num_heads // self.num_ranks,
            num_kv_heads=whole.num_kv_heads // self.num_ranks,
            intermediate_size=whole.intermediate_size // self.num_ranks,
        )

    def layer(self, whole: LayerWeights, geometry: ModelGeometry) -> LayerWeights:
        """The shard of one layer, copied.

        Args:
            whole: the converted weights of the layer.
            geometry: shapes of the whole model.
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
            attn_out_bias=_padded(whole.attn_out_bias) if is_first and whole.attn_out_bias is not None else None,
            gate_up=self._matrix_columns(whole.gate_up, halves),
            gate_up_bias=None if whole.gate_up_bias is None else self._columns(whole.gate_up_bias, halves),
            down=self._rows(whole.down),
            down_bias=_padded(whole.down_bias) if is_first and whole.down_bias is not None else None,
        )

    def head(self, whole: Tensor) -> Tensor:
        """The shard of the head, copied: [D, U] -> [D, ceil(U / R)].

        Args:
            whole: the converted head.
        """
        num_columns = -(-whole.shape[1] // self.num_ranks)
        first = self.rank * num_columns
        own = whole[:, first : first + num_columns]
        head = new_head(len(whole), num_columns, whole.dtype, whole.device, matrix_layout(whole)).zero_()
        head[:, : own.shape[1]] = own
        return head

    def _matrix_columns(self, whole: Tensor, block_sizes: list[int]) -> Tensor:
        """This rank's chunk of every block of a matrix's columns, side by side."""
        chunks = self._chunks(whole, block_sizes)
        widths = [chunk.shape[1] for chunk in chunks]
        out = new_matrix(len(whole), sum(widths), whole.dtype, whole.device, matrix_layout(whole))
        for columns, chunk in zip(out.split(widths, 1), chunks, strict=True):
            columns.copy_(chunk)
        return out

    def _columns(self, whole: Tensor, block_sizes: list[int] | tuple[int, ...]) -> Tensor:
        """This rank's chunk of every block of a bias or a gain."""
        return torch.cat(self._chunks(whole, block_sizes), -1)

    def _chunks(self, whole: Tensor, block_sizes: list[int] | tuple[int, ...]) -> list[Tensor]:
        return [block.chunk(self.num_ranks, -1)[self.rank] for block in whole.split(list(block_sizes), -1)]

    def _rows(self, whole: Tensor) -> Tensor:
        """This rank's rows, with zeros for the padding of a residual row: [rows / R, D + PAD]."""
        own = whole.chunk(self.num_ranks)[self.rank]
        rows = new_matrix(len(own), own.shape[1] + PAD, whole.dtype, whole.device, matrix_layout(whole))
        rows[:, : own.shape[1]] = own
        rows[:, own.shape[1] :] = 0
        return rows


def _padded(x: Tensor) -> Tensor:
    """Append zeros for the padding of a residual row: [..., D] -> [..., D + PAD]."""
    return pad(x, (0, PAD))
