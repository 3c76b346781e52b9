"""Draft heads and models that generate no text are recognised by class, key, file or name."""

from typing import Any

from perfmodel.models.known_architectures import ARCHITECTURES
from perfmodel.models.known_models import KNOWN_MODELS
from perfmodel.models.model_roles import DRAFT_HEADS, unsupported_role

EAGLE_3 = "LlamaForCausalLMEagle3"
CLASSIFIER = "LlamaForSequenceClassification"
LLAMA = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 1, "vocab_size": 100}

HEADS: list[tuple[str, dict[str, Any], str]] = [
    (
        "head",
        {"architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": 32000},
        "an EAGLE-3 head ('LlamaForCausalLMEagle3')",
    ),
    ("head", {"architectures": ["LlamaForCausalLM"], "draft_vocab_size": 32000}, "an EAGLE-3 head (draft_vocab_size = 32000)"),
    ("head", {"architectures": ["LlamaForCausalLM"], "eagle_config": {"x": 1}}, "an EAGLE-3 head (eagle_config"),
    (
        "head",
        {"architectures": ["Eagle3Speculator"], "speculators_model_type": "eagle3"},
        "an EAGLE-3 head ('Eagle3Speculator')",
    ),
    ("head", {"speculators_model_type": "eagle"}, "an EAGLE head ('eagle')"),
    ("head", {"speculators_model_type": "new"}, "a speculators head (speculators_model_type = 'new')"),
    ("head", {"architectures": ["EagleModel"], "model_type": "eagle"}, "an EAGLE head ('EagleModel')"),
    ("EAGLE-LLaMA3-Instruct-8B", {"architectures": ["LlamaForCausalLM"]}, "an EAGLE head by its name"),
    ("HASS-LLaMA3-8B", {"architectures": ["LlamaForCausalLM"]}, "a HASS head by its name"),
    ("head", {"architectures": ["PEagleDraftModel"]}, "a P-EAGLE head"),
    ("head", {"architectures": ["DFlashDraftModel"], "model_type": "qwen3", "block_size": 16}, "a DFlash head"),
    (
        "head",
        {"architectures": ["Qwen3ForCausalLM"], "dflash_config": {"x": [1]}},
        "a DFlash head (dflash_config",
    ),
    ("head", {"architectures": ["DSparkDraftModel"], "dflash_config": {"mask_token_id": 3}}, "a DSpark head"),
    ("head", {"architectures": ["MedusaModel"]}, "a set of Medusa heads"),
    ("head", {"medusa_num_heads": 5, "medusa_num_layers": 1}, "a set of Medusa heads (medusa_num_heads = 5)"),
    ("head", {"architectures": ["HydraForCausalLM"]}, "a set of Hydra heads"),
    ("head", {"architectures": ["ParallelHeadsModel"]}, "a set of parallel heads"),
    ("head", {"architectures": ["MLPSpeculatorPreTrainedModel"], "n_predict": 3}, "an MLP speculator"),
    ("head", {"architectures": ["DeepSeekMTPModel"]}, "an MTP head"),
    ("head", {"architectures": ["Gemma4AssistantForCausalLM"]}, "an MTP head"),
    ("head", {"architectures": ["NewDraftModel"], "num_target_layers": 36}, "a draft head"),
]
NON_GENERATIVE: list[tuple[str, dict[str, Any], tuple[str, ...], str]] = [
    (
        "m",
        {"architectures": ["LlamaForSequenceClassification"]},
        (),
        "a reward model or classifier ('LlamaForSequenceClassification')",
    ),
    ("m", {"architectures": ["Qwen2ForRewardModel"]}, (), "a reward model ('Qwen2ForRewardModel')"),
    ("m", {"architectures": ["Qwen3Model"]}, (), "a model without a head for the next token ('Qwen3Model')"),
    ("m", {"architectures": ["Gemma3TextModel"]}, (), "a model without a head for the next token"),
    ("m", {"architectures": ["BertModel"], "model_type": "bert"}, (), "a model without a head for the next token"),
    ("m", {"architectures": ["BertForMaskedLM"]}, (), "an encoder"),
    ("m", {"architectures": ["ColPaliForRetrieval"]}, (), "an embedding model"),
    ("m", {"architectures": ["Qwen2ForCausalLM"], "is_causal": False}, (), "an embedding model (is_causal = false"),
    ("m", {"architectures": ["LlamaForCausalLM"]}, ("config.json", "modules.json"), "an embedding model (modules.json of"),
    ("m", {"architectures": ["LlamaForCausalLM"]}, ("1_Pooling",), "an embedding model (1_Pooling of"),
    ("Qwen3-Embedding-8B", {"architectures": ["Qwen3ForCausalLM"]}, (), "an embedding model by its name"),
    ("my-reward-model", {"architectures": ["LlamaForCausalLM"]}, (), "a reward model by its name"),
    ("Qwen3-Reranker-8B", {"architectures": ["Qwen3ForCausalLM"]}, (), "a reranker by its name"),
]


def test_a_draft_head_is_named_by_its_kind() -> None:
    wrong = []
    for name, config, kind in HEADS:
        role = unsupported_role(LLAMA | config, name) or ""
        ending = "its target's hidden states: it is neither a target nor a draft that this version can price"
        if not role.startswith(kind) or not role.endswith(ending):
            wrong.append(f"{kind}: got {role}")
    assert not wrong, "\n".join(wrong)


def test_every_kind_of_head_has_an_example() -> None:
    assert not [head.name for head in DRAFT_HEADS if not any(kind.startswith(head.name) for _, _, kind in HEADS)]


def test_a_model_that_generates_no_text_is_named_by_its_kind() -> None:
    wrong = []
    for name, config, folder_files, kind in NON_GENERATIVE:
        role = unsupported_role(LLAMA | config, name, folder_files) or ""
        if not role.startswith(kind) or not role.endswith("it does not generate text, so it is neither a target nor a draft"):
            wrong.append(f"{kind}: got {role}")
    assert not wrong, "\n".join(wrong)


def test_decoders_are_not_mistaken_for_heads_or_embedding_models() -> None:
    """All covered classes and types, all known names, a target with MTP layers, and names that contain similar words."""
    for row in ARCHITECTURES:
        for name in (row.class_name, row.model_type, *row.other_names):
            assert unsupported_role({**LLAMA, "architectures": [name]}, "mine") is None, name
    for known in KNOWN_MODELS:
        assert unsupported_role({**LLAMA, "architectures": ["LlamaForCausalLM"]}, known.name) is None
    assert unsupported_role({**LLAMA, "architectures": ["MiMoForCausalLM"], "num_nextn_predict_layers": 1}, "MiMo") is None
    assert unsupported_role({**LLAMA, "architectures": ["LlamaForCausalLM"]}, "embedded-rewards-7b", ("config.json",)) is None
    assert unsupported_role({**LLAMA, "num_hidden_layers": 32}, "Eagle-7B") is None
