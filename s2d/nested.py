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

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, silu

from perfmodel.geometry import ModelGeometry
from s2d.cache import Cache, Segment, segments_of
from s2d.scratch import Scratch, new_scratch
from s2d.weights import PAD, DecoderWeights

MANY_ROWS = 64
"""From here on the fused attention kernel is faster than three small products, and keeps no [T, S] scores."""


class Decoder:
    """A Llama-family decoder over a static cache. Every exit uses the same final norm and head.

    Args:
        geometry: its shapes.
        weights: folded as `s2d.load` does.
    """

    _sums_whole_rows = False
    """Whether products before the residual are as wide as its rows, padding included."""

    def __init__(self, geometry: ModelGeometry, weights: DecoderWeights) -> None:
        self.geometry = geometry
        self.weights = weights
        self.dtype = weights.head.dtype
        self.device = weights.head.device
        self._scratch: dict[int, Scratch] = {}
        self._masks = torch.empty(0)
        self._complex = self.dtype == torch.float32
        # A head's length is sqrt(H) times its RMS with this as one more component.
        self._head_floor = torch.tensor(math.sqrt(geometry.head_dim * weights.norm_eps), device=self.device)
        turn = weights.rotary
        still = torch.ones_like(turn)
        # V rides along unturned, so that one product fills both halves of a cache row.
        self._q_turn = turn[:, None] if self._complex else _real_turn(turn, self.dtype)[:, :, None]
        kv_turn = torch.stack((turn, still), dim=1)
        self._kv_turn = kv_turn[:, :, None] if self._complex else _real_turn(kv_turn, self.dtype)[:, :, :, None]

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
        )

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
        return table[torch.tensor(token_ids, device=self.device)]

    def forward_segment(self, states: Tensor, segment: Segment, cache: Cache) -> Tensor:
        """Push rows through one segment, append their KV, keep what comes out as the next segment's backlog.

        Args:
            states: [T, D + PAD], the rows at the segment's next T positions; left as they are.
            segment: one of the cache's.
            cache: of this decoder.

        Returns:
            [T, D + PAD], a view of the cache's own states.
        """
        start = cache.lengths[segment.number]
        end = start + states.shape[0]
        out = cache.states[segment.number][start:end]
        self._run_layers(states, out, segment, cache, start)
        cache.lengths[segment.number] = end
        return out

    def exit_logits(self, states: Tensor) -> Tensor:
        """What an exit says after these rows, -inf for tokens that the head cannot say: [T, D + PAD] -> [T, V]."""
        logits = self._head_logits(states)
        if self.weights.said is None:
            return logits
        return logits.new_full((len(logits), self.vocab_size), -torch.inf).index_copy_(1, self.weights.said, logits)

    def _head_logits(self, states: Tensor) -> Tensor:
        """The final norm and the head: [T, D + PAD] -> [T, U], tokens as in its columns."""
        scratch = self._scratch_for(states.shape[0])
        torch.linalg.vector_norm(states, 2, -1, True, dtype=torch.float32, out=scratch.norm)
        torch.div(states[:, : self.geometry.hidden_size], scratch.norm, out=scratch.normed)
        return torch.mm(scratch.normed, self.weights.head)

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
        b = self._scratch_for(rows)
        written, keys, values = cache.views(segment, start, rows)
        q_turn, kv_turn = self._q_turn[start : start + rows], self._kv_turn[start : start + rows]
        mask = self._mask(rows, start) if rows > 1 else None
        rotate = _rotate_complex if self._complex else _rotate_real
        vector_norm, div, mm, addmm, add = torch.linalg.vector_norm, torch.div, torch.mm, torch.addmm, self._add
        norm, normed, gate, up = b.norm, b.normed, b.gate, b.up
        width = self.geometry.hidden_size
        values_in, values_out = x[:, :width], out[:, :width]
        sum_in, sum_out = (x, out) if self._sums_whole_rows else (values_in, values_out)
        layers = self.weights.layers[segment.start : segment.end]
        for layer, write, key, value in zip(layers, written, keys, values, strict=True):
            vector_norm(x, 2, -1, True, dtype=torch.float32, out=norm)
            div(values_in, norm, out=normed)
            if layer.qkv_bias is None:
                mm(normed, layer.qkv, out=b.qkv)
            else:
                addmm(layer.qkv_bias, normed, layer.qkv, out=b.qkv)
            if layer.qk_gain is not None:
                _norm_heads(b, layer.qk_gain, self._head_floor)
            rotate(b, write, q_turn, kv_turn)
            add(_attend(b, key, value, mask), layer.attn_out, layer.attn_out_bias, sum_in, sum_out)
            x, values_in, sum_in = out, values_out, sum_out
            vector_norm(x, 2, -1, True, dtype=torch.float32, out=norm)
            div(values_in, norm, out=normed)
            if layer.gate_up_bias is None:
                mm(normed, layer.gate_up, out=b.gate_up)
            else:
                addmm(layer.gate_up_bias, normed, layer.gate_up, out=b.gate_up)
            silu(gate, inplace=True)
            gate.mul_(up)
            add(gate, layer.down, layer.down_bias, sum_in, sum_out)

    def _add(self, mixed: Tensor, matrix: Tensor, bias: Tensor | None, residual: Tensor, out: Tensor) -> None:
        """Add a product to the residual."""
        torch.addmm(residual, mixed, matrix, out=out)
        if bias is not None:
            out.add_(bias)

    def _scratch_for(self, rows: int) -> Scratch:
        found = self._scratch.get(rows)
        if found is None:
            found = new_scratch(self.geometry, rows, self.dtype, self.device)
            if rows < MANY_ROWS:
                self._scratch[rows] = found
        return found

    def _mask(self, rows: int, start: int) -> Tensor:
        """Additive causal mask [T, S]: row i sees the cached tokens and the first i + 1 new ones."""
        if rows >= MANY_ROWS:
            return self._new_mask(rows, start)
        if not len(self._masks):
            # Row i, column j of the widest case; every other case is a slice of it.
            self._masks = self._new_mask(MANY_ROWS, len(self.weights.rotary))
        skipped = len(self.weights.rotary) - start
        return self._masks[:rows, skipped : skipped + start + rows]

    def _new_mask(self, rows: int, start: int) -> Tensor:
        mask = torch.full((rows, start + rows), -torch.inf, dtype=self.dtype, device=self.device)
        return mask.triu_(start + 1)


def _real_turn(turn: Tensor, dtype: torch.dtype) -> Tensor:
    """Factors for the two products of a real rotation: complex [..., H / 2] -> [2, ..., H] moved to [S, 2, ..., H]."""
    cos = turn.real.repeat_interleave(2, -1)
    sin = torch.stack((-turn.imag, turn.imag), dim=-1).flatten(-2)
    return torch.stack((cos, sin), dim=1).to(dtype)


def _norm_heads(b: Scratch, gain: Tensor, floor: Tensor) -> None:
    """Every head's Q and K over their RMS, times their gain, in place.

    Args:
        b: holds them, unscaled.
        gain: [N + K, H].
        floor: sqrt(H eps), a scalar.
    """
    torch.linalg.vector_norm(b.qk, 2, -1, True, dtype=torch.float32, out=b.qk_norm)
    torch.hypot(b.qk_norm, floor, out=b.qk_norm)
    b.qk.div_(b.qk_norm).mul_(gain)


def _rotate_complex(b: Scratch, write: Tensor, q_turn: Tensor, kv_turn: Tensor) -> None:
    b.q_turn.mul_(q_turn)
    torch.mul(b.kv_turn, kv_turn, out=write)


def _rotate_real(b: Scratch, write: Tensor, q_turn: Tensor, kv_turn: Tensor) -> None:
    """The same in half precision, which has no complex numbers: (a, b) cos + (b, a) (-sin, sin)."""
    flipped = b.heads.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    num_heads = b.q_turn.shape[1]
    b.q_turn.mul_(q_turn[:, 0]).addcmul_(flipped[:, :num_heads], q_turn[:, 1])
    flipped_kv = flipped[:, num_heads:].view_as(b.kv_turn)
    torch.mul(b.kv_turn, kv_turn[:, 0], out=write)
    write.addcmul_(flipped_kv, kv_turn[:, 1])


def _attend(b: Scratch, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
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
    b.attn.view_as(b.mixed_by_row).copy_(b.mixed_by_row)
    return b.attn


def _attend_many(b: Scratch, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """The same by the fused kernel, which keeps no scores."""
    q = b.q.flatten(0, 1)[None]
    mixed = scaled_dot_product_attention(q, key.mT[None], value[None], mask, scale=1.0, enable_gqa=q.shape[1] != len(key))
    return mixed[0].transpose(0, 1).flatten(1)
