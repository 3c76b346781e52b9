"""The decoder: a Llama-family model over a static cache, with few operations per layer.

At hidden size 128 the time of a layer is the launch cost of its operations, not memory traffic. A layer therefore uses as few
operations as exactness allows:

    norm      the residual row has one more component, sqrt(D eps), which makes its length sqrt(D) times its RMS. The norm is
              two operations; sqrt(D) and the norm's gain are merged into the next matrix
    rotary    the two halves of a head are interleaved in the weights. One complex product then rotates K, copies V and writes
              both to the cache
    residual  added by the matrix product
    biases    of Q, K, V and of the MLP's first half added by the matrix product, in families that have them
    Q, K      normed per head in families that do this, with the scale of the scores merged into the gain

Symbols: T new tokens, S cached and new, D hidden, F mlp, N heads, K kv heads, H head dim, V vocab, U tokens in the head.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import silu

from perfmodel.core.units import Tokens
from perfmodel.models.geometry import ModelGeometry
from perfmodel.passes.device_key import LaunchMode
from perfmodel.passes.kernels import Kernels
from s2d.model.attention import (
    MIN_FUSED_ROWS,
    RotateFunction,
    ScatterTarget,
    attend,
    attend_fused,
    norm_heads,
    rotate_complex,
    rotate_real,
)
from s2d.model.buffers import PassBuffers, new_buffers
from s2d.model.cache import Cache, LayerViews, Segment, make_segments
from s2d.model.choose_tokens import ExitPredictor
from s2d.model.host_copies import HostTokens, PendingPrediction, PredictionCopy
from s2d.model.rotary import RotationTable, new_rotation_table
from s2d.model.weights import PAD, DecoderWeights

AttendFunction = Callable[[PassBuffers, Tensor, Tensor, Any], Tensor]
"""Attention of one layer. Arguments: buffers, keys, values, and the extent of attention in the form of the kernel."""
NormFunction = Callable[[Tensor, Tensor, PassBuffers], Tensor]
"""Norm of residual rows for the next matrix: [T, D]. Arguments: rows with padding, rows without padding, buffers."""
Span: TypeAlias = tuple[
    LayerViews | tuple[ScatterTarget, ...], LayerViews, LayerViews, Tensor, Tensor, RotateFunction, AttendFunction, Any
]
"""Positions of a pass in its text. Per layer: where K and V are written, the keys and the values to attend to. For all layers:
rotation factors for Q, those for K and V, the rotation, the attention and its extent. Every pass makes a span. It is a
plain tuple, because field access of a record would cost as much as a tensor operation."""
SegmentRun: TypeAlias = tuple[Segment, ...]
"""Consecutive segments that have processed the same tokens."""
MASK_STEP: Tokens = 1024
"""The table of masks grows by this many cached tokens."""


class Decoder:
    """A Llama-family decoder over a static cache. All exits share the final norm and the LM head.

    Args:
        geometry: shapes of the model.
        weights: converted by `s2d.loading.convert_weights`.
    """

    mode: LaunchMode = "eager"
    """How passes are launched."""
    _adds_padded_rows = False
    """Whether products that are added to the residual have the width of padded rows, D + PAD."""
    _num_padding_rows = 0
    """Rows after a text that passes may write, and read with weight 0."""

    def __init__(self, geometry: ModelGeometry, weights: DecoderWeights) -> None:
        self.geometry = geometry
        self.weights = weights
        self.dtype = weights.head.dtype
        self.device = weights.head.device
        self._tokens = HostTokens(self.device)
        self._prediction_copy = None if self.device.type == "cpu" else PredictionCopy(self.device)
        self._buffers: dict[int, PassBuffers] = {}
        self._masks = torch.empty(0)
        self._rotations: RotationTable | None = None
        self._is_complex = self.dtype == torch.float32
        # With this as one more component, the length of a head is sqrt(H) times its RMS.
        self._head_eps_length = torch.tensor(math.sqrt(geometry.head_dim * weights.norm_eps), device=self.device)
        self._rotate: RotateFunction = rotate_complex if self._is_complex else rotate_real
        # Not a bound method: it would make a reference cycle, which keeps the weights until the next garbage collection.
        self._normed: NormFunction = (
            partial(_normed_fused, weights.norm_eps) if weights.kernels.norm == "fused" else _normed_in_two_steps
        )
        self._has_fp32_products = (
            self.device.type == "cuda" and not self._is_complex and "dtype" in torch.ops.aten.mm.overloads()
        )
        if self.device.type == "cuda":
            # Products of 1 row and of several rows sum in different orders. Reduced precision would increase the difference.
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
            torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False

    @property
    def kernels(self) -> Kernels:
        """The kernels that the weights are laid out for."""
        return self.weights.kernels

    @property
    def vocab_size(self) -> int:
        """V: tokens that the decoder accepts, and for which it returns logits."""
        return len(self.weights.embedding)

    @property
    def num_devices(self) -> int:
        """Devices that compute the decoder together."""
        return 1

    def new_cache(self, segment_ends: tuple[int, ...], max_tokens: int) -> Cache:
        """An empty cache whose segments end after these layer counts."""
        return Cache(
            self.geometry,
            make_segments(segment_ends),
            max_tokens,
            padding=self.padding(max_tokens),
            rotations=self._rotations_for(max_tokens),
            num_padding_rows=self._num_padding_rows,
        )

    def prepare(
        self,
        cache: Cache,
        begin_tokens: Tokens,
        end_tokens: Tokens,
        runs: Sequence[SegmentRun] | None = None,
        predictor: ExitPredictor | None = None,
        widths: Sequence[Tokens] | None = None,
    ) -> None:
        """Prepare the short passes of a text that grows from `begin_tokens` to `end_tokens`, before anything is timed.

        Args:
            cache: a cache of this decoder, without a text.
            begin_tokens: length before the first pass.
            end_tokens: length after the last pass.
            runs: the segments of each pass; None prepares each segment alone.
            predictor: predicts at the exits; None if no exit is checked, or if the check cannot be prepared.
            widths: the widths of the passes, from `perfmodel.passes.passes.GRAPH_ROW_WIDTHS`; None prepares all.
        """

    def split_run(self, run: SegmentRun, cache: Cache) -> Sequence[SegmentRun]:
        """Split segments into runs. Each run is launched as one pass."""
        return [(segment,) for segment in run]

    def padding(self, rows: int) -> Tensor:
        """Components after the D of a residual row: [rows, PAD]."""
        tail = torch.zeros(rows, PAD, dtype=self.dtype, device=self.device)
        tail[:, 0] = math.sqrt(self.geometry.hidden_size * self.weights.norm_eps)
        return tail

    def embed(self, token_ids: list[int]) -> Tensor:
        """Residual rows of tokens: [T, D + PAD]. For a single token this is a view of the weights: do not write to it."""
        table = self.weights.embedding
        if len(token_ids) == 1:
            return table[token_ids[0] : token_ids[0] + 1]
        return table[self._tokens(token_ids)]

    def forward_run(self, states: Tensor, run: SegmentRun, cache: Cache) -> Tensor:
        """Run rows through consecutive segments that have processed the same tokens: see `forward_segment`."""
        for segment in run:
            states = self.forward_segment(states, segment, cache)
        return states

    def forward_segment(self, states: Tensor, segment: Segment, cache: Cache) -> Tensor:
        """Run rows through one segment. Appends their KV, and keeps the output as the backlog of the next segment.

        Args:
            states: [T, D + PAD], the rows at the segment's next T positions; not modified.
            segment: a segment of the cache.
            cache: a cache of this decoder.

        Returns:
            [T, D + PAD], a view of the states in the cache.
        """
        start = cache.lengths[segment.index]
        end = start + states.shape[0]
        out = cache.states[segment.index][start:end]
        self._run_layers(states, out, segment, cache, start)
        cache.lengths[segment.index] = end
        return out

    def exit_logits(self, states: Tensor) -> Tensor:
        """Logits of an exit, -inf for tokens that the head lacks: [T, D + PAD] -> float32 [T, V]."""
        logits = self._head_logits(states)
        token_ids = self.weights.head_token_ids
        if token_ids is None:
            return logits
        return logits.new_full((len(logits), self.vocab_size), -torch.inf).index_copy_(1, token_ids, logits)

    def _head_logits(self, states: Tensor) -> Tensor:
        """Final norm and head: [T, D + PAD] -> float32 [T, U], in the order of the head's columns."""
        normed = self._normed(states, states[:, : self.geometry.hidden_size], self._buffers_for(states.shape[0]))
        if self._has_fp32_products:
            return torch.mm(normed, self.weights.head, out_dtype=torch.float32)
        return torch.mm(normed, self.weights.head).float()

    def predict(self, states: Tensor, predictor: ExitPredictor, noise: Tensor | None) -> PendingPrediction:
        """Token and confidence of an exit. Read a prediction before the next one is started.

        Args:
            states: [1, D + PAD].
            predictor: applied to the logits.
            noise: the noise of the position, [1, V]; None unless noise is shared.
        """
        return self.send_prediction(*predictor(self.exit_logits(states), noise))

    def send_prediction(self, token: Tensor, confidence: Tensor) -> PendingPrediction:
        """Start the copy of a prediction to the host: token, int64 [1], and confidence, [1]."""
        if self._prediction_copy is None:
            return lambda: (int(token), float(confidence))
        self._prediction_copy.send(torch.cat((token.double(), confidence.double())))
        return self._prediction_copy

    @torch.inference_mode()
    def all_exit_logits(self, token_ids: list[int], exit_layers: tuple[int, ...]) -> list[Tensor]:
        """Logits of each exit after every token, from one teacher-forced pass: a [T, V] per exit.

        Args:
            token_ids: the text.
            exit_layers: increasing layer counts; the depth of the decoder is its last exit.
        """
        cache = self.new_cache(exit_layers, len(token_ids))
        states = self.embed(token_ids)
        logits = []
        for segment in cache.segments:
            states = self.forward_segment(states, segment, cache)
            logits.append(self.exit_logits(states))
        return logits

    def _run_layers(self, x: Tensor, out: Tensor, segment: Segment, cache: Cache, start: int) -> None:
        rows = x.shape[0]
        end = start + rows
        attention: AttendFunction = attend_fused if rows >= MIN_FUSED_ROWS else attend
        extent = start if rows >= MIN_FUSED_ROWS else self._mask(rows, start) if rows > 1 else None
        views, rotations = cache.views(segment, start, rows), cache.rotations
        q_factors, kv_factors = rotations.query[start:end], rotations.key_value[start:end]
        self._run_span(x, out, segment, (*views, q_factors, kv_factors, self._rotate, attention, extent))

    def _run_span(self, x: Tensor, out: Tensor, segment: Segment, span: Span) -> None:
        buffers = self._buffers_for(x.shape[0])
        destinations, keys, values, q_factors, kv_factors, rotate, attention, extent = span
        mm, addmm, normed, add = torch.mm, torch.addmm, self._normed, self._add
        gate, up = buffers.gate, buffers.up
        width = self.geometry.hidden_size
        unpadded_in, unpadded_out = x[:, :width], out[:, :width]
        sum_in, sum_out = (x, out) if self._adds_padded_rows else (unpadded_in, unpadded_out)
        layers = self.weights.layers[segment.start : segment.end]
        for layer, destination, key, value in zip(layers, destinations, keys, values, strict=True):
            if layer.qkv_bias is None:
                mm(normed(x, unpadded_in, buffers), layer.qkv, out=buffers.qkv)
            else:
                addmm(layer.qkv_bias, normed(x, unpadded_in, buffers), layer.qkv, out=buffers.qkv)
            if layer.qk_gain is not None:
                norm_heads(buffers, layer.qk_gain, self._head_eps_length)
            rotate(buffers, destination, q_factors, kv_factors)
            add(attention(buffers, key, value, extent), layer.attn_out, layer.attn_out_bias, sum_in, sum_out)
            x, unpadded_in, sum_in = out, unpadded_out, sum_out
            if layer.gate_up_bias is None:
                mm(normed(x, unpadded_in, buffers), layer.gate_up, out=buffers.gate_up)
            else:
                addmm(layer.gate_up_bias, normed(x, unpadded_in, buffers), layer.gate_up, out=buffers.gate_up)
            silu(gate, inplace=True)
            gate.mul_(up)
            add(gate, layer.down, layer.down_bias, sum_in, sum_out)

    def _add(self, x: Tensor, matrix: Tensor, bias: Tensor | None, residual: Tensor, out: Tensor) -> None:
        """Add the product of x and a matrix to the residual."""
        torch.addmm(residual, x, matrix, out=out)
        if bias is not None:
            out.add_(bias)

    def _buffers_for(self, rows: int) -> PassBuffers:
        buffers = self._buffers.get(rows)
        if buffers is None:
            buffers = new_buffers(self.geometry, rows, self.dtype, self.device)
            if rows < MIN_FUSED_ROWS:
                self._buffers[rows] = buffers
        return buffers

    def _rotations_for(self, num_positions: Tokens) -> RotationTable:
        """A table for at least this many positions. Caches keep their table when a longer one replaces it here."""
        if self._rotations is None or self._rotations.num_positions < num_positions:
            self._rotations = new_rotation_table(self.weights.rotary, num_positions, self.dtype, self.device)
        return self._rotations

    def _mask(self, rows: int, start: int) -> Tensor:
        """Additive causal mask [T, S]: row i attends to the cached tokens and to the first i + 1 new ones."""
        table_start = self._masks.shape[-1] - MIN_FUSED_ROWS
        if table_start < start:
            # The mask of the largest case. Every smaller mask is a slice of it.
            table_start = -(-start // MASK_STEP) * MASK_STEP
            shape = MIN_FUSED_ROWS, table_start + MIN_FUSED_ROWS
            mask = torch.full(shape, -torch.inf, dtype=self.dtype, device=self.device)
            self._masks = mask.triu_(table_start + 1)
        skipped = table_start - start
        return self._masks[:rows, skipped : skipped + start + rows]


def _normed_in_two_steps(x: Tensor, unpadded: Tensor, buffers: PassBuffers) -> Tensor:
    """Rows divided by their length: [T, D]. The factor sqrt(D) is in the next matrix."""
    torch.linalg.vector_norm(x, 2, -1, True, dtype=torch.float32, out=buffers.norm)
    torch.div(unpadded, buffers.norm, out=buffers.normed)
    return buffers.normed


def _normed_fused(eps: float, x: Tensor, unpadded: Tensor, buffers: PassBuffers) -> Tensor:
    """Rows divided by their RMS: [T, D]."""
    return torch.rms_norm(unpadded, unpadded.shape[1:], None, eps)
