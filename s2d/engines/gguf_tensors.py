"""The tensors of a GGUF file: llama.cpp's names, shapes and order of rows for the weights of a Hugging Face folder."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from perfmodel.core.errors import UserInputError
from perfmodel.models.geometry import ModelGeometry
from s2d.loading.read_config import DecoderConfig, LayerExtras, layer_extras

if TYPE_CHECKING:
    from torch import Tensor

GgufType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
GGUF_TYPES: tuple[GgufType, ...] = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
"""Types that the `gguf` package writes. llama.cpp's own llama-quantize makes the others, such as q4_k_m, of a bf16 file."""
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""llama.cpp's architecture of every `model_type` that we load."""
BLOCK_ROWS = 32
"""Numbers that one block of a quantised type stores together."""
_PERMUTED = ("llama", "mistral")
"""Model types whose rotation llama.cpp applies to neighbours, and Hugging Face to halves of a head."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTensor:
    """One tensor of a GGUF file and where its numbers come from."""

    name: str
    source: str | None
    """Name in the checkpoint; None for the frequencies of `llama3` positions, which the config gives."""
    shape: tuple[int, ...]
    """As in the checkpoint. GGUF stores the dimensions in reverse."""
    type: GgufType
    permuted_heads: int = 0
    """Number of heads whose rows go from halves to neighbours; 0 if the order stays."""


def gguf_tensors(config: DecoderConfig, geometry: ModelGeometry, weights: GgufType) -> tuple[GgufTensor, ...]:
    """All tensors of a model, in the order of the file.

    Args:
        config: the model's config.
        geometry: its shapes.
        weights: type of the matrices. Norms and biases stay f32, as llama.cpp wants them. With 4 and 5 bits, the head is stored
            as q8_0; llama-quantize also gives it more bits than the layers.
    """
    table = (geometry.vocab_size, geometry.hidden_size)
    head_type: GgufType = "q8_0" if weights.startswith(("q4", "q5")) else weights
    is_tied = config.tie_word_embeddings
    tensors = [
        GgufTensor(
            name="token_embd.weight",
            source="model.embed_tokens.weight",
            shape=table,
            type=head_type if is_tied else weights,
        ),
        _vector("output_norm.weight", "model.norm.weight", geometry.hidden_size),
    ]
    if not is_tied:
        tensors.append(GgufTensor(name="output.weight", source="lm_head.weight", shape=table, type=head_type))
    if config.rope_parameters["rope_type"] == "llama3":
        tensors.append(_vector("rope_freqs.weight", None, geometry.head_dim // 2))
    shapes = _LayerShapes(geometry=geometry, extras=layer_extras(config), is_permuted=config.model_type in _PERMUTED)
    for layer in range(geometry.num_layers):
        tensors += shapes.tensors(layer, weights)
    return tuple(tensors)


@dataclass(frozen=True, slots=True, kw_only=True)
class _LayerShapes:
    """What all layers of a model have in common."""

    geometry: ModelGeometry
    extras: LayerExtras
    is_permuted: bool

    def tensors(self, layer: int, weights: GgufType) -> Iterator[GgufTensor]:
        """The tensors of one layer."""
        g, extras = self.geometry, self.extras
        source, block = f"model.layers.{layer}", f"blk.{layer}"
        query, key = g.num_heads * g.head_dim, g.num_kv_heads * g.head_dim
        heads = (g.num_heads, g.num_kv_heads) if self.is_permuted else (0, 0)
        yield _vector(f"{block}.attn_norm.weight", f"{source}.input_layernorm.weight", g.hidden_size)
        yield _vector(f"{block}.ffn_norm.weight", f"{source}.post_attention_layernorm.weight", g.hidden_size)
        if extras.normed_heads:
            for name in ("q", "k"):
                yield _vector(f"{block}.attn_{name}_norm.weight", f"{source}.self_attn.{name}_norm.weight", g.head_dim)
        for name, part, rows, columns, has_bias, permuted in (
            ("attn_q", "self_attn.q_proj", query, g.hidden_size, extras.qkv_bias, heads[0]),
            ("attn_k", "self_attn.k_proj", key, g.hidden_size, extras.qkv_bias, heads[1]),
            ("attn_v", "self_attn.v_proj", key, g.hidden_size, extras.qkv_bias, 0),
            ("attn_output", "self_attn.o_proj", g.hidden_size, query, extras.attn_out_bias, 0),
            ("ffn_gate", "mlp.gate_proj", g.intermediate_size, g.hidden_size, extras.mlp_bias, 0),
            ("ffn_up", "mlp.up_proj", g.intermediate_size, g.hidden_size, extras.mlp_bias, 0),
            ("ffn_down", "mlp.down_proj", g.hidden_size, g.intermediate_size, extras.mlp_bias, 0),
        ):
            name, part = f"{block}.{name}", f"{source}.{part}"
            yield GgufTensor(
                name=f"{name}.weight",
                source=f"{part}.weight",
                shape=(rows, columns),
                type=weights,
                permuted_heads=permuted,
            )
            if has_bias:
                yield _vector(f"{name}.bias", f"{part}.bias", rows, permuted)


def _vector(name: str, source: str | None, size: int, permuted_heads: int = 0) -> GgufTensor:
    """A norm's gain or a bias, stored as f32."""
    return GgufTensor(name=name, source=source, shape=(size,), type="f32", permuted_heads=permuted_heads)


def check_block_size(geometry: ModelGeometry, weights: GgufType) -> None:
    """Refuse a quantised type for matrices whose rows are no whole number of blocks.

    Raises:
        UserInputError: names the size.
    """
    if not weights.startswith("q"):
        return
    sizes = {
        "hidden_size": geometry.hidden_size,
        "intermediate_size": geometry.intermediate_size,
        "num_attention_heads x head_dim": geometry.num_heads * geometry.head_dim,
    }
    for name, size in sizes.items():
        if size % BLOCK_ROWS:
            raise UserInputError(
                f"{geometry.name!r}: {name} is {size}, expected a multiple of {BLOCK_ROWS} for {weights}. Use f32, f16 or bf16."
            )


def to_neighbours(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of every head from halves (Hugging Face) to neighbours (llama.cpp): [N * H, ...] -> [N * H, ...]."""
    halves = rows.reshape(num_heads, 2, len(rows) // num_heads // 2, *rows.shape[1:])  # [N, 2, H / 2, ...]
    return halves.swapaxes(1, 2).reshape(rows.shape)


def to_halves(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """The inverse of `to_neighbours`."""
    neighbours = rows.reshape(num_heads, len(rows) // num_heads // 2, 2, *rows.shape[1:])  # [N, H / 2, 2, ...]
    return neighbours.swapaxes(1, 2).reshape(rows.shape)


def converted_rows(tensor: GgufTensor, stored: Tensor) -> np.ndarray:
    """A tensor's numbers in llama.cpp's order of rows: float32, contiguous."""
    import torch

    rows = stored.to(torch.float32).numpy()
    if tensor.permuted_heads:
        rows = to_neighbours(rows, tensor.permuted_heads)
    return np.ascontiguousarray(rows)


def llama3_frequency_factors(config: DecoderConfig, head_dim: int) -> np.ndarray:
    """The factor by which `llama3` positions divide each frequency, as `rope_freqs.weight` stores it: float32 [H / 2].

    Wavelengths beyond the original context are stretched by the whole factor, short ones stay, and those between are blended.
    """
    rope = config.rope_parameters
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    original = rope["original_max_position_embeddings"]
    frequencies = rope["rope_theta"] ** (-np.arange(0, head_dim, 2) / head_dim)
    wavelengths = 2 * math.pi / frequencies
    blend = np.clip((original / wavelengths - low) / max(high - low, 1e-9), 0.0, 1.0)
    return (1.0 / ((1.0 - blend) / factor + blend)).astype(np.float32)
