"""The table of known models: weight counts match published ones, names resolve, and docs/reference/models.md is up to date."""

import pytest

from perfmodel.models.find_model import find_draft, find_model
from perfmodel.models.geometry import ModelGeometry
from perfmodel.models.known_architectures import ARCHITECTURES
from perfmodel.models.known_models import ALIASES, KNOWN_DRAFTS, KNOWN_MODELS, KNOWN_ROWS
from perfmodel.passes.flops_bytes import kv_bytes_per_token
from perfmodel.quantisation.weight_format import plain_format

ROUNDED_COUNT = 0.02
EXACT_COUNT = 1e-4


def test_every_model_has_the_published_number_of_weights() -> None:
    wrong = []
    for known in KNOWN_ROWS:
        is_exact = known.published_params % 10_000 != 0
        tolerance = EXACT_COUNT if is_exact else ROUNDED_COUNT
        if known.geometry.num_params != pytest.approx(known.published_params, rel=tolerance):
            wrong.append(f"{known.geometry.name}: {known.geometry.num_params}, published {known.published_params}")
    assert not wrong, "\n".join(wrong)


def test_the_table_has_70_models_and_distinct_lower_case_names() -> None:
    names = [model.name for model in KNOWN_MODELS]
    assert len(names) == len(set(names)) >= 70
    assert all(name == name.casefold() for name in (*names, *ALIASES))


def test_every_model_and_every_count_has_a_source() -> None:
    assert all(known.geometry.source and known.count_source for known in KNOWN_ROWS)
    assert all(draft.model.source for draft in KNOWN_DRAFTS)


def test_every_alias_names_a_known_model_and_is_not_itself_one() -> None:
    known = {model.name for model in KNOWN_MODELS} | {draft.model.name for draft in KNOWN_DRAFTS}
    assert set(ALIASES.values()) <= known
    assert not set(ALIASES) & known


def test_one_model_of_each_architecture_has_the_exact_published_count() -> None:
    """A missing bias or norm would change these counts by more than the tolerance."""
    exact = {
        "LlamaForCausalLM": "llama-3.1-8b",
        "MistralForCausalLM": "mistral-7b-v0.1",
        "Qwen2ForCausalLM": "qwen2.5-7b",
        "Qwen3ForCausalLM": "qwen3-8b",
        "GemmaForCausalLM": "gemma-7b",
        "Gemma2ForCausalLM": "gemma-2-27b",
        "Gemma3ForCausalLM": "gemma-3-1b",
        "Phi3ForCausalLM": "phi-4",
        "OPTForCausalLM": "opt-2.7b",
        "GraniteForCausalLM": "granite-3.3-8b",
        "SmolLM3ForCausalLM": "smollm3-3b",
        "Olmo2ForCausalLM": "olmo-2-7b",
    }
    assert set(exact) <= {architecture.class_name for architecture in ARCHITECTURES}
    counts = {known.geometry.name: known for known in KNOWN_ROWS}
    assert not [
        name
        for name in exact.values()
        if counts[name].geometry.num_params != pytest.approx(counts[name].published_params, rel=2e-6)
    ]


def test_windowed_layers_are_those_of_the_papers() -> None:
    """Mistral 7B (2310.06825): all. Gemma 2 (2408.00118): every other. Gemma 3 (2503.19786): 5 to 1, a local layer first."""
    published = {"mistral-7b-v0.1": (32, 4096), "gemma-2-2b": (13, 4096), "gemma-3-1b": (22, 512), "gemma-3-27b": (52, 1024)}
    models = {name: find_model(name) for name in published}
    assert {name: (model.windowed_layers, model.window_tokens) for name, model in models.items()} == published


def test_a_window_as_long_as_the_context_counts_as_none() -> None:
    assert find_model("phi-3.5-mini").windowed_layers == 0
    assert find_model("mistral-7b").windowed_layers == 0


def test_the_wide_draft_has_37_percent_less_cache_than_the_deep_one() -> None:
    """Decoding Speculative Decoding (2402.01528): 24 layers of 2048 and 12 layers of 2560 have nearly the same size."""
    deep, wide = find_model("noft-1.3b"), find_model("noft-wide-1.3b")
    assert wide.num_params / deep.num_params == pytest.approx(0.991, abs=0.001)
    assert 1 - kv_bytes_per_token(wide, plain_format("fp16")) / kv_bytes_per_token(deep, plain_format("fp16")) == pytest.approx(
        0.375
    )


REPOSITORIES = [
    ("meta-llama/Llama-2-70b-chat-hf", "llama-2-70b"),
    ("meta-llama/Meta-Llama-3-8B-Instruct", "llama-3-8b"),
    ("meta-llama/Llama-3.2-1B-Instruct", "llama-3.2-1b"),
    ("lmsys/vicuna-33b-v1.3", "vicuna-33b"),
    ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b-v0.3"),
    ("Qwen/Qwen2.5-0.5B-Instruct", "qwen2.5-0.5b"),
    ("Qwen/Qwen3-8B-Base", "qwen3-8b"),
    ("google/gemma-3-27b-it", "gemma-3-27b"),
    ("microsoft/Phi-3-mini-4k-instruct", "phi-3-mini"),
    ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "tinyllama-1.1b"),
    ("facebook/opt-66b", "opt-66b"),
    ("JackFram/llama-68m", "vicuna-68m"),
]


def test_a_repository_of_a_base_or_tuned_model_is_found_by_its_last_part() -> None:
    assert not [(repository, name) for repository, name in REPOSITORIES if find_model(repository).name != name]


def test_every_name_finds_its_own_model() -> None:
    assert not [model.name for model in KNOWN_MODELS if find_model(model.name) != model]
    assert not [draft.model.name for draft in KNOWN_DRAFTS if find_draft(draft.model.name) != draft]


def test_opt_has_biases_everywhere_two_mlp_matrices_and_learned_positions() -> None:
    model = find_model("opt-125m")
    matrices = 4 * 768**2 + 2 * 768 * 3072
    assert model.layer_params == matrices + 4 * 768 + 4 * 768 + 3072 + 768
    assert model.num_params == 12 * model.layer_params + 50272 * 768 + 2050 * 768 + 768


def test_the_narrow_embedding_of_opt_350m_has_two_projections_and_its_head_reads_one() -> None:
    model = find_model("opt-350m")
    assert model.head_params == 50272 * 512 + 512 * 1024
    assert model.num_params - 24 * model.layer_params == 50272 * 512 + 2 * 512 * 1024 + 2050 * 1024 + 1024


def test_only_models_with_the_layers_of_a_llama_have_no_differences() -> None:
    assert find_model("llama-3.1-8b").differences_from_llama == find_model("mistral-7b").differences_from_llama == ()
    assert find_model("qwen2.5-7b").differences_from_llama == ("additional norms or biases",)
    differences = ("a plain MLP", "additional norms or biases", "projected embeddings", "learned positions")
    assert find_model("opt-350m").differences_from_llama == differences


def test_a_window_needs_windowed_layers_and_they_need_its_length() -> None:
    shapes = {field: getattr(find_model("gemma-2-2b"), field) for field in ModelGeometry.__dataclass_fields__}
    for change in ({"window_tokens": None}, {"windowed_layers": 0}, {"windowed_layers": 27}, {"extra_layer_params": -9999}):
        with pytest.raises(ValueError, match="gemma-2-2b"):
            ModelGeometry(**shapes | change)
