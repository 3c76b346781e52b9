"""A decoder's layers as torch.compile likes them: plain operations that allocate what they return, over a static cache.

The lean decoder's arithmetic (s2d/model/decoder.py) without what a compiler cannot fuse: no `out=`, no views of one buffer, no complex
numbers. A head's components are turned in halves and not in pairs, so that they are read in one piece.

Symbols: T new tokens, S cached and new, D hidden, F mlp, N heads, H head dim.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import silu

from perfmodel.models.geometry import ModelGeometry
from s2d.model.cache import Cache, Segment
from s2d.model.decoder import Decoder
from s2d.model.rotary import complex_rotations
from s2d.model.weights import LayerWeights
from shared import common  # noqa: F401 makes the checkout importable

COMPILED_ROWS = (1, 5)
"""Passes of other widths, a prompt's among them, run as they are written: each width would be compiled apart."""


class PlainLayers(torch.nn.Module):
    """All layers of a decoder of the reference family: a KV head for every head, no biases, no norms of heads.

    Args:
        decoder: whose layers.
        max_tokens: the longest text.
        by_sums: write the products of a single row as sums, which leaves nothing to a library and everything to the compiler.
    """

    def __init__(self, decoder: Decoder, max_tokens: int, *, by_sums: bool) -> None:
        super().__init__()
        geometry, weights = decoder.geometry, decoder.weights
        assert geometry.num_heads == geometry.num_kv_heads
        layers = (_PlainLayer(layer, geometry, max_tokens, by_sums=by_sums) for layer in weights.layers)
        self.layers = torch.nn.ModuleList(layers)
        turns = complex_rotations(weights.rotary, max_tokens)  # [positions, H / 2]
        self.register_buffer("cos", turns.real.contiguous())
        self.register_buffer("sin", turns.imag.contiguous())
        self._squared_floor = geometry.hidden_size * weights.norm_eps
        self._head_dim = geometry.head_dim
        self._by_sums = by_sums

    def forward(self, states: Tensor, positions: Tensor, end: int) -> Tensor:
        """Push rows through all layers and keep their KV.

        Args:
            states: [T, D].
            positions: int64 [T].
            end: S, of which a row sees those up to its own position.

        Returns:
            [T, D].
        """
        cos, sin = self.cos[positions][:, None, None], self.sin[positions][:, None, None]
        mask = torch.where(torch.arange(end) > positions[:, None], -torch.inf, 0.0)  # [T, S]
        for layer in self.layers:
            heads = self._product(self._normed(states), layer.qkv).unflatten(-1, (3, -1, self._head_dim))  # [T, 3, N, H]
            q, k = _turned(heads[:, :2], cos, sin).unbind(1)
            layer.keys.index_copy_(1, positions, k.transpose(0, 1))
            layer.values.index_copy_(1, positions, heads[:, 2].transpose(0, 1))
            mixed = self._attended(q, layer.keys[:, :end], layer.values[:, :end], mask)
            states = states + self._product(mixed, layer.attn_out)
            gate, up = self._product(self._normed(states), layer.gate_up).chunk(2, -1)
            states = states + self._product(silu(gate) * up, layer.down)
        return states

    def _normed(self, states: Tensor) -> Tensor:
        """Rows over their RMS, sqrt(D) left to the matrix that follows."""
        return states * torch.rsqrt(states.square().sum(-1, keepdim=True) + self._squared_floor)

    def _product(self, rows: Tensor, matrix: Tensor) -> Tensor:
        if self._by_sums and len(rows) == 1:
            return (rows * matrix.mT).sum(-1)[None]
        return rows @ matrix

    def _attended(self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Attention: [T, N, H] over a [N, S, H] each -> [T, N H]."""
        if self._by_sums and len(q) == 1:
            scores = (q[0][:, None] * keys).sum(-1) + mask  # [N, S]
            return (scores.softmax(-1)[:, :, None] * values).sum(1).flatten()[None]
        scores = q.transpose(0, 1) @ keys.mT + mask  # [N, T, S]
        return (scores.softmax(-1) @ values).transpose(0, 1).flatten(1)


class _PlainLayer(torch.nn.Module):
    """One layer's matrices, and its cache."""

    def __init__(self, weights: LayerWeights, geometry: ModelGeometry, max_tokens: int, *, by_sums: bool) -> None:
        super().__init__()
        matrices = {
            "qkv": _in_halves(weights.qkv, geometry),
            "attn_out": weights.attn_out,
            "gate_up": weights.gate_up,
            "down": weights.down,
        }
        for name, matrix in matrices.items():
            # What is summed up lies in one piece.
            stored = matrix.mT.contiguous().mT if by_sums else matrix.contiguous()
            self.register_parameter(name, torch.nn.Parameter(stored, requires_grad=False))
        for name in ("keys", "values"):
            self.register_buffer(name, torch.zeros(geometry.num_heads, max_tokens, geometry.head_dim))


def _in_halves(qkv: Tensor, geometry: ModelGeometry) -> Tensor:
    """Columns of Q and K from pairs back to halves, which undoes what `s2d.loading.convert_weights` does for complex products: [D, 3 N H]."""
    heads = qkv.unflatten(1, (3, -1, geometry.head_dim)).clone()
    heads[:, :2] = heads[:, :2].unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
    return heads.flatten(1)


def _turned(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Every head turned by its row's angles: [T, 2, N, H]."""
    first, second = heads.chunk(2, -1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), -1)


class PlainDecoder(Decoder):
    """A decoder whose layers are `PlainLayers`. They hold one text: it has one cache.

    Args:
        decoder: whose weights.
        max_tokens: the longest text.
        by_sums: see `PlainLayers`.
        compiled: what is made of the layers for passes of `COMPILED_ROWS`.
        is_static: attend over the whole cache and mask what is not there yet, so that every pass has the same shapes.
    """

    def __init__(
        self,
        decoder: Decoder,
        max_tokens: int,
        *,
        by_sums: bool,
        compiled: Callable[[PlainLayers], Callable[..., Tensor]],
        is_static: bool,
    ) -> None:
        super().__init__(decoder.geometry, decoder.weights)
        self._layers = PlainLayers(decoder, max_tokens, by_sums=by_sums)
        self._compiled = compiled(self._layers)
        self._positions = torch.arange(max_tokens)
        self._is_static = is_static

    def _run_layers(self, x: Tensor, out: Tensor, segment: Segment, cache: Cache, start: int) -> None:
        assert segment.start == 0
        assert segment.end == self.geometry.num_layers
        run = self._compiled if len(x) in COMPILED_ROWS else self._layers
        end, width = start + len(x), self.geometry.hidden_size
        out[:, :width] = run(x[:, :width], self._positions[start:end], len(self._positions) if self._is_static else end)


class CompiledLeanDecoder(Decoder):
    """The lean decoder as it is, its passes of `COMPILED_ROWS` compiled.

    Args:
        decoder: whose weights.
        compiled: what is made of running the layers.
    """

    def __init__(self, decoder: Decoder, compiled: Callable[[Callable[..., None]], Callable[..., None]]) -> None:
        super().__init__(decoder.geometry, decoder.weights)
        self._compiled = compiled(super()._run_layers)

    def _run_layers(self, x: Tensor, out: Tensor, segment: Segment, cache: Cache, start: int) -> None:
        run = self._compiled if len(x) in COMPILED_ROWS else super()._run_layers
        run(x, out, segment, cache, start)
