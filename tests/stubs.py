"""Tiny random models: real networks, small enough to run thousands of rounds in a test."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from perfmodel.models.dtypes import Dtype
from s2d.decoding.clock import Clock
from s2d.decoding.generate import Generation, OnTokens, Session, Settings
from s2d.loading.convert_weights import Checkpoint, convert_weights
from s2d.loading.load_model import LoadedModel
from s2d.loading.read_config import FAMILIES, config_geometry
from s2d.model.decoder import Decoder
from s2d.model.torch_dtypes import torch_dtype

VOCAB_SIZE = 23
EOS = 5
ROPES: dict[str, dict[str, object]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 40},
    "yarn, mscale": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 40,
        "mscale": 1.5,
        "mscale_all_dim": 0.5,
        "beta_fast": 16.0,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TinySpec:
    """A tiny Llama or a related family. Equal specs give equal models, and a shallower spec gives the first layers."""

    family: str = "llama"
    """A `model_type` that the runtime supports."""
    settings: tuple[tuple[str, object], ...] = ()
    """Further keys of the family's config."""

    num_layers: int = 6
    hidden_size: int = 32
    intermediate_size: int = 48
    num_heads: int = 2
    num_kv_heads: int = 1
    head_dim: int = 16
    vocab_size: int = VOCAB_SIZE
    tied: bool = False
    rope: str = "default"
    """A key of `ROPES`."""
    context_tokens: int = 160
    update_scale: float = 0.12
    """Size of a layer's update. With small updates, shallow exits agree with the last one."""
    seed: int = 0


def tiny_llama(spec: TinySpec) -> PreTrainedModel:
    """The model in transformers."""
    config = FAMILIES[spec.family](
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.num_layers,
        num_attention_heads=spec.num_heads,
        num_key_value_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        max_position_embeddings=spec.context_tokens,
        tie_word_embeddings=spec.tied,
        rope_parameters={"rope_theta": 10000.0, **ROPES[spec.rope]},
        bos_token_id=0,
        eos_token_id=EOS,
        **dict(spec.settings),
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Seeded by name: the first layers do not depend on the number of layers.
            generator = torch.Generator().manual_seed(spec.seed * 1000 + sum(name.encode()) + 7 * len(name))
            noise = torch.randn(weight.shape, generator=generator)
            is_gain, is_layer = weight.ndim == 1 and "norm" in name, ".layers." in name
            weight.copy_(1 + 0.2 * noise if is_gain else noise * (spec.update_scale if is_layer else 0.7))
    return model


def loaded(
    model: PreTrainedModel, exit_layers: tuple[int, ...] = (), dtype: Dtype = "fp32", device: str = "cpu"
) -> LoadedModel:
    """A transformers model converted to our runtime, without a file."""
    geometry = config_geometry(model.config, Path("tiny"))
    checkpoint = Checkpoint(read=model.state_dict().__getitem__, config=model.config, geometry=geometry)
    weights = convert_weights(checkpoint, torch_dtype(dtype), device)
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
    """A tiny model for our runtime, cached."""
    return loaded(tiny_llama(spec), exit_layers)


def contrary(model: LoadedModel) -> LoadedModel:
    """A draft that always predicts the token that its model considers least likely."""
    weights = model.decoder.weights
    return replace(model, decoder=Decoder(model.geometry, replace(weights, head=-weights.head)))


def generate(
    target: LoadedModel,
    draft: LoadedModel | None,
    prompt_ids: Sequence[int],
    *,
    clock: Clock | None = None,
    on_tokens: OnTokens | None = None,
    **settings: Any,
) -> Generation:
    """Decode one prompt in a new session."""
    decoding = Settings(**settings)
    session = Session(target, draft, len(prompt_ids) + decoding.max_new_tokens)
    return session.generate(prompt_ids, decoding, clock=clock, on_tokens=on_tokens)
