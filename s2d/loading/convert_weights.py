"""Convert checkpoint weights to the decoder's layout, with norm gains and scales merged in.

The arithmetic is float32, slice by slice, and each number is rounded once to the dtype of the result.
Symbols: D hidden, F mlp, N heads, K kv heads, H head dim, V vocab, U tokens of a reduced head.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from perfmodel.core.errors import UserInputError
from perfmodel.core.units import MIB, Tokens
from perfmodel.models.geometry import ModelGeometry
from perfmodel.passes.kernels import STANDARD_KERNELS, Kernels, WeightLayout
from s2d.loading.checkpoint import REFETCH, BadTensor, ReadTensor
from s2d.loading.read_config import DecoderConfig, LayerExtras, layer_extras
from s2d.model.finite import count_non_finite
from s2d.model.rotary import Rotary
from s2d.model.torch_dtypes import dtype_fix, dtype_label
from s2d.model.weights import DecoderWeights, LayerWeights, matrix_layout, new_embedding, new_head, new_matrix

ShardLayer = Callable[[LayerWeights, ModelGeometry], LayerWeights]
"""Cuts the share of one process out of a layer of a model of this geometry."""
NewMatrix = Callable[[int, int, torch.dtype, torch.device | str, WeightLayout], Tensor]
"""Allocates a matrix: see `s2d.model.weights.new_matrix`."""
RANDOM_NORM_EPS = 1e-5
RANDOM_ROPE_THETA = 10000.0
_PLAIN_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

CONVERT_BYTES = 64 * MIB
"""Float32 bytes held during a conversion. Matrices are converted in slices, which bounds the peak memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The weights of a model on disk, and their shapes."""

    read: ReadTensor
    config: DecoderConfig
    geometry: ModelGeometry
    """The shapes in the config."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _StoredPart:
    """A stored matrix or bias that becomes a part of one decoder matrix."""

    name: str
    """Name of the tensor without `.weight` or `.bias`."""
    rows: int
    scale: float = 1.0
    """Factor on its rows."""
    is_rotated: bool = False
    """Whether the rows of every head are interleaved for the rotation."""


def convert_weights(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: str,
    shard_layer: ShardLayer = lambda layer, geometry: layer,
    *,
    kernels: Kernels = STANDARD_KERNELS,
) -> DecoderWeights:
    """Weights in the decoder's layout: the gain of every norm is merged into the matrix after it.

    A kernel that divides a row by its length instead of its RMS leaves out the factor sqrt(D). The matrix then holds it.

    Args:
        checkpoint: the weights to convert.
        dtype: dtype of the result.
        device: torch's name of the device.
        shard_layer: keeps this process's share of a layer, right after its conversion.
        kernels: the kernels that will use the weights.

    Raises:
        BadTensor: a tensor has another shape than in the config, is not stored as plain floats, or holds non-finite numbers.
        UserInputError: the rotary settings give no finite angles.
    """
    config, geometry = checkpoint.config, checkpoint.geometry
    converter = _Converter(checkpoint, dtype, device, kernels)
    extras, table = layer_extras(config), "model.embed_tokens"
    head = [_StoredPart(name=table if config.tie_word_embeddings else "lm_head", rows=geometry.vocab_size)]
    return DecoderWeights(
        embedding=converter.embedding(table, config.rms_norm_eps),
        layers=tuple(shard_layer(converter.layer(f"model.layers.{n}", extras), geometry) for n in range(geometry.num_layers)),
        head=converter.matrix(head, geometry.hidden_size, norm="model.norm", new=new_head),
        rotary=_rotary(config),
        norm_eps=config.rms_norm_eps,
        kernels=kernels,
    )


class _Converter:
    """Converts the tensors of one checkpoint and checks their shapes. The arguments are those of `convert_weights`."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, device: str, kernels: Kernels) -> None:
        self._read = checkpoint.read
        self._geometry = checkpoint.geometry
        self._dtype = dtype
        self._device = device
        self._kernels = kernels

    def matrix(
        self, parts: Sequence[_StoredPart], inputs: int, *, norm: str | None = None, new: NewMatrix = new_matrix
    ) -> Tensor:
        """Stored matrices side by side, to be applied from the right: [inputs, all rows].

        Args:
            parts: the matrices, each stored as [rows, inputs].
            inputs: width of the rows.
            norm: name of the norm before them, whose gain is merged in; None without a norm.
            new: allocates the result.
        """
        layout = self._kernels.weight_layout
        gain = None if norm is None else self._norm_gain(norm, inputs)
        out = new(inputs, sum(part.rows for part in parts), self._dtype, self._device, layout)
        end = 0
        for part in parts:
            name, num_bad = f"{part.name}.weight", 0
            stored = self._stored(name, part.rows, inputs)
            for rows in stored.split(self._slice_rows(inputs)):
                begin, end = end, end + len(rows)
                converted = rows.to(self._device)
                if gain is not None:
                    converted = self._rearrange(converted.to(torch.float32, copy=True).mul_(gain), part)
                rounded = converted.to(self._dtype)
                num_bad += count_non_finite(rounded)
                columns = rounded.t()
                # Transposed in a copy first: two contiguous copies are twice as fast as a strided one.
                out[:, begin:end] = columns if layout == "output-major" else columns.contiguous()
            self._check_finite(name, num_bad, stored)
        return out

    def _norm_gain(self, norm: str, width: int) -> Tensor:
        """The gain of a norm, times sqrt(D) if the kernel divides rows by their length and not by their RMS: float32 [D]."""
        gain = self._vector(f"{norm}.weight", width)
        return gain if self._kernels.norm == "fused" else math.sqrt(width) * gain

    def embedding(self, name: str, norm_eps: float) -> Tensor:
        """The embedding as residual rows: [V, D + PAD]."""
        width = self._geometry.hidden_size
        stored = self._stored(f"{name}.weight", self._geometry.vocab_size, width)
        out = new_embedding(len(stored), width, norm_eps, self._dtype, self._device)
        end = num_bad = 0
        for rows in stored.split(self._slice_rows(width)):
            begin, end = end, end + len(rows)
            rounded = rows.to(self._device).to(self._dtype)
            num_bad += count_non_finite(rounded)
            out[begin:end, :width] = rounded
        self._check_finite(f"{name}.weight", num_bad, stored)
        return out

    def layer(self, prefix: str, extras: LayerExtras) -> LayerWeights:
        """The weights of one layer, whose tensor names begin with the prefix."""
        g, attn, mlp = self._geometry, f"{prefix}.self_attn", f"{prefix}.mlp"
        query, key = g.num_heads * g.head_dim, g.num_kv_heads * g.head_dim
        q_scale = 1.0 if extras.normed_heads else g.head_dim**-0.5
        qkv = [
            _StoredPart(name=f"{attn}.q_proj", rows=query, scale=q_scale, is_rotated=True),
            _StoredPart(name=f"{attn}.k_proj", rows=key, is_rotated=True),
            _StoredPart(name=f"{attn}.v_proj", rows=key),
        ]
        gate_up = [_StoredPart(name=f"{mlp}.{name}_proj", rows=g.intermediate_size) for name in ("gate", "up")]
        attn_out, down = (_StoredPart(name=name, rows=g.hidden_size) for name in (f"{attn}.o_proj", f"{mlp}.down_proj"))
        return LayerWeights(
            qkv=self.matrix(qkv, g.hidden_size, norm=f"{prefix}.input_layernorm"),
            qkv_bias=self._bias(qkv) if extras.qkv_bias else None,
            qk_gain=self._head_gain(attn) if extras.normed_heads else None,
            attn_out=self.matrix([attn_out], query),
            attn_out_bias=self._bias([attn_out]) if extras.attn_out_bias else None,
            gate_up=self.matrix(gate_up, g.hidden_size, norm=f"{prefix}.post_attention_layernorm"),
            gate_up_bias=self._bias(gate_up) if extras.mlp_bias else None,
            down=self.matrix([down], g.intermediate_size),
            down_bias=self._bias([down]) if extras.mlp_bias else None,
        )

    def _stored(self, name: str, *shape: int) -> Tensor:
        """A tensor as it is stored, on the CPU. Callers move slices of it to the device."""
        stored = self._read(name)
        if stored.dtype not in _PLAIN_FLOATS:
            expected = ", ".join(map(dtype_label, _PLAIN_FLOATS))
            problem = f"is stored as {dtype_label(stored.dtype)}, expected one of {expected}"
            raise BadTensor(name, problem, "Give the original model, not a quantised one")
        if stored.shape != shape:
            expected = f"expected {list(shape)} from config.json"
            problem = f"of model {self._geometry.name!r} has shape {list(stored.shape)}, {expected}"
            raise BadTensor(name, problem)
        return stored

    def _vector(self, name: str, width: int) -> Tensor:
        """A copy of a gain or bias: float32 [width]."""
        stored = self._stored(name, width)
        vector = stored.to(self._device).to(torch.float32, copy=True)
        self._check_finite(name, count_non_finite(vector), stored)
        return vector

    def _check_finite(self, name: str, num_bad: int, stored: Tensor) -> None:
        """Refuse a tensor with non-finite numbers after its conversion.

        Args:
            name: name of the tensor.
            num_bad: how many of its converted numbers are not finite in the dtype of the result.
            stored: the tensor as it is in the file.

        Raises:
            BadTensor: with the number of such values, and whether the file itself holds them.
        """
        if not num_bad:
            return
        if num_stored := count_non_finite(stored):
            problem = f"holds {num_stored} numbers that are not finite (NaN or infinite) among {stored.numel()}"
            raise BadTensor(name, problem)
        dtype = dtype_label(self._dtype)
        problem = f"holds {num_bad} numbers among {stored.numel()} that are too large for {dtype}"
        raise BadTensor(name, problem, dtype_fix(self._dtype) or REFETCH)

    def _slice_rows(self, inputs: int) -> int:
        """Rows per slice, a multiple of the head size: two slices in float32 take `CONVERT_BYTES`."""
        head_dim = self._geometry.head_dim
        return max(1, CONVERT_BYTES // (2 * 4 * inputs * head_dim)) * head_dim

    def _rearrange(self, rows: Tensor, part: _StoredPart) -> Tensor:
        """Rows of whole heads, scaled in place and interleaved if the part is rotated: [rows, ...]."""
        rows.mul_(part.scale)
        if not part.is_rotated:
            return rows
        return _interleave(rows.unflatten(0, (-1, self._geometry.head_dim))).flatten(0, 1)

    def _bias(self, parts: Sequence[_StoredPart]) -> Tensor:
        """The biases of all parts, concatenated: [all rows]."""
        vectors = [self._vector(f"{part.name}.bias", part.rows) for part in parts]
        biases = [self._rearrange(vector, part).to(self._dtype) for vector, part in zip(vectors, parts, strict=True)]
        for part, bias, stored in zip(parts, biases, vectors, strict=True):
            self._check_finite(f"{part.name}.bias", count_non_finite(bias), stored)
        return torch.cat(biases)

    def _head_gain(self, attn: str) -> Tensor:
        """Gains of the norms of every head's Q and K, which divide by the length and not by the RMS: [N + K, H]."""
        g, width = self._geometry, self._geometry.head_dim
        q, k = (self._vector(f"{attn}.{name}_norm.weight", width) for name in ("q", "k"))
        # The factor sqrt(H) of Q cancels its attention scale 1 / sqrt(H).
        for name, gain, stored in (("q", q, q), ("k", math.sqrt(width) * k, k)):
            self._check_finite(f"{attn}.{name}_norm.weight", count_non_finite(gain.to(self._dtype)), stored)
        gains = torch.cat((q.expand(g.num_heads, width), math.sqrt(width) * k.expand(g.num_kv_heads, width)))
        return _interleave(gains).to(self._dtype)


def with_reduced_head(weights: DecoderWeights, token_ids: Sequence[int]) -> DecoderWeights:
    """The same decoder with a head for some tokens only. An exit check reads fewer bytes in proportion.

    Args:
        weights: weights with the whole head.
        token_ids: the tokens of the new head, rising.
    """
    tokens = torch.tensor(token_ids, device=weights.head.device)
    return replace(weights, head=_copy_columns(weights.head, tokens), head_token_ids=tokens)


def with_vocab_size(weights: DecoderWeights, num_tokens: Tokens) -> DecoderWeights:
    """The same decoder for a vocabulary with another amount of padding.

    New tokens get a zero embedding and no logit. Tokens beyond the new vocabulary lose their logits.
    """
    shared, width, head = min(len(weights.embedding), num_tokens), len(weights.head), weights.head
    token_ids = weights.head_token_ids
    if token_ids is None:
        token_ids = torch.arange(len(weights.embedding), device=head.device)
    kept = token_ids < num_tokens
    embedding = new_embedding(num_tokens, width, weights.norm_eps, head.dtype, head.device)
    embedding[:shared] = weights.embedding[:shared]
    embedding[shared:, :width] = 0
    head = _copy_columns(head, kept.nonzero()[:, 0])
    return replace(weights, embedding=embedding, head=head, head_token_ids=token_ids[kept])


def random_weights(
    geometry: ModelGeometry, dtype: torch.dtype, device: str, *, seed: int, kernels: Kernels = STANDARD_KERNELS
) -> DecoderWeights:
    """Random weights of a given shape, to time shapes without a checkpoint.

    Every matrix is drawn on its device and in its dtype. Activations are as large as in trained models: rows have an RMS of 1
    after a norm, and the output of each layer is scaled by 1 / sqrt(2 L) as in GPT-2, which avoids overflow at any depth.
    """
    g = geometry
    generator = torch.Generator(device).manual_seed(seed)
    added = (2 * g.num_layers) ** -0.5
    # After a norm a row has length 1, after the fused norm sqrt(D).
    after_norm = g.hidden_size**-0.5 if kernels.norm == "fused" else 1.0

    def matrix(inputs: int, outputs: int, scale: float, new: NewMatrix = new_matrix) -> Tensor:
        return new(inputs, outputs, dtype, device, kernels.weight_layout).normal_(generator=generator).mul_(scale)

    def layer() -> LayerWeights:
        qkv = matrix(g.hidden_size, (g.num_heads + 2 * g.num_kv_heads) * g.head_dim, after_norm)
        qkv[:, : g.num_heads * g.head_dim] /= math.sqrt(g.head_dim)
        return LayerWeights(
            qkv=qkv,
            attn_out=matrix(g.num_heads * g.head_dim, g.hidden_size, added * (g.num_heads * g.head_dim) ** -0.5),
            gate_up=matrix(g.hidden_size, 2 * g.intermediate_size, after_norm),
            down=matrix(g.intermediate_size, g.hidden_size, added * g.intermediate_size**-0.5),
        )

    frequencies = RANDOM_ROPE_THETA ** (-torch.arange(0, g.head_dim, 2) / g.head_dim)
    embedding = new_embedding(g.vocab_size, g.hidden_size, RANDOM_NORM_EPS, dtype, device)
    embedding[:, : g.hidden_size].normal_(generator=generator)
    head = matrix(g.hidden_size, g.vocab_size, after_norm, new_head)
    return DecoderWeights(
        embedding=embedding,
        layers=tuple(layer() for _ in range(g.num_layers)),
        head=head,
        rotary=Rotary(frequencies=frequencies, scale=1.0),
        norm_eps=RANDOM_NORM_EPS,
        kernels=kernels,
    )


def with_kernels(weights: DecoderWeights, kernels: Kernels, dtype: torch.dtype | None = None) -> DecoderWeights:
    """A copy of the weights in the layout of other kernels.

    Args:
        weights: converted for any kernels.
        kernels: the kernels that will use the copy.
        dtype: dtype of the copy; that of the weights when None.
    """
    dtype = dtype or weights.head.dtype
    scales = {"fused": 1.0, "two-step": math.sqrt(len(weights.head))}
    after_norm = scales[kernels.norm] / scales[weights.kernels.norm]

    def copied(matrix: Tensor, scale: float = 1.0, new: NewMatrix = new_matrix) -> Tensor:
        inputs, outputs = matrix.shape
        return new(inputs, outputs, dtype, matrix.device, kernels.weight_layout).copy_(matrix).mul_(scale)

    def copied_layer(layer: LayerWeights) -> LayerWeights:
        vectors = {name: getattr(layer, name) for name in ("qkv_bias", "qk_gain", "attn_out_bias", "gate_up_bias", "down_bias")}
        return replace(
            layer,
            **{name: vector.to(dtype) for name, vector in vectors.items() if vector is not None},
            qkv=copied(layer.qkv, after_norm),
            attn_out=copied(layer.attn_out),
            gate_up=copied(layer.gate_up, after_norm),
            down=copied(layer.down),
        )

    head = copied(weights.head, after_norm, new_head)
    layers = tuple(map(copied_layer, weights.layers))
    return replace(weights, embedding=weights.embedding.to(dtype), layers=layers, head=head, kernels=kernels)


def _interleave(heads: Tensor) -> Tensor:
    """Put components i and i + H / 2 of every head next to each other, as one complex number: [heads, H, ...]."""
    return heads.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


def _copy_columns(head: Tensor, columns: Tensor) -> Tensor:
    """A copy of some columns of a head: [D, V] -> [D, U]."""
    chosen = new_head(len(head), len(columns), head.dtype, head.device, matrix_layout(head))
    num_rows = max(1, CONVERT_BYTES // (head.element_size() * max(1, len(columns))))
    for target, source in zip(chosen.split(num_rows), head.split(num_rows), strict=True):
        target.copy_(source.index_select(1, columns))
    return chosen


def _rotary(config: DecoderConfig) -> Rotary:
    """The rotary frequencies and scale of a config.

    All supported families rotate as Llama does. `dynamic` frequencies change only beyond the context, which no text exceeds.
    """
    rotary = LlamaRotaryEmbedding(config)
    if not (rotary.inv_freq.isfinite().all() and math.isfinite(rotary.attention_scaling)):
        raise UserInputError(
            f"rotary settings {config.rope_parameters!r} give angles that are not finite. Correct the config.json."
        )
    return Rotary(frequencies=rotary.inv_freq, scale=rotary.attention_scaling)
