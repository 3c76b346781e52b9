"""The layers of a decoder in operations that suit torch.compile: they return new tensors and use a static cache.

The arithmetic of the lean decoder (s2d/model/decoder.py) without operations that a compiler cannot fuse: no `out=`, no views
of one buffer, no complex numbers. Rotary embedding pairs the components of a head by halves, so each half is read
contiguously.

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
"""Compiled widths. Other widths, for example the prompt's, run eagerly, because each width would be compiled separately."""


class PlainLayers(torch.nn.Module):
    """All layers of a decoder of the reference family: as many KV heads as heads, no biases, no norms of heads.

    Args:
        decoder: the decoder with the layers.
        max_tokens: the length of the longest text.
        by_sums: compute the products of a single row as sums, so the compiler and no library generates them.
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
        """Run rows through all layers and store their KV.

        Args:
            states: [T, D].
            positions: int64 [T].
            end: S. A row attends to positions up to its own.

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
        """Rows over their RMS. The factor sqrt(D) is part of the next matrix."""
        return states * torch.rsqrt(states.square().sum(-1, keepdim=True) + self._squared_floor)

    def _product(self, rows: Tensor, matrix: Tensor) -> Tensor:
        if self._by_sums and len(rows) == 1:
            return (rows * matrix.mT).sum(-1)[None]
        return rows @ matrix

    def _attended(self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Attention: [T, N, H] over [N, S, H] keys and values -> [T, N H]."""
        if self._by_sums and len(q) == 1:
            scores = (q[0][:, None] * keys).sum(-1) + mask  # [N, S]
            return (scores.softmax(-1)[:, :, None] * values).sum(1).flatten()[None]
        scores = q.transpose(0, 1) @ keys.mT + mask  # [N, T, S]
        return (scores.softmax(-1) @ values).transpose(0, 1).flatten(1)


class _PlainLayer(torch.nn.Module):
    """The matrices and the cache of one layer."""

    def __init__(self, weights: LayerWeights, geometry: ModelGeometry, max_tokens: int, *, by_sums: bool) -> None:
        super().__init__()
        matrices = {
            "qkv": _in_halves(weights.qkv, geometry),
            "attn_out": weights.attn_out,
            "gate_up": weights.gate_up,
            "down": weights.down,
        }
        for name, matrix in matrices.items():
            # Summed values are contiguous.
            stored = matrix.mT.contiguous().mT if by_sums else matrix.contiguous()
            self.register_parameter(name, torch.nn.Parameter(stored, requires_grad=False))
        for name in ("keys", "values"):
            self.register_buffer(name, torch.zeros(geometry.num_heads, max_tokens, geometry.head_dim))


def _in_halves(qkv: Tensor, geometry: ModelGeometry) -> Tensor:
    """Columns of Q and K reordered from pairs to halves: [D, 3 N H]. This undoes the order of `s2d.loading.convert_weights` for
    complex products.
    """
    heads = qkv.unflatten(1, (3, -1, geometry.head_dim)).clone()
    heads[:, :2] = heads[:, :2].unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
    return heads.flatten(1)


def _turned(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads rotated by the angles of their rows: [T, 2, N, H]."""
    first, second = heads.chunk(2, -1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), -1)


class PlainDecoder(Decoder):
    """A decoder whose layers are `PlainLayers`. It has a single cache, for one text.

    Args:
        decoder: the decoder with the weights.
        max_tokens: the length of the longest text.
        by_sums: see `PlainLayers`.
        compiled: compiles the layers for passes of `COMPILED_ROWS`.
        is_static: attend over the whole cache with a mask, so every pass has the same shapes.
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
    """The lean decoder, with its passes of `COMPILED_ROWS` compiled.

    Args:
        decoder: the decoder with the weights.
        compiled: compiles the function that runs the layers.
    """

    def __init__(self, decoder: Decoder, compiled: Callable[[Callable[..., None]], Callable[..., None]]) -> None:
        super().__init__(decoder.geometry, decoder.weights)
        self._compiled = compiled(super()._run_layers)

    def _run_layers(self, x: Tensor, out: Tensor, segment: Segment, cache: Cache, start: int) -> None:
        run = self._compiled if len(x) in COMPILED_ROWS else super()._run_layers
        run(x, out, segment, cache, start)
