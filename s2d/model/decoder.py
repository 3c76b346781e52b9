"""The decoder, stripped to what its arithmetic needs: as few tensor operations per layer as are exact.

At hidden size 128 a layer costs its operations, not its bytes, so each one removed is time won:

    norm     the residual row carries one more component, sqrt(D eps), so that its length is sqrt(D) times its RMS; two
             operations, and sqrt(D) and the norm's gain are folded into the matrix that follows
    rotary   the two halves of a head are interleaved in the weights, so that rotating is one complex product, which writes
             K (turned) and V (times 1) straight into the cache
    residual added by the matrix product itself
    biases   of Q, K, V and of the MLP's first half added by the matrix product too, where a family has them
    Q, K     normed by head where a family does that, the score's scale folded into the gain

Symbols: T new tokens, S cached and new, L layers, D hidden, F mlp, N heads, K kv heads, H head dim, V vocab.
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
from perfmodel.passes.device_key import EngineMode
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
from s2d.model.cache import Cache, LayerViews, Segment, segments_of
from s2d.model.choose_tokens import ExitPredictor
from s2d.model.host_copies import HostTokens, PendingPrediction, PredictionCopy
from s2d.model.rotary import RotationTable, new_rotation_table
from s2d.model.weights import PAD, DecoderWeights

AttendFunction = Callable[[PassBuffers, Tensor, Tensor, Any], Tensor]
"""Attention over the keys and values of a layer, within a limit that every kernel of `s2d.model.attention` takes in its own form."""
NormFunction = Callable[[Tensor, Tensor, PassBuffers], Tensor]
"""Rows of the residual, whole and without their padding, as the next matrix takes them: [T, D]."""
Span: TypeAlias = tuple[
    LayerViews | tuple[ScatterTarget, ...], LayerViews, LayerViews, Tensor, Tensor, RotateFunction, AttendFunction, Any
]
"""Where the rows of a pass stand in their text: by layer, where keys and values are written, and which are attended to; the
factors of the positions for Q, and for K and V; what rotates; what attends, and within which limit. A plain tuple: one is made
for every pass, and its names would cost as much as a tensor operation."""
SegmentRun: TypeAlias = tuple[Segment, ...]
"""Consecutive segments that all have seen the same tokens."""
MASK_STEP: Tokens = 1024
"""The table of masks grows by this many cached tokens."""


class Decoder:
    """A Llama-family decoder over a static cache. Every exit uses the same final norm and head.

    Args:
        geometry: its shapes.
        weights: folded as `s2d.loading.load_model` does.
    """

    engine: EngineMode = "eager"
    """How its passes are launched."""
    _sums_whole_rows = False
    """Whether products before the residual are as wide as its rows, padding included."""
    _num_padding_rows = 0
    """Rows after a text that its passes may write, and read with weight 0."""

    def __init__(self, geometry: ModelGeometry, weights: DecoderWeights) -> None:
        self.geometry = geometry
        self.weights = weights
        self.dtype = weights.head.dtype
        self.device = weights.head.device
        self._tokens = HostTokens(self.device)
        self._post = None if self.device.type == "cpu" else PredictionCopy(self.device)
        self._scratch: dict[int, PassBuffers] = {}
        self._masks = torch.empty(0)
        self._turns: RotationTable | None = None
        self._complex = self.dtype == torch.float32
        # A head's length is sqrt(H) times its RMS with this as one more component.
        self._head_floor = torch.tensor(math.sqrt(geometry.head_dim * weights.norm_eps), device=self.device)
        self._rotate: RotateFunction = rotate_complex if self._complex else rotate_real
        # No bound methods: a decoder in a cycle would keep its weights until the next collection.
        self._normed: NormFunction = (
            partial(_normed_fused, weights.norm_eps) if weights.kernels.norm == "fused" else _normed_in_two_steps
        )
        self._has_wide_products = self.device.type == "cuda" and not self._complex and "dtype" in torch.ops.aten.mm.overloads()
        if self.device.type == "cuda":
            # Products of 1 row and of several add up in another order: in half precision their sums would differ by more.
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
            torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False

    @property
    def kernels(self) -> Kernels:
        """The implementations that its weights were folded for."""
        return self.weights.kernels

    @property
    def vocab_size(self) -> int:
        """Tokens that it takes and gives logits of: V."""
        return len(self.weights.embedding)

    @property
    def num_devices(self) -> int:
        """Devices that compute it together."""
        return 1

    def new_cache(self, segment_ends: tuple[int, ...], max_tokens: int) -> Cache:
        """An empty cache whose segments end after the given layer counts."""
        return Cache(
            self.geometry,
            segments_of(segment_ends),
            max_tokens,
            padding=self.padding(max_tokens),
            rotations=self._turns_for(max_tokens),
            num_padding_rows=self._num_padding_rows,
        )

    def prepare(
        self,
        cache: Cache,
        begin_tokens: Tokens,
        end_tokens: Tokens,
        runs: Sequence[SegmentRun] | None = None,
        choice: ExitPredictor | None = None,
        widths: Sequence[Tokens] | None = None,
    ) -> None:
        """Make ready, before anything is timed, for the short passes of a text that is to grow between these lengths.

        Args:
            cache: of this decoder, without a text.
            begin_tokens: before the first pass.
            end_tokens: after the last.
            runs: the segments that passes go through; every segment by itself when None.
            choice: how exits answer; None where they are not asked, or not in a way that can be made ready.
            widths: those of `perfmodel.passes.passes.GRAPH_ROW_WIDTHS` that passes will have; all when None.
        """

    def split_run(self, run: SegmentRun, cache: Cache) -> Sequence[SegmentRun]:
        """The runs to push rows through one after another in order to push them through all of these segments."""
        return [(segment,) for segment in run]

    def padding(self, rows: int) -> Tensor:
        """What follows the D components of a residual row: [rows, PAD]."""
        tail = torch.zeros(rows, PAD, dtype=self.dtype, device=self.device)
        tail[:, 0] = math.sqrt(self.geometry.hidden_size * self.weights.norm_eps)
        return tail

    def embed(self, token_ids: list[int]) -> Tensor:
        """Residual rows of tokens: [T, D + PAD]; of one token a view, not to be written to."""
        table = self.weights.embedding
        if len(token_ids) == 1:
            return table[token_ids[0] : token_ids[0] + 1]
        return table[self._tokens(token_ids)]

    def forward_run(self, states: Tensor, run: SegmentRun, cache: Cache) -> Tensor:
        """Push rows through consecutive segments that have all seen the same tokens: see `forward_segment`."""
        for segment in run:
            states = self.forward_segment(states, segment, cache)
        return states

    def forward_segment(self, states: Tensor, segment: Segment, cache: Cache) -> Tensor:
        """Push rows through one segment, append their KV, keep what comes out as the next segment's backlog.

        Args:
            states: [T, D + PAD], the rows at the segment's next T positions; left as they are.
            segment: one of the cache's.
            cache: of this decoder.

        Returns:
            [T, D + PAD], a view of the cache's own states.
        """
        start = cache.lengths[segment.index]
        end = start + states.shape[0]
        out = cache.states[segment.index][start:end]
        self._run_layers(states, out, segment, cache, start)
        cache.lengths[segment.index] = end
        return out

    def exit_logits(self, states: Tensor) -> Tensor:
        """Logits of an exit after these rows, -inf for tokens that the head lacks: [T, D + PAD] -> float32 [T, V]."""
        logits = self._head_logits(states)
        if self.weights.head_token_ids is None:
            return logits
        return logits.new_full((len(logits), self.vocab_size), -torch.inf).index_copy_(1, self.weights.head_token_ids, logits)

    def _head_logits(self, states: Tensor) -> Tensor:
        """The final norm and the head: [T, D + PAD] -> float32 [T, U], tokens as in its columns."""
        normed = self._normed(states, states[:, : self.geometry.hidden_size], self._scratch_for(states.shape[0]))
        if self._has_wide_products:
            return torch.mm(normed, self.weights.head, out_dtype=torch.float32)
        return torch.mm(normed, self.weights.head).float()

    def predict(self, states: Tensor, choice: ExitPredictor, noise: Tensor | None) -> PendingPrediction:
        """What an exit answers after a row. An answer is read before another is asked for.

        Args:
            states: [1, D + PAD].
            choice: how logits become an answer.
            noise: of the position, [1, V], where it is shared.
        """
        return self.send_prediction(*choice(self.exit_logits(states), noise))

    def send_prediction(self, token: Tensor, confidence: Tensor) -> PendingPrediction:
        """The answer, for the host to read: int64 [1] and [1]."""
        if self._post is None:
            return lambda: (int(token), float(confidence))
        self._post.send(torch.cat((token.double(), confidence.double())))
        return self._post

    @torch.inference_mode()
    def all_exit_logits(self, token_ids: list[int], exit_layers: tuple[int, ...]) -> list[Tensor]:
        """One teacher-forced pass: what each exit says after every token, a [T, V] per exit.

        Args:
            token_ids: the text.
            exit_layers: rising layer counts; the decoder's own depth is its last exit.
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
        act: AttendFunction = attend_fused if rows >= MIN_FUSED_ROWS else attend
        limit = start if rows >= MIN_FUSED_ROWS else self._mask(rows, start) if rows > 1 else None
        views, rotations = cache.views(segment, start, rows), cache.rotations
        self._run_span(
            x, out, segment, (*views, rotations.query[start:end], rotations.key_value[start:end], self._rotate, act, limit)
        )

    def _run_span(self, x: Tensor, out: Tensor, segment: Segment, span: Span) -> None:
        b = self._scratch_for(x.shape[0])
        written, keys, values, q_turn, kv_turn, rotate, act, limit = span
        mm, addmm, normed, add = torch.mm, torch.addmm, self._normed, self._add
        gate, up = b.gate, b.up
        width = self.geometry.hidden_size
        values_in, values_out = x[:, :width], out[:, :width]
        sum_in, sum_out = (x, out) if self._sums_whole_rows else (values_in, values_out)
        layers = self.weights.layers[segment.start : segment.end]
        for layer, write, key, value in zip(layers, written, keys, values, strict=True):
            if layer.qkv_bias is None:
                mm(normed(x, values_in, b), layer.qkv, out=b.qkv)
            else:
                addmm(layer.qkv_bias, normed(x, values_in, b), layer.qkv, out=b.qkv)
            if layer.qk_gain is not None:
                norm_heads(b, layer.qk_gain, self._head_floor)
            rotate(b, write, q_turn, kv_turn)
            add(act(b, key, value, limit), layer.attn_out, layer.attn_out_bias, sum_in, sum_out)
            x, values_in, sum_in = out, values_out, sum_out
            if layer.gate_up_bias is None:
                mm(normed(x, values_in, b), layer.gate_up, out=b.gate_up)
            else:
                addmm(layer.gate_up_bias, normed(x, values_in, b), layer.gate_up, out=b.gate_up)
            silu(gate, inplace=True)
            gate.mul_(up)
            add(gate, layer.down, layer.down_bias, sum_in, sum_out)

    def _add(self, mixed: Tensor, matrix: Tensor, bias: Tensor | None, residual: Tensor, out: Tensor) -> None:
        """Add a product to the residual."""
        torch.addmm(residual, mixed, matrix, out=out)
        if bias is not None:
            out.add_(bias)

    def _scratch_for(self, rows: int) -> PassBuffers:
        found = self._scratch.get(rows)
        if found is None:
            found = new_buffers(self.geometry, rows, self.dtype, self.device)
            if rows < MIN_FUSED_ROWS:
                self._scratch[rows] = found
        return found

    def _turns_for(self, num_positions: Tokens) -> RotationTable:
        """Rotations of so many positions or more. Caches keep theirs, so that a longer table leaves them as they are."""
        if self._turns is None or self._turns.num_positions < num_positions:
            self._turns = new_rotation_table(self.weights.rotary, num_positions, self.dtype, self.device)
        return self._turns

    def _mask(self, rows: int, start: int) -> Tensor:
        """Additive causal mask [T, S]: row i sees the cached tokens and the first i + 1 new ones."""
        longest = self._masks.shape[-1] - MIN_FUSED_ROWS
        if longest < start:
            # Row i, column j of the widest case; every other case is a slice of it.
            longest = -(-start // MASK_STEP) * MASK_STEP
            mask = torch.full((MIN_FUSED_ROWS, longest + MIN_FUSED_ROWS), -torch.inf, dtype=self.dtype, device=self.device)
            self._masks = mask.triu_(longest + 1)
        skipped = longest - start
        return self._masks[:rows, skipped : skipped + start + rows]


def _normed_in_two_steps(x: Tensor, values: Tensor, b: PassBuffers) -> Tensor:
    """Rows over their length: [T, D]; sqrt(D) is in the matrix that follows."""
    torch.linalg.vector_norm(x, 2, -1, True, dtype=torch.float32, out=b.norm)
    torch.div(values, b.norm, out=b.normed)
    return b.normed


def _normed_fused(eps: float, x: Tensor, values: Tensor, b: PassBuffers) -> Tensor:
    """Rows over their RMS: [T, D]."""
    return torch.rms_norm(values, values.shape[1:], None, eps)
