"""Folding in slices: the same bits as folding whole matrices, little memory beside the result, and aligned rows."""

import math
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from s2d.loading.convert_weights import convert_weights, random_weights, with_reduced_head, with_vocab_size
from s2d.loading.read_config import DecoderConfig, config_geometry, layer_extras
from s2d.model.weights import PAD, DecoderWeights, LayerWeights
from s2d.parallel.shard import Shard
from tests.s2d.loading.test_families import SPECS
from tests.stubs import TinySpec, tiny_llama

FEW_BYTES = 4096
ODD = TinySpec(vocab_size=37, intermediate_size=44)
STORED_DTYPES = (torch.float32, torch.bfloat16)


def state_of(spec: TinySpec, dtype: torch.dtype = torch.float32) -> tuple[dict[str, Tensor], DecoderConfig]:
    model = tiny_llama(spec).to(dtype)
    return model.state_dict(), model.config


def fold(spec: TinySpec, dtype: torch.dtype, stored: torch.dtype = torch.float32) -> DecoderWeights:
    state, config = state_of(spec, stored)
    return convert_weights(state.__getitem__, config, config_geometry(config, Path("tiny")), dtype, "cpu")


def folded_whole(spec: TinySpec, dtype: torch.dtype, stored: torch.dtype) -> Iterator[tuple[Tensor, ...]]:
    """By layer qkv, its bias, the gate and the up projection, attention's and the MLP's output; at last the head alone."""
    state, config = state_of(spec, stored)
    g, extras = config_geometry(config, Path("tiny")), layer_extras(config)

    def after(norm: str, *names: str) -> Tensor:
        gain = math.sqrt(g.hidden_size) * state[f"{norm}.weight"].float()
        return torch.cat([state[f"{name}.weight"].float() for name in names]) * gain

    def interleaved(rows: Tensor) -> Tensor:
        heads = rows.unflatten(0, (-1, g.head_dim)).clone()
        heads[: g.num_heads] *= 1.0 if extras.normed_heads else g.head_dim**-0.5
        turned = heads[: g.num_heads + g.num_kv_heads]
        turned.copy_(turned.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2))
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
def test_slices_fold_to_the_bits_of_whole_matrices(
    spec: TinySpec, dtype: torch.dtype, stored: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s2d.loading.convert_weights.CONVERT_BYTES", FEW_BYTES)
    found = fold(spec, dtype, stored)
    *layers, (head,) = folded_whole(spec, dtype, stored)
    for layer, (qkv, qkv_bias, gate_up, attn_out, down) in zip(found.layers, layers, strict=True):
        pairs = [(layer.qkv, qkv), (layer.gate_up, gate_up), (layer.attn_out, attn_out), (layer.down, down)]
        pairs += [] if layer.qkv_bias is None else [(layer.qkv_bias, qkv_bias)]
        assert all(torch.equal(mine, whole) for mine, whole in pairs)
    assert torch.equal(found.head, head)
    state, _ = state_of(spec, stored)
    assert torch.equal(found.embedding[:, : spec.hidden_size], state["model.embed_tokens.weight"].to(dtype))
    assert not found.embedding[:, spec.hidden_size + 1 :].any()


@pytest.mark.parametrize("stored", STORED_DTYPES)
def test_folding_leaves_the_checkpoint_as_it_is(stored: torch.dtype) -> None:
    state, config = state_of(TinySpec(family="qwen2"), stored)
    before = {name: weight.clone() for name, weight in state.items()}
    convert_weights(state.__getitem__, config, config_geometry(config, Path("tiny")), torch.float32, "cpu")
    assert all(torch.equal(weight, before[name]) for name, weight in state.items())


class LargestFloat32(TorchDispatchMode):
    """The bytes of the largest float32 tensor that any operation gives."""

    num_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = func(*args, **(kwargs or {}))
        for one in given if isinstance(given, list | tuple) else [given]:
            if isinstance(one, Tensor) and one.dtype == torch.float32:
                self.num_bytes = max(self.num_bytes, one.nbytes)
        return given


@pytest.mark.parametrize("tied", [False, True])
def test_folding_holds_no_float32_tensor_beyond_its_slices(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s2d.loading.convert_weights.CONVERT_BYTES", 2 * FEW_BYTES)
    spec = TinySpec(num_layers=1, vocab_size=400, intermediate_size=200, context_tokens=16, tied=tied)
    with LargestFloat32() as largest:
        state, config = state_of(spec, torch.bfloat16)
        largest.num_bytes = 0
        convert_weights(state.__getitem__, config, config_geometry(config, Path("tiny")), torch.bfloat16, "cpu")
    assert 0 < largest.num_bytes <= FEW_BYTES


def matrices_of(weights: DecoderWeights) -> list[Tensor]:
    tensors = [getattr(layer, one.name) for layer in weights.layers for one in fields(LayerWeights)]
    return [weights.embedding, weights.head, *(one for one in tensors if one is not None and one.dim() == 2)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_every_matrix_start_aligned(dtype: torch.dtype) -> None:
    odd = fold(ODD, dtype)
    geometry = config_geometry(tiny_llama(ODD).config, Path("tiny"))
    shared = TinySpec(vocab_size=37, num_heads=4, num_kv_heads=2, intermediate_size=44)
    whole, whole_geometry = fold(shared, dtype), config_geometry(tiny_llama(shared).config, Path("tiny"))
    found = [odd, with_reduced_head(odd, (1, 4, 9)), with_vocab_size(odd, 45), with_vocab_size(odd, 30)]
    found.append(random_weights(geometry, dtype, "cpu", seed=0))
    for rank in range(2):
        share = Shard(rank=rank, num_ranks=2)
        layers = tuple(share.layer(layer, whole_geometry) for layer in whole.layers)
        found.append(replace(whole, layers=layers, head=share.head(whole.head)))
    for weights in found:
        assert [one.shape for one in matrices_of(weights) if one.stride(0) % 16 or one.stride(1) != 1] == []
        assert weights.head.stride(0) % 64 == PAD
