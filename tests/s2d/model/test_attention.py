"""Attention of many rows: correct numbers, and arguments with which no GPU kernel stores the scores of a long prompt."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import s2d.model.attention
from perfmodel.models.geometry import ModelGeometry
from perfmodel.policies.sampling import GREEDY
from s2d.decoding.generate import Session, Settings
from s2d.model.attention import MIN_FUSED_ROWS, attend_fused
from s2d.model.buffers import PassBuffers, new_buffers
from s2d.model.cuda_graphs import GraphDecoder
from tests.s2d.model.test_decoder import some_tokens
from tests.stubs import TinySpec, loaded, tiny_llama

GROUPED = TinySpec(num_heads=4, num_kv_heads=2, head_dim=24)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


class AttentionCalls:
    """Calls PyTorch's attention and records its arguments."""

    def __init__(self) -> None:
        self.masks: list[Any] = []
        self.options: list[dict[str, Any]] = []
        self.num_kv_heads: list[int] = []
        self._attention = torch.nn.functional.scaled_dot_product_attention

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Any = None, **options: Any) -> Tensor:
        self.masks.append(mask)
        self.options.append(options)
        self.num_kv_heads.append(k.shape[1])
        return self._attention(q, k, v, mask, **options)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> AttentionCalls:
    recorder = AttentionCalls()
    monkeypatch.setattr(s2d.model.attention, "scaled_dot_product_attention", recorder)
    return recorder


def random_inputs(rows: int, cached: int, dtype: torch.dtype, device: str) -> tuple[PassBuffers, Tensor, Tensor]:
    """Buffers with random Q, keys [K, H, S] and values [K, S, H]."""
    geometry = ModelGeometry(
        name="grouped",
        num_layers=1,
        hidden_size=32,
        intermediate_size=32,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        vocab_size=64,
        tied_embeddings=False,
        max_context_tokens=1024,
        source="invented",
    )
    torch.manual_seed(0)
    buffers = new_buffers(geometry, rows, dtype, torch.device(device))
    buffers.heads.copy_(torch.randn(buffers.heads.shape, dtype=torch.float32).to(dtype))
    key, value = (torch.randn(2, cached + rows, 16).to(device, dtype) for _ in range(2))
    return buffers, key.mT, value


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cached", [0, 7])
def test_attention_of_many_rows_is_causal_attention(cached: int, dtype: torch.dtype, device: str) -> None:
    rows = MIN_FUSED_ROWS + 3
    buffers, key, value = random_inputs(rows, cached, dtype, device)
    attended = attend_fused(buffers, key, value, cached).cpu().float()
    q = buffers.q.flatten(0, 1).cpu().float()  # [N, T, H]
    keys, values = (x.cpu().float().repeat_interleave(2, 0) for x in (key.mT, value))
    scores = (q @ keys.mT).masked_fill(~torch.ones(rows, rows + cached, dtype=torch.bool).tril(cached), -torch.inf)
    expected = (scores.softmax(-1) @ values).transpose(0, 1).flatten(1)
    torch.testing.assert_close(attended, expected, atol=2e-2 if dtype == torch.bfloat16 else 1e-5, rtol=1e-2)


@pytest.mark.parametrize("device", DEVICES)
def test_attention_of_a_prompt_is_causal_by_a_flag_without_a_mask(device: str, calls: AttentionCalls) -> None:
    model = loaded(tiny_llama(GROUPED), device=device)
    session = Session(model, None, 120)
    session.generate(some_tokens(100), Settings(policy=None, sampling=GREEDY, max_new_tokens=4, eos_token_id=None))
    assert calls.masks == [None] * model.geometry.num_layers
    assert all(options["is_causal"] for options in calls.options)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "num_kv_heads"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_a_gpu_gets_no_dense_mask_and_in_fp32_no_grouped_heads(
    dtype: torch.dtype, num_kv_heads: int, calls: AttentionCalls
) -> None:
    for cached in (0, 7):
        attend_fused(*random_inputs(MIN_FUSED_ROWS, cached, dtype, "cuda"), cached)
    assert not any(isinstance(mask, Tensor) and type(mask) is Tensor for mask in calls.masks)
    assert calls.num_kv_heads == [num_kv_heads] * 2  # the memory-efficient kernel needs a KV head for every head


def graphed(dtype: str, attention: str, device: str) -> Session:
    """A session with captured passes and a given attention kernel."""
    model = loaded(tiny_llama(GROUPED), (2, 6), dtype, device)  # type: ignore[arg-type]
    kernels = replace(model.decoder.kernels, attention=attention)
    decoder = GraphDecoder(model.geometry, replace(model.decoder.weights, kernels=kernels))
    return Session(replace(model, decoder=decoder), None, 200)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_varlen_attention_generates_the_text_of_products(dtype: str) -> None:
    settings = Settings(policy=None, sampling=GREEDY, max_new_tokens=40, eos_token_id=None)
    prompts = [some_tokens(size, seed=size) for size in (1, 5, 90)]
    sessions = [graphed(dtype, kind, "cuda") for kind in ("products", "varlen")]
    by_products, by_varlen = ([session.generate(prompt, settings).tokens[:8] for prompt in prompts] for session in sessions)
    # Rounding may separate the two at a near-tie later on; a bug makes them differ from the first tokens on.
    assert by_products == by_varlen
