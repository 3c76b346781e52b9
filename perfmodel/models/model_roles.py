"""Recognise models that are neither targets nor supported drafts.

These are models that generate no text, and draft heads. Both look like decoders in most keys of their config.json. They are
recognised by their class, by keys that only they have, by files next to the config, and finally by the model's name, which is
the only difference between Qwen3-Embedding and Qwen3.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass

from perfmodel.core.errors import quoted
from perfmodel.models.architectures import Config, architecture_names
from perfmodel.models.known_architectures import ARCHITECTURES


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftHead:
    """A kind of draft that reads its target's hidden states."""

    name: str
    name_parts: tuple[str, ...]
    """Substrings of its class or type, in lower case and without separators."""
    keys: tuple[str, ...] = ()
    """Keys whose value is not empty, zero or false in such a config."""


DRAFT_HEADS: tuple[DraftHead, ...] = (
    DraftHead(name="a DSpark head", name_parts=("dspark",)),
    DraftHead(name="a DFlash head", name_parts=("dflash",), keys=("dflash_config", "target_layer_ids")),
    DraftHead(name="a P-EAGLE head", name_parts=("peagle",)),
    DraftHead(name="an EAGLE-3 head", name_parts=("eagle3",), keys=("eagle_config", "draft_vocab_size")),
    DraftHead(name="an EAGLE head", name_parts=("eagle",)),
    DraftHead(name="a HASS head", name_parts=("hass",)),
    DraftHead(name="a set of Medusa heads", name_parts=("medusa",), keys=("medusa_num_heads", "medusa_num_layers")),
    DraftHead(name="a set of Hydra heads", name_parts=("hydrafor",), keys=("hydra_num_heads", "hydra_num_layers")),
    DraftHead(name="a set of parallel heads", name_parts=("parallelhead",)),
    DraftHead(name="an MLP speculator", name_parts=("mlpspeculator",), keys=("speculator_width",)),
    DraftHead(name="an MTP head", name_parts=("mtp", "assistant")),
    DraftHead(name="a speculators head", name_parts=("speculator",), keys=("speculators_model_type", "speculators_config")),
    DraftHead(name="a draft head", name_parts=("draftmodel",), keys=("num_target_layers", "target_model_type")),
)

_HEADS_BY_NAME = {"eagle": "an EAGLE head", "eagle2": "an EAGLE head", "eagle3": "an EAGLE-3 head", "hass": "a HASS head"}
"""By a word in the model's name: the configs of the first EAGLE heads look like Llamas with one layer."""
_NON_GENERATIVE_BY_NAME = {
    "embedding": "an embedding model",
    "embed": "an embedding model",
    "reward": "a reward model",
    "reranker": "a reranker",
}
"""By a word in the model's name."""
_NON_GENERATIVE_ENDINGS = {
    "ForSequenceClassification": "a reward model or classifier",
    "ForTokenClassification": "a reward model or classifier",
    "ForRewardModel": "a reward model",
    "RewardModel": "a reward model",
    "ForQuestionAnswering": "a classifier",
    "ForMultipleChoice": "a classifier",
    "ForMaskedLM": "an encoder",
    "ForRetrieval": "an embedding model",
}
_ENCODER = re.compile(r"bert|electra|mpnet", re.IGNORECASE)
_CAUSAL = re.compile(r"CausalLM|LMHead|Decoder", re.IGNORECASE)
_BIDIRECTIONAL_KEYS = {"is_causal": False, "use_bidirectional_attention": True}
_SENTENCE_FILES = ("modules.json", "1_Pooling", "config_sentence_transformers.json")


def unsupported_role(config: Config, name: str, folder_files: Collection[str] = ()) -> str | None:
    """The kind of a model that can be neither target nor draft, to complete `model X is …`; None if it can be one.

    Args:
        config: the object in its config.json.
        name: the model's name.
        folder_files: the names of the files in its folder.
    """
    head = _head_kind(config, name)
    if head is not None:
        return f"{head}, which reads its target's hidden states: it is neither a target nor a draft that this version can price"
    kind = _non_generative_kind(config, folder_files) or _kind_by_name(name, _NON_GENERATIVE_BY_NAME)
    return kind and f"{kind}: it does not generate text, so it is neither a target nor a draft"


def _head_kind(config: Config, name: str) -> str | None:
    """`an EAGLE-3 head (draft_vocab_size = 32000)`."""
    class_names = [*architecture_names(config), str(config.get("speculators_model_type") or "")]
    for head in DRAFT_HEADS:
        matches = [quoted(given) for given in class_names if any(part in _normalised(given) for part in head.name_parts)]
        matches += [f"{key} = {quoted(config[key])}" for key in head.keys if config.get(key)]
        if matches:
            return f"{head.name} ({matches[0]})"
    return _kind_by_name(name, _HEADS_BY_NAME) if config.get("num_hidden_layers") == 1 else None


def _non_generative_kind(config: Config, folder_files: Collection[str]) -> str | None:
    """`a reward model (LlamaForRewardModel)`: by its class, a key, or files of sentence-transformers."""
    for name in architecture_names(config):
        for ending, kind in _NON_GENERATIVE_ENDINGS.items():
            if name.endswith(ending):
                return f"{kind} ({quoted(name)})"
        if name in _HEADLESS or (_ENCODER.search(name) and not _CAUSAL.search(name)):
            return f"a model without a head for the next token ({quoted(name)})"
    for key, value in _BIDIRECTIONAL_KEYS.items():
        if config.get(key) is value:
            return f"an embedding model ({key} = {quoted(value)}: it attends in both directions)"
    marker = next((file for file in _SENTENCE_FILES if file in folder_files), None)
    return marker and f"an embedding model ({marker} of sentence-transformers is next to its config)"


def _kind_by_name(name: str, kinds: dict[str, str]) -> str | None:
    words = re.split(r"[^a-z0-9]+", name.casefold())
    kind = next((kinds[word] for word in words if word in kinds), None)
    return kind and f"{kind} by its name"


def _headless_classes() -> frozenset[str]:
    """`LlamaModel`, `Gemma3TextModel` …: the classes of known architectures without an LM head."""
    known = {architecture.class_name for architecture in ARCHITECTURES}
    stems = {re.sub(r"(ForCausalLM|ForConditionalGeneration|LMHeadModel)$", "", name) for name in known}
    return frozenset({f"{stem}{ending}" for stem in stems for ending in ("Model", "TextModel")} - known)


_HEADLESS = _headless_classes()


def _normalised(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())
