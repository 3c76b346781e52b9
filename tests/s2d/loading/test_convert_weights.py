"""Conversion in slices: the bits of a conversion of whole matrices, little temporary memory, and aligned rows."""

import math
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from s2d.loading.convert_weights import Checkpoint, convert_weights, random_weights, with_reduced_head, with_vocab_size
from s2d.loading.read_config import DecoderConfig, config_geometry, layer_extras
from s2d.model.weights import PAD, DecoderWeights, LayerWeights
from s2d.parallel.shard import Shard
from tests.s2d.loading.test_families import SPECS
from tests.stubs import TinySpec, tiny_llama

FEW_BYTES = 4096
ODD = TinySpec(vocab_size=37, intermediate_size=44)
STORED_DTYPES = (torch.float32, torch.bfloat16)


def tiny_state(spec: TinySpec, dtype: torch.dtype = torch.float32) -> tuple[dict[str, Tensor], DecoderConfig]:
    model = tiny_llama(spec).to(dtype)
    return model.state_dict(), model.config


def converted_state(state: dict[str, Tensor], config: DecoderConfig, dtype: torch.dtype) -> DecoderWeights:
    checkpoint = Checkpoint(read=state.__getitem__, config=config, geometry=config_geometry(config, Path("tiny")))
    return convert_weights(checkpoint, dtype, "cpu")


def converted(spec: TinySpec, dtype: torch.dtype, stored: torch.dtype = torch.float32) -> DecoderWeights:
    return converted_state(*tiny_state(spec, stored), dtype)


def converted_whole(spec: TinySpec, dtype: torch.dtype, stored: torch.dtype) -> Iterator[tuple[Tensor, ...]]:
    """For every layer: QKV, its bias, gate and up, output of attention and of the MLP; last the head alone."""
    state, config = tiny_state(spec, stored)
    g, extras = config_geometry(config, Path("tiny")), layer_extras(config)

    def after(norm: str, *names: str) -> Tensor:
        gain = math.sqrt(g.hidden_size) * state[f"{norm}.weight"].float()
        return torch.cat([state[f"{name}.weight"].float() for name in names]) * gain

    def interleaved(rows: Tensor) -> Tensor:
        heads = rows.unflatten(0, (-1, g.head_dim)).clone()
        heads[: g.num_heads] *= 1.0 if extras.normed_heads else g.head_dim**-0.5
        rotated = heads[: g.num_heads + g.num_kv_heads]
        rotated.copy_(rotated.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2))
        return heads.flatten(0, 1)

    for number in range(g.num_layers):
        layer = f"model.layers.{number}"
        names = [f"{layer}.self_attn.{name}_proj" for name in "qkv"]
        bias = torch.cat([state[f"{name}.bias"].float() for name in names]) if extras.qkv_bias else None
        yield (
            interleaved(after(f"{layer}.input_layernorm", *names)).to(dtype).t(),
            torch.empty(0) if bias is None else interleaved(bias).to(dtype),
            after(f"{layer}.post_attention_layernorm", f"{layer}.mlp.gate_proj", f"{layer}.mlp.up_proj").to(dtype).t(),
            state[f"{layer}.self_attn.o_proj.weight"].to(dtype).t(),
            state[f"{layer}.mlp.down_proj.weight"].to(dtype).t(),
        )
    yield (after("model.norm", "model.embed_tokens" if config.tie_word_embeddings else "lm_head").to(dtype).t(),)


@pytest.mark.parametrize("stored", STORED_DTYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spec", [*SPECS.values(), ODD, replace(ODD, tied=True)])
def test_slices_give_the_bits_of_whole_matrices(
    spec: TinySpec, dtype: torch.dtype, stored: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s2d.loading.convert_weights.CONVERT_BYTES", FEW_BYTES)
    weights = converted(spec, dtype, stored)
    *layers, (head,) = converted_whole(spec, dtype, stored)
    for layer, (qkv, qkv_bias, gate_up, attn_out, down) in zip(weights.layers, layers, strict=True):
        pairs = [(layer.qkv, qkv), (layer.gate_up, gate_up), (layer.attn_out, attn_out), (layer.down, down)]
        pairs += [] if layer.qkv_bias is None else [(layer.qkv_bias, qkv_bias)]
        assert all(torch.equal(sliced, whole) for sliced, whole in pairs)
    assert torch.equal(weights.head, head)
    state, _ = tiny_state(spec, stored)
    assert torch.equal(weights.embedding[:, : spec.hidden_size], state["model.embed_tokens.weight"].to(dtype))
    assert not weights.embedding[:, spec.hidden_size + 1 :].any()


@pytest.mark.parametrize("stored", STORED_DTYPES)
def test_the_conversion_does_not_change_the_checkpoint(stored: torch.dtype) -> None:
    state, config = tiny_state(TinySpec(family="qwen2"), stored)
    before = {name: weight.clone() for name, weight in state.items()}
    converted_state(state, config, torch.float32)
    assert all(torch.equal(weight, before[name]) for name, weight in state.items())


class LargestFloat32(TorchDispatchMode):
    """Records the bytes of the largest float32 result of any operation."""

    num_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, Tensor) and tensor.dtype == torch.float32:
                self.num_bytes = max(self.num_bytes, tensor.nbytes)
        return result


@pytest.mark.parametrize("tied", [False, True])
def test_the_conversion_holds_no_float32_tensor_larger_than_a_slice(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s2d.loading.convert_weights.CONVERT_BYTES", 2 * FEW_BYTES)
    spec = TinySpec(num_layers=1, vocab_size=400, intermediate_size=200, context_tokens=16, tied=tied)
    with LargestFloat32() as largest:
        state, config = tiny_state(spec, torch.bfloat16)
        largest.num_bytes = 0
        converted_state(state, config, torch.bfloat16)
    assert 0 < largest.num_bytes <= FEW_BYTES


def matrices_of(weights: DecoderWeights) -> list[Tensor]:
    tensors = [getattr(layer, field.name) for layer in weights.layers for field in fields(LayerWeights)]
    return [weights.embedding, weights.head, *(tensor for tensor in tensors if tensor is not None and tensor.dim() == 2)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_rows_of_every_matrix_are_aligned(dtype: torch.dtype) -> None:
    odd = converted(ODD, dtype)
    geometry = config_geometry(tiny_llama(ODD).config, Path("tiny"))
    shared = TinySpec(vocab_size=37, num_heads=4, num_kv_heads=2, intermediate_size=44)
    whole, whole_geometry = converted(shared, dtype), config_geometry(tiny_llama(shared).config, Path("tiny"))
    variants = [odd, with_reduced_head(odd, (1, 4, 9)), with_vocab_size(odd, 45), with_vocab_size(odd, 30)]
    variants.append(random_weights(geometry, dtype, "cpu", seed=0))
    for rank in range(2):
        share = Shard(rank=rank, num_ranks=2)
        layers = tuple(share.layer(layer, whole_geometry) for layer in whole.layers)
        variants.append(replace(whole, layers=layers, head=share.head(whole.head)))
    for weights in variants:
        assert [matrix.shape for matrix in matrices_of(weights) if matrix.stride(0) % 16 or matrix.stride(1) != 1] == []
        assert weights.head.stride(0) % 64 == PAD
