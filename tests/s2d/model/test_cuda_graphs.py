"""Captured passes compute what eager passes compute. On a CPU they are called again instead of replayed."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import s2d.model.cuda_graphs
from perfmodel.core.errors import UserInputError
from perfmodel.models.dtypes import Dtype
from perfmodel.passes.passes import GRAPH_ROW_WIDTHS
from perfmodel.policies.sampling import GREEDY, Sampling
from s2d.decoding.generate import Session, Settings
from s2d.loading.load_model import LoadedModel
from s2d.model.choose_tokens import ExitPredictor
from s2d.model.cuda_graphs import GraphDecoder, padded_cache_tokens, padded_context
from s2d.model.torch_device import mode_for
from tests.s2d.decoding.test_generate import TARGET, fixed, policies, samplings
from tests.s2d.loading.test_families import SPECS
from tests.s2d.model.test_decoder import some_tokens
from tests.stubs import EOS, VOCAB_SIZE, TinySpec, generate, loaded, tiny_llama, tiny_model

pytestmark = pytest.mark.e2e

PIECES = (1, 3, 70, 1, 2, 5, 32, 17, 1, 9)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def graphed(model: LoadedModel) -> LoadedModel:
    return replace(model, decoder=GraphDecoder(model.geometry, model.decoder.weights))


@pytest.fixture(autouse=True)
def short_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the text of a tiny model grow through several contexts."""
    monkeypatch.setattr(s2d.model.cuda_graphs, "MIN_CONTEXT", 16)


@torch.inference_mode()
def logits_of(model: LoadedModel, token_ids: list[int], before: list[int] | None = None) -> tuple[torch.Tensor, int]:
    """Logits after every token, pass by pass, and the number of prepared passes; `before` is an earlier text in the cache."""
    decoder, ends = model.decoder, (2, model.geometry.num_layers)
    cache = decoder.new_cache(ends, sum(PIECES))
    logits: list[torch.Tensor] = []
    for text in filter(None, (before, token_ids)):
        cache.reset()
        decoder.prepare(cache, 0, len(text))
        logits, position = [], 0
        for rows in PIECES:
            states = decoder.embed(text[position : position + rows])
            for segment in cache.segments:
                states = decoder.forward_segment(states, segment, cache)
            logits.append(decoder.exit_logits(states).clone())
            position += rows
    return torch.cat(logits), len(cache.prepared)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", SPECS)
def test_logits_equal_those_of_eager_passes(name: str, device: str) -> None:
    model, tokens = loaded(tiny_llama(SPECS[name]), device=device), some_tokens(sum(PIECES))
    expected, _ = logits_of(model, tokens)
    logits, num_prepared = logits_of(graphed(model), tokens)
    torch.testing.assert_close(logits, expected, atol=5e-5, rtol=1e-5)
    contexts = {min(padded_context(end), padded_cache_tokens(sum(PIECES))) for end in range(sum(PIECES) + 1)}
    assert num_prepared == 2 * len(GRAPH_ROW_WIDTHS) * len(contexts)  # two segments


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_differs_by_its_rounding_error_at_most_at_every_width(dtype: Dtype, device: str) -> None:
    model, tokens = loaded(tiny_llama(TinySpec()), (), dtype, device), some_tokens(sum(PIECES))
    (expected, _), (logits, _) = logits_of(model, tokens), logits_of(graphed(model), tokens)
    assert float((logits - expected).abs().max() / expected.abs().max()) < {"bf16": 0.03, "fp16": 0.005}[dtype]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_padding_of_earlier_passes_does_not_leak_into_a_text(dtype: Dtype) -> None:
    model, tokens = graphed(loaded(tiny_llama(TinySpec()), (), dtype)), some_tokens(sum(PIECES))
    alone, _ = logits_of(model, tokens)
    after_another, _ = logits_of(model, tokens, before=some_tokens(sum(PIECES), seed=1))
    assert torch.equal(after_another, alone)


def test_passes_that_were_not_prepared_or_are_too_wide_run_eagerly() -> None:
    decoder = graphed(tiny_model(TinySpec())).decoder
    cache = decoder.new_cache((6,), 140)
    (segment,) = cache.segments
    widths: list[int] = []
    for rows in GRAPH_ROW_WIDTHS:
        cache.prepared[0, 0, rows, 16] = lambda states, start: widths.append(len(states))
    for rows in (1, 3, 12, 4, 40):  # within 16 positions, then beyond
        decoder.forward_segment(decoder.embed([1] * rows), segment, cache)
    assert widths == [1, 3, 12]
    assert cache.lengths == [60]


@pytest.mark.parametrize("kind", ["separate", "self"])
@settings(max_examples=30, derandomize=True)
@given(data=st.data(), prompt=st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=12), sampling=samplings)
def test_captured_passes_generate_the_text_of_the_plain_target(
    kind: str, data: st.DataObject, prompt: list[int], sampling: Sampling
) -> None:
    target = graphed(TARGET)
    draft = None if kind == "self" else graphed(tiny_model(TinySpec(num_layers=4), (1, 2, 4)))
    policy = data.draw(policies((draft or target).exit_layers))
    common = {"sampling": sampling, "max_new_tokens": 40, "eos_token_id": data.draw(st.sampled_from([None, EOS]))}
    plain = generate(TARGET, None, prompt, policy=None, **common)
    session = Session(target, draft, len(prompt) + 40)
    for policy_or_none in (policy, None):
        captured = session.generate(prompt, Settings(policy=policy_or_none, **common))
        assert captured.tokens == plain.tokens
        eager = generate(
            TARGET, draft and tiny_model(TinySpec(num_layers=4), (1, 2, 4)), prompt, policy=policy_or_none, **common
        )
        assert captured.blocks == eager.blocks


@pytest.mark.parametrize("device", DEVICES)
@torch.inference_mode()
def test_a_captured_exit_check_predicts_as_an_eager_one(device: str) -> None:
    model = loaded(tiny_llama(TinySpec()), device=device)
    captured, generator = graphed(model).decoder, torch.Generator().manual_seed(0)
    shared_noise = Sampling(rule="shared-noise", temperature=0.8, top_k=5, top_p=0.9, min_p=0.01, seed=3)
    for sampling, confidence in product((GREEDY, shared_noise), ("max-prob", "margin", "entropy", "top10-prob")):
        predictor = ExitPredictor(sampling=sampling, confidence=confidence)
        for token in range(VOCAB_SIZE):
            noise = None if sampling is GREEDY else torch.randn(1, VOCAB_SIZE, generator=generator).to(device)
            row = model.decoder.embed([token])
            expected_token, expected_confidence = model.decoder.predict(row, predictor, noise)()
            assert captured.predict(row, predictor, noise)() == (expected_token, pytest.approx(expected_confidence, abs=1e-6))


def test_preparing_again_captures_only_new_passes() -> None:
    session = Session(graphed(TARGET), None, 150)
    common = {"policy": fixed((1, 4), 3), "sampling": GREEDY, "eos_token_id": None}
    session.generate([1, 2, 3], Settings(max_new_tokens=20, **common))
    prepared = dict(session.cache("target", (1, 2, 4, 6)).prepared)
    session.generate([1, 2, 3], Settings(max_new_tokens=120, **common))
    again = session.cache("target", (1, 2, 4, 6)).prepared
    assert prepared.items() < again.items()


def test_a_single_gpu_uses_graphs_unless_eager_is_requested() -> None:
    assert mode_for(None, "cpu", 1) == "eager"
    assert mode_for(None, "cuda:1", 1) == "graph"
    assert mode_for(None, "cuda", 2) == "eager"
    assert mode_for("eager", "cuda", 1) == "eager"
    assert mode_for("graph", "cuda", 1) == "graph"


def test_graphs_are_refused_without_a_single_gpu() -> None:
    for device, num_devices, where in (("cpu", 1, "a CPU"), ("cuda", 2, "2 devices")):
        with pytest.raises(UserInputError, match=f"graph on {where}: expected eager"):
            mode_for("graph", device, num_devices)
