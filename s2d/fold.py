"""A checkpoint's weights as the lean decoder wants them: gains, scales and the rotation's interleaving folded in, once.

Everything is folded in float32 and rounded once to the dtype that is computed in.
Symbols: D hidden, F mlp, N heads, K kv heads, H head dim, V vocab, S positions.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from perfmodel.errors import UserInputError
from perfmodel.geometry import ModelGeometry
from perfmodel.units import Tokens
from s2d.checkpoint import ReadTensor
from s2d.config import DecoderConfig, LayerExtras, layer_extras
from s2d.rotary import Rotary
from s2d.weights import PAD, DecoderWeights, LayerWeights

KeepLayer = Callable[[LayerWeights, ModelGeometry], LayerWeights]
"""What is kept of a layer of a model of this geometry."""
RANDOM_NORM_EPS = 1e-5
RANDOM_ROPE_THETA = 10000.0


def fold_weights(
    read: ReadTensor,
    config: DecoderConfig,
    geometry: ModelGeometry,
    dtype: torch.dtype,
    device: str,
    kept: KeepLayer = lambda layer, geometry: layer,
) -> DecoderWeights:
    """Weights as the decoder wants them: each norm's gain times sqrt(D) in the matrix after it.

    Args:
        read: reads a tensor of the checkpoint.
        config: of the checkpoint.
        geometry: the shapes it gives.
        dtype: of the result.
        device: torch's name for it.
        kept: of every layer, as soon as it is folded.

    Raises:
        UserInputError: a tensor has another shape than the config gives it.
    """
    folder = _Folder(read, geometry, dtype, device)
    extras, table = layer_extras(config), "model.embed_tokens"
    embedding = folder.tensor(f"{table}.weight", geometry.vocab_size, geometry.hidden_size).to(dtype)
    head = folder.normed("model.norm", {table if config.tie_word_embeddings else "lm_head": geometry.vocab_size})
    return DecoderWeights(
        embedding=_padded(embedding, config.rms_norm_eps),
        layers=tuple(kept(folder.layer(f"model.layers.{n}", extras), geometry) for n in range(geometry.num_layers)),
        head=_unaliased(head.to(dtype).t()),
        rotary=_rotary(config),
        norm_eps=config.rms_norm_eps,
    )


class _Folder:
    """Folds a checkpoint's tensors, which it holds to their shapes.

    Args:
        read: reads one.
        geometry: the shapes.
        dtype: of the result.
        device: torch's name for it.
    """

    def __init__(self, read: ReadTensor, geometry: ModelGeometry, dtype: torch.dtype, device: str) -> None:
        self._read = read
        self._geometry = geometry
        self._dtype = dtype
        self._device = device

    def tensor(self, name: str, *shape: int) -> Tensor:
        """One tensor as it is stored."""
        found = self._read(name)
        if found.shape != shape:
            raise UserInputError(
                f"model {self._geometry.name!r}: its weights have {name!r} of shape {list(found.shape)}, its config.json "
                f"gives it {list(shape)}. Fetch the model again."
            )
        return found.to(self._device)

    def normed(self, norm: str, rows_of: dict[str, int]) -> Tensor:
        """Matrices that follow a norm, one below the other, its gain and sqrt(D) folded in: float32 [rows, D]."""
        width = self._geometry.hidden_size
        stacked = torch.cat([self.tensor(f"{name}.weight", rows, width).float() for name, rows in rows_of.items()])
        return stacked * (math.sqrt(width) * self.tensor(f"{norm}.weight", width).float())

    def layer(self, prefix: str, extras: LayerExtras) -> LayerWeights:
        """One layer."""
        g, attn, mlp = self._geometry, f"{prefix}.self_attn", f"{prefix}.mlp"
        query, key = g.num_heads * g.head_dim, g.num_kv_heads * g.head_dim
        qkv_rows = {f"{attn}.q_proj": query, f"{attn}.k_proj": key, f"{attn}.v_proj": key}
        gate_up_rows = {f"{mlp}.gate_proj": g.intermediate_size, f"{mlp}.up_proj": g.intermediate_size}
        out_rows, down_rows = {f"{attn}.o_proj": g.hidden_size}, {f"{mlp}.down_proj": g.hidden_size}
        q_scale = 1.0 if extras.normed_heads else g.head_dim**-0.5
        qkv = self.normed(f"{prefix}.input_layernorm", qkv_rows)
        return LayerWeights(
            qkv=self._matrix(_interleaved(qkv, g, q_scale)),
            qkv_bias=_interleaved(self._bias(qkv_rows), g, q_scale).to(self._dtype) if extras.qkv_bias else None,
            qk_gain=self._head_gain(attn) if extras.normed_heads else None,
            attn_out=self._matrix(self.tensor(f"{attn}.o_proj.weight", g.hidden_size, query)),
            attn_out_bias=self._bias(out_rows).to(self._dtype) if extras.attn_out_bias else None,
            gate_up=self._matrix(self.normed(f"{prefix}.post_attention_layernorm", gate_up_rows)),
            gate_up_bias=self._bias(gate_up_rows).to(self._dtype) if extras.mlp_bias else None,
            down=self._matrix(self.tensor(f"{mlp}.down_proj.weight", g.hidden_size, g.intermediate_size)),
            down_bias=self._bias(down_rows).to(self._dtype) if extras.mlp_bias else None,
        )

    def _matrix(self, stored: Tensor) -> Tensor:
        """To be applied from the right."""
        return stored.to(self._dtype).t().contiguous()

    def _bias(self, rows_of: dict[str, int]) -> Tensor:
        """Biases one after the other: float32 [rows]."""
        return torch.cat([self.tensor(f"{name}.bias", rows).float() for name, rows in rows_of.items()])

    def _head_gain(self, attn: str) -> Tensor:
        """Gains of every head's Q and K over their length instead of their RMS, Q's scale in its own: [N + K, H]."""
        g, width = self._geometry, self._geometry.head_dim
        # Q's sqrt(H) and its scale 1 / sqrt(H) are one.
        q = self.tensor(f"{attn}.q_norm.weight", width).float().expand(g.num_heads, width)
        k = math.sqrt(width) * self.tensor(f"{attn}.k_norm.weight", width).float().expand(g.num_kv_heads, width)
        return _paired(torch.cat((q, k))).to(self._dtype)


def with_reduced_head(weights: DecoderWeights, said: Sequence[int]) -> DecoderWeights:
    """The same decoder with a head that says some of the vocabulary's tokens only: reads are in proportion.

    Args:
        weights: with the whole head.
        said: rising token ids.
    """
    tokens = torch.tensor(said, device=weights.head.device)
    return replace(weights, head=_unaliased(weights.head.index_select(1, tokens)), said=tokens)


def with_vocabulary(weights: DecoderWeights, num_tokens: Tokens) -> DecoderWeights:
    """The same decoder for a vocabulary that is padded otherwise.

    Tokens that it lacks embed as nothing and are never said; those beyond the vocabulary are not said any more.
    """
    known = len(weights.embedding)
    said = torch.arange(known, device=weights.head.device) if weights.said is None else weights.said
    lacking = weights.embedding.new_zeros(max(0, num_tokens - known), len(weights.head))
    kept = said < num_tokens
    return replace(
        weights,
        embedding=torch.cat((weights.embedding[:num_tokens], _padded(lacking, weights.norm_eps))),
        head=_unaliased(weights.head[:, kept]),
        said=said[kept],
    )


def random_weights(geometry: ModelGeometry, dtype: torch.dtype, device: str, *, seed: int) -> DecoderWeights:
    """Weights of a given shape drawn at random, to time shapes for which there is no checkpoint.

    Every matrix is drawn where and in the dtype it stays. Numbers are as large as in trained models: rows are normed to an RMS
    of 1, and what a layer adds to the residual is scaled by 1 / sqrt(2 L), as GPT-2's are, so that no depth overflows.
    """
    g = geometry
    generator = torch.Generator(device).manual_seed(seed)
    added = (2 * g.num_layers) ** -0.5

    def matrix(rows: int, columns: int, scale: float) -> Tensor:
        return torch.randn(rows, columns, generator=generator, dtype=dtype, device=device).mul_(scale)

    def layer() -> LayerWeights:
        # The scale of what follows a norm is sqrt(D) / sqrt(D): a row that comes out of one has the length 1.
        qkv = matrix(g.hidden_size, (g.num_heads + 2 * g.num_kv_heads) * g.head_dim, 1.0)
        qkv[:, : g.num_heads * g.head_dim] /= math.sqrt(g.head_dim)
        return LayerWeights(
            qkv=qkv,
            attn_out=matrix(g.num_heads * g.head_dim, g.hidden_size, added * (g.num_heads * g.head_dim) ** -0.5),
            gate_up=matrix(g.hidden_size, 2 * g.intermediate_size, 1.0),
            down=matrix(g.intermediate_size, g.hidden_size, added * g.intermediate_size**-0.5),
        )

    frequencies = RANDOM_ROPE_THETA ** (-torch.arange(0, g.head_dim, 2) / g.head_dim)
    # Both are copied once: before there are layers, so that it adds nothing to the most memory ever held.
    embedding = _padded(matrix(g.vocab_size, g.hidden_size, 1.0), RANDOM_NORM_EPS)
    head = _unaliased(matrix(g.hidden_size, g.vocab_size, 1.0))
    return DecoderWeights(
        embedding=embedding,
        layers=tuple(layer() for _ in range(g.num_layers)),
        head=head,
        rotary=Rotary(frequencies=frequencies, scale=1.0),
        norm_eps=RANDOM_NORM_EPS,
    )


def _interleaved(qkv: Tensor, geometry: ModelGeometry, q_scale: float) -> Tensor:
    """Rows of Q and K paired for the rotation, Q scaled: [(N + 2K) H, ...], the rows of all heads."""
    heads = qkv.unflatten(0, (-1, geometry.head_dim)).clone()
    heads[: geometry.num_heads] *= q_scale
    turned = heads[: geometry.num_heads + geometry.num_kv_heads]
    turned.copy_(_paired(turned))
    return heads.flatten(0, 1)


def _paired(heads: Tensor) -> Tensor:
    """Components (i, i + H / 2) of every head next to each other, as one complex number: [heads, H, ...]."""
    return heads.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


def _padded(embedding: Tensor, norm_eps: float) -> Tensor:
    """Residual rows of all tokens: [V, D + PAD]."""
    tail = torch.zeros(len(embedding), PAD, dtype=embedding.dtype, device=embedding.device)
    tail[:, 0] = math.sqrt(embedding.shape[1] * norm_eps)
    return torch.cat((embedding, tail), dim=1)


def _unaliased(matrix: Tensor) -> Tensor:
    """The same matrix with rows further apart in memory, [D, V].

    Rows a power of two apart fall into the same few cache sets: at [128, 2048] a product with 5 rows takes 82 µs, and
    53 µs with this gap.
    """
    rows, columns = matrix.shape
    spread = matrix.new_empty(rows, columns + PAD)[:, :columns]
    return spread.copy_(matrix)


def _rotary(config: DecoderConfig) -> Rotary:
    """The angles of a config, scaled as it says.

    All families turn as Llama does. Frequencies are those of the whole context: `dynamic` ones change beyond it only.
    """
    rotary = LlamaRotaryEmbedding(config)
    return Rotary(frequencies=rotary.inv_freq, scale=rotary.attention_scaling)
