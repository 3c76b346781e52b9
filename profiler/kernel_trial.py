"""Which kernels are fastest on this device for the shapes of a pair: a few layers of random weights, timed in turns.

Every combination of `perfmodel.kernels` that the device can run gets a decoder of its own, launched as the pair will be. Each
has enough layers that no cache of a GPU holds its weights between two passes. The combinations take turns in random order, so
that a clock that drifts drifts for all of them, and a combination's time is its median.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import get_args

import numpy as np
import torch

from perfmodel.geometry import DraftGeometry, ModelGeometry
from perfmodel.kernels import (
    STANDARD_KERNELS,
    TRIAL_ROWS,
    AttentionKernel,
    Kernels,
    KernelTrial,
    NormKernel,
    WeightLayout,
)
from perfmodel.profile import DTYPE_BYTES, Dtype, EngineMode
from perfmodel.speed_of_light import MAX_CACHE_BYTES
from perfmodel.units import Bytes, Seconds, Tokens
from s2d.clock import Clock
from s2d.fold import random_weights
from s2d.load import DECODERS, torch_dtype
from s2d.nested import Decoder

CACHED_TOKENS: Tokens = 512
NUM_TURNS = 20
NUM_WARM_UPS = 3
SEED = 0


def candidates(device: str, dtype: Dtype, engine: EngineMode) -> tuple[Kernels, ...]:
    """All kernels that can run there, the standard ones first.

    Args:
        device: torch's name for it.
        dtype: to compute in.
        engine: how passes are launched.
    """
    has_varlen = torch.device(device).type == "cuda" and dtype != "fp32" and engine == "graph" and _knows_varlen()
    attentions: tuple[AttentionKernel, ...] = ("products", "varlen") if has_varlen else ("products",)
    found = [
        Kernels(weight_layout=layout, attention=attention, norm=norm)
        for layout, norm, attention in product(get_args(WeightLayout), get_args(NormKernel), attentions)
    ]
    return tuple(sorted(found, key=lambda one: one != STANDARD_KERNELS))


def try_kernels(
    target: ModelGeometry,
    draft: DraftGeometry,
    dtype: Dtype,
    device: str,
    *,
    engine: EngineMode,
    least_bytes: Bytes = 2 * MAX_CACHE_BYTES,
    num_turns: int = NUM_TURNS,
) -> tuple[KernelTrial, ...]:
    """Time every candidate on layers of the draft's shape and of the target's.

    Args:
        target: its shape.
        draft: its shape.
        dtype: to compute in.
        device: torch's name for it.
        engine: how passes are launched.
        least_bytes: weights of the layers of a trial.
        num_turns: timed passes of each candidate.
    """
    kernels = candidates(device, dtype, engine)
    draft_s, target_s = (
        _layer_seconds(model, rows, kernels, dtype, device, engine, least_bytes, num_turns)
        for model, rows in ((draft.model, 1), (target, TRIAL_ROWS))
    )
    return tuple(
        KernelTrial(kernels=one, draft_layer_s=drafting_s, target_layer_s=verifying_s)
        for one, drafting_s, verifying_s in zip(kernels, draft_s, target_s, strict=True)
    )


def trial_model(model: ModelGeometry, dtype: Dtype, least_bytes: Bytes) -> ModelGeometry:
    """A Llama with layers of a model's shape, as many as hold so many bytes of weights, and no vocabulary to speak of."""
    layer_bytes = model.layer_params * DTYPE_BYTES[dtype]
    return ModelGeometry(
        name=f"layers of {model.name}",
        num_layers=min(model.num_layers, int(-(-least_bytes // layer_bytes))),
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        vocab_size=TRIAL_ROWS + 1,
        tied_embeddings=False,
        max_context_tokens=CACHED_TOKENS + TRIAL_ROWS,
        source="random weights, to time kernels",
    )


def _layer_seconds(
    model: ModelGeometry,
    rows: Tokens,
    kernels: Sequence[Kernels],
    dtype: Dtype,
    device: str,
    engine: EngineMode,
    least_bytes: Bytes,
    num_turns: int,
) -> list[Seconds]:
    """Median seconds of one layer, for each of the kernels."""
    cut = trial_model(model, dtype, least_bytes)
    timed = list(_timed_passes(cut, rows, kernels, dtype, device, engine))
    rng = np.random.default_rng(SEED)
    found: list[list[Seconds]] = [[] for _ in timed]
    for turn in range(NUM_WARM_UPS + num_turns):
        for place in rng.permutation(len(timed)):
            took_s = timed[place].seconds()
            if turn >= NUM_WARM_UPS:
                found[place].append(took_s)
    return [float(np.median(seconds)) / cut.num_layers for seconds in found]


def _timed_passes(
    model: ModelGeometry, rows: Tokens, kernels: Sequence[Kernels], dtype: Dtype, device: str, engine: EngineMode
) -> Iterator[_TimedPass]:
    """A pass for each of the kernels. Those that differ in attention alone share their weights."""
    weights = {
        one: random_weights(model, torch_dtype(dtype), device, seed=SEED, kernels=one)
        for one in dict.fromkeys(replace(each, attention="products") for each in kernels)
    }
    for one in kernels:
        of_kernels = replace(weights[replace(one, attention="products")], kernels=one)
        yield _TimedPass(DECODERS[engine](model, of_kernels), rows)


class _TimedPass:
    """A verification of some rows behind `CACHED_TOKENS`, without the head."""

    def __init__(self, decoder: Decoder, rows: Tokens) -> None:
        self._decoder = decoder
        self._cache = decoder.new_cache((decoder.geometry.num_layers,), CACHED_TOKENS + rows)
        decoder.prepare(self._cache, CACHED_TOKENS, CACHED_TOKENS + rows)
        self._states = decoder.embed(list(range(rows)))
        self._rows = rows
        self._clock = Clock(decoder.device)

    @torch.inference_mode()
    def seconds(self) -> Seconds:
        """Of one pass."""
        self._cache.lengths = [CACHED_TOKENS]
        self._clock.start()
        self._decoder.forward_segment(self._states, self._cache.segments[0], self._cache)
        self._clock.lap("verify", 0, self._rows, CACHED_TOKENS)
        (seconds,) = self._clock.lap_seconds()
        return seconds


def _knows_varlen() -> bool:
    """Whether this PyTorch has the attention that reads lengths on the device."""
    try:
        from torch.nn.attention.varlen import varlen_attn_out  # noqa: F401
    except ImportError:
        return False
    return True
