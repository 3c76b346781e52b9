"""A checkpoint's weights as the lean decoder wants them: gains, scales and the rotation's interleaving folded in, once.

Everything is folded in float32 and rounded once to the dtype that is computed in.
Symbols: D hidden, N heads, K kv heads, H head dim, V vocab, S positions.
"""

import math

import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from perfmodel.geometry import ModelGeometry
from s2d.checkpoint import ReadTensor
from s2d.nested import PAD, DecoderWeights, LayerWeights

RANDOM_NORM_EPS = 1e-5
RANDOM_ROPE_THETA = 10000.0


def fold_weights(
    read: ReadTensor, config: LlamaConfig, geometry: ModelGeometry, dtype: torch.dtype, device: str
) -> DecoderWeights:
    """Weights as the decoder wants them: each norm's gain times sqrt(D) in the matrix after it."""
    root = math.sqrt(geometry.hidden_size)

    def normed(gain: str, *names: str) -> Tensor:
        stacked = torch.cat([read(name).to(device).float() for name in names])
        return stacked * (root * read(gain).to(device).float())

    def layer(prefix: str) -> LayerWeights:
        attn, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        qkv = normed(f"{prefix}.input_layernorm.weight", *(f"{attn}.{name}_proj.weight" for name in "qkv"))
        gate_up = normed(f"{prefix}.post_attention_layernorm.weight", f"{mlp}.gate_proj.weight", f"{mlp}.up_proj.weight")
        matrices = (_interleaved(qkv, geometry), read(f"{attn}.o_proj.weight"), gate_up, read(f"{mlp}.down_proj.weight"))
        qkv, attn_out, gate_up, down = (matrix.to(device, dtype).t().contiguous() for matrix in matrices)
        return LayerWeights(qkv=qkv, attn_out=attn_out, gate_up=gate_up, down=down)

    table = "model.embed_tokens.weight"
    head = normed("model.norm.weight", table if config.tie_word_embeddings else "lm_head.weight")
    return DecoderWeights(
        embedding=_padded(read(table).to(device, dtype), config.rms_norm_eps),
        layers=tuple(layer(f"model.layers.{number}") for number in range(geometry.num_layers)),
        head=_unaliased(head.to(dtype).t()),
        rotary=_rotary(config, device),
        norm_eps=config.rms_norm_eps,
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
        rotary=_turns(frequencies, g.max_context_tokens, 1.0, device),
        norm_eps=RANDOM_NORM_EPS,
    )


def _interleaved(qkv: Tensor, geometry: ModelGeometry) -> Tensor:
    """Rows of Q and K paired (i, i + H / 2) as one complex number, Q scaled by 1 / sqrt(H): [(N + 2K) H, D]."""
    heads = qkv.unflatten(0, (-1, geometry.head_dim)).clone()
    heads[: geometry.num_heads] /= math.sqrt(geometry.head_dim)
    turned = heads[: geometry.num_heads + geometry.num_kv_heads]
    turned.copy_(turned.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2))
    return heads.flatten(0, 1)


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


def _rotary(config: LlamaConfig, device: str) -> Tensor:
    """The turns of a config's positions, scaled as it says: complex64 [S, H / 2]."""
    rotary = LlamaRotaryEmbedding(config)
    return _turns(rotary.inv_freq, config.max_position_embeddings, rotary.attention_scaling, device)


def _turns(frequencies: Tensor, num_positions: int, scale: float, device: str) -> Tensor:
    """exp(i m theta) for every position m: complex64 [S, H / 2]."""
    angles = torch.outer(torch.arange(num_positions).float(), frequencies.float())
    return torch.polar(torch.full_like(angles, scale), angles).to(device)
