"""Tiny random models: real networks, small enough to run thousands of rounds in a test."""

import functools
from dataclasses import dataclass, replace

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from perfmodel.geometry import ModelGeometry
from perfmodel.profile import Dtype
from s2d.fold import fold_weights
from s2d.load import LoadedModel, torch_dtype
from s2d.nested import Decoder

VOCAB_SIZE = 23
EOS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class TinySpec:
    """A tiny Llama; the same spec is the same model, and a shallower one is its first layers."""

    num_layers: int = 6
    hidden_size: int = 32
    intermediate_size: int = 48
    num_heads: int = 2
    num_kv_heads: int = 1
    head_dim: int = 16
    vocab_size: int = VOCAB_SIZE
    tied: bool = False
    llama3_rope: bool = False
    context_tokens: int = 160
    update_scale: float = 0.12
    """Size of a layer's update: small ones leave shallow exits agreeing with the last."""
    seed: int = 0


def tiny_llama(spec: TinySpec) -> LlamaForCausalLM:
    """The model as transformers runs it."""
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    if spec.llama3_rope:
        rope |= {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        rope |= {"original_max_position_embeddings": 32}
    config = LlamaConfig(
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.num_layers,
        num_attention_heads=spec.num_heads,
        num_key_value_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        max_position_embeddings=spec.context_tokens,
        tie_word_embeddings=spec.tied,
        rope_parameters=rope,
        bos_token_id=0,
        eos_token_id=EOS,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Seeded by name, so that the first layers do not depend on how many follow.
            generator = torch.Generator().manual_seed(spec.seed * 1000 + sum(name.encode()) + 7 * len(name))
            noise = torch.randn(weight.shape, generator=generator)
            is_gain, is_layer = weight.ndim == 1, ".layers." in name
            weight.copy_(1 + 0.2 * noise if is_gain else noise * (spec.update_scale if is_layer else 0.7))
    return model


def loaded(
    model: LlamaForCausalLM, exit_layers: tuple[int, ...] = (), dtype: Dtype = "fp32", device: str = "cpu"
) -> LoadedModel:
    """A transformers model as our runtime runs it, without a file between."""
    config, state = model.config, model.state_dict()
    geometry = ModelGeometry(
        name="tiny",
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        tied_embeddings=config.tie_word_embeddings,
        max_context_tokens=config.max_position_embeddings,
        source="made for a test",
    )
    weights = fold_weights(state.__getitem__, config, geometry, torch_dtype(dtype), device)
    return LoadedModel(
        decoder=Decoder(geometry, weights),
        geometry=geometry,
        exit_layers=exit_layers,
        calibration=None,
        sha256=f"{hash(geometry):x}",
        folder="",
        dtype=dtype,
    )


@functools.cache
def tiny_model(spec: TinySpec, exit_layers: tuple[int, ...] = ()) -> LoadedModel:
    """A tiny model ready to run, made once."""
    return loaded(tiny_llama(spec), exit_layers)


def contrary(model: LoadedModel) -> LoadedModel:
    """A draft that always says what its model thinks least likely."""
    weights = model.decoder.weights
    return replace(model, decoder=Decoder(model.geometry, replace(weights, head=-weights.head)))
