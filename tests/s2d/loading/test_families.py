"""Every supported family against transformers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from perfmodel.core.errors import UserInputError
from perfmodel.policies.sampling import GREEDY, Sampling
from s2d.decoding.generate import Settings
from s2d.decoding.pair import PairRequest, load_pair
from s2d.loading.load_model import export_exit, load_model, with_target_vocab
from s2d.loading.read_config import CLASS_NAMES
from s2d.loading.sidecar import Sidecar, write_sidecar
from tests.s2d.decoding.test_generate import fixed, policies, samplings
from tests.s2d.loading.test_load_model import byte_tokenizer
from tests.s2d.model.test_decoder import logits_in_pieces, reference_logits, some_tokens
from tests.stubs import EOS, ROPES, VOCAB_SIZE, TinySpec, generate, loaded, tiny_llama, tiny_model

pytestmark = pytest.mark.e2e

PIECES = (70, 5, 3, 64, 1, 1, 1)
SPECS = {
    "llama, two kv heads for six": TinySpec(hidden_size=48, num_heads=6, num_kv_heads=2, head_dim=8),
    "llama with biases everywhere": TinySpec(settings=(("attention_bias", True), ("mlp_bias", True))),
    "mistral, heads wider than hidden": TinySpec(
        family="mistral", num_heads=4, num_kv_heads=2, head_dim=24, settings=(("sliding_window", None),)
    ),
    "qwen2, tied": TinySpec(family="qwen2", hidden_size=48, num_heads=6, num_kv_heads=2, head_dim=8, tied=True),
    "qwen2, a kv head each": TinySpec(family="qwen2", num_kv_heads=2),
    "qwen3, heads wider than hidden": TinySpec(
        family="qwen3", num_heads=4, num_kv_heads=2, head_dim=24, settings=(("rms_norm_eps", 0.05),)
    ),
    "qwen3 with biases, tied": TinySpec(family="qwen3", num_kv_heads=2, tied=True, settings=(("attention_bias", True),)),
}


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("name", SPECS)
def test_logits_equal_those_of_transformers_in_every_family(tmp_path: Path, name: str, rope: str) -> None:
    spec = replace(SPECS[name], rope=rope)
    model, tokens = tiny_llama(spec), some_tokens(sum(PIECES))
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    expected = reference_logits(model, tokens)
    logits = logits_in_pieces(load_model(tmp_path, "fp32"), PIECES, tokens, (2, 6))
    torch.testing.assert_close(logits, expected, atol=5e-5, rtol=1e-5)


class Operations(TorchDispatchMode):
    """Counts the operations of torch."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("spec", "operations"),
    [
        (TinySpec(), 15),
        (TinySpec(family="mistral", settings=(("sliding_window", None),)), 15),
        (TinySpec(family="qwen2"), 15),
        (TinySpec(family="qwen3"), 19),
        (TinySpec(settings=(("attention_bias", True), ("mlp_bias", True))), 17),
    ],
)
@torch.inference_mode()
def test_only_families_with_extra_parts_run_extra_operations(spec: TinySpec, operations: int) -> None:
    decoder, cache = tiny_model(spec).decoder, tiny_model(spec).decoder.new_cache((2, 6), 4)
    counts = []
    for segment in (*cache.segments, *cache.segments):  # the first pass allocates its buffers
        with Operations() as counted:
            decoder.forward_segment(decoder.embed([3]), segment, cache)
        counts.append(counted.count)
    assert counts[3] - counts[2] == operations * (4 - 2)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_half_precision_differs_by_rounding_alone_in_every_family(family: str) -> None:
    model, tokens = tiny_llama(TinySpec(family=family)), some_tokens(40)
    expected = reference_logits(model, tokens)
    logits = logits_in_pieces(loaded(model, dtype="bf16"), (20, 1, 4, 15), tokens, (2, 6))
    assert float((logits.float() - expected).abs().max() / expected.abs().max()) < 0.03


@pytest.mark.parametrize("name", SPECS)
def test_transformers_reads_an_exported_exit_of_every_family(tmp_path: Path, name: str) -> None:
    tiny_llama(SPECS[name]).save_pretrained(tmp_path / "model")
    export_exit(tmp_path / "model", 4, tmp_path / "exit")
    tokens = some_tokens(20)
    shallow = AutoModelForCausalLM.from_pretrained(tmp_path / "exit", dtype=torch.float32)
    assert type(shallow).__name__ == CLASS_NAMES[SPECS[name].family]
    logits = loaded(tiny_llama(SPECS[name])).decoder.all_exit_logits(tokens, (4, 6))[0]
    torch.testing.assert_close(logits, reference_logits(shallow.eval(), tokens), atol=5e-5, rtol=1e-5)


FAMILY_TARGETS = {
    family: tiny_model(TinySpec(family=family, num_kv_heads=2, rope="yarn"), (1, 2, 4)) for family in ("qwen2", "qwen3")
}
FAMILY_DRAFTS = {
    family: tiny_model(TinySpec(family=family, num_kv_heads=2, rope="yarn", num_layers=4), (1, 2, 4))
    for family in FAMILY_TARGETS
}
PROMPTS = st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=12)


@pytest.mark.parametrize("is_self_draft", [False, True])
@pytest.mark.parametrize("family", FAMILY_TARGETS)
@settings(max_examples=15, derandomize=True)
@given(data=st.data(), prompt=PROMPTS, sampling=samplings)
def test_speculation_is_lossless_in_every_family(
    family: str, is_self_draft: bool, data: st.DataObject, prompt: list[int], sampling: Sampling
) -> None:
    target, draft = FAMILY_TARGETS[family], None if is_self_draft else FAMILY_DRAFTS[family]
    common = {"sampling": sampling, "max_new_tokens": 20, "eos_token_id": EOS}
    plain = generate(target, None, prompt, policy=None, **common)
    assert generate(target, draft, prompt, policy=data.draw(policies((1, 2, 4))), **common).tokens == plain.tokens


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILY_TARGETS)
def test_plain_decoding_equals_generate_of_transformers_in_every_family(family: str) -> None:
    model, prompt = tiny_llama(TinySpec(family=family, num_kv_heads=2, rope="yarn")), [3, 1, 4]
    ids = torch.tensor([prompt])
    options = {"max_new_tokens": 60, "do_sample": False, "pad_token_id": EOS, "eos_token_id": None}
    written = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    common = {"sampling": GREEDY, "max_new_tokens": 60, "eos_token_id": None}
    generation = generate(FAMILY_TARGETS[family], None, prompt, policy=None, **common)
    assert generation.tokens == tuple(written[0, 3:].tolist())


@pytest.mark.parametrize("draft_vocab", [VOCAB_SIZE - 6, VOCAB_SIZE + 6])
@settings(max_examples=15, derandomize=True)
@given(data=st.data(), prompt=PROMPTS, sampling=samplings)
def test_a_draft_with_other_padding_is_lossless(
    draft_vocab: int, data: st.DataObject, prompt: list[int], sampling: Sampling
) -> None:
    target, alone = FAMILY_TARGETS["qwen2"], tiny_model(TinySpec(family="qwen2", vocab_size=draft_vocab), (2, 4))
    draft = with_target_vocab(alone, target.decoder.vocab_size)
    common = {"sampling": sampling, "max_new_tokens": 20, "eos_token_id": None}
    plain = generate(target, None, prompt, policy=None, **common)
    assert generate(target, draft, prompt, policy=data.draw(policies((2, 4))), **common).tokens == plain.tokens


def test_other_padding_keeps_the_logits_of_shared_tokens() -> None:
    target = FAMILY_TARGETS["qwen2"]
    for draft_vocab in (VOCAB_SIZE - 6, VOCAB_SIZE + 6):
        alone = tiny_model(TinySpec(family="qwen2", vocab_size=draft_vocab), (2, 4))
        draft, shared = with_target_vocab(alone, target.decoder.vocab_size), min(draft_vocab, VOCAB_SIZE)
        tokens = [token % shared for token in some_tokens(9)]
        before, after = (model.decoder.all_exit_logits(tokens, (2, 6))[1] for model in (alone, draft))
        assert after.shape == (9, VOCAB_SIZE)
        torch.testing.assert_close(after[:, :shared], before[:, :shared])
        assert (after[:, shared:] == -torch.inf).all()
    assert with_target_vocab(FAMILY_DRAFTS["qwen2"], target.decoder.vocab_size) is FAMILY_DRAFTS["qwen2"]


def test_a_pair_with_one_tokenizer_and_different_padding_loads_and_is_lossless(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    for name, vocab_size, layers in (("target", 288, 6), ("draft", 272, 4)):
        spec = TinySpec(family="qwen2", vocab_size=vocab_size, num_layers=layers)
        tiny_llama(spec).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    write_sidecar(tmp_path / "draft", Sidecar(exit_layers=(2, 4), norm="shared-final-norm", calibration=None))
    pair = load_pair(PairRequest(target=str(tmp_path / "target"), draft=str(tmp_path / "draft"), dtype="fp32", device="cpu"))
    assert (pair.target.geometry.vocab_size, pair.draft.geometry.vocab_size) == (288, 272)
    for rule in (GREEDY, Sampling(rule="shared-noise", temperature=1.5, top_k=None, top_p=None, seed=1)):
        common = {"sampling": rule, "max_new_tokens": 40, "eos_token_id": None, "stop": None}
        policy = fixed((2, 4), 3)
        plain = pair.session(60).generate([280, 7], Settings(policy=None, **common))
        assert pair.session(60).generate([280, 7], Settings(policy=policy, **common)).tokens == plain.tokens
    ratio = Sampling(rule="ratio", temperature=1.0, top_k=None, top_p=None, seed=1)
    assert len(pair.session(60).generate([280, 7], Settings(policy=policy, **common | {"sampling": ratio})).tokens) == 40


@pytest.mark.parametrize(
    ("family", "window"),
    [
        ("mistral", (("sliding_window", 24),)),
        ("qwen2", (("use_sliding_window", True), ("sliding_window", 24), ("max_window_layers", 2))),
        ("qwen3", (("use_sliding_window", True), ("sliding_window", 24), ("max_window_layers", 5))),
    ],
)
def test_the_text_ends_where_the_window_is_full(tmp_path: Path, family: str, window: tuple[tuple[str, object], ...]) -> None:
    model, tokens = tiny_llama(TinySpec(family=family, settings=window)), some_tokens(26)
    model.save_pretrained(tmp_path)
    loaded_model = load_model(tmp_path, "fp32")
    assert (loaded_model.geometry.max_context_tokens, loaded_model.geometry.full_attention_tokens) == (160, 24)
    whole = load_model(tmp_path, "fp32").decoder.all_exit_logits(tokens[:24], (6,))[0]
    torch.testing.assert_close(whole, reference_logits(model, tokens)[:24], atol=5e-5, rtol=1e-5)
    unwindowed = tiny_llama(TinySpec(family=family, settings=(("sliding_window", None),)))
    with pytest.raises(AssertionError):  # with one more token the window matters
        torch.testing.assert_close(reference_logits(model, tokens[:25]), reference_logits(unwindowed, tokens[:25]))
    with pytest.raises(UserInputError, match="do not fit a context of 24 tokens"):
        generate(loaded_model, None, tokens[:20], policy=None, sampling=GREEDY, max_new_tokens=5, eos_token_id=None)
